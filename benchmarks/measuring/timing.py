"""Paired timing: every contender has its turn in every round, so that other work on the machine hits all of them.

A contender that would take minutes works on the first part of the parameters alone (``share``), and its times are
divided by that share; every table marks it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from measuring.memory import PeakMemory, TensorMemory

FLOOR, OURS, BASELINE, PEER = "floor", "ours", "baseline", "peer"


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: Its row in the tables.
        role: ``floor``, ``ours``, ``baseline`` (plain torch) or ``peer`` (another package).
        run: The call.
        share: Part of the parameters that the call works on; its time is linear in it.
        stored: Bytes that it keeps between calls beside gradients and moments, for all parameters; None if unknown.
    """

    name: str
    role: str
    run: Callable[[], object]
    share: float = 1.0
    stored: float | None = 0.0


@dataclass
class Times:
    """What the counted calls of a contender took, one entry a round, in seconds for all parameters.

    Attributes:
        wall: From start to end.
        processor: Processor time of the process over the number of threads. Below ``wall``: the threads waited, or
            other work had the processor. None on a GPU.
        memory: Bytes by which a call raised the peak of the process (of the GPU, of its tensors), as called; None if
            unknown.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] | None = field(default_factory=list)
    memory: int | None = None

    def median(self) -> float:
        """Median wall seconds."""
        return statistics.median(self.wall)

    def processor_median(self) -> float | None:
        """Median processor seconds a thread."""
        return None if self.processor is None else statistics.median(self.processor)


def paired_ratio(numerator: Sequence[float] | None, denominator: Sequence[float] | None) -> float | None:
    """Median over the rounds of the ratio inside each round."""
    if numerator is None or denominator is None:
        return None
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def measure(
    contenders: Sequence[Contender],
    rounds: int,
    device: torch.device,
    memory: type[PeakMemory] | type[TensorMemory] = PeakMemory,
) -> dict[str, Times]:
    """Time all contenders in turns.

    A first round does not count; it shows how much memory a call takes.

    Args:
        contenders: With different names.
        rounds: Counted rounds.
        device: Where they work.
        memory: What memory of the first round is measured.

    Returns:
        Times by name.
    """
    clock = _gpu_seconds if device.type == "cuda" else _cpu_seconds
    times = {contender.name: Times() for contender in contenders}
    for contender in contenders:
        with memory(device) as peak:
            contender.run()
        times[contender.name].memory = peak.extra
    for _ in range(rounds):
        for contender in contenders:
            gc.collect()
            wall, processor = clock(contender.run)
            result = times[contender.name]
            result.wall.append(wall / contender.share)
            if processor is None or result.processor is None:
                result.processor = None
            else:
                result.processor.append(processor / contender.share)
    return times


def _cpu_seconds(run: Callable[[], object]) -> tuple[float, float | None]:
    """Wall seconds, and processor seconds a thread."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, (time.process_time() - processor) / torch.get_num_threads()


def _gpu_seconds(run: Callable[[], object]) -> tuple[float, float | None]:
    """Seconds between two events on the current stream."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    run()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / 1000, None
