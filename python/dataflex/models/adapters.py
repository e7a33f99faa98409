"""Stored adapters: found, compared with the model that they are put on, and loaded.

An adapter is a folder with ``adapter_config.json`` and ``adapter_model.safetensors``. peft puts a file of another base
model on what fits and leaves the rest at random or zero; here every tensor must have its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModelForCausalLM, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, TaskType
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from dataflex.errors import ModelError
from dataflex.models.bounds import Bounds
from dataflex.models.model import loading, pattern_warnings_off
from dataflex.models.weights import require_safetensors, stored_tensors
from dataflex.utils.foreign import mismatched_shapes

_PREFIX = "base_model.model."
_ROUNDING = 2**-7
"""Relative difference of a value in bfloat16 from the one that it was rounded from, at the most."""
_WHICH_MODEL = "model_name_or_path must be the model that the adapter was trained on"


def load_adapter(model: PreTrainedModel, path: str | Path, *, trainable: bool = True) -> PeftModelForCausalLM:
    """Put an existing adapter on ``model``, to go on training it or to use it as it is.

    Raises:
        ModelError: ``path`` holds no adapter in safetensors form, or one of another model; the message says which.
    """
    folder = adapter_folder(str(path))
    with loading("adapter", str(path)):
        tensors = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
    adapted = _fitted(model, str(path), folder, tensors, trainable)
    return adapted if trainable else adapted.eval()


def outline_adapter(model: PreTrainedModel, path: str) -> PeftModelForCausalLM:
    """Put an adapter on a model on the meta device: shapes alone.

    Raises:
        ModelError: As for :func:`load_adapter`.
    """
    folder = adapter_folder(path)
    return _fitted(model, path, folder, stored_tensors(folder / SAFETENSORS_WEIGHTS_NAME), trainable=True)


def adapter_folder(name: str) -> Path:
    """The folder of an adapter; one from the hub is fetched, without any other file of its repository.

    Raises:
        ModelError: There is no such adapter, or none with weights in safetensors form.
    """
    folder, what = Path(name), f"cannot load the adapter {name!r}"
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        with loading("adapter", name):
            hf_hub_download(name, SAFETENSORS_WEIGHTS_NAME)
            return Path(hf_hub_download(name, CONFIG_NAME)).parent
    if not (folder / CONFIG_NAME).is_file():
        raise ModelError(f"{what}: {CONFIG_NAME} is missing in {folder}", hint="name the folder that holds it")
    require_safetensors(what, folder, SAFETENSORS_WEIGHTS_NAME)
    return folder


def _fitted(
    model: PreTrainedModel, name: str, folder: Path, tensors: dict[str, Tensor], trainable: bool
) -> PeftModelForCausalLM:
    """The model with the adapter that ``tensors`` belong to."""
    what = f"cannot load the adapter {name!r}"
    with loading("adapter", name):
        config = PeftConfig.from_pretrained(str(folder))
        suits = not config.is_prompt_learning and config.task_type in (None, TaskType.CAUSAL_LM)
    if not suits:
        raise ModelError(f"{what}: it is {config.peft_type.value} for {config.task_type}, expected LoRA for CAUSAL_LM")
    config.inference_mode = not trainable
    with loading("adapter", name):
        vocabulary = Bounds.of(model).inputs
        kept = _without_base(what, model, tensors, config)
        with pattern_warnings_off():
            adapted = PeftModelForCausalLM(model, config)
        try:
            outcome: Any = set_peft_model_state_dict(adapted, kept)
        except RuntimeError as error:
            if shapes := mismatched_shapes(str(error)):
                raise _other_shapes(what, config, shapes, vocabulary) from error
            raise
    own = (str(adapted.base_model.prefix), ".modules_to_save.")
    missing = [key for key in outcome.missing_keys if any(part in key for part in own)]
    if outcome.unexpected_keys or missing:
        raise _other_model(what, config, outcome.unexpected_keys, missing)
    return adapted


def _without_base(
    what: str, model: PreTrainedModel, tensors: Mapping[str, Tensor], config: PeftConfig
) -> dict[str, Tensor]:
    """The tensors without the base model's own, which peft stores beside LoRA on an embedding.

    Raises:
        ModelError: They are not the model's: loaded, they would change the base model too.
    """
    own, trained = model.state_dict(), tuple(getattr(config, "modules_to_save", None) or ())
    kept = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".original_module.", ".")
        frozen = ".base_layer." in key or ".original_module." in key
        base = own.get(name) if frozen or not name.rpartition(".")[0].endswith(trained or "?") else None
        if base is None or base.shape != tensor.shape:
            kept[key] = tensor
        elif not tensor.is_meta and not _same(base.to(tensor.device), tensor):
            raise ModelError(
                f"{what}: its {name} is not the model's; it was trained on another base model{_named(config)}",
                hint=_WHICH_MODEL,
            )
    return kept


def _same(base: Tensor, stored: Tensor) -> bool:
    """Whether two tensors hold the same values, in precisions of their own."""
    if base.dtype == stored.dtype:
        return torch.equal(base, stored)
    return torch.allclose(base.float(), stored.float(), rtol=_ROUNDING, atol=0)


def _other_shapes(
    what: str, config: PeftConfig, shapes: list[tuple[str, list[int], list[int]]], vocabulary: int | None
) -> ModelError:
    """The error for tensors of other shapes: tokens were added, or the base model is another."""
    name, stored, own = shapes[0]
    changed = {(old, new) for _, first, second in shapes for old, new in zip(first, second, strict=False) if old != new}
    place = name.removeprefix(_PREFIX).removesuffix(".weight")
    for part in (".original_module", ".modules_to_save", ".base_layer", ".default"):
        place = place.replace(part, "")
    if len(changed) == 1 and (rows := changed.pop())[1] == vocabulary:
        return ModelError(
            f"{what}: its {place} has {rows[0]} rows, the model's {rows[1]}: tokens were added when it was trained",
            hint=f"resize the model (model.resize_token_embeddings({rows[0]})), save it with the adapter's tokenizer, "
            "and name that folder as the model",
        )
    more = f" (and {len(shapes) - 1} more)" if len(shapes) > 1 else ""
    return ModelError(
        f"{what}: its {place} has shape {stored}, the model's {own}{more}; it was trained on another base model"
        f"{_named(config)}",
        hint=_WHICH_MODEL,
    )


def _other_model(what: str, config: PeftConfig, unexpected: list[str], missing: list[str]) -> ModelError:
    """The error for tensors without a place, and places without a tensor."""
    parts = []
    for keys, text in ((unexpected, "have no place in the model"), (missing, "that the model needs are not in it")):
        if keys:
            parts.append(f"{len(keys)} tensors {text} ({keys[0].removeprefix(_PREFIX)}{', ...' * (len(keys) > 1)})")
    origin = _named(config)
    return ModelError(f"{what}: {'; '.join(parts)}; it was trained on another base model{origin}", hint=_WHICH_MODEL)


def _named(config: PeftConfig) -> str:
    return f" ({config.base_model_name_or_path})" if config.base_model_name_or_path else ""
