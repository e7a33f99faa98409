"""Gradient features of one selection: gradients -> Adam normalisation -> projection -> store.

A round's features depend on the model's state, the data and the projection; all of it is in the store's fingerprint,
so that a selection that was killed goes on with what it had, and never with another state's rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dataflex.data.collate import collate
from dataflex.errors import GradientError
from dataflex.gradients import sample_gradient
from dataflex.model import trainable_parameters, undisturbed
from dataflex.progress import progress_bar
from dataflex.projection import AdamMoments, AdamVariant, Projector
from dataflex.store import FeatureStore
from dataflex.types import SelectionContext

logger = logging.getLogger(__name__)

GradientType = Literal["adam", "sgd"]
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
        GradientError: No optimizer, another kind of optimizer, no step taken yet, or groups that differ in betas or
            eps.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise GradientError(
            f"gradient_type 'adam' reads the moments of torch's Adam or AdamW, got {type(optimizer).__name__}",
            hint="use AdamW, or gradient_type: sgd",
        )
    parameters = [parameter for _, parameter in trainable_parameters(model)]
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
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    if any("exp_avg" not in state for state in states):
        raise GradientError(
            "the optimizer has no moments yet: no step was taken before this selection",
            hint="a longer warm-up (warmup_step >= 1), or gradient_type: sgd",
        )
    steps = {int(state["step"]) for state in states}
    if len(steps) != 1:
        raise GradientError(f"parameters have taken different numbers of steps: {sorted(steps)}")
    return AdamMoments(
        exp_avg=_flat(state["exp_avg"] for state in states),
        exp_avg_sq=_flat(state["exp_avg_sq"] for state in states),
        step=steps.pop(),
        betas=(beta1, beta2),
        eps=eps,
        variant=variant,
    )


def state_fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str:
    """SHA-256 over names and values of the trainable parameters and, if given, their optimizer moments."""
    digest = hashlib.sha256()
    for name, parameter in trainable_parameters(model):
        digest.update(name.encode())
        _update(digest, parameter.detach())
        state: Mapping[str, Any] = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for key in sorted(state):
            digest.update(key.encode())
            _update(digest, torch.as_tensor(state[key]))
    return digest.hexdigest()


def train_features(
    context: SelectionContext,
    projector: Projector,
    directory: Path,
    *,
    gradient_type: GradientType,
    adam_variant: AdamVariant,
    shard_rows: int,
) -> FeatureStore:
    """Features of every candidate: P u_i, u_i the (Adam-normalised) gradient of the sample's own loss.

    Args:
        context: The selection's context; n candidates.
        projector: P.
        directory: Folder of the store.
        gradient_type: ``adam`` normalises with the optimizer's moments, ``sgd`` does not.
        adam_variant: Formula of the normalisation.
        shard_rows: Rows between two writes.

    Returns:
        A complete store of n rows. A row that is not finite stays so: it names its sample.
    """
    adam = adam_moments(context.model, context.optimizer, adam_variant) if gradient_type == "adam" else None
    examples = context.train_dataset
    store = FeatureStore(
        directory,
        {
            "version": FEATURE_VERSION,
            "state": state_fingerprint(context.model, context.optimizer if adam else None),
            "data": examples.fingerprint,
            "projection": projector.spec(),
            "gradient": {"type": gradient_type, "adam_variant": adam_variant if adam else None},
        },
        num_rows=len(examples),
        dim=projector.dim,
        shard_rows=shard_rows,
    )
    device = next(context.model.parameters()).device
    pad_token_id = int(context.tokenizer.pad_token_id)

    def gradient(row: int) -> Tensor:
        batch = collate([examples[row]], pad_token_id).to(device)
        return sample_gradient(context.model, batch, context.autocast)

    fill_store(store, context.model, gradient, projector, adam=adam, description="training gradients")
    return store


def fill_store(
    store: FeatureStore,
    model: nn.Module,
    gradient: Callable[[int], Tensor],
    projector: Projector,
    *,
    description: str,
    adam: AdamMoments | None = None,
) -> None:
    """Compute the store's missing rows: one gradient ``(p,)`` a row, projected at once, never kept."""
    missing = store.missing()
    todo = sum(stop - start for start, stop in missing)
    with (
        undisturbed(model),
        progress_bar(store.num_rows, description, unit="row", initial=store.num_rows - todo) as bar,
    ):
        for start, stop in missing:
            rows = []
            for row in range(start, stop):
                rows.append(projector.project(gradient(row).float().unsqueeze(0), adam=adam).cpu())
                bar.update()
            store.write(start, torch.cat(rows))


def broken_rows(store: FeatureStore) -> list[int]:
    """Rows with a value that is not finite."""
    return [
        start + int(row)
        for start, values in store.blocks()
        for row in (~torch.isfinite(values).all(dim=1)).nonzero().flatten()
    ]


def report_broken(what: str, ids: Sequence[str]) -> None:
    """Warn about samples whose gradient is not finite, by id."""
    if ids:
        shown = ", ".join(ids[:10]) + (", ..." if len(ids) > 10 else "")
        logger.warning("%d %s samples have a gradient that is not finite and are left out: %s", len(ids), what, shown)


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])


def _update(digest: Any, tensor: Tensor) -> None:
    values = tensor.detach().cpu().contiguous()
    digest.update(str((values.dtype, tuple(values.shape))).encode())
    digest.update(values.flatten().view(torch.uint8).numpy().tobytes() if values.numel() else b"")
