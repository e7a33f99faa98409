"""Arguments of transformers' Trainer (and of subclasses, as TRL's ``SFTConfig``) in the trainer's own terms.

What means the same is taken over as it is. What would change the training and has no counterpart is an error, all of
it at once; what only concerns how transformers' own loop works is named in one line and left aside. Arguments that
stand at their class's default are never spoken of: nobody wrote them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from enum import Enum
from typing import Any

from transformers import TrainingArguments as TransformersArguments

from dataflex.config.values import OPTIMIZERS, optimizer_name
from dataflex.errors import ConfigError

logger = logging.getLogger(__name__)

SAME = (
    "output_dir",
    "seed",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "lr_scheduler_type",
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "save_only_model",
    "report_to",
    "run_name",
    "eval_strategy",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "ddp_timeout",
    "deepspeed",
)
"""Arguments of one name and one meaning."""
RENAMED = {"max_length": "cutoff_len", "max_seq_length": "cutoff_len"}
"""TRL's arguments of another name and the same meaning."""
READ = (
    *SAME,
    *RENAMED,
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "warmup_ratio",
    "eval_steps",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "train_sampling_strategy",
    "do_eval",  # transformers sets it where eval_strategy asks for evaluations
)
STEPS = ("logging_steps", "save_steps", "eval_steps")
"""Numbers of steps, where transformers takes a share of the run below 1, too."""
SAMPLING = {"random": False, "sequential": True}
"""Orders of rows that transformers knows, and ``disable_shuffling`` for each; the others go by the rows' lengths."""
ALWAYS = {"assistant_only_loss": True, "completion_only_loss": True}
"""TRL's arguments, and the value that says what is done here in any case."""
ADVICE = {
    "save_strategy": "checkpoints come every save_steps, before each selection and at the end",
    "logging_strategy": "the loss is logged every logging_steps",
    "label_smoothing_factor": "the loss is the plain cross-entropy",
    "lr_scheduler_kwargs": "schedulers have transformers' own defaults",
    "packing": "samples are trained one by one, as they are selected one by one",
    "data_seed": "seed is the seed of everything",
    "fsdp": "dataflex.TrainingArguments(fsdp=True) shards the parameters",
}
"""What to say about an argument without a counterpart."""
HARMLESS = (
    "dataloader_",
    "hub_",
    "log_",
    "ddp_",
    "push_",
    "include_",
    "trackio_",
    "eval_",
    "logging_",
    "save_",
    "torch_",
)
HARMLESS_NAMES = (
    "batch_eval_metrics",
    "dataset_num_proc",
    "debug",
    "disable_tqdm",
    "do_predict",
    "do_train",
    "enable_jit_checkpoint",
    "full_determinism",
    "gradient_checkpointing_kwargs",
    "ignore_data_skip",
    "label_names",
    "length_column_name",
    "local_rank",
    "padding_free",
    "prediction_loss_only",
    "project",
    "remove_unused_columns",
    "restore_callback_states_from_checkpoint",
    "skip_memory_metrics",
    "tf32",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
    "use_cache",
    "use_cpu",
    "use_liger_kernel",
    "liger_kernel_config",
)
"""Arguments (and beginnings of names) that change how transformers' loop works, not what a step computes."""


def from_transformers(args: TransformersArguments, *, scheduled: bool) -> tuple[dict[str, Any], set[str]]:
    """The values of :class:`dataflex.TrainingArguments` that say the same, and the names that somebody wrote.

    Args:
        args: transformers' arguments, or those of a subclass.
        scheduled: The run has a schedule, which then says how many steps it has.

    Raises:
        ConfigError: Arguments that would change the training and have no counterpart; all of them.
    """
    defaults = _defaults(args)
    changed = {name: value for name, value in _values(args).items() if value != defaults.get(name)}
    problems = [*_problems(args, changed, scheduled=scheduled)]
    if problems:
        raise ConfigError(
            [f"args: transformers' {problem}" for problem in problems],
            hint="df.TrainingArguments has the names of what can be changed",
        )
    idle = [name for name in changed if name not in READ and name not in ALWAYS]
    if idle:
        said = "; ".join(f"{name} ({ADVICE[name]})" if name in ADVICE else name for name in idle)
        logger.warning("arguments of transformers that do not act here: %s", said)
    return _taken(_values(args), scheduled=scheduled), {RENAMED.get(name, name) for name in changed}


def _taken(values: dict[str, Any], *, scheduled: bool) -> dict[str, Any]:
    taken = {name: values[name] for name in SAME if values.get(name) is not None}
    taken |= {ours: values[theirs] for theirs, ours in RENAMED.items() if values.get(theirs) is not None}
    taken |= {name: int(taken[name]) for name in ("logging_steps", "save_steps")}
    taken["overwrite_output_dir"] = bool(values.get("overwrite_output_dir"))
    taken["resume_from_checkpoint"] = values.get("resume_from_checkpoint") or False
    if values["eval_steps"] is not None:
        taken["eval_steps"] = int(values["eval_steps"])
    warmup = values.get("warmup_steps") or 0
    if warmup >= 1:
        taken["warmup_steps"] = int(warmup)
    else:
        taken["warmup_ratio"] = warmup or values.get("warmup_ratio") or 0.0
    taken["disable_shuffling"] = SAMPLING[values.get("train_sampling_strategy", "random")]
    taken["max_steps"] = values["max_steps"]
    taken["num_train_epochs"] = 1.0 if scheduled else values["num_train_epochs"]
    return taken


def _problems(args: TransformersArguments, changed: dict[str, Any], *, scheduled: bool) -> Iterator[str]:
    if scheduled and "num_train_epochs" in changed and args.max_steps <= 0:
        yield (
            f"num_train_epochs={args.num_train_epochs} counts passes over the data, and this run has as many steps as "
            "its schedule: leave it out; df.TrainingArguments(num_train_epochs=...) repeats the schedule"
        )
    optimizer = optimizer_name(getattr(args.optim, "value", args.optim))
    if optimizer not in OPTIMIZERS:
        yield f"optim={optimizer!r}: expected one of {', '.join(OPTIMIZERS)}"
    for name in STEPS:
        value = getattr(args, name)
        if value is not None and not float(value).is_integer():
            yield f"{name}={value} is a share of the run, expected a number of steps"
    if isinstance(args.warmup_steps, float) and args.warmup_steps > 1 and not args.warmup_steps.is_integer():
        yield f"warmup_steps={args.warmup_steps}: expected a whole number of steps or a share below 1"
    sampling = getattr(args, "train_sampling_strategy", "random")
    if sampling not in SAMPLING:
        yield f"train_sampling_strategy={sampling!r} goes by the rows' lengths, expected {' or '.join(SAMPLING)}"
    for name, value in changed.items():
        known = name in READ or name in HARMLESS_NAMES or name.startswith(HARMLESS)
        if not known and ALWAYS.get(name) != value:
            advice = f": {ADVICE[name]}" if name in ADVICE else ""
            yield f"{name}={value!r} has no counterpart here{advice}"


def _values(args: TransformersArguments) -> dict[str, Any]:
    """Plain values of all fields; members of an enumeration by their value."""
    found = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    return {name: value.value if isinstance(value, Enum) else value for name, value in found.items()}


def _defaults(args: TransformersArguments) -> dict[str, Any]:
    """What arguments of this class hold where nothing but the folder was written; some are settled as it is made.

    Whether they can be made may depend on the machine (TRL's ask for bfloat16): what decides that is told as it is, and
    counts as written where it is not the class's own.
    """
    machine = {name: getattr(args, name) for name in ("use_cpu", "bf16", "fp16")}
    own = {field.name: field.default for field in dataclasses.fields(args) if field.name in machine}
    return _values(type(args)(output_dir="unused", **machine)) | own
