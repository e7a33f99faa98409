"""``selections/step-N.parquet``: what a selection did with every candidate, and a few rows to look at."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataflex.curriculum.text_groups import text_groups
from dataflex.data.dataset import TokenizedDataset
from dataflex.selectors.base import Selection
from dataflex.types import Sample
from dataflex.utils.files import atomic_path

SELECTION_METADATA = b"dataflex"
EXCERPT = 300
"""Characters of a prompt or an answer that are kept to look at."""
BEST, LAST, FIRST_OUT, LOWEST = "best", "last chosen", "first left out", "lowest score"
"""Where a row to look at stands."""
_MOST = {BEST: 5, LAST: 2, FIRST_OUT: 2, LOWEST: 3}


def write_selection(path: Path, selection: Selection, dataset: TokenizedDataset, task_column: str) -> None:
    """Write one row a candidate.

    Columns: ``index`` (position), ``row`` (in the source), ``id``, ``task``, ``source`` (name of the dataset, null for
    rows that came as objects), ``script`` and ``words`` (groups by its text, see
    :mod:`dataflex.curriculum.text_groups`), ``tokens`` (its length), ``score``, ``chosen``, ``rank``. ``rank`` counts
    the chosen from 0, best first (the first place of one that repeats), and is null for the others. ``score`` is null
    where the method has none and for rows that it did not look at, and -inf for those that it cannot use. The schema's
    metadata holds selector, step, round, report and a few rows to look at (``excerpts``) as JSON under ``dataflex``.
    """
    n = len(dataset)
    rank: list[int | None] = [None] * n
    for place, index in reversed(list(enumerate(selection.indices.tolist()))):
        rank[index] = place
    facts = {
        **{key: getattr(selection, key) for key in ("selector", "step", "round")},
        "report": selection.report,
        "excerpts": excerpts(selection, dataset.samples),
    }
    groups = text_groups(dataset)
    table = pa.table(
        {
            "index": pa.array(range(n), pa.int64()),
            "row": pa.array(dataset.row_numbers(), pa.int64()),
            "id": pa.array(dataset.ids(), pa.string()),
            "task": pa.array(dataset.groups(task_column), pa.string()),
            "source": pa.array([source or None for source in dataset.sources()], pa.string()),
            "script": pa.array(groups.scripts or [None] * n, pa.string()),
            "words": pa.array(groups.words or [None] * n, pa.string()),
            "tokens": pa.array(dataset.lengths, pa.int64()),
            "score": _score_column(selection, n),
            "chosen": pa.array([place is not None for place in rank], pa.bool_()),
            "rank": pa.array(rank, pa.int64()),
        }
    ).replace_schema_metadata({SELECTION_METADATA: json.dumps(facts).encode()})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


def _score_column(selection: Selection, count: int) -> pa.Array:
    """Scores, null for rows that were not looked at; -inf stays: such a row was looked at and cannot be used."""
    if selection.scores is None:
        return pa.nulls(count, pa.float64())
    return pa.array(selection.scores, pa.float64(), mask=np.isnan(selection.scores))


def excerpts(selection: Selection, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The best of the chosen, the last of them, the first that were left out and the lowest scores, to be read.

    Returns:
        For each ``place`` (``best``, ``last chosen``, ``first left out``, ``lowest score``), ``row``, ``id``, ``score``
        (None where there is none), and the beginnings of ``prompt`` (its last turn) and ``answer``.
    """
    chosen = list(dict.fromkeys(selection.indices.tolist()))
    places = [(BEST, index) for index in chosen[: _MOST[BEST]]]
    places += [(LAST, index) for index in chosen[_MOST[BEST] :][-_MOST[LAST] :]]
    if selection.scores is not None:
        free = np.isfinite(selection.scores)
        free[chosen] = False
        order = np.argsort(selection.scores, kind="stable")
        order = order[free[order]]
        first = order[_MOST[LOWEST] :][::-1][: _MOST[FIRST_OUT]]
        places += [(FIRST_OUT, index) for index in first.tolist()]
        places += [(LOWEST, index) for index in order[: _MOST[LOWEST]].tolist()]
    return [{"place": place, "score": _score(selection, index), **_excerpt(samples[index])} for place, index in places]


def _score(selection: Selection, index: int) -> float | None:
    score = None if selection.scores is None else float(selection.scores[index])
    return score if score is not None and math.isfinite(score) else None


def _excerpt(sample: Sample) -> dict[str, Any]:
    prompt = sample.prompt[-1]["content"] if sample.prompt else ""
    return {
        "row": sample.row,
        "id": sample.id,
        "prompt": prompt[:EXCERPT],
        "answer": (sample.reference or "")[:EXCERPT],
    }
