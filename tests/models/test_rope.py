"""Models whose rotary frequencies depend on length compute every row as a freshly loaded model does alone."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PhimoeConfig

from dataflex.curriculum.schedule import Schedule
from dataflex.data.collate import collate
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.policy import PolicyFeatures, WeightedPrompt
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import label_log_probs, mean_losses, summed_loss, token_log_probs
from dataflex.models.model import add_lora, base_model
from dataflex.models.rope import at_length, length_class, scaled_rotaries
from dataflex.projection.projector import Projector
from dataflex.rollouts import Prompt, Sampling, sample_answers
from dataflex.selectors.losses import sample_losses
from dataflex.testing import tiny_context, tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training.evaluation import Evaluator
from dataflex.utils.distributed import Ranks
from helpers.runs import tiny_trainer

LIMIT = 25
"""Rows of the tiny data have 21 to 34 tokens."""
ROWS = sorted(tiny_dataset(8, seed=4), key=lambda example: -len(example.input_ids))
SIZES = {
    "vocab_size": len(tiny_tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0, 5.0, 7.0, 9.0],
    "original_max_position_embeddings": LIMIT,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}
CONFIGS = {
    "longrope": Phi3Config(
        **SIZES, rope_parameters=LONG, original_max_position_embeddings=LIMIT, max_position_embeddings=512
    ),
    "longrope with scales": PhimoeConfig(
        **SIZES,
        num_local_experts=2,
        rope_parameters=LONG | {"short_mscale": 1.0, "long_mscale": 1.3},
        original_max_position_embeddings=LIMIT,
        max_position_embeddings=512,
    ),
    "dynamic": LlamaConfig(**SIZES, rope_parameters=DYNAMIC, max_position_embeddings=LIMIT),
}


@cache
def _made(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(CONFIGS[kind], experts_implementation="eager")
        with torch.no_grad():
            for parameter in base.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        adapted = add_lora(base)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    return adapted.eval()


def fresh(kind, dtype=torch.float64):
    """The same model as never used before, in eval mode."""
    return copy.deepcopy(_made(kind)).to(dtype)


def loss_alone(kind, example):
    """A row's mean loss by a fresh model and transformers alone."""
    ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels[1:]])
    with torch.no_grad():
        logits = fresh(kind)(input_ids=ids, use_cache=False).logits[:, :-1]
    return float(-token_log_probs(logits, labels).sum() / (labels != -100).sum())


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_frequencies_of_these_models_do_depend_on_length(kind):
    model = fresh(kind)
    short = min(ROWS, key=lambda example: len(example.input_ids))
    with torch.no_grad(), at_length(model, 2 * LIMIT):
        ids = torch.tensor([short.input_ids])
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    labels = torch.tensor([short.labels[1:]])
    assert abs(float(-token_log_probs(logits, labels).sum() / (labels != -100).sum()) - loss_alone(kind, short)) > 1e-3
    assert {len(row.input_ids) > LIMIT for row in ROWS} == {True, False}


@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_of_mixed_batches_in_any_order_are_those_of_each_row_alone(kind):
    model = fresh(kind)
    expected = [loss_alone(kind, example) for example in ROWS]
    with torch.no_grad():
        together = mean_losses(model, collate(ROWS, 2)).tolist()
        after_long_ones = [float(mean_losses(model, collate([example], 2))) for example in ROWS]
        total, count = summed_loss(model, collate(ROWS, 2))
    assert together == pytest.approx(expected, rel=1e-9)
    assert after_long_ones == pytest.approx(expected, rel=1e-9)
    tokens = [sum(label != -100 for label in example.labels[1:]) for example in ROWS]
    assert float(total) == pytest.approx(sum(a * b for a, b in zip(expected, tokens, strict=True)), rel=1e-9)
    assert count == sum(tokens)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_of_a_mixed_training_batch_are_the_sum_of_those_of_its_rows(kind):
    model = fresh(kind)
    mean_losses(model, collate(ROWS, 2)).sum().backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    expected = sum(sample_gradient(fresh(kind), collate([example], 2), nullcontext) for example in ROWS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", CONFIGS)
def test_features_are_those_of_a_batch_of_one(kind, tmp_path, caplog):
    context = tiny_context(tmp_path, model=fresh(kind, torch.float32), optimizer=None, train_dataset=tiny_dataset(8, 4))
    projector = Projector(256, seed=1)
    features = SampleFeatures(
        context, context.train_dataset, projector, gradient_type="sgd", adam_variant="adamw", batch_tokens=10_000
    )
    store = features.fill(tmp_path / "f", save_rows=8, description="features")
    assert not caplog.records
    rotaries = scaled_rotaries(context.model)
    lengths = context.train_dataset.lengths
    batches = list(features.layout().rows_of())
    assert 1 < len(batches) < 8
    assert all(len({length_class(rotaries, lengths[row]) for row in batch}) == 1 for batch in batches)
    for row, example in enumerate(context.train_dataset):
        gradient = sample_gradient(fresh(kind, torch.float32), collate([example], 2), nullcontext)
        expected = projector.project(gradient[None])[0]
        assert float((store.load()[row] - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("kind", CONFIGS)
def test_selectors_and_evaluation_take_the_losses_of_each_row_alone(kind, tmp_path):
    dataset = tiny_dataset(8, 4)
    context = tiny_context(tmp_path, model=fresh(kind), optimizer=None, train_dataset=dataset)
    expected = [loss_alone(kind, example) for example in dataset]
    found = sample_losses(context, list(range(8)))[:, 0].tolist()
    assert found == pytest.approx(expected, rel=1e-9)
    evaluator = Evaluator(context.model, context.tokenizer, context.template, dataset, 8, nullcontext, Ranks())
    losses = [loss.total / loss.tokens for loss in evaluator.losses() if loss is not None]
    assert losses == pytest.approx(expected, rel=1e-9)


def drawn(model, prompts, batch_size):
    return sample_answers(
        model,
        tiny_tokenizer(),
        prompts,
        Sampling(0.8, 6),
        answers_per_prompt=2,
        stop_token_ids={1},
        seed=5,
        step=10,
        batch_size=batch_size,
        autocast=nullcontext,
        show_progress=False,
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_answers_do_not_depend_on_batches_or_on_what_came_before(kind):
    prompts = [Prompt(str(n), list(range(5, 5 + n))) for n in (30, 3, LIMIT - 5, LIMIT - 3, 9, LIMIT - 6, 26)]
    together = drawn(fresh(kind), prompts, 16)
    alone = [answer for prompt in prompts for answer in drawn(fresh(kind), [prompt], 1)]
    for found, expected in zip(together, alone, strict=True):
        assert found.token_ids == expected.token_ids
        assert found.log_probs == pytest.approx(expected.log_probs, abs=1e-6)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_an_answer_that_may_cross_the_limit_is_differentiated_as_it_was_drawn(kind, tmp_path):
    """Recorded log-probabilities are those of the pass whose gradient is taken, on both sides of the limit."""
    model, horizon = fresh(kind), LIMIT + 4
    prompt = Prompt("a", list(range(5, 5 + LIMIT - 2)))
    answers = drawn(model, [prompt], 2)
    prompts = [WeightedPrompt(0, prompt.token_ids, [answer.token_ids], [1.0], horizon) for answer in answers]
    context = tiny_context(tmp_path, model=model, optimizer=None)
    features = PolicyFeatures(context, prompts, Projector(256), temperature=0.8, batch_tokens=1000)
    with torch.no_grad():
        losses = features._work([0, 1]).losses().tolist()
    assert [-loss for loss in losses] == pytest.approx([sum(answer.log_probs) for answer in answers], rel=1e-6)
    batch = collate(ROWS[:1], 2)
    with torch.no_grad():
        assert label_log_probs(model, batch, horizon=60)[0] != label_log_probs(fresh(kind), batch)[0] or (
            kind == "longrope"
        )


def test_a_run_that_is_resumed_goes_on_like_an_unbroken_one(tmp_path, monkeypatch):
    def run(folder, **args):
        trainer = tiny_trainer(
            tmp_path / folder, schedule=Schedule(warmup_step=3, update_step=3, update_times=1), save_steps=2, **args
        )
        trainer.train()
        entries = [json.loads(line) for line in (tmp_path / folder / "trainer_log.jsonl").read_text().splitlines()]
        return {entry["current_steps"]: entry["loss"] for entry in entries if "loss" in entry}

    scaled = tiny_model(rope_parameters=DYNAMIC, max_position_embeddings=LIMIT)
    monkeypatch.setattr("helpers.runs.tiny_model", lambda: copy.deepcopy(scaled))
    whole = run("whole")
    resumed = run("resumed", resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    assert {step: loss for step, loss in resumed.items() if step > 2} == {s: v for s, v in whole.items() if s > 2}
    name = "adapter_model.safetensors"
    assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_models_have_no_classes():
    model = tiny_model()
    assert scaled_rotaries(model) == []
    assert length_class(scaled_rotaries(model), 10**6) == ()


def test_a_model_is_searched_once_and_not_kept_alive(monkeypatch):
    """A walk through all modules takes milliseconds, and every forward pass asks."""
    model = tiny_lora(AutoModelForCausalLM.from_config(CONFIGS["longrope"]))
    (rotary,) = scaled_rotaries(model)
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(type(model), "modules", None)
        patched.setattr(type(base_model(model)), "modules", None)
        assert scaled_rotaries(model)[0] is rotary
    gone = weakref.ref(base_model(model))
    del model, rotary
    gc.collect()
    assert gone() is None


def test_layers_of_two_types_have_limits_of_their_own():
    """Gemma 3's rotary module keeps frequencies by type of layer."""
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        max_position_embeddings=LIMIT,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": DYNAMIC},
    )
    base = AutoModelForCausalLM.from_config(config).double().eval()
    (rotary,) = scaled_rotaries(base)
    assert [rotary.length_class(length) for length in (LIMIT, LIMIT + 1)] == [(0,), (LIMIT + 1,)]
    model = copy.deepcopy(base)
    with torch.no_grad():
        found = mean_losses(model, collate(ROWS, 2))
        expected = torch.cat([mean_losses(copy.deepcopy(base), collate([example], 2)) for example in ROWS])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
