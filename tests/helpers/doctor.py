"""A folder with a tiny model, rows and a valid ``run.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dataflex.testing import tiny_model, tiny_samples, tiny_tokenizer
from helpers.rows import write_rows

RUN: dict[str, Any] = {
    "model_name_or_path": "model",
    "dataset": "train.jsonl",
    "dataset_dir": ".",
    "eval_dataset": "target.jsonl",
    "template": "chatml",
    "output_dir": "out",
    "cutoff_len": 128,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1.0,
    "logging_steps": 1,
    "save_steps": 2,
    "train_type": "dynamic_select",
    "component_name": "less",
    "component_params": {"proj_dim": 256, "feature_batch_tokens": 256},
    "warmup_step": 1,
    "update_step": 3,
    "update_times": 2,
}


def write_project(folder: Path, **changes: Any) -> Path:
    """Write the folder; ``changes`` replace keys of ``run.yaml``."""
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, count, seed in (("train", 12, 0), ("target", 4, 9)):
        rows = [
            {"prompt": sample.messages[0]["content"], "completion": sample.reference}
            for sample in tiny_samples(count, seed)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN | changes), encoding="utf-8")
    return folder
