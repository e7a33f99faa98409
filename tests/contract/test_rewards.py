"""The reward backends of dataflex under the tests that authors of plugins run on theirs.

The judge in vLLM is tested where its stand-in is, in ``tests/rewards/test_vllm.py``.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflex.rewards.api import ApiReward
from dataflex.rewards.classifier import ClassifierReward
from dataflex.rewards.metric import MetricReward
from dataflex.rewards.vllm_server import VllmServerReward
from dataflex.testing import EchoReward, RewardContract, tiny_tokenizer
from dataflex.types import RewardRequest
from helpers.api_judge import KEY, backend
from helpers.classifier import save_classifier
from helpers.http_judge import Call, JudgeServer, Reply, completion, judge_server, score

SPEECHLESS = RewardRequest("mute", ({"role": "user", "content": "?"},), "leave the judge speechless")


class TestMetric(RewardContract):
    def make(self, **params: Any) -> MetricReward:
        return MetricReward(metric="token_f1", **params)

    def unscorable(self) -> RewardRequest:
        return RewardRequest("no-reference", (), "Paris")


class TestSeveralMetrics(RewardContract):
    def make(self, **params: Any) -> MetricReward:
        return MetricReward(metric=[{"metric": "exact_match"}, {"metric": "rouge_l", "weight": 3}], **params)


class TestEcho(RewardContract):
    def make(self, **params: Any) -> EchoReward:
        return EchoReward(fails_on="unspeakable", **params)

    def unscorable(self) -> RewardRequest:
        return RewardRequest("bad", (), "an unspeakable answer")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_classifier(tmp_path_factory.mktemp("model"), labels=1, positions=1000)


class TestClassifier(RewardContract):
    tolerance = 1e-5  # alone or among others, an answer is padded to another length

    @pytest.fixture(autouse=True)
    def _model(self, classifier: str) -> None:
        self.folder = classifier

    def make(self, **params: Any) -> ClassifierReward:
        return ClassifierReward(model_name_or_path=self.folder, **params)

    def unscorable(self) -> RewardRequest:
        return RewardRequest("long", ({"role": "user", "content": "?"},), "word " * 2000)


class JudgeContract(RewardContract):
    """A judge behind HTTP, which scores by the length of its prompt and says nothing useful about one answer."""

    server: JudgeServer

    @pytest.fixture(autouse=True)
    def _server(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
        # Every client loads a list of certificate authorities, 0.1 s; this server speaks plain HTTP.
        monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *args, **kwargs: None)
        self.folder = str(tmp_path / "judge")
        with judge_server(reply_by_length) as self.server:
            self.server.models = [self.folder]
            yield

    def unscorable(self) -> RewardRequest:
        return SPEECHLESS


def reply_by_length(call: Call, number: int) -> Reply:
    if SPEECHLESS.prediction in call.prompt:
        return Reply(completion("I cannot say."))
    return score(len(call.prompt) % 11 / 10)


class TestApi(JudgeContract):
    def make(self, **params: Any) -> ApiReward:
        return backend(self.server, **params)


class TestVllmServer(JudgeContract):
    @pytest.fixture(autouse=True)
    def _judge(self, _server: None) -> None:
        tiny_tokenizer(chat_template="{{ messages }}").save_pretrained(self.folder)

    def make(self, **params: Any) -> VllmServerReward:
        return VllmServerReward(
            hf_model_name_or_path=self.folder, server_url=self.server.url, cache_path=None, backoff=0.01, **params
        )
