"""A run that stops while its judge is asked goes on without asking twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataflex.errors import RewardError
from dataflex.training.trainer import Trainer
from helpers.api_judge import KEY, backend
from helpers.http_judge import Call, JudgeServer, Reply, judge_server, score
from helpers.runs import tiny_nice, tiny_trainer

ASKED_BEFORE = 4


def trainer(output_dir: Path, server: JudgeServer, cache: Path | None) -> Trainer:
    judge = backend(server, cache_path=cache, max_concurrency=1)
    return tiny_trainer(output_dir, selector=tiny_nice(reward=judge), resume_from_checkpoint=True)


def selections(output_dir: Path) -> list[list[dict[str, object]]]:
    files = sorted((output_dir / "selections").iterdir())
    return [pq.read_table(file).select(["index", "score", "rank"]).to_pylist() for file in files]


@pytest.mark.integration
def test_the_resumed_run_asks_only_for_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)

    def fair(call: Call, number: int) -> Reply:
        return score(len(call.prompt) % 5 / 4)

    def refusing(call: Call, number: int) -> Reply:
        return fair(call, number) if number < ASKED_BEFORE else Reply("{}", 401)

    cache = tmp_path / "replies.sqlite"
    with judge_server(refusing) as server:
        with pytest.raises(RewardError, match="401"):
            trainer(tmp_path / "broken", server, cache).train()
        paid = [call.prompt for call in server.calls[:ASKED_BEFORE]]
        server.calls.clear()
        server.script = fair
        trainer(tmp_path / "broken", server, cache).train()
        asked = [call.prompt for call in server.calls]
        server.calls.clear()
        trainer(tmp_path / "whole", server, None).train()
        needed = {call.prompt for call in server.calls}
    assert len(set(paid)) == ASKED_BEFORE
    assert len(asked) == len(set(asked))
    assert not set(paid) & set(asked)
    assert set(paid) | set(asked) == needed
    assert selections(tmp_path / "broken") == selections(tmp_path / "whole")


@pytest.mark.integration
def test_the_cap_is_one_of_the_run_and_starting_over_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)

    def capped(**args: Any) -> Trainer:
        judge = backend(server, max_requests=6, max_retries=0, max_concurrency=1, on_error="skip")
        return tiny_trainer(tmp_path / "run", selector=tiny_nice(reward=judge), **args)

    with judge_server(lambda call, number: Reply("down", 500)) as server:
        for _ in range(3):
            with pytest.raises(RewardError, match="all 6 requests are spent"):
                capped(resume_from_checkpoint=True).train()
        assert len(server.calls) == 6
        with pytest.raises(RewardError, match="all 6 requests are spent"):
            capped(overwrite_output_dir=True).train()
        assert len(server.calls) == 12
