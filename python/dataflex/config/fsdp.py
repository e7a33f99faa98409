"""The keys ``fsdp`` and ``fsdp_config``, and the environment of ``accelerate launch``: what of FSDP can be run.

LLaMA-Factory hands both keys to transformers, whose meaning they have: ``fsdp`` says that, ``fsdp_config`` says how
parameters are sharded. Accelerate's files have the same settings with the prefix ``fsdp_``, its launcher hands them on
as variables ``FSDP_...``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.config.paths import read_json_object
from dataflex.config.values import ADAMW
from dataflex.errors import ConfigError
from dataflex.utils.messages import shown
from dataflex.utils.shown import listed

SWITCH, PREFIX = "ACCELERATE_USE_FSDP", "FSDP_"
_LAYERS = ("transformer_layer_cls_to_wrap", "transformer_cls_to_wrap")
_FULL = {"full_shard", "1", "true", "fullyshardeddataparallel"}
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off", "none", ""}
_NEITHER = {
    "state_dict_type", "use_orig_params", "sync_module_states", "limit_all_gathers", "forward_prefetch",
    "backward_prefetch", "backward_prefetch_policy", "cpu_ram_efficient_loading", "min_num_params", "version",
}  # fmt: skip
"""Settings that do not change what is computed: checkpoints are whole, weights are read on every process."""
_OFF = {
    "offload_params": "parameters stay on their devices",
    "cpu_offload": "parameters stay on their devices",
    "activation_checkpointing": "gradient_checkpointing: true of the run recomputes activations",
    "activation_checkpointing_offload": "activations stay on their devices",
    "ignored_modules": "all parameters are sharded",
    "xla": "there is no XLA here",
    "xla_fsdp_v2": "there is no XLA here",
    "xla_fsdp_grad_ckpt": "there is no XLA here",
}


@dataclass(frozen=True, slots=True)
class FsdpSettings:
    """How parameters are sharded.

    Attributes:
        layers: Classes of the modules that are sharded one by one; None: what the model itself names.
    """

    layers: tuple[str, ...] | None = None


def conflicts(fsdp: Any, *, fp16: bool, optim: str, deepspeed: Any, quantization: Any) -> Iterator[tuple[str, str]]:
    """Keys of a run that do not go together with ``fsdp``, and why."""
    if not is_on(fsdp):
        return
    yield from sharding_conflicts("fsdp", fp16=fp16, optim=optim, quantization=quantization)
    if deepspeed is not None:
        yield "deepspeed", "fsdp and deepspeed exclude each other: remove one of them"


def sharding_conflicts(name: str, *, fp16: bool, optim: str, quantization: Any) -> Iterator[tuple[str, str]]:
    """Keys of a run that do not go together with sharded parameters, for which ``name`` asks, and why."""
    if fp16:
        yield "fp16", f"{name} scales no loss here: use bf16 in place of fp16"
    if optim not in (*ADAMW, "sgd"):
        yield "optim", f"{name} shards the state of {' or '.join(ADAMW)}, or sgd, which has none; got {optim}"
    if quantization is not None:
        yield "quantization_bit", f"quantised weights are not supported yet with {name}"


def is_on(fsdp: Any) -> bool:
    """Whether the key ``fsdp`` asks for sharding."""
    return not (fsdp is None or fsdp is False or fsdp == [] or str(fsdp).lower() in _FALSE)


def read_fsdp(fsdp: Any, config: str | Mapping[str, Any] | None, base: Path | None = None) -> FsdpSettings | None:
    """The settings, None without ``fsdp``.

    Args:
        fsdp: true, or transformers' words: ``full_shard auto_wrap``, in one text or a list.
        config: Path of a JSON file, or its content; keys with or without the prefix ``fsdp_``.
        base: Folder of the configuration that names the file.

    Raises:
        ConfigError: The file is missing or no JSON object, or the settings cannot be run; all reasons at once.
    """
    if not is_on(fsdp):
        return None
    words = [] if fsdp is True else fsdp.replace(",", " ").split() if isinstance(fsdp, str) else list(fsdp)
    settings = {str(key).removeprefix("fsdp_"): value for key, value in read_settings(config, base).items()}
    problems = [*_word_problems(words), *(f"fsdp_config.{text}" for text in _problems(settings))]
    if problems:
        raise ConfigError(problems)
    return FsdpSettings(_layers(settings))


def launched_fsdp(environment: Mapping[str, str]) -> FsdpSettings | None:
    """What ``accelerate launch`` was told, None if nothing of FSDP.

    Raises:
        ConfigError: The settings cannot be run.
    """
    if environment.get(SWITCH, "").lower() not in _TRUE:
        return None
    settings = {key.removeprefix(PREFIX).lower(): value for key, value in environment.items() if key.startswith(PREFIX)}
    if settings.get("version") == "1":  # the setting of version 1, which the launcher fills in; version 2 has another
        settings.pop("reshard_after_forward", None)
    else:
        settings.pop("sharding_strategy", None)
    problems = [f"accelerate launch: fsdp_{text}" for text in _problems(settings)]
    if problems:
        raise ConfigError(problems)
    return FsdpSettings(_layers(settings))


def read_settings(config: str | Mapping[str, Any] | None, base: Path | None = None) -> dict[str, Any]:
    """The content of what ``fsdp_config`` names.

    Raises:
        ConfigError: The file is missing or no JSON object.
    """
    if config is None or isinstance(config, Mapping):
        return dict(config or {})
    return read_json_object(config, base)


def _word_problems(words: list[Any]) -> Iterator[str]:
    for word in words:
        if str(word).lower() not in ("full_shard", "auto_wrap", *_TRUE):
            yield f"fsdp: {shown(word)} is not supported yet; expected true, or full_shard auto_wrap"


def _problems(settings: Mapping[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        text = str(value).lower()
        if key in ("reshard_after_forward", "sharding_strategy"):
            if text not in _FULL:
                yield f"{key}: {shown(value)} is not supported yet: every layer is sharded again after it was used"
        elif key == "auto_wrap_policy":
            if text != "transformer_based_wrap":
                yield f"{key}: {shown(value)} is not supported yet; expected TRANSFORMER_BASED_WRAP"
        elif key in _OFF:
            if text not in _FALSE:
                yield f"{key}: {shown(value)} is not supported: {_OFF[key]}; remove it"
        elif key not in (*_LAYERS, *_NEITHER):
            yield f"{key} is unknown; known: {listed(sorted({*_LAYERS[:1], *_OFF, *_NEITHER, 'auto_wrap_policy'}))}"
    if str(settings.get("version", 2)) not in ("1", "2"):
        yield f"version: expected 2, got {shown(settings['version'])}"


def _layers(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    for key in _LAYERS:
        value = settings.get(key)
        if value:
            return tuple(value.replace(",", " ").split() if isinstance(value, str) else value)
    return None
