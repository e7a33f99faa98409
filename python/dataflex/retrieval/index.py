"""The offline step of NEAR: for each query its nearest candidates in the space of an encoder.

Both sides are rendered to text, embedded and scaled to length 1; the neighbours of a query are the candidates with
the largest cosine. Equal texts are embedded and searched once: a candidate's duplicates follow it in the order of
their rows, or stay out. Candidates without text have no direction and are left out; a query without text is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from dataflex.config import locate
from dataflex.config.near import NearConfig
from dataflex.data.sources import Spec, load_samples
from dataflex.errors import ConfigError, DataError
from dataflex.plugins.configurable import validation_lines
from dataflex.retrieval.embeddings.base import Encoder
from dataflex.retrieval.embeddings.cache import Embedded, embed_texts
from dataflex.retrieval.embeddings.encoders import open_encoder
from dataflex.retrieval.embeddings.text import TextTemplate
from dataflex.retrieval.matrix import (
    NearMatrix,
    dataset_facts,
    rows_path,
    sample_digests,
    sidecar_path,
    similarities_path,
)
from dataflex.retrieval.neighbors.base import NeighborIndex, Neighbors
from dataflex.retrieval.neighbors.choose import IndexSettings, choose_index
from dataflex.types import Sample
from dataflex.utils.progress import Stopwatch, progress_bar
from dataflex.version import __version__

logger = logging.getLogger(__name__)

SEARCH_ROWS = 512
"""Queries between two moves of the progress bar."""
IN_MEMORY = "rows in memory"


class NearIndex:
    """Finds the nearest candidates of each query and writes them where the ``near`` selector reads them.

    Args:
        candidate_path: The rows to choose from, which is the training data: a file, hub id or name in
            ``dataset_info.json``, several of them, a list of rows, or a ``datasets.Dataset``.
        query_path: The target rows, likewise.
        encoder: Turns texts into vectors; None opens the model that ``embed_model`` names.
        **params: The other keys of :class:`dataflex.config.near.NearConfig`: ``embed_model``, ``embed_method``,
            ``batch_size``, ``save_indices_path``, ``max_K``, ``cache_dir``, ...

    Raises:
        ConfigError: Every wrong or unknown parameter, all at once.

    Example:
        >>> index = NearIndex("train.jsonl", "target.jsonl", embed_model="Qwen/Qwen3-Embedding-0.6B", max_K=100)
        >>> index.build().neighbors.shape        # and top_indices.npy is there for component_name: near
        (16, 100)
    """

    def __init__(
        self, candidate_path: Spec, query_path: Spec, *, encoder: Encoder | None = None, **params: Any
    ) -> None:
        params = {key: str(value) if isinstance(value, Path) else value for key, value in params.items()}
        if encoder is not None:
            params = {"embed_model": encoder.method, **params}
        try:
            config = NearConfig(candidate_path=_names(candidate_path), query_path=_names(query_path), **params)
        except ValidationError as error:
            raise ConfigError(validation_lines(error, NearConfig)) from error
        self._setup(config, candidate_path, query_path, encoder)

    @classmethod
    def from_config(cls, config: NearConfig) -> NearIndex:
        """The index that a configuration describes.

        Args:
            config: What ``load_near_config`` read.
        """
        index = cls.__new__(cls)
        index._setup(config, config.candidate_path, config.query_path, None)
        return index

    def _setup(self, config: NearConfig, candidates: Spec, queries: Spec, encoder: Encoder | None) -> None:
        self.config = config
        self.path = Path(config.save_indices_path)
        self._candidates, self._queries = candidates, queries
        self._given_encoder = encoder

    @property
    def cache_dir(self) -> Path:
        """Where embeddings and graphs are kept."""
        return Path(self.config.cache_dir) if self.config.cache_dir else self.path.parent / "near_cache"

    def build(self) -> NearMatrix:
        """Load, embed, search, write; what an interrupted run embedded is used again.

        Raises:
            ConfigError: ``save_indices_path`` is a folder.
            DataflexError: Whatever else is wrong with packages, data, sizes, model or files. Nothing is embedded before
                packages, data and sizes are known to be right.
        """
        if self.path.is_dir():
            raise ConfigError(f"save_indices_path {self.path} is a folder, expected a file")
        encoder = self._given_encoder or open_encoder(self._model(), self.config)
        try:
            matrix = self._build(encoder)
        finally:
            if self._given_encoder is None:
                encoder.close()
        matrix.save(self.path)
        beside = (similarities_path(self.path), rows_path(self.path), sidecar_path(self.path))
        logger.info("wrote %s; beside it %s", self.path, ", ".join(file.name for file in beside))
        return matrix

    def _build(self, encoder: Encoder) -> NearMatrix:
        config, watch = self.config, Stopwatch()
        with watch.phase("data"):
            candidates, queries = self._candidate_rows(), self._query_rows()
        self._check_sizes(candidates)
        with watch.phase("embedding"):
            vectors = embed_texts(candidates.texts, encoder, self.cache_dir, description="embedding candidates")
            targets = embed_texts(queries.texts, encoder, self.cache_dir, description="embedding queries")
        with watch.phase("search"):
            found, index = self._search(vectors, targets)
        neighbors, similarities = expand(found, candidates.groups(vectors.place), config.max_K)
        neighbors, similarities = neighbors[targets.place], similarities[targets.place]
        samples = candidates.all_samples
        sides = (("candidates", vectors), ("queries", targets))
        facts = {
            "metric": "cosine",
            "queries": dataset_facts(queries.source, queries.all_samples),
            "candidates": {**dataset_facts(candidates.source, samples), **candidates.left_out()},
            "max_K": config.max_K,
            "encoder": {"name": config.embed_model, **encoder.identity(), "dim": vectors.vectors.shape[1]},
            "text": {"template": config.text_template, "query_template": config.query_template},
            "seen": {name: part.coverage.to_json() for name, part in sides if part.coverage is not None},
            "similarity": {"first": _mean(similarities[:, 0]), "last": _mean(similarities[:, -1])},
            "index": index.describe(),
            "seconds": watch.seconds,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
        }
        rows = np.array([sample.row for sample in samples], dtype=np.int64)
        return NearMatrix(neighbors, rows, sample_digests(samples), facts, similarities)

    def _candidate_rows(self) -> _Rows:
        config = self.config
        samples = self._load(self._candidates, config.candidate_split, config.max_samples)
        rows = _Rows.rendered(_source(config.candidate_path), samples, TextTemplate(config.text_template))
        if rows.empty:
            logger.warning("%s have no text and are left out of the candidates", _shown(rows.empty))
        if rows.repeats and config.duplicates == "keep":
            logger.warning(
                "%s repeat the text of another candidate; each takes a place among the neighbours of its own "
                "(duplicates: drop leaves all but the first out)",
                _shown(rows.repeats),
            )
        return rows.without_repeats() if config.duplicates == "drop" else rows

    def _query_rows(self) -> _Rows:
        config = self.config
        samples = self._load(self._queries, config.query_split, None)
        template = config.query_template if config.query_template is not None else config.text_template
        rows = _Rows.rendered(_source(config.query_path), samples, TextTemplate(template))
        if rows.empty:
            raise DataError(
                f"{_shown(rows.empty)} of the queries have no text, and so no neighbours",
                hint="remove these rows, or name other columns in query_template",
            )
        return rows

    def _check_sizes(self, candidates: _Rows) -> None:
        """Raise ConfigError if there are not max_K candidates."""
        count, wanted = len(candidates.samples), self.config.max_K
        if wanted <= count:
            return
        left_out = [f"{len(rows)} {what}" for what, rows in candidates.left_out().items() if rows]
        less = f" ({', '.join(left_out)} left out)" if left_out else ""
        text = f"max_K: {wanted} neighbours of each query are asked for, there are {count} candidates{less}"
        raise ConfigError(self.config.origin.at(text, "max_K"), hint=f"max_K: {count} or less")

    def _search(self, candidates: Embedded, queries: Embedded) -> tuple[Neighbors, NeighborIndex]:
        """Nearest distinct candidates of each distinct query, ``(u, K)`` rows of ``candidates.vectors``."""
        config = self.config
        k = min(config.max_K, len(candidates.vectors))
        settings = IndexSettings(
            kind=config.index,
            min_recall=config.min_recall,
            recall_queries=config.recall_queries,
            m=config.hnsw_m,
            ef_construction=config.hnsw_ef_construction,
            seed=config.seed,
            device="cuda" if torch.cuda.is_available() else "cpu",
        )
        name = f"{candidates.digest[:16]}-m{settings.m}-ef{settings.ef_construction}-seed{settings.seed}.hnsw"
        index = choose_index(candidates.vectors, queries.vectors, k, settings, path=self.cache_dir / "index" / name)
        parts: list[Neighbors] = []
        with progress_bar(len(queries.vectors), f"searching ({index.kind})", unit="query") as bar:
            for start in range(0, len(queries.vectors), SEARCH_ROWS):
                block = queries.vectors[start : start + SEARCH_ROWS]
                parts.append(index.search(block, k))
                bar.update(len(block))
        found = Neighbors(
            np.concatenate([part.indices for part in parts]), np.concatenate([part.similarities for part in parts])
        )
        return found, index

    def _load(self, spec: Spec, split: str, max_samples: int | None) -> list[Sample]:
        folder = self.config.origin.folder
        return load_samples(
            spec,
            dataset_dir=locate(self.config.dataset_dir, folder),
            split=split,
            max_samples=max_samples,
            base_dirs=(folder,) if folder else (),
        )

    def _model(self) -> str:
        return locate(self.config.embed_model, self.config.origin.folder)


@dataclass(frozen=True)
class Groups:
    """Row numbers of the candidates of each distinct text, as one array cut into pieces.

    Attributes:
        rows: ``(n,)`` int64 row numbers, grouped by text, rising inside a group.
        start: ``(u,)`` int64 where each group starts.
        size: ``(u,)`` int64 how many rows it has.
    """

    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]


def expand(found: Neighbors, groups: Groups, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The first k rows of the groups that ``found`` names, group by group.

    Args:
        found: ``(q, g)`` numbers of distinct groups that hold at least k rows together, with their cosines.
        groups: The rows of each group.
        k: Rows of each query.

    Returns:
        ``(q, k)`` int64 row numbers and their ``(q, k)`` float32 cosines.
    """
    expanded = np.empty((len(found.indices), k), dtype=np.int64)
    similarities = np.empty(expanded.shape, dtype=np.float32)
    for query, numbers in enumerate(found.indices):
        sizes = groups.size[numbers]
        before = np.cumsum(sizes) - sizes
        taken = np.clip(k - before, 0, sizes)  # the last group may be cut
        offsets = np.arange(k) - np.repeat(before, taken)
        expanded[query] = groups.rows[np.repeat(groups.start[numbers], taken) + offsets]
        similarities[query] = np.repeat(found.similarities[query], taken)
    return expanded, similarities


@dataclass(frozen=True)
class _Rows:
    """One side of the search.

    Attributes:
        source: What to call it.
        all_samples: Every row that was read.
        samples: Those that take part.
        texts: Their texts.
        empty: Row numbers without text.
        repeats: Row numbers whose text an earlier row has.
    """

    source: str
    all_samples: list[Sample]
    samples: list[Sample]
    texts: list[str]
    empty: list[int]
    repeats: list[int]
    dropped: bool = False

    @classmethod
    def rendered(cls, source: str, samples: list[Sample], template: TextTemplate) -> _Rows:
        """Render every sample; those without text take no part."""
        pairs = [(sample, template.render(sample)) for sample in samples]
        empty = [sample.row for sample, text in pairs if not text]
        used = [(sample, text) for sample, text in pairs if text]
        first = {text: sample.row for sample, text in reversed(used)}
        repeats = [sample.row for sample, text in used if first[text] != sample.row]
        return cls(source, samples, [sample for sample, _ in used], [text for _, text in used], empty, repeats)

    def without_repeats(self) -> _Rows:
        """The first row of each text alone."""
        gone = set(self.repeats)
        kept = [pair for pair in zip(self.samples, self.texts, strict=True) if pair[0].row not in gone]
        samples, texts = [sample for sample, _ in kept], [text for _, text in kept]
        return replace(self, samples=samples, texts=texts, dropped=True)

    def left_out(self) -> dict[str, list[int]]:
        """Row numbers of what takes no part, by reason."""
        return {"empty": self.empty, "duplicates": self.repeats if self.dropped else []}

    def groups(self, place: NDArray[np.int64]) -> Groups:
        """Row numbers by text; ``place`` is the number of each row's text."""
        rows = np.array([sample.row for sample in self.samples], dtype=np.int64)
        order = np.lexsort((rows, place))
        size = np.bincount(place)
        return Groups(rows[order], np.cumsum(size) - size, size)


def _mean(values: NDArray[np.float32]) -> float:
    return round(float(values.mean(dtype=np.float64)), 6)


def _names(spec: Spec) -> list[str]:
    """What a configuration can say about rows that may be in memory."""
    if isinstance(spec, str | Path):
        return [str(spec)]
    names = [str(part) for part in spec if isinstance(part, str | Path)] if isinstance(spec, Sequence) else []
    return names or [IN_MEMORY]


def _source(names: Sequence[str]) -> str:
    return ", ".join(names)


def _shown(rows: Sequence[int]) -> str:
    more = ", ..." if len(rows) > 5 else ""
    return f"{len(rows)} rows (row numbers {', '.join(map(str, rows[:5]))}{more})"


def _versions() -> dict[str, str]:
    found = {"dataflex": __version__}
    for package in ("torch", "sentence-transformers", "vllm", "hnswlib"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
