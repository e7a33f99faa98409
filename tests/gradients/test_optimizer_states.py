"""Each optimizer's u against the step that it takes on the same gradient."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers.optimization import Adafactor

from dataflex.errors import GradientError
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.optimizer_states import reader_of
from dataflex.models.model import trainable_parameters
from dataflex.models.optimizers import KINDS, create
from dataflex.projection.adam import adam_normalize

quantised = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra quant)")
paged = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
ADAM = [
    "adamw_torch",
    "adamw_torch_fused",
    *(pytest.param(name, marks=[quantised, paged]) for name in ("adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")),
]


class Layers(nn.Module):
    """Matrices large enough for 8-bit states (4,096 values), one with a rest beside its blocks, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(80, 64) * 0.05)
        self.second = nn.Parameter(torch.randn(61, 83) * 0.05)
        self.third = nn.Parameter(torch.randn(64) * 0.05)


def gradients(model: nn.Module, rows: int = 1) -> list[torch.Tensor]:
    """Mean gradients of random samples: low rank in matrices, and scales that differ by orders of magnitude."""
    found = []
    for _, parameter in trainable_parameters(model):
        if parameter.ndim == 1:
            found.append(torch.randn(rows, *parameter.shape).mean(dim=0) * 1e-3)
            continue
        out, into = parameter.shape
        outer, inner = torch.randn(rows, 3, out), torch.randn(rows, 3, into)
        scales = torch.linspace(-2, 2, out).exp()
        found.append(torch.einsum("bro,bri->boi", outer * scales, inner).mean(dim=0) * 1e-3)
    return found


def step(model: nn.Module, optimizer: torch.optim.Optimizer, grads: list[torch.Tensor]) -> torch.Tensor:
    """The optimizer's step on a gradient, ``(p,)``."""
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    before = torch.cat([parameter.detach().flatten().clone() for parameter in parameters])
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    optimizer.step()
    return before - torch.cat([parameter.detach().flatten() for parameter in parameters])


def compared(optimizer_of, steps: int, variant="adamw") -> float:
    """Cosine between u and the step."""
    model = Layers()
    optimizer = optimizer_of(model)
    for _ in range(steps):
        step(model, optimizer, gradients(model, 8))
    sample = gradients(model)
    flat = torch.cat([grad.flatten() for grad in sample])
    expected = adam_normalize(flat[None], adam_moments(model, optimizer, variant))[0]
    return float(cosine_similarity(expected.double(), step(model, optimizer, sample).double(), dim=0))


def made(name: str, ratio: float = 1.0, rate: float = 1e-3, **settings):
    """A function that makes the optimizer over two groups, the second with another learning rate."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        parameters = [parameter for _, parameter in trainable_parameters(model)]
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": rate * ratio}]
        optimizer = create(name, model, groups, learning_rate=rate, betas=(0.9, 0.999), eps=1e-8)
        for group in optimizer.param_groups:
            group.update(weight_decay=0.0, **settings)
        return optimizer

    return make


@pytest.mark.parametrize("ratio", [1.0, 16.0])
@pytest.mark.parametrize("name", ADAM)
def test_u_is_the_step_that_the_optimizer_takes(name, ratio):
    assert compared(made(name, ratio), 12) > 0.9999


@quantised
def test_eight_bits_are_read_as_they_are_stored():
    model = Layers()
    optimizer = made("adamw_8bit")(model)
    for _ in range(3):
        step(model, optimizer, gradients(model, 8))
    assert optimizer.state[model.first]["state1"].dtype == optimizer.state[model.second]["state2"].dtype == torch.uint8
    assert optimizer.state[model.third]["state1"].dtype == torch.float32
    moments = adam_moments(model, optimizer)
    assert len(moments) == 80 * 64 + 61 * 83 + 64
    state, last = optimizer.state[model.second], slice(80 * 64, 80 * 64 + 61 * 83)
    codes, blocks = state["state2"].flatten().long(), torch.arange(61 * 83) // 256
    assert torch.equal(moments.exp_avg_sq[last], state["qmap2"][codes] * state["absmax2"][blocks])


@pytest.mark.parametrize(("steps", "bound"), [(10, 0.95), (100, 0.98)])
def test_adafactor_is_approximated_ever_better(steps, bound):
    """The page states these bounds."""
    assert compared(made("adafactor"), steps) > bound


def test_every_variant_is_the_same_for_adafactor_which_has_no_first_moment():
    model = Layers()
    optimizer = made("adafactor")(model)
    step(model, optimizer, gradients(model, 8))
    step(model, optimizer, gradients(model, 8))
    flat = torch.cat([grad.flatten() for grad in gradients(model)])[None]
    found = [
        adam_normalize(flat, adam_moments(model, optimizer, variant)) for variant in ("adamw", "less", "second_moment")
    ]
    row, column = (optimizer.state[model.first][f"exp_avg_sq_{kind}"].double() for kind in ("row", "col"))
    decay, own = 1 - 3**-0.8, flat[0, : 80 * 64].view(80, 64).double()
    square = decay * row[:, None] * column / row.mean() + (1 - decay) * own**2
    torch.testing.assert_close(found[0][0, : 80 * 64].view(80, 64).double(), own / square.sqrt(), rtol=1e-5, atol=1e-6)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_adafactor_scales_rates_by_the_size_of_parameters_where_asked():
    rates = compared(lambda model: Adafactor(model.parameters(), lr=1e-3, relative_step=False, weight_decay=0.0), 30)
    assert rates > 0.9
    relative = compared(lambda model: Adafactor(model.parameters(), weight_decay=0.0), 30)
    assert relative > 0.9
    with pytest.raises(GradientError, match=r"group 0 has beta1=0\.9: Adafactor then averages updates"):
        compared(lambda model: Adafactor(model.parameters(), lr=1e-3, relative_step=False, beta1=0.9), 2)


class Quieter(torch.optim.AdamW):
    """Another step than its parent's."""


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        lambda model: torch.optim.Muon([model.first, model.second]),
        lambda model: torch.optim.NAdam(model.parameters()),
        lambda model: Quieter(model.parameters()),
    ],
)
def test_an_optimizer_whose_step_is_no_known_function_of_moments_is_refused_by_name(make):
    optimizer = make(Layers())
    with pytest.raises(GradientError, match=rf"(?s)got {type(optimizer).__name__}.*gradient_type: sgd"):
        reader_of(optimizer)


def test_every_optimizer_of_a_run_is_read_or_is_none_with_moments():
    for name in KINDS:
        if find_spec("bitsandbytes") is None and name.endswith("bit"):
            continue
        model = Layers()
        if KINDS[name].matrices_only:
            model.third.requires_grad_(False)
        optimizer = made(name)(model)
        if name in ("sgd", "muon"):
            with pytest.raises(GradientError):
                reader_of(optimizer)
        else:
            reader_of(optimizer)
