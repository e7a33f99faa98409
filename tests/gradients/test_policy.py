from __future__ import annotations

import pytest
import torch

from dataflex.errors import GradientError
from dataflex.gradients.plain import policy_gradient
from dataflex.gradients.policy import PolicyFeatures, WeightedPrompt, policy_batch
from dataflex.projection.projector import Projector
from dataflex.testing import tiny_context
from helpers.families import family_lora, family_model

PROMPTS = [
    WeightedPrompt(0, [5, 9, 23, 40], [[7, 8, 9], [11], [7, 30]], [0.5, -1.0, 2.0]),
    WeightedPrompt(2, [5, 6], [[17, 18, 19, 20, 21], [31]], [1.0, 0.25]),
    WeightedPrompt(3, [50, 51, 52, 53, 54, 55, 56], [[7], [8], [9], [10]], [0.0, 0.0, 1.5, 0.0]),
    WeightedPrompt(5, [60] * 9, [[7, 9]], [-0.75]),
]


def compute(context, prompts=PROMPTS, *, temperature=0.7, batch_tokens=10_000):
    projector = Projector(256, seed=1)
    return PolicyFeatures(context, prompts, projector, temperature=temperature, batch_tokens=batch_tokens)


def plain(context, prompts=PROMPTS, temperature=0.7):
    """One backward pass a prompt, projected one by one."""
    gradients = [
        policy_gradient(
            context.model, p.prompt_ids, p.answers, p.weights, temperature=temperature, autocast=context.autocast
        )
        for p in prompts
    ]
    return torch.cat([Projector(256, seed=1).project(gradient[None].float()) for gradient in gradients])


def relative(found, expected):
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    "make", [lambda: family_lora("llama"), lambda: family_lora("gpt2"), lambda: family_model("qwen2")]
)
def test_prompts_in_one_batch_equal_a_backward_pass_each(tmp_path, caplog, make, temperature):
    context = tiny_context(tmp_path, model=make(), optimizer=None)
    features = compute(context, temperature=temperature)
    found = features.fill(tmp_path / "f", save_rows=4, description="prompts").load()
    assert list(features.layout().rows_of()) == [[0, 1, 2, 3]]
    assert relative(found, plain(context, temperature=temperature)) < 1e-4
    assert not caplog.records


def test_batches_and_shards_do_not_change_features(tmp_path):
    context = tiny_context(tmp_path)
    expected = compute(context).fill(tmp_path / "a", save_rows=4, description="prompts").load()
    for number, (tokens, save_rows) in enumerate(((1, 4), (30, 3), (40, 2))):
        features = compute(context, batch_tokens=tokens)
        found = features.fill(tmp_path / str(number), save_rows=save_rows, description="prompts").load()
        assert relative(found, expected) < 1e-5


def test_batches_keep_to_the_budget(tmp_path):
    features = compute(tiny_context(tmp_path), batch_tokens=40)
    features.fill(tmp_path / "f", save_rows=4, description="prompts")
    # Lengths 7, 7, 8, 11 with 2, 3, 1, 1 rows: 5 rows of 7 tokens fit, 6 of 8 do not, 2 of 11 do.
    assert list(features.layout().rows_of()) == [[0, 1], [2, 3]]


def test_rows_are_the_answers_that_have_a_weight():
    batch, weights = policy_batch(PROMPTS[:3], 2)
    assert batch.input_ids.shape == (6, 8)
    assert weights.tolist() == [0.5 / 3, -1.0 / 3, 2.0 / 3, 0.5, 0.125, 1.5 / 4]
    assert batch.input_ids[1].tolist() == [5, 9, 23, 40, 11, 2, 2, 2]
    assert batch.attention_mask[1].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert batch.labels[5].tolist() == [-100] * 7 + [9]


def test_a_gradient_that_is_not_finite_spoils_its_own_prompt_only(tmp_path):
    context = tiny_context(tmp_path)
    expected = plain(context)
    with torch.no_grad():
        context.model.get_input_embeddings().weight[60] = float("nan")
    found = compute(context).fill(tmp_path / "f", save_rows=4, description="prompts").load()
    assert found[3].isnan().all()
    assert relative(found[:3], expected[:3]) < 1e-4


def test_other_prompts_weights_or_temperatures_are_other_stores(tmp_path):
    context = tiny_context(tmp_path)
    first = compute(context).facts()
    assert first == compute(context).facts()
    heavier = [WeightedPrompt(0, PROMPTS[0].prompt_ids, PROMPTS[0].answers, [0.5, -1.0, 2.5]), *PROMPTS[1:]]
    longer = [WeightedPrompt(0, [4, *PROMPTS[0].prompt_ids], PROMPTS[0].answers, PROMPTS[0].weights), *PROMPTS[1:]]
    others = [compute(context, heavier), compute(context, longer), compute(context, temperature=1.0)]
    assert all(other.facts() != first for other in others)


@pytest.mark.parametrize(
    "prompt", [WeightedPrompt(4, [1], [[2]], [0.0]), WeightedPrompt(4, [1], [[2], []], [1.0, 1.0])]
)
def test_prompts_without_a_gradient_are_refused(tmp_path, prompt):
    with pytest.raises(GradientError, match="prompt 4"):
        compute(tiny_context(tmp_path), [prompt])
