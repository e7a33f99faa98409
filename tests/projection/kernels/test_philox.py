from __future__ import annotations

import pytest
import torch

from dataflex.projection.kernels.philox import philox4x32
from helpers.philox import KNOWN_ANSWERS


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    words = philox4x32((c0, c1, c2, c3), key[0] | key[1] << 32)
    assert tuple(int(word) for word in words) == expected
