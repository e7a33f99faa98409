from __future__ import annotations

from dataclasses import replace

import pytest

from dataflex.errors import DataflexError, TrainingError
from dataflex.offline.work import check_agreed, working_in
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.testing import run_ranks, tiny_context
from dataflex.utils.distributed import Ranks
from dataflex.utils.lock import locked


def test_ranks_of_a_selection_must_have_been_started_alike(tmp_path):
    def start(ranks, seed):
        check_agreed(RandomSelector(), replace(tiny_context(tmp_path), ranks=ranks, seed=seed))

    run_ranks(2, lambda ranks: start(ranks, 3))
    with pytest.raises(TrainingError, match=r"rank 1 differs from rank 0: seed 3 -> 4"):
        run_ranks(2, lambda ranks: start(ranks, 3 + ranks.index))


def test_a_selection_holds_its_folders_and_says_how_it_goes_on(tmp_path):
    selector = LessSelector(cache_dir=tmp_path / "cache")
    with locked(tmp_path / "cache"), pytest.raises(DataflexError, match="in use by another run"):  # noqa: SIM117
        with working_in(tmp_path / "work", selector, Ranks()):
            pass
    (tmp_path / "work" / "features").mkdir(parents=True)
    with pytest.raises(DataflexError) as caught, working_in(tmp_path / "work", selector, Ranks()):
        raise DataflexError("no")
    assert "goes on with what is in" in str(caught.value.hint)
    with working_in(None, RandomSelector(), Ranks()):
        pass
