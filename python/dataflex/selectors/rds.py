"""``rds``: rows that look alike to the model itself, by its last hidden states (RDS+).

Ivison et al., "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807. A row is the position-weighted
mean of the model's last hidden states over its tokens, prompt and answer; candidates and targets are compared by
cosine, and the targets take turns, each taking its best candidate that nobody has. One forward pass a row and no
gradient: the cheapest selector with a target, and a strong baseline for the others.

Deviation: the states are those of the model in training, adapter included, at every selection; the paper takes the base
model's, once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import SelectionError
from dataflex.gradients.filling import fill_store
from dataflex.gradients.layout import Layout, by_length
from dataflex.gradients.similarity import Aggregate, Influence, influence_scores, target_directions, unusual_rows
from dataflex.gradients.store import FeatureStore
from dataflex.gradients.turns import choose
from dataflex.models.fingerprint import state_fingerprint
from dataflex.models.hidden import pooled_states
from dataflex.models.model import base_model
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.selectors.gradient import check_tasks
from dataflex.selectors.plan import Plan, PlannedPart
from dataflex.types import group_names
from dataflex.utils.files import remove_folder
from dataflex.utils.progress import Stopwatch
from dataflex.utils.shown import listed

logger = logging.getLogger(__name__)

TARGETS, CANDIDATES = "hidden states of the targets", "hidden states"
"""Names of the parts of a round, in progress bars and reports."""


class RdsConfig(SelectorConfig):
    """Parameters of ``rds``."""

    cache_dir: Path | None = Field(None, description="folder of the hidden states; null: inside output_dir")
    batch_tokens: int = Field(2048, ge=1, description="padded tokens of one forward pass")
    aggregate: Aggregate = Field("round_robin", description="rule over the evaluation samples")
    task_column: str = Field("task", description="column that holds a sample's task, for aggregate: task_max")


class RdsSelector(Selector[RdsConfig]):
    """Selects the candidates that are most alike to the targets in the model's own last hidden states.

    Source: RDS+ of Ivison et al., Large-Scale Data Selection for Instruction Tuning, arXiv 2503.01807.

    Example:
        >>> selector = RdsSelector(aggregate="round_robin")
    """

    name: ClassVar[str] = "rds"
    Config = RdsConfig
    needs_eval_dataset: ClassVar[bool] = True

    def check(self, context: SelectionContext) -> None:
        """See that there are targets, with a task each where the rule keeps tasks apart.

        Raises:
            SelectionError: There are none, or one has no task; the hint says what to do.
        """
        if not context.eval_dataset:
            raise SelectionError("rds needs an evaluation set", hint="set eval_dataset")
        if self.config.aggregate == "task_max":
            check_tasks(context.eval_dataset.samples, self.config.task_column)

    def plan(self, context: SelectionContext) -> Plan:
        """Hidden states of targets and candidates."""
        parts = [self._part(context, TARGETS, context.eval_dataset)] if context.eval_dataset else []
        return Plan([*parts, self._part(context, CANDIDATES, context.train_dataset)])

    def select(self, context: SelectionContext) -> Selection:
        """Compute the hidden states of both sides, compare and choose.

        Raises:
            SelectionError: No target has finite states, or too few candidates have.
        """
        assert context.eval_dataset is not None
        watch = Stopwatch()
        with watch.phase(TARGETS):
            targets = self._states(context, TARGETS, context.eval_dataset)
            broken, _ = unusual_rows(targets.blocks())
            samples = context.eval_dataset.samples
            _report_broken("evaluation", [samples[row].id for row in broken])
            groups = group_names(samples, self.config.task_column)
            directions = target_directions(targets.blocks(), self.config.aggregate, groups, leave_out=set(broken))
        with watch.phase(CANDIDATES):
            states = self._states(context, CANDIDATES, context.train_dataset)

        def parts() -> list[Influence]:
            return [Influence(states.blocks(), directions)]

        with watch.phase("scores"):
            scores = influence_scores(parts(), len(context.train_dataset))
            _report_broken("training", [context.train_dataset[row].sample.id for row in scores.not_finite])
            seed = (context.seed, context.round)
            indices = choose(parts, scores, context.num_samples, self.config.aggregate, seed)
        context.ranks.barrier()  # all have read what is removed now
        context.ranks.on_main(lambda: self._prune(context))
        report = {
            "seconds": watch.seconds,
            "score": "how alike the model's own states of the row and of the targets are, as a cosine: 1 the same",
            "targets": {"total": len(samples), "not_finite": [samples[row].id for row in broken]},
            "candidates": {"total": len(scores.values), "not_finite": len(scores.not_finite)},
            "aggregate": self.config.aggregate,
            "left_out": {
                "targets with hidden states that are not finite": len(broken),
                "candidates with hidden states that are not finite": len(scores.not_finite),
            },
        }
        return Selection(indices, scores.values, self.name, context.step, context.round, report)

    def _states(self, context: SelectionContext, what: str, dataset: TokenizedDataset) -> FeatureStore:
        """Pooled states of a dataset's rows ``(n, h)``, from disk where the same model left them."""
        compute = partial(row_states, context, dataset)
        facts = {
            "state": state_fingerprint(context.model, context.autocast),
            "data": dataset.fingerprint,
            "batch_tokens": self.config.batch_tokens,
        }
        folder = self._round_dir(context) / what.replace(" ", "_")
        width = _width(context.model)
        layout = self._layout(dataset)
        store = context.ranks.main_first(lambda: FeatureStore(folder, facts, layout, width))
        fill_store(store, context.model, compute, description=what, ranks=context.ranks)
        return store

    def _round_dir(self, context: SelectionContext) -> Path:
        return (self.config.cache_dir or context.output_dir) / "hidden_states" / f"step-{context.step}"

    def _prune(self, context: SelectionContext) -> None:
        """Remove the states of earlier rounds, n x h numbers each, which nothing reads again."""
        current = self._round_dir(context)
        for path in current.parent.glob("step-*"):
            if path != current:
                remove_folder(path)

    def _part(self, context: SelectionContext, what: str, dataset: TokenizedDataset) -> PlannedPart:
        compute: Callable[[Sequence[int]], Tensor] = partial(row_states, context, dataset)
        width, layout = _width(context.model), self._layout(dataset)
        return PlannedPart(
            name=what,
            lengths=dataset.lengths,
            prepare=partial(compute, [0]),
            batches=lambda: list(layout.rows_of()),
            compute=compute,
            open_store=lambda folder: FeatureStore(folder, {}, layout, width),
        )

    def _layout(self, dataset: TokenizedDataset) -> Layout:
        return by_length(np.array(dataset.lengths, np.int64), self.config.batch_tokens)


def row_states(context: SelectionContext, dataset: TokenizedDataset, rows: Sequence[int]) -> Tensor:
    """Pooled states of some rows ``(b, h)``."""
    examples = [dataset[row] for row in rows]
    device = next(context.model.parameters()).device
    batch = collate(examples, int(context.tokenizer.pad_token_id)).to(device)
    with torch.no_grad(), context.autocast():
        return pooled_states(context.model, batch)


def _width(model: nn.Module) -> int:
    """h: the width of the last hidden states, which the output head reads.

    ``hidden_size`` is that of the layers: OPT-350m projects from 1,024 to 512 after them.
    """
    base: Any = base_model(model)
    return int(base.get_output_embeddings().weight.shape[1])


def _report_broken(what: str, ids: Sequence[str]) -> None:
    if ids:
        logger.warning(
            "%d %s samples have hidden states that are not finite and are left out: %s", len(ids), what, listed(ids)
        )
