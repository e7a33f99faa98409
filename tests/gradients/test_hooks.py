from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from dataflex.data.collate import Batch, collate
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.gradients import hooks as gradient_hooks
from dataflex.gradients import slots as gradient_slots
from dataflex.gradients.hooks import BatchedGradients, UnsupportedModel, frozen
from dataflex.models.losses import mean_losses, token_log_probs
from dataflex.models.model import recomputing, recomputing_layers, trainable_parameters, undisturbed
from dataflex.models.quantization import keep_weights
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model
from helpers.families import CONFIGS, family_lora, family_model
from helpers.whole import one_by_one, relative_errors, streamed, streamed_batch

EXACT = 1e-9
"""Relative error in float64; Gemma's and Llama's norms compute in float32 inside."""


def examples(count=5, seed=4):
    return list(tiny_dataset(count, seed=seed))


@pytest.mark.parametrize("family", CONFIGS)
def test_adapters_in_float32_equal_float64_backward_passes_of_one_sample(family):
    found = streamed_batch(family_lora(family), collate(examples(), 2))
    expected = one_by_one(family_lora(family).double(), examples())
    assert max(relative_errors(found, expected)) < 1e-4


@pytest.mark.parametrize("family", CONFIGS)
def test_whole_models_equal_backward_passes_of_one_sample(family):
    model = family_model(family).double()
    found, expected = streamed_batch(model, collate(examples(), 2)), one_by_one(model, examples())
    start = 0
    for name, parameter in model.named_parameters():
        stop = start + parameter.numel()
        error = float((found[:, start:stop] - expected[:, start:stop]).norm())
        size = float(expected[:, start:stop].norm()) + 1e-3 * float(expected.norm())
        assert error < 1e-6 * size, name
        start = stop
    float32 = streamed_batch(family_model(family), collate(examples(), 2))
    assert max(relative_errors(float32, expected)) < 1e-4


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_tied_weights_and_narrow_blocks(family, monkeypatch):
    model = family_model(family, tie_word_embeddings=True).double()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    expected = one_by_one(model, examples())
    monkeypatch.setattr(gradient_hooks, "BLOCK_VALUES", 1000)
    monkeypatch.setattr(gradient_slots, "SECTION_VALUES", 64)
    widths = []
    with undisturbed(model):
        BatchedGradients(model).run(
            5,
            lambda: mean_losses(model, collate(examples(), 2)),
            lambda block, offset: widths.append(block.shape[1]),
        )
    assert max(widths) <= 1000 // 5
    assert max(relative_errors(streamed_batch(model, collate(examples(), 2)), expected)) < 1e-7


def test_other_rows_and_padding_do_not_matter():
    model = family_lora("llama").double()
    rows = sorted(examples(8, seed=2), key=lambda example: len(example.input_ids))
    alone = streamed_batch(model, collate(rows[:1], 2))[0]
    for others in (rows[1:3], rows[-1:], rows[1:][::-1]):
        batch = collate([*others, rows[0]], 2)
        torch.testing.assert_close(streamed_batch(model, batch)[-1], alone, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", CONFIGS)
def test_padding_on_the_left_gives_the_same_gradients(family):
    model = family_lora(family).double()
    right = collate(examples(), 2)
    shifts = (right.attention_mask == 0).sum(dim=1)
    left = Batch(*(torch.stack([row.roll(int(n)) for row, n in zip(part, shifts, strict=True)]) for part in (
        right.input_ids, right.attention_mask, right.labels)))  # fmt: skip

    def losses():
        positions = (left.attention_mask.cumsum(dim=1) - 1).clamp_min(0)
        logits = model(input_ids=left.input_ids, attention_mask=left.attention_mask, position_ids=positions).logits
        targets = left.labels[:, 1:]
        return -token_log_probs(logits[:, :-1], targets).sum(dim=1) / (targets != IGNORE_INDEX).sum(dim=1)

    errors = relative_errors(streamed(model, 5, losses), streamed_batch(model, right))
    assert max(errors) < 1e-8


@pytest.mark.parametrize("trained", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_checkpointing_recomputes_and_changes_nothing(family, trained):
    model = family_lora(family) if trained == "lora" else family_model(family)
    batch = collate(examples(), 2)
    expected = streamed_batch(model, batch)
    kept = saved_bytes(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    handle = next(m for n, m in model.named_modules() if n.endswith("mlp")).register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    with undisturbed(model), recomputing(recomputing_layers(model)):
        torch.testing.assert_close(streamed_without_eval(model, batch), expected, rtol=1e-6, atol=1e-7)
        assert len(calls) == 2
        assert saved_bytes(model, batch) < 0.7 * kept
    handle.remove()


def streamed_without_eval(model, batch):
    """As ``streamed_batch`` in the mode that the caller has set."""
    values = {}
    BatchedGradients(model).run(
        len(batch.input_ids), lambda: mean_losses(model, batch), lambda block, offset: values.update({offset: block})
    )
    return torch.cat([values[offset] for offset in sorted(values)], dim=1).double()


def saved_bytes(model, batch):
    """What the batched pass keeps between forward and backward."""
    kept = {}

    def losses():
        def pack(saved):
            kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            return mean_losses(model, batch)

    BatchedGradients(model).run(len(batch.input_ids), losses, lambda block, offset: None)
    return sum(kept.values())


def test_a_module_that_is_called_twice_adds_up():
    model = tiny_lora(tiny_model()).double()
    layers = model.base_model.model.model.layers
    layers[1].mlp = layers[0].mlp
    found, expected = streamed_batch(model, collate(examples(), 2)), one_by_one(model, examples())
    assert max(relative_errors(found, expected)) < EXACT


def test_outputs_may_be_changed_in_place_afterwards():
    model = tiny_model().double()
    expected = one_by_one(model, examples())
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.SiLU(inplace=True)
    errors = relative_errors(streamed_batch(model, collate(examples(), 2)), expected)
    assert max(errors) < EXACT


def test_a_shared_module_under_checkpointing_adds_up():
    model = tiny_lora(tiny_model()).double()
    layers = model.base_model.model.model.layers
    layers[1].mlp = layers[0].mlp
    expected = one_by_one(model, examples())
    for layer in layers:
        layer.forward = lambda *args, f=layer.forward, **kwargs: checkpoint(f, *args, use_reentrant=False, **kwargs)
    assert max(relative_errors(streamed_batch(model, collate(examples(), 2)), expected)) < EXACT


def test_a_parameter_of_two_modules_adds_up():
    model = tiny_lora(tiny_model()).double()
    layers = model.base_model.model.model.layers
    layers[1].mlp.up_proj.lora_A["default"].weight = layers[0].mlp.up_proj.lora_A["default"].weight
    found, expected = streamed_batch(model, collate(examples(), 2)), one_by_one(model, examples())
    assert max(relative_errors(found, expected)) < EXACT


def test_rows_of_a_group_are_summed():
    model = family_model("llama").double()
    batch = collate(examples(6), 2)
    alone = streamed_batch(model, batch)
    found = streamed(model, 6, lambda: mean_losses(model, batch), groups=[1, 3, 2])
    expected = torch.stack([alone[:1].sum(dim=0), alone[1:4].sum(dim=0), alone[4:].sum(dim=0)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def test_what_the_loss_does_not_depend_on_is_zero():
    model = tiny_lora(tiny_model()).double()
    batch = collate(examples(), 2)

    def losses():
        return mean_losses(model, batch).detach()

    found = streamed(model, 5, losses)
    assert torch.equal(found, torch.zeros_like(found))


def test_a_row_that_is_not_finite_leaves_the_others_alone():
    model = family_model("gpt2").double()
    batch = collate(examples(), 2)
    expected = streamed_batch(model, batch)

    def losses():
        values = mean_losses(model, batch)
        return values * torch.tensor([1.0, 1.0, float("inf"), 1.0, 1.0])

    found = streamed(model, 5, losses)
    assert not found[2].isfinite().all()
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-9, atol=1e-12)


def test_the_pass_leaves_no_trace():
    model = family_lora("llama")
    hooks = [len(module._forward_hooks) for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = torch.get_rng_state()
    streamed_batch(model, collate(examples(2), 2))
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert len(trainable_parameters(model)) == 2 * 2 * 7
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError), frozen([value for _, value in trainable_parameters(model)]):
        raise RuntimeError
    assert len(trainable_parameters(model)) == 2 * 2 * 7


@pytest.mark.parametrize("trained", ["lora", "full"])
def test_no_more_arithmetic_than_a_plain_step(trained):
    model = family_lora("llama") if trained == "lora" else family_model("llama")
    touched = []
    for _, parameter in trainable_parameters(model):
        parameter.register_hook(lambda grad: touched.append(grad))
    batch = collate(examples(), 2)
    with FlopCounterMode(display=False) as batched:
        streamed_batch(model, batch)
    assert touched == []
    with FlopCounterMode(display=False) as plain:
        mean_losses(model, batch).mean().backward()
    assert touched
    assert batched.get_total_flops() <= plain.get_total_flops()


def test_modules_without_a_rule_are_refused_by_name():
    model = tiny_lora(tiny_model())
    model.base_model.model.register_parameter("extra", torch.nn.Parameter(torch.ones(2)))
    with pytest.raises(UnsupportedModel, match=r"base_model\.model is a LlamaForCausalLM"):
        BatchedGradients(model)


def test_inputs_without_the_rows_in_front_are_refused():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)

        def forward(self, values):
            return self.inner(values.flatten(0, 1)).view_as(values)

    model, values = Flat(), torch.randn(3, 5, 4)
    with pytest.raises(UnsupportedModel, match=r"inner sees a tensor of shape \(15, 4\) in a batch of 3"):
        BatchedGradients(model).run(3, lambda: model(values).sum(dim=(1, 2)), lambda block, offset: None)


def test_positions_in_one_dimension_are_told_apart_once_their_number_is_known():
    """Shared experts see all tokens of the batch in one dimension, behind attention that sees rows."""

    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(4, 4)
            self.inner = torch.nn.Linear(4, 3)

        def forward(self, values):
            return self.inner(self.first(values).flatten(0, 1)).tanh().view(*values.shape[:2], 3)

    model, values = Flat().double(), torch.randn(3, 5, 4).double()
    found = streamed(model, 3, lambda: model(values).sum(dim=(1, 2)))
    for row, value in enumerate(values):
        gradients = torch.autograd.grad(model(value[None]).sum(), list(model.parameters()))
        expected = torch.cat([gradient.flatten() for gradient in gradients])
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=1e-12)


def test_modules_with_other_inputs_are_refused():
    class GatedRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))

        def forward(self, values, gate):
            return self.weight * torch.nn.functional.rms_norm(values, (4,)) * gate

    model, values = GatedRMSNorm(), torch.randn(3, 5, 4)
    for call in (lambda: model(values, values), lambda: model(values, gate=values)):
        with pytest.raises(UnsupportedModel, match="is called with something else than one input"):
            BatchedGradients(model).run(3, lambda c=call: c().sum(dim=(1, 2)), lambda block, offset: None)


def test_parameters_that_no_call_uses_are_named():
    class Bypassed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(4, 4, bias=False)

        def forward(self, values):
            return values @ self.inner.weight.T

    model, values = Bypassed(), torch.randn(3, 5, 4)
    blocks = []
    unused = BatchedGradients(model).run(
        3, lambda: model(values).sum(dim=(1, 2)), lambda block, _: blocks.append(block)
    )
    assert unused == {"inner.weight"}
    assert torch.equal(torch.cat(blocks), torch.zeros(3, 16))


def test_autocast_gives_float32_blocks():
    model = family_lora("llama")
    batch, dtypes = collate(examples(), 2), set()

    def losses():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return mean_losses(model, batch)

    with undisturbed(model):
        BatchedGradients(model).run(5, losses, lambda block, offset: dtypes.add(block.dtype))
    assert dtypes == {torch.float32}
    errors = relative_errors(streamed(model, 5, losses), one_by_one(model, examples()))
    assert max(errors) < 0.1


def test_mean_losses_are_those_of_each_sample():
    model = tiny_model().double()
    rows = examples(4, seed=1)
    found = mean_losses(model, collate(rows, 2))
    for row, example in enumerate(rows):
        logits = model(torch.tensor([example.input_ids])).logits[0, :-1]
        targets = torch.tensor(example.labels[1:])
        expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
        torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "lora"),
    [("llama", {"use_rslora": True}), ("qwen2", {"bias": "all"}), ("llama", {"modules_to_save": ["lm_head"]})],
)
def test_variants_of_lora(family, lora):
    model = family_lora(family, **lora).double()
    found, expected = streamed_batch(model, collate(examples(), 2)), one_by_one(model, examples())
    assert max(relative_errors(found, expected)) < EXACT


def test_four_bit_base_models():
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit
    from peft import LoraConfig, get_peft_model

    base = tiny_model()
    for layer in base.model.layers:
        for name in ("up_proj", "down_proj"):
            old = getattr(layer.mlp, name)
            new = Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=torch.float32)
            new.load_state_dict(old.state_dict())
            setattr(layer.mlp, name, new.to("cpu"))
            assert new.weight.dtype == torch.uint8
    keep_weights(base)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["up_proj", "down_proj"])).eval()
    found, expected = streamed_batch(model, collate(examples(), 2)), one_by_one(model, examples())
    assert max(relative_errors(found, expected)) < 1e-4
