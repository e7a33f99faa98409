"""Whether a run fits into memory and on the disk, from the model's shapes alone: no weights are loaded.

Memory is what :mod:`dataflex.doctor.need` adds up: base weights, a trainable parameter's float32 value, gradient and
optimizer state (AdamW: 16 bytes in all), what a selection by gradients holds, and the activations of the largest batch.
A token's activations are what autograd keeps of a forward pass on torch's meta device, where tensors have shapes but no
values. Fused attention, which keeps no matrix of weights, is assumed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dataflex.config import RunConfig
from dataflex.curriculum.schedule import Phase
from dataflex.doctor.check import Check
from dataflex.doctor.need import exact_selection, feature_selection, needed
from dataflex.gradients.memory import available_bytes, kept_bytes
from dataflex.gradients.store import DTYPES
from dataflex.models.adapters import outline_adapter
from dataflex.models.bounds import Bounds
from dataflex.models.model import base_model, outline_model
from dataflex.models.optimizers import KINDS
from dataflex.selectors.base import Selector
from dataflex.selectors.gradient import GradientConfig
from dataflex.selectors.gradient.scoring import expects_features
from dataflex.training.run import prepared, quantization

_ATTENTION = "dataflex_outline"


@dataclass(frozen=True, slots=True)
class Outline:
    """Sizes of the model that a run trains.

    Attributes:
        parameters: All parameters, the adapter's included.
        trainable: Those that are trained.
        base_bytes: Size of the frozen weights.
        bytes_per_token: Activations that a token of a row takes at the most, gradient checkpointing taken into account;
            0 if that is not known.
        bounds: Tokens and positions that the model has room for.
        whole: Parameters that FSDP makes whole at once: those outside the layers, and of two layers.
        unknown: Why the activations are not known.
    """

    parameters: int
    trainable: int
    base_bytes: int
    bytes_per_token: float
    bounds: Bounds
    whole: int
    unknown: str | None = None


def outline(config: RunConfig, tokens: int) -> Outline:
    """The sizes of the configured model.

    Args:
        config: The run.
        tokens: Tokens of a row, t.

    Raises:
        ModelError: Model or adapter cannot be loaded, or ``lora_target`` fits no module.
    """
    base = outline_model(
        config.locate(config.model_name_or_path), precision=config.precision, trust_remote_code=config.trust_remote_code
    )
    stored = quantization(config)
    saved = 0 if stored is None else stored.saved_bytes(base)
    bounds = Bounds.of(base)
    with torch.device("meta"):
        if config.adapter_name_or_path is None:
            model = prepared(base, config)
        else:
            model = cast(nn.Module, outline_adapter(base, config.locate(config.adapter_name_or_path)))
    return sizes(model, tokens, bounds=bounds, saved=saved, recomputes=config.gradient_checkpointing)


def sizes(model: nn.Module, tokens: int, *, bounds: Bounds, saved: int = 0, recomputes: bool = False) -> Outline:
    """The sizes of a model on the meta device.

    Args:
        model: It, with what is trained in it.
        tokens: Tokens of a row, t.
        bounds: Of its base model.
        saved: Bytes that quantisation saves.
        recomputes: With gradient checkpointing.
    """
    per_token, unknown = 0.0, None
    layers = [_values(part) for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    try:
        per_token = _most_bytes(model, tokens, recomputes=recomputes) / tokens
    except (RuntimeError, ValueError, TypeError, KeyError) as error:  # a model that looks at the values of tensors
        unknown = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    frozen = [value for value in model.parameters() if not value.requires_grad]
    parameters = _values(model)
    return Outline(
        parameters=parameters,
        trainable=parameters - sum(value.numel() for value in frozen),
        base_bytes=sum(value.numel() * value.element_size() for value in frozen) - saved,
        bytes_per_token=per_token,
        bounds=bounds,
        whole=parameters - sum(layers) + 2 * max(layers, default=0),
        unknown=unknown,
    )


def _values(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _most_bytes(model: nn.Module, tokens: int, *, recomputes: bool) -> float:
    """The most that the activations of one row of ``tokens`` tokens take.

    With gradient checkpointing: what is kept outside of the L layers, the input of each, and all of one that is being
    recomputed.
    """
    kept = _kept_bytes(model, tokens)
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not recomputes or not layers:
        return kept
    inner = cast(PreTrainedModel, base_model(model))
    inner.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()  # layers recompute in training only
    outside = _kept_bytes(model, tokens)
    width: int = inner.config.get_text_config().hidden_size * next(model.parameters()).element_size()
    return outside + (kept - outside) / len(layers) + len(layers) * tokens * width


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused attention keeps: queries, keys, values and the output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        query, key, value, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """Attention in shape only: ``(b, heads, t, d)`` to ``(b, t, heads, d)``."""
    del module
    output: Tensor = _FusedAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2), None


@contextmanager
def _shape_only_attention(model: nn.Module) -> Iterator[None]:
    """Run the block with :func:`_attention` where the model lets its attention be chosen."""
    ALL_ATTENTION_FUNCTIONS[_ATTENTION] = _attention
    configs: dict[int, Any] = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    before = {key: getattr(value, "_attn_implementation", None) for key, value in configs.items()}
    for value in configs.values():
        value._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        for key, value in configs.items():
            value._attn_implementation = before[key]
        ALL_ATTENTION_FUNCTIONS.pop(_ATTENTION)


def _kept_bytes(model: nn.Module, tokens: int) -> int:
    """Bytes that autograd keeps of one row of ``tokens`` tokens, its loss included."""
    ids = torch.zeros((1, tokens), dtype=torch.int64, device="meta")

    def loss() -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits.float()  # (1, t, vocabulary)
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())

    with _shape_only_attention(model):
        return kept_bytes(loss, model)


def memory_check(
    config: RunConfig, found: Outline, longest: int, selector: Selector[Any] | None, targets: int
) -> Check:
    """Whether training and gradients of a selection fit into the memory that is free now.

    Args:
        config: The run.
        found: Its model.
        longest: Tokens of the longest row.
        selector: Its selector, if it has one.
        targets: Rows of the evaluation set.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = available_bytes(device)
    largest = max(config.per_device_train_batch_size * longest, _feature_tokens(selector))
    need = needed(
        found.base_bytes,
        found.trainable,
        largest * found.bytes_per_token,
        state_bytes=KINDS[config.optim].state_bytes,
        selection=_selection_bytes(selector, found.trainable, targets),
    )
    chosen = f", a selection {_size(need.selection)}" if need.selection else ""
    detail = (
        f"about {_size(need.total)} of {_size(free)} free ({device.type}): weights {_size(need.frozen)}, trained "
        f"part and optimizer {_size(need.trained)}{chosen}, activations of {largest:,} tokens "
        f"{_size(need.activations)}"
    )
    if need.lasting - need.selection > free:
        return Check("memory", "fail", detail, "a smaller model or lora_rank, bf16: true, or a larger machine")
    if found.unknown is not None:
        detail = f"{detail}: not known, the model cannot run without values ({found.unknown})"
        return Check("memory", "warn", detail, "`dataflex select FILE --num 1 --dry-run` measures the peak")
    if need.total > free:
        fix = (
            "a smaller per_device_train_batch_size (gradient_accumulation_steps makes up for it) or cutoff_len, "
            "gradient_checkpointing: true, component_params.feature_batch_tokens: auto"
        )
        return Check("memory", "warn", detail, fix)
    return Check("memory", "pass", detail)


def _feature_tokens(selector: Selector[Any] | None) -> int:
    """Tokens of a batch of gradients; ``auto`` fits itself into the memory, and other selectors have none."""
    tokens = getattr(selector.config, "feature_batch_tokens", 0) if selector else 0
    return tokens if isinstance(tokens, int) else 0


def _selection_bytes(selector: Selector[Any] | None, trainable: int, targets: int) -> int:
    """What a selector by gradients holds, of one direction where scores are exact, and of all coordinates where not."""
    settings = selector.config if selector is not None else None
    if not isinstance(settings, GradientConfig):
        return 0
    return feature_selection(trainable) if expects_features(settings) else exact_selection(trainable, targets)


def disk_checks(
    config: RunConfig, found: Outline, rows: tuple[int, int], phases: Sequence[Phase], selector: Selector[Any] | None
) -> Iterator[Check]:
    """Whether checkpoints and, for selectors by gradient similarity, features fit on the disk.

    Args:
        config: The run.
        found: Its model.
        rows: Rows of the training and of the evaluation set.
        phases: Its schedule.
        selector: Its selector, if it has one.
    """
    count = len(checkpoint_steps(phases, config.save_steps))
    if config.save_total_limit is not None:
        count = min(count, config.save_total_limit + 1)  # the oldest one goes when the new one is there
    values = 1 if config.save_only_model else 3
    models = 1 + config.load_best_model_at_end
    best = ", the best model" if config.load_best_model_at_end else ""
    needed = found.trainable * 4 * (values * count + models)
    yield _disk("disk, checkpoints", Path(config.output_dir), needed, f"{count} of them{best} and the adapter")
    selections = sum(phase.round is not None for phase in phases)
    settings = selector.config if selector is not None else None
    if selections and isinstance(settings, GradientConfig) and expects_features(settings):
        # The last round's features go when the next ones have been used.
        kept = {"all": selections, "last": 2, "none": 1}[settings.keep_features]
        rounds = min(kept, selections)
        size = sum(rows) * settings.proj_dim * DTYPES[settings.features_dtype].itemsize * rounds
        times = f", {rounds} times" if rounds > 1 else ""
        folder = settings.cache_dir or Path(config.output_dir)
        yield _disk("disk, features", folder, size, f"{sum(rows):,} rows of {settings.proj_dim:,} numbers{times}")


def checkpoint_steps(phases: Sequence[Phase], save_steps: int) -> set[int]:
    """Steps after which a run saves a checkpoint: regularly, before each selection but one at the start, at its end."""
    end = phases[-1].stop
    return {*range(save_steps, end, save_steps), *(phase.start for phase in phases if phase.round and phase.start), end}


def _disk(name: str, folder: Path, needed: int, what: str) -> Check:
    existing = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"about {_size(needed)} of {_size(free)} free at {existing}: {what}"
    if needed > free:
        fix = "another output_dir; save_total_limit, save_only_model, features_dtype: bfloat16 or a smaller proj_dim"
        return Check(name, "fail", detail, fix)
    return Check(name, "pass", detail)


def _size(count: float) -> str:
    power = min(int(math.log(max(count, 1), 1024)), 3)
    return f"{count / 1024**power:.1f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"
