"""Ranks that are threads, and the kit's imports."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dataflex.testing
from dataflex.errors import DataflexError, SelectionError
from dataflex.testing import run_ranks


class TestRanks:
    def test_what_ranks_send_arrives_by_rank(self) -> None:
        def work(ranks: Any) -> Any:
            sums = ranks.sum([ranks.index, 1.0])
            tensors = ranks.gather_tensors(torch.full((ranks.index,), float(ranks.index)))
            return ranks.gather({"rank": ranks.index}), sums, [tensor.tolist() for tensor in tensors]

        expected = ([{"rank": 0}, {"rank": 1}, {"rank": 2}], [3.0, 3.0], [[], [1.0], [2.0, 2.0]])
        assert run_ranks(3, work) == [expected] * 3

    def test_ranks_take_turns(self) -> None:
        order: list[tuple[int, int]] = []

        def work(ranks: Any) -> None:
            for turn in range(3):
                order.append((turn, ranks.index))
                ranks.barrier()

        run_ranks(2, work)
        assert order == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]

    def test_each_rank_has_its_own_random_numbers(self) -> None:
        def work(ranks: Any) -> list[float]:
            found = []
            for _ in range(3):
                found += [float(torch.rand(1)), float(np.random.rand())]
                ranks.barrier()
            return found

        before = torch.get_rng_state()
        first, second = run_ranks(2, work)
        assert first == second
        assert len(set(first)) == 6
        assert torch.equal(torch.get_rng_state(), before)

    def test_an_error_of_the_main_process_is_raised_on_all(self) -> None:
        seen: list[str] = []

        def fail() -> None:
            raise SelectionError("no")

        def work(ranks: Any) -> None:
            try:
                ranks.on_main(fail)
            except DataflexError as error:
                seen.append(error.message)
                raise

        with pytest.raises(SelectionError, match="no"):
            run_ranks(2, work)
        assert sorted(seen) == ["no", "the main process failed: no"]

    def test_shared_work_fails_everywhere_if_it_fails_anywhere(self) -> None:
        seen: list[str] = []

        def work(ranks: Any) -> int:
            def share() -> int:
                if ranks.index == 1:
                    raise SelectionError("no")
                return int(ranks.index)

            try:
                return int(ranks.together(share))
            except DataflexError as error:
                seen.append(error.message)
                raise

        with pytest.raises(DataflexError, match="no"):
            run_ranks(3, work)
        assert sorted(seen) == ["no", "process 1 failed: no", "process 1 failed: no"]
        assert run_ranks(2, lambda ranks: ranks.together(lambda: ranks.index)) == [0, 1]

    def test_an_error_of_one_rank_does_not_hang(self) -> None:
        def work(ranks: Any) -> None:
            if ranks.index == 1:
                raise ValueError("rank 1 gave up")
            ranks.barrier()

        with pytest.raises(ValueError, match="rank 1 gave up"):
            run_ranks(3, work)

    def test_a_rank_that_is_waited_for_in_vain_is_an_error(self) -> None:
        def work(ranks: Any) -> None:
            if ranks.index != 1:
                ranks.barrier()

        with pytest.raises(AssertionError, match=r"rank 0 waits .* rank 1 has returned: real processes would hang"):
            run_ranks(3, work)


def test_the_kit_does_without_pytest() -> None:
    for file in Path(inspect.getfile(dataflex.testing)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "pytest" not in ast.unparse(node)
