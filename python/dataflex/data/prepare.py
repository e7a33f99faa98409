"""From rows to tokens: part by part, in one process or several, into memory or once into a cache that all read."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dataflex.data.cache import SMALL, CacheSettings, cache_name, default_folder
from dataflex.data.examples import ArrayRows
from dataflex.data.problems import Problems
from dataflex.data.row_store import RowStore, RowWriter, StoredPart
from dataflex.data.rows import Refused, unique_ids
from dataflex.data.sample_reader import Part, SampleReader
from dataflex.data.sample_text import NotStorableError
from dataflex.data.token_rows import TokenPart, joined
from dataflex.errors import DataError
from dataflex.utils.collector import seldom_collected
from dataflex.utils.files import atomic_directory
from dataflex.utils.lock import waiting_lock
from dataflex.utils.progress import progress_bar

if TYPE_CHECKING:
    from dataflex.data.templates import ChatTemplate
    from dataflex.types import Sample

logger = logging.getLogger(__name__)

Packed = TypeVar("Packed")
_THREADS = "TOKENIZERS_PARALLELISM"
_DEFAULT = CacheSettings()
_AHEAD = 3
"""Parts a process that wait to be tokenised or written."""


@dataclass
class _Done(Generic[Packed]):
    """What became of a part; the result is missing where rows cannot be read or rendered."""

    part: Part
    refused: Refused
    problems: Problems = field(default_factory=Problems)
    result: Packed | None = None


@dataclass(frozen=True)
class _Work:
    """What is tokenised, and how."""

    reader: SampleReader
    template: ChatTemplate
    cutoff_len: int

    def source(self, part: Part) -> str:
        """The name of a part's source."""
        return self.reader.sources[part.source].name

    def do(self, part: Part, pack: Callable[[list[Sample], TokenPart], Packed]) -> _Done[Packed]:
        """Read, convert, render and encode a part."""
        samples, refused = self.reader.read(part)
        done: _Done[Packed] = _Done(part, refused)
        if len(samples) == part.stop - part.start:
            encoded = self.template.encode_batch(samples, self.cutoff_len, done.problems)
            if not done.problems.count:
                done.result = pack(samples, TokenPart.of(encoded))
        return done


def tokenised_rows(
    reader: SampleReader,
    template: ChatTemplate,
    cutoff_len: int,
    settings: CacheSettings = _DEFAULT,
    *,
    name: str = "data",
) -> ArrayRows:
    """All samples tokenised; those without a label too.

    What the cache has is read. Otherwise the first process that comes makes it, and others on the machine wait for
    its lock, which is no collective: nothing times out, and if that process dies, the next takes over.

    Args:
        reader: The samples.
        template: Renders and encodes them.
        cutoff_len: Greatest number of tokens of one sample.
        settings: Where they are kept.
        name: How messages call the samples.

    Raises:
        DataError: Rows cannot be read or rendered; all of them are counted.
        DataflexError: The cache cannot be written.
    """
    folder = settings.folder
    if folder is None:
        folder = default_folder() if len(reader) >= SMALL else None
    key = None if folder is None else cache_name(reader, template, cutoff_len)
    if folder is not None and key is not None:
        try:
            return _cached(folder / "tokenized" / key, _Work(reader, template, cutoff_len), settings, name)
        except NotStorableError as error:
            logger.info("%s: tokenised data are not kept: a row has %s", name, error)
    return _in_memory(_Work(reader, template, cutoff_len))


def _cached(entry: Path, work: _Work, settings: CacheSettings, name: str) -> ArrayRows:
    # Of the processes of a machine one makes it again, as in LLaMA-Factory.
    overwrite = settings.overwrite and os.environ.get("LOCAL_RANK", "0") == "0"
    store = None if overwrite else _open(entry)
    if store is None:
        with waiting_lock(entry.with_suffix(".lock"), f"{name} is being tokenised"):
            store = None if overwrite else _open(entry)
            if store is None:
                _write(entry, work, settings.workers)
                store = RowStore(entry)
                logger.info("%s: tokenised into %s (%.1f MB)", name, entry, store.num_bytes / 1e6)
    else:
        logger.info("%s: tokenised before, read from %s", name, entry)
    return ArrayRows(store.tokens, store.samples, store.fingerprints)


def _open(entry: Path) -> RowStore | None:
    """What lies there, if it is whole."""
    try:
        return RowStore(entry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, EOFError) as error:
        logger.warning("%s is damaged (%s): it is made again", entry, error)
        return None


def _write(entry: Path, work: _Work, workers: int | None) -> None:
    def pack(part: Part) -> _Done[StoredPart]:
        return work.do(part, lambda samples, tokens: StoredPart.of(samples, tokens, work.source(part)))

    with atomic_directory(entry) as folder, RowWriter(folder) as writer, seldom_collected():
        for packed in _results(work, pack, workers):
            writer.add(packed)


def _in_memory(work: _Work) -> ArrayRows:
    """The samples stay objects; their tokens do not."""

    def pack(part: Part) -> _Done[tuple[list[Sample], TokenPart]]:
        return work.do(part, lambda samples, tokens: (samples, tokens))

    samples: list[Sample] = []
    parts: list[TokenPart] = []
    with seldom_collected():
        for some, tokens in _results(work, pack, None):
            samples += some
            parts.append(tokens)
    return ArrayRows(joined(parts), unique_ids(samples))


def _results(work: _Work, do: Callable[[Part], _Done[Packed]], workers: int | None) -> Iterator[Packed]:
    """The results of all parts in their order, up to the first problem; all problems are raised at the end.

    Raises:
        DataError: Rows cannot be read, or rendered.
    """
    reader, problems = work.reader, Problems()
    for place in range(len(reader.sources)):
        refused: Refused | None = None
        parts = reader.parts(place)
        with progress_bar(sum(part.stop - part.start for part in parts), "tokenising", unit="sample") as bar:
            for done in _done(parts, do, workers):
                refused = done.refused if refused is None else refused.add(done.refused)
                problems.extend(done.problems)
                if done.result is not None and not problems.count:
                    yield done.result
                bar.update(done.part.stop - done.part.start)
        reader.refuse(place, refused, whole=True)
    work.template.raise_refused(problems, len(reader))


def _done(parts: list[Part], do: Callable[[Part], _Done[Packed]], workers: int | None) -> Iterator[_Done[Packed]]:
    """Parts as they are done, in their order, a bounded number of them ahead."""
    count = min(workers or 1, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, len(parts))
    if count < 2:
        yield from map(do, parts)
        return
    waiting: deque[Future[_Done[Packed]]] = deque()
    with _processes(count, do) as submit:
        for part in parts:
            waiting.append(submit(part))
            if len(waiting) > _AHEAD * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_task: Callable[[Part], Any] | None = None
"""What the processes of a pool do: they are forks, and find it here."""


def _run(part: Part) -> Any:
    assert _task is not None
    return _task(part)


@contextmanager
def _processes(count: int, do: Callable[[Part], _Done[Packed]]) -> Iterator[Callable[[Part], Future[_Done[Packed]]]]:
    """Forks of this process, which have its tokenizer and its rows; what they use starts no threads of its own."""
    global _task
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "false"
    _task = do
    try:
        with ProcessPoolExecutor(count, multiprocessing.get_context("fork")) as pool, warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads; the children take no lock that a thread may hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            yield lambda part: pool.submit(_run, part)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that tokenises was killed, for want of memory perhaps", hint="lower preprocessing_num_workers"
        ) from error
    finally:
        _task = None
        os.environ.pop(_THREADS)
        if before is not None:
            os.environ[_THREADS] = before
