from __future__ import annotations

import sys

import pytest
import torch

from measuring.memory import PeakMemory
from measuring.timing import OURS, Contender, Times, measure, paired_ratio

CPU = torch.device("cpu")


def test_contenders_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    entered = [Contender(name, OURS, lambda n=name: calls.append(n)) for name in "abc"]
    times = measure(entered, 2, CPU)
    assert calls == ["a", "b", "c"] * 3
    assert all(len(result.wall) == 2 for result in times.values())


def test_times_of_a_part_are_scaled_to_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("measuring.timing._cpu_seconds", lambda run: (2.0, 1.0))
    times = measure([Contender("part", OURS, lambda: None, share=0.25)], 3, CPU)["part"]
    assert times.median() == 8.0
    assert times.processor_median() == 4.0


def test_a_paired_ratio_is_taken_inside_each_round() -> None:
    # Load that doubles both times of a round does not move it; a ratio of medians would be 3.
    assert paired_ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == 2.0
    assert paired_ratio(None, [1.0]) is None


def test_rounds_that_were_not_all_counted_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_times_on_a_gpu_have_no_processor_time() -> None:
    assert Times([1.0], None).processor_median() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_sees_what_a_call_takes_and_gives_back() -> None:
    with PeakMemory(CPU) as peak:
        torch.ones(16_000_000).sum()  # 64 MB
    assert peak.extra is not None
    assert 60e6 < peak.extra < 100e6
    with PeakMemory(CPU) as small:
        sum(range(10))
    assert small.extra is not None
    assert small.extra < 10e6
