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
- Weights of rows go into the loss that the trainer is handed (:mod:`dataflex.integrations.losses`); they are made in
  ``on_step_begin``, before the step's first forward pass, and its losses are counted in ``on_step_end``, before the
  trainer logs and saves.
- What a checkpoint has to know lies in ``TrainerState.stateful_callbacks``, which ``trainer_state.json`` holds, the
  last file of a checkpoint: one that has it is whole.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import torch
from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from dataflex.config.values import MixtureRule
from dataflex.curriculum import curriculum as core
from dataflex.curriculum.schedule import Schedule
from dataflex.data.dataset import TokenizedDataset, check_labels, tokenize
from dataflex.data.templates import ChatTemplate
from dataflex.errors import SelectionError, TrainingError
from dataflex.integrations.losses import TrainerLoss
from dataflex.integrations.refusals import check_arguments
from dataflex.integrations.rows import RowStream, as_trained, check_rows, samples_of
from dataflex.integrations.run import Run, noted_state
from dataflex.mixers.base import Mixer
from dataflex.mixers.domains import Shares
from dataflex.models.bounds import examine
from dataflex.selectors.base import Selector
from dataflex.training.arguments import TrainingArguments
from dataflex.training.component import Component, build_curriculum, component_problems, find_mixture
from dataflex.training.inputs import as_template, as_tokenizer
from dataflex.types import Sample
from dataflex.weighters.base import Weighter

logger = logging.getLogger(__name__)

TRAINING, EVALUATION, MIXER = "training set", "evaluation set", "rows of mixer_eval_dataset"
_ARGUMENTS = {TRAINING: ("train_dataset", "train_rows"), EVALUATION: ("eval_dataset", "eval_rows")}


class Curriculum:
    """A schedule and what decides by it, for a trainer of transformers or TRL.

    Hand the trainer ``train_dataset`` and ``callback``, and ``compute_loss_func`` where there is a weighter or a mixer
    that reads losses (``odm``).

    Args:
        train_dataset: n candidates, addressed by position (``datasets.Dataset``, list of dicts): what the trainer would
            be given without a curriculum.
        eval_dataset: q target rows in the same form, or None for selectors without a target.
        selector: Picks the rows of each phase but the random ones: a name, or one that is built; None: all are random.
        mixer: In its place, gives the shares of the data's domains in each phase but the first, likewise.
        weighter: In its place, gives each sample of a step its weight, from the schedule's warm-up on, likewise.
        schedule: When to select or to mix; the trainer's ``max_steps`` says how long the run is, as a rule
            ``schedule.total_steps()``. None, without selector and mixer, is one phase.
        domain_column: A mixer's domains are the values of this column.
        mixture_sample_rule: Shares of the first phase, as for :class:`dataflex.TrainingArguments`.
        init_mixture_proportions: These shares, likewise.
        mixer_eval_dataset: Rows that a mixer measures domains by, in the same form; None: the candidates.
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
        compute_loss_func: The loss to hand to it: token cross-entropy, with each row's part times its weight.

    As a context it frees what the component holds at its end, also where training raised: a trainer tells no callback
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
        mixer: Mixer[Any] | str | None = None,
        weighter: Weighter[Any] | str | None = None,
        schedule: Schedule | None = None,
        domain_column: str | None = None,
        mixture_sample_rule: MixtureRule | None = None,
        init_mixture_proportions: Shares | None = None,
        mixer_eval_dataset: Any = None,
        train_rows: Any = None,
        eval_rows: Any = None,
        template: str | ChatTemplate | None = None,
        cutoff_len: int = 2048,
        task_column: str = "task",
        selection_repeats: bool = False,
        save_before_selection: bool = False,
    ) -> None:
        self._data = {TRAINING: train_dataset, EVALUATION: eval_dataset, MIXER: mixer_eval_dataset}
        for what, rows in self._data.items():
            if what == TRAINING or rows is not None:
                check_rows(rows, what)
        self.component = Component.read(selector, mixer, weighter)
        self.component.check_schedule(schedule)
        self.schedule = schedule
        self._raw = {TRAINING: train_rows, EVALUATION: eval_rows, MIXER: None}
        self._template = template
        self._settings = TrainingArguments(
            output_dir=Path(),
            cutoff_len=cutoff_len,
            task_column=task_column,
            selection_repeats=selection_repeats,
            domain_column=domain_column,
            mixture_sample_rule=mixture_sample_rule,
            init_mixture_proportions=init_mixture_proportions,
        )
        self.save_before_selection = save_before_selection
        self._stream = RowStream(train_dataset)
        self.train_dataset: IterableDataset = self._stream.dataset
        self.compute_loss_func = TrainerLoss()
        self.callback = CurriculumCallback(self)

    def report_to(self, trainer: Any) -> None:
        """Let the trackers of a trainer (its ``report_to``, its progress bar) have the numbers of the curriculum.

        A trainer's callbacks do not know one another: without this the numbers stand in ``log_history`` alone.
        """
        self.callback.handler = trainer.callback_handler

    def close(self) -> None:
        """Free what the component holds; a run that ends does it by itself, one that raises may leave it to do."""
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
        sets = {
            what: self._prepared(what, loader, samples[what][0], template)
            for what, rows in self._data.items()
            if rows is not None
        }
        check_labels(sets[TRAINING])
        curriculum = self._built(sets, args, state.max_steps)
        self._check(curriculum, model, tokenizer)
        parts = self._stream, self._data[TRAINING], self.compute_loss_func
        run = Run(curriculum, self.component, tokenizer, template, *parts)
        try:
            run.go_on(noted, args, state, model, optimizer)
        except BaseException:
            run.leave()
            raise
        return run

    def _built(self, sets: Mapping[str, TokenizedDataset], args: Any, max_steps: int) -> core.Curriculum:
        """The curriculum of a run of ``max_steps`` steps."""
        schedule = self.schedule or self.component.default_schedule(max_steps)
        settings = self._settings.model_copy(
            update={
                "num_train_epochs": max_steps / schedule.cycle_steps,
                "per_device_train_batch_size": args.train_batch_size,
                "seed": args.seed if args.data_seed is None else args.data_seed,
                "disable_shuffling": getattr(args, "train_sampling_strategy", "random") == "sequential",
                "output_dir": Path(args.output_dir),
            }
        )
        mixer, training, measured = self.component.mixer, sets[TRAINING], sets.get(MIXER)
        global_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        targets = sets.get(EVALUATION)
        problems = [*component_problems(self.component, schedule, settings, training, targets, global_batch)]
        if problems:
            raise TrainingError("; ".join(problems))
        return build_curriculum(
            self.component,
            schedule,
            settings,
            training,
            targets,
            global_batch=global_batch,
            mixture=None if mixer is None else find_mixture(mixer, settings, training, measured),
        )

    def _samples(self, what: str) -> tuple[list[Sample], bool]:
        data = self._data[what]
        if data is None:
            return [], False
        samples, readable = samples_of(data, self._raw[what], what)
        argument, raw = _ARGUMENTS.get(what, ("", ""))
        selector = self.component.selector
        if selector is not None and argument in selector.reads_text and not readable:
            raise SelectionError(
                f"selector {selector.name!r} reads the text of rows, and the {what} has tokens alone",
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
        if what == EVALUATION and unanswered and any(sample.messages for sample in samples):
            return tokenize(samples, template, self._settings.cutoff_len, keep_unlabelled=True, name=what)
        return as_trained(self._stream, data, loader, samples, what)

    def _check(self, curriculum: core.Curriculum, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        sets = {TRAINING: curriculum.train_dataset, EVALUATION: curriculum.eval_dataset}
        fit = examine(model, tokenizer, sets)
        if fit.problems:
            raise TrainingError("; ".join(fit.problems))
        fit.warn()
        if self.component.selector is not None:
            self.component.selector.check_data(curriculum.train_dataset.samples)


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
            logger.info("%s", self._run.curriculum.plan())

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Open the next phase."""
        assert self._run is not None
        with self._ended_by_errors():
            statistics = self._run.enter(state, model, optimizer)
        self._tell(args, state, control, statistics)

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        """Weigh the rows of the step."""
        assert self._run is not None
        with self._ended_by_errors():
            self._run.begin_step(args, state, model, optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the losses of the step; where a phase ends, end the trainer's epoch, and save if the user wants that.

        A trainer that does not know how long an epoch is would ask its exhausted loader for every step of the run.
        """
        assert self._run is not None
        with self._ended_by_errors():
            statistics = self._run.end_step(state)
        if control.should_log:
            self._tell(args, state, control, statistics)
        if self._run.ends_phase(state.global_step):
            control.should_epoch_stop = True
            if self._curriculum.save_before_selection and self._run.selects_after(state.global_step):
                control.should_save = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Free what the component holds."""
        self.end()

    def end(self) -> None:
        """Leave the run, if there is one."""
        run, self._run = self._run, None
        if run is not None:
            run.leave()

    def _tell(self, args: Any, state: Any, control: Any, statistics: Mapping[str, float | int]) -> None:
        """Note numbers in the trainer's history, and tell its trackers."""
        if statistics:
            state.log_history.append({"step": state.global_step, **statistics})
            if self.handler is not None:
                self.handler.on_log(args, state, control, dict(statistics))

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.end()
            raise
