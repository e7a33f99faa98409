"""What tells two selections apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dataflex.selectors.base import Selection


def difference(found: Selection, expected: Selection, tolerance: float | None = None) -> str | None:
    """What tells two selections of the same candidates apart, or None.

    Args:
        found: A selection.
        expected: The one that it is compared with.
        tolerance: None: samples, order and scores are identical. Else scores may differ by this much (absolute, and
            relative to the expected one), and candidates whose scores are as close may change places.
    """
    if (found.scores is None) != (expected.scores is None):
        return "one of them has scores and the other has none"
    if found.scores is not None and expected.scores is not None:
        problem = _scores_differ(found.scores, expected.scores, tolerance)
        if problem is not None:
            return problem
    if np.array_equal(found.indices, expected.indices):
        return None
    shown = f"{found.indices.tolist()} was selected, expected {expected.indices.tolist()}"
    if tolerance is None or expected.scores is None or found.indices.shape != expected.indices.shape:
        return shown
    places = expected.scores[found.indices], expected.scores[expected.indices]  # (k,) each
    return None if np.allclose(*places, rtol=tolerance, atol=tolerance) else shown


def unpermuted(found: Selection, order: NDArray[np.int64]) -> Selection:
    """A selection among candidates that stood in another order, in terms of the first one.

    Args:
        found: A selection among n candidates.
        order: ``(n,)`` where each of them stands in the first order.
    """
    scores = None
    if found.scores is not None:
        scores = np.empty_like(found.scores)
        scores[order] = found.scores
    return replace(found, indices=order[found.indices], scores=scores)


def _scores_differ(found: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float | None) -> str | None:
    if found.shape != expected.shape:
        return f"the scores have shape {found.shape}, expected {expected.shape}"
    if tolerance is None:
        close = (found == expected) | (np.isnan(found) & np.isnan(expected))
    else:
        close = np.isclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    if close.all():
        return None
    first = int(np.flatnonzero(~close)[0])
    allowed = "" if tolerance is None else f" (tolerance {tolerance:g})"
    return f"the score of candidate {first} is {found[first]!r}, expected {expected[first]!r}{allowed}"
