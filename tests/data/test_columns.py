"""Rows that a trainer tokenised, as a tokenised dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from dataflex.data import TokenizedDataset
from dataflex.errors import DataError
from dataflex.testing import tiny_dataset, tiny_samples


def labels_of(**columns: Any) -> list[int]:
    return TokenizedDataset.from_columns([{"input_ids": [5, 6, 7, 8], **columns}])[0].labels


def test_labels_come_from_labels_or_masks_or_are_all_tokens() -> None:
    assert labels_of() == [-100, 6, 7, 8]
    assert labels_of(labels=[5, -100, 7, 9]) == [-100, -100, 7, 9]
    assert labels_of(completion_mask=[0, 0, 1, 1]) == [-100, -100, 7, 8]
    assert labels_of(assistant_masks=[1, 1, 0, 1]) == [-100, 6, -100, 8]
    assert labels_of(completion_mask=[0, 0, 1, 1], assistant_masks=[0, 1, 1, 0]) == [-100, -100, 7, -100]
    assert labels_of(labels=[5, 6, 7, 8], completion_mask=[0, 0, 0, 1]) == [-100, 6, 7, 8]
    assert labels_of(completion_mask=None, labels=None) == [-100, 6, 7, 8]


def test_padding_is_left_out_on_either_side() -> None:
    row = {"input_ids": [2, 2, 5, 6], "attention_mask": [0, 0, 1, 1], "labels": [-100, -100, 5, 6]}
    example = TokenizedDataset.from_columns([row])[0]
    assert (example.input_ids, example.labels) == ([5, 6], [-100, 6])


@pytest.mark.parametrize("wrap", [list, np.array, torch.tensor])
def test_what_was_tokenised_here_comes_back(wrap: Any) -> None:
    made = tiny_dataset(6, seed=1)
    rows = [{"input_ids": wrap(each.input_ids), "labels": wrap(each.labels)} for each in made]
    again = TokenizedDataset.from_columns(rows, tiny_samples(6, seed=1))
    assert again.fingerprint == made.fingerprint
    assert again.samples == made.samples
    assert again.report.label_tokens == made.report.label_tokens


def test_every_row_keeps_its_position_and_its_other_columns() -> None:
    rows = Dataset.from_list(
        [
            {"input_ids": [1, 2], "labels": [1, 2], "task": "a", "id": "x"},
            {"input_ids": [3, 4], "labels": [-100, -100], "task": "b", "id": "y"},
        ]
    )
    found = TokenizedDataset.from_columns(rows)
    assert [(each.sample.id, each.sample.row, dict(each.sample.metadata)) for each in found] == [
        ("x", 0, {"task": "a", "id": "x"}),
        ("y", 1, {"task": "b", "id": "y"}),
    ]
    assert [each.num_labels for each in found] == [1, 0]
    assert TokenizedDataset.from_columns([{"input_ids": [1, 2]}])[0].sample.id == "0"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 0 has no input_ids, only text"),
        ({"input_ids": [1, 2], "labels": [1]}, r"row 0 has columns of different lengths: {.*, 'labels': 1}"),
        ({"input_ids": [1, 2, 3], "seq_lengths": [1, 2]}, "row 0 is packed of several rows"),
    ],
)
def test_rows_that_cannot_be_used_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        TokenizedDataset.from_columns([row])


@pytest.mark.parametrize("odd", [None, 0, 300], ids=["own tokens", "another one first", "another one later"])
def test_labels_that_are_other_tokens_are_kept(odd: int | None) -> None:
    rows = [{"input_ids": [row, 1, 2], "labels": [-100, 1, 2]} for row in range(600)]
    if odd is not None:
        rows[odd]["labels"][2] = 7
    found = TokenizedDataset.from_columns(rows)
    assert [example.input_ids for example in found] == [row["input_ids"] for row in rows]
    assert [example.labels for example in found] == [row["labels"] for row in rows]
    assert [example.sample.row for example in found] == [*range(600)]


def test_samples_have_to_be_as_many_as_rows() -> None:
    with pytest.raises(DataError, match="2 samples were given for 1 tokenised rows"):
        TokenizedDataset.from_columns([{"input_ids": [1, 2]}], tiny_samples(2))
