"""Checkpoints that survive a kill and hold no pickle.

A checkpoint is a folder ``checkpoint-STEP``: model and tokenizer files, ``optimizer.safetensors`` (moments by parameter
name), ``rng.safetensors``, ``state.json`` and, written last, ``manifest.json`` with the SHA-256 of every file. It is
built aside and renamed into place; one that does not match its manifest is passed over with a message.
"""

from __future__ import annotations

import json
import logging
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dataflex.errors import CheckpointError
from dataflex.models import optimizers
from dataflex.models.identity import file_digest
from dataflex.models.model import trainable_parameters, write_model
from dataflex.models.sharding import as_sharded, is_sharded, load_whole
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import atomic_directory, remove_folder
from dataflex.utils.foreign import JSON, foreign, model_errors
from dataflex.utils.progress import library_bars

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
RNG = "rng.safetensors"
ADAPTER = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"
_NAME = re.compile(PREFIX + "(0|[1-9][0-9]*)")


def save_checkpoint(
    directory: Path,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    state: Mapping[str, Any] | None = None,
    generators: Mapping[str, Tensor] | None = None,
    step: int | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint atomically.

    Args:
        directory: Final folder.
        model: Unwrapped model.
        tokenizer: Saved beside it.
        optimizer: Its moments are saved; None saves a model that cannot be resumed from.
        state: JSON-able state of the run.
        generators: :func:`random_states`; None for a model that cannot be resumed from.
        step: Noted in the manifest, for :func:`noted_step`.
        weights: Those of a sharded model (:func:`dataflex.models.sharding.whole_weights`).
    """
    with atomic_directory(directory) as staged, library_bars():
        write_model(model, staged, weights)
        tokenizer.save_pretrained(staged)
        if optimizer is not None:
            tensors, steps = _optimizer_state(model, optimizer)
            save_file(tensors, staged / OPTIMIZER)
            save_file(dict(generators or {}), staged / RNG)
            described = optimizers.describe(model, optimizer)
            whole = {**(state or {}), "optimizer_steps": steps, "optimizer": described, "python_rng": _python_rng()}
            (staged / STATE).write_text(json.dumps(whole, allow_nan=False), encoding="utf-8")
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        sums = {str(path.relative_to(staged)): file_digest(path) for path in files}
        (staged / MANIFEST).write_text(json.dumps({"step": step, "files": sums}, indent=2), encoding="utf-8")


def load_weights(directory: Path, model: nn.Module) -> None:
    """Load the adapter (or the full model) that :func:`save_checkpoint` wrote.

    Raises:
        CheckpointError: The folder holds no weights for this model.
    """
    file = directory / (ADAPTER if isinstance(model, PeftModel) else WEIGHTS)
    if is_sharded(model) and file.exists():
        load_whole(model, load_file(file))
    elif isinstance(model, PeftModel) and (directory / ADAPTER).exists():
        outcome: Any = set_peft_model_state_dict(model, load_file(directory / ADAPTER))
        if outcome.unexpected_keys:
            raise CheckpointError(f"{directory} holds another adapter: it has {outcome.unexpected_keys[:3]} ...")
    elif not isinstance(model, PeftModel) and (directory / WEIGHTS).exists():
        load_model(model, directory / WEIGHTS)
    else:
        raise CheckpointError(f"{directory} holds no weights for {type(model).__name__}")


def load_checkpoint(
    directory: Path, state: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> dict[str, Any]:
    """Restore weights, optimizer moments and this rank's random number generators.

    A rank that the checkpoint does not know (it was written by fewer processes) keeps the generators it has.

    Args:
        directory: The checkpoint.
        state: What :func:`resumable_state` read.
        model: Gets the weights.
        optimizer: Gets the moments; betas and epsilon are the run's own.
        ranks: This process among those of the run.

    Returns:
        What the run noted in the state.

    Raises:
        CheckpointError: The checkpoint is of another model, or its files do not hold what they should.
    """
    noted = dict(state)
    with foreign(CheckpointError, f"cannot restore {directory}", model_errors()):
        noted.pop("optimizer", None)
        noted.pop("adam", None)
        load_weights(directory, model)
        _restore_optimizer(model, optimizer, load_file(directory / OPTIMIZER), noted.pop("optimizer_steps"))
        _restore_rng(load_file(directory / RNG), noted.pop("python_rng"), ranks)
    return noted


def resumable_state(directory: Path) -> dict[str, Any]:
    """The run's state in a checkpoint that is to be resumed from.

    Raises:
        CheckpointError: The checkpoint is damaged, or was saved without optimizer state.
    """
    state = read_state(directory)
    if state is None:
        raise CheckpointError(f"{directory} was saved with save_only_model: it cannot be resumed from")
    return state


def read_state(directory: Path) -> dict[str, Any] | None:
    """The run's state in an intact checkpoint; None if it was saved with ``save_only_model``.

    Raises:
        CheckpointError: The folder is no checkpoint, or a damaged one.
    """
    problem = damage(directory)
    if problem:
        raise CheckpointError(f"{directory}: {problem}", hint="name a folder checkpoint-STEP that the trainer wrote")
    if not (directory / STATE).exists():
        return None
    with foreign(CheckpointError, f"cannot read the state of {directory}", JSON):
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict):
        raise CheckpointError(f"the state of {directory} is {type(state).__name__}, expected a mapping")
    return state


def load_optimizer(directory: Path, state: Mapping[str, Any] | None, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a checkpoint, with its state, settings and rates, over the trainable parameters of ``model``.

    Args:
        directory: The checkpoint.
        state: What :func:`read_state` read.
        model: The model that the checkpoint is of.

    Raises:
        CheckpointError: The checkpoint was saved without optimizer state, is of another model, or its files do not
            hold what they should.
    """
    if state is None:
        raise CheckpointError(
            f"{directory} was saved with save_only_model: it holds no optimizer state",
            hint="gradient_type: sgd needs none; or train again with save_only_model: false",
        )
    with foreign(CheckpointError, f"cannot restore the optimizer of {directory}", model_errors()):
        optimizer = optimizers.restore(model, _described(state, model))
        _restore_optimizer(model, optimizer, load_file(directory / OPTIMIZER), state["optimizer_steps"])
    return optimizer


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest intact checkpoint that can be resumed from; damaged ones are named and passed over."""
    for directory in reversed(checkpoints(output_dir)):
        problem = damage(directory)
        if problem:
            logger.warning("%s is passed over: %s", directory, problem)
        elif (directory / STATE).exists():
            return directory
    return None


def checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    steps = {path: step for path in output_dir.glob(f"{PREFIX}*") if (step := named_step(path)) is not None}
    return sorted(steps, key=steps.__getitem__)


def named_step(directory: Path) -> int | None:
    """The step that a checkpoint folder's name gives; None for what is no checkpoint folder."""
    found = _NAME.fullmatch(directory.name)
    return int(found[1]) if found and directory.is_dir() else None


def prune_checkpoints(output_dir: Path, limit: int | None, newest: Path) -> None:
    """Keep ``newest`` and the checkpoints before it, ``limit`` in all; later ones are of a run that was given up."""
    if limit is not None:
        found = checkpoints(output_dir)
        kept = found[: found.index(newest) + 1][-limit:]
        for directory in set(found) - set(kept):
            remove_folder(directory)


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        sums = _manifest(directory)["files"]
        for name, expected in sums.items():
            file = directory / name
            if not file.exists():
                return f"{name} is missing"
            with foreign(CheckpointError, f"{name} cannot be read"):
                digest = file_digest(file)
            if digest != expected:
                return f"{name} was altered or is torn"
    except CheckpointError as error:
        return error.message
    return None


def noted_step(directory: Path) -> int | None:
    """The step that :func:`save_checkpoint` noted."""
    step: int | None = _manifest(directory)["step"]
    return step


def _manifest(directory: Path) -> dict[str, Any]:
    """``step`` and ``files``, the digests by name.

    Raises:
        CheckpointError: It cannot be read, or holds something else.
    """
    file = directory / MANIFEST
    with foreign(CheckpointError, "its manifest cannot be read", JSON):
        found = json.loads(file.read_text(encoding="utf-8"))
    files = found.get("files") if isinstance(found, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(digest, str) for digest in files.values()):
        raise CheckpointError("its manifest lists no files with their digests")
    step = found.get("step")
    if not (step is None or type(step) is int):
        raise CheckpointError(f"its manifest gives the step as {step!r}")
    return {"step": step, "files": files}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors by ``parameter/entry`` and the step count of each parameter."""
    tensors: dict[str, Tensor] = {}
    steps: dict[str, float] = {}
    places = set()
    for name, parameter in trainable_parameters(model):
        for entry, value in optimizer.state.get(parameter, {}).items():
            if entry == "step":
                steps[name] = float(value)
            elif isinstance(value, Tensor):
                found = value.detach().cpu().contiguous()
                # Parameters may share a table (bitsandbytes' codes), which safetensors does not write twice.
                tensors[f"{name}/{entry}"] = found.clone() if found.data_ptr() in places else found
                places.add(found.data_ptr())
    return tensors, steps


def _described(state: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The optimizer's description; checkpoints of 0.1.0 have betas and eps of AdamW alone."""
    if "adam" not in state:
        found: Mapping[str, Any] = state["optimizer"]
        return found
    groups = [{"names": [name for name, _ in trainable_parameters(model)], "lr": 0.0}]
    return {"optim": "adamw_torch", "groups": groups, **state["adam"]}


def _restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], steps: dict[str, float]
) -> None:
    parameters = dict(trainable_parameters(model))
    unknown = sorted({*steps, *(key.rsplit("/", 1)[0] for key in tensors)} - set(parameters))
    if unknown:
        raise CheckpointError(f"the optimizer state names parameters that this model does not train: {unknown[:3]} ...")
    in_tensors = optimizers.KINDS[optimizers.name_of(optimizer)].tensor_steps
    for name, step in steps.items():
        # torch keeps the step count of AdamW as a float32 scalar on the CPU, others keep an integer.
        count = torch.tensor(step, dtype=torch.float32) if in_tensors else int(step)
        optimizer.state[parameters[name]]["step"] = count
    for key, value in tensors.items():
        name, entry = key.rsplit("/", 1)
        optimizer.state[parameters[name]][entry] = as_sharded(value, parameters[name])


def random_states(ranks: Ranks) -> dict[str, Tensor]:
    """State of torch's generators on every rank: ``cpu-RANK`` and ``cuda-RANK``, uint8."""
    states = {f"cpu-{rank}": state for rank, state in enumerate(ranks.gather_tensors(torch.get_rng_state()))}
    if torch.cuda.is_available():
        gathered = ranks.gather_tensors(torch.cuda.get_rng_state())
        states |= {f"cuda-{rank}": state for rank, state in enumerate(gathered)}
    return states


def _python_rng() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    # numpy's legacy global state: transformers and peft draw from it in places.
    kind, keys, position, has_gauss, cached = cast(tuple[str, Any, int, int, float], np.random.get_state())
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), position, has_gauss, cached],
    }


def _restore_rng(tensors: dict[str, Tensor], python: dict[str, Any], ranks: Ranks) -> None:
    if (state := tensors.get(f"cpu-{ranks.index}")) is not None:
        torch.set_rng_state(state)
    if torch.cuda.is_available() and (state := tensors.get(f"cuda-{ranks.index}")) is not None:
        torch.cuda.set_rng_state(state)
    version, words, gauss = python["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = python["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
