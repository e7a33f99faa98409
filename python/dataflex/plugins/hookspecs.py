"""The hooks of dataflex, all of them.

A plugin package declares an entry point in the group ``dataflex`` that names a module (or object) with functions
decorated with :data:`hookimpl`. The ``register_*`` hooks receive ``register(name, target, summary=...)`` and name
their components as ``"package.module:Class"``; nothing is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    import click

HOOK_API_VERSION = 1
"""Grows when a hook changes in a way that plugins can notice.

A plugin may name the version that it was written for, ``dataflex_hook_api = 1`` beside its hooks.
"""

PROJECT_NAME = "dataflex"
hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


class Register(Protocol):
    """What the ``register_*`` hooks call, once a component."""

    def __call__(self, name: str, target: str, *, summary: str = "") -> None:
        """Register ``name`` for ``target``, written ``"package.module:Class"``."""


@hookspec
def register_selectors(register: Register) -> None:
    """Name selectors: subclasses of :class:`dataflex.Selector`."""


@hookspec
def register_mixers(register: Register) -> None:
    """Name mixers: subclasses of :class:`dataflex.Mixer`."""


@hookspec
def register_weighters(register: Register) -> None:
    """Name weighters: subclasses of :class:`dataflex.Weighter`."""


@hookspec
def register_reward_backends(register: Register) -> None:
    """Name reward backends: subclasses of :class:`dataflex.RewardBackend`."""


@hookspec
def register_projections(register: Register) -> None:
    """Name projection kinds: subclasses of :class:`dataflex.ProjectionKind`."""


@hookspec
def register_dataset_formats(register: Register) -> None:
    """Name dataset formats: subclasses of :class:`dataflex.DatasetFormat`."""


@hookspec
def register_commands(cli: click.Group) -> None:
    """Add commands to the command line."""


# A dataflex.Selection and its dataflex.SelectionContext, which live further up and are not imported from here.
@hookspec
def on_selection(selection: Any, context: Any) -> None:
    """Look at a selection before it is trained on (main process only)."""


@hookspec
def on_train_end(output_dir: str, results: dict[str, Any]) -> None:
    """Look at a finished run; ``results`` is what ``all_results.json`` holds (main process only)."""
