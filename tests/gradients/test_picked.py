"""Features of some values of each large matrix: against float64, unbiased, and by whatever way the gradients come."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from dataflex.data.collate import collate
from dataflex.gradients.features import BatchedGradients
from dataflex.gradients.hooks import UnsupportedModel
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.slots import parameter_slots, section_starts
from dataflex.models.model import trainable_parameters
from dataflex.projection.projector import Projector
from dataflex.selectors.base import SelectionContext
from dataflex.testing import stepped_optimizer, tiny_context, tiny_model

DIM, VALUES = 512, 600


def llama() -> Any:
    return tiny_model(attention_bias=True, tie_word_embeddings=True)


def gpt2() -> Any:
    """Conv1D layers, learned positions that the batch shares, and a tied head."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 384, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **still, bos_token_id=1, eos_token_id=1))


def context_of(folder: Path, model: Any) -> SelectionContext:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    context = tiny_context(folder)
    return replace(context, model=model, optimizer=stepped_optimizer(model, 3))


def features_of(context: SelectionContext, kind: str = "masked", seed: int = 7, **changes: Any) -> SampleFeatures:
    settings: dict[str, Any] = {"gradient_type": "adam", "adam_variant": "adamw", "batch_tokens": 512} | changes
    options = {"matrix_values": VALUES} if kind == "masked" else {}
    features = SampleFeatures(context, context.train_dataset, Projector(DIM, kind, seed, **options), **settings)
    features.prepare()
    return features


def gradients_of(context: SelectionContext, rows: range) -> Tensor:
    """``(n, p)`` float64 gradients from backward passes of a float64 copy of the model."""
    wide = type(context.model)(context.model.config).double()
    wide.load_state_dict(context.model.state_dict())
    wide.eval()
    return torch.stack(
        [sample_gradient(wide, collate([context.train_dataset[row]], 2), context.autocast) for row in rows]
    )


def normalised(context: SelectionContext, gradients: Tensor) -> Tensor:
    """AdamW's u in float64, of all values."""
    moments = adam_moments(context.model, context.optimizer)
    (b1, b2), t = moments.betas, moments.step + 1
    mean = b1 * moments.exp_avg.double() + (1 - b1) * gradients
    square = b2 * moments.exp_avg_sq.double() + (1 - b2) * gradients**2
    return (mean / (1 - b1**t)) / ((square / (1 - b2**t)).sqrt() + moments.eps)


def at_picks(context: SelectionContext, values: Tensor, projector: Projector) -> Tensor:
    """The picked values times their scales, in float64: by indices into each matrix, written out."""
    parts, start = [], 0
    for number, (_, parameter) in enumerate(trainable_parameters(context.model)):
        part = values[:, start : start + parameter.numel()].view(len(values), *parameter.shape)
        start += parameter.numel()
        picks = projector.kind.picks(number, parameter.shape)
        if picks is not None:
            part = part[:, picks.rows][:, :, picks.columns] * picks.scale
        parts.append(part.flatten(1))
    return torch.cat(parts, dim=1)


def matrix_of(projector: Projector, size: int) -> Tensor:
    """P^T ``(p, k)``: exact for sjlt, whose entries are +-1 / sqrt(s)."""
    found = torch.cat([projector.project(part) for part in torch.eye(size).split(1000)])
    return found.double().sign() / math.sqrt(8) * (found != 0)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("gradient_type", ["adam", "sgd"])
def test_features_are_those_of_the_picked_values_in_float64(tmp_path, make, gradient_type):
    context = context_of(tmp_path, make())
    features = features_of(context, gradient_type=gradient_type)
    assert features._rule is not None
    rows = range(3)
    found = features.features(rows).double()
    values = gradients_of(context, rows)
    values = normalised(context, values) if gradient_type == "adam" else values
    projector = Projector(DIM, "masked", 7, matrix_values=VALUES)
    picked = at_picks(context, values, projector)
    assert picked.shape[1] < 0.4 * values.shape[1]
    expected = picked @ matrix_of(projector, picked.shape[1])
    gaps = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(gaps.max()) < 1e-4


def test_one_row_at_a_time_gives_the_same(tmp_path, caplog, monkeypatch):
    context = context_of(tmp_path, llama())
    batched = features_of(context).features(range(4))

    def refused(*given: Any) -> None:
        raise UnsupportedModel("its layers are none that anybody knows")

    monkeypatch.setattr("dataflex.gradients.features.BatchedGradients", refused)
    alone = features_of(context)
    assert alone._rule is None
    torch.testing.assert_close(alone.features(range(4)), batched, rtol=1e-3, atol=1e-3)
    assert "none that anybody knows" in caplog.text


@pytest.mark.parametrize("gradient_type", ["adam", "sgd"])
def test_inner_products_are_unbiased(tmp_path, gradient_type):
    """Over 120 seeds the mean is within 4 standard errors of the inner product of whole gradients."""
    context = context_of(tmp_path, llama())
    values = gradients_of(context, range(4))
    values = normalised(context, values) if gradient_type == "adam" else values
    exact = values @ values.T
    sums = []
    for seed in range(120):
        picked = at_picks(context, values, Projector(DIM, "masked", seed, matrix_values=VALUES))
        features = Projector(DIM, "sjlt", seed).project(picked.float()).double()
        sums.append(features @ features.T)
    found = torch.stack(sums)
    error = found.std(dim=0) / math.sqrt(len(found))
    assert ((found.mean(dim=0) - exact).abs() / error).max() < 4
    assert (error / exact.diagonal().mean()).max() < 0.05  # so that a scale that is off would show


def test_coordinates_follow_from_seed_place_and_shape(tmp_path):
    model = llama()
    kinds = {seed: Projector(DIM, "masked", seed, matrix_values=VALUES).kind for seed in (1, 2)}
    picks = kinds[1].picks(3, (64, 96))
    assert torch.equal(picks.rows, kinds[1].picks(3, (64, 96)).rows)
    assert not torch.equal(picks.rows, kinds[1].picks(4, (64, 96)).rows)
    assert not torch.equal(picks.columns, kinds[2].picks(3, (64, 96)).columns)
    assert (len(picks.rows), len(picks.columns)) == (20, 30)
    assert picks.scale == pytest.approx(math.sqrt(64 * 96 / 600))
    for drawn, size in ((picks.rows, 64), (picks.columns, 96)):
        assert (drawn.diff() > 0).all()
        assert 0 <= drawn.min() <= drawn.max() < size
    assert kinds[1].picks(0, (20, 30)) is None
    assert kinds[1].picks(0, (5000,)) is None
    assert Projector(DIM, "sjlt").kind.picks(0, (500, 500)) is None
    slots = parameter_slots(model, kinds[1].picks).values()
    assert [slot.offset for slot in slots] == [0, *torch.tensor([slot.size for slot in slots]).cumsum(0).tolist()][:-1]
    assert {slot.offset for slot in slots} <= {*section_starts(slots)}


def test_every_value_is_picked_as_often_as_its_share():
    kind = [Projector(DIM, "masked", seed, matrix_values=60).kind for seed in range(600)]
    counts = torch.zeros(12, 20)
    for each in kind:
        picks = each.picks(0, (12, 20))
        counts[picks.rows[:, None], picks.columns] += 1
    share = 1 / kind[0].picks(0, (12, 20)).scale ** 2
    deviation = math.sqrt(600 * share * (1 - share))
    assert (counts - 600 * share).abs().max() < 4.5 * deviation


def test_a_frozen_part_and_a_padding_index_are_left_out(tmp_path):
    context = context_of(tmp_path, llama())
    model = context.model
    model.model.embed_tokens.padding_idx = 2
    batch = collate([context.train_dataset[row] for row in range(3)], 2)
    kind = Projector(DIM, "masked", 1, matrix_values=VALUES).kind
    blocks: dict[int, Tensor] = {}

    def losses() -> Tensor:
        hidden = model.model.embed_tokens(batch.input_ids)
        return hidden.square().sum(dim=(1, 2))

    BatchedGradients(model, kind.picks).run(3, losses, lambda block, offset: blocks.update({offset: block}))
    slot = next(iter(parameter_slots(model, kind.picks).values()))
    weight = model.model.embed_tokens.weight
    for row in range(3):
        expected = torch.zeros_like(weight)
        for token in batch.input_ids[row].tolist():
            expected[token] += 2 * weight.detach()[token] * (token != 2)
        torch.testing.assert_close(blocks[0][row], slot.picks.of(expected), rtol=1e-5, atol=1e-6)
