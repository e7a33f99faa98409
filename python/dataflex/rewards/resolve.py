"""From what a configuration says to a reward backend."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from dataflex.errors import ConfigError, PluginError
from dataflex.plugins.registry import registry
from dataflex.rewards.base import RewardBackend
from dataflex.rewards.metric import METRICS, MetricReward


def resolve_reward(
    spec: str | Mapping[str, Any] | RewardBackend[Any] | Callable[..., Any], params: Mapping[str, Any] | None = None
) -> RewardBackend[Any]:
    """Build the reward backend that ``spec`` describes.

    Args:
        spec: A backend (returned as it is), the name of a backend or of a metric, a function of ``(prediction,
            reference, metadata)`` (a metric) or ``"package.module:function"``, or a mapping ``{"name": ..., "params":
            {...}}``. A backend's name goes before a metric's.
        params: Parameters of the backend, or of the metric; only with a name.

    Raises:
        ConfigError: Wrong parameters, or parameters in two places.
        PluginError: Neither a backend nor a metric has that name, or the backend cannot be imported.
    """
    if isinstance(spec, RewardBackend):
        _no_params(params, f"the {type(spec).__name__} that was passed")
        return spec
    if isinstance(spec, Mapping):
        if set(spec) - {"name", "params"} or not isinstance(spec.get("name"), str):
            raise ConfigError(f"reward: expected {{name: ..., params: {{...}}}}, got the keys {sorted(map(str, spec))}")
        _no_params(params, "a reward with its own params")
        return resolve_reward(spec["name"], spec.get("params"))
    if not isinstance(spec, str):
        return MetricReward.from_params({"metric": spec, **(params or {})})
    found = registry()
    if spec in found.names("reward"):
        backend: RewardBackend[Any] = found.get("reward", spec).from_params(dict(params or {}))
        return backend
    if spec in METRICS or spec.count(":") == 1:
        return MetricReward.from_params({"metric": spec, **(params or {})})
    raise _unknown(spec, found.names("reward"))


def _no_params(params: Mapping[str, Any] | None, what: str) -> None:
    if params:
        raise ConfigError(f"reward: {what} takes no further parameters, got {sorted(params)}")


def _unknown(spec: str, backends: list[str]) -> PluginError:
    near = difflib.get_close_matches(spec, [*backends, *METRICS], n=1)
    return PluginError(
        f"unknown reward {spec!r}; backends: {', '.join(backends) or 'none'}; metrics: {', '.join(METRICS)}",
        hint=f"did you mean {near[0]!r}?" if near else "a function is named package.module:function",
    )
