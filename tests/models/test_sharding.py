from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from dataflex.models.model import trainable_parameters
from dataflex.models.sharding import as_sharded, is_sharded, sharding_problems, used_parameters, whole, whole_weights
from dataflex.testing import tiny_lora, tiny_model


def dynamic() -> nn.Module:
    return tiny_model(rope_parameters={"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0})


@pytest.mark.parametrize(
    ("build", "layers", "message"),
    [
        (tiny_model, ["GPT2Block"], "it has no GPT2Block; fsdp_config: .* names one of"),
        (lambda: tiny_model().bfloat16(), None, "parameters in float32 .* got torch.bfloat16"),
        (dynamic, None, "rotary frequencies that depend on the length of a row"),
    ],
)
def test_what_cannot_be_sharded_says_why(
    build: Callable[[], nn.Module], layers: list[str] | None, message: str
) -> None:
    [problem] = sharding_problems(build(), layers)
    assert re.search(message, problem)


def test_a_llama_can_be_sharded_with_and_without_an_adapter() -> None:
    assert list(sharding_problems(tiny_model())) == []
    assert list(sharding_problems(tiny_lora(tiny_model()), ["LlamaDecoderLayer"])) == []


def test_of_a_whole_model_everything_is_as_it_is() -> None:
    model = tiny_lora(tiny_model())
    assert not is_sharded(model)
    assert whole_weights(model, keep=True) is None
    _, parameter = trainable_parameters(model)[0]
    values = torch.ones(3)
    assert whole(parameter) is parameter
    assert as_sharded(values, parameter) is values
    with used_parameters(model) as used:
        assert [id(tensor) for tensor in used()] == [id(one) for _, one in trainable_parameters(model)]
