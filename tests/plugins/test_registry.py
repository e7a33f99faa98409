from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dataflex.errors import PluginError
from dataflex.plugins.hookspecs import HOOK_API_VERSION
from dataflex.plugins.registry import KINDS, PluginInfo, callable_from, registry
from helpers.plugins import Site, plugin_site

BROKEN = "raise RuntimeError('cannot live here')"
HOOKS = "from dataflex.plugins.hookspecs import hookimpl\n"


def registers(name: object, target: str = "a:B") -> str:
    """Source of a plugin that registers one selector."""
    return f"{HOOKS}@hookimpl\ndef register_selectors(register): register({name!r}, {target!r})\n"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("DATAFLEX_LOAD_PLUGINS", raising=False)
    with plugin_site(tmp_path, monkeypatch) as made:
        yield made


def info(site: Site, distribution: str) -> PluginInfo:
    [found] = [plugin for plugin in site.registry().plugins if plugin.distribution == distribution]
    return found


def error(site: Site, distribution: str) -> str:
    text = info(site, distribution).error
    assert text is not None
    return text


def test_builtins_are_registered_through_the_hooks() -> None:
    found = registry()
    assert {"nice", "random"} <= set(found.names("selector"))
    assert {"metric", "api", "local_vllm"} <= set(found.names("reward"))
    assert {kind for kind, _ in found.components} == set(KINDS)


def test_a_plugin_is_found_by_its_entry_point_and_loaded_on_use(site: Site) -> None:
    site.install_selector("mine")
    found = site.registry()
    component = found.find("selector", "mine")
    assert (component.plugin, component.summary) == ("my-plugin", "a selector of a plugin")
    assert found.get("selector", "mine").name == "mine"
    assert info(site, "my-plugin") == PluginInfo("my-plugin", "my-plugin", "1.0")


@pytest.mark.parametrize("source", [BROKEN, "import a_package_that_is_not_there", "raise SystemExit(3)", "def ("])
def test_a_broken_plugin_is_listed_with_its_traceback_and_breaks_nothing_else(site: Site, source: str) -> None:
    site.install("broken", source)
    site.install_selector("mine")
    found = site.registry()
    assert "broken_module" in error(site, "broken")
    assert {"nice", "mine"} <= set(found.names("selector"))


def test_a_plugin_whose_registration_fails_registers_nothing(site: Site) -> None:
    site.install(
        "half",
        HOOKS
        + "@hookimpl\n"
        + "def register_selectors(register):\n"
        + "    register('first', 'a:B')\n"
        + "    register('second', 'no class here')\n",
    )
    found = site.registry()
    assert "'second': target 'no class here' is not 'package.module:Class'" in error(site, "half")
    assert "first" not in found.names("selector")
    assert found.manager.get_plugin("half:half") is None


@pytest.mark.parametrize("name", ["", 5])
def test_the_name_of_a_component_is_text(site: Site, name: object) -> None:
    site.install("odd", registers(name))
    assert "a name is text" in error(site, "odd")


def test_a_misspelt_hook_is_an_error(site: Site) -> None:
    site.install("typo", f"{HOOKS}@hookimpl\ndef register_selectorz(register): pass\n")
    assert "unknown hook 'register_selectorz'" in error(site, "typo")


def test_a_hook_with_wrong_arguments_is_an_error(site: Site) -> None:
    site.install("wrong", f"{HOOKS}@hookimpl\ndef register_selectors(regster): pass\n")
    assert "regster" in error(site, "wrong")


def test_a_plugin_without_hooks_is_an_error(site: Site) -> None:
    site.install("empty", "def register_selectors(register): pass\n")
    assert "implements no hook" in error(site, "empty")


def test_a_plugin_may_name_the_version_of_the_hooks_that_it_is_written_for(site: Site) -> None:
    site.install("current", registers("now") + f"dataflex_hook_api = {HOOK_API_VERSION}\n")
    site.install("newer", registers("later") + f"dataflex_hook_api = {HOOK_API_VERSION + 1}\n")
    found = site.registry()
    assert info(site, "current").error is None
    assert "written for version 2 of the hooks (dataflex_hook_api), this dataflex has version 1" in error(site, "newer")
    assert "now" in found.names("selector")
    assert "later" not in found.names("selector")
    assert [found.hooks(plugin) for plugin in found.plugins[1:]] == [["register_selectors"], []]


def test_a_hook_under_another_function_name_counts(site: Site) -> None:
    source = "@hookimpl(specname='register_selectors')\ndef mine(register):\n    register('aliased', 'a:B')\n"
    site.install("aliasing", HOOKS + source)
    assert "aliased" in site.registry().names("selector")


def test_a_collision_names_both_packages_and_the_first_stays(site: Site) -> None:
    site.install_selector("mine", "package-a")
    site.install_selector("mine", "package-b")
    text = error(site, "package-b")
    assert "'mine' is registered by package-a" in text
    assert "again by package-b" in text
    assert site.registry().find("selector", "mine").plugin == "package-a"


def test_a_plugin_cannot_replace_a_builtin(site: Site) -> None:
    site.install_selector("nice", "impostor")
    assert "registered by dataflex-sdk" in error(site, "impostor")
    assert site.registry().find("selector", "nice").plugin == "dataflex-sdk"


def test_two_distributions_may_use_the_same_entry_point_name(site: Site) -> None:
    for name in ("one", "two"):
        site.install(f"package-{name}", registers(name), entry="plugin")
    assert {"one", "two"} <= set(site.registry().names("selector"))


def test_one_module_named_by_two_entry_points_stays_registered(site: Site) -> None:
    site.install_selector("mine", "package-a")
    info_folder = site.folder / "package_a-1.0.dist-info"
    info_folder.joinpath("entry_points.txt").write_text("[dataflex]\na = package_a_module\nb = package_a_module\n")
    found = site.registry()
    assert "mine" in found.names("selector")
    assert found.manager.get_plugin("package-a:a") is not None
    assert [plugin.name for plugin in found.plugins if plugin.error] == ["b"]


def test_an_unknown_name_is_answered_with_the_nearest_one(site: Site) -> None:
    with pytest.raises(PluginError, match=r"unknown selector 'nise'; known: .*nice") as caught:
        site.registry().get("selector", "nise")
    assert caught.value.hint == "did you mean 'nice'?"


def test_an_unknown_name_points_to_broken_plugins(site: Site) -> None:
    site.install("broken", BROKEN)
    with pytest.raises(PluginError) as caught:
        site.registry().get("dataset_format", "xyz")
    assert caught.value.message.startswith("unknown dataset format 'xyz'")
    assert caught.value.hint == "Plugins that failed to load: broken; see `dataflex plugins`."


def test_a_component_of_the_wrong_class_is_refused(site: Site) -> None:
    site.install("confused", registers("path", "pathlib:Path"))
    with pytest.raises(PluginError, match=r"expected a subclass of dataflex\.selectors\.base\.Selector"):
        site.registry().get("selector", "path")


def test_a_component_that_lacks_methods_is_refused_with_their_names(site: Site) -> None:
    site.install("halfway", registers("aimless", "dataflex.selectors.gradient:GradientSelector"))
    with pytest.raises(PluginError, match=r"GradientSelector does not implement expected_targets, target_gradients"):
        site.registry().get("selector", "aimless")


@pytest.mark.parametrize("target", ["not_there:Class", "pathlib:NotThere"])
def test_a_component_that_cannot_be_imported_names_its_package(site: Site, target: str) -> None:
    site.install("stale", registers("old", target))
    with pytest.raises(PluginError, match="'old' of stale cannot be imported") as caught:
        site.registry().get("selector", "old")
    assert caught.value.hint is not None
    assert "stale" in caught.value.hint


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("", set()),
        ("package-a", {"one"}),
        ("Package_A", {"one"}),
        ("entry-b", {"two"}),
        (" package-a , entry-b ", {"one", "two"}),
        ("something-else", set()),
    ],
)
def test_load_plugins_limits_loading(
    site: Site, monkeypatch: pytest.MonkeyPatch, limit: str, expected: set[str]
) -> None:
    site.install_selector("one", "package-a")
    site.install(
        "package-b", HOOKS + "@hookimpl\ndef register_selectors(register): register('two', 'a:B')\n", entry="entry-b"
    )
    monkeypatch.setenv("DATAFLEX_LOAD_PLUGINS", limit)
    found = site.registry()
    assert set(found.names("selector")) & {"one", "two"} == expected
    assert "nice" in found.names("selector")


def test_a_hook_call_survives_a_plugin_that_raises(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    command = "@hookimpl\ndef register_commands(cli):\n    "
    site.install("a-raises", HOOKS + command + "raise ValueError('no commands today')\n")
    site.install("b-works", f"import click\n{HOOKS}{command}cli.add_command(click.Command('extra'))\n")
    found = site.registry()
    group = click.Group()
    found.call("register_commands", cli=group)
    assert list(group.commands) == ["extra"]
    assert "plugin a-raises: register_commands failed: ValueError: no commands today" in caplog.text
    [broken] = [plugin for plugin in found.plugins if plugin.error]
    assert broken.name == "a-raises"
    assert "no commands today" in str(broken.error)


def test_callable_from_imports_a_function() -> None:
    assert callable_from("math:floor")(2.5) == 2


@pytest.mark.parametrize("target", ["math", "math:a:b", "not_there:f", "math:not_there", "math:pi"])
def test_callable_from_refuses_what_is_no_function(target: str) -> None:
    with pytest.raises(PluginError, match=target):
        callable_from(target)
