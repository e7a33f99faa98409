"""Errors of projected pairs and their statistics over independent rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from measuring.vectors import Vectors, cosine_theory, cosines, gram, product_theory

TAIL = 0.999
RESAMPLES = 200


@dataclass(frozen=True)
class PairErrors:
    """Errors of one round over all pairs i < j: ``(pairs,)`` float64 each."""

    cosine: Tensor
    product: Tensor


@dataclass(frozen=True)
class Summary:
    """What the rounds of one kind on one set of vectors say; errors are absolute.

    Attributes:
        vectors: Name of the set.
        kind: Name of the projection.
        entries: p.
        kurtosis: Mean over the vectors.
        mean_cosine: Mean |rho| over the pairs.
        rounds: Independent draws of P.
        cosine_rms: Rms error of cosines, with its standard error and the theory for these pairs.
        cosine_error: Standard error of ``cosine_rms``.
        cosine_theory: For normal entries of P.
        product_rms: Rms error of inner products over |x||y|.
        product_error: Standard error of ``product_rms``.
        product_theory: For normal entries of P.
        tail: 99.9th percentile of the absolute cosine error.
        tail_error: Standard error of ``tail``, by resampling rounds.
        largest: Largest absolute cosine error.
    """

    vectors: str
    kind: str
    entries: int
    kurtosis: float
    mean_cosine: float
    rounds: int
    cosine_rms: float
    cosine_error: float
    cosine_theory: float
    product_rms: float
    product_error: float
    product_theory: float
    tail: float
    tail_error: float
    largest: float

    def within(self, limit: float) -> bool | None:
        """Whether the rms cosine error keeps a limit; None if two standard errors do not tell."""
        if abs(self.cosine_rms - limit) < 2 * self.cosine_error:
            return None
        return self.cosine_rms <= limit


def pair_errors(features: Tensor, truth: Tensor) -> PairErrors:
    """Errors of one P.

    Args:
        features: ``(n, k)``.
        truth: ``(n, n)`` inner products of what was projected.
    """
    norms = truth.diagonal().sqrt()
    found, scale = gram(features), norms[:, None] * norms
    return PairErrors(_pairs(cosines(found) - cosines(truth)), _pairs((found - truth) / scale))


def summarise(name: str, kind: str, vectors: Vectors, rounds: Sequence[PairErrors], dim: int) -> Summary:
    """Statistics over rounds; kurtosis and theories are those of ``vectors``, the first round's."""
    cosine = _pairs(cosines(vectors.gram()))
    absolute = torch.stack([errors.cosine.abs() for errors in rounds])  # (rounds, pairs)
    cosine_rms, cosine_error = rms(torch.stack([errors.cosine for errors in rounds]))
    product_rms, product_error = rms(torch.stack([errors.product for errors in rounds]))
    tail, tail_error = percentile(absolute)
    return Summary(
        vectors=name,
        kind=kind,
        entries=vectors.grads.shape[1],
        kurtosis=vectors.kurtosis(),
        mean_cosine=float(cosine.abs().mean()),
        rounds=len(rounds),
        cosine_rms=cosine_rms,
        cosine_error=cosine_error,
        cosine_theory=cosine_theory(cosine, dim),
        product_rms=product_rms,
        product_error=product_error,
        product_theory=product_theory(cosine, dim),
        tail=tail,
        tail_error=tail_error,
        largest=float(absolute.max()),
    )


def _pairs(matrix: Tensor) -> Tensor:
    """The entries above the diagonal."""
    i, j = torch.triu_indices(len(matrix), len(matrix), offset=1)
    return matrix[i, j]


def rms(errors: Tensor) -> tuple[float, float]:
    """Root mean square of ``(rounds, pairs)`` and its standard error; rounds are independent, pairs are not."""
    squares = (errors**2).mean(dim=1)
    value = math.sqrt(float(squares.mean()))
    if value == 0:
        return 0.0, 0.0
    return value, float(squares.std()) / math.sqrt(len(squares)) / (2 * value)


def percentile(absolute: Tensor) -> tuple[float, float]:
    """The 99.9th percentile of ``(rounds, pairs)`` and its standard error, by drawing rounds anew."""
    generator = torch.Generator().manual_seed(0)
    count = len(absolute)
    draws = [_quantile(absolute[torch.randint(count, (count,), generator=generator)]) for _ in range(RESAMPLES)]
    return _quantile(absolute), float(torch.tensor(draws).std())


def _quantile(values: Tensor) -> float:
    flat = values.flatten()
    rank = min(math.ceil(TAIL * len(flat)), len(flat))
    return float(flat.kthvalue(rank).values)
