"""``dataflex plugins``: what is registered, where it comes from, what it takes, and what is broken."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from dataflex.errors import PluginError
from dataflex.utils.console import echo, print_json, print_table
from dataflex.utils.messages import nearest

if TYPE_CHECKING:
    from dataflex.plugins.registry import Component, PluginInfo, Registry


WIDTH = 80
"""Columns of the terminal that parameters are laid out for."""


@click.group(invoke_without_command=True)
@click.pass_context
def plugins(ctx: click.Context) -> None:
    """List selectors, reward backends and other components, and where they come from."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_plugins)


@plugins.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_plugins(as_json: bool) -> None:
    """List all components and plugins; a plugin that is broken is shown with its traceback."""
    from dataflex.plugins.hookspecs import HOOK_API_VERSION
    from dataflex.plugins.registry import registry

    found = registry()
    rows = [_summary(found, component) for _, component in sorted(found.components.items())]
    broken = [plugin for plugin in found.plugins if plugin.error]
    if as_json:
        working = [_plugin(found, plugin) for plugin in found.plugins if not plugin.error]
        print_json(
            {
                "hook_api": HOOK_API_VERSION,
                "components": rows,
                "plugins": working,
                "broken": [_plugin(found, plugin) for plugin in broken],
            }
        )
        return
    print_table(["kind", "name", "plugin", "version", "summary"], [list(row.values()) for row in rows])
    for plugin in found.plugins:
        if not plugin.error and plugin.distribution not in {row["plugin"] for row in rows}:
            echo(f"\n{_heading(plugin)}: no components; hooks: {', '.join(found.hooks(plugin))}")
    for plugin in broken:
        _echo_broken(plugin)


@plugins.command(name="show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_plugin(name: str, as_json: bool) -> None:
    """Show the component NAME, or the plugin if no component has that name.

    A component: where it comes from and its parameters with their defaults. A plugin (its entry point or package): its
    hooks and components, or the traceback if it is broken.
    """
    from dataflex.plugins.registry import KINDS, registry

    found = registry()
    components = [found.components[kind, name] for kind in KINDS if (kind, name) in found.components]
    packages = [plugin for plugin in found.plugins if not components and name in (plugin.name, plugin.distribution)]
    if not components and not packages:
        known = {known for _, known in found.components} | {plugin.name for plugin in found.plugins}
        text = f"unknown component or plugin {name!r}{nearest(name, sorted(known))}"
        raise PluginError(text, hint="`dataflex plugins` lists all of them")
    if as_json:
        details = [_details(found, component) for component in components]
        print_json([*details, *(_plugin(found, plugin) for plugin in packages)])
        return
    for component in components:
        _echo_component(found, component)
    for plugin in packages:
        _echo_plugin(found, plugin)


def _echo_component(found: Registry, component: Component) -> None:
    version = _summary(found, component)["version"]
    echo(textwrap.fill(f"{component.kind} {component.name}: {component.summary}", WIDTH))
    echo(f"from {component.plugin} {version}, {component.target}")
    for row in _parameters(component):
        default = f"default {_default(row)}" if "default" in row else "required"
        echo(f"\n{row['name']}")
        echo(_wrapped(f"{row['words']}; {default}"))
        if row["description"]:
            echo(_wrapped(row["description"]))


def _wrapped(text: str) -> str:
    """A paragraph below a parameter's name, as wide as a terminal of 80 columns."""
    return textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _echo_plugin(found: Registry, plugin: PluginInfo) -> None:
    if plugin.error:
        _echo_broken(plugin)
        return
    echo(f"plugin {_heading(plugin)}; hooks: {', '.join(found.hooks(plugin))}")
    rows = [[component.kind, component.name, component.summary] for component in _components_of(found, plugin)]
    if rows:
        print_table(["kind", "name", "summary"], rows)


def _echo_broken(plugin: PluginInfo) -> None:
    echo(f"\nbroken: {_heading(plugin)}\n{plugin.error}".rstrip())


def _heading(plugin: PluginInfo) -> str:
    return f"{plugin.name} ({plugin.distribution} {plugin.version})"


def _components_of(found: Registry, plugin: PluginInfo) -> list[Component]:
    return [component for _, component in sorted(found.components.items()) if component.plugin == plugin.distribution]


def _plugin(found: Registry, plugin: PluginInfo) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": plugin.name, "plugin": plugin.distribution, "version": plugin.version}
    if plugin.error:
        return {**facts, "error": plugin.error}
    names = [{"kind": component.kind, "name": component.name} for component in _components_of(found, plugin)]
    return {**facts, "hooks": found.hooks(plugin), "components": names}


def _summary(found: Registry, component: Component) -> dict[str, str]:
    releases = {plugin.distribution: plugin.version for plugin in found.plugins}
    return {
        "kind": component.kind,
        "name": component.name,
        "plugin": component.plugin,
        "version": releases[component.plugin],
        "summary": component.summary,
    }


def _details(found: Registry, component: Component) -> dict[str, Any]:
    parameters = [{key: value for key, value in row.items() if key != "words"} for row in _parameters(component)]
    return {**_summary(found, component), "target": component.target, "parameters": parameters}


def _parameters(component: Component) -> list[dict[str, Any]]:
    """Name, type, meaning and default of what the component's ``Config`` accepts; required ones have no default."""
    from pydantic_core import to_jsonable_python

    from dataflex.cli.type_words import type_words

    model = getattr(component.load(), "Config", None)
    rows = []
    for name, info in model.model_fields.items() if model else ():
        row = {
            "name": name,
            "type": _type_name(info.annotation),
            "words": type_words(info.annotation),
            "description": info.description or "",
        }
        if not info.is_required():
            row["default"] = to_jsonable_python(info.get_default(call_default_factory=True), fallback=str)
        rows.append(row)
    return rows


def _default(parameter: Mapping[str, Any]) -> str:
    default = parameter["default"]
    return default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)


def _type_name(annotation: Any) -> str:
    """A type as it is written in code, without the modules that it comes from."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"\b(\w+\.)+(?=\w)", "", text)
