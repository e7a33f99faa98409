"""Padded batches."""

from __future__ import annotations

import pytest
import torch

from dataflex.data.collate import collate
from dataflex.data.dataset import Example
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import DataError
from dataflex.testing import tiny_dataset, tiny_model, tiny_tokenizer
from dataflex.types import Sample

SAMPLE = Sample("0", 0, ())
EXAMPLES = [Example(SAMPLE, [5, 6, 2], [-100, 6, 2]), Example(SAMPLE, [7], [-100])]


def test_pads_on_the_right() -> None:
    batch = collate(EXAMPLES, pad_token_id=2)
    assert batch.input_ids.tolist() == [[5, 6, 2], [7, 2, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [[-100, 6, 2], [-100, -100, -100]]
    assert {tensor.dtype for tensor in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}


@pytest.mark.parametrize(("multiple", "width"), [(1, 3), (3, 3), (8, 8)])
def test_width_is_a_multiple(multiple: int, width: int) -> None:
    batch = collate(EXAMPLES, pad_token_id=0, pad_to_multiple_of=multiple)
    assert batch.input_ids.shape == (2, width)
    assert int(batch.attention_mask.sum()) == 4


def test_to_moves_all_tensors() -> None:
    batch = collate(EXAMPLES, pad_token_id=0).to("meta")
    assert {batch.input_ids.device.type, batch.attention_mask.device.type, batch.labels.device.type} == {"meta"}


def test_nothing_to_collate() -> None:
    with pytest.raises(DataError, match="empty batch"):
        collate([], pad_token_id=0)


def test_padding_does_not_change_the_loss() -> None:
    model, dataset = tiny_model(), tiny_dataset(3)
    eos = tiny_tokenizer().eos_token_id
    assert isinstance(eos, int)
    with torch.no_grad():
        for example in dataset:
            alone, padded = collate([example], 0), collate([example], eos, pad_to_multiple_of=64)
            losses = [
                model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
                for batch in (alone, padded)
            ]
            torch.testing.assert_close(losses[0], losses[1])
            assert int((padded.labels != IGNORE_INDEX).sum()) == example.num_labels
