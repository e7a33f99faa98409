"""Training in which samples count differently: random rows as in static training, with a weighter's weights.

The weights of a step are those of its whole global batch, mean 1. With the scope ``global`` they are made before the
step, from passes of their own without dropout, and do not depend on micro-batches and ranks. With ``micro_batch`` each
forward pass of training gives the losses of its own rows, which are compared with each other alone: nothing is computed
twice, and the weights depend on the size of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataflex.curriculum.curriculum import Curriculum, Loop
from dataflex.curriculum.schedule import Phase, Schedule
from dataflex.curriculum.step import RowLosses, StepWork
from dataflex.curriculum.weight_file import WeightFile
from dataflex.utils.distributed import Ranks
from dataflex.weighters.base import GlobalBatch, Weighter, normalised

if TYPE_CHECKING:
    from dataflex.data.dataset import Example, TokenizedDataset

QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}
"""Quantiles of a step's weights in its log entry, ``weight_NAME``."""


class WeightedCurriculum(Curriculum):
    """Gives each sample of a step a weight, from the first step after the schedule's warm-up on.

    Args:
        schedule: How long the run is; it weighs from ``warmup_step`` on, if the schedule goes on after it.
        weighter: Gives the weights.
        train_dataset: n candidates.
        eval_dataset: q target samples, or None.
        num_train_epochs: How often the schedule is gone through.
        global_batch: Rows of one step, of all processes together.
        micro_batch: Rows of one forward pass.
        seed: Seed of the draws and of the weighter.
        output_dir: Folder of the run: ``weights/``.
        shuffle: False: the rows come in the dataset's own order.

    Attributes:
        weighter: The weighter.
        begins: Steps before the first one that is weighed.
    """

    def __init__(
        self,
        schedule: Schedule,
        weighter: Weighter[Any],
        train_dataset: TokenizedDataset,
        eval_dataset: TokenizedDataset | None = None,
        *,
        num_train_epochs: float = 1.0,
        global_batch: int,
        micro_batch: int,
        seed: int,
        output_dir: Path,
        shuffle: bool = True,
    ) -> None:
        super().__init__(
            schedule,
            None,
            train_dataset,
            eval_dataset,
            num_train_epochs=num_train_epochs,
            global_batch=global_batch,
            seed=seed,
            output_dir=output_dir,
            shuffle=shuffle,
        )
        self.weighter = weighter
        self.phases = [Phase(0, self.total_steps, None)]
        goes_on = schedule.cycle_steps > schedule.warmup_step
        self.begins = schedule.warmup_step if goes_on else self.total_steps
        self._micro_batch = micro_batch
        self._record = WeightFile(output_dir)

    @property
    def epoch_steps(self) -> int:
        """Steps of one pass over the data."""
        return -(-len(self.train_dataset) // self.global_batch)

    @property
    def needs_losses(self) -> bool:
        """Yes: the weights go into the loss."""
        return True

    def plan(self) -> str:
        """How long the run is, and from where it weighs, as a line."""
        where = f"weights from step {self.begins + 1:,} on" if self.begins < self.total_steps else "no weights"
        rows = f"{len(self.train_dataset):,} rows"
        return f"training on {rows}: {self.total_steps:,} steps of {self.global_batch:,}; {where}"

    def step_work(self, step: int, examples: Sequence[Example], loop: Loop) -> StepWork | None:
        """The weights of a step, made now (``global``) or from its own forward passes (``micro_batch``)."""
        if step < self.begins:
            return None
        batch = GlobalBatch(
            examples=examples,
            step=step + 1,
            total_steps=self.total_steps,
            model=loop.model,
            tokenizer=loop.tokenizer,
            eval_dataset=self.eval_dataset,
            seed=self.seed,
            micro_batch=self._micro_batch,
            autocast=loop.autocast,
            ranks=loop.ranks,
        )
        if self.weighter.scope == "micro_batch":
            return _WithinMicroBatches(self, batch)
        return _Weighed(self, batch, normalised(self.weighter.weights(batch), batch, self.weighter.name))

    def note_weights(self, batch: GlobalBatch, losses: RowLosses) -> dict[str, float]:
        """Write the record of a step that was taken; returns numbers for its log entry."""
        if batch.ranks.is_main:
            self._record.add(batch.step, self.rows(batch.step - 1), losses)
        return weight_statistics(losses)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: ``component``, the weighter's own."""
        return {"round": 0, "indices": [], "selector": {}, "component": {"weighter": self.weighter.state_dict()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.weighter.load_state_dict(state["component"]["weighter"])

    def close(self) -> None:
        """Free what the weighter holds."""
        self.weighter.close()


class _Weighing(StepWork):
    """Of a step with weights."""

    def __init__(self, curriculum: WeightedCurriculum, batch: GlobalBatch) -> None:
        self._curriculum, self._batch = curriculum, batch

    def done(self, losses: RowLosses) -> dict[str, float]:
        return self._curriculum.note_weights(self._batch, losses)


class _Weighed(_Weighing):
    """Weights of a global batch that are known before the step."""

    def __init__(self, curriculum: WeightedCurriculum, batch: GlobalBatch, weights: NDArray[np.float64]) -> None:
        super().__init__(curriculum, batch)
        self._weights = weights

    def weights(self, rows: Sequence[int], losses: NDArray[np.float64]) -> NDArray[np.float64]:
        del losses
        return self._weights[list(rows)]


class _WithinMicroBatches(_Weighing):
    """Weights from the losses of each micro-batch's own forward pass."""

    def weights(self, rows: Sequence[int], losses: NDArray[np.float64]) -> NDArray[np.float64]:
        examples = [self._batch.examples[row] for row in rows]
        alone = Ranks(device=self._batch.ranks.device)  # the other ranks are at rows of their own
        part = replace(self._batch, examples=examples, ranks=alone, known_losses=losses)
        weighter = self._curriculum.weighter
        return normalised(weighter.weights(part), part, weighter.name)


def weight_statistics(losses: RowLosses) -> dict[str, float]:
    """Numbers about a step's weights for its log entry: their quantiles, and the mean token loss that they make."""
    quantiles = np.quantile(losses.weights, list(QUANTILES.values())).tolist()
    found = {f"weight_{name}": value for name, value in zip(QUANTILES, quantiles, strict=True)}
    return {**found, "weighted_loss": float((losses.weights * losses.sums).sum() / losses.tokens.sum())}
