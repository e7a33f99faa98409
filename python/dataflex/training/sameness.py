"""What makes a resumed run the same run, in one list; and what the processes of a run must have in common.

A run notes its facts (:mod:`dataflex.training.facts`) in every checkpoint. One that goes on compares its own with them:
a change of what decides the outcome is refused by name, any other is said. Values are compared as JSON; one that is too
large to note is a mapping of ``digest``, which is compared, and ``shown``, its words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dataflex.config.values import MIXTURE_KEYS
from dataflex.errors import TrainingError
from dataflex.utils.distributed import Ranks
from dataflex.utils.shown import shown

SHOWN = 80
"""Characters of a value in a message."""
_NOT_NOTED: Any = object()


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of a run.

    Attributes:
        key: Its name in ``state.json`` and in messages.
        meaning: What it is, in words.
        decides: A change would make another run: it is refused. Otherwise the change is said.
        parts: It is a mapping whose entries are named one by one.
    """

    key: str
    meaning: str
    decides: bool = True
    parts: bool = False


FACTS = (
    Fact("model", "the base model: up to 4,096 values of each frozen tensor (its folder may have moved)"),
    Fact("model_config", "the base model's settings of the forward pass", parts=True),
    Fact("adapter", "the adapter: `lora_rank`, `lora_alpha`, `lora_dropout`, `lora_target`, ...", parts=True),
    Fact("trained", "names and shapes of the trained parameters"),
    Fact("data", "the training set: tokens and labels of every row, in order"),
    Fact("eval_data", "the evaluation set, likewise"),
    Fact("template", "the chat template's text"),
    Fact("cutoff_len", "the longest sample"),
    Fact("selector", "the selector's name"),
    Fact("selector_params", "its parameters and those of its reward (files by their content)", parts=True),
    Fact("mixer", "the mixer's name"),
    Fact("mixer_params", "its parameters", parts=True),
    Fact("mixture", "the rows of each domain, and the shares that the run begins with", parts=True),
    Fact("weighter", "the weighter's name"),
    Fact("weighter_params", "its parameters", parts=True),
    Fact("schedule", "`warmup_step`, `update_step`, `update_times`", parts=True),
    Fact("total_steps", "steps of the run (`num_train_epochs`, `max_steps`)"),
    Fact("global_batch", "rows of a step: batch size x accumulation x processes"),
    Fact("seed", "the seed"),
    Fact("disable_shuffling", "the order of random phases"),
    Fact("precision", "`bf16`, `fp16`"),
    *(Fact(key, "the optimizer") for key in ("optim", "learning_rate", "weight_decay", "max_grad_norm")),
    *(Fact(key, "the optimizer") for key in ("loraplus_lr_ratio", "loraplus_lr_embedding")),
    *(Fact(key, "the optimizer") for key in ("adam_beta1", "adam_beta2", "adam_epsilon")),
    *(Fact(key, "the learning-rate schedule") for key in ("lr_scheduler_type", "warmup_ratio", "warmup_steps")),
    *(Fact(key, "what the best model is") for key in ("metric_for_best_model", "greater_is_better")),
    *(Fact(key, "what the best model is") for key in ("eval_metric", "eval_max_new_tokens")),
    Fact("processes", "number of processes", decides=False),
    Fact("versions", "versions of dataflex, torch, transformers, peft, ...", decides=False, parts=True),
    Fact("device", "kind of device", decides=False),
    Fact("per_device_train_batch_size", "parts of a global batch", decides=False),
    Fact("gradient_accumulation_steps", "parts of a global batch", decides=False),
    *(
        Fact(key, "memory against time", decides=False)
        for key in ("gradient_checkpointing", "deepspeed", "fsdp", "fsdp_config")
    ),
    *(Fact(key, "when to evaluate", decides=False) for key in ("eval_strategy", "eval_steps")),
    Fact("per_device_eval_batch_size", "rows of an evaluation's forward pass", decides=False),
    Fact("load_best_model_at_end", "which model is published", decides=False),
    *(Fact(key, "when to stop", decides=False) for key in ("early_stopping_steps", "early_stopping_min_delta")),
    Fact("selection_repeats", "whether a selection larger than the data is allowed", decides=False),
    *(Fact(key, "what is kept", decides=False) for key in ("save_steps", "save_total_limit", "save_only_model")),
    *(Fact(key, "what is shown", decides=False) for key in ("logging_steps", "plot_loss", "task_column")),
)
"""Every fact that is compared, in the order in which differences are named."""

FREE = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "ddp_timeout")
"""Arguments that say where a run is and how long it waits: not compared when it goes on, but among its processes."""
CACHING = ("cache_dir", "overwrite_cache", "preprocessing_num_workers")
"""Arguments that say where tokenised data are kept and who makes them."""
TRACKING = ("report_to", "run_name", "swanlab")
"""Arguments of trackers, which the main process alone has."""
COVERED = ("num_train_epochs", "max_steps", "bf16", "fp16", *MIXTURE_KEYS)
"""Arguments that other facts stand for."""

_NEUTRAL = """
cache_dir cache_path save_interval keep_features feature_batch_tokens loss_batch_tokens rollout_batch_size batch_size
embed_device device api_url api_key server_url server_python server_port server_log server_start_timeout
max_concurrency timeout deadline max_retries backoff max_requests prices vllm_tensor_parallel_size
vllm_gpu_memory_utilization vllm_kv_cache_gib vllm_enforce_eager vllm_release gpu_memory_utilization kv_cache_gib
tensor_parallel_size enforce_eager release
"""
NEUTRAL_PARAMETERS = frozenset(_NEUTRAL.split())
"""Parameters of selectors and rewards, at any depth, that say where and how fast: a change of them is said."""


@dataclass(slots=True)
class Differences:
    """How two runs differ.

    Attributes:
        refused: Facts that make them different runs, as text.
        said: Facts that do not.
        unknown: Facts of this run that the other one did not note.
    """

    refused: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def compare(noted: Mapping[str, Any], facts: Mapping[str, Any]) -> Differences:
    """How a run differs from the noted one.

    Args:
        noted: Facts of the other run; some may be missing.
        facts: Facts of this run.
    """
    found = Differences()
    for fact in FACTS:
        if fact.key not in facts:
            continue
        if fact.key not in noted:
            if fact.decides and facts[fact.key] not in (None, {}):  # what an earlier version could not have
                found.unknown.append(fact.key)
            continue
        for name, old, new in _changes(fact, noted[fact.key], facts[fact.key]):
            if old is _NOT_NOTED:
                found.unknown.append(name)
                continue
            decides = fact.decides and NEUTRAL_PARAMETERS.isdisjoint(name.split("."))
            (found.refused if decides else found.said).append(_change(name, old, new))
    return found


def check_ranks(facts: Mapping[str, Any], ranks: Ranks) -> None:
    """Raise TrainingError on every rank, with the names, unless all ranks have the same facts."""
    gathered = ranks.gather(dict(facts))
    lines = []
    for rank, other in enumerate(gathered[1:], start=1):
        known = [fact.key for fact in FACTS if fact.key in other]
        names = [*known, *(key for key in other if key not in known)]
        changes = [
            _change(name, old, new)
            for key in names
            for name, old, new in _changes(_fact(key), gathered[0].get(key), other.get(key))
        ]
        if changes:
            lines.append(f"rank {rank} differs from rank 0: {', '.join(changes)}")
    if lines:
        raise TrainingError(
            "the processes were started with different settings: " + "; ".join(lines),
            hint="start all of them with the same file, keys, data and model",
        )


def _fact(key: str) -> Fact:
    return next((fact for fact in FACTS if fact.key == key), Fact(key, key))


def _changes(fact: Fact, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of each difference in a fact."""
    if fact.parts and isinstance(old, Mapping) and isinstance(new, Mapping):
        if fact.key == "model_config":  # versions of transformers differ in their keys
            old, new = _flat(old), _flat(new)
        prefix = "" if fact.key in ("adapter", "schedule") else f"{fact.key}."
        for key in sorted({*old, *new}):
            if key in new:  # what only the noted run has is of another version
                yield from _entries(f"{prefix}{key}", old.get(key, _NOT_NOTED), new[key])
    elif _identity(old) != _identity(new):
        yield fact.key, old, new


def _entries(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """The innermost entries that differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and not {"digest"} & {*old, *new}:
        for key in sorted({*old, *new}):
            yield from _entries(f"{name}.{key}", old.get(key), new.get(key))
    elif _identity(old) != _identity(new):
        yield name, old, new


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The innermost entries by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _identity(value: Any) -> Any:
    return value["digest"] if isinstance(value, Mapping) and "digest" in value else value


def _change(name: str, old: Any, new: Any) -> str:
    before, after = _words(old), _words(new)
    if isinstance(old, str) and _identity(new) is not new:  # earlier versions noted the digest alone
        before = "another"
    if before == after:
        return f"{name} {after} -> another of that description"
    return f"{name} {before} -> {after}"


def _words(value: Any) -> str:
    if value is _NOT_NOTED:
        return "nothing"
    if isinstance(value, Mapping) and "shown" in value:
        return str(value["shown"])
    return shown(json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else repr(value), SHOWN)
