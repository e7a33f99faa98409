"""The cross-checks of a run: contradictions between its keys, which no single key can know."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

from dataflex.config import fsdp
from dataflex.config.fields import RunFields
from dataflex.config.values import COMPONENT_KINDS, evaluated_keys, whole_steps
from dataflex.utils.messages import LITERAL_SECRET, literal_secrets
from dataflex.utils.shown import listed

Problem = tuple[str, str]
"""The key that a message belongs to (dotted below a mapping), and the message."""


def has_eval_data(config: RunFields) -> bool:
    """Whether the run has anything to evaluate on."""
    return config.eval_dataset is not None or config.val_size > 0


def asks_component(config: RunFields) -> bool:
    """Whether a component of the components file decides in the run."""
    return config.train_type != "static" and not (config.train_type == "dynamic_mix" and config.static_mix)


def planned_steps(config: RunFields) -> int | None:
    """Optimizer steps of the whole run; None where they depend on the size of the data."""
    if config.train_type == "dynamic_weight":
        return config.train_step
    cycle = config.warmup_step + config.update_step * config.update_times
    if config.train_type == "static" or cycle == 0:  # a static mixture needs no schedule
        return None
    return whole_steps(cycle, config.num_train_epochs)


def planned_evaluations(config: RunFields) -> int | None:
    """Evaluations of the whole run, the one at its end included; None where they depend on the size of the data."""
    steps = planned_steps(config)
    if config.eval_strategy == "no":
        return 0
    if config.eval_strategy == "epoch":
        if config.train_type == "dynamic_weight" and config.train_step is not None:
            return None
        return math.ceil(config.num_train_epochs)
    return None if steps is None else math.ceil(steps / config.eval_steps)


def find_problems(config: RunFields, broken: Collection[str] = ()) -> list[Problem]:
    """Contradictions between the keys of a run.

    Args:
        config: The run.
        broken: Keys without a valid value; checks that read one of them are left out.
    """
    view = cast(RunFields, _View(config, broken))
    found: list[Problem] = []
    for check in _CHECKS:
        try:
            found.extend(list(check(view)))
        except _BrokenKeyError:
            continue
    return found


class _BrokenKeyError(Exception):
    """A check read a key that has no valid value."""


class _View:
    """A configuration of which some keys must not be read."""

    def __init__(self, config: RunFields, broken: Collection[str]) -> None:
        self._config = config
        self._broken = broken

    def __getattr__(self, key: str) -> Any:
        if key in self._broken:
            raise _BrokenKeyError(key)
        return getattr(self._config, key)


def _check_work(config: RunFields) -> Iterator[Problem]:
    if not config.do_train:
        yield "do_train", "false leaves a run nothing to do; remove the key or set it to true"


def _check_precision(config: RunFields) -> Iterator[Problem]:
    if config.bf16 and config.fp16:
        yield "fp16", "fp16 and bf16 exclude each other; keep one"


def _check_quantization(config: RunFields) -> Iterator[Problem]:
    if config.quantization_bit is not None and config.finetuning_type != "lora":
        yield (
            "quantization_bit",
            f"quantised weights are frozen, and finetuning_type {config.finetuning_type} trains them",
        )


def _check_adapter(config: RunFields) -> Iterator[Problem]:
    if config.adapter_name_or_path is not None and config.finetuning_type != "lora":
        yield (
            "adapter_name_or_path",
            f"finetuning_type {config.finetuning_type} trains no adapter; merge it first (export)",
        )


def _check_fsdp(config: RunFields) -> Iterator[Problem]:
    yield from fsdp.conflicts(
        config.fsdp,
        fp16=config.fp16,
        optim=config.optim,
        deepspeed=config.deepspeed,
        quantization=config.quantization_bit,
    )
    if config.fsdp_config is not None and config.fsdp is None:
        yield "fsdp_config", "it says how parameters are sharded, and fsdp does not say that they are: set fsdp: true"


def _check_val_size(config: RunFields) -> Iterator[Problem]:
    if config.val_size >= 1 and config.val_size != int(config.val_size):
        yield "val_size", f"expected a share below 1 or a whole number of rows, got {config.val_size}"


def _check_eval_data(config: RunFields) -> Iterator[Problem]:
    if config.eval_dataset is not None and config.val_size > 0:
        yield "val_size", "val_size and eval_dataset exclude each other; keep one"
    if config.eval_strategy != "no" and not has_eval_data(config):
        yield "eval_strategy", f"{config.eval_strategy} needs eval_dataset or val_size"


def _check_best_model(config: RunFields) -> Iterator[Problem]:
    if config.load_best_model_at_end and config.eval_strategy == "no":
        yield "load_best_model_at_end", "the best model is only known if eval_strategy is steps or epoch"


def _check_metric(config: RunFields) -> Iterator[Problem]:
    known = evaluated_keys(config.eval_metric)
    if config.metric_for_best_model not in known:
        text = f"{config.metric_for_best_model!r} is not evaluated; eval_metric adds a metric, here there is"
        yield "metric_for_best_model", f"{text} {', '.join(known)}"


def _check_early_stopping(config: RunFields) -> Iterator[Problem]:
    if config.early_stopping_steps is not None and config.eval_strategy == "no":
        yield "early_stopping_steps", "early stopping cannot fire unless eval_strategy is steps or epoch"


def _check_schedule(config: RunFields) -> Iterator[Problem]:
    if config.train_type == "dynamic_weight" and (config.train_step or math.inf) <= config.warmup_step:
        yield "train_step", f"{config.train_step} steps end within the warm-up ({config.warmup_step}): no weights"
    if config.train_type not in ("dynamic_select", "dynamic_mix") or config.static_mix:
        return
    for key in ("update_step", "update_times"):
        if getattr(config, key) < 1:
            yield key, f"train_type {config.train_type} needs at least 1, got {getattr(config, key)}"


def _check_component(config: RunFields) -> Iterator[Problem]:
    if config.component_name is None and asks_component(config):
        kind = COMPONENT_KINDS[config.train_type]
        yield "component_name", f"train_type {config.train_type} needs the name of a {kind}"


def _check_mixture(config: RunFields) -> Iterator[Problem]:
    shares = config.init_mixture_proportions
    if config.train_type != "dynamic_mix":
        return
    if config.mixture_sample_rule == "mixture" and shares is None and config.static_mix:
        yield "mixture_sample_rule", "mixture needs init_mixture_proportions; or stratified (by size), uniform"
    if isinstance(shares, list) and config.domain_column is None and len(shares) != len(config.dataset):
        yield (
            "init_mixture_proportions",
            f"{len(shares)} shares for {len(config.dataset)} datasets: {listed(config.dataset)}",
        )


def _check_secrets(config: RunFields) -> Iterator[Problem]:
    for path in literal_secrets(config.component_params):
        yield ".".join(["component_params", *map(str, path)]), LITERAL_SECRET


_CHECKS: tuple[Callable[[RunFields], Iterator[Problem]], ...] = (
    _check_work,
    _check_precision,
    _check_quantization,
    _check_adapter,
    _check_fsdp,
    _check_val_size,
    _check_eval_data,
    _check_best_model,
    _check_metric,
    _check_early_stopping,
    _check_schedule,
    _check_component,
    _check_mixture,
    _check_secrets,
)
