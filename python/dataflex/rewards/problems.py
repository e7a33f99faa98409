"""What is wrong with the parameters of a reward backend, each with its place below the mapping that they stand in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.errors import DataflexError
from dataflex.plugins.configurable import ComponentConfig, one_line
from dataflex.plugins.registry import registry
from dataflex.rewards.metric import METRICS, MetricReward
from dataflex.rewards.resolve import resolve_reward
from dataflex.utils.messages import Path, nearest, shown

PARAMS = "reward_backend_params"
BACKEND = "reward_model_backend"


def reward_problems(params: Mapping[str, Any], default_backend: str) -> list[tuple[Path, str]]:
    """Problems of the keys ``reward``, ``reward_model_backend`` and ``reward_backend_params``.

    Args:
        params: The parameters of a selector, before they are validated.
        default_backend: The backend where none is named.
    """
    found = _unknown_entries(params.get(PARAMS))
    reward = params.get("reward")
    key = "reward" if reward else BACKEND
    spec = reward or params.get(BACKEND, default_backend)
    if isinstance(spec, str):
        below = params.get(PARAMS)
        inner = below.get(spec, {}) if isinstance(below, Mapping) else {}
        return [*found, *_of_named(spec, inner, (PARAMS, spec), (key,))]
    if isinstance(spec, Mapping) and isinstance(spec.get("name"), str):
        if set(spec) - {"name", "params"}:
            return [*found, ((key,), _refusal(spec, None))]
        return [*found, *_of_named(spec["name"], spec.get("params") or {}, (key, "params"), (key, "name"))]
    return [*found, *([((key,), _refusal(spec, None))] if isinstance(spec, Mapping) else [])]


def _of_named(name: str, params: Any, at: Path, named_at: Path) -> list[tuple[Path, str]]:
    """Problems of the parameters of a backend or metric; what is absent lies where the backend was named."""
    backends = registry().names("reward")
    if not isinstance(params, Mapping):
        return [(at, f"{_dotted(at)}: expected a mapping of parameters, got {shown(params)}")]
    metric = name not in backends and (name in METRICS or name.count(":") == 1)
    if name not in backends and not metric:
        return [(named_at, _refusal(name, params))]
    try:
        model: type[ComponentConfig] = (MetricReward if metric else registry().get("reward", name)).Config
    except DataflexError as error:
        return [(named_at, f"{_dotted(named_at)}: {one_line(error)}")]
    whole = {"metric": name, **params} if metric else params
    return [
        ((*at, *path) if _is_in(params, path) else named_at, f"{_dotted(at)}: {text}")
        for path, text in model.find_problems(whole)
    ]


def _refusal(spec: Any, params: Any) -> str:
    """What ``resolve_reward`` says to something that it refuses."""
    try:
        resolve_reward(spec, params)
    except DataflexError as error:
        return one_line(error)
    return f"reward: expected a name, {{name, params}} or a backend, got {shown(spec)}"


def _unknown_entries(params: Any) -> list[tuple[Path, str]]:
    """Entries of ``reward_backend_params`` that belong to nothing: a misspelt name would be passed over in silence."""
    known = [*registry().names("reward"), *METRICS]
    names = [name for name in params if isinstance(name, str)] if isinstance(params, Mapping) else []
    return [
        ((PARAMS, name), f"{PARAMS}: {name!r} is neither a reward backend nor a metric{nearest(name, known)}")
        for name in names
        if name not in known and ":" not in name
    ]


def _is_in(params: Any, path: Path) -> bool:
    for part in path:
        try:
            params = params[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)
