"""The page "write a plugin", followed to the letter in an empty folder, and its tables against the code."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from dataflex.config import load_config
from dataflex.plugins import hookspecs
from dataflex.testing import MixerContract, RewardContract, SelectorContract, WeighterContract, tiny_project
from helpers.environment import Environment
from helpers.markdown import blocks, section
from helpers.scripts import ROOT

PAGE = ROOT / "docs" / "plugins.md"


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_reader_who_follows_the_page_gets_working_components(tmp_path: Path) -> None:
    environment, folder = Environment(tmp_path / "environment"), tmp_path / "empty"
    folder.mkdir()
    ran = 0
    for block in blocks(PAGE):
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        for command, expected in block.commands if block.language == "console" else ():
            done = environment.run(command, folder)
            output = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
            assert [line for line in expected if line not in output] == [], f"{command}\n" + "\n".join(output)
            ran += 1
    assert ran == 9
    for out in ("out", "out-nice"):
        assert (folder / "trial" / out / "adapter_model.safetensors").is_file()
    rollouts = (folder / "trial" / "out-nice" / "rollouts" / "step-2.jsonl").read_text(encoding="utf-8")
    assert '"reward": 1.0' in rollouts or '"reward": 0.' in rollouts


def test_every_other_block_is_a_part_of_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [block for block in blocks(PAGE) if block.file is None and block.language != "console"]
    [example] = others
    assert example.language == "yaml"
    keys = yaml.safe_load(example.text)
    monkeypatch.chdir(tmp_path)
    config = load_config(tiny_project(tmp_path, **{**keys, "component_name": "random"}))
    assert keys.keys() <= set(type(config).model_fields)


@pytest.mark.parametrize("contract", [SelectorContract, MixerContract, WeighterContract, RewardContract])
def test_the_clauses_are_those_of_the_contract(contract: type) -> None:
    names = [name for kind in (contract, contract.__mro__[1]) for name in vars(kind) if name.startswith("test_")]
    rows = [
        f"| `{name}` | {inspect.getdoc(getattr(contract, name))} |".replace("``", "`").replace("\n", " ")
        for name in names
    ]
    assert "\n".join(["| test | clause |", "|---|---|", *rows]) in PAGE.read_text(encoding="utf-8")


def test_the_hooks_are_those_of_the_specification() -> None:
    introduction, *sections = section(PAGE, "Hooks").split("\n### ")
    expected = {}
    for name, function in vars(hookspecs).items():
        if hasattr(function, f"{hookspecs.PROJECT_NAME}_spec"):
            arguments = ", ".join(inspect.signature(function).parameters)
            described = str(inspect.getdoc(function)).replace(":class:", "").replace("``", "`")
            expected[f"`{name}({arguments})`"] = described
    found = dict(text.split("\n\n", 1) for text in sections)
    assert list(found) == list(expected)
    for heading, text in found.items():
        assert " ".join(text.split()).startswith(" ".join(expected[heading].split()))
    assert f"version {hookspecs.HOOK_API_VERSION} (" in introduction
    assert f"`dataflex_hook_api = {hookspecs.HOOK_API_VERSION}`" in introduction
