"""The file that the key ``deepspeed`` names: what of it can be run, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataflex.config.paths import read_json_object
from dataflex.config.values import ADAMW
from dataflex.errors import ConfigError
from dataflex.utils.messages import shown

_OURS = {
    "optimizer": "the optimizer is AdamW with the run's own keys (learning_rate, adam_beta1, weight_decay, ...)",
    "scheduler": "the schedule is the run's own (lr_scheduler_type, warmup_ratio)",
}


def conflicts(settings: Mapping[str, Any] | str | None, *, fp16: bool, optim: str) -> Iterator[tuple[str, str]]:
    """Keys of a run that do not go together with ``deepspeed``, and why."""
    if settings is None:
        return
    if fp16:
        yield "fp16", "deepspeed scales no loss here: use bf16 in place of fp16"
    if optim not in ADAMW:
        yield "optim", f"deepspeed shards the moments of torch's AdamW ({' or '.join(ADAMW)}), got {optim}"


def read_deepspeed(value: str | Mapping[str, Any], base: Path | None = None) -> dict[str, Any]:
    """DeepSpeed's settings: a JSON file, or the mapping itself.

    Args:
        value: Path of the file, or its content.
        base: Folder of the configuration that names the file.

    Raises:
        ConfigError: The file is missing or no JSON object, or its settings cannot be run; all reasons at once.
    """
    settings = dict(value) if isinstance(value, Mapping) else read_json_object(value, base)
    problems = list(_problems(settings))
    if problems:
        raise ConfigError(problems)
    return settings


def zero_stage(settings: Mapping[str, Any]) -> Any:
    """How much is sharded; 0, plain data parallelism, where the settings say nothing."""
    return _zero(settings).get("stage", 0)


def _zero(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    zero = settings.get("zero_optimization")
    return zero if isinstance(zero, Mapping) else {}


def _problems(settings: Mapping[str, Any]) -> Iterator[str]:
    zero, stage = _zero(settings), zero_stage(settings)
    if stage == 3:
        yield (
            "ZeRO-3 shards the parameters themselves over the processes, which is not supported yet; use stage 1 or 2, "
            "or remove the key"
        )
    elif stage not in (0, 1, 2):
        yield f"zero_optimization.stage: expected 0, 1 or 2, got {shown(stage)}"
    for part in ("offload_optimizer", "offload_param"):
        offload = zero.get(part)
        if isinstance(offload, Mapping) and offload.get("device", "none") not in ("none", None):
            yield f"zero_optimization.{part} is not supported: the moments of an adapter are small; remove it"
    for part, reason in _OURS.items():
        if part in settings:
            yield f"{part}: {reason}; remove the section"
    for part in ("bf16", "fp16"):
        enabled = settings.get(part)
        if isinstance(enabled, Mapping) and enabled.get("enabled") is True:
            yield f"{part}.enabled: the run's own key {part} decides, and adapters stay in float32; set it to auto"
