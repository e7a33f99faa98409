"""What a round of NICE leaves on disk, and when it is used again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import GradientError, RewardError, RolloutError
from dataflex.testing import EchoReward, tiny_context, tiny_dataset
from helpers.nice import Fixed, rewritten, stored_rollouts
from helpers.runs import tiny_nice


def test_a_finished_round_is_not_paid_for_twice(tmp_path):
    context = tiny_context(tmp_path)
    first = tiny_nice().select(context)

    class Untouchable(EchoReward):
        def score(self, requests):
            raise AssertionError("scored again")

    again = tiny_nice(reward=Untouchable()).select(context)
    assert np.array_equal(again.scores, first.scores)
    assert "answers" in first.report["seconds"]
    assert "answers" not in again.report["seconds"]


def test_answers_of_a_round_whose_reward_failed_are_not_drawn_again(tmp_path):
    context = tiny_context(tmp_path)
    expected = tiny_nice().select(replace(context, output_dir=tmp_path / "other"))

    class Broken(EchoReward):
        def score(self, requests):
            raise RewardError("the judge is down")

    with pytest.raises(RewardError):
        tiny_nice(reward=Broken()).select(context)
    again = tiny_nice().select(context)
    assert np.array_equal(again.scores, expected.scores)
    assert "answers" not in again.report["seconds"]
    assert "rewards" in again.report["seconds"]


def test_another_reward_scores_the_same_answers(tmp_path, caplog):
    context = tiny_context(tmp_path)
    tiny_nice().select(context)
    answers = [replace(found, reward=None) for found in stored_rollouts(tmp_path)]
    other = type("Other", (Fixed,), {"name": "other"})
    tiny_nice(reward=other([0.25, 0.5])).select(context)
    assert [replace(found, reward=None) for found in stored_rollouts(tmp_path)] == answers
    assert [found.reward for found in stored_rollouts(tmp_path)][:4] == [0.25, 0.5, 0.25, 0.5]
    assert "rewards in" in caplog.text
    assert "name differs" in caplog.text


def test_rewards_are_asked_for_again_if_a_sample_says_something_else(tmp_path):
    context = tiny_context(tmp_path)
    tiny_nice().select(context)
    answers = [found.token_ids for found in stored_rollouts(tmp_path)]
    reward = Fixed([0.25, 0.5])
    changed = replace(context, eval_dataset=rewritten(context.eval_dataset, metadata={"reference": "x"}))
    again = tiny_nice(reward=reward).select(changed)
    assert reward.requests[0].metadata == {"reference": "x"}
    assert [found.token_ids for found in stored_rollouts(tmp_path)] == answers
    assert "answers" not in again.report["seconds"]
    with pytest.raises(RolloutError, match=r"rewards\.samples differs"):
        tiny_nice(replay_rewards=tmp_path).select(replace(context, output_dir=tmp_path / "later"))


def test_answers_of_other_ids_are_drawn_again(tmp_path):
    context = tiny_context(tmp_path)
    tiny_nice().select(context)
    shuffled = [
        replace(example, sample=replace(example.sample, id=f"new {row}"))
        for row, example in enumerate(context.eval_dataset)
    ]
    selection = tiny_nice().select(replace(context, eval_dataset=TokenizedDataset(shuffled)))
    assert {found.sample_id for found in stored_rollouts(tmp_path)} == {"new 0", "new 1", "new 2"}
    assert "answers" in selection.report["seconds"]


def test_without_moments_no_reward_is_asked_for(tmp_path):
    reward = Fixed([0.5])
    with pytest.raises(GradientError, match="no moments yet"):
        tiny_nice(reward=reward).select(tiny_context(tmp_path, steps=0))
    assert reward.requests == []
    assert list(tmp_path.iterdir()) == []


def test_replay_uses_stored_answers_and_rewards_without_any_call(tmp_path):
    context = tiny_context(tmp_path / "first")
    first = tiny_nice().select(context)
    params = {"reward": "api", "reward_backend_params": {"api": {"api_url": "http://x/v1", "model_name": "m"}}}
    replaying = tiny_nice(**params, replay_rewards=tmp_path / "first")
    later = replace(context, output_dir=tmp_path / "second")
    replaying.check(later)  # no key is needed
    again = replaying.select(later)
    assert np.array_equal(again.scores, first.scores)
    assert not {"answers", "rewards"} & set(again.report["seconds"])
    assert stored_rollouts(tmp_path / "second") == stored_rollouts(tmp_path / "first")
    third = tiny_nice(**params, replay_rewards=tmp_path / "second").select(
        replace(context, output_dir=tmp_path / "third")
    )
    assert np.array_equal(third.scores, first.scores)
    with pytest.raises(RolloutError, match=r"step-5\.jsonl"):
        replaying.select(replace(later, step=5))
    with pytest.raises(RolloutError, match="another evaluation set"):
        replaying.select(replace(later, eval_dataset=tiny_dataset(3, seed=7)))
