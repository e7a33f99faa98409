"""Plugin packages made on the spot: real modules and real distribution metadata in a temporary folder."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataflex.plugins.registry import Registry, registry

SELECTOR_PLUGIN = """
    from typing import Literal
    from pydantic import Field
    from dataflex.plugins.hookspecs import hookimpl
    from dataflex.selectors.base import Selector, SelectorConfig

    class {cls}Config(SelectorConfig):
        alpha: float = Field(default=0.5, gt=0, description="how much of it")
        mode: Literal["soft", "hard"] = "soft"
        backend: dict[str, dict[str, int]] = {{}}

    class {cls}(Selector[{cls}Config]):
        name = "{name}"
        Config = {cls}Config

        def select(self, context):
            raise NotImplementedError

    @hookimpl
    def register_selectors(register):
        register("{name}", __name__ + ":{cls}", summary="a selector of a plugin")
"""


class Site:
    """A folder of installed plugins."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.modules: set[str] = set()
        self._monkeypatch = monkeypatch
        monkeypatch.syspath_prepend(folder)

    def install(self, distribution: str, source: str, *, entry: str | None = None, version: str = "1.0") -> None:
        """Install a distribution of one module whose text is ``source``."""
        module = f"{distribution.lower().replace('-', '_')}_module"
        self.modules.add(module)
        self.folder.joinpath(f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n", encoding="utf-8"
        )
        info.joinpath("entry_points.txt").write_text(
            f"[dataflex]\n{entry or distribution} = {module}\n", encoding="utf-8"
        )
        registry.cache_clear()

    def install_selector(self, name: str, distribution: str = "my-plugin") -> None:
        """Install a distribution with one working selector."""
        self.install(distribution, SELECTOR_PLUGIN.format(name=name, cls=name.title().replace("_", "")))

    def registry(self) -> Registry:
        """The registry as a new process would see it."""
        registry.cache_clear()
        return registry()


@contextmanager
def plugin_site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site that leaves nothing behind: neither modules nor a registry that knows of them."""
    site = Site(folder, monkeypatch)
    try:
        yield site
    finally:
        registry.cache_clear()
        for module in site.modules:
            sys.modules.pop(module, None)
