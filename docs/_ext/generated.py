"""Sphinx extension: parts of pages that are written from the code, and links that leave the documentation.

A page holds a comment in a line of its own, which becomes Markdown when the page is read:

    <!-- generated: run -->                       keys of a run's YAML, by section
    <!-- generated: near -->, export, arguments   keys of the other configurations, arguments of the trainer
    <!-- generated: selector nice -->             parameters of a component (kind and name)
    <!-- generated: help -->                      the help of every command
    <!-- generated: templates -->                 names of the chat templates
    <!-- generated: rooms -->                     the packages of dataflex, as their docstrings describe them
    <!-- generated: page ../CONTRIBUTING.md -->   another file of the repository
    <!-- generated: pages eval* track* -->        names of the pages that there are, for a list of pages

Links to files that have a page point to it; links to other files of the repository lose their target and keep their
text, since the built pages stand alone.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python
from pygments.lexers.data import JsonLexer

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/near/README.md": "near-example.md",
    "examples/quickstart/README.md": "quickstart.md",
}
"""Files of the repository that have a page, by their path."""

_COMMENT = re.compile(r"^<!-- generated: (?P<what>\w+)(?: (?P<rest>\S.*?))? -->$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<target>[^)#\s]+)(?P<anchor>#[\w-]+)?\)")
_FENCE = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^    # (?P<title>.+)$|^    (?P<key>\w+): ", re.MULTILINE)
_NAMES: dict[Any, str] = {bool: "true or false", float: "number", int: "integer", str: "text", Path: "path"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_lexer("jsonl", JsonLexer)
    app.connect("source-read", lambda _, name, source: source.__setitem__(0, filled(source[0], DOCS / f"{name}.md")))
    return {"parallel_read_safe": True}


def filled(text: str, page: Path) -> str:
    """A page with its generated parts and with links that lead somewhere.

    Args:
        text: The page as it is written.
        page: Its path.
    """
    return _COMMENT.sub(lambda match: _generate(match["what"], match["rest"] or "", page), relinked(text, page, page))


def relinked(text: str, source: Path, page: Path) -> str:
    """Links of ``source`` as they have to be in ``page``; code blocks are left alone."""
    parts, last = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_relink(text[last : fence.start()], source, page), fence[0]]
        last = fence.end()
    return "".join([*parts, _relink(text[last:], source, page)])


def _relink(text: str, source: Path, page: Path) -> str:
    def link(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (source.parent / target).resolve()
        known = PAGES.get(str(path.relative_to(ROOT))) if path.is_relative_to(ROOT) else None
        if known is not None:
            path = DOCS / known
        if path.suffix != ".md" or not path.is_relative_to(DOCS):
            return match["text"]
        return f"[{match['text']}]({_relative(path, page.parent)}{anchor})"

    return _LINK.sub(link, text)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _generate(what: str, rest: str, page: Path) -> str:
    if what not in _WRITERS:
        raise ValueError(f"{page}: nothing is generated for {what!r}; known: {', '.join(_WRITERS)}")
    return _WRITERS[what](rest, page)


def run_keys(rest: str, page: Path) -> str:
    """The keys of a run, a table a section."""
    del rest, page
    from dataflex.config import RunConfig

    return "\n\n".join(
        f"### {title}\n\n{table({key: RunConfig.model_fields[key] for key in keys})}"
        for title, keys in sections().items()
    )


def sections() -> dict[str, list[str]]:
    """The keys of a run by the comments over them in ``dataflex.config.fields``."""
    from dataflex.config.fields import RunFields

    found: dict[str, list[str]] = {}
    for match in _SECTION.finditer(inspect.getsource(RunFields)):
        if match["title"]:
            found[match["title"]] = []
        elif match["key"] in RunFields.model_fields:
            list(found.values())[-1].append(match["key"])
    return found


def table(fields: dict[str, FieldInfo]) -> str:
    """Name, values, default and meaning of each field."""
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, info in fields.items():
        default = "required" if info.is_required() else f"`{_default(info)}`"
        cells = [f"`{name}`", value_text(info.annotation, info.metadata), default, info.description or ""]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "{}"
    value = to_jsonable_python(default, fallback=str)
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False)


def value_text(annotation: Any, metadata: Any = ()) -> str:
    """What a field takes, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (None, NoneType):
        return "null"
    if origin is Annotated:
        return value_text(arguments[0], [*metadata, *arguments[1:]])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value) if isinstance(value, bool) else value}`" for value in arguments)
    if origin in (Union, UnionType):
        parts = [value_text(part, metadata) for part in arguments if part is not NoneType]
        return " or ".join([*dict.fromkeys(parts), *(["null"] if NoneType in arguments else [])])
    if origin in (list, tuple):
        inner = [part for part in arguments if part is not Ellipsis]
        return f"list of {value_text(inner[0])}" if inner else "list"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    name = _NAMES.get(annotation) or getattr(origin or annotation, "__name__", str(annotation))
    return ", ".join([name, *_bounds(metadata)])


def _bounds(metadata: Any) -> Iterator[str]:
    for part in metadata:
        for attribute, words in _BOUNDS.items():
            bound = getattr(part, attribute, None)
            if bound is not None and bound < 2**63 - 1:
                yield f"{words} {bound}"


def component(kind: str) -> Callable[[str, Path], str]:
    """Writes the parameters of a component of a kind."""

    def write(name: str, page: Path) -> str:
        del page
        from dataflex.plugins.registry import KINDS, registry

        fields = registry().get(next(known for known in KINDS if known == kind), name).Config.model_fields
        return table(fields) if fields else "It has no parameters."

    return write


def model(load: Callable[[], type[BaseModel]]) -> Callable[[str, Path], str]:
    """Writes the fields of a pydantic model."""

    def write(rest: str, page: Path) -> str:
        del rest, page
        return table(load().model_fields)

    return write


def _near() -> type[BaseModel]:
    from dataflex.config import NearConfig

    return NearConfig


def _export() -> type[BaseModel]:
    from dataflex.config import ExportConfig

    return ExportConfig


def _arguments() -> type[BaseModel]:
    from dataflex import TrainingArguments

    return TrainingArguments


def command_help(rest: str, page: Path) -> str:
    """The help of every command."""
    del rest, page
    from dataflex.cli import cli

    return "\n\n".join(f"## {name}\n\n```text\n{text}\n```" for name, text in _helps("dataflex", cli, None))


def _helps(name: str, command: click.Command, parent: click.Context | None) -> Iterator[tuple[str, str]]:
    word = name.rsplit(" ", 1)[-1]
    settings = {"max_content_width": 100, "terminal_width": 100, **command.context_settings}
    ctx = click.Context(command, info_name=word, parent=parent, **settings)
    yield name, command.get_help(ctx)
    if isinstance(command, click.Group):
        for below in command.list_commands(ctx):
            found = command.get_command(ctx, below)
            if found is not None:
                yield from _helps(f"{name} {below}", found, ctx)


def templates(rest: str, page: Path) -> str:
    """Names of the chat templates that come with dataflex."""
    del rest, page
    from dataflex.data.template_names import ALIASES, template_names

    return ", ".join(f"`{name}`" for name in sorted([*template_names(), *ALIASES]))


def rooms(rest: str, page: Path) -> str:
    """Every package at the top of dataflex: what lives there, what flows in and out, what it may import."""
    del rest, page
    rows = ["| room | what lives there | in and out | may import |", "| --- | --- | --- | --- |"]
    for file in sorted((ROOT / "python" / "dataflex").glob("*/__init__.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        lives, flows = (ast.get_docstring(tree) or "").split("\n\n")[:2]
        flow, _, imports = flows.replace("\n", " ").partition("May import ")
        cells = [f"`{file.parent.name}`", lives.replace("\n", " "), flow.strip(), imports]
        rows.append("| " + " | ".join(cell.replace("``", "`").replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def page_names(rest: str, page: Path) -> str:
    """Names of the pages beside ``page`` that fit one of some patterns, a line each."""
    return "\n".join(sorted(path.stem for pattern in rest.split() for path in page.parent.glob(f"{pattern}.md")))


def other_page(rest: str, page: Path) -> str:
    """Another file of the repository, with its links made to fit."""
    source = (page.parent / rest).resolve()
    return relinked(source.read_text(encoding="utf-8"), source, page)


_WRITERS: dict[str, Callable[[str, Path], str]] = {
    "arguments": model(_arguments),
    "export": model(_export),
    "help": command_help,
    "mixer": component("mixer"),
    "near": model(_near),
    "page": other_page,
    "pages": page_names,
    "projection": component("projection"),
    "reward": component("reward"),
    "rooms": rooms,
    "run": run_keys,
    "selector": component("selector"),
    "templates": templates,
    "weighter": component("weighter"),
}
