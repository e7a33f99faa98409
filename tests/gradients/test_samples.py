from __future__ import annotations

import copy
import logging
import re
from dataclasses import replace

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model

from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import GradientError
from dataflex.gradients.hooks import BatchedGradients, UnsupportedModel
from dataflex.gradients.memory import MOST_TOKENS
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.similarity import report_broken, unusual_rows
from dataflex.gradients.slots import parameter_slots, picked_values
from dataflex.projection.projector import Projector
from dataflex.testing import run_ranks, stepped_optimizer, tiny_context, tiny_dataset, tiny_model
from helpers.families import family_model

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
    [{}, {"adam_variant": "less"}, {"adam_variant": "second_moment"}, {"gradient_type": "sgd"}],
)
def test_features_are_projected_sample_gradients(tmp_path, variant, caplog):
    context = tiny_context(tmp_path)
    found = compute(context, **variant).fill(tmp_path / "f", save_rows=5, description="gradients").load()
    expected = plain(context, **variant)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert not caplog.records


def test_batches_and_shards_do_not_change_features(tmp_path):
    context = tiny_context(tmp_path)
    expected = compute(context).fill(tmp_path / "a", save_rows=12, description="gradients").load()
    for number, (tokens, save_rows) in enumerate(((1, 12), (90, 5), (200, 3))):
        found = (
            compute(context, batch_tokens=tokens)
            .fill(tmp_path / f"{number}", save_rows=save_rows, description="gradients")
            .load()
        )
        assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_batches_keep_to_the_budget_and_lose_no_row(tmp_path):
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(40, seed=3))
    lengths = [len(example.input_ids) for example in context.train_dataset]
    features = compute(context, batch_tokens=150)
    features.fill(tmp_path / "f", save_rows=40, description="gradients")
    batches = list(features.layout().rows_of())
    assert sorted(row for batch in batches for row in batch) == list(range(40))
    assert all(len(batch) * max(lengths[row] for row in batch) <= 150 for batch in batches)
    assert len(batches) < 20
    raw = compute(context, gradient_type="sgd", batch_tokens=10**6)
    raw.fill(tmp_path / "g", save_rows=40, description="gradients")
    assert len(list(raw.layout().rows_of())) == 1


def test_missing_shards_are_added_bit_for_bit(tmp_path):
    context = tiny_context(tmp_path)
    store = compute(context, batch_tokens=150).fill(tmp_path / "a", save_rows=5, description="gradients")
    files = sorted(store.path.glob("features-*"))
    before = [file.read_bytes() for file in files]
    times = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    compute(context, batch_tokens=150).fill(tmp_path / "a", save_rows=5, description="gradients")
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)] == [
        number != 1 for number in range(len(files))
    ]
    assert len(files) > 2


def test_models_without_a_rule_take_a_backward_pass_a_sample(tmp_path, caplog):
    config = LoHaConfig(r=4, target_modules=["up_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), config).eval()
    context = tiny_context(tmp_path, model=model, optimizer=stepped_optimizer(model, 2))
    found = compute(context).fill(tmp_path / "f", save_rows=5, description="gradients").load()
    assert torch.equal(found, plain(context))
    assert caplog.text.count("one sample at a time") == 1
    assert "hada_w1_a is a ParameterDict" in caplog.text


@pytest.mark.parametrize("kind", ["sjlt", "masked"])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_lora_on_embedding_and_head_has_a_rule(tmp_path, caplog, family, kind):
    """gemma scales its embeddings; the matrices of LoRA have more values than ``masked`` reads here."""
    config = LoraConfig(r=4, target_modules=["embed_tokens", "lm_head", "up_proj"], task_type="CAUSAL_LM")
    torch.manual_seed(1)
    model = get_peft_model(family_model(family, tie_word_embeddings=False), config).eval()
    model.get_input_embeddings().padding_idx = 5
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_" in name:
                values.add_(0.1 * torch.randn_like(values))
    context = tiny_context(tmp_path, model=model, optimizer=stepped_optimizer(model, 2))
    projector = Projector(256, kind, 1, **({"matrix_values": 300} if kind == "masked" else {}))
    settings = {"gradient_type": "adam", "adam_variant": "adamw", "batch_tokens": 300}
    features = SampleFeatures(context, context.train_dataset, projector, **settings)
    found = features.fill(tmp_path / "f", save_rows=5, description="gradients").load()
    assert "one sample at a time" not in caplog.text
    moments = adam_moments(model, context.optimizer, "adamw", projector.kind.picks)
    slots = parameter_slots(model, projector.kind.picks)
    rows = [sample_gradient(model, collate([example], 2), context.autocast) for example in context.train_dataset]
    expected = projector.project(picked_values(slots, torch.stack(rows)), moments)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_magnitudes_of_dora_have_a_rule(tmp_path, caplog, family):
    """qwen2 has biases in its attention, which the norms leave out."""
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", use_dora=True)
    torch.manual_seed(1)
    model = get_peft_model(family_model(family), config).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                values.add_(0.1 * torch.randn_like(values))
    context = tiny_context(tmp_path, model=model, optimizer=stepped_optimizer(model, 2))
    for changes in ({}, {"gradient_type": "sgd"}):
        found = compute(context, **changes).fill(tmp_path / f"f{len(changes)}", save_rows=5, description="g").load()
        torch.testing.assert_close(found, plain(context, **changes), **TOLERANCE)
    assert "one sample at a time" not in caplog.text


def test_adapters_that_bypass_their_layers_are_noticed(tmp_path, caplog, monkeypatch):
    """With the cache of peft, a layer of DoRA calls A and B once in place of twice."""
    monkeypatch.setattr("peft.tuners.lora.dora.ENABLE_DORA_CACHING", True)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", use_dora=True)
    model = get_peft_model(tiny_model(), config).eval()
    context = tiny_context(tmp_path, model=model, optimizer=stepped_optimizer(model, 2))
    found = compute(context).fill(tmp_path / "f", save_rows=5, description="gradients").load()
    assert torch.equal(found, plain(context))
    assert caplog.text.count("one sample at a time") == 1


def test_a_wrong_rule_is_noticed_in_a_single_parameter(tmp_path, caplog, monkeypatch):
    real = BatchedGradients.run

    def run(self, rows, losses, sink, *, groups=None):
        return real(self, rows, losses, lambda block, at: sink(block * (1.01 if at == 0 else 1.0), at), groups=groups)

    monkeypatch.setattr(BatchedGradients, "run", run)
    context = tiny_context(tmp_path)
    found = compute(context).fill(tmp_path / "f", save_rows=5, description="gradients").load()
    assert torch.equal(found, plain(context))
    assert re.search(r"layers\.0\.self_attn\.q_proj\.lora_A.* is off by 0\.01 of its gradient's norm", caplog.text)


def test_too_little_memory_is_not_blamed_on_the_rules(tmp_path, monkeypatch):
    def run(self, rows, losses, sink, *, groups=None):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BatchedGradients, "run", run)
    with pytest.raises(GradientError, match="not enough memory for a batch of gradients") as caught:
        compute(tiny_context(tmp_path)).prepare()
    assert "feature_batch_tokens" in caught.value.hint


def test_a_batch_that_the_rules_refuse_falls_back_alone(tmp_path, caplog, monkeypatch):
    real = BatchedGradients.run

    def run(self, rows, losses, sink, *, groups=None):
        unused = real(self, rows, losses, sink, groups=groups)
        if rows > 2:
            raise UnsupportedModel("three rows are a crowd")
        return unused

    monkeypatch.setattr(BatchedGradients, "run", run)
    context = tiny_context(tmp_path)
    found = compute(context).fill(tmp_path / "f", save_rows=5, description="gradients").load()
    expected = plain(context)
    assert sum(torch.equal(row, wanted) for row, wanted in zip(found, expected, strict=True)) >= 10
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert caplog.text.count("three rows are a crowd") == 1


@pytest.mark.parametrize("gradient_type", ["adam", "sgd"])
@pytest.mark.parametrize("broken", [0, 7])
def test_a_gradient_that_is_not_finite_spoils_its_own_row_only(tmp_path, caplog, gradient_type, broken):
    context = tiny_context(tmp_path)
    expected = plain(context, gradient_type=gradient_type)
    others = {t for row, e in enumerate(context.train_dataset) if row != broken for t in e.input_ids}
    unique = next(token for token in range(380) if token not in others)
    examples = list(context.train_dataset)
    examples[broken] = replace(examples[broken], input_ids=[unique, *examples[broken].input_ids[1:]])
    context = replace(context, train_dataset=TokenizedDataset(examples))
    with torch.no_grad():
        context.model.get_input_embeddings().weight[unique] = float("nan")
    store = compute(context, gradient_type=gradient_type).fill(tmp_path / "f", save_rows=12, description="gradients")
    found = store.load()
    kept = [row for row in range(12) if row != broken]
    assert found[broken].isnan().all()
    assert float((found[kept] - expected[kept]).norm() / expected[kept].norm()) < 1e-4
    assert unusual_rows(store.blocks())[0] == [broken]
    assert not caplog.records


def test_model_optimizer_and_random_numbers_stay_as_they_are(tmp_path):
    context = tiny_context(tmp_path)
    context.model.train()
    context.model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in context.model.modules()]
    for parameter in context.model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    weights = copy.deepcopy(context.model.state_dict())
    optimizer = copy.deepcopy(context.optimizer.state_dict())
    random_state = torch.get_rng_state()
    compute(context).fill(tmp_path / "f", save_rows=5, description="gradients")
    assert [module.training for module in context.model.modules()] == modes
    assert all(bool((parameter.grad == 3.0).all()) for parameter in context.model.parameters())
    torch.testing.assert_close(context.model.state_dict(), weights, rtol=0, atol=0)
    torch.testing.assert_close(context.optimizer.state_dict(), optimizer, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_whole_models_have_features_too(tmp_path, caplog):
    model = family_model("gemma")
    context = tiny_context(tmp_path, model=model, optimizer=stepped_optimizer(model, 2))
    found = compute(context).fill(tmp_path / "f", save_rows=5, description="gradients").load()
    expected = plain(context)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    assert not caplog.records


def test_checkpointing_in_training_is_kept_and_changes_nothing(tmp_path):
    context = tiny_context(tmp_path)
    expected = compute(context).fill(tmp_path / "a", save_rows=12, description="gradients").load()
    context.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    context.model.train()
    calls = []
    context.model.base_model.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    features = compute(context)
    found = features.fill(tmp_path / "b", save_rows=12, description="gradients").load()
    assert len(calls) == 2 * (2 + 1 + len(list(features.layout().rows_of())))
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_auto_decides_once_and_says_why(tmp_path, caplog):
    caplog.set_level(logging.INFO, "dataflex")
    context = tiny_context(tmp_path)
    features = compute(context, batch_tokens="auto")
    expected = compute(context, batch_tokens=MOST_TOKENS["cpu"])
    found = features.fill(tmp_path / "f", save_rows=5, description="gradients")
    assert features.batch_tokens == expected.batch_tokens
    assert len(re.findall(r"feature_batch_tokens: 2048 \(auto: .* GiB free, .* KiB of activations", caplog.text)) == 1
    times = [file.stat().st_mtime_ns for file in sorted(found.path.glob("features-*"))]
    again = expected.fill(tmp_path / "f", save_rows=5, description="gradients")
    assert [file.stat().st_mtime_ns for file in sorted(again.path.glob("features-*"))] == times


def test_autocast_is_used_and_allowed_for(tmp_path, caplog):
    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    context = tiny_context(tmp_path, autocast=autocast)
    found = compute(context, gradient_type="sgd").fill(tmp_path / "f", save_rows=5, description="gradients").load()
    expected = plain(context, gradient_type="sgd")
    full = plain(tiny_context(tmp_path), gradient_type="sgd")
    assert not caplog.records
    assert 1e-4 < float((found - full).norm() / full.norm()) < 0.2
    assert float((found - expected).norm() / expected.norm()) < 0.1


def counted_comparisons(monkeypatch):
    """The items of each comparison with plain gradients from now on."""
    items = []
    real = SampleFeatures._finite_gradients

    def finite_gradients(self):
        found = real(self)
        items.append([self._length(item) for item in found[0]])
        assert not torch.is_autocast_enabled("cpu")
        assert found[1].dtype == torch.float32
        return found

    monkeypatch.setattr(SampleFeatures, "_finite_gradients", finite_gradients)
    return items


def test_rules_are_compared_once_a_run_on_rows_of_different_length(tmp_path, monkeypatch, caplog):
    context, items = tiny_context(tmp_path), counted_comparisons(monkeypatch)
    for round_number in range(3):
        compute(context, gradient_type=("adam", "sgd", "adam")[round_number]).prepare()
    ((short, long),) = items
    assert short < long
    context.model.add_adapter("second", context.model.peft_config["default"])  # another structure
    context.model.set_adapter("second")
    compute(context, gradient_type="sgd").prepare()
    assert len(items) == 2
    assert not caplog.records


def test_ranks_share_the_comparison(tmp_path, monkeypatch):
    items = counted_comparisons(monkeypatch)

    def work(ranks):
        features = compute(tiny_context(tmp_path, ranks=ranks), gradient_type="sgd")
        features.prepare()
        features.prepare()
        return features._rule is not None

    assert run_ranks(3, work) == [True] * 3
    assert len(items) == 1


def test_adapters_that_start_at_zero_are_compared_whole(tmp_path, monkeypatch):
    """A's gradient is zero while B is."""
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    context, items = tiny_context(tmp_path, model=model, optimizer=None), counted_comparisons(monkeypatch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compute(context, gradient_type="sgd").prepare()
    compute(context, gradient_type="sgd").prepare()
    assert len(items) == 1  # everything was seen at once
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", ["autocast", "weights"])
@pytest.mark.parametrize("parameter", ["layers.0.self_attn.k_proj.lora_A", "layers.1.mlp.down_proj.lora_B"])
def test_a_rule_that_misses_a_small_parameter_is_noticed_in_16_bits(tmp_path, caplog, monkeypatch, how, parameter):
    """In bfloat16 the gradients of 74 of 420 parameters of SmolLM2 were within what the comparison let pass."""
    context = tiny_context(tmp_path, optimizer=None)
    if how == "autocast":
        context = tiny_context(tmp_path, optimizer=None, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    else:
        context.model.to(torch.bfloat16)
    with torch.no_grad():  # a gradient of about 1e-3 of the whole
        for name, values in context.model.named_parameters():
            if parameter.rsplit(".", 1)[0] in name and "lora" in name and parameter not in name:
                values.mul_(1e-3)
    at = next(slot.offset for slot in parameter_slots(context.model).values() if parameter in slot.name)
    real = BatchedGradients.run

    def run(self, rows, losses, sink, *, groups=None):
        return real(self, rows, losses, lambda block, start: sink(block * (start != at), start), groups=groups)

    monkeypatch.setattr(BatchedGradients, "run", run)
    features = compute(context, gradient_type="sgd")
    features.prepare()
    assert f"{parameter}.default.weight is off by" in caplog.text


def test_without_a_finite_gradient_there_is_an_error(tmp_path):
    context = tiny_context(tmp_path)
    with torch.no_grad():
        context.model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(GradientError, match="none of the 12 examined of 12 gradients is finite"):
        compute(context).fill(tmp_path / "f", save_rows=5, description="gradients")


def test_items_with_a_broken_gradient_are_passed_over(tmp_path, monkeypatch, caplog):
    context = tiny_context(tmp_path)
    lengths = context.train_dataset.lengths
    broken = min(range(12), key=lengths.__getitem__)
    real = SampleFeatures._plain
    monkeypatch.setattr(
        SampleFeatures, "_plain", lambda self, item: real(self, item) * (float("nan") if item == broken else 1.0)
    )
    items = counted_comparisons(monkeypatch)
    compute(context).prepare()
    assert len(items[0]) == 2
    assert not caplog.records


def test_rows_that_are_not_finite_are_named(caplog):
    report_broken("training", ["x", "y"])
    assert "2 training samples have a gradient that is not finite and are left out: x, y" in caplog.text
