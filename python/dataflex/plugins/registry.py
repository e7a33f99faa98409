"""Discovery of plugins and the registry of components.

Built-in components and those of third parties take the same road: a module with hook implementations, named by an
entry point in the group ``dataflex``. Every plugin is loaded on its own: one that fails is listed with its
traceback and changes nothing else. A component is imported when it is first used, and then checked.

A plugin may say which version of the hooks it was written for (``dataflex_hook_api = 1`` beside its hooks); one for
another version is not loaded.

``DATAFLEX_LOAD_PLUGINS`` limits loading: unset loads all, a comma-separated list loads those distributions or
entry points only, an empty value loads none.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from typing import Any, Literal

import pluggy

from dataflex.errors import PluginError
from dataflex.plugins import hookspecs

logger = logging.getLogger(__name__)

Kind = Literal["selector", "mixer", "weighter", "reward", "projection", "dataset_format"]

KINDS: dict[Kind, tuple[str, str]] = {
    "selector": ("register_selectors", "dataflex.selectors.base:Selector"),
    "mixer": ("register_mixers", "dataflex.mixers.base:Mixer"),
    "weighter": ("register_weighters", "dataflex.weighters.base:Weighter"),
    "reward": ("register_reward_backends", "dataflex.rewards.base:RewardBackend"),
    "projection": ("register_projections", "dataflex.projection.projector:ProjectionKind"),
    "dataset_format": ("register_dataset_formats", "dataflex.data.formats:DatasetFormat"),
}
"""Per kind of component: the hook that registers it and the base class that it must have."""

BUILTIN = "dataflex-sdk"


@dataclass(frozen=True, slots=True)
class Component:
    """A registered component: where it comes from and what to import."""

    kind: Kind
    name: str
    target: str
    summary: str
    plugin: str

    def load(self) -> type[Any]:
        """Import the class and check that it can be built.

        Raises:
            PluginError: The import fails, or the class has the wrong base or lacks methods.
        """
        try:
            loaded = _import_target(self.target)
        except Exception as error:
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.plugin} cannot be imported from {self.target!r}: "
                f"{type(error).__name__}: {error}",
                hint=getattr(error, "hint", None) or f"reinstall {self.plugin} or report this to its authors",
            ) from error
        base = _import_target(KINDS[self.kind][1])
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.plugin}: {self.target} is {loaded!r}, "
                f"expected a subclass of {base.__module__}.{base.__qualname__}"
            )
        if isabstract(loaded):
            missing = ", ".join(
                name for name in dir(loaded) if getattr(getattr(loaded, name, None), "__isabstractmethod__", False)
            )
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.plugin}: {self.target} does not implement {missing}",
                hint=f"the methods that {base.__qualname__} and its subclasses leave open",
            )
        return loaded


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A plugin that was found, loaded or not."""

    name: str
    distribution: str
    version: str
    error: str | None = None


@dataclass
class Registry:
    """All components that were registered, and what could not be."""

    manager: pluggy.PluginManager
    plugins: list[PluginInfo] = field(default_factory=list)
    components: dict[tuple[Kind, str], Component] = field(default_factory=dict)

    def names(self, kind: Kind) -> list[str]:
        """Names of one kind, sorted."""
        return sorted(name for found, name in self.components if found == kind)

    def get(self, kind: Kind, name: str) -> type[Any]:
        """Import the component ``name``.

        Raises:
            PluginError: Unknown name (with the nearest one), failing import or wrong base class.
        """
        return self.find(kind, name).load()

    def find(self, kind: Kind, name: str) -> Component:
        """The registered component ``name`` without importing it."""
        component = self.components.get((kind, name))
        if component is not None:
            return component
        names = self.names(kind)
        from difflib import get_close_matches  # not needed for a list of commands

        near = get_close_matches(name, names, n=1)
        broken = [plugin.name for plugin in self.plugins if plugin.error]
        hint = f"did you mean {near[0]!r}?" if near else None
        if broken:
            hint = f"{hint or ''} Plugins that failed to load: {', '.join(broken)}; see `dataflex plugins`.".strip()
        raise PluginError(f"unknown {kind.replace('_', ' ')} {name!r}; known: {', '.join(names) or 'none'}", hint=hint)

    def hooks(self, info: PluginInfo) -> list[str]:
        """Names of the hooks that a plugin implements, sorted; none if it could not be loaded."""
        plugin = self.manager.get_plugin(_key(info))
        callers = None if plugin is None else self.manager.get_hookcallers(plugin)
        return sorted(caller.name for caller in callers or ())

    def add(self, plugin: object, info: PluginInfo) -> None:
        """Register a plugin object and collect its components; a failure is recorded, not raised."""
        name = None
        try:
            _check_version(plugin, info)
            name = self.manager.register(plugin, name=_key(info))
            self.manager.check_pending()
            if not self.manager.get_hookcallers(plugin):
                raise PluginError(f"{info.name}: {plugin!r} implements no hook; decorate functions with hookimpl")
            found = [component for kind in KINDS for component in self._collect(plugin, kind, info)]
            self._check_collisions(found)
        except (Exception, SystemExit) as error:
            if name is not None:
                self.manager.unregister(name=name)
            detail = error.message if isinstance(error, PluginError) else traceback.format_exc()
            self.plugins.append(replace(info, error=detail))
            return
        self.components.update({(component.kind, component.name): component for component in found})
        self.plugins.append(info)

    def call(self, hook: str, **arguments: Any) -> None:
        """Call one hook of every plugin, each on its own.

        One that raises is logged, recorded and left alone from then on; the others go on.
        """
        for info in [info for info in self.plugins if info.error is None]:
            plugin = self.manager.get_plugin(_key(info))
            try:
                self._call_one(plugin, hook, **arguments)
            except (Exception, SystemExit) as error:
                logger.warning("plugin %s: %s failed: %s: %s", info.name, hook, type(error).__name__, error)
                self.plugins[self.plugins.index(info)] = replace(info, error=traceback.format_exc())

    def _call_one(self, plugin: object, hook: str, **arguments: Any) -> None:
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        self.manager.subset_hook_caller(hook, remove_plugins=others)(**arguments)

    def _collect(self, plugin: object, kind: Kind, info: PluginInfo) -> list[Component]:
        found: list[Component] = []

        def register(name: str, target: str, *, summary: str = "") -> None:
            if not isinstance(name, str) or not name:
                raise PluginError(f"{info.name}: {kind} {name!r}: a name is text that is not empty")
            if not isinstance(target, str) or target.count(":") != 1:
                raise PluginError(f"{info.name}: {kind} {name!r}: target {target!r} is not 'package.module:Class'")
            found.append(Component(kind, name, target, summary, info.distribution))

        self._call_one(plugin, KINDS[kind][0], register=register)
        return found

    def _check_collisions(self, found: list[Component]) -> None:
        taken = dict(self.components)
        for component in found:
            other = taken.setdefault((component.kind, component.name), component)
            if other is not component:
                raise PluginError(
                    f"{component.kind} {component.name!r} is registered by {other.plugin} ({other.target}) and again "
                    f"by {component.plugin} ({component.target}); the first one stays"
                )


@lru_cache(maxsize=1)
def registry() -> Registry:
    """The registry of this process: built-ins first, then every installed plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    found = Registry(manager)
    version = _version(BUILTIN)
    found.add(_import_module("dataflex.plugins.builtins"), PluginInfo("builtins", BUILTIN, version))
    for entry in sorted(entry_points(group=hookspecs.PROJECT_NAME), key=lambda entry: (entry.name, entry.value)):
        if _wanted(entry):
            _load_entry_point(found, entry)
    return found


def _load_entry_point(found: Registry, entry: EntryPoint) -> None:
    distribution = entry.dist.name if entry.dist else entry.value
    info = PluginInfo(entry.name, distribution, entry.dist.version if entry.dist else "unknown")
    try:
        plugin = entry.load()
    except (Exception, SystemExit):
        found.plugins.append(replace(info, error=traceback.format_exc()))
        return
    found.add(plugin, info)


def _key(info: PluginInfo) -> str:
    """Name of a plugin in the manager: two distributions may use one entry point name."""
    return f"{info.distribution}:{info.name}"


def _check_version(plugin: object, info: PluginInfo) -> None:
    wanted = getattr(plugin, "dataflex_hook_api", hookspecs.HOOK_API_VERSION)
    if wanted != hookspecs.HOOK_API_VERSION:
        raise PluginError(
            f"{info.name}: written for version {wanted!r} of the hooks (dataflex_hook_api), this dataflex has version "
            f"{hookspecs.HOOK_API_VERSION}: update {info.distribution} or dataflex-sdk, whichever is older"
        )


def _wanted(entry: EntryPoint) -> bool:
    limit = os.environ.get("DATAFLEX_LOAD_PLUGINS")
    if limit is None:
        return True
    allowed = {_normalised(part) for part in limit.split(",") if part.strip()}
    return bool({_normalised(name) for name in (entry.name, entry.dist.name if entry.dist else "")} & allowed)


def _normalised(name: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _import_module(name: str) -> object:
    return importlib.import_module(name)


def _import_target(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def callable_from(target: str) -> Callable[..., Any]:
    """Import ``package.module:function``.

    Raises:
        PluginError: The target is malformed, cannot be imported or is not callable.
    """
    if target.count(":") != 1:
        raise PluginError(f"{target!r} is not of the form 'package.module:function'")
    try:
        function = _import_target(target)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{target!r} cannot be imported: {error}", hint="is its package on the path?") from error
    if not callable(function):
        raise PluginError(f"{target!r} is {function!r}, expected a function")
    return function  # type: ignore[no-any-return]
