"""What a selection does with its rows besides gradients, phase by phase: processor time, peak memory, files.

Each phase is the code of a run, on rows that are tokenised already; gradients, sums and features are made up. A phase
runs in a fork of a process that has read nothing but the arrays, so that none finds the memory that another has freed.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile, rmtree
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.curriculum.selection_file import write_selection
from dataflex.data import ChatTemplate
from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.sources import open_samples
from dataflex.doctor.look import look
from dataflex.gradients.filling import fill_apart, fill_store
from dataflex.gradients.layout import by_length
from dataflex.gradients.similarity import Influence, influence_scores, top_k
from dataflex.gradients.store import FeatureStore, ScoreStore
from dataflex.offline.card import subset_card
from dataflex.offline.selection import OfflineSelection, RowSource
from dataflex.report.api import Report
from dataflex.utils.distributed import Ranks
from measuring.memory import PeakMemory

DIM = 256
"""k of the features: a store of as many bytes a row as exact sums of 128 directions, or a sixteenth of the default."""
SHARE = 20
"""One row in so many is chosen."""
BATCH, TOKENS = 8, 2048
"""Rows a step of training, padded tokens a batch of gradients."""
SELECTIONS = 4
"""Selections of the run that a report is made of."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a phase took: seconds of processors, bytes at the peak above the start, bytes of files that it left."""

    cpu: float
    peak: int
    files: int


@dataclass(frozen=True)
class Rows:
    """Tokenised rows, where they come from, and a choice of them."""

    path: Path
    dataset: TokenizedDataset
    template: ChatTemplate

    @property
    def scores(self) -> NDArray[np.float64]:
        """``(n,)`` made-up scores."""
        return np.random.default_rng(0).standard_normal(len(self.dataset))

    def selection(self) -> OfflineSelection:
        """The best twentieth."""
        scores = self.scores
        chosen = top_k(scores, len(scores) // SHARE)
        report = {"seconds": {"training gradients": 1.0}}
        return OfflineSelection(
            chosen, scores, "less", 1, 1, report, candidates=self.dataset, source=RowSource(str(self.path))
        )


def _plan(rows: Rows, folder: Path) -> None:
    del folder
    by_length(np.array(rows.dataset.lengths), TOKENS)


def _sums(rows: Rows, folder: Path) -> None:
    layout = by_length(np.array(rows.dataset.lengths), TOKENS)
    sums = fill_apart(
        lambda: ScoreStore(folder / "sums", {}, layout, 2),
        torch.nn.Identity(),
        lambda some: torch.tensor([[1.0, row % 97] for row in some], dtype=torch.float64),
        prepare=lambda: None,
        description="sums",
        ranks=Ranks(),
    )
    top_k(sums[:, 1].numpy(), len(sums) // SHARE)


def _features(rows: Rows, folder: Path) -> None:
    layout = by_length(np.array(rows.dataset.lengths), TOKENS)
    store = FeatureStore(folder / "features", {}, layout, DIM)
    made = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(0))
    fill_store(
        store, torch.nn.Identity(), lambda some: made[: len(some)], description="features", save_rows=16, ranks=Ranks()
    )
    found = influence_scores([Influence(store.blocks(), made[:1])], len(layout))
    top_k(found.values, len(layout) // SHARE)


def _train(rows: Rows, folder: Path) -> None:
    del folder
    chosen = rows.dataset.select(rows.selection().indices)
    for start in range(0, len(chosen), BATCH):
        collate([chosen[place] for place in range(start, min(start + BATCH, len(chosen)))], 0)


def _written(rows: Rows, folder: Path) -> None:
    write_selection(folder / "run" / "selections" / "step-1.parquet", rows.selection(), rows.dataset, "task")


def _subset(rows: Rows, folder: Path) -> None:
    selection = rows.selection()
    card = subset_card("subset.jsonl", selection, rows.dataset, {}, "", "task")
    (folder / "subset.card.md").write_text(card, encoding="utf-8")
    selection.write_jsonl(folder / "subset.jsonl", overwrite=True)


def _report(rows: Rows, folder: Path) -> None:
    first = folder / "run" / "selections" / "step-1.parquet"
    for step in range(2, SELECTIONS + 1):
        copyfile(first, first.with_name(f"step-{step}.parquet"))
    Report(folder / "run").write()


def _look(rows: Rows, folder: Path) -> None:
    del folder
    look(open_samples(rows.path), rows.template, 2048)


PHASES: dict[str, Callable[[Rows, Path], None]] = {
    "batches of gradients planned": _plan,
    "exact sums kept, gathered and ranked": _sums,
    f"features of {DIM} numbers kept, checked and scored": _features,
    "a twentieth of the rows trained on, read and padded": _train,
    "a selection's file": _written,
    "a twentieth of the rows written as a subset, with its card": _subset,
    f"the report of {SELECTIONS} selections": _report,
    "doctor: a look at 1,000 rows": _look,
}
"""In the order of a run; a report reads what a selection's file holds."""


def measure_phases(rows: Rows, folder: Path) -> dict[str, Cost]:
    """Each phase once; it writes into the folder."""
    torch.set_num_threads(1)  # of which a fork would miss the others
    return {name: _forked(work, rows, folder) for name, work in PHASES.items()}


def _forked(work: Callable[[Rows, Path], None], rows: Rows, folder: Path) -> Cost:
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    before = _bytes_below(folder)
    child = fork.Process(target=_measured, args=(work, rows, folder, sender))
    child.start()
    sender.close()
    cpu, peak = receiver.recv()  # EOFError: the phase has failed, and said why
    child.join()
    files = _bytes_below(folder) - before
    for name in ("sums", "features"):
        rmtree(folder / name, ignore_errors=True)
    return Cost(cpu, peak, files)


def _measured(work: Callable[[Rows, Path], None], rows: Rows, folder: Path, sender: Any) -> None:
    before = cpu_seconds()
    with PeakMemory(torch.device("cpu")) as memory:
        work(rows, folder)
    sender.send((cpu_seconds() - before, memory.extra or 0))


def cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
