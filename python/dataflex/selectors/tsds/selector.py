"""TSDS: a draw that looks like the target, with near-duplicates counted as one.

Optimal transport from the evaluation samples to the candidates gives each candidate a probability
(:mod:`dataflex.retrieval.transport`, arXiv 2410.11303), and every update draws its samples by them, without
replacement. Samples are compared by an encoder's vectors, which the model in training plays no part in, or by their
projected gradients in its current state (:mod:`dataflex.selectors.tsds.vectors`).

Deviations from the authors' code, which draws with replacement: a selection has no repeats; where fewer candidates have
a probability than are asked for, all of them are taken and the rest is topped up with the candidates nearest to any
target sample.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import SelectionError
from dataflex.retrieval.embeddings.base import Encoder
from dataflex.retrieval.embeddings.encoders import open_encoder
from dataflex.retrieval.transport import distances, transport
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.selectors.candidates import CandidateSelector
from dataflex.selectors.draw import weighted_draw
from dataflex.selectors.plan import Plan
from dataflex.selectors.tsds.config import GRADIENT_KEYS, TsdsConfig
from dataflex.selectors.tsds.vectors import GradientVectors, Neighborhood, by_embedding
from dataflex.utils.progress import Stopwatch

logger = logging.getLogger(__name__)

MAX_K, KDE_K = 5000, 1000
"""The authors' numbers; left alone, they also never take more than a tenth of the candidates."""


@dataclass(frozen=True)
class _Prepared:
    """Probabilities, cosine to the nearest target sample (both ``(n,)``), and facts; ``data`` is whose they are."""

    data: str
    probabilities: NDArray[np.float64]
    closeness: NDArray[np.float64]
    report: dict[str, Any]


class TsdsSelector(CandidateSelector[TsdsConfig]):
    """Draws samples with the target's distribution. A candidate's score is its probability.

    Source: Liu, Karbasi and Rekatsinas, TSDS: Data Selection for Task-Specific Model Finetuning, arXiv 2410.11303.

    Example:
        >>> selector = TsdsSelector(embed_model="Qwen/Qwen3-Embedding-0.6B", alpha=0.6)
    """

    name: ClassVar[str] = "tsds"
    Config = TsdsConfig
    needs_eval_dataset: ClassVar[bool] = True

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._offline: _Prepared | None = None

    @property
    def reads_text(self) -> tuple[str, ...]:
        """What an encoder embeds, if there is one."""
        own = ("train_dataset", "eval_dataset") if self.config.representation == "embedding" else ()
        return (*super().reads_text, *own)

    @cached_property
    def gradients(self) -> GradientVectors | None:
        """What computes gradient features; None where rows are compared by an encoder's vectors."""
        config = self.config
        if config.representation == "embedding":
            return None
        return GradientVectors(cache_dir=config.cache_dir, **{key: getattr(config, key) for key in GRADIENT_KEYS})

    def check(self, context: SelectionContext) -> None:
        """See that sizes fit, and that the encoder can be loaded or gradients be taken.

        Raises:
            SelectionError: max_K or kde_K do not fit the candidates, there is no encoder, or no gradient to take.
            ModelError: The encoder cannot be loaded.
        """
        super().check(context)
        self._widths(self.left(context))
        if self.gradients is not None:
            self.gradients.check(context)
            return
        encoder = self._encoder()
        try:
            encoder.check()
        finally:
            self._free(encoder)

    def plan(self, context: SelectionContext) -> Plan:
        """Gradients of both sides, after what the prefilter does; embeddings are made once and not predicted."""
        left, first = self.planned_among(context)
        if self.gradients is None:
            return first
        own = self.gradients.plan(left)
        return Plan([*first.parts, *own.parts], first.counts, [*first.notes, *own.notes])

    def work_dir(self, context: SelectionContext) -> Path:
        """Folder of everything that rounds leave behind.

        Args:
            context: The selection's context.
        """
        return self.config.cache_dir or context.output_dir

    def select_among(self, context: SelectionContext) -> Selection:
        """Draw ``num_samples`` candidates by their probabilities, seeded by (seed of the run, round)."""
        watch = Stopwatch()
        found: Neighborhood | None = None
        if self.gradients is not None:
            widths = self._widths(len(context.train_dataset))
            found = self.gradients.neighborhood(context, widths, self.config.sigma, watch)
        # The main process decides: vectors on other hardware could differ in the last bits.
        chosen = context.ranks.on_main(lambda: self._choose(context, found, watch))
        scores = np.zeros(len(context.train_dataset))
        scores[chosen["unusable"]] = -np.inf
        scores[chosen["support"]] = chosen["probabilities"]
        indices = np.array(chosen["indices"], dtype=np.int64)
        return Selection(indices, scores, self.name, context.step, context.round, chosen["report"])

    def _choose(self, context: SelectionContext, found: Neighborhood | None, watch: Stopwatch) -> dict[str, Any]:
        """Positions of the round's samples and the probabilities that are not zero, JSON-able."""
        prepared = self._embedded(context, watch) if found is None else self._transported(context, found, watch)
        count, usable = context.num_samples, int(np.sum(prepared.closeness > -np.inf))
        if count > usable:
            raise SelectionError(f"{count} samples are to be selected from {usable} candidates")
        support = np.flatnonzero(prepared.probabilities)
        stream = np.random.default_rng([context.seed, context.round])
        drawn = weighted_draw(prepared.probabilities, min(count, len(support)), stream)
        missing = count - len(drawn)
        if missing:
            logger.warning(
                "tsds gives %d candidates a probability and %d are to be selected: %d more are taken by their "
                "distance to the nearest target sample (a smaller alpha spreads the probability)",
                len(support),
                count,
                missing,
            )
        top_up = nearest_others(prepared.closeness, support, missing)
        return {
            "indices": [*drawn.tolist(), *top_up.tolist()],
            "support": support.tolist(),
            "probabilities": prepared.probabilities[support].tolist(),
            "unusable": np.flatnonzero(prepared.closeness == -np.inf).tolist(),
            "report": {**prepared.report, "topped_up": missing, "seconds": watch.seconds},
        }

    def _embedded(self, context: SelectionContext, watch: Stopwatch) -> _Prepared:
        """By an encoder's vectors, which stay the same for the same candidates."""
        if self._offline is not None and self._offline.data == context.train_dataset.fingerprint:
            return self._offline
        config, encoder = self.config, self._encoder()
        query_template = config.query_template if config.query_template is not None else config.text_template
        widths = self._widths(len(context.train_dataset))
        templates, folder = (config.text_template, query_template), self.work_dir(context)
        try:
            found = by_embedding(context, encoder, templates, folder, widths, config.sigma, watch)
        finally:
            self._free(encoder)
        self._offline = self._transported(context, found, watch)
        return self._offline

    def _transported(self, context: SelectionContext, found: Neighborhood, watch: Stopwatch) -> _Prepared:
        """The probabilities that optimal transport to a neighbourhood gives."""
        max_k, kde_k = self._widths(len(context.train_dataset))
        with watch.phase("transport"):
            result = transport(
                found.indices,
                distances(found.similarities),
                found.density,
                len(context.train_dataset),
                alpha=self.config.alpha,
                scale=self.config.C,
            )
        report = {
            **found.report,
            "score": "the probability with which the row is drawn; all rows' add up to 1",
            "representation": self.config.representation,
            "max_K": max_k,
            "kde_K": kde_k,
            "support": int(np.count_nonzero(result.probabilities)),
            "spread": result.spread,
            "neighbours_used": {"mean": float(result.used.mean()), "max": int(result.used.max())},
            "near_duplicates": _near_duplicates(found),
            "neighbours_exhausted": not result.stopped,
        }
        if not result.stopped:
            logger.warning("tsds used all max_K = %d neighbours: a larger max_K would spread further", max_k)
        return _Prepared(context.train_dataset.fingerprint, result.probabilities, found.closeness, report)

    def _widths(self, n: int) -> tuple[int, int]:
        """max_K and kde_K for n candidates.

        Raises:
            SelectionError: One that was asked for is larger than n.
        """
        wanted = {"max_K": (self.config.max_K, MAX_K), "kde_K": (self.config.kde_K, KDE_K)}
        widths = {}
        for key, (own, default) in wanted.items():
            if own is not None and own > n:
                raise SelectionError(f"{key} is {own}, there are {n} candidates", hint=f"{key}: {n} or less, or null")
            widths[key] = own if own is not None else min(default, max(2, n // 10))
        if n < 2:
            raise SelectionError(f"tsds needs at least 2 candidates, got {n}")
        return widths["max_K"], widths["kde_K"]

    def _encoder(self) -> Encoder:
        if self.config.encoder is not None:
            return self.config.encoder
        if self.config.embed_model is None:
            raise SelectionError(
                "tsds needs an encoder",
                hint="embed_model: a folder or a hub id of an embedding model; or representation: gradient",
            )
        return open_encoder(self.config.embed_model, self.config)

    def _free(self, encoder: Encoder) -> None:
        if encoder is not self.config.encoder:
            encoder.close()


def nearest_others(closeness: NDArray[np.float64], excluded: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The ``count`` closest positions that are not excluded, ties by position."""
    order = np.argsort(-closeness, kind="stable")
    return order[~np.isin(order, excluded)][:count].astype(np.int64)


def _near_duplicates(found: Neighborhood) -> float:
    """Mean density of the listed candidates beyond themselves, each counted once."""
    _, first = np.unique(found.indices, return_index=True)
    return float(found.density.flat[first].mean() - 1)
