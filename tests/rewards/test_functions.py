"""A Python function is a reward, and stored rewards are used again only while it says the same."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dataflex
from dataflex.errors import ConfigError, PluginError, RewardError
from dataflex.rewards import resolve_reward
from dataflex.rewards.functions import function_digest, function_name
from dataflex.rewards.metric import MetricReward
from dataflex.testing import EchoReward, tiny_context, tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.types import RewardRequest
from helpers.runs import tiny_nice


def shares_words(prediction: str, reference: str | None, metadata: Any) -> float:
    return len(set(prediction.split()) & set((reference or "").split())) / metadata.get("words", 2)


class Scaled:
    """An object that can be called."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, prediction: str, reference: str | None, metadata: Any) -> float:
        return self.scale * len(prediction)

    def method(self, prediction: str, reference: str | None, metadata: Any) -> float:
        return self.scale


REQUESTS = [RewardRequest("0", (), "a b c", "b c d", {"words": 4}), RewardRequest("1", (), "x", None)]


@pytest.mark.parametrize(
    ("function", "rewards"),
    [
        (shares_words, [0.5, 0.0]),
        (lambda prediction, reference, metadata: len(prediction), [5.0, 1.0]),
        (lambda *given: given[1] is None, [0.0, 1.0]),
        (Scaled(2.0), [10.0, 2.0]),
        (Scaled(2.0).method, [2.0, 2.0]),
        (functools.partial(lambda scale, prediction, reference, metadata: scale, 3), [3.0, 3.0]),
    ],
)
def test_a_function_is_a_reward(function: Callable[..., Any], rewards: list[float]) -> None:
    for spec in (function, {"name": "metric", "params": {"metric": function}}):
        backend = resolve_reward(spec)
        backend.check()
        assert backend.score(REQUESTS) == rewards
    halves = [{"metric": function, "weight": 1}, {"metric": lambda *given: 0.0, "weight": 1}]
    assert MetricReward(metric=halves).score(REQUESTS) == [reward / 2 for reward in rewards]


def test_a_function_has_a_name_in_facts_and_messages() -> None:
    here = shares_words.__module__
    assert MetricReward(metric=shares_words).config.model_dump(mode="json")["metric"] == f"{here}:shares_words"
    parts = [{"metric": shares_words}, {"metric": "exact_match", "contains": True}]
    dumped = MetricReward(metric=parts).config.model_dump(mode="json")["metric"]
    assert [part["metric"] for part in dumped] == [f"{here}:shares_words", "exact_match"]
    assert function_name(Scaled(1)) == f"{here}:Scaled"
    assert function_name(functools.partial(shares_words)) == f"{here}:shares_words"
    with pytest.raises(RewardError, match=r"Scaled returned 'no', expected a finite number"):
        MetricReward(metric=Scaled("no")).score(REQUESTS[1:])  # type: ignore[arg-type]


async def asynchronous(prediction: str, reference: str | None, metadata: Any) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda prediction: 1.0, r"has the parameters \(prediction\), expected \(prediction, reference, metadata\)"),
        (lambda a, b, c, d: 1.0, r"has the parameters \(a, b, c, d\)"),
        (asynchronous, "asynchronous is asynchronous|is asynchronous, expected a function that returns a number"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_found_before_training(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        resolve_reward(function).check()


def test_a_class_of_backends_is_no_function() -> None:
    with pytest.raises(ConfigError, match="EchoReward is a class of reward backends, expected an object of it"):
        resolve_reward(EchoReward)  # type: ignore[arg-type]


def defined(source: str) -> Callable[..., Any]:
    """The last function of a module."""
    scope: dict[str, Any] = {"__name__": "user"}
    exec(textwrap.dedent(source), scope)
    function: Callable[..., Any] = scope["reward"]
    return function


BASE = """
    import functools

    LIMIT = 3
    CACHE = {}

    def helper(text):
        return len(text) > LIMIT

    @functools.cache
    def known(text):
        return text in {"a", "b", "c"}

    def reward(prediction, reference, metadata, scale=1.0):
        return scale * helper(prediction) * known(prediction)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale * helper", "2 * helper"),
        ("scale=1.0", "scale=2.0"),
        ("LIMIT = 3", "LIMIT = 4"),
        ("len(text) >", "len(text) >="),
        ('"c"', '"d"'),
        ("def reward(prediction, reference", "def reward(reference, prediction"),
    ],
)
def test_changed_code_is_another_function(old: str, new: str) -> None:
    assert old in BASE
    assert function_digest(defined(BASE.replace(old, new))) != function_digest(defined(BASE))


@pytest.mark.parametrize(
    ("old", "new"),
    [("LIMIT = 3", "# a comment\n    LIMIT = 3"), ("CACHE = {}", "CACHE = {1: 2}"), ("return len", "return  len")],
)
def test_comments_lines_and_what_changes_do_not_matter(old: str, new: str) -> None:
    assert old in BASE
    assert function_digest(defined(BASE.replace(old, new))) == function_digest(defined(BASE))


def test_what_a_function_closes_over_is_part_of_it() -> None:
    def make(limit: float) -> Callable[..., Any]:
        return lambda prediction, reference, metadata: len(prediction) > limit

    assert function_digest(make(1)) == function_digest(make(1)) != function_digest(make(2))
    assert function_digest(Scaled(1)) == function_digest(Scaled(1)) != function_digest(Scaled(2))
    assert function_digest(Scaled(1).method) == function_digest(Scaled(1).method) != function_digest(Scaled(2).method)
    partial = functools.partial
    assert function_digest(partial(shares_words, scale=1)) != function_digest(partial(shares_words, scale=2))


def test_a_function_that_calls_itself_ends() -> None:
    assert function_digest(defined("def reward(a, b, c):\n    return reward(a, b, c)"))


def test_a_function_is_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(textwrap.dedent(BASE), encoding="utf-8")
    code = "from user import reward; from dataflex.rewards.functions import function_digest as d; print(d(reward))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}", "PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {function_digest(defined(BASE))}


def test_rewards_of_a_changed_function_are_not_used_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = tiny_context(tmp_path)
    calls: list[str] = []

    def counted(scale: float) -> Callable[..., Any]:
        def reward(prediction: str, reference: str | None, metadata: Any) -> float:
            calls.append(prediction)
            return scale * (len(calls) % 2)

        return reward

    first = tiny_nice(reward=counted(0.5)).select(context)
    asked = len(calls)
    assert asked == first.report["rewards"]["answers"]
    assert list(tiny_nice(reward=counted(0.5)).select(context).indices) == list(first.indices)
    assert len(calls) == asked
    assert not caplog.records or "of another run" not in caplog.text
    tiny_nice(reward=counted(0.25)).select(context)
    assert len(calls) == 2 * asked
    assert "rewards in" in caplog.text
    assert "functions differs" in caplog.text


def test_select_takes_a_lambda_and_scores_nothing_twice(tmp_path: Path) -> None:
    params: dict[str, Any] = {"gradient_type": "sgd", "proj_dim": 256, "mc_samples": 3, "max_new_tokens": 6}
    calls: list[str] = []
    inputs = (tiny_lora(tiny_model()), tiny_tokenizer(), tiny_dataset(8, seed=0), tiny_dataset(2, seed=50))
    found = [
        dataflex.select(
            *inputs,
            selector="nice",
            num_samples=3,
            template="chatml",
            output_dir=tmp_path,
            reward=lambda prediction, reference, metadata: calls.append(prediction) or float(len(calls) % 2),
            **params,
        )
        for _ in range(2)
    ]
    assert len(calls) == 2 * (3 + 1)  # the answers of two prompts, and their references
    assert list(found[0].indices) == list(found[1].indices)
