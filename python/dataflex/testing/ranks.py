"""Several ranks in one process, for tests: threads that take turns.

A rank runs until it gathers, then the next one does; what they send is exchanged when all have sent. Each has random
states of its own (torch on the CPU, numpy, Python), as if it were a process. Nothing runs at the same time, so a result
does not depend on the machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from dataflex.testing.random_states import RandomStates, random_states, set_random_states
from dataflex.utils.distributed import Ranks

T = TypeVar("T")


def run_ranks(count: int, work: Callable[[Ranks], T]) -> list[T]:
    """What ``work`` returns on each of ``count`` ranks, by rank.

    Args:
        count: Number of ranks.
        work: Called once a rank with its :class:`dataflex.utils.distributed.Ranks`. What ranks share in a real run
            (files) it may share; models and the like it must make anew.

    Raises:
        AssertionError: Real processes would hang: a rank returned while others waited for it.
        Exception: What the first rank to fail raised.
    """
    room: _Room[T] = _Room(count)
    before = random_states()
    threads = [
        threading.Thread(target=room.run, args=(rank, work, before), name=f"rank {rank}", daemon=True)
        for rank in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    set_random_states(before)
    if room.errors:
        raise room.errors[0]
    if room.stuck:
        raise AssertionError(
            f"rank {min(room.stuck)} waits for the other ranks in a gather and rank "
            f"{min(set(range(count)) - room.stuck)} has returned: real processes would hang"
        )
    return [room.results[rank] for rank in range(count)]


@dataclass(frozen=True, slots=True)
class _TurnRanks(Ranks):
    """Ranks whose gathers go through a room."""

    room: _Room[Any] = field(kw_only=True)

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of what all ranks have gathered."""
        return tensor.copy_(torch.stack(self.gather_tensors(tensor)).sum(dim=0))

    def _broadcast_bytes(self, data: bytes) -> torch.Tensor:
        return self._gather_bytes(data)[0]

    def _gather_bytes(self, data: bytes) -> list[torch.Tensor]:
        return [torch.tensor(list(part), dtype=torch.uint8) for part in self.room.exchange(self.index, data)]


class _Stuck(BaseException):
    """Unwinds a rank whose gather can never end."""


class _Room(Generic[T]):
    """Where ranks meet; the rank whose turn it is runs outside of the lock.

    Attributes:
        results: What each rank returned.
        errors: What ranks raised, in the order in which it happened.
        stuck: Ranks whose last gather was waited for in vain.
    """

    def __init__(self, count: int) -> None:
        self.results: dict[int, T] = {}
        self.errors: list[BaseException] = []
        self.stuck: set[int] = set()
        self._count = count
        self._condition = threading.Condition()
        self._turn = 0
        self._sent: dict[int, bytes] = {}
        self._received: list[bytes] = []
        self._exchanges = 0
        self._finished: set[int] = set()
        self._broken = False

    def run(self, rank: int, work: Callable[[Ranks], T], states: RandomStates) -> None:
        """The life of one rank, which begins with the given random states."""
        with self._condition:
            self._wait_for_turn(rank, states)
        try:
            result = work(_TurnRanks(rank, self._count, room=self))
        except _Stuck:
            self.stuck.add(rank)
        except BaseException as error:
            self.errors.append(error)
        else:
            self.results[rank] = result
        with self._condition:
            self._finished.add(rank)
            self._pass_on()

    def exchange(self, rank: int, data: bytes) -> list[bytes]:
        """Send ``data``, wait until every rank has sent, and return what all of them sent."""
        with self._condition:
            self._sent[rank] = data
            exchange, states = self._exchanges, random_states()
            self._pass_on()
            self._condition.wait_for(lambda: self._broken or self._exchanges > exchange)
            if self._exchanges == exchange:
                raise _Stuck
            self._wait_for_turn(rank, states)
            return self._received

    def _wait_for_turn(self, rank: int, states: RandomStates) -> None:
        self._condition.wait_for(lambda: self._turn == rank)
        set_random_states(states)

    def _pass_on(self) -> None:
        """Give the turn to a rank that can run; all have sent: exchange; all that are left wait in vain: break up."""
        can_run = set(range(self._count)) - self._finished - set(self._sent)
        if len(self._sent) == self._count:
            self._received = [self._sent[rank] for rank in range(self._count)]
            self._sent = {}
            self._exchanges += 1
            self._turn = 0
        elif can_run:
            self._turn = min(can_run)
        else:
            self._broken = True
        self._condition.notify_all()
