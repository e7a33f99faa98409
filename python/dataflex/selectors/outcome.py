"""What a selection has to be, whoever asked for it: a run, a selection without training, another selector."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection
from dataflex.utils.distributed import Ranks


def check_selection(selection: Selection, num_candidates: int, num_samples: int) -> None:
    """Raise SelectionError unless the selection is ``num_samples`` positions in range, with n scores and a JSON report.

    The positions are distinct, except where the selection says that they repeat.
    """
    indices = selection.indices
    problems = []
    if indices.dtype != np.int64 or indices.shape != (num_samples,):
        problems.append(f"indices are {indices.dtype}{indices.shape}, expected int64({num_samples},)")
    elif not selection.repeats and len(np.unique(indices)) != num_samples:
        problems.append(f"indices repeat: {num_samples - len(np.unique(indices))} of {num_samples}")
    if indices.size and (indices.min() < 0 or indices.max() >= num_candidates):
        problems.append(f"indices reach from {indices.min()} to {indices.max()}, there are {num_candidates} candidates")
    if selection.scores is not None and selection.scores.shape != (num_candidates,):
        problems.append(f"scores have shape {selection.scores.shape}, expected ({num_candidates},)")
    try:
        json.dumps(selection.report)
    except (TypeError, ValueError) as error:
        problems.append(f"its report is not plain JSON: {error}")
    if problems:
        raise SelectionError(f"selector {selection.selector!r} returned a wrong selection: {'; '.join(problems)}")


def check_agreement(selection: Selection, ranks: Ranks) -> None:
    """Raise SelectionError on every rank unless all of them selected the same samples in the same order."""
    digests = ranks.gather(hashlib.sha256(selection.indices.tobytes()).hexdigest())
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise SelectionError(
            f"selector {selection.selector!r} selected other samples on rank {different[0]} than on rank 0",
            hint="a selector must not depend on the rank: draw from (context.seed, context.round), and gather what "
            "ranks compute with context.ranks",
        )
