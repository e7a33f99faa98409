"""An unmodified ``transformers.Trainer``, or TRL's ``SFTTrainer``, trains on what a curriculum chooses.

The trainer is handed a data set without a length, and a callback. To a trainer such a data set is one that it reads
again and again until it has taken ``max_steps`` steps, each reading an *epoch*. Here an epoch is a phase: a reading
ends with the rows of the phase, so that whatever looks ahead (accelerate by a batch, a data loader's workers by
several) finds the end and nothing of the next phase. The next phase's selection is made in ``on_epoch_begin``, which
the trainer calls after the last step of the one and before it makes an iterator, and with it the workers, for the next.

Why this is right, by the source of transformers 5.19 (``Trainer._inner_training_loop``, ``_run_epoch``):

- A loader without a length gets ``sys.maxsize`` epochs of ``max_steps`` steps; an epoch ends early where the callback
  says so (``should_epoch_stop``), after the last step of the phase, with which the iterator is exhausted.
- accelerate gives process r the r-th batch of every group (``IterableDatasetShard``), so that consecutive rows are the
  global batch of a step, whatever the processes, the batch size and the accumulation are.
- No sampler is involved, and nothing shuffles.
- A finished run that is resumed reads once more, finds nothing, and ends.
- A resumed trainer takes its first epoch for the whole run, and skips as many micro-batches as steps were taken: the
  first reading begins with as many rows that are thrown away (none with ``ignore_data_skip=True``, which is as exact,
  and faster). Random number generators are restored after the selection, by the trainer.
- What a checkpoint has to know lies in ``TrainerState.stateful_callbacks``, which ``trainer_state.json`` holds, the
  last file of a checkpoint: one that has it is whole.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import torch
from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from dataflex.curriculum import curriculum as core
from dataflex.curriculum.checks import selection_problems
from dataflex.curriculum.schedule import Schedule
from dataflex.curriculum.story import plan_line
from dataflex.data.dataset import TokenizedDataset, check_labels, tokenize
from dataflex.data.templates import ChatTemplate
from dataflex.errors import SelectionError, TrainingError
from dataflex.integrations.refusals import check_arguments
from dataflex.integrations.rows import RowStream, as_trained, check_rows, samples_of
from dataflex.integrations.run import Run, noted_state
from dataflex.models.bounds import examine
from dataflex.selectors.base import Selector
from dataflex.training.component import as_component
from dataflex.training.inputs import as_template, as_tokenizer
from dataflex.types import Sample

logger = logging.getLogger(__name__)

_ARGUMENTS = {"training set": ("train_dataset", "train_rows"), "evaluation set": ("eval_dataset", "eval_rows")}


class Curriculum:
    """A schedule and a selector for a trainer of transformers or TRL; hand it ``train_dataset`` and ``callback``.

    Args:
        train_dataset: n candidates, addressed by position (``datasets.Dataset``, list of dicts): what the trainer would
            be given without a curriculum.
        eval_dataset: q target rows in the same form, or None for selectors without a target.
        selector: Picks the rows of each phase but the random ones: a name, or one that is built; None: all are random.
        schedule: When to select; the trainer's ``max_steps`` says how long the run is, as a rule
            ``schedule.total_steps()``. None, without a selector, is one random phase.
        train_rows: The candidates before they were tokenised, in a known form and the same order, for selectors that
            read their text; None: ``train_dataset`` has the text, or none is needed.
        eval_rows: The same of the target rows: NICE's prompts and references come from here.
        template: Chat template by name, for prompts; None: the tokenizer's own.
        cutoff_len: Longest target row in tokens, where the target rows have no answers and the trainer cannot
            tokenise them.
        task_column: Column that is noted as a row's task in ``selections/``.
        selection_repeats: A selection may be larger than the data: its rows are then trained on again.
        save_before_selection: The trainer saves a checkpoint before each selection, whatever its ``save_strategy`` is.

    Attributes:
        train_dataset: The data set to hand to the trainer.
        callback: The callback to hand to the trainer.

    As a context it frees what the selector holds at its end, also where training raised: a trainer tells no callback
    that it did.

    Example:
        >>> curriculum = Curriculum(rows, targets, selector="less", schedule=df.Schedule(10, 10, 2))
        >>> args = TrainingArguments(max_steps=30, accelerator_config={"dispatch_batches": False})
        >>> trainer = Trainer(model, args, train_dataset=curriculum.train_dataset, callbacks=[curriculum.callback],
        ...                   processing_class=tokenizer)
        >>> trainer.train()
    """

    def __init__(
        self,
        train_dataset: Any,
        eval_dataset: Any = None,
        *,
        selector: Selector[Any] | str | None = None,
        schedule: Schedule | None = None,
        train_rows: Any = None,
        eval_rows: Any = None,
        template: str | ChatTemplate | None = None,
        cutoff_len: int = 2048,
        task_column: str = "task",
        selection_repeats: bool = False,
        save_before_selection: bool = False,
    ) -> None:
        check_rows(train_dataset, "training set")
        if eval_dataset is not None:
            check_rows(eval_dataset, "evaluation set")
        self.selector = None if selector is None else as_component("selector", selector)
        if self.selector is not None and schedule is None:
            raise TrainingError(
                "a run with a selector needs a schedule, which says when to select",
                hint="schedule=df.Schedule(warmup_step=10, update_step=10, update_times=2)",
            )
        self.schedule = schedule
        self._data: dict[str, Any] = {"training set": train_dataset, "evaluation set": eval_dataset}
        self._raw = {"training set": train_rows, "evaluation set": eval_rows}
        self._template, self._cutoff_len, self._task_column = template, cutoff_len, task_column
        self._repeats = selection_repeats
        self.save_before_selection = save_before_selection
        self._stream = RowStream(train_dataset)
        self.train_dataset: IterableDataset = self._stream.dataset
        self.callback = CurriculumCallback(self)

    def report_to(self, trainer: Any) -> None:
        """Let the trackers of a trainer (its ``report_to``, its progress bar) have the numbers of each selection.

        A trainer's callbacks do not know one another: without this the numbers stand in ``log_history`` alone.
        """
        self.callback.handler = trainer.callback_handler

    def close(self) -> None:
        """Free what the selector holds; a run that ends does it by itself, one that raises may leave it to do."""
        self.callback.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def begin(self, args: Any, state: Any, model: Any, optimizer: Any, processing_class: Any, loader: Any) -> Run:
        """What the steps of one call of ``train`` consult, checked and, where the trainer resumes, gone on with."""
        noted = noted_state(state)
        tokenizer = as_tokenizer(processing_class)
        samples = {what: self._samples(what) for what in self._data}
        template = self._loaded_template(tokenizer, noted, readable=any(text for _, text in samples.values()))
        training = self._prepared("training set", loader, samples["training set"][0], template)
        check_labels(training)
        targets = None
        if self._data["evaluation set"] is not None:
            targets = self._prepared("evaluation set", loader, samples["evaluation set"][0], template)
        schedule = self.schedule or Schedule(warmup_step=state.max_steps)
        curriculum = core.Curriculum(
            schedule,
            self.selector,
            training,
            targets,
            num_train_epochs=state.max_steps / schedule.cycle_steps,
            global_batch=args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            seed=args.seed,
            output_dir=Path(args.output_dir),
            task_column=self._task_column,
        )
        self._check(curriculum, model, tokenizer, state.max_steps)
        run = Run(curriculum, tokenizer, template, self._stream, self._data["training set"])
        try:
            run.go_on(noted, args, state, model, optimizer)
        except BaseException:
            run.leave()
            raise
        return run

    def _samples(self, what: str) -> tuple[list[Sample], bool]:
        data = self._data[what]
        if data is None:
            return [], False
        samples, readable = samples_of(data, self._raw[what], what)
        argument, raw = _ARGUMENTS[what]
        if self.selector is not None and argument in self.selector.reads_text and not readable:
            raise SelectionError(
                f"selector {self.selector.name!r} reads the text of rows, and the {what} has tokens alone",
                hint=f"hand over the rows before they were tokenised: {raw}=rows",
            )
        return samples, readable

    def _loaded_template(
        self, tokenizer: PreTrainedTokenizerBase, noted: Mapping[str, Any], *, readable: bool
    ) -> ChatTemplate:
        """The template; with tokens alone it is asked for nothing, and a tokenizer without one will do."""
        name = self._template
        if name is None and tokenizer.chat_template is None and not readable:
            name = "default"
        loaded = as_template(name, tokenizer)
        if not noted.get("date") or not loaded.prints_date:
            return loaded
        return as_template(name, tokenizer, datetime.fromisoformat(noted["date"]))

    def _prepared(self, what: str, loader: Any, samples: Sequence[Sample], template: ChatTemplate) -> TokenizedDataset:
        data = self._data[what]
        unanswered = "input_ids" not in data[0] and not any(sample.reference for sample in samples)
        if what == "evaluation set" and unanswered and any(sample.messages for sample in samples):
            return tokenize(samples, template, self._cutoff_len, keep_unlabelled=True, name=what)
        return as_trained(self._stream, data, loader, samples, what)

    def _check(
        self, curriculum: core.Curriculum, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, steps: int
    ) -> None:
        sets = {"training set": curriculum.train_dataset, "evaluation set": curriculum.eval_dataset}
        fit = examine(model, tokenizer, sets)
        problems = [
            *selection_problems(
                curriculum.schedule,
                self.selector,
                len(curriculum.train_dataset),
                curriculum.eval_dataset,
                curriculum.global_batch,
                num_train_epochs=steps / curriculum.schedule.cycle_steps,
                repeats=self._repeats,
            ),
            *fit.problems,
        ]
        if problems:
            raise TrainingError("; ".join(problems))
        fit.warn()
        if self.selector is not None:
            self.selector.check_data(curriculum.train_dataset.samples)


class CurriculumCallback(TrainerCallback):
    """What a trainer calls: checks its arguments, begins a run, and selects between phases.

    Attributes:
        handler: Tells a trainer's other callbacks what is logged; None: they are not told.
    """

    def __init__(self, curriculum: Curriculum) -> None:
        self._curriculum = curriculum
        self._run: Run | None = None
        self.handler: CallbackHandler | None = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse arguments that would train on other rows than the selected ones."""
        check_arguments(args)

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        optimizer: Any = None,
        processing_class: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Prepare the candidates as the trainer does, check everything, go on from a checkpoint."""
        self.end()
        self._run = self._curriculum.begin(args, state, model, optimizer, processing_class, train_dataloader)
        if state.is_world_process_zero:
            found = self._run.curriculum
            logger.info("%s", plan_line(found.phases, found.global_batch, len(found.train_dataset)))

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Open the next phase."""
        assert self._run is not None
        try:
            statistics = self._run.enter(state, model, optimizer)
        except BaseException:
            self.end()
            raise
        if statistics and self.handler is not None:
            self.handler.on_log(args, state, control, dict(statistics))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the trainer's epoch with the phase, and ask for a checkpoint where the user wants one before a selection.

        A trainer that does not know how long an epoch is would ask its exhausted loader for every step of the run.
        """
        assert self._run is not None
        if self._run.ends_phase(state.global_step):
            control.should_epoch_stop = True
            if self._curriculum.save_before_selection and self._run.selects_after(state.global_step):
                control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Free what the selector holds."""
        self.end()

    def end(self) -> None:
        """Leave the run, if there is one."""
        run, self._run = self._run, None
        if run is not None:
            run.leave()
