from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dataflex.data import ChatTemplate, tokenize
from dataflex.errors import ConfigError, GradientError, SelectionError
from dataflex.gradients.samples import SampleFeatures
from dataflex.selectors.less import LessSelector
from dataflex.testing import stepped_optimizer, tiny_context, tiny_dataset, tiny_samples, tiny_tokenizer
from helpers.influence import by_task, full_cosines


def tiny_less(**params):
    return LessSelector(**({"proj_dim": 256, "save_interval": 5} | params))


def unprojected(context, **params):
    parameters = sum(p.numel() for p in context.model.parameters() if p.requires_grad)
    return tiny_less(projection="identity", proj_dim=parameters, **params)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"adam_variant": "less"},
        {"adam_variant": "second_moment"},
        {"gradient_type": "sgd"},
        {"aggregate": "mean"},
        {"aggregate": "max"},
    ],
)
def test_scores_follow_the_definition(tmp_path, params):
    context = tiny_context(tmp_path, eval_dataset=tiny_dataset(6, seed=100))
    full = full_cosines(context, **{key: value for key, value in params.items() if key != "aggregate"})
    rule = params.get("aggregate")
    expected = full.mean(axis=1) if rule == "mean" else full.max(axis=1) if rule == "max" else by_task(context, full)
    selection = unprojected(context, **params).select(context)
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-5)
    assert selection.indices.tolist() == np.argsort(-selection.scores, kind="stable")[:4].tolist()
    assert selection.report["aggregate"] == (rule or "task_max")
    projected = tiny_less(proj_dim=2048, **params).select(context)
    assert np.abs(projected.scores - expected).max() < 6 / 2048**0.5


def in_turns(cosines, count, order):
    """The naive loop: each target in its turn takes its best candidate that nobody has."""
    taken = []
    for turn in range(count):
        column = cosines[:, order[turn % len(order)]].copy()
        column[taken] = -np.inf
        taken.append(int(column.argmax()))
    return taken


def test_targets_may_choose_in_turns(tmp_path):
    rows = tiny_dataset(12, distinct=True)  # equal rows would be told apart by rounding
    context = tiny_context(tmp_path, train_dataset=rows, eval_dataset=tiny_dataset(6, seed=100))
    selection = unprojected(context, aggregate="round_robin").select(context)
    full = full_cosines(context)
    order = np.random.default_rng([123, context.round]).permutation(6)  # 123: the seed of the projection
    assert selection.indices.tolist() == in_turns(full, 4, order)
    np.testing.assert_allclose(selection.scores, full.max(axis=1), rtol=0, atol=1e-5)
    assert selection.report["aggregate"] == "round_robin"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_features_may_be_stored_in_16_bits(tmp_path, dtype):
    context = tiny_context(tmp_path / "a")
    exact = tiny_less().select(context)
    found = tiny_less(features_dtype=dtype).select(replace(context, output_dir=tmp_path / "b"))
    np.testing.assert_allclose(found.scores, exact.scores, atol=2e-3)
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).rglob("*.safetensors")) for name in "ab"]
    assert sizes[1] < 0.6 * sizes[0]


def test_answers_that_are_missing_are_left_out_and_named(tmp_path, caplog):
    samples = tiny_samples(5, seed=100)
    samples[1] = replace(samples[1], messages=samples[1].messages[:1])
    template = ChatTemplate.load("chatml", tiny_tokenizer())
    everything = tokenize(samples, template, 128, keep_unlabelled=True, progress=False)
    context = tiny_context(tmp_path / "a", eval_dataset=everything)
    selection = tiny_less().select(context)
    assert selection.report["targets"] == {"total": 5, "answered": 4, "not_finite": [], "zero": []}
    assert selection.report["left_out"]["targets without an answer"] == 1
    assert "1 evaluation samples have no reference answer and are left out: 1" in caplog.text
    answered = tokenize([samples[row] for row in (0, 2, 3, 4)], template, 128, progress=False)
    same = tiny_less().select(replace(context, output_dir=tmp_path / "b", eval_dataset=answered))
    assert np.array_equal(same.scores, selection.scores)
    with pytest.raises(SelectionError, match="no evaluation sample has one"):
        tiny_less().check(replace(context, eval_dataset=everything.select([1])))


def test_rows_without_a_task_make_one_task(tmp_path):
    samples = tiny_samples(4, seed=100)
    samples[3] = replace(samples[3], metadata={})
    held_out = tokenize(samples, ChatTemplate.load("chatml", tiny_tokenizer()), 128, progress=False)
    context = tiny_context(tmp_path, eval_dataset=held_out)
    assert tiny_less().select(context).report["aggregate"] == "mean"
    with pytest.raises(SelectionError, match="needs the column 'task' in every evaluation sample; 1 have none"):
        tiny_less(aggregate="task_max").check(context)
    with pytest.raises(SelectionError, match="needs the column 'kind'"):
        tiny_less(aggregate="task_max", task_column="kind").check(context)
    tiny_less().check(context)


def test_targets_that_are_not_finite_or_zero(tmp_path, caplog, monkeypatch):
    real = SampleFeatures.features

    def features(self, rows):
        values = real(self, rows)
        if len(self._dataset) == 6:
            values[[row == 2 for row in rows]] = float("nan")
            values[[row == 3 for row in rows]] = 0
        else:
            values[[row == 7 for row in rows]] = 0
        return values

    monkeypatch.setattr(SampleFeatures, "features", features)
    context = tiny_context(tmp_path, eval_dataset=tiny_dataset(6, seed=100))
    full = full_cosines(context)
    full[:, 3] = 0
    selection = unprojected(context, aggregate="mean").select(context)
    expected = np.delete(full, 2, axis=1).mean(axis=1)
    expected[7] = -np.inf
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-5)
    assert selection.report["targets"] == {"total": 6, "answered": 6, "not_finite": ["2"], "zero": ["3"]}
    assert selection.report["candidates"] == {"total": 12, "not_finite": 0, "zero": 1}
    assert selection.report["left_out"] == {
        "targets without an answer": 0,
        "targets with a gradient that is not finite": 1,
        "candidates with a gradient that is not finite": 0,
        "candidates with a gradient of zero": 1,
    }
    assert "1 evaluation samples have a gradient of zero: 3" in caplog.text
    assert "1 training samples have a gradient of zero and are left out: 7" in caplog.text


def test_what_cannot_work_is_refused_before_training(tmp_path):
    context = tiny_context(tmp_path)
    with pytest.raises(SelectionError, match=r"there is no optimizer\n.*gradient_type: sgd, or a checkpoint"):
        tiny_less().check(replace(context, optimizer=None))
    tiny_less(gradient_type="sgd").check(replace(context, optimizer=None))
    for optimizer, message in (
        (stepped_optimizer(context.model, 0, betas=(0.9, 0.8)), r"bounded only if beta1\^2 < beta2"),
        (torch.optim.SGD(context.model.parameters(), lr=0.1), "got SGD"),
    ):
        other = replace(context, optimizer=optimizer)
        with pytest.raises(GradientError, match=message):
            tiny_less().check(other)
        tiny_less(gradient_type="sgd").check(other)
    unbounded = replace(context, optimizer=stepped_optimizer(context.model, 0, betas=(0.9, 0.8)))
    tiny_less(projection="gaussian").check(unbounded)  # floating point needs no bound
    with pytest.raises(SelectionError, match="less needs an evaluation set"):
        tiny_less().check(replace(context, eval_dataset=None))
    with pytest.raises(ConfigError, match="less: features_dtype"):
        tiny_less(features_dtype="int8")


def test_features_need_not_stay_on_disk(tmp_path):
    tiny_less(keep_features="none").select(tiny_context(tmp_path))
    assert not list((tmp_path / "features").iterdir())
