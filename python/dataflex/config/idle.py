"""Settings that can never act, or not as their author must expect: said before a run starts, all of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, Protocol

from pydantic import BaseModel

from dataflex.config.checks import Problem, planned_evaluations, planned_steps
from dataflex.config.fields import RunFields
from dataflex.config.values import COMPONENT_KINDS, LOSS, MIXTURE_KEYS

_MIX = "dynamic_mix"
_PHASES = ("dynamic_select", _MIX)
_DYNAMIC = (*_PHASES, "dynamic_weight")
_ACTS: dict[str, Collection[str]] = {
    "component_name": _DYNAMIC,
    "component_params": _DYNAMIC,
    "components_cfg_file": _DYNAMIC,
    "warmup_step": _DYNAMIC,
    "update_step": _PHASES,
    "update_times": _PHASES,
    "train_step": ("dynamic_weight",),
    "selection_repeats": ("dynamic_select",),
    **dict.fromkeys((*MIXTURE_KEYS, "static_mix", "mixer_eval_dataset"), (_MIX,)),
}
"""In which values of ``train_type`` a key acts."""
_NEW_ADAPTER_KEYS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora")
_FREEZE_KEYS = ("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules")
_FOLLOWS: dict[str, Callable[[Any], Any]] = {
    "eval_steps": lambda settings: settings.logging_steps,
    "lora_alpha": lambda settings: 2 * settings.lora_rank,
}
"""Defaults that follow from another key."""
_SWANLAB_KEYS = tuple(key for key in RunFields.model_fields if key.startswith("swanlab_"))


class StepSettings(Protocol):
    """What happens at which step; a run's configuration and the trainer's arguments both have it."""

    @property
    def logging_steps(self) -> int:
        """Steps between log entries."""

    @property
    def save_steps(self) -> int:
        """Steps between checkpoints."""

    @property
    def eval_strategy(self) -> str:
        """``no``, ``steps`` or ``epoch``; there is an evaluation after the last step, too, unless ``no``."""

    @property
    def eval_steps(self) -> int:
        """Steps between evaluations."""

    @property
    def early_stopping_steps(self) -> int | None:
        """Evaluations without progress before the run ends."""

    @property
    def load_best_model_at_end(self) -> bool:
        """Whether the run ends with its best model."""


def find_warnings(config: RunFields) -> list[Problem]:
    """Settings of a run that can never act; those that depend on the size of the data are left out."""
    found = [warning for check in _WARNINGS for warning in check(config)]
    steps = planned_steps(config)
    if steps is None:
        return found
    selects = steps > config.warmup_step
    if not selects and not config.static_mix:
        first = {"mixer": "mixture", "weighter": "weights"}.get(COMPONENT_KINDS[config.train_type], "selection")
        text = f"the run ends before its first {first}: {steps} steps, of which {config.warmup_step} warm up"
        found.append(("warmup_step", text))
    selects = selects and config.train_type != "dynamic_weight"
    planned = planned_evaluations(config)
    evaluations = steps if planned is None else planned  # not known: as many as there may be
    on_the_way = step_warnings(config, steps, evaluations, selects=selects)
    return [*found, *((key, text) for key, text in on_the_way if is_written(config, key))]


def is_written(settings: BaseModel, key: str) -> bool:
    """Whether somebody gave a key a value of its own: nobody is warned about a default.

    A resolved configuration spells out the defaults, too, which is why a value that equals one does not count.
    """
    default = type(settings).model_fields[key].get_default(call_default_factory=True)
    if default is None and key in _FOLLOWS:
        default = _FOLLOWS[key](settings)
    return key in settings.model_fields_set and getattr(settings, key) != default


def step_warnings(settings: StepSettings, steps: int, evaluations: int, *, selects: bool) -> Iterator[Problem]:
    """Settings that never act in a run of so many steps.

    Args:
        settings: What happens when.
        steps: Steps of the run.
        evaluations: Evaluations of the run, the one at its end included.
        selects: Whether selections, before each of which a checkpoint is saved, are part of the run.
    """
    if settings.save_steps > steps:
        what = "checkpoints come before selections and at the end only" if selects else "no checkpoint before its end"
        yield "save_steps", f"{settings.save_steps} is beyond the run ({steps} steps): {what}"
    if settings.logging_steps > steps:
        text = f"{settings.logging_steps} is beyond the run ({steps} steps): no loss is logged on the way"
        yield "logging_steps", text
    if settings.eval_strategy == "steps" and settings.eval_steps > steps:
        text = f"{settings.eval_steps} is beyond the run ({steps} steps): it evaluates once, at its end"
        yield "eval_steps", text
    if settings.eval_strategy == "no":
        return
    if settings.load_best_model_at_end and evaluations == 1:
        yield "load_best_model_at_end", "the run evaluates once, at its end: its last model is its best"
    patience = settings.early_stopping_steps
    if patience is not None and evaluations - 1 <= patience:
        yield (
            "early_stopping_steps",
            f"early stopping cannot fire: {patience} evaluations without improvement come after a first one, and the "
            f"run has {evaluations - 1} before its last step",
        )


class OptimizerSettings(Protocol):
    """What the optimizer is; a run's configuration and the trainer's arguments both have it."""

    @property
    def optim(self) -> str:
        """Its name."""

    @property
    def loraplus_lr_ratio(self) -> float | None:
        """Rate of the adapters' B matrices over that of the others."""


def optimizer_warnings(settings: OptimizerSettings) -> Iterator[Problem]:
    """Settings of the optimizer that have no effect, if somebody has written them."""
    if "adamw" not in settings.optim:
        for key in ("adam_beta1", "adam_beta2", "adam_epsilon"):
            yield key, f"has no effect with optim {settings.optim}"
    if settings.loraplus_lr_ratio is None:
        yield "loraplus_lr_embedding", "has no effect without loraplus_lr_ratio"


def _warn_optimizer(config: RunFields) -> Iterator[Problem]:
    yield from ((key, text) for key, text in optimizer_warnings(config) if is_written(config, key))


def _warn_early_stopping(config: RunFields) -> Iterator[Problem]:
    if config.early_stopping_steps is None and config.early_stopping_min_delta > 0:
        yield "early_stopping_min_delta", "has no effect without early_stopping_steps"


def _warn_metric(config: RunFields) -> Iterator[Problem]:
    best = config.metric_for_best_model
    if config.greater_is_better and best == LOSS:
        yield "greater_is_better", "true with eval_loss takes the model with the highest loss for the best"
    if not config.greater_is_better and best != LOSS:
        yield "greater_is_better", f"false with {best} takes the model with the worst answers for the best"
    if config.eval_metric is not None and config.eval_strategy == "no":
        yield "eval_metric", "has no effect on training with eval_strategy no"
    if config.eval_metric is None and is_written(config, "eval_max_new_tokens"):
        yield "eval_max_new_tokens", "has no effect without eval_metric"


def _warn_idle(config: RunFields) -> Iterator[Problem]:
    for key, acts in _ACTS.items():
        if config.train_type not in acts and is_written(config, key):
            yield key, f"has no effect with train_type {config.train_type}"
    if config.eval_strategy != "steps" and is_written(config, "eval_steps"):
        yield "eval_steps", f"has no effect with eval_strategy {config.eval_strategy}"
    if config.eval_strategy == "no" and is_written(config, "per_device_eval_batch_size"):
        yield "per_device_eval_batch_size", "has no effect with eval_strategy no"
    if config.lr_scheduler_type == "constant" and config.warmup_ratio > 0:
        yield "warmup_ratio", "has no effect with lr_scheduler_type constant (constant_with_warmup has one)"


def _warn_trained(config: RunFields) -> Iterator[Problem]:
    """What is trained by another ``finetuning_type``, or was decided when an adapter was made."""
    kind = config.finetuning_type
    if config.quantization_bit != 4:
        for key in filter(partial(is_written, config), ("quantization_type", "double_quantization")):
            yield key, f"has no effect with quantization_bit {config.quantization_bit or 'null'}"
    if kind != "freeze":
        for key in filter(partial(is_written, config), _FREEZE_KEYS):
            yield key, f"has no effect with finetuning_type {kind}"
    if kind != "lora":
        for key in filter(partial(is_written, config), (*_NEW_ADAPTER_KEYS, "loraplus_lr_ratio")):
            yield key, f"has no effect with finetuning_type {kind}"
    elif config.adapter_name_or_path is not None:
        for key in filter(partial(is_written, config), _NEW_ADAPTER_KEYS):
            yield key, "has no effect beside adapter_name_or_path: the adapter keeps the settings that it was made with"


def _warn_mixture(config: RunFields) -> Iterator[Problem]:
    if config.train_type != _MIX:
        return
    if config.mixture_sample_rule in ("stratified", "uniform") and config.init_mixture_proportions is not None:
        yield "init_mixture_proportions", f"has no effect with mixture_sample_rule {config.mixture_sample_rule}"
    if config.static_mix:
        for key in ("component_name", "component_params", "components_cfg_file", "mixer_eval_dataset"):
            if is_written(config, key):
                yield key, "has no effect with static_mix: the shares of the first phase stay"


def _warn_length(config: RunFields) -> Iterator[Problem]:
    fixed = config.train_step is not None and config.train_type == "dynamic_weight"
    if fixed and is_written(config, "num_train_epochs"):
        yield "num_train_epochs", "has no effect beside train_step"


def _warn_trackers(config: RunFields) -> Iterator[Problem]:
    if not (config.use_swanlab or "swanlab" in config.report_to):
        for key in filter(partial(is_written, config), _SWANLAB_KEYS):
            yield key, "has no effect: swanlab is not in report_to and use_swanlab is false"
        if not config.report_to and config.run_name is not None:
            yield "run_name", "has no effect: report_to names no tracker"
    elif config.swanlab_lark_secret is not None and config.swanlab_lark_webhook_url is None:
        yield "swanlab_lark_secret", "has no effect without swanlab_lark_webhook_url"


def _warn_resuming(config: RunFields) -> Iterator[Problem]:
    if config.resume_from_checkpoint is False:
        return
    if config.save_only_model:
        yield "save_only_model", "checkpoints of this run hold the model only: they cannot be resumed from"
    if config.overwrite_output_dir and config.resume_from_checkpoint is True:
        yield "overwrite_output_dir", "has no effect: resume_from_checkpoint goes on in the folder as it is"


_WARNINGS: tuple[Callable[[RunFields], Iterator[Problem]], ...] = (
    _warn_optimizer,
    _warn_early_stopping,
    _warn_metric,
    _warn_idle,
    _warn_trained,
    _warn_mixture,
    _warn_length,
    _warn_trackers,
    _warn_resuming,
)
