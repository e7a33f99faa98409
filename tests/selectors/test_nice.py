from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import ConfigError, RewardError, SelectionError
from dataflex.gradients.advantages import advantages
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import policy_gradient, sample_gradient
from dataflex.gradients.policy import PolicyFeatures
from dataflex.gradients.samples import SampleFeatures
from dataflex.projection.adam import adam_normalize
from dataflex.rewards.scoring import score_answers
from dataflex.testing import EchoReward, tiny_context, tiny_dataset
from dataflex.testing.ranks import run_ranks
from dataflex.utils.distributed import Ranks
from helpers.nice import Fixed, rewritten, stored_rollouts
from helpers.runs import tiny_nice


def reference_scores(context, selector, rollouts):
    """The seed's rule in plain torch, without a projection: mean cosine of full gradients in float64."""
    config = selector.config
    targets = []
    for row, sample in enumerate(context.eval_dataset.samples):
        own = rollouts[row * config.mc_samples : (row + 1) * config.mc_samples]
        scored = [r for r in own if r.reward is not None]
        weights = advantages([r.reward for r in scored], config.baseline)
        if not any(weights):
            continue
        if config.length_normalize:
            weights = [w / len(r.token_ids) for w, r in zip(weights, scored, strict=True)]
        prompt = context.template.encode_prompt(sample.prompt, sample.tools, config.max_prompt_length)
        targets.append(
            policy_gradient(
                context.model,
                prompt,
                [r.token_ids for r in scored],
                weights,
                temperature=config.generation_temperature,
                autocast=context.autocast,
            )
        )
    candidates = [
        sample_gradient(context.model, collate([example], 2), context.autocast) for example in context.train_dataset
    ]
    normalised = adam_normalize(torch.stack(candidates), adam_moments(context.model, context.optimizer)).double()
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (normalised, torch.stack(targets).double())]
    return (unit[0] @ unit[1].T).mean(dim=1).numpy()


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"baseline": "leave_one_out"},
        {"baseline": "mean_std", "length_normalize": True},
        {"reward": Fixed([0.25, None, 1.0, 0.0])},
    ],
)
def test_scores_follow_the_definition(tmp_path, params):
    context = tiny_context(tmp_path)
    parameters = sum(p.numel() for p in context.model.parameters() if p.requires_grad)
    selector = tiny_nice(projection="identity", proj_dim=parameters, keep_features="none", **params)
    selection = selector.select(context)
    expected = reference_scores(context, selector, stored_rollouts(tmp_path))
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-6)
    assert selection.indices.tolist() == np.argsort(-selection.scores, kind="stable")[:4].tolist()
    projected = tiny_nice(proj_dim=2048, **params).select(context)
    assert np.abs(projected.scores - expected).max() < 6 / 2048**0.5


def test_rewards_get_prompt_answer_and_reference(tmp_path):
    context = tiny_context(tmp_path)
    reward = Fixed([0.0, 1.0, 0.5])
    tiny_nice(reward=reward).select(context)
    assert len(reward.requests) == 9
    for request, sample in zip(reward.requests[::3], context.eval_dataset.samples, strict=True):
        assert (request.sample_id, request.messages) == (sample.id, sample.prompt)
        assert request.reference == sample.reference
        assert request.metadata == sample.metadata


@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_that_share_an_id_are_judged_and_differentiated_with_their_own_prompts(tmp_path, ranks):
    """A dataset that was tokenised by hand may repeat ids; the rows are what counts."""
    same = {"id": "same"}
    reward = Fixed([0.0, 1.0, 0.5, 0.25])

    def select(on_rank):
        context = tiny_context(tmp_path, eval_dataset=rewritten(tiny_dataset(3, seed=100), **same), ranks=on_rank)
        parameters = sum(p.numel() for p in context.model.parameters() if p.requires_grad)
        selector = tiny_nice(reward=reward, projection="identity", proj_dim=parameters)
        return context, selector, selector.select(context)

    context, selector, selection = run_ranks(ranks, select)[0]
    prompts = [sample.prompt for sample in context.eval_dataset.samples]
    assert len(set(map(str, prompts))) == 3
    assert [request.messages for request in reward.requests] == [prompt for prompt in prompts for _ in range(3)]
    stored = stored_rollouts(tmp_path)
    assert [answer.answer for answer in stored] == [0, 1, 2] * 3
    assert len({tuple(answer.token_ids) for answer in stored}) == 9  # answers of their own
    expected = reference_scores(context, selector, stored)
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-6)


def test_stored_answers_that_mixed_up_an_id_are_not_used(tmp_path):
    """Before rows were told apart, a file held the answers of one id together, judged with one of its prompts."""
    context = tiny_context(tmp_path, eval_dataset=rewritten(tiny_dataset(3, seed=100), id="same"))
    selector = tiny_nice()
    selector.select(context)
    sidecar = tmp_path / "rollouts" / "step-2.meta.json"
    facts = json.loads(sidecar.read_text(encoding="utf-8"))
    for entry in facts.values():
        assert entry["answers"].pop("repeated_ids") == 2
    sidecar.write_text(json.dumps(facts), encoding="utf-8")
    assert "answers" in selector.select(context).report["seconds"]


def test_missing_rewards_are_left_out_and_never_zero(tmp_path):
    context = tiny_context(tmp_path / "a")
    some = tiny_nice(reward=Fixed([0.25, None, 1.0]), baseline="leave_one_out").select(context)
    facts = some.report["rewards"]
    assert (facts["answers"], facts["scored"], facts["missing"], facts["min"]) == (9, 6, 3, 0.25)
    other = replace(context, output_dir=tmp_path / "b")
    zeroed = tiny_nice(reward=Fixed([0.25, 0.0, 1.0]), baseline="leave_one_out").select(other)
    assert not np.allclose(some.scores, zeroed.scores)


def test_a_failing_reward_stops_the_selection(tmp_path):
    class Broken(EchoReward):
        def score(self, requests):
            raise RewardError("the judge is down")

    with pytest.raises(RewardError, match="the judge is down"):
        tiny_nice(reward=Broken()).select(tiny_context(tmp_path))
    assert all(answer.reward is None for answer in stored_rollouts(tmp_path))
    for rewards, message in (([float("nan")], "nan"), ([0.5, 1.0, float("inf")], "inf")):
        with pytest.raises(RewardError, match=message):
            tiny_nice(reward=Fixed(rewards)).select(tiny_context(tmp_path))


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (
            torch.tensor([0.5] * 9),
            r"tensor\(0\.5000\) \(Tensor\) for sample '\w+', .* and 4 more, expected finite numbers",
        ),
        (["0.5"] * 9, r"'0\.5' \(str\) for sample"),
        ([0.5] * 8 + [10**5000], r"a huge int \(int\) for sample"),
        ([0.5] * 8 + [0.5j], r"0\.5j \(complex\) for sample"),
        ("123456789", r"returned '123456789' \(str\), expected a list"),
        (torch.tensor(0.5), r"returned tensor\(0\.5000\) \(Tensor\), expected a list"),
        ({"a": 0.5}, r"\(dict\), expected a list"),
        (None, r"returned None \(NoneType\), expected a list"),
    ],
)
def test_rewards_that_are_no_numbers_are_named(tmp_path, rewards, message):
    class Odd(EchoReward):
        def score(self, requests):
            return rewards

    with pytest.raises(RewardError, match=message):
        tiny_nice(reward=Odd()).select(tiny_context(tmp_path))
    assert len(stored_rollouts(tmp_path)) == 9  # the answers are kept


def test_numbers_of_other_packages_are_rewards(tmp_path):
    class Array(EchoReward):
        def score(self, requests):
            return np.linspace(0, 1, len(requests), dtype=np.float32)

    tiny_nice(reward=Array()).select(tiny_context(tmp_path))
    assert [answer.reward for answer in stored_rollouts(tmp_path)] == [i / 8 for i in range(9)]
    tiny_nice(reward=Fixed([np.float32(0.5), np.int64(1), True])).select(tiny_context(tmp_path / "b"))
    assert [answer.reward for answer in stored_rollouts(tmp_path / "b")] == [0.5, 1.0, 1.0] * 3


def test_wrong_number_of_rewards_is_refused(tmp_path):
    class Short(EchoReward):
        def score(self, requests):
            return [0.5]

    with pytest.raises(RewardError, match="1 rewards for 9 requests"):
        tiny_nice(reward=Short()).select(tiny_context(tmp_path))


@pytest.mark.parametrize(("baseline", "rewards"), [("none", [0.0]), ("leave_one_out", [0.7]), ("none", [None])])
def test_no_signal_stops_with_answers_to_look_at(tmp_path, baseline, rewards):
    selector = tiny_nice(reward=Fixed(rewards), baseline=baseline)
    with pytest.raises(SelectionError, match="no evaluation prompt carries a signal") as caught:
        selector.select(tiny_context(tmp_path))
    assert str(caught.value).count(" -> ") == 5
    assert "on_no_signal: reference" in str(caught.value)


def test_no_signal_may_use_the_reference_answers(tmp_path, caplog):
    context = tiny_context(tmp_path)
    selection = tiny_nice(reward=Fixed([0.0]), on_no_signal="reference").select(context)
    assert selection.report["target"] == "reference answers"
    assert selection.report["prompts"] == {
        **{"total": 3, "with_signal": 0, "with_reference": 0},
        **{"not_finite": [], "zero": []},
    }
    assert "no evaluation prompt carries a reward signal" in caplog.text


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "mean_std"])
@pytest.mark.parametrize("exponent", [-1000, -150, 130, 1000])
def test_the_size_of_rewards_does_not_matter(tmp_path, baseline, exponent):
    """Float32 weights of a loss would be 0 or inf, and the first rows selected with a score of 0."""
    rewards = [0.25, 1.0, 0.5, 0.125]
    context = tiny_context(tmp_path)
    expected = tiny_nice(reward=Fixed(rewards), baseline=baseline).select(context)
    scaled = Fixed([math.ldexp(reward, exponent) for reward in rewards])
    found = tiny_nice(reward=scaled, baseline=baseline).select(replace(context, output_dir=tmp_path / "scaled"))
    assert np.array_equal(found.scores, expected.scores)
    assert found.report["rewards"]["mean"] == math.ldexp(expected.report["rewards"]["mean"], exponent)


def test_features_of_zero_are_no_signal(tmp_path, monkeypatch):
    monkeypatch.setattr(PolicyFeatures, "features", lambda self, items: torch.zeros(len(items), 256))
    context = tiny_context(tmp_path)
    with pytest.raises(SelectionError, match=r"no evaluation sample carries a signal: .*3 targets"):
        tiny_nice().select(context)
    assert not (tmp_path / "features" / "step-2" / "train").exists()  # no candidate's gradient was computed


def test_prompts_without_signal_are_counted(tmp_path, caplog):
    rewards = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.5, 0.5, 0.5]
    selection = tiny_nice(reward=Fixed(rewards), baseline="leave_one_out").select(tiny_context(tmp_path))
    assert "one of 3 evaluation prompts carries a signal: the direction rests on it alone" in caplog.text
    assert selection.report["prompts"]["with_signal"] == 1
    assert selection.report["left_out"]["prompts without a signal"] == 2


def test_prompts_without_a_scored_answer_are_counted_apart(tmp_path):
    rewards = [1.0, 0.0, 1.0, None, None, None, 0.5, None, 0.5]
    selection = tiny_nice(reward=Fixed(rewards), baseline="leave_one_out").select(tiny_context(tmp_path))
    assert selection.report["left_out"] == {
        "answers without a reward": 4,
        "prompts without a scored answer": 1,
        "prompts without a signal": 1,
        "prompts with a gradient that is not finite": 0,
        "candidates with a gradient that is not finite": 0,
        "candidates with a gradient of zero": 0,
    }


def test_a_candidate_that_is_not_finite_is_left_out(tmp_path, caplog, monkeypatch):
    real = SampleFeatures.features

    def features(self, rows):
        values = real(self, rows)
        values[[row == 4 for row in rows]] = float("nan")
        return values

    monkeypatch.setattr(SampleFeatures, "features", features)
    context = tiny_context(tmp_path)
    selection = tiny_nice().select(context)
    assert selection.scores[4] == -np.inf
    assert np.isfinite(np.delete(selection.scores, 4)).all()
    assert 4 not in selection.indices
    assert selection.report["candidates"] == {"total": 12, "not_finite": 1, "zero": 0}
    assert selection.report["left_out"]["candidates with a gradient that is not finite"] == 1
    assert f"left out: {context.train_dataset[4].sample.id}" in caplog.text
    with pytest.raises(SelectionError, match="11 of 12 candidates have a usable score"):
        tiny_nice().select(replace(context, num_samples=12))


@pytest.mark.parametrize(("keep", "left"), [("last", ["step-5"]), ("all", ["step-2", "step-5"]), ("none", [])])
def test_old_features_are_removed(tmp_path, keep, left):
    selector = tiny_nice(keep_features=keep)
    context = tiny_context(tmp_path)
    selector.select(context)
    selector.select(replace(context, step=5, round=2))
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == left


def test_cache_dir_takes_features_and_answers(tmp_path):
    tiny_nice(cache_dir=tmp_path / "cache").select(tiny_context(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"features", "rollouts"}
    assert not (tmp_path / "out").exists()


def test_parameters_are_checked_at_once():
    with pytest.raises(ConfigError) as caught:
        tiny_nice(proj_dim=0, generation_temperature=0, gradient_type="adamw", mc_sample=4)
    for problem in ("proj_dim", "generation_temperature", "gradient_type", "unknown key 'mc_sample'"):
        assert f"nice: {problem}" in str(caught.value)


def test_check_finds_what_would_fail_later(tmp_path, caplog):
    context = tiny_context(tmp_path)
    tiny_nice(generation_top_p=0.9).check(context)
    assert "biases the policy gradient" in caplog.text
    with pytest.raises(SelectionError, match="needs an evaluation set"):
        tiny_nice().check(replace(context, eval_dataset=None))
    no_tasks = replace(context, eval_dataset=rewritten(context.eval_dataset, metadata={}))
    tiny_nice(aggregate="task_max").check(context)
    tiny_nice().check(no_tasks)
    with pytest.raises(SelectionError, match="needs the column 'task' in every evaluation sample; 3 have none"):
        tiny_nice(aggregate="task_max").check(no_tasks)


def test_reference_answers_are_missed_before_training(tmp_path):
    context = tiny_context(tmp_path)
    bare = [replace(example, labels=[-100] * len(example.labels)) for example in context.eval_dataset]
    without = replace(context, eval_dataset=TokenizedDataset(bare))
    tiny_nice().check(without)  # needs none
    tiny_nice(on_no_signal="reference").check(context)
    with pytest.raises(SelectionError, match="'reference' needs reference answers, and no evaluation sample has one"):
        tiny_nice(on_no_signal="reference").check(without)


def test_a_replay_of_no_run_is_an_error_of_the_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"replay_rewards: .*there is no folder .*gone"):
        tiny_nice(replay_rewards=tmp_path / "gone")


def test_score_answers_keeps_the_order(tmp_path):
    context = tiny_context(tmp_path)
    tiny_nice().select(context)
    answers = stored_rollouts(tmp_path)
    scored = score_answers(Fixed([0.1, 0.2, 0.3]), context.eval_dataset.samples, answers, Ranks())
    assert [rollout.reward for rollout in scored] == [0.1, 0.2, 0.3] * 3


@example([0.0, 5e-324])
@given(st.lists(st.floats(0, 1), max_size=6))
def test_advantages(rewards):
    assert advantages(rewards, "none") == rewards
    centred = advantages(rewards, "leave_one_out")
    assert sum(centred) == pytest.approx(0, abs=1e-9)
    for index, value in enumerate(centred):
        others = rewards[:index] + rewards[index + 1 :]
        expected = rewards[index] - sum(others) / len(others) if others else 0.0
        assert value == pytest.approx(expected, abs=1e-9)
    scaled = np.array(advantages(rewards, "mean_std"))
    if len(set(rewards)) > 1 and np.std(rewards) > 1e-6:
        assert scaled.std() == pytest.approx(1, rel=1e-6)
    else:
        assert np.isfinite(scaled).all()


def test_task_max_uses_the_tasks_of_the_evaluation_set(tmp_path):
    context = tiny_context(tmp_path, eval_dataset=tiny_dataset(6, seed=100))
    mean = tiny_nice().select(context)
    by_task = tiny_nice(aggregate="task_max").select(context)
    assert not np.allclose(mean.scores, by_task.scores)
    assert (by_task.scores >= mean.scores - 1e-9).all()
