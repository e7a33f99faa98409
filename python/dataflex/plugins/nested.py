"""Parameters that name another component, as ``{name, params}``: what is wrong with them, and which are paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.errors import DataflexError
from dataflex.plugins.configurable import ComponentConfig, one_line
from dataflex.plugins.registry import Kind, registry
from dataflex.utils.messages import Path, nearest, shown


def component_problems(params: Mapping[str, Any], key: str, kind: Kind) -> list[tuple[Path, str]]:
    """Problems of the component that a parameter names: where each lies, and what is wrong.

    What is wrong with the mapping around name and params is for the model that holds it to say.

    Args:
        params: All parameters, before they are validated.
        key: The one that names a component; it may be absent.
        kind: What is named.
    """
    spec = params.get(key)
    name = spec.get("name") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(name, str):
        return []
    known = registry().names(kind)
    if name not in known:
        text = f"{key}.name: unknown {kind} {shown(name)}{nearest(name, known)}; known: {', '.join(known)}"
        return [((key, "name"), text)]
    inner = spec.get("params")
    if not isinstance(inner, Mapping | None):
        return []
    try:
        model: type[ComponentConfig] = registry().get(kind, name).Config
    except DataflexError as error:
        return [((key, "name"), f"{key}.name: {one_line(error)}")]
    return [
        (_place(inner or {}, path, key), f"{key}.params: {text}") for path, text in model.find_problems(inner or {})
    ]


def _place(params: Mapping[str, Any], path: Path, key: str) -> Path:
    """A parameter's place; what is absent lies where its component was named."""
    found: Any = params
    for part in path:
        try:
            found = found[part]
        except (KeyError, IndexError, TypeError):
            return (key, "name")
    return (key, "params", *path) if path else (key, "name")
