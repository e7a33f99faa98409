"""Prompts of an evaluation set."""

from __future__ import annotations

import pytest

from dataflex.errors import DataError
from dataflex.rollouts.answers import prompts_of
from dataflex.testing import tiny_samples
from dataflex.types import Sample


def test_all_prompts_that_cannot_be_rendered_are_counted() -> None:
    def token_ids(sample: Sample) -> list[int]:
        if sample.row % 2:
            raise DataError("roles must alternate")
        return [sample.row]

    assert [prompt.token_ids for prompt in prompts_of(tiny_samples(3)[::2], token_ids)] == [[0], [2]]
    with pytest.raises(DataError) as caught:
        prompts_of(tiny_samples(6), token_ids)
    assert str(caught.value).splitlines() == [
        "the prompts of 3 of 6 evaluation samples cannot be rendered:",
        *(f"  sample '{row}' (row {row}): roles must alternate" for row in (1, 3, 5)),
    ]
