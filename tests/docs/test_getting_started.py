"""The page "getting started", followed to the letter in an empty folder; the model alone is a tiny one in its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dataflex.data.sources import load_samples
from helpers.environment import Environment
from helpers.pages import blocks_of
from helpers.reader import MODEL, reader_tokenizer, taught_model
from helpers.scripts import ROOT

PAGE = "docs/getting-started.md"
MEASURED = "the direction of the targets is mostly noise"
"""Said of what was measured, with the tiny model here: it answers at random."""
WARNING = re.compile(r"(?<!\b0 )warn|deprecat|has no effect|beyond the run|does not act", re.IGNORECASE)


def lines_of(block) -> list[str]:
    """The commands of a console block, without their comments."""
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in block.text.splitlines() if line[:2] == "$ "]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder after all commands of the page, and what each printed."""
    root = tmp_path_factory.mktemp("reader")
    environment = Environment(root / "environment")
    (root / "dataflex").mkdir()  # stands for the clone
    (root / "dataflex" / "examples").symlink_to(ROOT / "examples")
    folder = root / "first-run"
    printed: dict[str, str] = {}
    for block in blocks_of(PAGE):
        if block.skipped:
            continue
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        for command in lines_of(block) if block.language == "console" else ():
            if command.startswith("mkdir "):
                environment.run(command, root / "dataflex")
                put_a_tiny_model(folder)
            else:
                done = environment.run(command, folder)
                printed[command] = done.stdout + done.stderr
    return folder, printed


def put_a_tiny_model(folder: Path) -> None:
    """In the place of the one that ``fetch_model.py`` downloads: it answers the page's own questions now and then."""
    (folder / "models").mkdir()
    samples = load_samples(ROOT / "examples" / "quickstart" / "data" / "eval.jsonl")
    taught_model(0.1, samples, steps=600).save_pretrained(folder / MODEL)
    reader_tokenizer().save_pretrained(folder / MODEL)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_works_from_an_empty_folder(followed: tuple[Path, dict[str, str]]) -> None:
    folder, printed = followed
    assert len(printed) == 11
    assert "already there" in next(text for command, text in printed.items() if "fetch_model" in command)
    for out in ("output/mine", "output/other", "output/python"):
        assert json.loads((folder / out / "all_results.json").read_text(encoding="utf-8"))["steps"] == 8
        assert len(list((folder / out / "selections").iterdir())) == 2
    assert (folder / "output" / "mine" / "report.html").is_file()
    assert (folder / "output" / "merged" / "model.safetensors").is_file()
    assert "capitals" in printed["dataflex report output/mine"]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_warned_about_that_the_reader_did_not_write(followed: tuple[Path, dict[str, str]]) -> None:
    found = {
        command: [line for line in text.splitlines() if WARNING.search(line) and MEASURED not in line]
        for command, text in followed[1].items()
    }
    assert {command: lines for command, lines in found.items() if lines} == {}
