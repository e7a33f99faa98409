"""The ratios that the projection is held to, and how a run stands to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from measuring.contenders import ADAM_PASS, EXACT_EIGHT, EXACT_ONE, GEMM, INDEX_ADD, SJLT, fused_name
from measuring.peers import BERGSON, DATTRI, SKLEARN, TRAK
from measuring.timing import Times, paired_ratio

MEGABYTE = 1e6
ROWS, DIM = 32, 4096


@dataclass(frozen=True)
class Measured:
    """The times of one contender in one case."""

    rows: int
    parameters: int
    dim: int
    name: str
    role: str
    share: float
    stored: float | None
    times: Times

    def per_row(self) -> float:
        """Median wall milliseconds a row."""
        return 1000 * self.times.median() / self.rows

    def per_row_processor(self) -> float | None:
        """Median processor milliseconds a row and thread."""
        seconds = self.times.processor_median()
        return None if seconds is None else 1000 * seconds / self.rows


@dataclass(frozen=True)
class Goal:
    """``slow`` over ``fast`` must be at least ``limit`` (or at most, where ``at_most``)."""

    slow: str
    fast: str
    limit: float
    at_most: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run stands to a goal.

    Attributes:
        text: The goal in words.
        parameters: Of the case.
        value: What was measured: a paired median ratio of wall times, or megabytes.
        processor: The same ratio of processor times.
        met: Whether ``value`` keeps the goal.
    """

    text: str
    parameters: int
    value: float
    processor: float | None
    met: bool


def goals(amx: bool) -> list[Goal]:
    """The goals on speed; the dense one depends on whether the processor has matrix units (AMX)."""
    dense = fused_name("rademacher")
    return [
        Goal(SJLT, ADAM_PASS, 2.2, at_most=True),
        Goal(EXACT_ONE, ADAM_PASS, 1.3, at_most=True),
        Goal(EXACT_EIGHT, ADAM_PASS, 2.0, at_most=True),
        Goal(GEMM, SJLT, 40),
        Goal(SKLEARN, SJLT, 8),
        *(Goal(peer, SJLT, 500) for peer in (TRAK, DATTRI, BERGSON)),
        Goal(INDEX_ADD, SJLT, 10),
        Goal(GEMM, dense, 8 if amx else 1.5),
    ]


def outcomes(results: Sequence[Measured], amx: bool) -> Iterator[Outcome]:
    """Every goal whose contenders were measured, in the cases of b = 32, k = 4096."""
    for parameters in sorted({result.parameters for result in results}):
        case = {
            result.name: result
            for result in results
            if (result.rows, result.parameters, result.dim) == (ROWS, parameters, DIM)
        }
        for goal in goals(amx):
            if goal.slow in case and goal.fast in case:
                yield _ratio_outcome(goal, parameters, case[goal.slow].times, case[goal.fast].times)
        dense = case.get(fused_name("rademacher"))
        if dense is not None and dense.times.memory is not None:
            used = dense.times.memory / MEGABYTE
            yield Outcome("rademacher: extra memory of a call, MB, < 64", parameters, used, None, used < 64)


def _ratio_outcome(goal: Goal, parameters: int, slow: Times, fast: Times) -> Outcome:
    ratio = paired_ratio(slow.wall, fast.wall)
    assert ratio is not None  # wall times are always there
    processor = paired_ratio(slow.processor, fast.processor)
    sign = "<=" if goal.at_most else ">="
    met = ratio <= goal.limit if goal.at_most else ratio >= goal.limit
    return Outcome(f"{goal.slow} / {goal.fast} {sign} {goal.limit:g}", parameters, ratio, processor, met)
