from __future__ import annotations

import pytest
import torch

from dataflex.errors import ModelError
from dataflex.models.model import trainable_parameters
from dataflex.models.trainable import train_all, train_layers
from dataflex.testing import tiny_model


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, _ in trainable_parameters(model)}


def test_all_parameters_in_float32() -> None:
    model = train_all(tiny_model().to(torch.bfloat16).requires_grad_(False))
    assert trained(model) == {name for name, _ in model.named_parameters()}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("layers", "options", "expected"),
    [
        (1, {}, [".2."]),
        (2, {}, [".1.", ".2."]),
        (-1, {}, [".0."]),
        (-2, {"modules": ["mlp"]}, [".0.mlp.", ".1.mlp."]),
        (9, {"modules": ["self_attn", "input_layernorm"]}, [".self_attn.", ".input_layernorm."]),
        (1, {"extra": ["norm", "lm_head"]}, [".2.", "model.norm.", "lm_head."]),
    ],
)
def test_some_layers(layers: int, options: dict, expected: list[str]) -> None:
    model = train_layers(tiny_model(num_hidden_layers=3).to(torch.bfloat16), layers, **options)
    names = {name for name, _ in model.named_parameters()}
    assert trained(model) == {name for name in names if any(part in name for part in expected)}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in trained(model) else torch.bfloat16)


def test_unknown_modules_are_named_with_those_that_there_are() -> None:
    with pytest.raises(ModelError, match=r"(?s)has no modules attention, head.*mlp.*self_attn.*embed_tokens, lm_head"):
        train_layers(tiny_model(), 1, modules=["attention"], extra=["head"])
