"""The facts of a run that :mod:`dataflex.training.sameness` compares, as JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from peft import PeftModel
from pydantic import BaseModel
from torch import nn

from dataflex.config import versions
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.templates import ChatTemplate
from dataflex.models.fingerprint import fingerprint, forward_settings, frozen_fingerprint
from dataflex.models.identity import file_digest
from dataflex.models.model import base_model
from dataflex.plugins.configurable import Configurable
from dataflex.training.sameness import FACTS, FREE
from dataflex.utils.messages import redact

if TYPE_CHECKING:
    from dataflex.curriculum.curriculum import Curriculum
    from dataflex.curriculum.schedule import Schedule
    from dataflex.mixers.domains import Domain
    from dataflex.training.arguments import TrainingArguments
    from dataflex.training.component import Component
    from dataflex.utils.distributed import Ranks

_ADAPTER = {
    "peft_type": "peft_type",
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target",
    "modules_to_save": "modules_to_save",
    "bias": "lora_bias",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "layers_to_transform": "layers_to_transform",
}
"""Settings of an adapter by peft's name, and how configurations call them."""


class Run(Protocol):
    """What the facts are read from; a :class:`dataflex.Trainer` is one."""

    args: TrainingArguments
    model: nn.Module
    train_dataset: TokenizedDataset
    eval_dataset: TokenizedDataset | None
    template: ChatTemplate
    component: Component
    curriculum: Curriculum
    ranks: Ranks
    schedule: Schedule
    total_steps: int
    global_batch: int


def run_facts(run: Run) -> dict[str, Any]:
    """All facts of a training run, as JSON."""
    return as_json(
        {
            **argument_facts(run.args),
            **model_facts(run.model),
            **data_facts(run.train_dataset, run.eval_dataset, run.template),
            **selector_facts(run.component.selector),
            **mixer_facts(run.component.mixer, run.curriculum),
            **weighter_facts(run.component.weighter),
            **common_facts(run.ranks.count),
            "schedule": asdict(run.schedule),
            "total_steps": run.total_steps,
            "global_batch": run.global_batch,
        }
    )


def argument_facts(args: TrainingArguments) -> dict[str, Any]:
    """The facts that stand in the arguments."""
    values = args.model_dump(mode="json", include={fact.key for fact in FACTS} & {*type(args).model_fields})
    return {**values, "precision": args.mixed_precision}


def places(args: TrainingArguments) -> dict[str, Any]:
    """The arguments that the processes of a run share without being facts of it."""
    found: dict[str, Any] = args.model_dump(mode="json", include={*FREE})
    return found


def model_facts(model: nn.Module) -> dict[str, Any]:
    """The facts of a model whose weights may have been trained by now: those of its frozen part, and its form."""
    base = base_model(model)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    trained = {name: tuple(tensor.shape) for name, tensor in model.named_parameters() if tensor.requires_grad}
    kinds = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in frozen})) or "none"
    name = getattr(base, "name_or_path", "") or type(base).__name__.removeprefix("FSDP")
    sizes = sum(tensor.numel() for tensor in frozen)
    values = sum(math.prod(shape) for shape in trained.values())
    return {
        "model": _noted(f"{name} ({sizes:,} frozen values, {kinds})", frozen_fingerprint(model)),
        "model_config": forward_settings(model),
        "adapter": _adapter(model),
        "trained": _noted(f"{len(trained)} tensors of {values:,} values", fingerprint(sorted(trained.items()))),
        "device": next(model.parameters()).device.type,
    }


def data_facts(
    training: TokenizedDataset, evaluation: TokenizedDataset | None, template: ChatTemplate
) -> dict[str, Any]:
    """The facts of the data."""
    digest = hashlib.sha256(template.source.encode()).hexdigest()
    return {
        "data": _dataset(training),
        "eval_data": None if evaluation is None else _dataset(evaluation),
        "template": _noted(template.name, digest),
    }


def selector_facts(selector: Configurable[Any] | None) -> dict[str, Any]:
    """The selector's name and parameters; secrets are replaced."""
    if selector is None:
        return {"selector": None, "selector_params": {}}
    return {"selector": selector.name, "selector_params": redact(_plain(selector.config))}


def mixer_facts(mixer: Configurable[Any] | None, curriculum: Curriculum | None) -> dict[str, Any]:
    """The mixer's name and parameters, the rows of its domains, and the proportions that the run begins with."""
    mixture = getattr(curriculum, "mixture", None)
    if mixer is None or mixture is None:
        return {"mixer": None, "mixer_params": {}, "mixture": {}}
    found = {"domains": _domains(mixture.domains), "initial": mixture.initial.tolist()}
    if mixture.measured_dataset is not None:
        found["measured"] = _dataset(mixture.measured_dataset)
    return {"mixer": mixer.name, "mixer_params": redact(_plain(mixer.config)), "mixture": found}


def weighter_facts(weighter: Configurable[Any] | None) -> dict[str, Any]:
    """The weighter's name and parameters."""
    if weighter is None:
        return {"weighter": None, "weighter_params": {}}
    return {"weighter": weighter.name, "weighter_params": redact(_plain(weighter.config))}


def common_facts(processes: int) -> dict[str, Any]:
    """The facts of the installation and the start."""
    return {"processes": processes, "versions": versions()}


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as JSON gives them back."""
    found: dict[str, Any] = json.loads(json.dumps(facts))
    return found


def _noted(shown: str, digest: str) -> dict[str, str]:
    return {"shown": shown, "digest": digest}


def _domains(domains: Sequence[Domain]) -> dict[str, str]:
    """Domains by their rows: a configuration that is written out may call a file by its whole path."""
    digest = hashlib.sha256()
    for domain in domains:
        digest.update(len(domain.rows).to_bytes(8) + domain.rows.tobytes())
    return _noted(", ".join(f"{domain.name} ({len(domain.rows):,})" for domain in domains), digest.hexdigest())


def _dataset(dataset: TokenizedDataset) -> dict[str, str]:
    report = dataset.report
    return _noted(f"{report.kept:,} rows of {report.tokens:,} tokens", dataset.fingerprint)


def _adapter(model: nn.Module) -> dict[str, Any]:
    if not isinstance(model, PeftModel):
        return {"peft_type": None}
    settings = model.active_peft_config.to_dict()
    return {own: _plain(settings[key]) for key, own in _ADAPTER.items() if key in settings}


def _plain(value: Any) -> Any:
    """A parameter out of what JSON knows: a file by its content, an object by its kind and parameters."""
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Configurable):
        return {"name": value.name, **_plain(value.config)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Path) and value.is_file():
        return _noted(str(value), file_digest(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # checkpoints are plain JSON
    if value is None or isinstance(value, str | int | float):
        return value
    return _kind(value)


def _kind(value: Any) -> str:
    """Where an object's code stands: its address in memory is another one each time."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
