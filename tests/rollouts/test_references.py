from __future__ import annotations

from dataclasses import replace

import pytest

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.data.templates import ChatTemplate
from dataflex.rollouts.references import reference_rollouts
from dataflex.testing import tiny_dataset, tiny_tokenizer
from dataflex.types import Sample


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.load("chatml", tiny_tokenizer())


def test_a_reference_has_the_tokens_that_training_puts_loss_on(template: ChatTemplate) -> None:
    dataset = tiny_dataset(3, seed=4)
    found = reference_rollouts(dataset.samples, template, tiny_tokenizer(), 1000)
    for answer, example in zip(found, dataset, strict=True):
        assert answer.token_ids == [label for label in example.labels if label != IGNORE_INDEX]
        prompt = template.encode_prompt(example.sample.prompt, example.sample.tools)
        assert example.input_ids[: len(prompt) + len(answer.token_ids)] == prompt + answer.token_ids
        assert (answer.sample_id, answer.text, answer.finished) == (example.sample.id, example.sample.reference, True)
        assert answer.log_probs == []
        assert answer.reward is None


def test_a_long_reference_loses_its_end(template: ChatTemplate) -> None:
    [sample] = tiny_dataset(1, seed=4).samples
    [whole] = reference_rollouts([sample], template, tiny_tokenizer(), 1000)
    [cut] = reference_rollouts([sample], template, tiny_tokenizer(), len(whole.token_ids) - 1)
    assert cut.token_ids == whole.token_ids[:-1]
    assert (whole.finished, cut.finished) == (True, False)
    [shorter] = reference_rollouts([sample], template, tiny_tokenizer(), len(whole.token_ids) - 2)
    assert shorter.text != whole.text  # it is scored as what is left
    assert whole.text.startswith(shorter.text.rstrip())


def test_only_the_last_answer_of_a_conversation_counts(template: ChatTemplate) -> None:
    [sample] = tiny_dataset(1, seed=4).samples
    turns = (
        *sample.messages,
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "so", "train": False},
    )
    longer: Sample = replace(sample, messages=turns)
    [answer] = reference_rollouts([longer], template, tiny_tokenizer(), 1000)
    alone = template.encode(replace(sample, messages=(turns[-2], {**turns[-1], "train": True})), 1000)
    assert answer.token_ids == [label for label in alone.labels if label != IGNORE_INDEX]
    assert answer.text == "so"
