from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dataflex.errors import ConfigError, PluginError
from dataflex.rewards import resolve_reward
from dataflex.rewards.api import ApiReward
from dataflex.rewards.base import RewardBackend
from dataflex.rewards.metric import MetricReward
from dataflex.rewards.vllm import LocalVllmReward

API = {"api_url": "https://api.example.org/v1", "model_name": "judge"}


@pytest.mark.parametrize(
    ("spec", "params", "expected"),
    [
        ("exact_match", {"contains": True}, MetricReward),
        ("os.path:join", None, MetricReward),
        ("metric", {"metric": "numeric"}, MetricReward),
        ({"name": "token_f1"}, None, MetricReward),
        ({"name": "api", "params": API}, None, ApiReward),
        ("api", API, ApiReward),
        ("local_vllm", {"hf_model_name_or_path": "judge"}, LocalVllmReward),
    ],
)
def test_names_and_mappings(spec: Any, params: Mapping[str, Any] | None, expected: type[RewardBackend[Any]]) -> None:
    assert type(resolve_reward(spec, params)) is expected


def test_a_metric_gets_its_parameters() -> None:
    backend = resolve_reward("exact_match", {"contains": True})
    assert (backend.config.metric, backend.config.contains) == ("exact_match", True)


def test_a_backend_passes_through_without_further_parameters() -> None:
    backend = MetricReward(metric="exact_match")
    assert resolve_reward(backend) is backend
    with pytest.raises(ConfigError, match=r"takes no further parameters, got \['contains'\]"):
        resolve_reward(backend, {"contains": True})


@pytest.mark.parametrize(("spec", "near"), [("exact_mach", "exact_match"), ("local_vlm", "local_vllm")])
def test_an_unknown_name_lists_backends_and_metrics(spec: str, near: str) -> None:
    with pytest.raises(PluginError) as caught:
        resolve_reward(spec)
    assert "api, classifier, local_vllm, metric, vllm_server" in str(caught.value)
    assert "exact_match, choice, numeric, json_equal, regex, rouge_l, token_f1" in str(caught.value)
    assert f"did you mean {near!r}?" in str(caught.value)


@pytest.mark.parametrize("spec", [{"metric": "exact_match"}, {"name": 3}, {}])
def test_a_mapping_of_another_form_is_an_error(spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expected \{name"):
        resolve_reward(spec)
