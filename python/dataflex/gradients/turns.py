"""``round_robin``: the targets take turns, and each takes its best candidate that nobody has.

Top-k by the mean serves what most targets have in common, and by the maximum whoever has the closest candidates; in
turns every target gets its share (arXiv 2503.01807 and 2602.14696 find it better on several tasks). The order of the
turns is drawn by seed, so that where fewer candidates than targets are wanted no target is first because of its place
in the file.

Candidates stream by in blocks. A list of the best is kept for each target, as long as twice its share; only where the
targets want the same candidates does it not last, and the candidates stream by again for longer lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflex.errors import SelectionError
from dataflex.gradients.similarity import Aggregate, Influence, Scores, influences, top_k

Cosines = Iterable[tuple[int, Tensor]]
"""(first row, ``(rows, q)`` float64 cosines, -inf for rows that cannot be taken), in order without gaps."""
SPARE = 16
"""Candidates on a list beyond twice a target's share."""


def choose(
    parts: Callable[[], Sequence[Influence]], scores: Scores, count: int, aggregate: Aggregate, seed: Sequence[int]
) -> NDArray[np.int64]:
    """The candidates to train on: the best by score, or those that the targets choose in turns.

    Args:
        parts: Makes the influences, which can be streamed once.
        scores: Their scores.
        count: Candidates to choose.
        aggregate: Rule over the targets.
        seed: Of the order of the turns.

    Returns:
        ``(count,)`` int64 positions, best first.

    Raises:
        SelectionError: Fewer candidates have a usable score.
    """

    def cosines() -> Cosines:
        return ((start, values) for start, values, _, _ in influences(parts()))

    def prefer() -> Tensor:
        return torch.stack([part.directions.any(dim=1) for part in parts()]).any(dim=0)

    return choose_by(cosines, prefer, scores, count, aggregate, seed)


def choose_by(
    cosines: Callable[[], Cosines],
    prefer: Callable[[], Tensor],
    scores: Scores,
    count: int,
    aggregate: Aggregate,
    seed: Sequence[int],
) -> NDArray[np.int64]:
    """:func:`choose` by the cosines themselves.

    Args:
        cosines: Streams the cosines; called once a pass.
        prefer: ``(q,)`` bool: the targets that prefer anybody; a target of zeros does not.
        scores: As for :func:`choose`.
        count: As for :func:`choose`.
        aggregate: As for :func:`choose`.
        seed: As for :func:`choose`.

    Raises:
        SelectionError: Fewer candidates have a usable score.
    """
    if aggregate != "round_robin":
        return top_k(scores.values, count)
    order = np.random.default_rng(list(seed)).permutation(np.flatnonzero(prefer().cpu().numpy()))
    return take_turns(cosines, len(scores.values), count, order)


def take_turns(
    cosines: Callable[[], Cosines], num_rows: int, count: int, order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The candidates that targets choose in turns.

    Args:
        cosines: Streams the cosines; called once a pass.
        num_rows: n.
        count: Candidates to take.
        order: Columns of the targets that take turns, again and again, in this order; others have no say.

    Returns:
        ``(count,)`` int64 positions in the order in which they were taken; a target's ties go to the smaller position.

    Raises:
        SelectionError: Fewer candidates can be taken.
    """
    depth = min(num_rows, 2 * -(-count // max(len(order), 1)) + SPARE)
    while True:
        taken = _walk(_best(cosines(), order, depth), count)
        if len(taken) == count:
            return np.array(taken, dtype=np.int64)
        if depth == num_rows:  # the lists were whole
            raise SelectionError(
                f"{count} samples are to be selected and {len(taken)} of {num_rows} candidates have a usable score"
            )
        depth = min(num_rows, 4 * depth)


def _best(cosines: Cosines, order: NDArray[np.int64], depth: int) -> list[NDArray[np.int64]]:
    """Positions of each target's best candidates, best first, at most ``depth`` of them; the targets by ``order``."""
    values = np.empty((len(order), 0))
    places = np.empty((len(order), 0), dtype=np.int64)
    for start, block in cosines:
        rows = np.broadcast_to(np.arange(start, start + len(block)), (len(order), len(block)))
        values = np.concatenate([values, block.numpy()[:, order].T], axis=1)
        places = np.concatenate([places, rows], axis=1)
        # Stable: of equal values the earlier position, which stands further left, stays in front.
        kept = np.argsort(-values, axis=1, kind="stable")[:, :depth]
        values, places = np.take_along_axis(values, kept, axis=1), np.take_along_axis(places, kept, axis=1)
    return [own[of_own > -np.inf] for own, of_own in zip(places, values, strict=True)]


def _walk(lists: list[NDArray[np.int64]], count: int) -> list[int]:
    """What is taken until there are ``count``, or until a target whose turn it is finds its list at an end."""
    taken: dict[int, None] = {}
    at = [0] * len(lists)
    for turn in range(count):
        target = turn % len(lists)
        own = lists[target]
        while at[target] < len(own) and int(own[at[target]]) in taken:
            at[target] += 1
        if at[target] == len(own):
            break
        taken[int(own[at[target]])] = None
    return list(taken)
