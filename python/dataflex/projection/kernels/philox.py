"""Philox4x32-10 in torch: random bits as a pure function of a counter and a seed."""

from __future__ import annotations

from torch import Tensor

WORD = 0xFFFFFFFF
"""Mask of a 32-bit word."""


def domain(name: str) -> int:
    """The counter word that keeps the streams of different kinds of projection apart: four letters as a number."""
    return int.from_bytes(name.encode(), "big")


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words.

    Args:
        counter: Four tensors of one shape, least significant word first.
        seed: The 64-bit key.

    Returns:
        Four words of the same shape, each in [0, 2^32).
    """
    x0, x1, x2, x3 = counter
    key0, key1 = seed & WORD, seed >> 32
    for _ in range(10):
        # A product may wrap around int64; its 64 bits are right all the same.
        product0, product1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        high0, high1 = product0 >> 32 & WORD, product1 >> 32 & WORD
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, product1 & WORD, high0 ^ x3 ^ key1, product0 & WORD
        key0, key1 = key0 + 0x9E3779B9 & WORD, key1 + 0xBB67AE85 & WORD
    return x0, x1, x2, x3
