"""The contract of a reward backend as tests that anyone can run on theirs.

Subclass :class:`RewardContract` in a test module, say how a backend is made, and run pytest::

    class TestMyReward(RewardContract):
        def make(self, **params):
            return MyReward(strict=True, **params)

Each ``test_`` method checks one clause; its docstring states it. pytest itself is not imported.
"""

from __future__ import annotations

import copy
import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar
from unittest import SkipTest

from dataflex.errors import RewardError
from dataflex.rewards.base import RewardBackend
from dataflex.testing.component_contract import ComponentContract
from dataflex.types import Message, RewardRequest

ANSWERS = (
    "The capital of France is Paris.",
    "Rome",
    "",
    "Paris",
    "  paris \n",
    "Π, 東京 and 🙂",
    "word " * 400,
    "Paris",
)
"""Right, wrong, empty, in other scripts, long, and one of them twice."""

NOT_ONE_EACH = "not one reward a request: see test_one_finite_reward_a_request"


class RewardContract(ComponentContract):
    """Tests of one reward backend; a subclass implements :meth:`make` and says what the backend claims.

    Attributes:
        lowest: Smallest reward; None: any finite number.
        highest: Greatest reward; None: any finite number.
        deterministic: An answer has the same reward each time, whatever other answers it is scored with.
        tolerance: How far two rewards of one answer may differ where ``deterministic`` is claimed.
    """

    lowest: ClassVar[float | None] = 0.0
    highest: ClassVar[float | None] = 1.0
    deterministic: ClassVar[bool] = True
    tolerance: ClassVar[float] = 0.0

    @abstractmethod
    def make(self, **params: Any) -> RewardBackend[Any]:
        """A new backend, always with the same parameters but for those of the call (``on_error``)."""

    def requests(self) -> list[RewardRequest]:
        """Requests that the backend can score; a subclass may give its own, with different answers among them."""
        prompt: tuple[Message, ...] = ({"role": "user", "content": "What is the capital of France?"},)
        return [RewardRequest(f"q{row}", prompt, answer, "Paris") for row, answer in enumerate(ANSWERS)]

    def unscorable(self) -> RewardRequest | None:
        """A request that the backend cannot score, or None if it can score everything."""
        return None

    def test_one_finite_reward_a_request(self) -> None:
        """``score`` returns a list with one finite number a request."""
        requests = self.requests()
        rewards = self._score(requests)
        if not isinstance(rewards, list) or len(rewards) != len(requests):
            raise AssertionError(f"{len(requests)} requests: expected a list of as many rewards, got {rewards!r}")
        for reward, request in zip(rewards, requests, strict=True):
            if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
                raise AssertionError(f"request {request.sample_id!r}: the reward {reward!r} is not a finite number")

    def test_nothing_to_score_is_no_reward(self) -> None:
        """No requests: an empty list."""
        rewards = self._score([])
        if rewards != []:
            raise AssertionError(f"no requests: expected [], got {rewards!r}")

    def test_rewards_lie_in_their_range(self) -> None:
        """Rewards lie between ``lowest`` and ``highest``."""
        low = -math.inf if self.lowest is None else self.lowest
        high = math.inf if self.highest is None else self.highest
        numbers = [reward for reward in self._score(self.requests()) if reward is not None]
        outside = [reward for reward in numbers if reward < low or reward > high]
        if outside:
            raise AssertionError(f"rewards outside of [{low:g}, {high:g}]: {outside}")

    def test_rewards_are_in_the_order_of_the_requests(self) -> None:
        """Requests in another order have their rewards in that order."""
        requests = self.requests()
        self._expect(self._each(requests[::-1])[::-1], self._each(requests), "requests in reverse order")

    def test_other_answers_play_no_part(self) -> None:
        """An answer that is scored alone has the reward that it has among others."""
        requests = self.requests()
        backend = self._checked()
        alone = [reward for request in requests for reward in backend.score([request])]
        backend.close()
        together = self._each(requests)
        if len(alone) != len(together):
            raise SkipTest(NOT_ONE_EACH)
        # Their order is the matter of another test.
        self._expect(sorted(alone, key=repr), sorted(together, key=repr), "one request a call, sorted")

    def test_a_second_call_gives_the_same(self) -> None:
        """A backend that has scored an answer gives it the same reward again."""
        problem = self._second_call_differs()
        if problem is not None:
            raise AssertionError(f"the same requests again: {problem}")

    def test_on_error_raise_names_the_answer(self) -> None:
        """``on_error: raise``: an answer that cannot be scored is a RewardError that names its sample."""
        requests, bad = self._with_unscorable()
        backend = self._checked(on_error="raise")
        try:
            rewards = backend.score(requests)
        except RewardError as error:
            if bad.sample_id not in str(error):
                raise AssertionError(f"the error does not name the sample {bad.sample_id!r}: {error}") from error
            return
        finally:
            backend.close()
        raise AssertionError(f"on_error is raise, sample {bad.sample_id!r} cannot be scored, and score gave {rewards}")

    def test_on_error_skip_and_zero(self) -> None:
        """``on_error: skip`` gives None for what cannot be scored, ``zero`` 0.0; others keep their rewards."""
        requests, _ = self._with_unscorable()
        expected = self._each(self.requests())
        for on_error, substitute in (("skip", None), ("zero", 0.0)):
            rewards = self._each(requests, on_error=on_error)
            if rewards[1] != substitute or isinstance(rewards[1], bool):
                raise AssertionError(f"on_error is {on_error}: expected {substitute} as second reward, got {rewards!r}")
            self._expect([rewards[0], *rewards[2:]], expected, f"beside an answer that cannot be scored ({on_error})")

    def test_counts_what_it_did(self) -> None:
        """``stats`` are plain numbers; ``scored`` and ``failed`` add up to the requests so far."""
        backend, requests = self._checked(), self.requests()
        backend.score(requests)
        backend.score(requests[:1])
        stats = backend.stats()
        backend.close()
        json.dumps(stats, allow_nan=False)
        if stats["scored"] + stats["failed"] != len(requests) + 1:
            raise AssertionError(f"{len(requests) + 1} answers were scored, the counters say {stats}")

    def test_leaves_the_requests_alone(self) -> None:
        """Requests, their messages and metadata stay as they were."""
        requests = self.requests()
        before = copy.deepcopy(requests)
        self._score(requests)
        if requests != before:
            raise AssertionError("scoring changed the requests")

    def test_can_be_closed_at_any_time(self) -> None:
        """``close`` raises nothing before an answer was scored, after one, and when it is called again."""
        self.make().close()
        backend = self._checked()
        backend.score(self.requests()[:1])
        backend.close()
        backend.close()

    def _checked(self, **params: Any) -> RewardBackend[Any]:
        """A backend after ``check``, which the trainer calls before a run."""
        backend = self.make(**params)
        backend.check()
        return backend

    def _score(self, requests: Sequence[RewardRequest], **params: Any) -> list[float | None]:
        backend = self._checked(**params)
        try:
            return backend.score(requests)
        finally:
            backend.close()

    def _each(self, requests: Sequence[RewardRequest], **params: Any) -> list[float | None]:
        """One reward a request; whether it is one is the matter of another test."""
        rewards = self._score(requests, **params)
        if len(rewards) != len(requests):
            raise SkipTest(NOT_ONE_EACH)
        return rewards

    def _with_unscorable(self) -> tuple[list[RewardRequest], RewardRequest]:
        """The requests with one in second place that cannot be scored."""
        bad = self.unscorable()
        if bad is None:
            raise SkipTest("there is no request that the backend cannot score (unscorable returns None)")
        requests = self.requests()
        return [requests[0], bad, *requests[1:]], bad

    def _expect(self, found: Sequence[float | None], expected: Sequence[float | None], what: str) -> None:
        """Raise unless rewards are the same; a backend without determinism fails only the test of that."""
        problem = self._difference(found, expected)
        if problem is None:
            return
        if self._second_call_differs() is not None:
            raise SkipTest("equal calls differ already: see test_a_second_call_gives_the_same")
        raise AssertionError(f"{what}: {problem}")

    def _second_call_differs(self) -> str | None:
        backend, requests = self._checked(), self.requests()
        first, second = backend.score(requests), backend.score(requests)
        backend.close()
        return self._difference(second, first)

    def _difference(self, found: Sequence[float | None], expected: Sequence[float | None]) -> str | None:
        if not self.deterministic:
            raise SkipTest("the backend does not claim it (deterministic = False)")
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            same = repr(one) == repr(other)  # None, and a NaN, is as it was
            if not same and (one is None or other is None or not abs(one - other) <= self.tolerance):
                return f"reward {place} is {one!r}, expected {other!r}"
        return None
