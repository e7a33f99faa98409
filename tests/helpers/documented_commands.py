"""The commands of the documentation, checked without being run: programs, options, targets, files and keys exist."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import click

from dataflex.cli import cli
from dataflex.config import ExportConfig, NearConfig, RunConfig
from efficacy import __main__ as efficacy
from efficacy import curricula
from efficacy.public import FETCH
from helpers.pages import Block
from helpers.scripts import ROOT

KEYS = {*RunConfig.model_fields, *NearConfig.model_fields, *ExportConfig.model_fields}
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


def commands_of(block: Block) -> Iterator[list[str]]:
    """The words of each command: lines behind ``$`` in a console, all lines of a shell script."""
    text = block.text.replace("\\\n", " ")
    for line in text.split("\n"):
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        for part in re.split(r" && | \| ", line):
            words = shlex.split(part, comments=True)
            while words and (_ASSIGNMENT.match(words[0]) or words[0] == "env"):
                words = words[1:]
            if words:
                yield words


def check(words: list[str]) -> None:
    """Fail if a command could not be what a reader should type."""
    program = words[0].removeprefix(".venv/bin/").removeprefix(".venv-peers/bin/")
    handler = _PROGRAMS.get(program)
    assert handler is not None, f"unknown program {words[0]!r}; known: {', '.join(_PROGRAMS)}"
    handler(words[1:])


def dataflex(words: list[str]) -> None:
    """Parse by the command line itself; files need not exist."""
    command: click.Command = cli
    parent: click.Context | None = None
    name, rest = "dataflex", words
    try:
        while isinstance(command, click.Group):
            parent = command.make_context(name, list(rest), parent=parent)
            rest = [*parent._protected_args, *parent.args]
            if not rest:
                return
            found, command_or_none, rest = command.resolve_command(parent, rest)
            assert command_or_none is not None, f"no command {rest}"
            name, command = str(found), command_or_none
        command.make_context(name, list(rest), parent=parent)
    except click.exceptions.Exit:  # --help
        return
    for word in rest:
        key = re.match(r"(\w+)(?:\.[\w.]+)?=", word)
        assert key is None or key[1] in KEYS, f"unknown key {key[1]!r} in {' '.join(words)}"


def _python(words: list[str]) -> None:
    if words[:2] == ["-m", "dataflex"]:
        dataflex(words[2:])
    elif words[:3] == ["-m", "pip", "install"]:
        _pip(words[2:])
    elif words[:2] == ["-m", "benchmarks.efficacy"]:
        efficacy.parse(words[2:])
    elif words[:2] == ["-m", "benchmarks.efficacy.curricula"]:
        curricula.parse(words[2:])
    elif words[0] == "-m":
        module = ROOT / words[1].replace(".", "/")
        known = module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
        assert known or words[1] in ("venv", "pytest", "sphinx"), words
    else:
        assert (ROOT / words[0]).is_file(), f"{words[0]} does not exist"


def _pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    if words[0] == "download":
        assert " ".join(["pip", *words]) == FETCH, words
        return
    assert words[0] == "install", words
    for word in words:
        named = re.fullmatch(r"(?:\.|dataflex-sdk)\[([\w,]+)\]", word)
        assert named is None or set(named[1].split(",")) <= set(extras), f"unknown extra in {word!r}"


def _make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", text, re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", text, re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets, f"no such target: {words}"
    assert {word.partition("=")[0] for word in words if "=" in word} <= variables, f"no such variable: {words}"


def _launcher(words: list[str]) -> None:
    at = words.index("dataflex")
    assert words[at - 1] == "-m", words
    dataflex(words[at + 1 :])


def _pytest(words: list[str]) -> None:
    files = [word for word in words if word.startswith("tests/")]
    assert all((ROOT / file).exists() for file in files), files


def _anything(words: list[str]) -> None:
    del words


_PROGRAMS: dict[str, Callable[[list[str]], Any]] = {
    "accelerate": _launcher,
    "cd": _anything,
    "dataflex": dataflex,
    "dataflex-cli": dataflex,
    "export": _anything,
    "git": _anything,
    "make": _make,
    "pip": _pip,
    "pre-commit": _anything,
    "pytest": _pytest,
    "python": _python,
    "torchrun": _launcher,
    "unset": _anything,
}
