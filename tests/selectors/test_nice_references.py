"""The reference answer as one more answer of its prompt, and how reliable the target is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import RolloutError, SelectionError
from dataflex.gradients.advantages import advantages
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import policy_gradient, sample_gradient
from dataflex.gradients.policy import PolicyFeatures, WeightedPrompt, halves, halves_agreement, whole_rows
from dataflex.projection.adam import adam_normalize
from dataflex.projection.projector import Projector
from dataflex.rollouts import Rollout
from dataflex.rollouts.references import reference_rollouts
from dataflex.selectors.less import LessSelector
from dataflex.selectors.nice import NiceSelector
from dataflex.selectors.nice.targets import Halves, weighted
from dataflex.testing import EchoReward, tiny_context
from dataflex.utils.reliability import LOW
from helpers.runs import tiny_nice


class Graded(EchoReward):
    """References earn ``reference``, the sampled answers what comes next of ``sampled``; remembers the requests."""

    def __init__(self, sampled, reference=1.0):
        super().__init__()
        self.sampled, self.reference, self.requests = list(sampled), reference, []

    def score(self, requests):
        self.requests.append(list(requests))
        asked = [request for request in requests if request.prediction != request.reference]
        given = iter([self.sampled[number % len(self.sampled)] for number in range(len(asked))])
        return [self.reference if r.prediction == r.reference else next(given) for r in requests]


def identity(context, **params):
    parameters = sum(p.numel() for p in context.model.parameters() if p.requires_grad)
    return tiny_nice(projection="identity", proj_dim=parameters, **params)


def expected_scores(context, selector, rewards_by_row, with_reference):
    """Mean cosine of full gradients, each prompt's weights computed by hand."""
    config = selector.config
    lines = (context.output_dir / "rollouts" / "step-2.jsonl").read_text(encoding="utf-8").splitlines()
    sampled = [json.loads(line)["token_ids"] for line in lines]
    references = reference_rollouts(
        context.eval_dataset.samples, context.template, context.tokenizer, config.max_new_tokens
    )
    targets = []
    for row, rewards in enumerate(rewards_by_row):
        answers = sampled[row * config.mc_samples : (row + 1) * config.mc_samples]
        if row in with_reference:
            answers = [*answers, references[row].token_ids]
        count = len(rewards)
        if config.baseline == "leave_one_out":
            weights = [r - (sum(rewards) - r) / (count - 1) for r in rewards]
        else:
            weights = rewards
        prompt = context.eval_dataset.samples[row].prompt
        prompt_ids = context.template.encode_prompt(prompt, (), config.max_prompt_length)
        how = {"temperature": config.generation_temperature, "autocast": context.autocast}
        targets.append(policy_gradient(context.model, prompt_ids, answers, weights, **how))
    rows = [sample_gradient(context.model, collate([e], 2), context.autocast) for e in context.train_dataset]
    normalised = adam_normalize(torch.stack(rows), adam_moments(context.model, context.optimizer)).double()
    unit = [part / part.norm(dim=1, keepdim=True) for part in (normalised, torch.stack(targets).double())]
    return (unit[0] @ unit[1].T).mean(dim=1).numpy()


def without_references(context):
    asked = [
        replace(example, sample=replace(example.sample, messages=example.sample.prompt))
        for example in context.eval_dataset
    ]
    return replace(context, eval_dataset=TokenizedDataset(asked))


def as_shipped(**params):
    """NICE with the baseline and the references that nobody has set."""
    fields = NiceSelector.Config.model_fields
    return tiny_nice(**{name: fields[name].default for name in ("baseline", "reference_answer")}, **params)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_a_reference_is_weighted_like_any_answer(tmp_path, baseline):
    context = tiny_context(tmp_path)
    reward = Graded([0.0, 0.5, 0.25])
    selector = identity(context, reward=reward, baseline=baseline, reference_answer="sample")
    selection = selector.select(context)
    expected = expected_scores(context, selector, [[0.0, 0.5, 0.25, 1.0]] * 3, {0, 1, 2})
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-6)
    assert [len(asked) for asked in reward.requests] == [9, 3]
    assert selection.report["prompts"]["with_reference"] == 3
    assert selection.report["reference_rewards"]["mean"] == 1.0
    assert selection.report["rewards"]["answers"] == 9  # the sampled ones


def test_fallback_asks_only_where_there_is_no_signal(tmp_path):
    context = tiny_context(tmp_path)
    reward = Graded([0.0, 1.0, 0.0, *[0.0] * 6])
    params = {"reward": reward, "baseline": "leave_one_out", "reference_answer": "fallback"}
    selector = identity(context, **params)
    selection = selector.select(context)
    rewards = [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
    expected = expected_scores(context, selector, rewards, {1, 2})
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-6)
    asked = [request.sample_id for request in reward.requests[1]]
    assert asked == [sample.id for sample in context.eval_dataset.samples[1:]]
    assert selection.report["prompts"] == {
        **{"total": 3, "with_signal": 3, "with_reference": 2},
        **{"not_finite": [], "zero": []},
    }


def test_a_reference_without_a_reward_is_left_out(tmp_path):
    context = tiny_context(tmp_path)
    selection = tiny_nice(reward=Graded([0.25, 0.5], reference=None), reference_answer="sample").select(context)
    without = tiny_nice(reward=Graded([0.25, 0.5])).select(replace(context, output_dir=tmp_path / "none"))
    np.testing.assert_allclose(selection.scores, without.scores, rtol=0, atol=1e-6)
    assert selection.report["reference_rewards"]["missing"] == 3


def test_references_are_neither_scored_twice_nor_lost_in_a_replay(tmp_path):
    context = tiny_context(tmp_path)
    first = tiny_nice(reward=Graded([0.0, 0.5]), reference_answer="sample").select(context)

    class Untouchable(EchoReward):
        def score(self, requests):
            raise AssertionError("scored again")

    untouchable = Untouchable()
    again = tiny_nice(reward=untouchable, reference_answer="sample").select(context)
    assert np.array_equal(again.scores, first.scores)
    elsewhere = replace(context, output_dir=tmp_path / "replayed")
    replayed = tiny_nice(reward=untouchable, reference_answer="sample", replay_rewards=tmp_path).select(elsewhere)
    assert np.array_equal(replayed.scores, first.scores)
    assert (tmp_path / "replayed" / "rollouts" / "step-2.references.jsonl").is_file()
    (tmp_path / "rollouts" / "step-2.references.jsonl").unlink()
    with pytest.raises(RolloutError, match=r"step-2\.references\.jsonl"):
        tiny_nice(reward=untouchable, reference_answer="sample", replay_rewards=tmp_path).select(elsewhere)


def test_references_that_do_not_exist_are_noticed_before_training(tmp_path):
    without = without_references(tiny_context(tmp_path))
    with pytest.raises(SelectionError, match="reference_answer 'sample' needs reference answers"):
        tiny_nice(reference_answer="sample").check(without)
    tiny_nice().check(without)


def test_halves_add_up_to_their_prompt(tmp_path):
    context = tiny_context(tmp_path)
    answers = [[3, 4, 5], [6, 7], [8], [9, 3, 2], [4]]
    prompts = [
        WeightedPrompt(0, [1, 5, 6], answers, [0.5, 0.0, -0.25, 1.0, -0.5]),
        WeightedPrompt(1, [1, 7], answers[:2], [0.0, 1.0]),  # one answer has a weight: no second half
        WeightedPrompt(2, [1, 8, 9, 3], answers[:4], [0.1, 0.2, 0.3, -0.6]),
    ]
    assert [len(halves(prompt)) for prompt in prompts] == [2, 1, 2]
    split = Halves.of(prompts, "none")
    assert Halves.of(prompts, "leave_one_out") == Halves(prompts, [[1.0]] * 3)
    stores = [
        PolicyFeatures(context, made, Projector(256), temperature=0.7, batch_tokens=500).fill(
            tmp_path / name, save_rows=2, description=name
        )
        for name, made in (("whole", prompts), ("halves", split.prompts))
    ]
    whole = torch.cat([block for _, block in whole_rows(stores[1].blocks(), split.factors)])
    torch.testing.assert_close(whole, stores[0].load().double(), rtol=1e-5, atol=1e-6)
    rows = stores[1].load().double()
    unit = rows / rows.norm(dim=1, keepdim=True)
    expected = torch.cosine_similarity(unit[0] + unit[3], unit[1] + unit[4], dim=0)
    assert halves_agreement(stores[1].blocks(), split.factors) == pytest.approx(float(expected), abs=1e-9)


def test_equal_rewards_have_no_weight():
    alone = WeightedPrompt(0, [1], [], [])
    same = [Rollout("0", m, [3, 4], [-1.0, -1.0], True, "x", 0.5) for m in range(3)]
    assert weighted(alone, same, "leave_one_out", length_normalize=False) is None
    found = weighted(alone, same, "none", length_normalize=True)
    assert found is not None
    assert found.weights == [found.weights[0]] * 3
    assert advantages([0.5, 0.5, 1.0], "leave_one_out") == pytest.approx([-0.25, -0.25, 0.5])


def test_as_shipped_a_reference_counts_beside_the_answers(tmp_path, caplog):
    """By hand: rewards 0, 0, 0 and 1 for the reference give the advantages -1/3, -1/3, -1/3 and 1."""
    caplog.set_level("INFO", logger="dataflex")
    context = tiny_context(tmp_path)
    parameters = sum(p.numel() for p in context.model.parameters() if p.requires_grad)
    selector = as_shipped(reward=Graded([0.0]), projection="identity", proj_dim=parameters)
    selector.check(context)
    assert "reference_answer: auto is sample here: 3 of 3 evaluation samples have a reference" in caplog.text
    selection = selector.select(context)
    assert advantages([0.0, 0.0, 0.0, 1.0], "leave_one_out") == pytest.approx([-1 / 3, -1 / 3, -1 / 3, 1.0])
    expected = expected_scores(context, selector, [[0.0, 0.0, 0.0, 1.0]] * 3, {0, 1, 2})
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-6)
    assert selection.report["reference_answer"] == "sample"
    assert selection.report["reliability"]["answers"] is None  # the baseline ties the halves together


def test_as_shipped_it_does_without_references_where_there_are_none(tmp_path):
    context = without_references(tiny_context(tmp_path / "auto"))
    shipped = as_shipped(reward=Graded([0.0, 0.5, 0.25]))
    shipped.check(context)
    found = shipped.select(context)
    alone = tiny_nice(reward=Graded([0.0, 0.5, 0.25]), baseline="leave_one_out")
    expected = alone.select(replace(context, output_dir=tmp_path / "none"))
    assert np.array_equal(found.scores, expected.scores)
    assert found.report["reference_answer"] == "none"


def test_as_shipped_a_run_without_references_can_be_replayed(tmp_path):
    context = tiny_context(tmp_path / "first")
    first = tiny_nice(reward=Graded([0.0, 0.5, 0.25]), baseline="leave_one_out").select(context)
    again = as_shipped(reward=Graded([1.0]), replay_rewards=tmp_path / "first")
    assert np.array_equal(again.select(replace(context, output_dir=tmp_path / "again")).scores, first.scores)


def test_one_answer_has_nothing_to_be_compared_with(tmp_path):
    context = tiny_context(tmp_path)
    as_shipped(mc_samples=1).check(context)  # the reference is the other one
    with pytest.raises(SelectionError, match=r"'leave_one_out' compares the answers .* mc_samples 1"):
        as_shipped(mc_samples=1).check(without_references(context))
    tiny_nice(mc_samples=1).check(context)


@pytest.mark.parametrize("selector", [LessSelector(proj_dim=256, aggregate="mean"), tiny_nice()])
def test_selections_say_how_reliable_their_target_was(tmp_path, caplog, selector):
    caplog.set_level("INFO", logger="dataflex")
    report = selector.select(tiny_context(tmp_path)).report["reliability"]
    assert -1 <= report["targets"] <= 1
    assert (report["answers"] is None) == (selector.name == "less")
    assert "reliability of the target: " in caplog.text
    low = report["targets"] < LOW
    assert ("mostly noise" in caplog.text) == low
    if low:
        assert selector.more_reliable in caplog.text
