from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dataflex.data.collate import collate
from dataflex.features import adam_moments
from dataflex.gradient_hooks import BatchedGradients
from dataflex.gradients import sample_gradient
from dataflex.projection import Projector
from dataflex.sample_features import SampleFeatures
from helpers.context import stepped_optimizer, tiny_context
from helpers.tiny import tiny_dataset, tiny_model

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def compute(context, **changes):
    settings = {"gradient_type": "adam", "adam_variant": "adamw", "batch_tokens": 10_000}
    return SampleFeatures(context, context.train_dataset, Projector(256, seed=1), **(settings | changes))


def plain(context, gradient_type="adam", adam_variant="adamw"):
    """Features from one backward pass a sample, projected one by one."""
    moments = adam_moments(context.model, context.optimizer, adam_variant) if gradient_type == "adam" else None
    gradients = [sample_gradient(context.model, collate([e], 2), context.autocast) for e in context.train_dataset]
    return torch.cat([Projector(256, seed=1).project(gradient[None].float(), adam=moments) for gradient in gradients])


@pytest.mark.parametrize(
    "variant",
    [{"gradient_type": "adam"}, {"gradient_type": "adam", "adam_variant": "less"}, {"gradient_type": "sgd"}],
)
def test_features_are_projected_sample_gradients(tmp_path, variant, caplog):
    context = tiny_context(tmp_path)
    found = compute(context, **variant).fill(tmp_path / "f", shard_rows=5, description="gradients").load()
    expected = plain(context, **variant)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert not caplog.records


def test_batches_and_shards_do_not_change_features(tmp_path):
    context = tiny_context(tmp_path)
    expected = compute(context).fill(tmp_path / "a", shard_rows=12, description="gradients").load()
    for number, (tokens, shard_rows) in enumerate(((1, 12), (90, 5), (200, 3))):
        found = (
            compute(context, batch_tokens=tokens)
            .fill(tmp_path / f"{number}", shard_rows=shard_rows, description="gradients")
            .load()
        )
        assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_batches_keep_to_the_budget_and_lose_no_row(tmp_path):
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(40, seed=3))
    lengths = [len(example.input_ids) for example in context.train_dataset]
    features = compute(context, batch_tokens=150)
    features.fill(tmp_path / "f", shard_rows=40, description="gradients")
    batches = features.batches(list(range(40)))
    assert sorted(row for batch in batches for row in batch) == list(range(40))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 150 for batch in batches)
    assert len(batches) < 20
    raw = compute(context, gradient_type="sgd", batch_tokens=10**6)
    raw.fill(tmp_path / "g", shard_rows=40, description="gradients")
    assert len(raw.batches(list(range(40)))) == 1


def test_missing_shards_are_added_bit_for_bit(tmp_path):
    context = tiny_context(tmp_path)
    store = compute(context).fill(tmp_path / "a", shard_rows=5, description="gradients")
    files = sorted(store.path.glob("features-*"))
    before = [file.read_bytes() for file in files]
    times = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    compute(context).fill(tmp_path / "a", shard_rows=5, description="gradients")
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)] == [True, False, True]


def test_models_without_a_rule_take_a_backward_pass_a_sample(tmp_path, caplog):
    context = tiny_context(tmp_path)
    context.model.base_model.model.model.norm.weight.requires_grad_(True)
    object.__setattr__(context, "optimizer", stepped_optimizer(context.model, 2))
    found = compute(context).fill(tmp_path / "f", shard_rows=5, description="gradients").load()
    assert torch.equal(found, plain(context))
    assert "one sample at a time" in caplog.text
    assert "model.norm is a LlamaRMSNorm" in caplog.text


def test_adapters_that_bypass_their_layers_are_noticed(tmp_path, caplog):
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", use_dora=True)
    model = get_peft_model(tiny_model(), config).eval()
    context = tiny_context(tmp_path, model=model, optimizer=stepped_optimizer(model, 2))
    found = compute(context).fill(tmp_path / "f", shard_rows=5, description="gradients").load()
    assert torch.equal(found, plain(context))
    assert caplog.text.count("one sample at a time") == 1


def test_a_wrong_rule_is_noticed(tmp_path, caplog, monkeypatch):
    real = BatchedGradients.run

    def run(self, batch, autocast, sink):
        real(self, batch, autocast, lambda block, offset: sink(block * 1.01, offset))

    monkeypatch.setattr(BatchedGradients, "run", run)
    context = tiny_context(tmp_path)
    found = compute(context).fill(tmp_path / "f", shard_rows=5, description="gradients").load()
    assert torch.equal(found, plain(context))
    assert "it is off by 0.01 of the gradient's norm (limit 0.001)" in caplog.text


def test_autocast_is_used_and_allowed_for(tmp_path, caplog):
    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    context = tiny_context(tmp_path, autocast=autocast)
    found = compute(context, gradient_type="sgd").fill(tmp_path / "f", shard_rows=5, description="gradients").load()
    expected = plain(context, gradient_type="sgd")
    full = plain(tiny_context(tmp_path), gradient_type="sgd")
    assert not caplog.records
    assert 1e-4 < float((found - full).norm() / full.norm()) < 0.2
    assert float((found - expected).norm() / expected.norm()) < 0.1
