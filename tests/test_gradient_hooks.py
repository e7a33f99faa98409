from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, Qwen2Config

from dataflex.data.collate import IGNORE_INDEX, Batch, collate
from dataflex.gradient_hooks import BatchedGradients, UnsupportedModel, frozen
from dataflex.gradients import sample_gradient
from dataflex.losses import mean_losses
from dataflex.model import trainable_parameters, undisturbed
from helpers.tiny import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer

SMALL = {"vocab_size": len(tiny_tokenizer()), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CONFIGS = {
    "qwen2": Qwen2Config(**SMALL, **HEADS, **SPECIAL),
    "gemma": GemmaConfig(**SMALL, **HEADS, head_dim=8, **SPECIAL),
    "gpt2": GPT2Config(vocab_size=SMALL["vocab_size"], n_embd=32, n_layer=2, n_head=4, n_positions=128, **SPECIAL),
}


def adapted(family, **lora):
    torch.manual_seed(1)
    base = tiny_model() if family == "llama" else AutoModelForCausalLM.from_config(CONFIGS[family])
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    settings["fan_in_fan_out"] = family == "gpt2"
    model = get_peft_model(base, LoraConfig(**(settings | lora)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.double().eval()


def whole(model, batch):
    """(b, p) gradients that the batched rule streams."""
    count = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    values = torch.full((len(batch.input_ids), count), float("nan"), dtype=torch.float64)

    def sink(block, offset):
        assert values[:, offset : offset + block.shape[1]].isnan().all()
        values[:, offset : offset + block.shape[1]] = block

    with undisturbed(model):
        BatchedGradients(model).run(batch, nullcontext, sink)
    assert not values.isnan().any()
    return values


@pytest.mark.parametrize("family", ["llama", *CONFIGS])
def test_batched_gradients_equal_backward_passes_of_one_sample(family):
    model = adapted(family)
    examples = list(tiny_dataset(5, seed=4))
    found = whole(model, collate(examples, 2))
    for row, example in enumerate(examples):
        expected = sample_gradient(model, collate([example], 2), nullcontext)
        assert float((found[row] - expected).norm() / expected.norm()) < 1e-9


def test_other_rows_and_padding_do_not_matter():
    model = adapted("llama")
    examples = sorted(tiny_dataset(8, seed=2), key=lambda example: len(example.input_ids))
    alone = whole(model, collate(examples[:1], 2))[0]
    for others in (examples[1:3], examples[-1:], examples[1:][::-1]):
        batch = collate([*others, examples[0]], 2)
        torch.testing.assert_close(whole(model, batch)[-1], alone, rtol=1e-9, atol=1e-12)


def test_biases_have_gradients_too():
    model = tiny_model().double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    for layer in model.model.layers:
        layer.mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(64, dtype=torch.float64))
    examples = list(tiny_dataset(3))
    found = whole(model, collate(examples, 2))
    for row, example in enumerate(examples):
        expected = sample_gradient(model, collate([example], 2), nullcontext)
        torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-12)


def test_the_pass_leaves_no_trace():
    model = adapted("llama")
    hooks = [len(module._forward_hooks) for module in model.modules()]
    state = torch.get_rng_state()
    whole(model, collate(list(tiny_dataset(2)), 2))
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(trainable_parameters(model)) == 2 * 2 * 7
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError), frozen(model):
        raise RuntimeError
    assert len(trainable_parameters(model)) == 2 * 2 * 7


def test_no_weight_gradient_is_computed_by_autograd():
    model = adapted("llama")
    touched = []
    handles = [p.register_hook(lambda grad: touched.append(grad)) for _, p in trainable_parameters(model)]
    whole(model, collate(list(tiny_dataset(2)), 2))
    assert touched == []
    assert len(handles) == 28


def test_modules_without_a_rule_are_refused_by_name():
    model = tiny_lora(tiny_model())
    model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(UnsupportedModel, match=r"model\.norm is a LlamaRMSNorm"):
        BatchedGradients(model)


def test_a_layer_that_is_called_twice_is_refused():
    model = tiny_lora(tiny_model())
    layers = model.base_model.model.model.layers
    layers[1].mlp = layers[0].mlp
    batch = collate(list(tiny_dataset(2)), 2)
    with pytest.raises(UnsupportedModel, match="called more than once"), undisturbed(model):
        BatchedGradients(model).run(batch, nullcontext, lambda block, offset: None)


def test_a_shared_parameter_is_refused():
    model = tiny_lora(tiny_model())
    layers = model.base_model.model.model.layers
    layers[1].mlp.up_proj.lora_A["default"].weight = layers[0].mlp.up_proj.lora_A["default"].weight
    with pytest.raises(UnsupportedModel, match="share a parameter"):
        BatchedGradients(model)


def test_mean_losses_are_those_of_each_sample():
    model = tiny_model().double()
    examples = list(tiny_dataset(4, seed=1))
    batch = collate(examples, 2)
    found = mean_losses(model, batch)
    for row, example in enumerate(examples):
        logits = model(torch.tensor([example.input_ids])).logits[0, :-1]
        targets = torch.tensor(example.labels[1:])
        expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX)
        torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-12)
    shifted = Batch(batch.input_ids, batch.attention_mask, batch.labels.roll(0, dims=1))
    torch.testing.assert_close(mean_losses(model, shifted), found)
