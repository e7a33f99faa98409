"""Every built-in mixer against a computation by hand."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import DataError, ModelError
from dataflex.mixers.base import DomainLosses, MixtureContext
from dataflex.mixers.doremi import DoReMiMixer
from dataflex.mixers.odm import OdmMixer, exploration
from dataflex.mixers.random import RandomMixer
from dataflex.mixers.static import StaticMixer
from dataflex.testing import tiny_dataset, tiny_lora, tiny_mixture_context, tiny_model


def context(folder, *, model=None, sizes=(5, 4, 3), dataset=None, **changes) -> MixtureContext:
    """As the tiny one, with an adapter that does something and nothing trained on yet."""
    fields = {
        "model": model if model is not None else trained(tiny_lora(tiny_model())),
        "losses": DomainLosses(np.zeros(len(sizes)), np.zeros(len(sizes), dtype=np.int64)),
        "step": 10,
    }
    if dataset is not None:
        fields |= {"train_dataset": dataset, "measured_dataset": dataset}
    return tiny_mixture_context(folder, sizes=sizes, **(fields | changes))


def trained(model: torch.nn.Module, seed: int = 5, size: float = 0.3) -> torch.nn.Module:
    """An adapter that does something: LoRA's B is zero at first."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=stream))
    return model


def token_losses(model, example) -> list[float]:
    """Losses of one row's label tokens, in float64, from a pass of its own."""
    logits = model(torch.tensor([example.input_ids])).logits[0].double()
    labels = example.labels
    return [
        float(torch.logsumexp(logits[at - 1], 0) - logits[at - 1, labels[at]])
        for at in range(1, len(labels))
        if labels[at] != -100
    ]


def test_static_keeps_what_it_is_given_or_what_was(tmp_path):
    found = context(tmp_path)
    assert StaticMixer(proportions=[0.2, 0.3, 0.5]).proportions(found).tolist() == [0.2, 0.3, 0.5]
    assert StaticMixer().proportions(found) is found.proportions
    with pytest.raises(DataError, match="mixer 'static'"):
        StaticMixer(proportions=[1.0]).check(found)


def test_random_is_a_dirichlet_draw_by_seed_and_round(tmp_path):
    found = context(tmp_path, sizes=(5, 0, 3))
    first = RandomMixer().proportions(found)
    assert first[1] == 0
    assert first.sum() == pytest.approx(1)
    assert RandomMixer().proportions(found).tolist() == first.tolist()
    assert RandomMixer().proportions(replace(found, round=2)).tolist() != first.tolist()
    assert RandomMixer(seed=9).proportions(found).tolist() != first.tolist()
    draws = [RandomMixer(concentration=50.0).proportions(replace(found, round=at))[0] for at in range(200)]
    assert np.mean(draws) == pytest.approx(0.5, abs=0.02)
    assert np.std(draws) == pytest.approx(math.sqrt(0.25 / 101), rel=0.3)  # Dirichlet(50, 50)


def test_odm_follows_the_algorithm_on_a_trace(tmp_path):
    trace = [([8.0, 2.0, 3.0], [4, 1, 1]), ([5.0, 5.0, 0.0], [5, 2, 0]), ([2.0, 9.0, 1.0], [2, 3, 1])]
    mixer, rewards = OdmMixer(alpha=0.9), [0.0, 0.0, 0.0]
    pi = [0.5, 0.3, 0.2]
    found = context(tmp_path)
    for t, (sums, tokens) in enumerate(trace, start=1):
        losses = DomainLosses(np.array(sums), np.array(tokens))
        got = mixer.proportions(replace(found, losses=losses, proportions=np.array(pi), round=t))
        for d in range(3):
            if tokens[d]:
                rewards[d] = 0.9 * rewards[d] + 0.1 * (sums[d] / tokens[d]) / pi[d]
        before = 1 / 3 if t == 1 else min(1 / 3, math.sqrt(math.log(3) / (3 * (t - 1))))
        sure = min(1 / 3, math.sqrt(math.log(3) / (3 * t)))
        raised = [math.exp(before * reward) for reward in rewards]
        pi = [(1 - 3 * sure) * value / sum(raised) + sure for value in raised]
        np.testing.assert_allclose(got, pi, rtol=1e-12)


def test_odm_explores_less_and_less_and_never_nothing():
    shares = [exploration(4, t) for t in range(2000)]
    assert shares[0] == 0.25
    assert all(later <= earlier for earlier, later in itertools.pairwise(shares))
    assert shares[1999] == pytest.approx(math.sqrt(math.log(4) / (4 * 1999)))


def test_odm_prefers_the_domain_whose_loss_stays_high_and_waits_for_its_warm_up(tmp_path):
    mixer = OdmMixer(warmup_steps=11, initial_proportions=[0.2, 0.2, 0.6])
    losses = DomainLosses(np.array([400.0, 10.0, 10.0]), np.array([10, 10, 10]))
    found = context(tmp_path, losses=losses, proportions=np.full(3, 1 / 3))
    assert mixer.proportions(found).tolist() == [0.2, 0.2, 0.6]
    later = [mixer.proportions(replace(found, step=11 + at)) for at in range(40)]
    assert later[-1].argmax() == 0
    assert later[-1][0] > 0.5
    assert later[-1][1:].min() >= exploration(3, 40) - 1e-12


@pytest.mark.parametrize("ranks_batch", [2048, 8])
def test_doremi_follows_the_algorithm(tmp_path, monkeypatch, ranks_batch):
    monkeypatch.setattr("dataflex.mixers.measuring.BATCH_TOKENS", ranks_batch)
    found = context(tmp_path, proportions=np.array([0.2, 0.3, 0.5]))
    mixer = DoReMiMixer(reweight_eta=2.0, reweight_eps=0.05, eval_samples=100)
    got = mixer.proportions(found)
    expected = []
    with torch.no_grad():
        for domain in found.domains:
            excess = []
            for row in domain.rows:
                own = token_losses(found.model, found.train_dataset[int(row)])
                with found.model.disable_adapter():
                    reference = token_losses(found.model, found.train_dataset[int(row)])
                excess += [max(ours - theirs, 0) for ours, theirs in zip(own, reference, strict=True)]
            expected.append(sum(excess) / len(excess))
    np.testing.assert_allclose(mixer.report()["excess_losses"], expected, rtol=1e-5)
    raised = np.array([0.2, 0.3, 0.5]) * np.exp(2.0 * np.array(expected))
    by_hand = 0.95 * raised / raised.sum() + 0.05 / 3
    np.testing.assert_allclose(got, by_hand, rtol=1e-5)
    again = mixer.proportions(replace(found, round=2, proportions=np.array([1.0, 0, 0])))
    raised = got * np.exp(2.0 * np.array(expected))
    np.testing.assert_allclose(again, 0.95 * raised / raised.sum() + 0.05 / 3, rtol=1e-5)
    np.testing.assert_allclose(mixer.report()["average"], (got + again) / 2, rtol=1e-12)


def test_doremi_raises_the_share_of_a_planted_hard_domain(tmp_path):
    """The model has unlearned one domain's rows: there the reference is better."""
    dataset = tiny_dataset(12, distinct=True)
    model = tiny_lora(tiny_model())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(15):
        for row in range(4):
            example = dataset[row]
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            (-model(ids, labels=labels).loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    found = context(tmp_path, model=model, sizes=(4, 4, 4), dataset=dataset)
    mixer = DoReMiMixer(reweight_eta=1.0)
    shares = [mixer.proportions(replace(found, round=at))[0] for at in (1, 2, 3)]
    assert 1 / 3 < shares[0] < shares[1] < shares[2]


def test_doremi_leaves_model_and_random_numbers_as_they_were(tmp_path):
    found = context(tmp_path)
    found.model.train()
    before = {name: value.clone() for name, value in found.model.state_dict().items()}
    state = torch.random.get_rng_state()
    DoReMiMixer().proportions(found)
    assert found.model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in found.model.state_dict().items())


def test_doremi_measures_at_most_so_many_rows_of_a_domain(tmp_path):
    assert DoReMiMixer(eval_samples=4).measured_rows(context(tmp_path).measured_domains) == 2 * (4 + 4 + 3)


def test_doremi_without_a_reference_says_what_to_name(tmp_path):
    with pytest.raises(ModelError, match="no adapter") as caught:
        DoReMiMixer().check(context(tmp_path, model=tiny_model()))
    assert "reference_model_path" in (caught.value.hint or "")


def test_doremi_takes_a_reference_from_a_folder_and_refuses_another_vocabulary(tmp_path):
    found = context(tmp_path)
    tiny_model(seed=3).save_pretrained(tmp_path / "reference")
    other = DoReMiMixer(reference_model_path=str(tmp_path / "reference"))
    other.check(found)
    assert other.proportions(found).tolist() != DoReMiMixer().proportions(found).tolist()
    tiny_model(vocab_size=1000).save_pretrained(tmp_path / "large")
    with pytest.raises(ModelError, match="vocabulary of 1,000"):
        DoReMiMixer(reference_model_path=str(tmp_path / "large")).check(found)


@pytest.mark.parametrize("make", [lambda: OdmMixer(), lambda: DoReMiMixer(eval_samples=2)])
def test_a_restored_mixer_goes_on_as_the_unbroken_one(tmp_path, make):
    losses = DomainLosses(np.array([9.0, 2.0, 3.0]), np.array([4, 1, 1]))
    rounds = [context(tmp_path, round=at, losses=losses) for at in (1, 2, 3)]
    unbroken, first = make(), make()
    expected = [unbroken.proportions(found).tolist() for found in rounds]
    first.proportions(rounds[0])
    second = make()
    second.load_state_dict(first.state_dict())
    assert [second.proportions(found).tolist() for found in rounds[1:]] == expected[1:]


def test_a_dataset_of_one_row_a_domain_is_enough(tmp_path):
    dataset = tiny_dataset(3, distinct=True)
    assert isinstance(dataset, TokenizedDataset)
    found = context(tmp_path, sizes=(1, 1, 1), dataset=dataset)
    assert DoReMiMixer().proportions(found).sum() == pytest.approx(1)
