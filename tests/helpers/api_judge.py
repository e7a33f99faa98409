"""Backends, requests and scripted replies for tests of the API backend."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from dataflex.rewards.api import ApiReward
from dataflex.types import RewardRequest
from helpers.http_judge import Call, JudgeServer, Reply, score

KEY = "sk-planted-4f9a7c"
Script = Callable[[Call, int], Reply]


def backend(server: JudgeServer | str, **params: Any) -> ApiReward:
    """A backend with short waits and no cache, unless ``params`` say otherwise."""
    defaults = {"api_key": "TEST_JUDGE_KEY", "model_name": "judge", "cache_path": None, "backoff": 0.01, "timeout": 5}
    url = server if isinstance(server, str) else server.url
    return ApiReward.from_params({"api_url": url, **defaults, **params})


def requests(*answers: str) -> list[RewardRequest]:
    prompt = ({"role": "user", "content": "?"},)
    return [RewardRequest(str(row), prompt, answer) for row, answer in enumerate(answers)]  # type: ignore[arg-type]


def by_answer(call: Call, number: int) -> Reply:
    """The score is the number that the answer consists of."""
    answer = re.search(r"<answer-\w+>\n(.*)\n</answer-", call.prompt, re.DOTALL)
    assert answer
    return score(float(answer[1]))


def first(*replies: Reply) -> Script:
    """These replies, then a score of 0.5."""
    return lambda call, number: replies[number] if number < len(replies) else score(0.5)


def always(reply: Reply) -> Script:
    return lambda call, number: reply
