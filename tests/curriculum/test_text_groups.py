"""Groups of rows by their texts."""

from __future__ import annotations

import random
import tracemalloc

from dataflex.curriculum.text_groups import groups_of_texts

_KINDS = [[f"{kind}{letter}" for letter in "abcdefghij"] for kind in ("tree", "sea", "code")]


def _texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(_KINDS[place % 3], k=12)) for place in range(count)]


def test_rows_that_share_words_are_a_group() -> None:
    texts = [*_texts(600, 1), "", "42"]
    found = groups_of_texts(texts)
    assert found.scripts == ["Latin"] * 600 + [None, None]
    assert found.words[600:] == [None, None]
    of_kind = [{name for name in found.words[kind:600:3] if name} for kind in range(3)]
    assert all(of_kind)
    assert not of_kind[0] & of_kind[1] | of_kind[0] & of_kind[2] | of_kind[1] & of_kind[2]


def test_words_of_all_rows_are_never_held_together() -> None:
    texts = _texts(40_000, 2)
    tracemalloc.start()
    groups_of_texts(texts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(texts) * 500  # the words alone of a row are 600 bytes
