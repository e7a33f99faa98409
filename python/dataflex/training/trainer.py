"""The training loop: phases of steps, a selection before each phase that wants one.

The global batch of a step is per_device_train_batch_size x gradient_accumulation_steps x processes samples. Which
samples a step sees follows from the seed, the step number and the selection alone, so that a resumed run sees what the
unbroken one would have seen. Every process holds all samples and the same selection; the main one writes the files.
"""

from __future__ import annotations

import gc
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from dataflex.distributed import Ranks
from dataflex.errors import TrainingError
from dataflex.files import write_json, write_text
from dataflex.model import save_model
from dataflex.plugins import registry
from dataflex.progress import Stopwatch, progress_bar
from dataflex.selectors.base import Selector
from dataflex.training import checkpoint, outputs
from dataflex.training.arguments import TrainingArguments
from dataflex.training.evaluation import evaluation_loss
from dataflex.training.folder import prepare_output_dir
from dataflex.training.inputs import as_dataset, as_template
from dataflex.training.optimization import (
    create_accelerator,
    create_optimizer,
    create_scheduler,
    enable_gradient_checkpointing,
)
from dataflex.training.schedule import Phase, Schedule, random_order, selected_order
from dataflex.training.state import RunState
from dataflex.training.steps import Stepper
from dataflex.training.tracking import PLOT_FILE, RunLog, check_trackers, plot_losses
from dataflex.types import SelectionContext

logger = logging.getLogger(__name__)

BEST_MODEL = "best_model"


class Trainer:
    """Fine-tunes a model on samples that a selector picks while training goes on.

    Args:
        model: Causal language model with trainable parameters (a peft model, as a rule).
        processing_class: Its tokenizer.
        train_dataset: n candidates: a tokenised dataset, or rows (``datasets.Dataset``, list of dicts) in a known form.
        eval_dataset: q samples for evaluation and for selectors with a target, or None.
        selector: Picks the samples of each phase but the first; None trains on random samples throughout.
        schedule: When to select; ``Schedule(warmup_step=N)`` is plain training for N steps.
        args: Hyper-parameters.

    Raises:
        TrainingError: The run cannot succeed (sizes, trackers, processes); raised before training starts.

    Example:
        >>> trainer = Trainer(model, tokenizer, rows, eval_rows, NiceSelector(reward="exact_match"),
        ...                   Schedule(10, 10, 2), TrainingArguments(output_dir="out"))
        >>> results = trainer.train()
    """

    def __init__(
        self,
        model: nn.Module,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Any,
        eval_dataset: Any = None,
        selector: Selector[Any] | None = None,
        *,
        schedule: Schedule,
        args: TrainingArguments,
    ) -> None:
        self.args = args
        self.schedule = schedule
        self.selector = selector
        self.tokenizer = processing_class
        self.template = as_template(args.template, processing_class)
        self.train_dataset = as_dataset(train_dataset, self.template, args.cutoff_len)
        self.eval_dataset = (
            None
            if eval_dataset is None
            else as_dataset(eval_dataset, self.template, args.cutoff_len, keep_unlabelled=True)
        )
        self.phases = schedule.phases(args.num_train_epochs)
        self.total_steps = schedule.total_steps(args.num_train_epochs)
        check_trackers(args.report_to)
        self.accelerator = create_accelerator(args)
        self.ranks = Ranks(self.accelerator.process_index, self.accelerator.num_processes, self.accelerator.device)
        self.global_batch = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        )
        self._check()
        self.model = model.to(self.accelerator.device)
        if args.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        self.optimizer = create_optimizer(self.model, args)
        self.scheduler = create_scheduler(self.optimizer, args, self.total_steps)
        self.state = RunState()
        self.watch = Stopwatch()
        self.run_config: str | None = None
        """Text of ``config.yaml``, written when training starts."""

    def train(self) -> dict[str, Any]:
        """Run the schedule and write the results.

        Returns:
            What ``all_results.json`` holds.

        Raises:
            TrainingError: The output folder is taken, or the loss is not finite.
            DataflexError: Whatever the selector raises; the checkpoint before the selection stays.
        """
        # The ranks' dropout masks differ, as they do in transformers.
        set_seed(self.args.seed + self.ranks.index)
        if self.selector is not None:
            largest = min(self._longest_selection() * self.global_batch, len(self.train_dataset))
            self.selector.check(self._context(num_samples=largest, round_number=0))
        source = self.ranks.on_main(lambda: _text(prepare_output_dir(self.args)))
        self._restore(None if source is None else Path(source))
        if self.run_config is not None and self.ranks.is_main:
            write_text(self.args.output_dir / "config.yaml", self.run_config)
        self.log = RunLog(self.args.output_dir, self.accelerator, self.total_steps, self.state.history)
        self.accelerator.init_trackers("dataflex", config=_scalars(self.args.model_dump(mode="json")))
        self.stepper = Stepper(
            self.model,
            self.optimizer,
            self.scheduler,
            self.args,
            self.accelerator,
            self.ranks,
            int(self.tokenizer.pad_token_id),
        )
        try:
            with progress_bar(
                self.total_steps, "training", unit="step", initial=self.state.step, disable=not self.ranks.is_main
            ) as self.bar:
                for phase in self.phases:
                    if self.state.step < phase.stop and not self._stopped_early():
                        self._run_phase(phase, self._phase_order(phase))
            return self._finish()
        finally:
            if self.selector is not None:
                self.selector.close()
            self._release()
            self.accelerator.end_training()

    def _release(self) -> None:
        """Free what wraps the model.

        DistributedDataParallel has to go before its process group: as the group's last owner it would wait, with the
        GIL held, for threads of gloo that need it.
        """
        del self.stepper
        self.accelerator.free_memory()
        if self.ranks.count > 1:
            gc.collect()

    def evaluate(self) -> dict[str, float]:
        """Evaluation loss of the model as it is: ``{"eval_loss": nats a token}``."""
        if self.eval_dataset is None:
            raise TrainingError("there is no evaluation set", hint="pass eval_dataset")
        loss = evaluation_loss(
            self.model,
            self.eval_dataset,
            batch_size=self.args.per_device_eval_batch_size,
            pad_token_id=int(self.tokenizer.pad_token_id),
            autocast=self.accelerator.autocast,
            ranks=self.ranks,
        )
        return {"eval_loss": loss}

    def _check(self) -> None:
        """Everything that can be known to go wrong before the first step, at once."""
        n = len(self.train_dataset)
        problems = []
        if self.selector is None and self.schedule.update_times and self.schedule.update_step:
            problems.append("the schedule has selections but there is no selector")
        if self.selector is not None and self.selector.needs_eval_dataset and not self.eval_dataset:
            problems.append(f"selector {self.selector.name!r} needs an evaluation set (eval_dataset)")
        longest = self._longest_selection()
        if longest * self.global_batch > n and not self.args.selection_repeats:
            problems.append(
                f"a selection of update_step x global batch = {longest} x {self.global_batch} samples does not fit "
                f"into {n} candidates; the largest update_step that does is {n // self.global_batch}, or set "
                "selection_repeats: true"
            )
        if self.args.eval_strategy != "no" and not self.eval_dataset:
            problems.append(f"eval_strategy {self.args.eval_strategy!r} needs an evaluation set (eval_dataset)")
        if self.args.metric_for_best_model != "eval_loss":
            problems.append(f"metric_for_best_model {self.args.metric_for_best_model!r} is unknown; known: eval_loss")
        if problems:
            raise TrainingError("; ".join(problems))

    def _longest_selection(self) -> int:
        """Steps of the longest phase on selected samples."""
        return max((phase.stop - phase.start for phase in self.phases if phase.round), default=0)

    def _restore(self, source: Path | None) -> None:
        """Go on from a checkpoint, or start; either way the state knows the facts of this run."""
        facts = {
            "total_steps": self.total_steps,
            "global_batch": self.global_batch,
            "schedule": asdict(self.schedule),
            "seed": self.args.seed,
            "data": self.train_dataset.fingerprint,
            "selector": self.selector.name if self.selector else None,
        }
        if source is not None:
            stored = checkpoint.load_checkpoint(source, self.model, self.optimizer, self.ranks)
            self.state = RunState.from_json(stored)
            different = [key for key in facts if self.state.facts.get(key) != facts[key]]
            if different:
                shown = ", ".join(f"{key} {self.state.facts.get(key)!r} -> {facts[key]!r}" for key in different)
                raise TrainingError(
                    f"{source} belongs to another run: {shown}", hint="start over with overwrite_output_dir: true"
                )
            self.scheduler.load_state_dict(self.state.scheduler)
            for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(self.state.scaler)
            if self.selector is not None:
                self.selector.load_state_dict(self.state.selector)
            self.watch.seconds = dict(self.state.seconds)
            logger.info("resuming from %s at step %d of %d", source, self.state.step, self.total_steps)
        self.state.facts = facts

    def _phase_order(self, phase: Phase) -> NDArray[np.int64]:
        """Positions of all samples of a phase, in the order of training; selects first where the phase wants it."""
        count = (phase.stop - phase.start) * self.global_batch
        if phase.round is None:
            drawn = sum(
                other.stop - other.start for other in self.phases if other.round is None and other.stop <= phase.start
            )
            return random_order(
                len(self.train_dataset),
                drawn * self.global_batch,
                count,
                seed=self.args.seed,
                shuffle=not self.args.disable_shuffling,
            )
        if self.state.round != phase.round:
            self._select(phase, count)
        indices = np.array(self.state.indices, dtype=np.int64)
        return selected_order(indices, count, seed=self.args.seed, round_number=phase.round)

    def _select(self, phase: Phase, count: int) -> None:
        """Select the samples of a phase; a checkpoint is saved first, so that a kill loses no step."""
        assert self.selector is not None
        assert phase.round is not None
        if self.state.step > 0:
            self._save_checkpoint()
        context = self._context(min(count, len(self.train_dataset)), phase.round)
        with self.watch.phase("selection"):
            selection = self.selector.select(context)
        outputs.check_selection(selection, len(self.train_dataset), context.num_samples)
        outputs.check_agreement(selection, self.ranks)
        if self.ranks.is_main:
            registry().call("on_selection", selection=selection, context=context)
            outputs.write_selection(
                self.args.output_dir / "selections" / f"step-{self.state.step}.parquet",
                selection,
                self.train_dataset,
                self.args.task_column,
            )
        self.log.add(self.state.step, outputs.selection_statistics(selection, self.state.indices))
        self.state.round = phase.round
        self.state.indices = selection.indices.tolist()

    def _context(self, num_samples: int, round_number: int) -> SelectionContext:
        return SelectionContext(
            model=self.model,
            tokenizer=self.tokenizer,
            template=self.template,
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            num_samples=num_samples,
            step=self.state.step,
            round=round_number,
            num_rounds=max((phase.round or 0 for phase in self.phases), default=0),
            seed=self.args.seed,
            output_dir=self.args.output_dir,
            optimizer=self.optimizer,
            autocast=self.accelerator.autocast,
            ranks=self.ranks,
        )

    def _run_phase(self, phase: Phase, order: NDArray[np.int64]) -> None:
        while self.state.step < phase.stop and not self._stopped_early():
            offset = (self.state.step - phase.start) * self.global_batch
            with self.watch.phase("training"):
                indices = order[offset : offset + self.global_batch].tolist()
                values = self.stepper.step([self.train_dataset[index] for index in indices], self.state.step + 1)
            self.state.step += 1
            self.bar.update()
            self._after_step(values, phase)

    def _after_step(self, values: dict[str, float], phase: Phase) -> None:
        """Log, evaluate and save as the arguments ask for."""
        step = self.state.step
        last = step == self.total_steps
        if step % self.args.logging_steps == 0 or last:
            self.log.add(step, {**values, "epoch": round(step / self.schedule.cycle_steps, 4)})
        if self._evaluation_due(step, last):
            self._evaluate_and_compare()
        if step % self.args.save_steps == 0 and not last:
            self._save_checkpoint()

    def _evaluation_due(self, step: int, last: bool) -> bool:
        if self.args.eval_strategy == "no":
            return False
        every = self.args.eval_steps if self.args.eval_strategy == "steps" else self.schedule.cycle_steps
        return last or step % every == 0

    def _evaluate_and_compare(self) -> None:
        with self.watch.phase("evaluation"):
            metrics = self.evaluate()
        step = self.state.step
        self.log.add(step, metrics)
        self.state.best = self.state.best.update(
            metrics[self.args.metric_for_best_model],
            step,
            greater_is_better=self.args.greater_is_better,
            min_delta=self.args.early_stopping_min_delta,
        )
        if self.args.load_best_model_at_end and self.state.best.step == step:
            self.ranks.on_main(
                lambda: checkpoint.save_checkpoint(self.args.output_dir / BEST_MODEL, self.model, self.tokenizer)
            )
        if self._stopped_early():
            logger.info("stopping early at step %d: no progress in %d evaluations", step, self.state.best.stale)

    def _stopped_early(self) -> bool:
        patience = self.args.early_stopping_steps
        return patience is not None and self.state.best.stale >= patience

    def _save_checkpoint(self) -> None:
        """Save ``checkpoint-STEP`` unless it is there already (a resumed run comes by again)."""
        directory = self.args.output_dir / f"{checkpoint.PREFIX}{self.state.step}"
        if self.ranks.on_main(lambda: directory.exists() and checkpoint.damage(directory) is None):
            return
        self.state.scheduler = self.scheduler.state_dict()
        self.state.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        self.state.selector = self.selector.state_dict() if self.selector else {}
        self.state.history = self.log.history
        self.state.seconds = self.watch.seconds
        generators = checkpoint.random_states(self.ranks)

        def save() -> None:
            checkpoint.save_checkpoint(
                directory,
                self.model,
                self.tokenizer,
                optimizer=None if self.args.save_only_model else self.optimizer,
                state=self.state.to_json(),
                generators=generators,
            )
            checkpoint.prune_checkpoints(self.args.output_dir, self.args.save_total_limit)

        self.ranks.on_main(save)

    def _finish(self) -> dict[str, Any]:
        """Restore the best model where that is wanted, save everything, tell the plugins."""
        out = self.args.output_dir
        if self.args.load_best_model_at_end and self.state.best.step is not None:
            checkpoint.load_weights(out / BEST_MODEL, self.model)
            logger.info("loaded the best model, of step %d", self.state.best.step)
        results = self._results()
        self.ranks.on_main(lambda: self._write_results(results))
        return results

    def _write_results(self, results: dict[str, Any]) -> None:
        out = self.args.output_dir
        save_model(self.model, self.tokenizer, out)
        write_json(out / "all_results.json", results)
        state = {**self.state.to_json(), "history": self.log.history}
        del state["indices"]  # in selections/, with scores
        write_json(out / "trainer_state.json", state)
        base = getattr(self.model, "name_or_path", None)
        outputs.write_model_card(out, {"base_model": base, **_scalars(results)})
        if self.args.plot_loss:
            plot_losses(self.log.history, out / PLOT_FILE)
        registry().call("on_train_end", output_dir=str(out), results=results)

    def _results(self) -> dict[str, Any]:
        losses = [entry["loss"] for entry in self.log.history if "loss" in entry]
        evaluations = [entry["eval_loss"] for entry in self.log.history if "eval_loss" in entry]
        return {
            "steps": self.state.step,
            "total_steps": self.total_steps,
            "selections": self.state.round,
            "train_samples": len(self.train_dataset),
            "train_loss": losses[-1] if losses else None,
            "eval_loss": evaluations[-1] if evaluations else None,
            "best_metric": self.state.best.value,
            "best_step": self.state.best.step,
            "seconds": dict(self.watch.seconds),
        }


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(value, str | int | float)}
