"""Embeddings on disk, found again by what they were made of.

Texts are made unique and sorted by length, longest first (ties by the text itself): batches hold texts of one length,
memory runs out at the start or never, and the same set of texts has the same rows whatever the order of the dataset.
The rows go shard by shard to a :class:`dataflex.gradients.store.FeatureStore` in a folder that is named after encoder
and texts; an interrupted run goes on with the first shard that is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.errors import ModelError
from dataflex.gradients.layout import consecutive
from dataflex.gradients.store import MANIFEST, FeatureStore
from dataflex.retrieval.embeddings.base import Encoder
from dataflex.retrieval.embeddings.coverage import Coverage
from dataflex.utils.files import write_json
from dataflex.utils.progress import progress_bar

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Grows when the same encoder and texts give other rows."""
COVERAGE = "coverage.json"
SHARD_ROWS = 1024
"""Texts between two writes: seconds to a minute of work on the devices that we know."""


@dataclass(frozen=True)
class Embedded:
    """Texts as unit vectors.

    Attributes:
        vectors: ``(u, d)`` float32 of the distinct texts, rows of length 1.
        place: ``(n,)`` int64: row of ``vectors`` of each text.
        digest: SHA-256 of what the vectors were made of.
        coverage: What the encoder sees of the distinct texts; None if it cannot say.
    """

    vectors: NDArray[np.float32]
    place: NDArray[np.int64]
    digest: str
    coverage: Coverage | None = None


def embed_texts(
    texts: Sequence[str],
    encoder: Encoder,
    cache_dir: Path,
    *,
    description: str = "embedding",
    shard_rows: int = SHARD_ROWS,
) -> Embedded:
    """Embed n texts, or read them from the cache; the encoder loads its model only if something is missing.

    Args:
        texts: n texts, none of them empty.
        encoder: Turns them into vectors.
        cache_dir: Folder of the cache; each (encoder, texts) has a folder below it.
        description: For the progress bar.
        shard_rows: Texts between two writes to the disk.

    Raises:
        ModelError: The encoder fails, or a vector is zero or not finite.
    """
    distinct, place = sorted_unique(texts)
    facts = {"version": FORMAT_VERSION, "encoder": encoder.identity(), "texts": _digest(distinct)}
    digest = _digest([json.dumps(facts, sort_keys=True)])
    folder = cache_dir / "embeddings" / digest[:16]
    store = FeatureStore(folder, facts, consecutive(len(distinct), shard_rows), _stored_dim(folder) or encoder.dim)
    seen = _coverage(folder, encoder, distinct)
    for warning in seen.warnings() if seen is not None else ():
        logger.warning("%s: %s", description, warning)
    missing = store.missing()
    todo = sum(stop - start for start, stop in missing)
    if not missing:
        logger.info("%s: using %d vectors in %s", description, len(distinct), folder)
    # Bar units are characters: texts come longest first, so that texts a second would rise towards the end.
    lengths = np.array([len(text) for text in distinct])
    done = int(lengths.sum()) - sum(int(lengths[start:stop].sum()) for start, stop in missing)
    with progress_bar(int(lengths.sum()), description, unit="char", initial=done, disable=not todo) as bar:
        for start, stop in missing:
            store.write(start, torch.from_numpy(_unit_rows(encoder.encode(distinct[start:stop]), distinct[start:stop])))
            bar.update(int(lengths[start:stop].sum()))
    vectors = np.empty((len(distinct), store.dim), dtype=np.float32)
    for start, rows in store.blocks():
        vectors[start : start + len(rows)] = rows.numpy()
    return Embedded(vectors, place, digest, seen)


def sorted_unique(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts, longest first, and for each text its place among them."""
    distinct = sorted(set(texts), key=lambda text: (-len(text), text))
    places = {text: place for place, text in enumerate(distinct)}
    return distinct, np.fromiter((places[text] for text in texts), dtype=np.int64, count=len(texts))


def _unit_rows(vectors: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
    """Rows of length 1; ``(n, d)`` in and out."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    broken = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(broken):
        shown = ", ".join(repr(texts[row][:60]) for row in broken[:3])
        raise ModelError(
            f"the encoder gave {len(broken)} of {len(texts)} texts a vector that is zero or not finite: {shown}",
            hint="embed_precision: fp32 rules out an overflow",
        )
    return np.asarray(wide / norms[:, None], dtype=np.float32)


def _coverage(folder: Path, encoder: Encoder, distinct: Sequence[str]) -> Coverage | None:
    """Counted before anything is embedded, and kept beside the vectors: a full cache needs no model."""
    file = folder / COVERAGE
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return None if kept is None else Coverage(**kept)
    except (OSError, ValueError, TypeError):  # not there, or torn: it is counted again
        pass
    found = encoder.coverage(distinct)
    write_json(file, None if found is None else found.to_json())
    return found


def _stored_dim(folder: Path) -> int | None:
    """Dimension of a store that exists, so that a full cache needs no model."""
    try:
        dim = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["dim"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dim if isinstance(dim, int) and dim > 0 else None


def _digest(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
