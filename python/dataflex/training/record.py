"""``config.yaml`` of a run from Python: what can be said about it in the keys of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from dataflex.config.provenance import yaml_text
from dataflex.config.values import COMPONENT_KINDS, MIXTURE_KEYS
from dataflex.curriculum.schedule import Schedule
from dataflex.training.arguments import TrainingArguments
from dataflex.training.component import Component
from dataflex.utils.files import write_text

FROM_PYTHON = (
    "dataflex run from Python, which was given its model and its data as objects:\n"
    "to repeat it with `dataflex train`, add dataset and eval_dataset, and model_name_or_path where it is missing"
)


def write_config(
    text: str | None, args: TrainingArguments, schedule: Schedule, component: Component, model: nn.Module
) -> None:
    """Write ``config.yaml``: the configuration that a run comes from, or what one from Python can say of itself."""
    write_text(args.output_dir / "config.yaml", text or python_config(args, schedule, component, model))


def python_config(args: TrainingArguments, schedule: Schedule, component: Component, model: nn.Module) -> str:
    """Arguments, schedule, the component's parameters, the base model's name and its LoRA settings, as YAML.

    A parameter that is an object (a function as the reward) stands there by its name.
    """
    values = args.model_dump(mode="json", exclude={"swanlab", "max_steps", "warmup_steps"})
    if component.mixer is None:
        values = {key: value for key, value in values.items() if key not in MIXTURE_KEYS}
    values |= _warmup(args, schedule)
    values |= {f"swanlab_{key}": value for key, value in args.swanlab.model_dump(mode="json").items()}
    steps = _steps(args, schedule, component)
    return yaml_text({**_model(model), **values, **_component(component), **steps}, FROM_PYTHON)


def _steps(args: TrainingArguments, schedule: Schedule, component: Component) -> dict[str, int]:
    """The keys of the schedule."""
    if component.found is None:
        return {"warmup_step": schedule.warmup_step}
    if component.weighter is not None:
        return {"warmup_step": schedule.warmup_step, "train_step": schedule.total_steps(args.num_train_epochs)}
    return asdict(schedule)


def _warmup(args: TrainingArguments, schedule: Schedule) -> dict[str, float]:
    """``warmup_steps`` as the share that configurations know: rounded up, as it is, it gives the same number of steps.

    More steps than the run has cannot be said so: the key stands there, and reading it warns that it has no effect.
    """
    steps, total = args.warmup_steps, schedule.total_steps(args.num_train_epochs)
    if steps is None:
        return {}
    return {"warmup_steps": steps} if steps > total else {"warmup_ratio": max(steps - 0.5, 0.0) / total}


def _component(component: Component) -> dict[str, Any]:
    from pydantic_core import to_jsonable_python

    found = component.found
    if found is None:
        return {"train_type": "static"}
    kind = "selector" if component.selector else "mixer" if component.mixer else "weighter"
    return {
        "train_type": next(name for name, wanted in COMPONENT_KINDS.items() if wanted == kind),
        "components_cfg_file": False,
        "component_name": found.name,
        "component_params": to_jsonable_python(found.config, fallback=_name),
    }


def _name(value: object) -> str:
    return f"{getattr(value, '__qualname__', type(value).__qualname__)} (an object from Python)"


def _model(model: nn.Module) -> dict[str, Any]:
    """The base model's name, where it was loaded by one, and the LoRA settings of the adapter in training."""
    found: dict[str, Any] = {}
    name = getattr(model, "name_or_path", None)
    if name:
        found["model_name_or_path"] = str(name)
    adapters = getattr(model, "peft_config", None)
    lora = adapters.get(getattr(model, "active_adapter", None)) if isinstance(adapters, Mapping) else None
    if lora is not None and hasattr(lora, "lora_alpha"):
        targets = lora.target_modules
        found["lora_rank"], found["lora_alpha"], found["lora_dropout"] = lora.r, lora.lora_alpha, lora.lora_dropout
        found["lora_target"] = targets if isinstance(targets, str) or targets is None else sorted(targets)
    return found
