"""A run to try a plugin with: a model, data and a configuration on disk, made in a second, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from dataflex.testing.tiny import tiny_model, tiny_samples, tiny_tokenizer
from dataflex.utils.files import write_text

TRAIN_ROWS, EVAL_ROWS = 24, 4


def tiny_project(folder: str | Path, **keys: Any) -> Path:
    """Write a model of random weights, 24 training and 4 evaluation rows, and a configuration that uses them.

    The run makes 2 random steps and 2 selections of 8 rows for 2 steps each; it takes seconds on a CPU.

    Args:
        folder: Where they go; made if need be, files of the same names are replaced.
        **keys: Keys of the configuration, ``component_name="mine"`` above all.

    Returns:
        The configuration: ``dataflex train`` takes it.
    """
    root = Path(folder).resolve()
    (root / "model").mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save_pretrained(root / "model")
    tiny_model().save_pretrained(root / "model")
    for name, count, seed in (("train", TRAIN_ROWS, 0), ("eval", EVAL_ROWS, 50)):
        rows = [
            {"instruction": sample.messages[0]["content"], "output": sample.reference, **sample.metadata}
            for sample in tiny_samples(count, seed, distinct=True)
        ]
        write_text(root / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "model_name_or_path": str(root / "model"),
        "dataset": str(root / "train.jsonl"),
        "eval_dataset": str(root / "eval.jsonl"),
        "template": "chatml",
        "cutoff_len": 128,
        "lora_rank": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 1.0,
        "train_type": "dynamic_select",
        "component_name": "random",
        "warmup_step": 2,
        "update_step": 2,
        "update_times": 2,
        "output_dir": str(root / "out"),
        "overwrite_output_dir": True,
        "logging_steps": 1,
        "save_steps": 2,
        "plot_loss": False,
    }
    path = root / "run.yaml"
    write_text(path, yaml.safe_dump(config | keys, sort_keys=False))
    return path
