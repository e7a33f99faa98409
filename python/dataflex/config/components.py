"""The selector, mixer or weighter of a run: its entry in a components file, merged with the run's own parameters.

Two structures are accepted, side by side if need be::

    selectors:                      nice:
      nice:                           name: nice
        name: nice                    params: {...}
        params: {...}

``name`` is the registered component (the key of the entry if left out), so that one may have several entries. Mixers
stand under ``mixers``, weighters under ``weighters``.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from dataflex.config.document import Document, KeyPath, parse_yaml
from dataflex.config.fields import RunFields
from dataflex.config.origin import closest_place
from dataflex.config.paths import absolute_if_found, candidates, read_text, resolve_path
from dataflex.config.values import COMPONENT_KINDS, ComponentKind
from dataflex.errors import ConfigError, PluginError
from dataflex.plugins.configurable import ComponentConfig
from dataflex.plugins.registry import Kind, registry
from dataflex.utils.messages import LITERAL_SECRET, literal_secrets, nearest, shown

DOCUMENTED_FILE = ("dataflex", "configs", "components.yaml")
"""How the path of the file ends in DataFlex's documentation (``src/dataflex/configs/components.yaml``), and in the
configurations of runs that were made before the file stood in ``config/``; the packaged one stands in for both."""

SECTIONS: dict[ComponentKind, str] = {"selector": "selectors", "mixer": "mixers", "weighter": "weighters"}
"""The top-level section of each kind; what stands in none may be of any."""


@dataclass(frozen=True)
class ComponentSpec:
    """A component with its parameters, before they are validated.

    Attributes:
        kind: What it is.
        name: Registered name of the component.
        params: Its parameters: those of the components file under those of the run.
        where: Position of its entry.
        places: Per path below ``params``, where it was written.
        folders: Per parameter that is a path, the folder of the file that names it.
    """

    kind: ComponentKind
    name: str
    params: Mapping[str, Any]
    where: str
    places: Mapping[KeyPath, str]
    folders: Mapping[str, Path | None] = field(default_factory=dict)

    def at(self, text: str, path: KeyPath = ()) -> str:
        """``text`` behind the position of a parameter."""
        return f"{closest_place(self.places, path) or self.where}: {text}"


def packaged_file() -> Path:
    """The ``components.yaml`` that comes with dataflex."""
    return Path(str(importlib.resources.files("dataflex.config") / "components.yaml"))


def components_file(config: RunFields) -> tuple[Path | None, str | None]:
    """The components file of a run (None if it wants none) and a warning where another one stands in for it.

    Raises:
        ConfigError: The file does not exist.
    """
    configured = config.components_cfg_file
    if configured is False:
        return None, None
    if configured is None:
        return packaged_file(), None
    origin = config.origin
    try:
        return resolve_path(configured, origin.folder), None
    except ConfigError as error:
        if PurePosixPath(configured.replace("\\", "/")).parts[-3:] == DOCUMENTED_FILE:
            return packaged_file(), f"{configured} is not here; using the file that comes with dataflex"
        raise ConfigError(origin.about("components_cfg_file", error.message)) from error


def resolve_component(config: RunFields) -> ComponentSpec:
    """The component of a run, which is imported to learn which of its parameters are paths: those are made absolute.

    Raises:
        ConfigError: No such entry or component, or a malformed file: every problem of the file, with its line.
    """
    name, origin, kind = config.component_name, config.origin, COMPONENT_KINDS.get(config.train_type, "selector")
    if name is None:
        raise ConfigError(origin.about("component_name", f"the run names no {kind}"))
    file, _ = components_file(config)
    entries = _read_entries(file, kind) if file else {}
    registered = registry().names(kind)
    if name not in entries and name not in registered:
        known = sorted({*entries, *registered})
        text = f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        raise ConfigError(origin.about("component_name", text))
    entry = entries.get(name) or ComponentSpec(kind, name, {}, origin.place("component_name") or name, {})
    own_places = {path[1:]: place for path, place in origin.places.items() if path[0] == "component_params"}
    problems = [entry.at(f"{_dotted(path)}: {LITERAL_SECRET}", path) for path in literal_secrets(entry.params)]
    try:
        registry().find(kind, entry.name)
    except PluginError as error:
        problems.append(f"{entry.where}: {error}")
    if problems:
        raise ConfigError(problems)
    beside = origin.folder if file in (None, packaged_file()) else file.parent
    merged = merge(entry.params, config.component_params)
    own = config.component_params
    paths = merged.keys() & _path_parameters(entry.name, kind)
    folders = {key: origin.folder if key in own else beside for key in paths}
    found = {key: _located(merged[key], folder) for key, folder in folders.items()}
    found |= _nested_located(entry.name, merged, own, origin.folder, beside, kind)
    return ComponentSpec(kind, entry.name, merged | found, entry.where, {**entry.places, **own_places}, folders)


def _config_of(kind: Kind, name: object) -> type[ComponentConfig]:
    """The parameters of a component; none of one that cannot be imported, as validation will say."""
    try:
        config: type[ComponentConfig] = registry().get(kind, str(name)).Config
    except PluginError:
        return ComponentConfig
    return config


def _path_parameters(name: object, kind: Kind) -> set[str]:
    """Parameters of a component that are paths."""
    fields = _config_of(kind, name).model_fields
    return {key for key, info in fields.items() if Path in (info.annotation, *get_args(info.annotation))}


def _nested_located(
    name: object, params: Mapping[str, Any], own: Any, folder: Path | None, beside: Path | None, kind: Kind
) -> dict[str, Any]:
    """The components that parameters name, with their own paths made absolute.

    Args:
        name: Of the component whose parameters these are.
        params: Its parameters.
        own: Those of them that stand in the run's file, whose paths start at ``folder``; the others' at ``beside``.
        folder: Folder of the run's file.
        beside: Folder of the components file.
        kind: Of the component.
    """
    found: dict[str, Any] = {}
    for key, inner_kind in _config_of(kind, name).nested.items():
        spec = params.get(key)
        inner = spec.get("params") if isinstance(spec, Mapping) else None
        if not isinstance(spec, Mapping) or not isinstance(inner, Mapping):
            continue
        written = _below(own, (key, "params")) or {}
        paths = {
            part: _located(inner[part], folder if part in written else beside)
            for part in inner.keys() & _path_parameters(spec.get("name"), inner_kind)
        }
        deeper = _nested_located(spec.get("name"), inner, written, folder, beside, inner_kind)
        found[key] = {**spec, "params": {**inner, **paths, **deeper}}
    return found


def _located(value: Any, folder: Path | None) -> Any:
    return absolute_if_found(str(value), folder) if isinstance(value, str | Path) else value


def validate_component(spec: ComponentSpec) -> type[Any]:
    """Import the component and validate its parameters.

    Returns:
        The component's class.

    Raises:
        ConfigError: Every wrong or unknown parameter, with the place where it was written.
        PluginError: The component cannot be imported.
    """
    component = registry().get(spec.kind, spec.name)
    problems = component.Config.find_problems(spec.params)
    if problems:
        raise ConfigError([spec.at(f"{text}{_also_sought(spec, path)}", path) for path, text in problems])
    return component


def surprising_values(config: RunFields) -> list[str]:
    """What to say about values of the run's components file that YAML reads otherwise than they look."""
    file, _ = components_file(config)
    if file is None or file == packaged_file():
        return []
    return list(parse_yaml(read_text(file), lambda line: f"{file}:{line}").notes.values())


def idle_parameters(config: RunFields) -> list[str]:
    """Parameters of the run itself (not of a components file) that have no effect because of others, with the reason.

    Nothing is said of parameters that are not valid: whoever builds the component says that.
    """
    try:
        spec = resolve_component(config)
        model = validate_component(spec).Config.model_validate(dict(spec.params))
    except (ConfigError, PluginError):
        return []
    packaged = _read_entries(packaged_file(), spec.kind).get(spec.name)
    fields = type(model).model_fields
    defaults: list[Mapping[str, Any]] = [packaged.params] if packaged else []
    defaults.append({name: info.get_default(call_default_factory=True) for name, info in fields.items()})
    own = config.component_params
    return [
        spec.at(f"component_params.{_dotted(path)}: {text}", path)
        for path, text in model.find_idle()
        if (value := _below(own, path)) is not None and all(value != _below(known, path) for known in defaults)
    ]


def _below(params: Any, path: KeyPath) -> Any:
    """What a path leads to; None if it leads nowhere."""
    for part in path:
        params = params.get(part) if isinstance(params, Mapping) else None
    return params


def _also_sought(spec: ComponentSpec, path: KeyPath) -> str:
    """The second place where a path was looked for, if it was in neither."""
    key = str(path[0]) if path else ""
    value, folder = spec.params.get(key), spec.folders.get(key)
    tried = candidates(value, folder) if isinstance(value, str | Path) and folder is not None else []
    return f" (looked for {tried[1]}, too)" if len(tried) > 1 else ""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _read_entries(file: Path, kind: ComponentKind) -> dict[str, ComponentSpec]:
    document = parse_yaml(read_text(file), lambda line: f"{file}:{line}")
    entries: dict[str, ComponentSpec] = {}
    for path, value in _find_entries(document, str(file), SECTIONS[kind]):
        place = document.places[path]
        key = str(path[-1])
        if key in entries:
            document.problems.append(f"{place}: {key!r} is defined twice (first at {entries[key].where})")
        elif (entry := _read_entry(kind, path, value, document)) is not None:
            entries[key] = entry
    if document.problems:
        raise ConfigError(document.problems)
    return entries


def _find_entries(document: Document, name: str, section: str) -> Iterator[tuple[KeyPath, Any]]:
    top = {} if document.value is None else document.value
    if not isinstance(top, dict):
        document.problems.append(f"{name}: expected a mapping of components, got {shown(top)}")
        return
    for key, value in top.items():
        if key == section and isinstance(value, dict | None):
            yield from (((key, entry), body) for entry, body in (value or {}).items())
        elif key == section or key not in SECTIONS.values():
            yield (key,), value


def _read_entry(kind: ComponentKind, path: KeyPath, value: Any, document: Document) -> ComponentSpec | None:
    place = document.places[path]
    if not isinstance(value, dict):
        document.problems.append(f"{place}: {path[-1]}: expected a mapping with name and params, got {shown(value)}")
        return None
    for key in value.keys() - {"name", "params"}:
        text = f"unknown key {key!r}{nearest(key, ('name', 'params'))}; a component has name and params"
        document.problems.append(f"{document.places[(*path, key)]}: {text}")
    name, params = value.get("name", path[-1]), value.get("params")
    if not isinstance(name, str) or not isinstance(params, dict | None):
        text = "expected name: text and params: a mapping"
        document.problems.append(f"{place}: {path[-1]}: {text}, got {shown(name)} and {shown(params)}")
        return None
    inside = (*path, "params")
    places = {
        found[len(inside) :]: at
        for found, at in document.places.items()
        if len(found) > len(inside) and found[: len(inside)] == inside
    }
    return ComponentSpec(kind, name, params or {}, place, places)
