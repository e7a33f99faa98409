"""Which weights are read: safetensors, never pickles, which may run code when they are opened.

Shapes are in a file's header, so that weights can be compared with a model before either takes memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dataflex.errors import DataflexError, ModelError
from dataflex.utils.foreign import JSON, foreign, safetensors_errors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Ends of names of files that torch pickles weights into."""
_CONVERT = (
    "load it where you trust it and save it again: save_pretrained(FOLDER) writes safetensors (transformers, peft)"
)


def require_safetensors(
    what: str, folder: Path, pattern: str = "*.safetensors", *, kind: type[DataflexError] = ModelError
) -> None:
    """See that a folder holds weights that are read.

    Args:
        what: Name of what is in it, for the message.
        folder: The folder.
        pattern: Its files of weights.
        kind: The error to raise.

    Raises:
        DataflexError: There are none, or pickled ones only.
    """
    if any(folder.glob(pattern)):
        return
    pickled = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickled:
        raise kind(
            f"{what}: its weights are pickled ({', '.join(pickled)}), which may run code when they are read; only "
            f"safetensors are ({pattern})",
            hint=_CONVERT,
        )
    raise kind(f"{what}: there are no weights in {folder} ({pattern})", hint="name the folder that they are in")


def refuse_pickles(what: str, folder: Path) -> None:
    """See that no part of a model in several folders (sentence-transformers) has pickled weights alone.

    Raises:
        ModelError: One has.
    """
    for place in [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and path.name[0] != ".")]:
        pickled = [file.name for file in place.iterdir() if file.suffix in PICKLES and file.name != "training_args.bin"]
        if pickled and not any(place.glob("*.safetensors")):
            require_safetensors(what, place)


def stored_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the meta device: types and shapes alone.

    Raises:
        ModelError: The file is damaged.
    """
    with foreign(ModelError, f"cannot read {file}", safetensors_errors()), safe_open(file, framework="pt") as opened:
        return {
            name: torch.empty(opened.get_slice(name).get_shape(), device="meta")  # without reading a value
            for name in opened.keys()  # noqa: SIM118  # not a dict
        }


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights.

    Raises:
        ModelError: The index is damaged, or names a file that is missing.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).exists() or not index.exists():
        return [file for file in [folder / WEIGHTS] if file.exists()]
    with foreign(ModelError, f"cannot read {index}", (*JSON, KeyError, TypeError, AttributeError)):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{len(missing)} of the {len(names)} files of weights that {index} names are missing: {missing[0]}, ...",
            hint="copy or download the model again",
        )
    return [folder / name for name in names]


def compare_shapes(what: str, folder: Path, own: Mapping[str, Tensor]) -> None:
    """See that stored weights have the shapes of the model that the configuration describes.

    Names that the model does not have are left out: transformers may convert them on loading.

    Args:
        what: Name of the model, for the message.
        folder: The model.
        own: Tensors of the model by name.

    Raises:
        ModelError: Shapes differ, or a file is damaged.
    """
    other = [
        (name, list(tensor.shape), list(own[name].shape))
        for file in weight_files(folder)
        for name, tensor in stored_tensors(file).items()
        if name in own and tensor.shape != own[name].shape
    ]
    if other:
        name, stored, described = other[0]
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise ModelError(
            f"{what}: its weights are not those that its config.json describes: {name} has shape {stored} in the "
            f"files, {described} by the configuration{more}",
            hint="take config.json and weights from the same model",
        )
