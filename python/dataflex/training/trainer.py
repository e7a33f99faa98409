"""The training loop: phases of steps, a selection before each phase that wants one.

The global batch of a step is per_device_train_batch_size x gradient_accumulation_steps x processes samples. Which
samples a step sees follows from the seed, the step number and the selection alone, so that a resumed run sees what the
unbroken one would have seen. Every process holds all samples and the same selection; the main one writes the files.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dataflex.config.idle import is_written
from dataflex.curriculum.curriculum import Loop
from dataflex.curriculum.schedule import Phase, Schedule
from dataflex.errors import TrainingError
from dataflex.mixers.base import Mixer
from dataflex.models.model import save_model
from dataflex.models.sharding import whole_weights
from dataflex.plugins.registry import registry
from dataflex.report.page import refresh_page
from dataflex.selectors.base import Selector
from dataflex.training import facts, preflight, story
from dataflex.training.arguments import TrainingArguments
from dataflex.training.checkpointer import Checkpointer
from dataflex.training.component import Component, build_curriculum, component_problems
from dataflex.training.evaluation import AnswerMetric, Evaluator
from dataflex.training.folder import check_output_dir, exclusive, folders_of, prepare_output_dir
from dataflex.training.fsdp import placed
from dataflex.training.inputs import TrainingInputs, as_schedule
from dataflex.training.optimization import (
    create_accelerator,
    create_optimizer,
    create_scheduler,
    enable_gradient_checkpointing,
)
from dataflex.training.record import write_config
from dataflex.training.results import passes, run_results, scalars, write_results
from dataflex.training.sameness import check_ranks
from dataflex.training.state import RunState
from dataflex.training.steppers import stepper_class
from dataflex.training.trackers import check_trackers, show_pictures, start_trackers
from dataflex.training.tracking import RunLog
from dataflex.utils.aliases import also_called
from dataflex.utils.distributed import Ranks
from dataflex.utils.going_on import going_on
from dataflex.utils.memory import peak_memory
from dataflex.utils.progress import Stopwatch, progress_bar
from dataflex.weighters.base import Weighter

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)


class Trainer:
    """Fine-tunes a model on samples that a selector picks while training goes on.

    Args:
        model: Causal language model with trainable parameters (a peft model, as a rule).
        processing_class: Its tokenizer; may be called ``tokenizer``.
        train_dataset: n candidates: a tokenised dataset, or rows (``datasets.Dataset``, list of dicts) in a known form
            or tokenised as for a trainer of transformers (``input_ids``).
        eval_dataset: q samples for evaluation and for selectors with a target, or None.
        selector: Picks the samples of each phase but the first: one that is built, or the name of one with its
            defaults; None trains on random samples throughout.
        mixer: In its place, gives the shares of the data's domains in each phase but the first, likewise.
        weighter: In its place, gives each sample of a step its weight, from the schedule's warm-up on, likewise.
        mixer_eval_dataset: Rows that a mixer measures domains by; None: the candidates.
        domains: Names of the domains, in the order of ``init_mixture_proportions``; None: in order of appearance.
        schedule: When to select or to mix; None, without selector and mixer, is one pass over the data an epoch.
        args: Hyper-parameters: dataflex's, or transformers' (what has no counterpart and would change the training is
            an error; with a schedule, the default of their ``num_train_epochs`` does not count).

    Raises:
        TrainingError: The run cannot succeed (sizes, trackers, processes); raised before training starts.
        ConfigError, ModelError: Arguments, model or tokenizer cannot be used.

    Example:
        >>> trainer = Trainer(model, tokenizer, rows, eval_rows, NiceSelector(reward="exact_match"),
        ...                   Schedule(10, 10, 2), TrainingArguments(output_dir="out"))
        >>> results = trainer.train()
    """

    @also_called(tokenizer="processing_class")
    def __init__(
        self,
        model: nn.Module,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Any,
        eval_dataset: Any = None,
        selector: Selector[Any] | str | None = None,
        *,
        mixer: Mixer[Any] | str | None = None,
        weighter: Weighter[Any] | str | None = None,
        mixer_eval_dataset: Any = None,
        domains: Sequence[str] | None = None,
        schedule: Schedule | None = None,
        args: TrainingArguments | transformers.TrainingArguments,
    ) -> None:
        given = TrainingInputs.read(
            model,
            processing_class,
            train_dataset,
            eval_dataset,
            Component.read(selector, mixer, weighter),
            args,
            scheduled=schedule is not None,
            mixer_eval_dataset=mixer_eval_dataset,
            domains=domains or (),
        )
        self.component, self.tokenizer, self.template = given.component, given.tokenizer, given.template
        self.selector = self.component.selector
        self.train_dataset, self.eval_dataset = given.train_dataset, given.eval_dataset
        args = given.args
        check_trackers(args.report_to)
        self.accelerator = create_accelerator(args)
        self.ranks = Ranks(self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device)
        self.global_batch = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        )
        self.schedule, self.args = as_schedule(
            schedule, args, len(self.train_dataset), self.global_batch, self.component
        )
        self.curriculum = build_curriculum(
            self.component,
            self.schedule,
            self.args,
            self.train_dataset,
            self.eval_dataset,
            global_batch=self.global_batch,
            mixture=given.mixture,
        )
        self.phases, self.total_steps = self.curriculum.phases, self.curriculum.total_steps
        self.metric = AnswerMetric.from_params(
            args.eval_metric, max_new_tokens=args.eval_max_new_tokens, max_prompt_length=args.cutoff_len
        )
        self._check(model)
        self.model, self.ranks = placed(model, args, self.ranks)
        if args.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        self.optimizer = create_optimizer(self.model, args)
        self.scheduler = create_scheduler(self.optimizer, args, self.total_steps)
        parts = (self.model, self.tokenizer, self.optimizer, self.scheduler, self.accelerator)
        self.checkpointer = Checkpointer(*parts, self.curriculum, self.args, self.ranks)
        self.state = RunState()
        self.watch = Stopwatch()
        self.run_config: str | None = None
        """Text of ``config.yaml``, written when training starts; None: what a run from Python can say of itself."""

    def train(self) -> dict[str, Any]:
        """Run the schedule and write the results.

        Returns:
            What ``all_results.json`` holds.

        Raises:
            TrainingError: The output folder is taken, a tracker cannot start, or the loss is not finite.
            DataflexError: Whatever the selector raises; the checkpoint before the selection stays.
        """
        # The ranks' dropout masks differ, as they do in transformers.
        set_seed(self.args.seed + self.ranks.index)
        if self.run_config is None and self.ranks.is_main:  # a configuration has been warned about already
            for key, text in self.idle_settings():
                if is_written(self.args, key):
                    logger.warning("%s: %s", key, text)
        noted = facts.run_facts(self)
        check_ranks({**noted, **facts.places(self.args)}, self.ranks)
        with exclusive(folders_of(self.args.output_dir, self.component.found), self.ranks), going_on(self._way_on):
            self.ranks.on_main(lambda: check_output_dir(self.args))
            self.curriculum.check(self._loop(self.optimizer))
            self._start(noted)
            if self.ranks.is_main:
                logger.info("%s", self.curriculum.plan())
            return self._run()

    def _run(self) -> dict[str, Any]:
        try:
            with progress_bar(
                self.total_steps,
                "training",
                unit="step",
                initial=self.state.step,
                disable=not self.ranks.is_main,
                logged=False,
            ) as self.bar:
                for phase in self.phases:
                    if self.state.step < phase.stop and not self._stopped_early():
                        if self.curriculum.wants_selection(phase):
                            self._select(phase)
                        self._run_phase(phase)
            return self._finish()
        finally:
            self.curriculum.close()
            self._release()
            self.accelerator.end_training()

    def _way_on(self) -> str | None:
        """How a run that was stopped goes on, if it does."""
        kept = self.checkpointer.current
        if kept is None or self.args.save_only_model:
            return None
        own = kept.parent == self.args.output_dir.resolve()  # else nothing was saved since it was restored
        value = "true" if own else kept
        return f"{kept.name} in {kept.parent} holds the run: resume_from_checkpoint: {value} goes on from it"

    def _start(self, noted: dict[str, Any]) -> None:
        """Make the output folder ready, go on from a checkpoint where that is wanted, open log and trackers."""
        source = self.ranks.on_main(lambda: str(prepare_output_dir(self.args) or ""))
        if source:
            self.state = self.checkpointer.restore(Path(source), noted)
            self.watch.seconds = dict(self.state.seconds)
            logger.info("resuming from %s at step %d of %d", source, self.state.step, self.total_steps)
        self.state.facts = noted
        self.state.date = self.state.date or self.template.now.isoformat()
        self._begun = time.perf_counter() - self.state.runtime
        self.ranks.on_main(lambda: write_config(self.run_config, self.args, self.schedule, self.component, self.model))
        self.log = RunLog(self.args.output_dir, self.accelerator, self.total_steps, self.state.history)
        settings = {**self.args.model_dump(mode="json"), **asdict(self.schedule), **noted}
        start_trackers(self.accelerator, self.args, self.ranks, scalars(settings), self.state.step)
        parts = self.model, self.optimizer, self.scheduler, self.args, self.accelerator, self.ranks
        self.stepper = stepper_class(self.args, self.ranks, self.model)(*parts, int(self.tokenizer.pad_token_id))

    def _release(self) -> None:
        """Free what wraps the model.

        DistributedDataParallel has to go before its process group: as the group's last owner it would wait, with the
        GIL held, for threads of gloo that need it.
        """
        self.stepper.close()
        del self.stepper
        self.accelerator.free_memory()
        if self.ranks.count > 1:
            gc.collect()

    def evaluate(self) -> dict[str, float]:
        """The model as it is on the evaluation set: ``eval_loss`` (nats a token) and the metric, if there is one."""
        if self.eval_dataset is None:
            raise TrainingError("there is no evaluation set", hint="pass eval_dataset")
        inputs = self.model, self.tokenizer, self.template, self.eval_dataset, self.args.per_device_eval_batch_size
        return Evaluator(*inputs, self.accelerator.autocast, self.ranks, self.metric).evaluate()

    def idle_settings(self) -> list[tuple[str, str]]:
        """Arguments that never act in this run: the argument, and why."""
        return preflight.idle_settings(self.args, self.curriculum)

    def _check(self, model: nn.Module) -> None:
        """Everything that can be known to go wrong before the first step, at once."""
        fit = preflight.model_findings(
            model, self.tokenizer, self.template, self.train_dataset, self.eval_dataset, self.metric
        )
        problems = [
            *component_problems(
                self.component,
                self.schedule,
                self.args,
                self.train_dataset,
                self.eval_dataset,
                self.global_batch,
            ),
            *preflight.evaluation_problems(self.args, self.eval_dataset, self.metric),
            *preflight.sharding_problems(self.args, self.ranks.count),
            *fit.problems,
        ]
        if problems:
            raise TrainingError("; ".join(problems))
        fit.warn()

    def _select(self, phase: Phase) -> None:
        """Select the samples of a phase; a checkpoint is saved first, so that a kill loses no step."""
        if self.state.step > 0:
            self._save_checkpoint()
        loop = self._loop(self.stepper.whole_optimizer())
        self.log.add(self.state.step, self.curriculum.select(phase, loop, self.state.step, self.watch))
        self.state.note_curriculum(self.curriculum.state_dict())
        self.ranks.on_main(self._show)

    def _show(self) -> None:
        """Let people see how far the run is: the report's page, and its pictures for the trackers."""
        pages = refresh_page(self.args.output_dir)
        if pages is not None:
            show_pictures(self.accelerator, pages.pictures(), self.state.step)

    def _loop(self, optimizer: torch.optim.Optimizer) -> Loop:
        return Loop(self.model, self.tokenizer, self.template, optimizer, self.accelerator.autocast, self.ranks)

    def _run_phase(self, phase: Phase) -> None:
        while self.state.step < phase.stop and not self._stopped_early():
            before = self.watch.seconds.get("training", 0.0)
            with self.watch.phase("training"):
                examples = [self.train_dataset[row] for row in self.curriculum.rows(self.state.step)]
                work = self.curriculum.step_work(self.state.step, examples, self._loop(self.optimizer))
                values = self.stepper.step(examples, self.state.step + 1, work)
            self.state.step += 1
            self.state.loss_sum += values["loss"]
            self.state.loss_steps += 1
            self.bar.update()
            if self.ranks.is_main:
                seconds = self.watch.seconds["training"] - before
                logger.debug("%s", story.step_details(self.state.step, values, seconds))
            self._after_step(values, phase)

    def _after_step(self, values: dict[str, float], phase: Phase) -> None:
        """Log, evaluate and save as the arguments ask for."""
        step = self.state.step
        last = step == self.total_steps
        if step % self.args.logging_steps == 0 or last:
            epoch = passes(step, len(self.train_dataset), self.global_batch)
            self.log.add(step, {**values, "epoch": round(epoch, 4)})
        if self._evaluation_due(step, last):
            self._evaluate_and_compare()
        if step % self.args.save_steps == 0 and not last:
            self._save_checkpoint()

    def _evaluation_due(self, step: int, last: bool) -> bool:
        if self.args.eval_strategy == "no":
            return False
        every = self.args.eval_steps if self.args.eval_strategy == "steps" else self.curriculum.epoch_steps
        return last or step % every == 0

    def _evaluate_and_compare(self) -> None:
        with self.watch.phase("evaluation"):
            metrics = self.evaluate()
        step = self.state.step
        self.log.add(step, metrics)
        if self.args.metric_for_best_model not in metrics:
            raise TrainingError(f"none of the answers at step {step} could be scored")
        self.state.best = self.state.best.update(
            metrics[self.args.metric_for_best_model],
            step,
            greater_is_better=self.args.greater_is_better,
            min_delta=self.args.early_stopping_min_delta,
        )
        if self.args.load_best_model_at_end and self.state.best.step == step:
            self.checkpointer.save_best(step)
        if self._stopped_early():
            logger.info("stopping early at step %d: no progress in %d evaluations", step, self.state.best.stale)

    def _stopped_early(self) -> bool:
        patience = self.args.early_stopping_steps
        return patience is not None and self.state.best.stale >= patience

    def _save_checkpoint(self) -> None:
        self.state.history = self.log.history
        self.state.seconds = self.watch.seconds
        self.state.runtime = time.perf_counter() - self._begun
        self.checkpointer.save(self.state, self.stepper.whole_optimizer)

    def _finish(self) -> dict[str, Any]:
        """Save the end as a checkpoint too, restore the best model where that is wanted, save it and the results."""
        self._save_checkpoint()
        if self.args.load_best_model_at_end and self.state.best.step is not None:
            self.checkpointer.load_best()
            logger.info("loaded the best model, of step %d", self.state.best.step)
        self.state.runtime = time.perf_counter() - self._begun
        results = run_results(
            self.state,
            self.log.history,
            total_steps=self.total_steps,
            made=self.curriculum.made,
            global_batch=self.global_batch,
            datasets={"training": self.train_dataset, "evaluation": self.eval_dataset},
            of_best=self.args.load_best_model_at_end,
            seconds=self.watch.seconds,
            memory=peak_memory(self.accelerator.device),
        )
        weights = whole_weights(self.model, keep=self.ranks.is_main)
        self.ranks.on_main(lambda: self._write(results, weights))
        return results

    def _write(self, results: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Weights, results, and what is made of them."""
        out = self.args.output_dir
        save_model(self.model, self.tokenizer, out, weights)
        base = getattr(self.model, "name_or_path", None)
        write_results(out, results, self.state, self.log.history, base_model=base, plot=self.args.plot_loss)
        registry().call("on_train_end", output_dir=str(out), results=results)
        logger.info("finished at step %d; everything is in %s", self.state.step, out)
