"""Features of gradients that stream by in sections: exact against float64, the same bits in any batch and order."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from dataflex.data.collate import collate
from dataflex.gradients import hooks, slots
from dataflex.gradients.collectors import ProjectedFeatures, RowMemory
from dataflex.gradients.hooks import BatchedGradients
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.slots import parameter_slots, section_rows, section_starts
from dataflex.models.losses import mean_losses
from dataflex.models.model import trainable_parameters, undisturbed
from dataflex.projection.adam import adam_normalize
from dataflex.projection.kernels import rademacher, sjlt
from dataflex.projection.kernels.native import native_status
from dataflex.projection.projector import Projector
from dataflex.testing import stepped_optimizer, tiny_context, tiny_dataset, tiny_lora, tiny_model

CPU = torch.device("cpu")
KINDS = [{"gradient_type": "sgd"}, {"adam_variant": "second_moment"}]


@pytest.fixture
def small_sections(monkeypatch):
    """Parameters of the tiny models have several sections each."""
    monkeypatch.setattr(slots, "SECTION_VALUES", 500)
    monkeypatch.setattr(slots, "whole_pieces", lambda rows, width: rows)


def compute(context, **changes):
    settings = {"gradient_type": "adam", "adam_variant": "adamw", "batch_tokens": 10_000}
    return SampleFeatures(context, context.train_dataset, Projector(256, seed=1), **(settings | changes))


def moments_of(context, gradient_type="adam", adam_variant="adamw"):
    return adam_moments(context.model, context.optimizer, adam_variant) if gradient_type == "adam" else None


def plain_gradients(context):
    """``(n, p)``, one backward pass each, in the model's precision."""
    rows = context.train_dataset
    return torch.stack([sample_gradient(context.model, collate([row], 2), context.autocast) for row in rows])


def exact(kind, values, *, dim=256, seed=1):
    """P u in float64."""
    values = values.double()
    count = values.shape[1]
    if kind == "rademacher":
        return values @ (1 - 2 * rademacher.negative_signs(0, count, dim=dim, seed=seed).double()).T / math.sqrt(dim)
    total = torch.zeros(len(values), dim, dtype=torch.float64)
    for output, negative in sjlt.placements(0, count, dim=dim, sparsity=8, seed=seed):
        total.index_add_(1, output, torch.where(negative, -values, values))
    return total / math.sqrt(8)


def second_moment(context, gradients):
    """u of plain gradients, computed in float64."""
    moments = moments_of(context, adam_variant="second_moment")
    b2, wide = moments.betas[1], gradients.double()
    square = b2 * moments.exp_avg_sq.double() + (1 - b2) * wide**2
    return wide / ((square / (1 - b2 ** (moments.step + 1))).sqrt() + moments.eps)


def context_of(tmp_path, part, rows=12):
    """A double tiny model whose LoRA adapters, or all parameters, are trained."""
    model = (tiny_lora(tiny_model()) if part == "lora" else tiny_model()).double()
    optimizer = stepped_optimizer(model, 2)
    return tiny_context(tmp_path, model=model, optimizer=optimizer, train_dataset=tiny_dataset(rows, seed=4))


@pytest.mark.parametrize("part", ["lora", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_float64_to_1e_5(tmp_path, part, kind):
    context = context_of(tmp_path, part)
    features = compute(context, **kind)
    features.prepare()
    gradients = plain_gradients(context)
    values = gradients if "gradient_type" in kind else second_moment(context, gradients)
    expected = exact("sjlt", values)
    with undisturbed(context.model):
        found = features.features(range(12))
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_raw_features_are_computed_in_the_batches_of_adam(tmp_path, kind):
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(40, seed=3))
    batches = []
    for settings in ({}, kind):
        features = compute(context, batch_tokens=200, **settings)
        features.prepare()
        batches.append(list(features.layout().rows_of()))
    assert batches[0] == batches[1]
    assert max(len(batch) for batch in batches[1]) > 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_42_million_parameters_share_batches(tmp_path, kind):
    """Once, raw rows of that many parameters were computed one by one."""
    config = LlamaConfig(
        vocab_size=400, hidden_size=512, intermediate_size=2048, num_hidden_layers=7, num_attention_heads=8
    )
    torch.manual_seed(0)
    adapters = LoraConfig(r=512, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(config), adapters).eval()
    assert sum(parameter.numel() for _, parameter in trainable_parameters(model)) >= 42_000_000
    rows = tiny_dataset(6, seed=4)
    context = tiny_context(tmp_path, model=model, optimizer=stepped_optimizer(model, 1), train_dataset=rows)
    batches = []
    for settings in ({}, kind):
        features = compute(context, batch_tokens=200, **settings)
        features.prepare()
        batches.append(list(features.layout().rows_of()))
    assert batches[0] == batches[1]
    assert max(len(batch) for batch in batches[1]) > 2
    items = batches[1][0][:2]
    with undisturbed(model):
        found = features.features(items)
    gradients = plain_gradients(context)[items]
    expected = exact("sjlt", gradients if "gradient_type" in kind else second_moment(context, gradients))
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-4  # the passes run in float32


def streamed(model, gradients, order, projector, adam, sections_at_once=1):
    """Features of given gradients ``(b, p)`` whose blocks come in some order of the sections."""
    starts = section_starts(parameter_slots(model).values())
    ends = {slot.offset for slot in parameter_slots(model).values()} | {gradients.shape[1]}
    taker = ProjectedFeatures(len(gradients), CPU, projector, adam, starts)
    blocks, start = [], 0
    for number, (_, stop) in enumerate(itertools.pairwise([*starts, gradients.shape[1]])):
        if stop in ends or number % sections_at_once == 0:  # a block keeps to its parameter
            blocks.append((start, stop))
            start = stop
    order.shuffle(blocks)
    for start, stop in blocks:
        taker.add(gradients[:, start:stop], start)
    return taker.result()


@pytest.fixture(params=["portable", "avx2", "avx512", "amx", "torch"])
def isa(request, monkeypatch):
    """Every instruction set of this processor, and plain torch."""
    if request.param == "torch":
        monkeypatch.setenv("DATAFLEX_NATIVE", "0")
        native_status.cache_clear()
        yield request.param
        monkeypatch.undo()
        native_status.cache_clear()
        return
    module = native_status().module
    if module is None:
        pytest.skip(f"no native kernels: {native_status().reason}")
    monkeypatch.setenv("DATAFLEX_ISA", request.param)
    try:
        module.isa()
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param


@pytest.mark.filterwarnings("ignore:[a-z]+ projections run in plain torch:RuntimeWarning")
@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
@pytest.mark.parametrize("variant", KINDS)
def test_equal_gradients_have_equal_bits(tmp_path, monkeypatch, small_sections, isa, kind, variant):
    """Over batch, order and width of blocks, instruction set; and in the pass that every item has for itself."""
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(4, seed=5))
    projector, adam = Projector(256, kind, seed=1), moments_of(context, **variant)
    gradients = plain_gradients(context).float()
    for number, slot in enumerate(parameter_slots(context.model).values()):
        gradients[:, slot.offset :] *= (1e6, 1e-6, 1.0)[number % 3] if number < 3 else 1.0
    features = compute(context, **variant)
    monkeypatch.setattr(features, "_projector", projector)
    monkeypatch.setattr(features, "_plain", lambda item: gradients[item])
    alone = features.features(range(4))
    with monkeypatch.context() as patch:
        patch.setenv("DATAFLEX_ISA", "portable")
        assert torch.equal(features.features(range(4)), alone)
    for seed, at_once in enumerate((1, 2, 100)):
        order = random.Random(seed)
        assert torch.equal(streamed(context.model, gradients, order, projector, adam, at_once), alone)
        assert torch.equal(streamed(context.model, gradients[2:3], order, projector, adam, at_once), alone[2:3])
    values = gradients if adam is None else adam_normalize(gradients, adam)
    expected = exact(kind, values)
    assert ((alone - expected).norm(dim=1) / expected.norm(dim=1)).max() < (1e-5 if kind == "sjlt" else 5e-4)


@pytest.mark.parametrize(
    "shape", [(7,), (1,), (3, 5), (1000, 64), (6, 131_072), (2, 300_000), (49_152, 576), (64, 1, 9)]
)
def test_sections_are_whole_rows_and_cover_a_parameter(shape):
    module = torch.nn.Module()
    module.before = torch.nn.Parameter(torch.zeros(3))
    module.values = torch.nn.Parameter(torch.zeros(shape))
    width = module.values[0].numel()
    rows = section_rows(width)
    starts = section_starts(parameter_slots(module).values())
    assert starts[0] == 0
    assert starts[1] == 3
    ends = [*starts[2:], 3 + module.values.numel()]
    sizes = [end - start for start, end in zip(starts[1:], ends, strict=True)]
    assert all(size == rows * width for size in sizes[:-1])
    assert 0 < sizes[-1] <= rows * width
    assert rows == 1 or rows * width <= slots.SECTION_VALUES


def test_blocks_of_a_batch_are_whole_sections(monkeypatch, small_sections):
    monkeypatch.setattr(hooks, "BLOCK_VALUES", 9000)
    model = tiny_model()
    starts = set(section_starts(parameter_slots(model).values()))
    numel = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    seen = []
    with undisturbed(model):
        batch = collate(list(tiny_dataset(3, seed=1)), 2)
        BatchedGradients(model).run(
            3, lambda: mean_losses(model, batch), lambda block, at: seen.append((at, at + block.shape[1]))
        )
    assert all(start in starts and (stop in starts or stop == numel) for start, stop in seen)
    assert sum(stop - start for start, stop in seen) == numel
    assert any(len(starts & set(range(start + 1, stop))) > 0 for start, stop in seen)  # several in one block


def test_the_variant_is_part_of_the_fingerprint(tmp_path):
    context = tiny_context(tmp_path)
    facts = [compute(context, adam_variant=variant).facts() for variant in ("adamw", "second_moment")]
    assert facts[1]["gradient"]["adam_variant"] == "second_moment"
    assert facts[0]["gradient"] != facts[1]["gradient"]
    assert facts[0] | {"gradient": None} == facts[1] | {"gradient": None}


def test_memory_of_rows_is_used_again_and_never_by_two_items_at_once() -> None:
    memory = RowMemory(4, torch.device("cpu"))
    first = memory.take(3).result()
    alone = [memory.take(1).result() for _ in range(2)]
    assert [tuple(rows.shape) for rows in (first, *alone)] == [(3, 4), (1, 4), (1, 4)]
    assert len({rows.untyped_storage().data_ptr() for rows in (first, *alone)}) == 3
    memory.clear()
    assert memory.take(2).result().data_ptr() == first.data_ptr()
    assert memory.take(1).result().data_ptr() == first[2].data_ptr()
