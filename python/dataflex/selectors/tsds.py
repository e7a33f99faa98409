"""TSDS: a draw that looks like the target, with near-duplicates counted as one.

Training and evaluation samples are embedded once; optimal transport from the one set to the other gives each candidate
a probability (:mod:`dataflex.retrieval.transport`, arXiv 2410.11303), and every update draws its samples by them,
without replacement. The model in training plays no part.

Deviations from the authors' code, which draws with replacement: a selection has no repeats; where fewer candidates have
a probability than are asked for, all of them are taken and the rest is topped up with the candidates nearest to any
target sample.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex.config.near import EncoderFields
from dataflex.errors import DataError, SelectionError
from dataflex.retrieval.embeddings.base import Encoder
from dataflex.retrieval.embeddings.cache import embed_texts
from dataflex.retrieval.embeddings.encoders import open_encoder
from dataflex.retrieval.embeddings.text import TextTemplate
from dataflex.retrieval.neighbors.exact import ExactIndex
from dataflex.retrieval.transport import densities, distances, transport
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.selectors.draw import weighted_draw
from dataflex.types import Sample
from dataflex.utils.progress import Stopwatch

logger = logging.getLogger(__name__)

MAX_K, KDE_K = 5000, 1000
"""The authors' numbers; left alone, they also never take more than a tenth of the candidates."""


class TsdsConfig(SelectorConfig, EncoderFields):
    """Parameters of TSDS."""

    embed_model: str | None = Field(None, min_length=1, description="encoder: a local folder or a hub id")
    encoder: Encoder | None = Field(None, description="encoder made in Python, in place of embed_model")
    cache_dir: Path | None = Field(None, description="folder of embeddings; null: inside output_dir")
    max_K: int | None = Field(  # noqa: N815 - the authors' name
        None, ge=2, description="neighbours of each target sample; null: 5000, at most a tenth of the candidates"
    )
    kde_K: int | None = Field(  # noqa: N815 - the authors' name
        None, ge=1, description="neighbours that count for a density; null: 1000, at most a tenth of the candidates"
    )
    sigma: float = Field(
        0.75, ge=0, description="distance below which two samples count as near-duplicates; 0: none do"
    )
    alpha: float = Field(0.6, ge=0, le=1, description="closeness to the target (1) against diversity (0)")
    C: float = Field(5.0, gt=0, description="scale of the distances in that trade-off")


@dataclass(frozen=True)
class _Offline:
    """What is computed once a run: probabilities, cosine to the nearest target sample (both ``(n,)``), and facts."""

    probabilities: NDArray[np.float64]
    closeness: NDArray[np.float32]
    report: dict[str, Any]


class TsdsSelector(Selector[TsdsConfig]):
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
        self._offline: _Offline | None = None

    def check(self, context: SelectionContext) -> None:
        """See that sizes fit and that the encoder can be loaded.

        Raises:
            SelectionError: max_K or kde_K do not fit the training set, or there is no encoder.
            ModelError: The encoder cannot be loaded.
        """
        self._widths(len(context.train_dataset))
        encoder = self._encoder()
        try:
            encoder.check()
        finally:
            self._free(encoder)

    def select(self, context: SelectionContext) -> Selection:
        """Draw ``num_samples`` candidates by their probabilities, seeded by (seed of the run, round)."""
        watch = Stopwatch()
        # The main process decides: embeddings on other hardware could differ in the last bits.
        chosen = context.ranks.on_main(lambda: self._choose(context, watch))
        scores = np.zeros(len(context.train_dataset))
        scores[chosen["support"]] = chosen["probabilities"]
        indices = np.array(chosen["indices"], dtype=np.int64)
        return Selection(indices, scores, self.name, context.step, context.round, chosen["report"])

    def _choose(self, context: SelectionContext, watch: Stopwatch) -> dict[str, Any]:
        """Positions of the round's samples and the probabilities that are not zero, JSON-able."""
        if self._offline is None:
            self._offline = self._prepare(context, watch)
        offline, count = self._offline, context.num_samples
        if count > len(offline.probabilities):
            raise SelectionError(f"{count} samples are to be selected from {len(offline.probabilities)} candidates")
        support = np.flatnonzero(offline.probabilities)
        stream = np.random.default_rng([context.seed, context.round])
        drawn = weighted_draw(offline.probabilities, min(count, len(support)), stream)
        missing = count - len(drawn)
        if missing:
            logger.warning(
                "tsds gives %d candidates a probability and %d are to be selected: %d more are taken by their "
                "distance to the nearest target sample (a smaller alpha spreads the probability)",
                len(support),
                count,
                missing,
            )
        top_up = nearest_others(offline.closeness, support, missing)
        return {
            "indices": [*drawn.tolist(), *top_up.tolist()],
            "support": support.tolist(),
            "probabilities": offline.probabilities[support].tolist(),
            "report": {**offline.report, "topped_up": missing, "seconds": watch.seconds},
        }

    def _prepare(self, context: SelectionContext, watch: Stopwatch) -> _Offline:
        assert context.eval_dataset is not None
        max_k, kde_k = self._widths(len(context.train_dataset))
        config, encoder = self.config, self._encoder()
        cache = config.cache_dir or context.output_dir
        query_template = config.query_template if config.query_template is not None else config.text_template
        try:
            with watch.phase("embedding"):
                texts = _texts("training", context.train_dataset.samples, config.text_template)
                candidates = embed_texts(texts, encoder, cache, description="embedding candidates")
                texts = _texts("evaluation", context.eval_dataset.samples, query_template)
                targets = embed_texts(texts, encoder, cache, description="embedding targets")
        finally:
            self._free(encoder)
        vectors, queries = candidates.vectors[candidates.place], targets.vectors[targets.place]
        with watch.phase("neighbors"):
            found = ExactIndex(vectors).search(queries, max_k)
            closeness = ExactIndex(queries).search(vectors, 1).similarities[:, 0]
        with watch.phase("transport"):
            retrieved, place = np.unique(found.indices, return_inverse=True)
            density = densities(vectors[retrieved], kde_k, config.sigma)
            result = transport(
                found.indices,
                distances(found.similarities),
                density[place.reshape(found.indices.shape)],
                len(vectors),
                alpha=config.alpha,
                scale=config.C,
            )
        report = {
            "max_K": max_k,
            "kde_K": kde_k,
            "support": int(np.count_nonzero(result.probabilities)),
            "spread": result.spread,
            "neighbours_used": {"mean": float(result.used.mean()), "max": int(result.used.max())},
            "near_duplicates": float(density.mean() - 1),
            "neighbours_exhausted": not result.stopped,
        }
        if not result.stopped:
            logger.warning("tsds used all max_K = %d neighbours: a larger max_K would spread further", max_k)
        return _Offline(result.probabilities, closeness, report)

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
                "tsds needs an encoder", hint="embed_model: a folder or a hub id of an embedding model"
            )
        return open_encoder(self.config.embed_model, self.config)

    def _free(self, encoder: Encoder) -> None:
        if encoder is not self.config.encoder:
            encoder.close()


def nearest_others(closeness: NDArray[np.float32], excluded: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The ``count`` closest positions that are not excluded, ties by position."""
    order = np.argsort(-closeness, kind="stable")
    return order[~np.isin(order, excluded)][:count].astype(np.int64)


def _texts(what: str, samples: list[Sample], template: str | None) -> list[str]:
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
