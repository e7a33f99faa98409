"""Whether a round is scored by whole gradients or by projected features, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dataflex.errors import SelectionError
from dataflex.gradients.similarity import Aggregate
from dataflex.selectors.gradient.config import GradientConfig

MOST_VALUES = 1 << 28
"""Most numbers that several directions may have, d x p, and that the rows' sums may have, n x (1 + d). The directions
take 12 bytes a number while they are made (3 GiB) and 4 then; one direction alone is never too large: the moments of
Adam take twice as much."""
OWN_DIRECTIONS = ("max", "round_robin")
"""Rules with a direction a target."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a round is scored.

    Attributes:
        used: ``exact`` or ``projected``.
        why: The reason, in words.
        directions: d, at most.
    """

    used: Literal["exact", "projected"]
    why: str
    directions: int

    @property
    def exact(self) -> bool:
        """Whether whole gradients are compared."""
        return self.used == "exact"

    def facts(self) -> dict[str, str]:
        """JSON-able facts for the selection's report."""
        return {"used": self.used, "why": self.why}


def decide(
    config: GradientConfig, aggregate: Aggregate, directions: int, *, parameters: int, candidates: int
) -> Scoring:
    """How a round is scored.

    Args:
        config: Parameters of the selector.
        aggregate: Rule over the targets.
        directions: d, at most.
        parameters: p.
        candidates: n.

    Raises:
        SelectionError: ``scoring: exact``, and too many numbers would have to be held.
    """
    if config.scoring == "projected":
        return Scoring("projected", "scoring: projected", directions)
    problem = _too_large(directions, parameters, candidates)
    if config.scoring == "exact":
        if problem:
            raise SelectionError(
                f"scoring 'exact' with aggregate {aggregate!r}: {problem}",
                hint="scoring: projected, or aggregate: mean, which has one direction",
            )
        return Scoring("exact", "scoring: exact", directions)
    if aggregate in OWN_DIRECTIONS:
        return Scoring("projected", f"with aggregate {aggregate} every target is a direction of its own", directions)
    if wanted := config.wants_features():
        return Scoring("projected", f"features are asked for by {', '.join(wanted)}", directions)
    if problem:
        return Scoring("projected", problem, directions)
    why = f"aggregate {aggregate} has {directions} direction{'s' if directions > 1 else ''}"
    return Scoring("exact", why, directions)


def expects_features(config: GradientConfig) -> bool:
    """Whether features are likely to be made, as far as the parameters tell without data and model."""
    if config.scoring != "auto":
        return config.scoring == "projected"
    return getattr(config, "aggregate", "mean") in OWN_DIRECTIONS or bool(config.wants_features())


def _too_large(directions: int, parameters: int, candidates: int) -> str | None:
    """Why exact scores would take too much memory, or None."""
    if directions > 1 and directions * parameters > MOST_VALUES:
        size = 12 * directions * parameters / 2**30
        return (
            f"{directions} directions of {parameters:,} parameters take {size:.1f} GiB, and at most "
            f"{12 * MOST_VALUES / 2**30:.0f} GiB are taken for that"
        )
    if directions > 1 and (1 + directions) * candidates > MOST_VALUES:
        return (
            f"the sums of {candidates:,} candidates with {directions} directions take "
            f"{8 * (1 + directions) * candidates / 2**30:.1f} GiB, and at most {8 * MOST_VALUES / 2**30:.0f} GiB are "
            "taken for that"
        )
    return None
