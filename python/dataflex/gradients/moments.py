"""Gradient features of one selection on their way to the store, and the optimizer state that they depend on.

A round's features depend on the model's state, the data and the projection; all of it is in the store's fingerprint,
so that a selection that was killed goes on with what it had, and never with another state's rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.errors import GradientError
from dataflex.gradients.store import FeatureStore
from dataflex.models.model import trainable_parameters, undisturbed
from dataflex.projection.projector import AdamMoments, AdamVariant
from dataflex.utils.distributed import Ranks
from dataflex.utils.progress import progress_bar

logger = logging.getLogger(__name__)

FEATURE_VERSION = 1
"""Grows when the same inputs give other features."""


def adam_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, variant: AdamVariant = "adamw"
) -> AdamMoments:
    """The optimizer's moments over all trainable parameters, in parameter-index order.

    Betas and eps are those of the optimizer's parameter groups, ``step`` the number of steps it has taken.

    Args:
        model: Model whose trainable parameters the optimizer owns.
        optimizer: torch's Adam or AdamW.
        variant: Which normalisation the moments are for.

    Returns:
        Moments of shape ``(p,)`` float32.

    Raises:
        GradientError: As :func:`adam_settings` and :func:`adam_states`.
    """
    betas, eps = adam_settings(optimizer)
    states = adam_states(model, optimizer)
    return AdamMoments(
        exp_avg=_flat(state["exp_avg"] for state in states),
        exp_avg_sq=_flat(state["exp_avg_sq"] for state in states),
        step=int(states[0]["step"]),
        betas=betas,
        eps=eps,
        variant=variant,
    )


def adam_settings(optimizer: torch.optim.Optimizer | None) -> tuple[tuple[float, float], float]:
    """Betas and eps of all parameter groups.

    Raises:
        GradientError: No optimizer, another kind than Adam or AdamW, amsgrad, or groups that differ.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise GradientError(
            f"gradient_type 'adam' reads the moments of torch's Adam or AdamW, got {type(optimizer).__name__}",
            hint="use AdamW, or gradient_type: sgd",
        )
    settings = {
        (tuple(map(float, group["betas"])), float(group["eps"]), bool(group["amsgrad"]))
        for group in optimizer.param_groups
    }
    if len(settings) != 1 or next(iter(settings))[2]:
        raise GradientError(
            f"the optimizer's groups must share betas and eps and not use amsgrad, got {sorted(settings)}",
            hint="use one setting for all groups, or gradient_type: sgd",
        )
    (beta1, beta2), eps, _ = next(iter(settings))
    return (beta1, beta2), eps


def adam_states(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Mapping[str, Any]]:
    """Adam's state of each trainable parameter, in parameter-index order; nothing is copied.

    Raises:
        GradientError: No step was taken yet, or parameters have taken different numbers of steps.
    """
    known = optimizer.state if optimizer is not None else {}
    states = [known.get(parameter, {}) for _, parameter in trainable_parameters(model)]
    if any("exp_avg" not in state for state in states):
        raise GradientError(
            "the optimizer has no moments yet: no step was taken before this selection",
            hint="a longer warm-up (warmup_step >= 1), or gradient_type: sgd",
        )
    steps = {int(state["step"]) for state in states}
    if len(steps) != 1:
        raise GradientError(f"parameters have taken different numbers of steps: {sorted(steps)}")
    return states


def fill_store(
    store: FeatureStore,
    model: nn.Module,
    features: Callable[[list[int]], Tensor],
    *,
    description: str,
    batches: Callable[[list[int]], list[list[int]]] | None = None,
    ranks: Ranks,
) -> None:
    """Compute the store's missing shards, which the ranks share; every rank returns when all are written.

    Args:
        store: Where the rows go.
        model: Held in eval mode and left undisturbed.
        features: Maps the numbers of b rows to their features ``(b, k)``.
        description: For the progress bar.
        batches: Splits the rows of a shard into those that are computed together; None: one at a time. It sees one
            shard only, so that a row's batch, and with it its rounding, is the same in a resumed run and for any
            number of ranks.
        ranks: The processes of the run; the store lies where all of them see it.
    """
    missing = ranks.share(ranks.on_main(store.missing))
    todo = sum(stop - start for start, stop in missing)
    total = store.num_rows if ranks.count == 1 else todo
    with (
        undisturbed(model),
        progress_bar(total, description, unit="row", initial=total - todo, disable=not ranks.is_main) as bar,
    ):
        for start, stop in missing:
            rows = list(range(start, stop))
            shard = torch.empty((len(rows), store.dim))
            for batch in batches(rows) if batches else [[row] for row in rows]:
                shard[[row - start for row in batch]] = features(batch).cpu()
                bar.update(len(batch))
            store.write(start, shard)
    ranks.barrier()


def report_broken(what: str, ids: Sequence[str]) -> None:
    """Warn about samples whose gradient is not finite, by id."""
    if ids:
        shown = ", ".join(ids[:10]) + (", ..." if len(ids) > 10 else "")
        logger.warning("%d %s samples have a gradient that is not finite and are left out: %s", len(ids), what, shown)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])
