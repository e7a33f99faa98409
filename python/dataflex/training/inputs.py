"""What users hand to the trainer, turned into what the loop works on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers import TrainingArguments as TransformersArguments

from dataflex.curriculum.mixing import Mixture
from dataflex.curriculum.schedule import Schedule
from dataflex.data.cache import CacheSettings
from dataflex.data.dataset import TokenizedDataset, check_labels, kept_dataset
from dataflex.data.prepare import tokenised_rows
from dataflex.data.sources import open_samples
from dataflex.data.templates import ChatTemplate
from dataflex.errors import ConfigError, ModelError
from dataflex.training.arguments import TrainingArguments
from dataflex.training.component import Component, find_mixture
from dataflex.training.folder import begun
from dataflex.training.foreign_arguments import from_transformers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingInputs:
    """What a trainer was given, in the forms that the loop works on."""

    args: TrainingArguments
    component: Component
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    train_dataset: TokenizedDataset
    eval_dataset: TokenizedDataset | None
    mixture: Mixture | None

    @classmethod
    def read(
        cls,
        model: Any,
        processing_class: Any,
        train_dataset: Any,
        eval_dataset: Any,
        component: Component,
        args: Any,
        *,
        scheduled: bool,
        mixer_eval_dataset: Any = None,
        domains: Sequence[str] = (),
    ) -> TrainingInputs:
        """Check and convert; arguments and errors as those of :class:`dataflex.Trainer`."""
        check_model(model)
        args = as_arguments(args, scheduled=scheduled)
        tokenizer = as_tokenizer(processing_class)
        template = run_template(args, tokenizer)
        cache = CacheSettings(args.cache_dir, args.overwrite_cache, args.preprocessing_num_workers)
        training = as_dataset(train_dataset, template, args.cutoff_len, cache)
        held_out = None
        if eval_dataset is not None:
            held_out = as_dataset(eval_dataset, template, args.cutoff_len, cache, keep_unlabelled=True)
        mixture = None
        if component.mixer is not None:
            measured = None
            if mixer_eval_dataset is not None:
                measured = as_dataset(mixer_eval_dataset, template, args.cutoff_len, cache)
            mixture = find_mixture(component.mixer, args, training, measured, domains)
        return cls(args, component, tokenizer, template, training, held_out, mixture)


def check_model(model: Any) -> None:
    """Raise ModelError for what is no model, a name for example."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model: expected a torch module, got {type(model).__name__}",
            hint="AutoModelForCausalLM.from_pretrained(...) with an adapter (peft.get_peft_model); df.train and the "
            "command line load models by name",
        )


def as_tokenizer(processing_class: Any) -> PreTrainedTokenizerBase:
    """The tokenizer, or that of a processor.

    Raises:
        ModelError: There is none, or it has no token to pad with.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ModelError(
            f"processing_class: expected a tokenizer, got {type(processing_class).__name__}",
            hint="AutoTokenizer.from_pretrained(...)",
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path!r} has no padding token",
            hint="tokenizer.pad_token = tokenizer.eos_token",
        )
    return tokenizer


def as_arguments(args: Any, *, scheduled: bool) -> TrainingArguments:
    """The trainer's arguments: its own, transformers', or a mapping of names to values.

    Args:
        args: What was passed.
        scheduled: The run has a schedule, which then says how many steps it has.

    Raises:
        ConfigError: Something else, or arguments that cannot be followed; all of them.
    """
    if isinstance(args, TrainingArguments):
        return args
    if isinstance(args, TransformersArguments):
        values, written = from_transformers(args, scheduled=scheduled)
        made = TrainingArguments(**values)
        made.model_fields_set.intersection_update(written)  # nobody is warned about their defaults
        return made
    if isinstance(args, Mapping):
        return TrainingArguments(**args)
    raise ConfigError(
        f"args: expected df.TrainingArguments, got {type(args).__name__}",
        hint="df.TrainingArguments(output_dir=...); transformers.TrainingArguments are taken, too",
    )


def as_schedule(
    schedule: Schedule | None, args: TrainingArguments, num_samples: int, global_batch: int, component: Component
) -> tuple[Schedule, TrainingArguments]:
    """The schedule of a run, and its arguments with ``max_steps`` as a number of times to go through it.

    Args:
        schedule: None for plain training and for weights throughout, whose schedule is one pass over the data.
        args: The arguments as they were passed.
        num_samples: n.
        global_batch: Samples of one step.
        component: What decides in the run.

    Raises:
        TrainingError: There is a selector or a mixer, and nothing says when to ask it.
    """
    component.check_schedule(schedule)
    if schedule is None:
        schedule = component.default_schedule(math.ceil(num_samples / global_batch))
    if args.max_steps is None:
        return schedule, args
    return schedule, args.model_copy(update={"num_train_epochs": args.max_steps / schedule.cycle_steps})


def run_template(args: TrainingArguments, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The template of a run; one that goes on prints the date on which it began.

    Raises:
        DataError: Unknown name, or the tokenizer has no template.
        CheckpointError: The checkpoint to go on from is damaged.
    """
    template = as_template(args.template, tokenizer)
    date = begun(args) if template.prints_date else None
    if date is None:
        return template
    logger.info("the template prints the date: that of %s, when the run began, is kept", date.date())
    return as_template(args.template, tokenizer, date)


def as_template(
    template: str | ChatTemplate | None, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None
) -> ChatTemplate:
    """A chat template by name, or the tokenizer's own; it prints the date ``now`` (None: today's).

    Raises:
        DataError: Unknown name, or the tokenizer has no template.
    """
    return template if isinstance(template, ChatTemplate) else ChatTemplate.load(template, tokenizer, now=now)


def as_dataset(
    data: Any,
    template: ChatTemplate,
    cutoff_len: int,
    cache: CacheSettings,
    *,
    keep_unlabelled: bool = False,
    dataset_dir: Path | None = None,
) -> TokenizedDataset:
    """Tokenise rows, a ``datasets.Dataset``, a file or a dataset's name; what is tokenised already passes through.

    Args:
        data: What to train or evaluate on.
        template: Renders conversations.
        cutoff_len: Longest sample in tokens.
        cache: How tokenised rows are kept.
        keep_unlabelled: Keep samples without an answer: an evaluation set for rewards needs none.
        dataset_dir: Folder of ``dataset_info.json``.

    Raises:
        DataError: Rows of no known form, nothing left to train on, or tokenised samples that cannot be trained on.
    """
    if _is_tokenised(data):
        data = TokenizedDataset.from_columns(data)
    if isinstance(data, TokenizedDataset):
        if not keep_unlabelled:
            check_labels(data)
        return data
    name = "evaluation set" if keep_unlabelled else "training set"
    rows = tokenised_rows(open_samples(data, dataset_dir=dataset_dir), template, cutoff_len, cache, name=name)
    return kept_dataset(rows, keep_unlabelled=keep_unlabelled, name=name)


def _is_tokenised(data: Any) -> bool:
    """Whether the data are rows as a trainer of transformers takes them."""
    rows = isinstance(data, Dataset | list) and len(data) > 0
    return rows and isinstance(data[0], Mapping) and "input_ids" in data[0]
