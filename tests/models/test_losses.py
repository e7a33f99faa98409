"""Losses of label tokens beside a plain pass over all positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from dataflex.data.collate import Batch
from dataflex.errors import ModelError
from dataflex.gradients.hooks import BatchedGradients
from dataflex.models.losses import label_logits, label_token_log_probs, mean_losses, summed_loss
from dataflex.testing import tiny_lora, tiny_model
from helpers.families import family_model

VOCABULARY, ROWS, WIDTH = 64, 5, 11
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}  # float64
IN_FLOAT32 = {"rtol": 1e-4, "atol": 1e-6}  # what Gemma's norms compute in, whatever the model's type


def capped() -> nn.Module:
    """Gemma 2: logits are capped after the head."""
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=1.5,
    )
    return Gemma2ForCausalLM(config)


def random_batch(seed: int) -> Batch:
    """Rows of different lengths with labels anywhere: two spans, all but one, one, the last token, every other."""
    torch.manual_seed(seed)
    lengths = [WIDTH, 7, 9, 4, WIDTH]
    ids = torch.randint(3, VOCABULARY, (ROWS, WIDTH))
    mask = torch.arange(WIDTH) < torch.tensor(lengths)[:, None]
    learnt = torch.zeros(ROWS, WIDTH, dtype=torch.bool)
    learnt[0, 2:4] = learnt[0, 8:] = learnt[1, 1:] = learnt[2, 5] = learnt[3, 3] = learnt[4, ::2] = True
    return Batch(ids, mask.long(), ids.masked_fill(~(learnt & mask), -100))


def plain_log_probs(model: nn.Module, batch: Batch) -> list[Tensor]:
    """A row's log-probabilities of its label tokens, from the logits of all of its positions alone."""
    found = []
    for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
        length = int(mask.sum())
        logits = model(input_ids=ids[None, :length]).logits[0].double().log_softmax(dim=-1)
        places = [place for place in range(1, length) if labels[place] != -100]
        found.append(torch.stack([logits[place - 1, labels[place]] for place in places]))
    return found


@pytest.mark.parametrize(
    ("make", "near"),
    [(tiny_model, TOLERANCE), (capped, IN_FLOAT32), (partial(family_model, "gpt2"), TOLERANCE)],
)
def test_losses_are_those_of_all_positions(make: Callable[[], nn.Module], near: dict[str, float]) -> None:
    torch.manual_seed(0)
    model, batch = make().double().eval(), random_batch(1)
    expected = plain_log_probs(model, batch)
    found, learnt = label_token_log_probs(model, batch)
    assert learnt.sum(dim=1).tolist() == [len(row) for row in expected]
    for row, values in enumerate(expected):
        torch.testing.assert_close(found[row][learnt[row]], values, **near)
        assert not found[row][~learnt[row]].any()
    torch.testing.assert_close(mean_losses(model, batch), torch.stack([-row.mean() for row in expected]), **near)
    total, count = summed_loss(model, batch)
    assert count == sum(map(len, expected))
    torch.testing.assert_close(total, -torch.cat(expected).sum(), **near)
    gradients = torch.autograd.grad(total, list(model.parameters()))
    plain = torch.autograd.grad(-torch.cat(expected).sum(), list(model.parameters()))
    for one, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(one, other, **near)


def test_only_label_tokens_pass_the_head() -> None:
    model, batch = tiny_lora(tiny_model()), random_batch(2)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, out: seen.append(tuple(inputs[0].shape[:2])))
    logits, targets = label_logits(model, batch)
    most = int((batch.labels[:, 1:] != -100).sum(dim=1).max())
    assert seen == [(ROWS, most)]
    assert logits.shape[:2] == targets.shape == (ROWS, most)
    assert len(model.get_output_embeddings()._forward_pre_hooks) == 0


def test_per_sample_gradients_of_an_adapted_head() -> None:
    """The head's inputs keep the rows in front, as the rules for its gradients ask."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["lm_head", "q_proj"])).double().eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    batch = random_batch(3)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    blocks: dict[int, Tensor] = {}
    BatchedGradients(model).run(ROWS, lambda: mean_losses(model, batch), lambda block, at: blocks.update({at: block}))
    found = torch.cat([blocks[at] for at in sorted(blocks)], dim=1)
    for row, values in enumerate(plain_log_probs(model, batch)):
        plain = torch.autograd.grad(-values.mean(), trained)
        torch.testing.assert_close(found[row], torch.cat([one.flatten() for one in plain]), **TOLERANCE)


def test_a_head_that_is_not_called_as_a_module() -> None:
    """Its logits are all there, and those of label tokens are taken."""
    model, batch = tiny_model().double(), random_batch(4)
    head, expected = model.lm_head, label_token_log_probs(model, batch)[0]
    model.lm_head.forward = None  # whoever calls the module fails
    model.forward = lambda input_ids, attention_mask, use_cache: _Output(
        nn.functional.linear(
            model.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)[0], head.weight
        )
    )
    torch.testing.assert_close(label_token_log_probs(model, batch)[0], expected, **TOLERANCE)


def test_logits_that_do_not_come_of_one_position_each_are_refused() -> None:
    model, batch = tiny_model(), random_batch(5)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output[:, 1:])
    with pytest.raises(ModelError, match=r"given \(5, 6\) positions.*logits of shape \(5, 5, "):
        label_logits(model, batch)


def test_without_labels_the_sum_is_zero() -> None:
    batch = random_batch(6)
    total, count = summed_loss(tiny_model(), Batch(batch.input_ids, batch.attention_mask, batch.labels * 0 - 100))
    assert (float(total), count) == (0.0, 0)


class _Output:
    """What a model returns."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
