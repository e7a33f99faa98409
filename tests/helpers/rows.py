"""Rows and the files that they are in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dataflex.testing import tiny_model, tiny_samples, tiny_tokenizer

ROWS_CONFIG = {
    "model_name_or_path": "model",
    "dataset": ["train"],
    "dataset_dir": ".",
    "eval_dataset": "target.jsonl",
    "template": "chatml",
    "cutoff_len": 128,
    "lora_rank": 2,
    "output_dir": "out",
    "train_type": "dynamic_select",
}
"""What runs of :func:`rows_project` begin with."""


def alpaca_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The tiny samples in Alpaca form, with their metadata as further columns."""
    return [
        {"instruction": sample.messages[0]["content"], "output": sample.reference, **sample.metadata}
        for sample in tiny_samples(count, seed)
    ]


def write_rows(path: Path, made: Iterable[Mapping[str, Any]]) -> Path:
    """A JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def rows_project(root: Path, config: Mapping[str, Any], *, rows: int, targets: int) -> Path:
    """A folder with a tiny model, ``rows.jsonl``, ``target.jsonl`` and ``run.yaml``."""
    tiny_tokenizer().save_pretrained(root / "model")
    tiny_model().save_pretrained(root / "model")
    for name, count, seed in (("rows", rows, 0), ("target", targets, 100)):
        write_rows(root / f"{name}.jsonl", alpaca_rows(count, seed))
    (root / "run.yaml").write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return root
