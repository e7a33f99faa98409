"""Where a block of YAML of the documentation belongs, and its validation there."""

from __future__ import annotations

from typing import Any

import yaml

from dataflex.config import (
    NearConfig,
    RunConfig,
    load_config,
    load_export_config,
    load_near_config,
)
from dataflex.plugins.registry import registry

RUN = {
    "model_name_or_path": "models/SmolLM2-135M-Instruct",
    "dataset": "train.jsonl",
    "dataset_dir": ".",
    "eval_dataset": "target.jsonl",
    "output_dir": "output/documented",
}
NEAR = {"candidate_path": "train.jsonl", "query_path": "target.jsonl", "embed_model": "models/encoder"}


def validate(text: str) -> str:
    """Validate a block at the first place that knows all of its keys.

    Returns:
        What the block is.

    Raises:
        ConfigError: It is wrong there.
        ValueError: There is no such place.
    """
    values = yaml.safe_load(text)
    if not isinstance(values, dict):
        raise ValueError(f"not a mapping: {text!r}")
    keys = set(values)
    if "export_dir" in keys:
        load_export_config(values)
        return "export"
    if keys <= set(RunConfig.model_fields):
        load_config(_run(values), check_component=True)
        return "run"
    if keys <= set(NearConfig.model_fields):
        load_near_config(NEAR | values)
        return "near"
    return _parameters(values, keys)


def _run(values: dict[str, Any]) -> dict[str, Any]:
    """A whole run around the keys of a block."""
    whole = RUN | values
    if "val_size" in values and "eval_dataset" not in values:
        del whole["eval_dataset"]
    if {"component_name", "component_params"} & set(values):
        whole = {"train_type": "dynamic_select", "component_name": "nice", "update_step": 1} | whole
    return whole


def _parameters(values: dict[str, Any], keys: set[str]) -> str:
    """Parameters of a selector or of a reward backend, or reward backends by name."""
    known = registry()
    selectors = [component for (kind, _), component in known.components.items() if kind == "selector"]
    rewards = [component for (kind, _), component in known.components.items() if kind == "reward"]
    for component in selectors:
        if keys <= set(component.load().Config.model_fields):
            load_config(_run({"component_name": component.name, "component_params": values}), check_component=True)
            return f"selector {component.name}"
    if keys <= {component.name for component in rewards}:
        for name in keys:
            _reward(name, values[name])
        return "reward backends"
    for component in rewards:
        if keys <= set(component.load().Config.model_fields):
            _reward(component.name, values)
            return f"reward {component.name}"
    raise ValueError(f"no configuration has all of the keys {sorted(keys)}")


def _reward(name: str, params: dict[str, Any]) -> None:
    needed = {"local_vllm": {"hf_model_name_or_path": "owner/judge"}, "vllm_server": {"hf_model_name_or_path": "o/j"}}
    whole = {
        "reward_model_backend": name,
        "reward_backend_params": {name: needed.get(name, {}) | params},
    }
    load_config(_run({"component_params": whole}), check_component=True)
