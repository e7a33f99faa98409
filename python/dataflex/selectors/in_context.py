"""Selection by the loss in context: candidates whose answers the model expects after a few answered target samples.

A few evaluation samples with their reference answers (shots) stand before every candidate, as conversations of the
same template one after the other. A candidate's score is minus the mean token cross-entropy of its labels there. The
shots say which task it is and in which form it is answered, so an answer that is wrong by what the model knows, or by
what the prompt says, costs more than a right one. What that is worth is measured in docs/efficacy.md.

It is the converse of Nuggets (Li et al., "One-Shot Learning as Instruction Data Prospector for Large Language Models",
arXiv 2312.10302), where a candidate is the shot and target samples are scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from dataflex.errors import SelectionError
from dataflex.models.bounds import Bounds, Findings
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.selectors.candidates import CandidateConfig, CandidateSelector
from dataflex.selectors.gradient import split_answered
from dataflex.selectors.losses import CandidateLosses, report_broken
from dataflex.selectors.plan import Plan
from dataflex.utils.progress import Stopwatch

STREAM = 0x1C7
"""So that the draw of the shots does not follow that of another selector with the same seed and round."""


class InContextConfig(CandidateConfig):
    """Parameters of ``in_context``."""

    cache_dir: Path | None = Field(None, description="folder of the losses; null: inside output_dir")
    num_shots: int = Field(
        4, ge=1, description="answered evaluation samples before every candidate, drawn anew by seed and round"
    )
    loss_batch_tokens: int = Field(2048, ge=1, description="padded tokens of one forward pass over candidates")


class InContextSelector(CandidateSelector[InContextConfig]):
    """Selects the candidates with the least loss after a few answered evaluation samples.

    A candidate's score is minus its loss in nats a token.

    Source: the converse of Li et al., One-Shot Learning as Instruction Data Prospector for Large Language Models,
    arXiv 2312.10302.

    Example:
        >>> selector = InContextSelector(num_shots=4)
    """

    name: ClassVar[str] = "in_context"
    Config = InContextConfig
    needs_eval_dataset: ClassVar[bool] = True

    def check(self, context: SelectionContext) -> None:
        """See that there are answers to show, and room for them.

        Raises:
            SelectionError: No evaluation sample has a reference answer, or too few rows are looked at.
            ModelError: A candidate with the longest shots before it is longer than the model has room for.
        """
        super().check(context)
        answered = self._answered(context)
        assert context.eval_dataset is not None
        longest = sorted((context.eval_dataset.lengths[row] for row in answered), reverse=True)[: self.config.num_shots]
        found = Findings()
        lengths = [sum(longest) + length for length in context.train_dataset.lengths]
        way_on = f"a num_shots below {self.config.num_shots} or a smaller cutoff_len makes them shorter"
        found.check_lengths(Bounds.of(context.model), "candidates after the longest num_shots", lengths, way_on)
        found.raise_or_warn()

    def plan(self, context: SelectionContext) -> Plan:
        """Losses of the candidates, after what the prefilter does."""
        left, first = self.planned_among(context)
        return Plan([*first.parts, self._losses(left).plan()], first.counts, first.notes)

    def work_dir(self, context: SelectionContext) -> Path:
        """Folder of everything that rounds leave behind.

        Args:
            context: The selection's context.
        """
        return self.config.cache_dir or context.output_dir

    def select_among(self, context: SelectionContext) -> Selection:
        """Compute the losses and take the least.

        Raises:
            SelectionError: More samples are asked for than there are candidates with a finite loss.
        """
        watch = Stopwatch()
        shots = self.shots(context)
        with watch.phase("losses"):
            losses = self._losses(context).values()
        usable = np.isfinite(losses)
        broken = report_broken(context, usable)
        if int(usable.sum()) < context.num_samples:
            raise SelectionError(f"{context.num_samples} samples are asked for, {usable.sum()} have a finite loss")
        scores = np.where(usable, -losses, -np.inf)
        indices = np.argsort(-scores, kind="stable")[: context.num_samples].astype(np.int64)
        assert context.eval_dataset is not None
        report = {
            "seconds": watch.seconds,
            "score": "minus the loss of the row's answer after the shots, in nats a token: 0 is the most there is",
            "shots": [context.eval_dataset[row].sample.id for row in shots],
            "candidates": {"total": len(losses), "not_finite": broken},
            "left_out": {"candidates with a loss that is not finite": broken},
        }
        return Selection(indices, scores, self.name, context.step, context.round, report)

    def shots(self, context: SelectionContext) -> list[int]:
        """Which evaluation samples stand before every candidate in this round.

        Args:
            context: The selection's context.

        Returns:
            Their positions, in their order.

        Raises:
            SelectionError: None has a reference answer.
        """
        answered = self._answered(context)
        count = min(self.config.num_shots, len(answered))
        stream = np.random.default_rng([context.seed, context.round, STREAM])
        return [answered[place] for place in stream.choice(len(answered), count, replace=False).tolist()]

    def _losses(self, context: SelectionContext) -> CandidateLosses:
        assert context.eval_dataset is not None
        before = tuple(token for row in self.shots(context) for token in context.eval_dataset[row].input_ids)
        folder = self.work_dir(context) / "losses_in_context"
        return CandidateLosses(context, folder, self.config.loss_batch_tokens, before)

    def _answered(self, context: SelectionContext) -> list[int]:
        answered, _ = split_answered(context)
        if not answered:
            raise SelectionError(
                "in_context shows answered evaluation samples, and none has an answer",
                hint="add answers to eval_dataset, or use rds, which needs none",
            )
        return answered
