from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch

from dataflex.data.collate import collate
from dataflex.gradients.plain import sample_gradient
from dataflex.models.losses import mean_losses
from dataflex.models.model import trainable_parameters
from dataflex.models.wide import in_float32
from dataflex.testing import tiny_dataset
from helpers.families import CONFIGS, family_lora, family_model

ROWS = list(tiny_dataset(2, seed=4))


@pytest.mark.parametrize("make", [family_lora, family_model])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_in_16_bits_computes_as_its_copy_in_float32(family, make):
    model = make(family).to(torch.bfloat16)
    copied = copy.deepcopy(model).float()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = sample_gradient(copied, collate(ROWS[:1], 2), nullcontext)
    rounded = sample_gradient(model, collate(ROWS[:1], 2), nullcontext)
    with in_float32(model):
        found = sample_gradient(model, collate(ROWS[:1], 2), nullcontext)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert float((rounded - expected).norm() / expected.norm()) > 1e-3
    after = model.state_dict()
    assert all(value.dtype == torch.bfloat16 and torch.equal(value, after[name]) for name, value in before.items())


def test_frozen_weights_are_not_copied():
    model = family_lora("llama").to(torch.bfloat16)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    with in_float32(model):
        assert all(parameter.dtype == torch.bfloat16 for parameter in frozen)
        logits = model(input_ids=torch.tensor([ROWS[0].input_ids])).logits
    assert logits.dtype == torch.float32


def test_layers_that_recompute_stay_wide():
    model = family_lora("llama").to(torch.bfloat16)
    expected = sample_gradient(copy.deepcopy(model).float(), collate(ROWS[:1], 2), nullcontext)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    with in_float32(model):
        found = sample_gradient(model, collate(ROWS[:1], 2), nullcontext)
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_products_are_exact_and_settings_come_back():
    torch.set_float32_matmul_precision("high")
    try:
        with in_float32(family_lora("llama")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has one interface")
def test_products_are_exact_where_tf32_was_turned_on_for_the_backends():
    """As transformers does where it finds a GPU that has TF32."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        backends[0].fp32_precision = "tf32"
        with in_float32(family_lora("llama")):
            assert [backend.fp32_precision for backend in backends] == ["ieee", "ieee"]
        assert [backend.fp32_precision for backend in backends] == ["tf32", before[1]]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@pytest.mark.parametrize("make", [family_lora, family_model])
def test_parameters_keep_what_hangs_on_their_gradients(make):
    """DistributedDataParallel averages over processes by such hooks."""
    model = make("gpt2").to(torch.bfloat16)
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    accumulators = [one.expand_as(one).grad_fn.next_functions[0][0] for one in parameters]
    seen = set()
    for number, accumulator in enumerate(accumulators):
        accumulator.register_hook(lambda *_, number=number: seen.add(number))
    batch = collate(ROWS[:1], 2)
    with in_float32(model):
        sample_gradient(model, batch, nullcontext)
    assert not seen
    assert [id(parameter) for _, parameter in trainable_parameters(model)] == [id(one) for one in parameters]
    mean_losses(model, batch).sum().backward()
    assert seen == set(range(len(parameters)))


def test_kernels_for_16_bits_alone_are_left_aside():
    model = family_model("llama").to(torch.bfloat16)
    model.config._attn_implementation = "flash_attention_2"  # not installed here
    with in_float32(model):
        assert model.config._attn_implementation == "sdpa"
        model(input_ids=torch.tensor([ROWS[0].input_ids]))
    assert model.config._attn_implementation == "flash_attention_2"
