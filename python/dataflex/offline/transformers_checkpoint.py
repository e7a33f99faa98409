"""Checkpoints that transformers' Trainer (or TRL's) wrote: weights, Adam's moments by parameter name, learning rates.

Read are safetensors, JSON and ``optimizer.pt``, the latter with ``torch.load(weights_only=True)``; pickles
(``training_args.bin``, ``rng_state.pth``) are left alone. ``optimizer.pt`` numbers parameters in the order in which the
trainer put them into its groups: those with weight decay, then those without. The order is made again with
transformers' own ``get_decay_parameter_names``; sizes of groups and shapes of moments must then fit, or the state is
refused.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from dataflex.errors import CheckpointError
from dataflex.training.checkpoint import ADAPTER, WEIGHTS
from dataflex.utils.foreign import FILES, JSON, explain, foreign, safetensors_errors

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
OPTIMIZER = "optimizer.pt"
WEIGHTS_INDEX = "model.safetensors.index.json"
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""What torch's Adam and AdamW keep of each parameter."""
_BITSANDBYTES = "__bnb_optimizer_quant_state__"
"""Where bitsandbytes' optimizers put all of a parameter's state but its step count."""
_SIGNS = {
    "exp_avg_sq_row": "Adafactor",
    "mu_product": "NAdam",
    "exp_inf": "Adamax",
    "max_exp_avg_sq": "Adam with amsgrad",
    "momentum_buffer": "SGD or Muon",
    "square_avg": "RMSprop",
    "sum": "Adagrad",
}
"""Entries that tell other optimizers of torch and transformers by."""
_SETTINGS = ("lr", "initial_lr", "betas", "eps", "weight_decay", "amsgrad", "maximize")

UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, struct.error)
"""What ``torch.load`` raises over files that it refuses or that are torn."""

Named = Sequence[tuple[str, nn.Parameter]]


class TransformersCheckpoint:
    """A checkpoint folder of transformers' Trainer.

    Attributes:
        directory: The folder.
        step: Optimizer steps taken (``global_step``).

    Raises:
        CheckpointError: Its ``trainer_state.json`` cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._state = _read_state(directory)
        self.step = int(self._state["global_step"])

    @staticmethod
    def is_one(directory: Path) -> bool:
        """Whether the folder has the state file of transformers' Trainer."""
        try:
            _read_state(directory)
        except CheckpointError:
            return False
        return True

    def load_weights(self, model: nn.Module) -> None:
        """Put the adapter, or the whole model, into ``model``.

        Raises:
            CheckpointError: There are none in safetensors form, or they are another model's; what differs is named.
        """
        if isinstance(model, PeftModel):
            self._load_adapter(model)
        else:
            self._load_model(model)

    def optimizer(self, model: nn.Module, *, needed: bool) -> torch.optim.AdamW | None:
        """AdamW over the trainable parameters, with moments, step counts, learning rates, betas and eps of the run.

        Args:
            model: With the weights of the checkpoint.
            needed: Raise where there is none; else say it and return None.

        Raises:
            CheckpointError: There is no ``optimizer.pt``, it is another optimizer's, or it does not fit the model.
        """
        if needed:
            return self._restored(model)
        try:
            return self._restored(model)
        except CheckpointError as error:
            logger.info("the optimizer of %s is not used: %s", self.directory, error.message)
            return None

    def _restored(self, model: nn.Module) -> torch.optim.AdamW:
        saved = self._optimizer_state()
        named = _ordered(model, saved["param_groups"], self.directory)
        numbers = [[int(number) for number in group["params"]] for group in saved["param_groups"]]
        groups = []
        for group, members in zip(saved["param_groups"], named, strict=True):
            trained = [parameter for _, parameter in members if parameter.requires_grad]
            if trained:
                groups.append({"params": trained, **{key: group[key] for key in _SETTINGS if key in group}})
        optimizer = torch.optim.AdamW(groups)
        for group_numbers, members in zip(numbers, named, strict=True):
            for number, (name, parameter) in zip(group_numbers, members, strict=True):
                if number in saved["state"] and parameter.requires_grad:
                    optimizer.state[parameter] = self._moments(saved["state"][number], name, parameter)
        return optimizer

    def logged_rate(self) -> float:
        """Mean learning rate of the logged steps in the epoch that the checkpoint lies in.

        Raises:
            CheckpointError: None was logged.
        """
        epoch = math.ceil(round(float(self._state.get("epoch") or 1), 6))
        rates = [
            float(entry["learning_rate"])
            for entry in self._state.get("log_history", [])
            if "learning_rate" in entry and math.ceil(round(float(entry.get("epoch", 0)), 6)) == epoch
        ]
        if not rates:
            raise CheckpointError(
                f"{self.directory}: no learning rate was logged in epoch {epoch}",
                hint="pass learning_rates, one a checkpoint",
            )
        return fmean(rates)

    def _load_adapter(self, model: PeftModel) -> None:
        if not (self.directory / ADAPTER).exists():
            raise CheckpointError(
                f"{self.directory} holds no {ADAPTER}, and the model has an adapter",
                hint="pickled weights are not read; a run that trained all parameters: pass the model without adapter",
            )
        tensors = _tensors(self.directory / ADAPTER)
        expected = get_peft_model_state_dict(model, save_embedding_layers=False)
        extra = {
            name: tensors[name] for name in tensors.keys() - expected.keys() if ".embed" in name or "lm_head" in name
        }
        _compare(self.directory, {k: v for k, v in tensors.items() if k not in extra}, expected)
        outcome: Any = set_peft_model_state_dict(model, tensors)
        if outcome.unexpected_keys:
            raise CheckpointError(f"{self.directory} holds another adapter: it has {outcome.unexpected_keys[:3]} ...")

    def _load_model(self, model: nn.Module) -> None:
        tensors: dict[str, Tensor] = {}
        for file in self._weight_files():
            tensors |= _tensors(file)
        own = model.state_dict()
        shared = {name for name, value in own.items() if name not in tensors and _is_tied(value, own, tensors)}
        _compare(self.directory, tensors, {name: value for name, value in own.items() if name not in shared})
        model.load_state_dict(tensors, strict=False)

    def _weight_files(self) -> list[Path]:
        index = self.directory / WEIGHTS_INDEX
        if index.exists():
            with foreign(CheckpointError, f"cannot read {index}", JSON):
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            return [self.directory / Path(name).name for name in names]
        if (self.directory / WEIGHTS).exists():
            return [self.directory / WEIGHTS]
        raise CheckpointError(
            f"{self.directory} holds no {WEIGHTS}",
            hint="pickled weights are not read; for an adapter, pass the model with its adapter (a PeftModel)",
        )

    def _optimizer_state(self) -> dict[str, Any]:
        """The content of ``optimizer.pt``, which must be that of torch's Adam or AdamW."""
        file = self.directory / OPTIMIZER
        if not file.exists():
            raise CheckpointError(
                f"{self.directory} holds no {OPTIMIZER}",
                hint="gradient_type: sgd needs none; checkpoints of save_only_model, DeepSpeed and FSDP have none",
            )
        try:
            with foreign(CheckpointError, f"cannot read {file}", FILES):
                saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            cause, _ = explain(error)
            raise CheckpointError(f"{file} is damaged, or holds more than tensors and numbers: {cause}") from error
        reason = _not_adam(saved)
        if reason:
            raise CheckpointError(f"{file}: {reason}", hint="train with optim: adamw_torch, or use gradient_type: sgd")
        return saved

    def _moments(self, state: Mapping[str, Any], name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
        shapes = {key: tuple(state[key].shape) for key in ("exp_avg", "exp_avg_sq")}
        if set(shapes.values()) != {tuple(parameter.shape)}:
            raise CheckpointError(
                f"{self.directory / OPTIMIZER}: the moments in the place of {name} have the shapes {shapes}, expected "
                f"{tuple(parameter.shape)}: the run trained other parameters, or in another order"
            )
        moments = {key: state[key].to(parameter.device) for key in shapes}
        # torch keeps the step count of AdamW as a float32 scalar on the CPU.
        return {"step": torch.tensor(float(state["step"]), dtype=torch.float32), **moments}


def _read_state(directory: Path) -> dict[str, Any]:
    file = directory / STATE
    with foreign(CheckpointError, f"cannot read {file}", JSON):
        state = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        raise CheckpointError(f"{file}: expected the state of transformers' Trainer, with a global_step")
    return state


def _tensors(file: Path) -> dict[str, Tensor]:
    with foreign(CheckpointError, f"cannot read {file}", safetensors_errors()):
        return load_file(file)


def _compare(directory: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless names and shapes are the same; a few of what differs are named."""
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    wrong += [f"{name} is not in the model" for name in sorted(found.keys() - expected.keys())]
    wrong += [
        f"{name} has shape {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in sorted(found.keys() & expected.keys())
        if found[name].shape != expected[name].shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(f"{directory} holds the weights of another model: {'; '.join(wrong[:3])}{more}")


def _is_tied(value: Tensor, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> bool:
    """Whether a tensor shares its memory with one that was saved: of tied weights one is written."""
    return any(own[name].data_ptr() == value.data_ptr() for name in saved if name in own)


def _not_adam(saved: Any) -> str | None:
    """Why the content of ``optimizer.pt`` is not that of Adam or AdamW as torch has them, or None."""
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= saved.keys():
        return "expected state and param_groups, as torch's optimizers write them"
    kept = {key for state in saved["state"].values() for key in state}
    if kept != MOMENTS:
        return (
            f"the state of {_owner(saved['state'], kept)}: it keeps {sorted(kept) or 'nothing'}, torch's Adam and "
            f"AdamW keep {sorted(MOMENTS)}"
        )
    for group in saved["param_groups"]:
        if not {"betas", "eps", "lr", "amsgrad"} <= group.keys() or group["amsgrad"] or group.get("maximize"):
            return "its groups are not those of Adam or AdamW without amsgrad and maximize"
    return None


def _owner(states: Mapping[Any, Mapping[str, Any]], kept: set[str]) -> str:
    """Whose state it is that is not Adam's, as far as its entries tell."""
    if _BITSANDBYTES in kept:
        quantised = any("qmap1" in state.get(_BITSANDBYTES, {}) for state in states.values())
        kinds = "adamw_8bit, paged_adamw_8bit" if quantised else "paged_adamw_32bit"
        return f"bitsandbytes in {8 if quantised else 32} bits ({kinds}, or LAMB, which keeps the same)"
    found = [owner for sign, owner in _SIGNS.items() if sign in kept]
    return found[0] if found else "another optimizer" if kept else "plain SGD"


def _ordered(model: nn.Module, groups: Sequence[Mapping[str, Any]], directory: Path) -> list[Named]:
    """Names and parameters of each group, in the order in which the optimizer numbers them."""
    from transformers import Trainer

    everything = list(model.named_parameters())
    trained = [(name, parameter) for name, parameter in everything if parameter.requires_grad]
    sizes = [len(group["params"]) for group in groups]
    if all("param_names" in group for group in groups):
        known = dict(everything)
        names = [list(group["param_names"]) for group in groups]
        missing = [name for part in names for name in part if name not in known]
        if missing:
            raise CheckpointError(f"{directory / OPTIMIZER} names parameters that the model lacks: {missing[:3]} ...")
        return [[(name, known[name]) for name in part] for part in names]
    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    split: list[Named] = [
        [(name, parameter) for name, parameter in trained if name in decayed],
        [(name, parameter) for name, parameter in trained if name not in decayed],
    ]
    for candidate in (split, [trained], [everything]):
        if [len(part) for part in candidate] == sizes:
            return list(candidate)
    raise CheckpointError(
        f"{directory / OPTIMIZER} has groups of {' and '.join(map(str, sizes))} parameters; the model trains "
        f"{len(trained)}, of which transformers decays {len(split[0])} and {len(split[1])} not",
        hint="pass the model as the run trained it: the same adapter, the same parameters frozen",
    )
