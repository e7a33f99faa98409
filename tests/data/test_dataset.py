"""Tokenised datasets: what is kept, what is reported, what identifies them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dataflex.data.dataset import TokenizedDataset, check_labels, tokenize
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.data.templates import ChatTemplate
from dataflex.errors import DataError
from dataflex.testing import tiny_dataset, tiny_samples, tiny_tokenizer
from dataflex.types import Sample


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.load("chatml", tiny_tokenizer())


def unanswered(row: int) -> Sample:
    return Sample(str(row), row, ({"role": "user", "content": "apple"},))


def untrained(row: int) -> Sample:
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False})
    return Sample(str(row), row, messages)


def test_samples_without_labels_are_dropped_and_counted(template: ChatTemplate) -> None:
    samples = [*tiny_samples(3), unanswered(3), untrained(4)]
    dataset = tokenize(samples, template, 128, progress=False)
    report = dataset.report
    assert dataset.samples == samples[:3]
    assert (report.total, report.kept, report.dropped, report.truncated) == (5, 3, 2, 0)
    assert report.tokens == sum(len(example.input_ids) for example in dataset)
    assert report.label_tokens == sum(label != IGNORE_INDEX for example in dataset for label in example.labels)
    assert report.describe() == (
        f"3 of 5 samples, {report.tokens} tokens, {report.label_tokens} of them with loss, 2 dropped (no label tokens)"
    )


def test_samples_without_labels_may_be_kept(template: ChatTemplate) -> None:
    dataset = tokenize([unanswered(0), *tiny_samples(1)], template, 128, keep_unlabelled=True, progress=False)
    assert [example.num_labels > 0 for example in dataset] == [False, True]
    assert (dataset.report.kept, dataset.report.dropped) == (2, 0)


def test_a_label_on_the_first_token_carries_no_loss(template: ChatTemplate) -> None:
    """Nothing before it predicts it: such rows ended in a division by zero, or in gradients that are not finite."""
    whole = tiny_dataset(3)
    first_only = replace(whole[1], labels=[5] + [IGNORE_INDEX] * (len(whole[1].input_ids) - 1))
    assert first_only.num_labels == 0
    check_labels(whole)
    with pytest.raises(DataError, match=rf"1 of 3 samples have no token that carries loss: {whole[1].sample.id}\b"):
        check_labels(TokenizedDataset([whole[0], first_only, whole[2]]))


def test_cut_samples_are_counted(template: ChatTemplate) -> None:
    dataset = tokenize(tiny_samples(4), template, 12, progress=False)
    assert [example.truncated for example in dataset] == [True] * 4
    assert dataset.report.truncated == 4
    assert "4 cut to length" in dataset.report.describe()
    assert all(example.num_labels > 0 for example in dataset)


@pytest.mark.parametrize(
    ("samples", "cause"),
    [
        ([unanswered(0)], "no conversation has an assistant turn"),
        ([untrained(0)], "every assistant turn has loss weight 0"),
        ([], "there are no samples"),
    ],
)
def test_nothing_left(template: ChatTemplate, samples: list[Sample], cause: str) -> None:
    with pytest.raises(DataError) as caught:
        tokenize(samples, template, 128, progress=False)
    assert cause in str(caught.value)


def test_batches_of_samples_are_encoded_as_one_by_one(template: ChatTemplate) -> None:
    samples = tiny_samples(300)
    dataset = tokenize(samples, template, 128, progress=False)
    for example in (dataset[0], dataset[255], dataset[256], dataset[299]):
        encoded = template.encode(example.sample, 128)
        assert (example.input_ids, example.labels) == (encoded.input_ids, encoded.labels)


def test_fingerprint_depends_on_ids_labels_and_order() -> None:
    dataset = tiny_dataset(4)
    assert dataset.fingerprint == tiny_dataset(4).fingerprint
    assert len(dataset.fingerprint) == 64
    relabelled = replace(dataset[0], labels=[IGNORE_INDEX] * len(dataset[0].labels))
    others = (
        dataset.select([1, 0, 2, 3]),
        dataset[:3],
        TokenizedDataset([relabelled, *dataset[1:]]),
        TokenizedDataset([]),
    )
    assert len({dataset.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_select_and_slices() -> None:
    dataset = tiny_dataset(6)
    chosen = dataset.select([4, 1, 4])
    assert [example.sample.row for example in chosen] == [4, 1, 4]
    assert (chosen.report.total, chosen.report.dropped) == (3, 0)
    assert [example.sample.row for example in dataset[1:5:2]] == [1, 3]
    assert dataset[-1] == dataset[5]
    with pytest.raises(IndexError):
        dataset[6]
