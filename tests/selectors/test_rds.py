"""RDS+: pooled hidden states, cosine, turns."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from dataflex.data.collate import collate
from dataflex.errors import ConfigError, SelectionError
from dataflex.models.hidden import pooled_states
from dataflex.models.model import base_model
from dataflex.selectors.rds import RdsSelector
from dataflex.testing import tiny_context, tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer


def distinct_context(folder, **changes):
    """No two candidates are equal: rounding would tell them apart."""
    return tiny_context(folder, train_dataset=tiny_dataset(12, distinct=True), **changes)


def by_hand(model, example) -> torch.Tensor:
    """The weighted mean of one row alone, from the model's public output of all hidden states."""
    output = base_model(model)(torch.tensor([example.input_ids]), output_hidden_states=True)
    states = output.hidden_states[-1][0].double()  # (t, h), after the last norm
    weights = torch.arange(1, len(states) + 1, dtype=torch.float64)
    return (weights[:, None] * states).sum(dim=0) / weights.sum()


def cosines(context) -> np.ndarray:
    with torch.no_grad():
        rows = [
            torch.stack([by_hand(context.model, example) for example in dataset])
            for dataset in (context.train_dataset, context.eval_dataset)
        ]
    unit = [part / part.norm(dim=1, keepdim=True) for part in rows]
    return (unit[0] @ unit[1].T).numpy()  # (n, q)


@pytest.mark.parametrize("aggregate", ["mean", "max", "task_max", "round_robin"])
def test_scores_and_choice_follow_the_definition(tmp_path, aggregate):
    context = distinct_context(tmp_path, eval_dataset=tiny_dataset(4, seed=100))
    context.model.eval()
    expected = cosines(context)
    selection = RdsSelector(aggregate=aggregate).select(context)
    if aggregate == "mean":
        np.testing.assert_allclose(selection.scores, expected.mean(axis=1), rtol=0, atol=1e-6)
    if aggregate in ("max", "round_robin"):
        np.testing.assert_allclose(selection.scores, expected.max(axis=1), rtol=0, atol=1e-6)
    if aggregate != "round_robin":
        assert selection.indices.tolist() == np.argsort(-selection.scores, kind="stable")[:4].tolist()
        return
    taken: list[int] = []
    for target in np.random.default_rng([context.seed, context.round]).permutation(4):
        column = expected[:, target].copy()
        column[taken] = -np.inf
        taken.append(int(column.argmax()))
    assert selection.indices.tolist() == taken


def test_one_forward_pass_a_row_and_none_where_they_are_on_disk(tmp_path):
    context = tiny_context(tmp_path)
    seen = []
    hook = base_model(context.model).model.register_forward_hook(
        lambda module, inputs, options, output: seen.append(len(options["input_ids"])), with_kwargs=True
    )
    first = RdsSelector(batch_tokens=64).select(context)
    assert sum(seen) == len(context.train_dataset) + len(context.eval_dataset)
    again = RdsSelector(batch_tokens=64).select(context)
    hook.remove()
    assert sum(seen) == len(context.train_dataset) + len(context.eval_dataset)
    assert np.array_equal(first.scores, again.scores)


def test_the_states_of_earlier_rounds_are_removed(tmp_path):
    context = tiny_context(tmp_path)
    for step in (2, 5):
        RdsSelector().select(replace(context, step=step))
    assert [path.name for path in (tmp_path / "hidden_states").iterdir()] == ["step-5"]


@pytest.mark.parametrize("tokens", [1, 40, 100_000])
def test_batches_and_padding_do_not_matter(tmp_path, tokens):
    context = distinct_context(tmp_path)
    expected = RdsSelector().select(replace(context, output_dir=tmp_path / "other"))
    found = RdsSelector(batch_tokens=tokens).select(context)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    assert found.indices.tolist() == expected.indices.tolist()


def test_other_architectures_and_adapters_give_states():
    sizes = {"vocab_size": len(tiny_tokenizer()), "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
    config = GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    dataset = tiny_dataset(3, seed=1)
    for model in (GPT2LMHeadModel(config).eval(), tiny_lora(tiny_model()).eval()):
        with torch.no_grad(), nullcontext():
            found = pooled_states(model, collate(list(dataset), 2))
            for row, example in enumerate(dataset):
                torch.testing.assert_close(found[row].double(), by_hand(model, example), rtol=1e-4, atol=1e-6)


def test_the_last_states_may_be_narrower_than_the_layers(tmp_path):
    """As those of OPT-350m."""
    config = OPTConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=8,
        max_position_embeddings=128,
        do_layer_norm_before=False,
    )
    context = tiny_context(tmp_path, model=tiny_lora(OPTForCausalLM(config)), optimizer=None)
    assert len(RdsSelector().select(context).indices) == context.num_samples


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_rounds_the_states_and_not_their_mean(dtype):
    """In 16 bits the sum of the weighted states of a long row rounds, or is beyond the largest number."""
    model = tiny_model().eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(1000)
    example = tiny_dataset(1, seed=1)[0]
    batch = collate([example], 2)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        found = pooled_states(model, batch)
        expected = by_hand(model, example)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-3)


def test_what_cannot_work_is_noticed_before_training(tmp_path):
    context = tiny_context(tmp_path)
    with pytest.raises(SelectionError, match="rds needs an evaluation set"):
        RdsSelector().check(replace(context, eval_dataset=None))
    with pytest.raises(SelectionError, match="needs the column 'kind' in every evaluation sample; 3 have none"):
        RdsSelector(aggregate="task_max", task_column="kind").check(context)
    with pytest.raises(ConfigError, match="rds: batch_tokens"):
        RdsSelector(batch_tokens=0)
    RdsSelector().check(context)
