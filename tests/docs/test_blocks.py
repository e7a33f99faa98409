"""Every code block of README, docs and examples: Python is run, YAML is validated, commands are parsed.

A block that cannot be run says why in a comment before it: ``<!-- test: skip, needs a GPU -->``. A console block after
``<!-- test: run -->`` is run, not only parsed. The Python blocks of a page share their names, and a block whose first
line is ``# NAME.yaml`` (or .py, .jsonl) is a file for the blocks behind it.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dataflex.cli import cli
from dataflex.data.registry_file import parse_entry
from dataflex.plugins.registry import registry
from helpers import documented_commands, documented_yaml
from helpers.pages import Block, all_blocks, blocks_of, pages
from helpers.reader import furnish, install_example_plugin, names

LANGUAGES = {"bash", "console", "jinja", "json", "jsonl", "python", "text", "toml", "yaml"}
REASONS = ("needs a GPU", "needs vLLM", "needs the network", "needs several processes", "takes minutes")
RUN = [page for page in pages() if any(block.language == "python" or "run" in block.marks for block in blocks_of(page))]


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    furnish(folder)
    return folder


@pytest.fixture
def desk(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A fresh copy of the reader's folder as the working directory."""
    folder = tmp_path / "desk"
    shutil.copytree(furnished, folder, symlinks=True)
    monkeypatch.chdir(folder)
    for path in [*install_example_plugin(folder), str(folder)]:
        monkeypatch.syspath_prepend(path)
    registry.cache_clear()
    yield folder
    registry.cache_clear()


def test_every_block_has_a_known_language() -> None:
    assert {str(block): block.language for block in all_blocks() if block.language not in LANGUAGES} == {}


def test_marks_are_known() -> None:
    marks = {mark for block in all_blocks() for mark in block.marks}
    assert all(mark == "run" or mark.startswith("skip, ") for mark in marks), marks


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")  # transformers' default, without a GPU
@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(page: str, desk: Path) -> None:
    namespace = names(desk)
    for block in blocks_of(page):
        if block.skipped:
            continue
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text + "\n", encoding="utf-8")
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), namespace)
        elif block.language == "console" and "run" in block.marks:
            for words in documented_commands.commands_of(block):
                assert words[0] == "dataflex", f"{block}: only dataflex is run"
                done = CliRunner().invoke(cli, words[1:], prog_name="dataflex")
                assert done.exit_code == 0, f"{block}: {' '.join(words)}\n{done.output}{done.exception!r}"


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_yaml_is_valid(block: Block) -> None:
    documented_yaml.validate(block.text)


@pytest.mark.parametrize("block", all_blocks("json", "jsonl", "toml"), ids=str)
def test_data_files_parse(block: Block) -> None:
    if block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "jsonl":
        assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())
    else:
        values = json.loads(block.text)
        if all(isinstance(entry, dict) and {"file_name", "hf_hub_url"} & set(entry) for entry in values.values()):
            for name, entry in values.items():
                parse_entry(Path(), name, entry)


@pytest.mark.parametrize("block", all_blocks("bash", "console"), ids=str)
def test_commands_parse(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click.Path, "convert", lambda self, value, param, ctx: value)
    words = list(documented_commands.commands_of(block))
    assert words, "no command in the block"
    for command in words:
        documented_commands.check(command)


def test_a_block_that_is_not_run_says_why() -> None:
    skipped = {str(block): block.skipped for block in all_blocks() if block.skipped}
    print(f"{len(skipped)} blocks are not run: {skipped}")
    assert [where for where, reason in skipped.items() if not str(reason).startswith(REASONS)] == []
