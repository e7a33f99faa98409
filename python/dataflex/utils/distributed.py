"""What the processes of a run say to each other; alone, nothing is said.

Values travel as JSON and tensors, never as pickles. An error on the main process is raised on all of them, so that none
waits for a process that has given up.

Processes meet before they send: a collective of gloo or nccl gives up after a time (``ddp_timeout``), and one process
may well work for longer than that while the others wait for it. They wait in the store of the process group in its
place, as long as it takes (:mod:`dataflex.utils.meeting`). Where a process dies, its launcher (torchrun) ends the
others; without one, those on its machine notice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from dataflex.errors import DataflexError
from dataflex.utils.meeting import meet

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run.

    Attributes:
        index: Rank, from 0; rank 0 is the main process, which writes files and talks to reward backends.
        count: Number of processes.
        device: Where tensors that travel must lie (a GPU under nccl).
    """

    index: int = 0
    count: int = 1
    device: torch.device | str = "cpu"

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.index == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's items: every ``count``-th. The shares of all ranks are all items."""
        return list(items[self.index :: self.count])

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """The JSON-able values of all ranks, by rank, on every rank."""
        if self.count == 1:
            return [value]
        return [json.loads(_bytes_of(tensor)) for tensor in self._gather_bytes(json.dumps(value).encode())]

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of numbers over ranks, added by rank in float64: the same on every rank."""
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def gather_tensors(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, by rank, on the CPU; shapes may differ, the dtype may not."""
        if self.count == 1:
            return [tensor.detach().cpu()]
        import torch

        flat = tensor.detach().cpu().contiguous()
        shapes = self.gather(list(flat.shape))
        parts = self._gather_bytes(flat.flatten().view(torch.uint8).numpy().tobytes())
        return [part.view(flat.dtype).reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def on_main(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on the main process, on every rank; it runs on the main process alone.

        Args:
            work: Returns a JSON-able value. An error that it raises is raised on every rank.

        Raises:
            DataflexError: On the other ranks, with the main process's message.
        """
        if self.count == 1:
            return work()
        outcome: dict[str, Any] = {}
        failure: BaseException | None = None
        if self.is_main:
            try:
                outcome = {"value": work()}
            except BaseException as error:
                failure = error
                outcome = {"error": str(error) or type(error).__name__}
        outcome = json.loads(_bytes_of(self._broadcast_bytes(json.dumps(outcome).encode())))
        if failure is not None:
            raise failure
        if "error" in outcome:
            raise DataflexError(f"the main process failed: {outcome['error']}")
        value: T = outcome["value"]
        return value

    def together(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on this rank, once all are done with theirs; it fails everywhere if it fails anywhere.

        Args:
            work: This rank's share; it says nothing to other ranks itself.

        Raises:
            DataflexError: On the ranks whose own work is done, with the message of the first that failed.
        """
        if self.count == 1:
            return work()
        found: list[T] = []
        failure: Exception | None = None
        try:
            found.append(work())
        except Exception as error:  # not what ends this process: it shall not wait for the others
            failure = error
        failures = self.gather(None if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        for rank, text in enumerate(failures):
            if text is not None:
                raise DataflexError(f"process {rank} failed: {text}")
        return found[0]

    def with_model(self, work: Callable[[], T]) -> T:
        """What ``work``, which runs the model, returns on the main process; as :meth:`on_main` for a whole model."""
        return self.on_main(work)

    def main_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on this rank, which begins once the main process is done with it.

        For work on shared files: the main process makes or repairs what the others find.
        """
        if self.count == 1:
            return work()
        found: list[T] = []
        self.on_main(lambda: found.append(work()))
        return found[0] if self.is_main else work()

    def in_turn(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on this rank; the ranks do it one after the other, by rank.

        For work on folders that some ranks may have in common.

        Raises:
            DataflexError: On the ranks whose own work is done, with the message of the first that failed.
        """
        if self.count == 1:
            return work()
        found: list[T] = []
        for rank in range(self.count):
            self.together(lambda rank=rank: found.append(work()) if rank == self.index else None)  # type: ignore[misc]
        return found[0]

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of the ranks' integer tensors of one shape, which no order of adding changes; on ``tensor``'s device.

        ``tensor`` is overwritten.
        """
        if self.count == 1:
            return tensor
        import torch.distributed as dist

        self._meet()
        travelling = tensor.to(self.device)
        dist.all_reduce(travelling)
        return tensor.copy_(travelling)

    def _gather_bytes(self, data: bytes) -> list[torch.Tensor]:
        """uint8 tensors of all ranks on the CPU, lengths first, then padded to the longest."""
        import torch
        import torch.distributed as dist

        self._meet()
        length = torch.tensor([len(data)], dtype=torch.int64, device=self.device)
        lengths = [torch.zeros_like(length) for _ in range(self.count)]
        dist.all_gather(lengths, length)
        sizes = [int(size) for size in lengths]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)
        if data:
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device)
        parts = [torch.zeros_like(padded) for _ in range(self.count)]
        dist.all_gather(parts, padded)
        return [part[:size].cpu() for part, size in zip(parts, sizes, strict=True)]

    def _broadcast_bytes(self, data: bytes) -> torch.Tensor:
        """The main process's bytes, uint8 on the CPU."""
        import torch
        import torch.distributed as dist

        self._meet()
        length = torch.tensor([len(data)], dtype=torch.int64, device=self.device)
        dist.broadcast(length, 0)
        travelling = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_main:
            travelling.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(travelling, 0)
        return travelling.cpu()

    def _meet(self) -> None:
        """Wait until every rank is here, for any time."""
        from torch.distributed.distributed_c10d import _get_default_store

        meet(_get_default_store(), self.index, self.count)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()
