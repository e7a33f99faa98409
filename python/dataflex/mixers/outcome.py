"""What a mixture has to be, whoever asked for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import SelectionError
from dataflex.mixers.domains import TOLERANCE, Domain
from dataflex.utils.distributed import Ranks
from dataflex.utils.shown import listed


def check_mixture(proportions: Any, domains: Sequence[Domain], mixer: str, ranks: Ranks) -> NDArray[np.float64]:
    """What a mixer returned, if it is ``(K,)`` proportions.

    Args:
        proportions: What it returned.
        domains: K domains.
        mixer: Its name.
        ranks: The processes of the run.

    Raises:
        SelectionError: On every rank, it is not, or ranks have different ones.
    """
    count, problem = len(domains), ""
    found = np.asarray(proportions)
    if found.dtype != np.float64 or found.shape != (count,):
        problem = f"{found.dtype}{found.shape}, expected float64({count},)"
    elif not np.isfinite(found).all() or found.min() < 0 or abs(float(found.sum()) - 1) > TOLERANCE:
        problem = f"{found.tolist()}, expected finite shares of at least 0 that sum to 1"
    elif any(share > 0 and not len(domain.rows) for share, domain in zip(found, domains, strict=True)):
        problem = f"{found.tolist()}, a share for a domain without rows"
    problems = ranks.gather(problem)
    if any(problems):
        raise SelectionError(
            f"mixer {mixer!r} returned {next(filter(None, problems))}",
            hint=f"domains: {listed([domain.name for domain in domains])}",
        )
    digests = ranks.gather(hashlib.sha256(found.tobytes()).hexdigest())
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise SelectionError(
            f"mixer {mixer!r} returned other proportions on rank {different[0]} than on rank 0",
            hint="a mixer must not depend on the rank: draw from (context.seed, context.round), and gather what ranks "
            "compute with context.ranks",
        )
    return found
