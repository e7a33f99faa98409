"""How much each target pulls a row: the terms of which a score is made.

Under mean aggregation the score of row i is (1 / q) sum_j cos(u_i, g_j): target j adds cos(u_i, g_j) / q. A selection
needs the sum alone and keeps one direction for all targets; here the gradients of a few rows are held, ``rows x p``
numbers, the targets stream by one after the other, and each term is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dataflex.gradients.collectors import WholeRows
from dataflex.gradients.context import GradientContext
from dataflex.gradients.features import GradientFeatures
from dataflex.gradients.similarity import Aggregate, direction_places
from dataflex.models.model import trainable_parameters, undisturbed
from dataflex.projection.adam import adam_normalize
from dataflex.utils.progress import progress_bar

MOST_VALUES = 1 << 28
"""Most numbers of the rows' gradients (rows x p) that are held, 1 GiB."""
_COLUMNS = 1 << 20
"""Columns that are float64 at once."""


def target_cosines(
    context: GradientContext, rows: GradientFeatures, targets: GradientFeatures, factors: Sequence[Sequence[float]]
) -> Tensor:
    """Cosines of every row with every target.

    Args:
        context: Model and processes as they are now.
        rows: Computes the gradients of g rows, Adam-normalised where it has moments; all are held.
        targets: Computes the raw gradients of the items that the q targets are made of.
        factors: Per target the factors of its items: their gradients, times these, add up to its own.

    Returns:
        ``(g, q)`` float64; nan where a gradient is not finite, 0 where one is zero.
    """
    p = sum(parameter.numel() for _, parameter in trainable_parameters(context.model))
    device = next(context.model.parameters()).device
    rows.prepare()
    targets.prepare()
    found: list[Tensor] = []
    with undisturbed(context.model), progress_bar(len(factors), "targets", unit="target") as bar:
        held = torch.cat([_whole(rows, [row], p, device) for row in range(len(rows))])  # (g, p)
        if rows.adam is not None:
            held = adam_normalize(held, rows.adam)
        first = 0
        for own in factors:
            items = list(range(first, first + len(own)))
            found.append(_cosines(held, _whole(targets, items, p, device), own))
            first += len(own)
            bar.update()
    return torch.stack(found, dim=1).cpu()


def score_parts(cosines: Tensor, aggregate: Aggregate, groups: Sequence[str | None]) -> Tensor:
    """What each target adds to the score of each row.

    Args:
        cosines: ``(g, q)`` float64 from :func:`target_cosines`.
        aggregate: Rule over the targets.
        groups: Task of each target.

    Returns:
        ``(g, q)`` float64; a row adds up to its score. Targets of directions that are not the row's best one add 0,
        and those whose gradient is not finite are left out of the mean.
    """
    usable = ~cosines.isnan().all(dim=0)  # (q,)
    place, _ = direction_places(aggregate, groups)
    places = torch.tensor([place(target) for target in range(len(groups))])
    parts = torch.zeros_like(cosines)
    for number in sorted(set(places.tolist())):
        members = (places == number) & usable
        parts[:, members] = cosines[:, members] / max(int(members.sum()), 1)
    sums = torch.zeros((len(cosines), int(places.max()) + 1), dtype=torch.float64).index_add_(1, places, parts)
    return parts.where(places[None] == sums.argmax(dim=1, keepdim=True), 0.0)


def _whole(features: GradientFeatures, items: Sequence[int], p: int, device: torch.device) -> Tensor:
    """Gradients ``(items, p)`` float32."""
    return features.collect(items, lambda count: WholeRows(torch.empty((count, p), device=device)))


def _cosines(rows: Tensor, items: Tensor, factors: Sequence[float]) -> Tensor:
    """``(g,)`` float64: cosine of each of ``rows`` with the weighted sum of ``items``."""
    weights = torch.tensor(factors, dtype=torch.float64, device=items.device)
    products = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    squares, square = torch.zeros_like(products), torch.zeros((), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], _COLUMNS):
        target = weights @ items[:, start : start + _COLUMNS].double()  # (columns,)
        part = rows[:, start : start + _COLUMNS].double()
        products += part @ target
        squares += part.square().sum(dim=1)
        square += target.square().sum()
    sizes = (squares * square).sqrt()
    return (products / sizes).where(sizes != 0, 0.0)
