"""The work of one comparison: b gradients of p parameters to k features, with the moments of an Adam run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dataflex.projection.adam import AdamMoments

BETAS, EPS, STEPS = (0.9, 0.999), 1e-8, 3


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        grads: ``(b, p)`` float32.
        adam: Moments of the p parameters.
        dim: k.
    """

    grads: Tensor
    adam: AdamMoments
    dim: int

    @property
    def rows(self) -> int:
        """Gradients b."""
        return self.grads.shape[0]

    @property
    def parameters(self) -> int:
        """Parameters p."""
        return self.grads.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the gradients lie."""
        return self.grads.device

    def part(self, entries: int) -> tuple[Case, float]:
        """The first parameters, as many as give P at most ``entries`` entries, and their share of all."""
        count = min(max(entries // self.dim, 1), self.parameters)
        if count == self.parameters:
            return self, 1.0
        part = Case(self.grads[:, :count].contiguous(), self.adam.slice(0, count), self.dim)
        return part, count / self.parameters


def make_cases(
    rows: list[int], parameters: list[int], dims: list[int], device: torch.device, seed: int = 0
) -> Iterator[Case]:
    """Every combination, on normal gradients; those of one p share their memory."""
    for count in parameters:
        generator = torch.Generator(device=device).manual_seed(seed)
        adam = _moments(count, generator)
        grads = torch.randn(max(rows), count, generator=generator, device=device)  # (b, p)
        for dim in dims:
            for b in rows:
                yield Case(grads[:b], adam, dim)


def _moments(count: int, generator: torch.Generator) -> AdamMoments:
    """The moments that a few steps of Adam on normal gradients leave."""
    (b1, b2), device = BETAS, generator.device
    mean, square = torch.zeros(count, device=device), torch.zeros(count, device=device)
    for _ in range(STEPS):
        gradient = torch.randn(count, generator=generator, device=device)
        mean.mul_(b1).add_(gradient, alpha=1 - b1)
        square.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    return AdamMoments(mean, square, STEPS, BETAS, EPS)
