"""Sets of vectors whose cosines a projection should keep: kind ones and hard ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dataflex.projection.adam import AdamMoments, adam_normalize

KURTOSIS = 57_000.0
FEW = 8


@dataclass(frozen=True)
class Vectors:
    """n vectors of p entries.

    Attributes:
        grads: ``(n, p)`` float32, what is handed to the projection.
        adam: Moments with which the projection normalises them, or None.
    """

    grads: Tensor
    adam: AdamMoments | None = None

    def values(self) -> Tensor:
        """What is projected: ``(n, p)`` float32."""
        return self.grads if self.adam is None else adam_normalize(self.grads, self.adam)

    def gram(self) -> Tensor:
        """Inner products: ``(n, n)`` float64."""
        return gram(self.values())

    def kurtosis(self) -> float:
        """Fourth moment over the squared second, mean over the vectors: 3 if normal, p if one entry is all."""
        squares = self.values().double() ** 2
        return float((squares**2).mean(dim=1).div(squares.mean(dim=1) ** 2).mean())


def cosines(products: Tensor) -> Tensor:
    """Cosines from the inner products ``(n, n)`` of vectors."""
    norms = products.diagonal().sqrt()
    return products / (norms[:, None] * norms)


def gram(rows: Tensor) -> Tensor:
    """Inner products of all rows ``(n, p)``: ``(n, n)`` float64."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], 2**16):
        wide = rows[:, start : start + 2**16].double()
        total += wide @ wide.T
    return total


def gaussian(rows: int, count: int, generator: torch.Generator) -> Vectors:
    """Independent normal entries: all but orthogonal pairs."""
    return Vectors(torch.randn(rows, count, generator=generator))


def correlated(rows: int, count: int, generator: torch.Generator) -> Vectors:
    """Normal entries with a part in common: every pair has a cosine of about 0.5."""
    own, common = torch.randn(rows, count, generator=generator), torch.randn(count, generator=generator)
    return Vectors(own + common)


def heavy_tails(rows: int, count: int, generator: torch.Generator) -> Vectors:
    """Entries i^-gamma, i = 1 ... p, shuffled and with random signs; gamma gives a kurtosis of 57,000."""
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    low, high = 0.25, 4.0
    for _ in range(60):
        gamma = (low + high) / 2
        kurtosis = count * (ranks ** (-4 * gamma)).sum() / (ranks ** (-2 * gamma)).sum() ** 2
        low, high = (gamma, high) if kurtosis < KURTOSIS else (low, gamma)
    magnitudes = (ranks**-gamma).float()
    vectors = torch.stack([magnitudes[torch.randperm(count, generator=generator)] for _ in range(rows)])
    return Vectors(vectors * _signs(vectors.shape, generator))


def few_hot(rows: int, count: int, generator: torch.Generator) -> Vectors:
    """Eight entries of +-1, the others zero; half of the places are one set that all vectors draw from."""
    shared = torch.randperm(count, generator=generator)[: 4 * FEW]
    vectors = torch.zeros(rows, count)
    for vector in vectors:
        of_shared = shared[torch.randperm(len(shared), generator=generator)[: FEW // 2]]
        alone = torch.randint(count, (FEW // 2,), generator=generator)
        vector[torch.cat([of_shared, alone])] = 1
    return Vectors(vectors * _signs(vectors.shape, generator))


Generate = Callable[[int, int, torch.Generator], Vectors]
GENERATED: dict[str, tuple[Generate, int]] = {
    "normal": (gaussian, 2**17),
    "normal, cosine 0.5": (correlated, 2**17),
    "heavy tails": (heavy_tails, 2**19),
    f"{FEW}-hot": (few_hot, 2**17),
}
"""How to draw, and the number of entries: a kurtosis needs at least as many as it is large."""


def cosine_theory(cosine: Tensor, dim: int) -> float:
    """Rms error of cosines of features over pairs, to first order in 1/k, for entries of P that are normal.

    The cosine of two projected vectors is a correlation coefficient of k samples: its variance is
    (1 - rho^2)^2 / k, at most that of orthogonal pairs.
    """
    return math.sqrt(float(((1 - cosine**2) ** 2).mean()) / dim)


def product_theory(cosine: Tensor, dim: int) -> float:
    """Rms error of inner products over |x||y|: the variance is (1 + rho^2) / k, exactly, for normal entries."""
    return math.sqrt(float((1 + cosine**2).mean()) / dim)


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator, dtype=torch.int8) * 2 - 1
