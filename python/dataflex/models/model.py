"""Base model, LoRA adapters and tokenizer: loading, adapting and saving.

Base weights are frozen and kept in the training precision; adapter weights are float32 and run under autocast, as
peft does by default. Nothing but safetensors is read or written.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from dataflex.errors import ModelError
from dataflex.models.quantization import Quantization, is_quantized, keep_weights
from dataflex.models.weights import compare_shapes, require_safetensors
from dataflex.types import Autocast
from dataflex.utils.files import atomic_directory, fsync
from dataflex.utils.foreign import foreign, model_errors
from dataflex.utils.progress import library_bars

Precision = Literal["fp32", "bf16", "fp16"]
FUSING = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
FUSED = ["out_proj", "conv1d"]
"""Kernels of these kinds of models take the weights of these layers past the layers themselves; peft refuses them."""
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or a hub id and make sure that it can pad.

    Raises:
        ModelError: It cannot be loaded, or it has neither a padding nor an end token.
    """
    with loading("tokenizer", name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"the tokenizer of {name_or_path!r} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_model(
    name_or_path: str,
    *,
    precision: Precision | None = "fp32",
    trust_remote_code: bool = False,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """Load a causal language model with weights in ``precision`` (None: as stored); only safetensors are read.

    With ``quantization`` its linear layers are quantised, and it lies where it is to stay.

    Raises:
        ModelError: The folder or hub id does not hold a loadable causal language model.
    """
    outline_model(name_or_path, trust_remote_code=trust_remote_code)  # before weights of other shapes take memory
    dtype = "auto" if precision is None else DTYPES[precision]
    settings = {} if quantization is None else quantization.settings(DTYPES[precision or "fp32"])
    with loading("model", name_or_path), library_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    model, facts = loaded
    if missing := sorted(facts["missing_keys"]):
        raise ModelError(
            f"cannot load the model {name_or_path!r}: {len(missing)} tensors that its config.json describes are not in "
            f"its files ({missing[0]}, ...); they would be random",
            hint="take config.json and weights from the same model",
        )
    keep_weights(model)
    return cast(PreTrainedModel, model)


def outline_model(
    name_or_path: str, *, precision: Precision = "fp32", trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model without its weights, on torch's meta device: shapes and sizes at no cost.

    Raises:
        ModelError: The folder or hub id describes no causal language model, or a folder has no weights in safetensors
            form, or those of another model.
    """
    folder, what = Path(name_or_path), f"cannot load the model {name_or_path!r}"
    if folder.is_dir():
        require_safetensors(what, folder)
    with loading("model", name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=DTYPES[precision], trust_remote_code=trust_remote_code
            )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{what}: its weights are quantised, which is not supported", hint="name the model without")
    if folder.is_dir():
        compare_shapes(what, folder, model.state_dict())
    return cast(PreTrainedModel, model)


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    target: str | Sequence[str] = "all",
    rslora: bool = False,
    dora: bool = False,
) -> PeftModel:
    """Freeze ``model`` and add a LoRA adapter (Hu et al. 2021, arXiv 2106.09685).

    Args:
        model: Base model.
        rank: Rank r of the update B A.
        alpha: Scale; the update is multiplied by alpha / r.
        dropout: Dropout on the adapter's input during training.
        target: ``"all"`` for every linear layer but the output head, or names of modules, or of parameters where a
            model keeps its experts in one (``gate_up_proj``). Routers of experts that call themselves linear layers
            and return something else are none, nor is what Mamba's kernels fuse. peft counts experts that were linear
            layers in older versions of transformers among ``"all"`` (Mixtral, Qwen3-MoE, DeepSeek-V3, ...).
        rslora: Multiply the update by alpha / sqrt(r) (rsLoRA, arXiv 2312.03732).
        dora: Learn the norm of each output's weights apart from their direction (DoRA, arXiv 2402.09353).

    Raises:
        ModelError: No module of the model has one of the names, or dropout or DoRA is wanted where experts are one
            parameter, which have neither.
    """
    names = [target] if isinstance(target, str) else list(target)
    stacked = [] if target == "all" else [name for name in names if _is_parameter(model, name)]
    linear = {name.rsplit(".", 1)[-1]: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        use_rslora=rslora,
        use_dora=dora,
        target_modules="all-linear" if target == "all" else [name for name in names if name not in stacked],
        target_parameters=stacked or None,
        exclude_modules=_not_for_lora(model) if target == "all" else None,
        task_type="CAUSAL_LM",
        # GPT-2 keeps its linear layers transposed, as Conv1D.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with pattern_warnings_off():
            adapted: PeftModel = get_peft_model(model, config)
            return adapted
    except ValueError as error:
        raise _unfit(model, target, linear, str(error)) from error


@contextmanager
def pattern_warnings_off() -> Iterator[None]:
    """Keep peft from saying that the ranks which it gives to experts match no module: they match parameters."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield


def _unfit(
    model: PreTrainedModel, target: str | Sequence[str], linear: Mapping[str, nn.Module], cause: str
) -> ModelError:
    """The error for what cannot be adapted as it is asked for."""
    kind = type(model).__name__
    if "ParamWrapper" not in cause:
        return ModelError(
            f"lora_target {target!r} fits no module of {kind}: {cause}",
            hint=f"linear layers here: {', '.join(sorted(linear))}; or lora_target: all",
        )
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    others = sorted(name for name, part in linear.items() if part is not head)
    return ModelError(
        f"lora_target {target!r} means the experts of {kind}, too, which are one parameter a layer: {cause}",
        hint=f"lora_dropout: 0 and use_dora: false; or without experts, lora_target: {','.join(others)}",
    )


def _is_parameter(model: nn.Module, name: str) -> bool:
    """Whether a name is that of parameters of more than one dimension, and of no module."""
    if any(f".{path}".endswith(f".{name}") for path, _ in model.named_modules()):
        return False
    return any(f".{path}".endswith(f".{name}") and values.ndim > 1 for path, values in model.named_parameters())


def _not_for_lora(model: nn.Module) -> list[str] | None:
    """Names of linear layers that LoRA cannot adapt, by what they are or by how the model uses them."""
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and type(module).forward is not nn.Linear.forward
        and "router" in type(module).__name__.lower()  # these return a tuple
    ]
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return [*names, *(FUSED if kind in FUSING else [])] or None


def save_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write adapter (or full model) and tokenizer files into ``directory``, each file atomically.

    Other files of the directory stay. ``weights`` are those of a sharded model
    (:func:`dataflex.models.sharding.whole_weights`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    with atomic_directory(directory / ".model") as staged, library_bars():
        write_model(model, staged, weights)
        tokenizer.save_pretrained(staged)
        (staged / "README.md").unlink(missing_ok=True)
    staged = directory / ".model"
    for file in sorted(staged.iterdir()):
        file.replace(directory / file.name)
    staged.rmdir()
    fsync(directory)


def write_model(model: nn.Module, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Adapter or full model, in the form that peft or transformers give it, with these weights in place of its own."""
    given: dict[str, Any] = {} if weights is None else {"state_dict": dict(weights)}
    cast(PreTrainedModel, model).save_pretrained(directory, **given)


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters with ``requires_grad``, in ``named_parameters`` order: it fixes the parameter index.

    Raises:
        ModelError: Nothing is trainable.
    """
    found = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not found:
        raise ModelError(
            "the model has no trainable parameters", hint="add a LoRA adapter (dataflex.models.model.add_lora)"
        )
    return found


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the block in eval mode; train/eval mode of every module and all RNG states are restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({parameter.device.index for parameter in model.parameters() if parameter.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def recomputing_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers that may recompute in training (:func:`recomputing`)."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@contextmanager
def recomputing(layers: Sequence[GradientCheckpointingLayer]) -> Iterator[None]:
    """Gradient checkpointing inside the block also in eval mode, where transformers leaves it out.

    It is turned on for those of a model's :func:`recomputing_layers` that recompute in training, if that is the only
    use that they make of their ``training`` flag; the modules in them stay in eval mode.
    """
    chosen = [layer for layer in layers if not layer.training and _recomputes(layer)]
    for layer in chosen:
        layer.training = True
    try:
        yield
    finally:
        for layer in chosen:
            layer.training = False


def _recomputes(layer: GradientCheckpointingLayer) -> bool:
    """Whether the layer has non-reentrant checkpointing (the other kind allows no ``torch.autograd.grad``)."""
    if not layer.gradient_checkpointing:
        return False
    function: Any = layer._gradient_checkpointing_func
    return (
        getattr(function, "keywords", {}).get("use_reentrant") is False
        and "training" not in type(layer).forward.__code__.co_names
    )


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model below a distributed and a peft wrapper, or ``model`` itself."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def to_device(model: nn.Module, device: torch.device | str) -> nn.Module:
    """The model on a device; one of quantised weights stays where it was loaded."""
    return model if is_quantized(base_model(model)) else model.to(device)


def autocast_dtype(autocast: Autocast, device_type: str) -> torch.dtype | None:
    """The type that forward passes in that context compute in; None without mixed precision."""
    with autocast():
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Raise what other packages raise over a model's files as a ModelError that names the model.

    Args:
        what: What is loaded: ``model``, ``tokenizer``, ``adapter``.
        name: Folder or hub id.

    Raises:
        ModelError: It cannot be loaded, with the cause in one line.
    """
    hint = None
    if not Path(name).exists():
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        hint = f"there is no folder {name!r}"
        hint += " and HF_HUB_OFFLINE forbids the hub" if offline else "; as a hub id it could not be fetched"
    with foreign(ModelError, f"cannot load the {what} {name!r}", model_errors(), hint=hint):
        yield
