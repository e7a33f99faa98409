from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm, GemmaTextScaledWordEmbedding
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.pytorch_utils import Conv1D

from dataflex.gradients.rules import find_rule

ROWS, TOKENS, WIDTH, OUT, VOCABULARY = 3, 5, 6, 8, 11


def check(module, inputs, tolerance=1e-10):
    """Pieces of every parameter against autograd, a backward pass a row."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    module = module.double()
    output = module(inputs)
    gradient = torch.randn_like(output)
    pieces = find_rule(module)(module, inputs, gradient)
    for name, parameter in module.named_parameters():
        length = len(parameter)
        for start, stop in ((0, length), (1, length - 1), (length - 1, length)):
            found = pieces[name](start, stop)
            for row in range(len(inputs)):
                (whole,) = torch.autograd.grad(output[row], parameter, gradient[row], retain_graph=True)
                torch.testing.assert_close(found[row], whole[start:stop], rtol=tolerance, atol=tolerance)


def activations(*shape):
    return torch.randn(ROWS, *shape, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(TOKENS,), (), (TOKENS, 2)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(WIDTH, OUT), lambda: nn.Linear(WIDTH, OUT, bias=False)])
def test_linear(make, shape):
    check(make(), activations(*shape))


def test_conv1d():
    check(Conv1D(OUT, WIDTH), activations(TOKENS))


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("scale", [None, 3.0])
def test_embedding(padding, scale):
    ids = torch.tensor([[1, 2, 2, 10, 1], [0, 0, 0, 0, 0], [2, 3, 4, 5, 10]])
    if scale is None:
        module = nn.Embedding(VOCABULARY, WIDTH, padding_idx=padding)
    else:
        module = GemmaTextScaledWordEmbedding(VOCABULARY, WIDTH, padding, embed_scale=scale)
    check(module, ids)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LayerNorm(WIDTH),
        lambda: nn.LayerNorm(WIDTH, bias=False),
        lambda: nn.RMSNorm(WIDTH),
        lambda: LlamaRMSNorm(WIDTH),
        lambda: Qwen2RMSNorm(WIDTH),
        lambda: GemmaRMSNorm(WIDTH),
    ],
)
@pytest.mark.parametrize("shape", [(TOKENS,), (TOKENS, 2)])
def test_norms(make, shape):
    # The norms of transformers compute in float32 whatever their input.
    check(make(), activations(*shape), tolerance=1e-10 if "transformers" not in type(make()).__module__ else 2e-6)


def test_pieces_are_float32_at_least():
    module = nn.Linear(WIDTH, OUT).bfloat16()
    inputs, gradient = activations(TOKENS).bfloat16(), torch.randn(ROWS, TOKENS, OUT).bfloat16()
    found = find_rule(module)(module, inputs, gradient)["weight"](0, OUT)
    assert found.dtype == torch.float32
    expected = torch.einsum("bto,bti->boi", gradient.float(), inputs.float())
    torch.testing.assert_close(found, expected)


class Doubled(nn.Linear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


@pytest.mark.parametrize(
    "module",
    [
        Doubled(2, 2),
        nn.Conv1d(2, 2, 1),
        nn.Embedding(4, 2, max_norm=1.0),
        nn.Embedding(4, 2, scale_grad_by_freq=True),
        nn.LayerNorm((3, 2)),
        nn.ParameterDict({"a": torch.ones(2)}),
    ],
)
def test_what_a_rule_does_not_cover_has_none(module):
    assert find_rule(module) is None
