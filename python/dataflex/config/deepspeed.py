"""The file that the key ``deepspeed`` names: what of it can be run, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataflex.config.fsdp import sharding_conflicts
from dataflex.config.paths import read_json_object
from dataflex.config.values import ADAMW
from dataflex.errors import ConfigError
from dataflex.utils.messages import shown

_OURS = {
    "optimizer": "the optimizer is AdamW with the run's own keys (learning_rate, adam_beta1, weight_decay, ...)",
    "scheduler": "the schedule is the run's own (lr_scheduler_type, warmup_ratio)",
}
_UNSUPPORTED = {
    "zero_hpz_partition_size": "weights are sharded over all processes",
    "mics_shard_size": "weights are sharded over all processes",
    "zero_quantized_weights": "weights are gathered as they are",
    "zero_quantized_gradients": "gradients are reduced as they are",
    "zero_quantized_nontrainable_weights": "weights are gathered as they are",
}
"""Settings of ZeRO-3 that would change what is computed, or where; the others tune DeepSpeed's own buffers."""


def conflicts(
    settings: Mapping[str, Any] | None, *, fp16: bool, optim: str, quantization: Any
) -> Iterator[tuple[str, str]]:
    """Keys of a run that do not go together with ``deepspeed``, and why."""
    if settings is None:
        return
    if shards_parameters(settings):
        yield from sharding_conflicts("deepspeed, stage 3,", fp16=fp16, optim=optim, quantization=quantization)
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


def shards_parameters(settings: Mapping[str, Any] | None) -> bool:
    """Whether the parameters are sharded, too: ZeRO-3, which torch's FSDP2 computes here, without DeepSpeed."""
    return settings is not None and zero_stage(settings) == 3


def _zero(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    zero = settings.get("zero_optimization")
    return zero if isinstance(zero, Mapping) else {}


def _problems(settings: Mapping[str, Any]) -> Iterator[str]:
    zero, stage = _zero(settings), zero_stage(settings)
    if stage not in (0, 1, 2, 3):
        yield f"zero_optimization.stage: expected 0, 1, 2 or 3, got {shown(stage)}"
    for part in ("offload_optimizer", "offload_param"):
        offload = zero.get(part)
        if isinstance(offload, Mapping) and offload.get("device", "none") not in ("none", None):
            yield f"zero_optimization.{part} is not supported: weights and moments stay on their devices; remove it"
    for key, reason in _UNSUPPORTED.items():
        if stage == 3 and str(zero.get(key)) not in ("None", "False", "1", "-1"):
            yield f"zero_optimization.{key}: {shown(zero[key])} is not supported: {reason}; remove it"
    for part, reason in _OURS.items():
        if part in settings:
            yield f"{part}: {reason}; remove the section"
    for part in ("bf16", "fp16"):
        enabled = settings.get(part)
        if isinstance(enabled, Mapping) and enabled.get("enabled") is True:
            yield f"{part}.enabled: the run's own key {part} decides, and adapters stay in float32; set it to auto"
