"""Reading a configuration: a YAML file and ``key=value`` overrides, with every problem reported at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from dataflex.config.checks import asks_component, find_problems
from dataflex.config.components import validate_component
from dataflex.config.deepspeed import conflicts
from dataflex.config.document import KeyPath, parse_yaml
from dataflex.config.fields import FileConfig, RunFields
from dataflex.config.known import ADVICE, LLAMA_FACTORY_KEYS, QUANTIZATION, RENAMED
from dataflex.config.near import NearConfig
from dataflex.config.origin import Origin
from dataflex.config.paths import read_text
from dataflex.config.schema import ExportConfig, RunConfig
from dataflex.errors import ConfigError, DataflexError
from dataflex.plugins.registry import registry
from dataflex.utils.home import home_path
from dataflex.utils.messages import (
    LITERAL_SECRET,
    explain,
    is_environment_name,
    is_secret,
    nearest,
    shown,
)

Source = str | Path | Mapping[str, Any]
ConfigT = TypeVar("ConfigT", bound=FileConfig)


def load_config(source: Source, overrides: Iterable[str] = (), *, check_component: bool = False) -> RunConfig:
    """Read the configuration of a run.

    Args:
        source: A YAML file, or its content as a mapping.
        overrides: ``key=value`` texts that replace keys of the file; the value is YAML, and
            ``component_params.a.b=value`` reaches inside.
        check_component: Validate the component's parameters too, which imports it.

    Raises:
        ConfigError: Every problem at once, each with ``file:line`` or its override.
    """
    draft = _read(source, overrides)
    origin = _set_aside_unknown_keys(draft, RunConfig)
    broken = _check_values(draft, RunFields, origin)
    partial = _partial(draft.values, broken, origin)
    for key, text in find_problems(partial, broken):
        draft.problems.append(origin.about(key, text))
    if not broken & {"component_name", "component_params", "components_cfg_file", "train_type"}:
        draft.problems.extend(_component_problems(partial, check_component))
    if "eval_metric" not in broken:
        draft.problems.extend(_metric_problems(partial))
    draft.problems.extend(_path_problems(partial, broken))
    if not broken & {"deepspeed", "optim"}:
        draft.problems.extend(_deepspeed_problems(partial))
    if not broken & {"fsdp", "fsdp_config"}:
        draft.problems.extend(_fsdp_problems(partial))
    if draft.problems:
        raise ConfigError(origin.in_order(draft.problems))
    return _built(RunConfig, draft, origin)


def load_export_config(source: Source, overrides: Iterable[str] = ()) -> ExportConfig:
    """Read the configuration of an export (merge an adapter into its base model).

    Raises:
        ConfigError: Every problem at once, each with ``file:line`` or its override.
    """
    return _load_plain(ExportConfig, source, overrides)


def load_near_config(source: Source, overrides: Iterable[str] = ()) -> NearConfig:
    """Read the configuration of NEAR's offline step (the nearest candidates of each query).

    Raises:
        ConfigError: Every problem at once, each with ``file:line`` or its override.
    """
    return _load_plain(NearConfig, source, overrides)


def _load_plain(model: type[ConfigT], source: Source, overrides: Iterable[str]) -> ConfigT:
    """Read a configuration whose keys know nothing of each other."""
    draft = _read(source, overrides)
    origin = _set_aside_unknown_keys(draft, model)
    _check_values(draft, model, origin)
    if draft.problems:
        raise ConfigError(origin.in_order(draft.problems))
    return _built(model, draft, origin)


@dataclass
class _Draft:
    """Values on their way into a model."""

    name: str = ""
    folder: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, str] = field(default_factory=dict)
    notes: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def set(self, path: list[str], value: Any, places: Mapping[KeyPath, str], notes: Mapping[KeyPath, str]) -> None:
        """Put an override at ``path``, making the mappings on the way."""
        target = self.values
        for key in path[:-1]:
            if not isinstance(target.get(key), dict):
                target[key] = {}
            target = target[key]
        target[path[-1]] = value
        start = tuple(path)
        self.places = {found: at for found, at in self.places.items() if found[: len(start)] != start}
        self.places.update({(*start, *found): at for found, at in places.items()})
        self.notes = {found: note for found, note in self.notes.items() if found[: len(start)] != start}
        self.notes.update({(*start, *found): note for found, note in notes.items()})


def _read(source: Source, overrides: Iterable[str]) -> _Draft:
    draft = _Draft()
    if isinstance(source, Mapping):
        draft.values = {str(key): value for key, value in copy.deepcopy(dict(source)).items()}
    else:
        _read_file(home_path(source), draft)
    for text in overrides:
        _read_override(text, draft)
    return draft


def _read_file(file: Path, draft: _Draft) -> None:
    document = parse_yaml(read_text(file), lambda line: f"{file}:{line}")
    draft.name, draft.folder = str(file), file.absolute().parent
    draft.places, draft.problems, draft.notes = document.places, document.problems, document.notes
    if isinstance(document.value, dict):
        draft.values = document.value
    elif document.value is not None:
        draft.problems.append(f"{file}: expected a mapping of keys to values, got {shown(document.value)}")
    if document.problems and not draft.values:  # nothing could be read: complaints about missing keys would mislead
        raise ConfigError(document.problems)


def _read_override(text: str, draft: _Draft) -> None:
    key, equals, value = text.partition("=")
    key = key.strip()
    path = key.split(".")
    if not equals or not all(path):
        draft.problems.append(f"override {shown(text)}: expected key=value")
        return
    place = f"override {key}={_plain(value, path[-1])}"
    document = parse_yaml(value, lambda _: place)
    draft.problems.extend(document.problems)
    inside = path if path[0] == "component_params" else [key]
    draft.set(inside, document.value, {(): place, **document.places}, document.notes)


def _plain(value: str, key: str) -> str:
    """An override's value as it was typed, without quotes around it."""
    text = shown(value, key)
    return text[1:-1] if text[:1] in "'\"" and text[-1:] == text[:1] else text


def _set_aside_unknown_keys(draft: _Draft, model: type[FileConfig]) -> Origin:
    """Take out of the draft what the model does not know: problems, and known keys that have no effect."""
    ignored: dict[str, str] = {}
    origin = Origin(draft.name, draft.folder, draft.places, ignored, draft.notes)
    for key in [key for key in draft.values if key not in model.model_fields]:
        value = draft.values.pop(key)
        if key not in LLAMA_FACTORY_KEYS | RunConfig.model_fields.keys():
            renamed = RENAMED.get(key)
            near = f"; did you mean {renamed!r}?" if renamed in model.model_fields else nearest(key, model.model_fields)
            draft.problems.append(origin.at(f"unknown key {shown(key)}{near}", key))
        elif is_secret(key) and value is not None and not is_environment_name(value):
            draft.problems.append(origin.about(key, LITERAL_SECRET))
        elif key in QUANTIZATION and value not in (None, False) and _would_act(key, model):
            text = f"{QUANTIZATION[key]} is not supported; remove the key, to go on with the weights as they are"
            draft.problems.append(origin.about(key, text))
        else:
            advice = f" ({ADVICE[key]})" if key in ADVICE else ""
            ignored[key] = origin.about(key, f"dataflex does not act on this LLaMA-Factory key{advice}")
    return origin


def _would_act(key: str, model: type[FileConfig]) -> bool:
    """Whether LLaMA-Factory acts on a key in this kind of file: an export's keys may stand in a run's."""
    return model is ExportConfig or not key.startswith("export_")


def _check_values(draft: _Draft, model: type[FileConfig], origin: Origin) -> frozenset[str]:
    """Note every value that its field refuses; returns the keys that have no valid value."""
    try:
        model.model_validate(draft.values)
    except ValidationError as error:
        problems = error.errors()
    else:
        return frozenset()
    draft.problems.extend(origin.at(explain(problem), *problem["loc"]) for problem in problems)
    return frozenset(str(problem["loc"][0]) for problem in problems)


def _partial(values: Mapping[str, Any], broken: frozenset[str], origin: Origin) -> RunConfig:
    """A run of the valid values alone, not cross-checked; required ones that are missing have a stand-in."""
    required = {key: "?" for key, info in RunFields.model_fields.items() if info.is_required() and key in broken}
    valid = {key: value for key, value in values.items() if key not in broken}
    fields = RunFields.model_validate(required | valid)
    config = RunConfig.model_construct(fields.model_fields_set, **fields.__dict__)
    config._origin = origin
    return config


def _component_problems(config: RunConfig, check: bool) -> list[str]:
    if config.component_name is None or not asks_component(config):
        return []
    try:
        spec = config.component()
        if not check:
            return []
        component = validate_component(spec)
    except ConfigError as error:
        return [f"{line} ({error.hint})" if error.hint else line for line in error.problems]
    except DataflexError as error:
        return [config.origin.about("component_name", str(error))]
    if getattr(component, "needs_eval_dataset", False) and not config.has_eval_data:
        verb = "weighs" if spec.kind == "weighter" else "selects"
        text = f"{spec.name} {verb} for an evaluation set; set eval_dataset or val_size"
        return [config.origin.about("component_name", text)]
    return []


def _metric_problems(config: RunConfig) -> list[str]:
    if config.eval_metric is None:
        return []
    model = registry().get("reward", "metric").Config
    try:
        model.model_validate(config.eval_metric)
    except ValidationError as error:
        return [
            config.origin.at(f"eval_metric: {explain(problem, model.model_fields)}", "eval_metric", *problem["loc"])
            for problem in error.errors()
        ]
    return []


def _deepspeed_problems(config: RunConfig) -> list[str]:
    try:
        settings = config.deepspeed_settings()
    except ConfigError as error:
        return [config.origin.about("deepspeed", problem) for problem in error.problems]
    found = conflicts(settings, fp16=config.fp16, optim=config.optim, quantization=config.quantization_bit)
    return [config.origin.about(key, problem) for key, problem in found]


def _fsdp_problems(config: RunConfig) -> list[str]:
    try:
        config.fsdp_settings()
    except ConfigError as error:
        key = "fsdp" if config.fsdp_config is None else "fsdp_config"
        return [config.origin.about(key, problem) for problem in error.problems]
    return []


def _path_problems(config: RunConfig, broken: frozenset[str]) -> list[str]:
    problems = []
    for key in ("model_name_or_path", "adapter_name_or_path"):
        value = getattr(config, key)
        if value is None or key in broken:
            continue
        try:
            config.locate(value)
        except ConfigError as error:
            problems.append(config.origin.about(key, error.message))
    return problems


def _built(model: type[ConfigT], draft: _Draft, origin: Origin) -> ConfigT:
    config = model.model_validate(draft.values)
    config._origin = origin
    return config
