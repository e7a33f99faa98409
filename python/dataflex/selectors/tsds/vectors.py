"""What TSDS compares rows by: each target's nearest candidates, and how crowded it is around these.

Two representations give the same three things. An encoder's vectors are there on the main process alone, once for the
same rows. Gradient features belong to the model's state: they are computed anew at each selection, by all ranks, and
stream by from disk; only those of the candidates that some target lists are held.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflex.errors import DataError, SelectionError
from dataflex.gradients.reliability import Reliability
from dataflex.gradients.similarity import Blocks, Influence, influences, normalized_rows, unusual_rows
from dataflex.retrieval.embeddings.base import Encoder
from dataflex.retrieval.embeddings.cache import embed_texts
from dataflex.retrieval.embeddings.text import TextTemplate
from dataflex.retrieval.neighbors.exact import ExactIndex
from dataflex.retrieval.transport import densities
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient import EVALUATION, TRAINING, GradientSides, split_answered, target_note
from dataflex.selectors.gradient.config import GradientConfig
from dataflex.selectors.gradient.planning import planned_features
from dataflex.selectors.plan import Plan
from dataflex.types import Sample
from dataflex.utils.progress import Stopwatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Neighborhood:
    """The targets' nearest candidates.

    Attributes:
        indices: ``(q, K)`` int64 candidates of each target, nearest first, ties by position.
        similarities: ``(q, K)`` float64 their cosines, falling.
        density: ``(q, K)`` float64 kernel density of each among all that are listed.
        closeness: ``(n,)`` float64 cosine of each candidate to its nearest target; -inf for one without a direction.
        report: What the selection's report says about it.
    """

    indices: NDArray[np.int64]
    similarities: NDArray[np.float64]
    density: NDArray[np.float64]
    closeness: NDArray[np.float64]
    report: dict[str, Any] = field(default_factory=dict)


def by_embedding(
    context: SelectionContext,
    encoder: Encoder,
    templates: tuple[str | None, str | None],
    folder: Path,
    widths: tuple[int, int],
    sigma: float,
    watch: Stopwatch,
) -> Neighborhood:
    """By an encoder's vectors; for one process.

    Args:
        context: The selection's context.
        encoder: Makes the vectors.
        templates: Texts of candidates and of targets.
        folder: Of the embeddings.
        widths: max_K and kde_K.
        sigma: Of the density's kernel.
        watch: Counts the seconds.
    """
    assert context.eval_dataset is not None
    with watch.phase("embedding"):
        texts = _texts("training", context.train_dataset.samples, templates[0])
        candidates = embed_texts(texts, encoder, folder, description="embedding candidates")
        texts = _texts("evaluation", context.eval_dataset.samples, templates[1])
        targets = embed_texts(texts, encoder, folder, description="embedding targets")
    vectors, queries = candidates.vectors[candidates.place], targets.vectors[targets.place]
    with watch.phase("neighbors"):
        found = ExactIndex(vectors).search(queries, widths[0])
        closeness = ExactIndex(queries).search(vectors, 1).similarities[:, 0]
    with watch.phase("density"):
        retrieved, place = np.unique(found.indices, return_inverse=True)
        density = densities(torch.from_numpy(vectors[retrieved]), widths[1], sigma)
    return Neighborhood(
        found.indices,
        found.similarities.astype(np.float64),
        density[place.reshape(found.indices.shape)],
        closeness.astype(np.float64),
    )


class GradientVectors(GradientSides[GradientConfig]):
    """The neighbourhood of the reference answers by gradient features: the transport compares with each by itself."""

    name: ClassVar[str] = "tsds"
    Config = GradientConfig

    def check(self, context: SelectionContext) -> None:
        """Check projection and optimizer, and that some target has an answer.

        Raises:
            SelectionError: There is none, or no optimizer.
        """
        self.check_sides(context, exact=False)
        if not split_answered(context)[0]:
            raise SelectionError(
                "tsds with representation: gradient compares with reference answers, and no evaluation sample has one",
                hint="add answers to eval_dataset, or use representation: embedding, which needs none",
            )

    def plan(self, context: SelectionContext) -> Plan:
        """Gradients of the candidates and of the reference answers."""
        projector = self.projector()
        candidates, lengths = self.training_gradients(context, projector), context.train_dataset.lengths
        answers, dataset = self.reference_gradients(context, projector)
        parts = [
            planned_features(self.config, TRAINING, candidates, lengths),
            planned_features(self.config, EVALUATION, answers, dataset.lengths),
        ]
        return Plan(parts, notes=[target_note(dataset.samples, "reference answers", "mean", "")])

    def neighborhood(
        self, context: SelectionContext, widths: tuple[int, int], sigma: float, watch: Stopwatch
    ) -> Neighborhood:
        """By gradient features, which the ranks share; the same on all of them.

        Args:
            context: The selection's context.
            widths: max_K and kde_K.
            sigma: Of the density's kernel.
            watch: Counts the seconds.

        Raises:
            SelectionError: No target has a usable gradient, or fewer than two candidates have one.
        """
        projector = self.projector()
        with watch.phase(EVALUATION):
            store, samples = self.reference_features(context, projector)
            queries, unusual = _usable(store.load(), samples)
            reliability = self.reliability(store.blocks(), [None] * len(samples), "mean", unusual.rows)
        if context.ranks.is_main:
            self.say_reliability(reliability)
        with watch.phase(TRAINING):
            train = self.training_features(context, projector)
            not_finite, zero = unusual_rows(train.blocks())
        usable = len(context.train_dataset) - len(not_finite) - len(zero)
        with watch.phase("neighbors"):
            blocks = ((start, values) for start, values, _, _ in influences([Influence(train.blocks(), queries)]))
            listed, cosines, closeness = nearest(blocks, min(widths[0], usable), len(context.train_dataset))
        with watch.phase("density"):
            retrieved, place = np.unique(listed, return_inverse=True)
            held = _unit_rows(train.blocks(), retrieved, next(context.model.parameters()).device)
            density = densities(held, widths[1], sigma, context.ranks)
        context.ranks.barrier()  # all have read what is removed now
        if context.ranks.is_main:
            self.prune(context)
        report = _report(context, unusual, (not_finite, zero), reliability)
        return Neighborhood(listed, cosines, density[place.reshape(listed.shape)], closeness, report)


def nearest(
    blocks: Blocks, width: int, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Each target's nearest candidates, while cosines stream by.

    Args:
        blocks: ``(first row, (rows, q) float64 cosines)`` in order, -inf for rows without a direction.
        width: Candidates to list for each target, K.
        count: n.

    Returns:
        ``(q, K)`` positions, nearest first, ties by position; ``(q, K)`` their cosines; ``(n,)`` the largest cosine of
        each candidate.

    Raises:
        SelectionError: Fewer than two candidates have a direction.
    """
    if width < 2:
        raise SelectionError(f"tsds needs at least 2 candidates with a usable gradient, got {width}")
    closeness = np.full(count, -np.inf)
    values: NDArray[np.float64] = np.empty((0, 0))
    places: NDArray[np.int64] = np.empty((0, 0), dtype=np.int64)
    for start, block in blocks:
        found = block.numpy().T  # (q, rows)
        closeness[start : start + found.shape[1]] = found.max(axis=0)
        rows = np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)
        values = found if not values.size else np.concatenate([values, found], axis=1)
        places = rows if not places.size else np.concatenate([places, rows], axis=1)
        # Stable: of equal values the earlier position, which stands further left, stays in front.
        kept = np.argsort(-values, axis=1, kind="stable")[:, :width]
        values, places = np.take_along_axis(values, kept, axis=1), np.take_along_axis(places, kept, axis=1)
    return places, values, closeness


@dataclass(frozen=True)
class _Unusual:
    """Targets that are left out: how many there were, and which rows have what against them."""

    total: int
    not_finite: list[int]
    zero: list[int]
    ids: dict[str, list[str]]

    @property
    def rows(self) -> set[int]:
        return {*self.not_finite, *self.zero}


def _usable(features: Tensor, samples: Sequence[Sample]) -> tuple[Tensor, _Unusual]:
    """Unit features ``(q, k)`` float64 of the targets that have a direction.

    Raises:
        SelectionError: None has.
    """
    not_finite, zero = unusual_rows([(0, features)])
    ids = {"not_finite": [samples[row].id for row in not_finite], "zero": [samples[row].id for row in zero]}
    unusual = _Unusual(len(samples), not_finite, zero, ids)
    kept = [row for row in range(len(samples)) if row not in unusual.rows]
    if not kept:
        raise SelectionError("no evaluation sample has a gradient to compare with: all are zero or not finite")
    if unusual.rows:
        logger.warning("%d evaluation samples have no usable gradient and are left out: %s", len(unusual.rows), ids)
    return normalized_rows(features[kept]), unusual


def _unit_rows(blocks: Iterable[tuple[int, Tensor]], rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Unit features ``(m, k)`` float32 of some rows (rising), on a device."""
    found = []
    for start, features in blocks:
        first, last = np.searchsorted(rows, [start, start + len(features)])
        if first < last:
            found.append(normalized_rows(features[rows[first:last] - start]).float().to(device))
    return torch.cat(found)


def _report(
    context: SelectionContext, unusual: _Unusual, candidates: tuple[list[int], list[int]], reliability: Reliability
) -> dict[str, Any]:
    not_finite, zero = (len(rows) for rows in candidates)
    total = len(context.eval_dataset or ())
    return {
        "reliability": reliability.facts(),
        "targets": {"total": total, "answered": unusual.total, **unusual.ids},
        "candidates": {"total": len(context.train_dataset), "not_finite": not_finite, "zero": zero},
        "left_out": {
            "targets without an answer": total - unusual.total,
            "targets with a gradient that is zero or not finite": len(unusual.rows),
            "candidates with a gradient that is not finite": not_finite,
            "candidates with a gradient of zero": zero,
        },
    }


def _texts(what: str, samples: Sequence[Sample], template: str | None) -> list[str]:
    """The samples' texts.

    Raises:
        DataError: One of them is empty.
    """
    rendered = TextTemplate(template)
    texts = [rendered.render(sample) for sample in samples]
    empty = [sample.id for sample, text in zip(samples, texts, strict=True) if not text]
    if empty:
        raise DataError(
            f"{len(empty)} {what} samples have no text to embed: {', '.join(empty[:5])}",
            hint="remove these rows, or name other parts of them in text_template",
        )
    return texts
