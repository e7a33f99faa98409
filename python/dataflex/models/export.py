"""Merge adapters into their base model: W + (alpha / r) B A, written as a model that stands alone.

The merge is checked: on probe tokens, the merged model's logits must be those of base and adapter. What they may differ
by is measured against what the adapter changes, since 16-bit weights round a small update away.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dataflex.config import ExportConfig
from dataflex.data.templates import ChatTemplate
from dataflex.errors import ModelError
from dataflex.models.adapters import load_adapter
from dataflex.models.bounds import Bounds
from dataflex.models.model import base_model, load_model, load_tokenizer
from dataflex.utils.files import atomic_directory
from dataflex.utils.progress import library_bars
from dataflex.utils.shown import shown

logger = logging.getLogger(__name__)

PROBE_SHAPE = (4, 32)
"""Sequences and tokens of the probe."""
LARGEST_LOSS = {torch.float32: 0.01}
"""Largest share of an adapter's effect that a merge may lose, by the precision of the weights."""
LARGEST_LOSS_16_BITS = 0.5
NOTABLE_LOSS = 0.1
SMALLEST_EFFECT = 1e-4
"""An adapter that changes the logits by less than this share of them has no effect to measure against."""


def export(config: ExportConfig) -> dict[str, Any]:
    """Merge, check and write.

    Args:
        config: What to merge and where to.

    Returns:
        ``export_dir``, ``adapters``, ``dtype``, ``files`` and ``largest_logit_difference`` (merged against base with
        adapter, None without adapters).

    Raises:
        ModelError: ``export_dir`` is not empty, a model cannot be loaded, or the merged model does not answer like base
            and adapter.
    """
    target = Path(config.export_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"export_dir {target} is not an empty folder", hint="name another, or remove it")
    device = "cuda" if config.export_device == "auto" and torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(config.locate(config.model_name_or_path), trust_remote_code=config.trust_remote_code)
    if config.template is not None:
        tokenizer.chat_template = ChatTemplate.load(config.template, tokenizer).source
    model = load_model(
        config.locate(config.model_name_or_path), precision=None, trust_remote_code=config.trust_remote_code
    )
    model.to(torch.device(device))  # type: ignore[arg-type]  # a decorator of transformers hides the signature
    differences = []
    for adapter in config.adapter_name_or_path or []:
        model, difference = merge(model, config.locate(adapter))
        differences.append(difference)
    write_model(model, tokenizer, target, config)
    return {
        "export_dir": str(target),
        "adapters": config.adapter_name_or_path or [],
        "dtype": str(model.dtype).removeprefix("torch."),
        "files": sorted(path.name for path in target.iterdir()),
        "largest_logit_difference": max(differences, default=None),
    }


def merge(model: PreTrainedModel, adapter: str) -> tuple[PreTrainedModel, float]:
    """Merge one adapter and compare the outcome with base and adapter.

    Returns:
        The merged model, and the largest absolute difference of a logit.

    Raises:
        ModelError: The adapter cannot be loaded, or the merge loses its effect.
    """
    base = _probe_logits(model)
    adapted = load_adapter(model, adapter, trainable=False)
    expected = _probe_logits(adapted)
    _untie(adapted)
    merged = cast(PreTrainedModel, adapted.merge_and_unload(safe_merge=True))
    found = _probe_logits(merged)
    effect, lost = float((expected - base).norm()), float((found - expected).norm())
    if effect > SMALLEST_EFFECT * float(base.norm()):
        share, limit = lost / effect, LARGEST_LOSS.get(model.dtype, LARGEST_LOSS_16_BITS)
        if not share <= limit:
            raise ModelError(
                f"merged into {model.dtype} weights, {adapter} loses {share:.0%} of its effect on the logits "
                f"(at most {limit:.0%} is accepted)",
                hint="export from a float32 copy of the base model",
            )
        if share > NOTABLE_LOSS:
            logger.warning("merged into %s weights, %s loses %.0f %% of its effect", model.dtype, adapter, 100 * share)
    return merged, float((found - expected).abs().max())


def _untie(adapted: PeftModel) -> None:
    """Give embedding and output head weights of their own, where they share them and LoRA is on one of them.

    LoRA changes one of the two; merged into weights that both use, it would change both.
    """
    base = cast(Any, base_model(adapted))
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    if ends[1] is None or not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    layers: list[Any] = [end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends]
    embedding, head = layers
    if embedding.weight is head.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        base.config.get_text_config().tie_word_embeddings = base.config.tie_word_embeddings = False
        logger.info("embedding and output head share their weights; with LoRA on one of them, both are written")


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, config: ExportConfig) -> None:
    """Weights in shards of at most ``export_size`` GB, generation config, tokenizer with its template, model card."""
    with atomic_directory(target) as staged, library_bars():
        model.save_pretrained(staged, max_shard_size=f"{config.export_size}GB")
        tokenizer.save_pretrained(staged)
        base = shown(config.model_name_or_path, target="markdown")
        merged = "".join(f"- {shown(adapter, target='markdown')}\n" for adapter in config.adapter_name_or_path or [])
        card = [
            "---",
            "library_name: transformers",
            "tags:",
            "- dataflex",
            "---",
            "",
            f"# {shown(target.name, target='markdown')}",
            "",
            base + (", with these adapters merged into it:\n" if merged else ""),
            merged,
        ]
        (staged / "README.md").write_text("\n".join(card), encoding="utf-8")


@torch.no_grad()
def _probe_logits(model: nn.Module) -> Tensor:
    """float64 logits ``(4, 32, vocabulary)`` of fixed random tokens."""
    tokens = Bounds.of(model).inputs
    assert tokens is not None
    ids = torch.randint(tokens, PROBE_SHAPE, generator=torch.Generator().manual_seed(0))
    model.train(False)
    logits: Tensor = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
    return logits.double().cpu()
