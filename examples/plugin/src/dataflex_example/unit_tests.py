"""Rewards for generated Python code: it has to pass the unit tests that its sample brings along.

The tests of a sample stand in a column of the dataset (``tests``): a list of Python statements, or one text. An
answer's code is what stands in its fenced blocks, or all of it. Code runs in a child process with limits
(:mod:`dataflex_example.locked_down`); an answer without code, or whose code fails, has reward 0. A sample whose tests
are missing or are no Python cannot be scored: that is a failure, never 0.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal

from pydantic import Field

from dataflex import RewardBackend, RewardRequest
from dataflex.errors import RewardError
from dataflex.rewards.base import Failure, RewardConfig, settle
from dataflex_example.locked_down import Limits, NotStartedError, namespaces_work, run_tests

logger = logging.getLogger(__name__)

MOST_TESTS = 1000
_BLOCK = re.compile(r"^ *```(?:python|py)?[ \t]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE | re.IGNORECASE)

Job = tuple[str, tuple[str, ...]]
"""An answer's code and its sample's tests."""


class UnitTestConfig(RewardConfig):
    """Parameters of ``unit_tests``."""

    tests_column: str = Field("tests", description="column with the tests: a list of Python statements, or one text")
    partial: bool = Field(False, description="reward is the share of tests that pass; else 1 if all pass, and 0")
    timeout: float = Field(10.0, gt=0, description="wall-clock seconds for an answer and its tests")
    cpu_seconds: int = Field(5, ge=1, description="CPU seconds for an answer and its tests")
    memory_mib: int = Field(512, ge=64, description="memory for an answer and its tests, in MiB")
    workers: int = Field(2, ge=1, description="answers that run at once")
    namespaces: Literal["auto", "require", "off"] = Field(
        "auto", description="run without network, by unshare: where it works, always (or refuse to start), never"
    )


class UnitTestReward(RewardBackend[UnitTestConfig]):
    """Rewards code that passes its unit tests.

    Example:
        >>> ask = ({"role": "user", "content": "Write double(x)."},)
        >>> tests = {"tests": ["assert double(2) == 4"]}
        >>> UnitTestReward().score([RewardRequest("0", ask, "def double(x): return 2 * x", metadata=tests)])
        [1.0]
    """

    name: ClassVar[str] = "unit_tests"
    Config = UnitTestConfig

    def check(self) -> None:
        """See that children can be started as the configuration asks.

        Raises:
            RewardError: This is not Linux, or namespaces are required and not to be had.
        """
        if sys.platform != "linux":
            raise RewardError(f"unit_tests runs on Linux only, this is {sys.platform}")
        if self.config.namespaces == "require" and not namespaces_work():
            raise RewardError(
                "namespaces: require, and unshare cannot make user and network namespaces here",
                hint="allow unprivileged user namespaces, or run the whole training in a container without network",
            )
        if self.config.namespaces == "auto" and not namespaces_work():
            logger.warning("unit_tests: generated code runs with network access: unshare makes no namespaces here")

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`dataflex.RewardBackend.score`. Equal code with equal tests runs once."""
        with self._stats.timed():
            jobs = [self._job(request) for request in requests]
            distinct = list(dict.fromkeys(job for job in jobs if not isinstance(job, Failure)))
            with ThreadPoolExecutor(self.config.workers) as pool:
                results = dict(zip(distinct, pool.map(self._run, distinct), strict=True))
            outcomes = [job if isinstance(job, Failure) else results[job] for job in jobs]
        return settle(outcomes, requests, backend=self.name, on_error=self.config.on_error, stats=self._stats)

    def _job(self, request: RewardRequest) -> Job | Failure:
        tests = _tests(request.metadata.get(self.config.tests_column), self.config.tests_column)
        return tests if isinstance(tests, Failure) else (extract_code(request.prediction), tests)

    def _run(self, job: Job) -> float | Failure:
        code, tests = job
        if not code.strip():
            return 0.0
        limits = Limits(self.config.timeout, self.config.cpu_seconds, self.config.memory_mib)
        isolate = self.config.namespaces != "off" and namespaces_work()
        try:
            passed = len(run_tests(code, tests, limits, namespaces=isolate))
        except (NotStartedError, OSError) as error:
            return Failure(str(error), error)
        return passed / len(tests) if self.config.partial else float(passed == len(tests))


def extract_code(answer: str) -> str:
    """The code of an answer: its fenced Python blocks one after the other, or the whole text if it has none."""
    return "\n".join(_BLOCK.findall(answer)) or answer


def _tests(value: Any, column: str) -> tuple[str, ...] | Failure:
    """The tests of a sample, or why there are none."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found or not all(isinstance(test, str) for test in found):
        return Failure(f"column {column!r}: expected a list of Python statements, got {value!r:.80}")
    if len(found) > MOST_TESTS:
        return Failure(f"column {column!r} has {len(found)} tests, at most {MOST_TESTS} are run")
    for number, test in enumerate(found):
        try:
            compile(test, "<test>", "exec")
        except (SyntaxError, ValueError) as error:
            return Failure(f"column {column!r}: test {number} is no Python: {error}")
    return tuple(found)
