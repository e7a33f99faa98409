"""What a component takes, for eyes and terminals; and the version as an option."""

from __future__ import annotations

import pathlib
import re
from typing import Annotated, Any, Literal

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

import dataflex
from dataflex.cli import cli
from dataflex.cli.type_words import type_words


def run(*words: str):
    return CliRunner().invoke(cli, list(words), prog_name="dataflex")


def test_parameters_fit_a_terminal_and_types_are_words():
    for name in ("nice", "tsds", "near", "api", "local_vllm", "sjlt"):
        lines = run("plugins", "show", name).stdout.splitlines()
        assert len(lines) > 4
        assert [line for line in lines if len(line) > 80] == []
    text = run("plugins", "show", "nice").stdout
    assert "gradient_type\n    adam or sgd; default adam\n" in text
    assert "mc_samples\n    integer; default 4\n" in text
    assert not re.search(r"Annotated|FieldInfo|BeforeValidator|NoneType|Literal", text)


def test_an_unknown_name_gets_the_nearest_one():
    done = run("plugins", "show", "nic")
    assert done.exit_code == 1
    assert "unknown component or plugin 'nic'; did you mean 'nice'?" in done.stderr


def test_the_version_is_an_option_too():
    assert run("--version").stdout == f"dataflex {dataflex.__version__}\n"


class Part(BaseModel):
    size: int = 1
    name: str = ""


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, "x"], "integer"),
        (float | None, "number or null"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Literal[False] | str, "false or text"),
        (list[str], "list of texts"),
        (dict[str, Any], "mapping"),
        (pathlib.Path | None, "path or null"),
        (Part | None, "mapping (size, name) or null"),
        (bool, "true or false"),
        (re.Pattern, "a Pattern (from Python)"),
    ],
)
def test_types_in_words(annotation, words):
    assert type_words(annotation) == words
