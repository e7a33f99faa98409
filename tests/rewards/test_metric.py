from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dataflex.errors import ConfigError, PluginError, RewardError
from dataflex.rewards.metric import METRICS, MetricConfig, MetricReward
from dataflex.types import RewardRequest


def request(prediction: str, reference: str | None = "Paris", sample_id: str = "7", **metadata: Any) -> RewardRequest:
    return RewardRequest(sample_id, ({"role": "user", "content": "?"},), prediction, reference, metadata)


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An importable module ``user_rewards``."""
    module = SimpleNamespace()
    monkeypatch.setitem(__import__("sys").modules, "user_rewards", module)
    return module


@pytest.mark.parametrize(
    ("params", "prediction", "reference", "expected"),
    [
        ({"metric": "exact_match"}, "paris.", "Paris", 1.0),
        ({"metric": "exact_match", "casefold": False}, "paris", "Paris", 0.0),
        ({"metric": "exact_match", "contains": True}, "It is Paris.", "Paris", 1.0),
        ({"metric": "token_f1"}, "big city", "city", 2 / 3),
        ({"metric": "token_f1", "strip_articles": False}, "the city", "city", 2 / 3),
        ({"metric": "numeric"}, "so 3 + 4 = 7", "7", 1.0),
        ({"metric": "numeric", "take": "first", "abs_tol": 0.5}, "3.4 or 9", "3", 1.0),
        ({"metric": "numeric", "units": "convert"}, "about 5000 m", "5 km", 1.0),
        ({"metric": "numeric", "units": "convert"}, "5", "5 km", 1.0),
        ({"metric": "numeric", "units": "require"}, "5", "5 km", 0.0),
        ({"metric": "rouge_l"}, "the cat sat", "the dog sat down", 4 / 7),
        ({"metric": "choice"}, "The answer is (B).", "B", 1.0),
        ({"metric": "choice", "letters": "ABC", "take": "first"}, "A. x\nB. y", "A", 1.0),
        ({"metric": "json_equal"}, '```json\n{"b": [1, 2], "a": 1.0}\n```', '{"a": 1, "b": [1, 2]}', 1.0),
        ({"metric": "json_equal", "list_order": False}, "[2, 1]", "[1, 2]", 1.0),
        ({"metric": "regex", "pattern": r"\d{4}"}, "in 1999", None, 1.0),
        ({"metric": "regex", "pattern": r"answer: (\w+)", "group": 1}, "answer: PARIS", "Paris", 1.0),
        ({"metric": "regex", "pattern": r"answer: (?P<a>\w+)", "group": "a"}, "answer: Rome", "Paris", 0.0),
    ],
)
def test_metrics_with_their_options(
    params: dict[str, Any], prediction: str, reference: str | None, expected: float
) -> None:
    assert MetricReward.from_params(params).score([request(prediction, reference)]) == [pytest.approx(expected)]


def test_every_named_metric_scores_a_right_answer_with_one() -> None:
    for name in METRICS:
        options = {"pattern": ".+", "group": 0} if name == "regex" else {}
        answer = "B" if name == "choice" else "12"
        assert MetricReward(metric=name, **options).score([request(answer, answer)]) == [1.0], name


def test_options_of_metrics_are_fields_of_the_config() -> None:
    assert {option for metric in METRICS.values() for option in metric.options} <= set(MetricConfig.model_fields)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"metric": "exact_mach"}, "did you mean 'exact_match'"),
        ({"metric": "numeric", "contains": True, "group": 1}, "metric 'numeric' has no option contains, group"),
        ({"metric": "mod:fn", "take": "first"}, "metric 'mod:fn' has no option take"),
        ({"metric": "regex"}, "needs a pattern"),
        ({"metric": "regex", "pattern": "(("}, "not a regular expression"),
        ({"metric": "regex", "pattern": "(a)", "group": 2}, "no group 2"),
        ({"metric": "numeric", "rel_tol": -1}, "rel_tol"),
        ({"metric": "numeric", "tolerance": 1}, "tolerance"),
        ({"metric": "choice", "letters": "abc"}, "letters"),
        ({"metric": "exact_match", "weight": 2}, "weight"),
        ({"metric": []}, "the list is empty"),
        ({"metric": [{"metric": "numeric"}], "take": "first"}, "with several metrics, take belongs to one of them"),
        ({"metric": [{"metric": "numeric", "contains": True}]}, "metric 'numeric' has no option contains"),
        ({"metric": [{"metric": "numeric", "weight": 0}]}, "metric.list.*weight"),
        ({}, "metric"),
    ],
)
def test_wrong_parameters_are_config_errors(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        MetricReward.from_params(params)


def test_references_come_from_a_column_and_the_best_of_several_counts() -> None:
    metric = MetricReward(metric="exact_match", reference_column="answers")
    requests = [
        request("Rome", "Rome", answers=["Paris", "Lutetia"]),
        request("lutetia", None, answers=["Paris", "Lutetia"]),
        request("7", None, answers=7),
    ]
    assert metric.score(requests) == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("reference", [None, "  "])
def test_a_missing_reference_is_an_error_that_names_the_sample(reference: str | None) -> None:
    metric = MetricReward(metric="exact_match")
    with pytest.raises(RewardError, match=r"1 of 2 answers: sample '8': no reference") as caught:
        metric.score([request("Paris"), request("Paris", reference, sample_id="8")])
    assert "on_error: skip" in str(caught.value)


def test_many_failures_are_counted_and_some_named() -> None:
    with pytest.raises(RewardError, match=r"9 of 9 answers.*sample '4'.*and 4 more"):
        MetricReward(metric="numeric").score([request("1", "none", sample_id=str(row)) for row in range(9)])


@pytest.mark.parametrize(("on_error", "substitute"), [("zero", 0.0), ("skip", None)])
def test_other_policies_warn_once_with_the_count(
    on_error: str, substitute: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    metric = MetricReward(metric="exact_match", on_error=on_error)
    with caplog.at_level(logging.WARNING):
        rewards = metric.score([request("Paris"), request("Paris", None), request("Rome", None)])
    assert rewards == [1.0, substitute, substitute]
    (record,) = caplog.records
    assert "2 of 3 answers could not be scored" in record.getMessage()
    assert metric.stats()["failed"] == 2
    assert metric.stats()["scored"] == 1


def test_no_failure_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert MetricReward(metric="exact_match", on_error="zero").score([request("Rome")]) == [0.0]
    assert not caplog.records


def test_a_slow_pattern_is_a_failure() -> None:
    metric = MetricReward(metric="regex", pattern=r"^(a|a)*$", timeout=0.05)
    with pytest.raises(RewardError, match=r"the pattern took more than 0.05 s"):
        metric.score([request("a" * 100 + "b")])


def test_a_function_scores_with_any_finite_number(user_module: SimpleNamespace) -> None:
    def length(prediction: str, reference: str | None, metadata: Mapping[str, Any]) -> Any:
        return metadata["kind"](len(prediction) - len(reference or ""))

    user_module.length = length
    metric = MetricReward(metric="user_rewards:length")
    metric.check()
    kinds = (float, int, np.float32, bool)
    assert metric.score([request("abc", None, kind=kind) for kind in kinds]) == [3.0, 3.0, 3.0, 1.0]
    assert metric.score([request("", "abc", kind=int)]) == [-3.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, "1.0", None, np.array([1.0])])
def test_a_function_that_returns_no_finite_number_is_a_failure(user_module: SimpleNamespace, value: Any) -> None:
    user_module.odd = lambda prediction, reference, metadata: value
    with pytest.raises(RewardError, match="expected a finite number"):
        MetricReward(metric="user_rewards:odd").score([request("x")])


def test_the_exception_of_a_function_is_the_cause(user_module: SimpleNamespace) -> None:
    def broken(prediction: str, reference: str | None, metadata: Mapping[str, Any]) -> float:
        raise KeyError("task")

    user_module.broken = broken
    with pytest.raises(RewardError, match="KeyError: 'task'") as caught:
        MetricReward(metric="user_rewards:broken").score([request("x")])
    assert isinstance(caught.value.__cause__, KeyError)
    assert MetricReward(metric="user_rewards:broken", on_error="skip").score([request("x")]) == [None]


def test_a_function_that_cannot_be_imported_is_found_before_training() -> None:
    metric = MetricReward(metric="user_rewards_that_are_missing:fn", on_error="skip")
    with pytest.raises(PluginError, match="cannot be imported"):
        metric.check()
    with pytest.raises(PluginError, match="cannot be imported"):
        metric.score([request("x")])


def test_nothing_to_score() -> None:
    assert MetricReward(metric="exact_match").score([]) == []


def test_several_metrics_give_their_weighted_mean() -> None:
    parts = [{"metric": "exact_match", "contains": True, "weight": 3}, {"metric": "token_f1"}]
    metric = MetricReward.from_params({"metric": parts, "reference_column": "answers"})
    answers = ["Paris", "Lutetia"]
    assert metric.score([request("Paris it is", answers=answers)]) == [pytest.approx((3 * 1 + 0.5) / 4)]
    assert metric.score([request("Lutetia", answers=answers)]) == [1.0]
    assert metric.score([request("Rome", answers=answers)]) == [0.0]


def test_one_metric_that_fails_fails_the_answer(user_module: SimpleNamespace) -> None:
    user_module.half = lambda prediction, reference, metadata: 0.5
    parts = [{"metric": "user_rewards:half"}, {"metric": "numeric", "weight": 1e-6}]
    metric = MetricReward.from_params({"metric": parts, "on_error": "skip"})
    assert metric.score([request("1", "1"), request("1", "one"), request("1", None)]) == [
        pytest.approx(0.5, rel=1e-5),
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("params", "package"), [({"metric": "rouge_l"}, "rapidfuzz"), ({"metric": "numeric", "units": "convert"}, "pint")]
)
def test_a_missing_package_names_the_extra(
    params: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = MetricReward.from_params({**params, "on_error": "skip"})
    metric.check()
    real = importlib.util.find_spec
    monkeypatch.setattr("dataflex.rewards.metric.find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(RewardError, match=rf'{package}\n.*pip install "dataflex-sdk\[metrics\]"'):
        metric.check()
    MetricReward(metric="numeric").check()
