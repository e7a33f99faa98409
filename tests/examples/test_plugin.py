"""The example plugin as a third party would have it: installed from its folder, in an environment of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dataflex.testing import tiny_project
from helpers.environment import Environment
from helpers.scripts import ROOT

BROKEN = {
    "pyproject.toml": """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "broken-plugin"
version = "0.0.1"

[project.entry-points.dataflex]
broken = "broken_plugin"

[tool.setuptools]
py-modules = ["broken_plugin"]
""",
    "broken_plugin.py": "raise RuntimeError('this plugin cannot live')\n",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Has the example plugin and a broken one, installed from copies of their folders."""
    root = tmp_path_factory.mktemp("plugins")
    shutil.copytree(ROOT / "examples" / "plugin", root / "example")
    (root / "broken").mkdir()
    for name, text in BROKEN.items():
        (root / "broken" / name).write_text(text, encoding="utf-8")
    made = Environment(root / "environment")
    made.run(["pip", "install", "-q", "--no-deps", "./example", "./broken"], root)
    return made


@pytest.mark.integration
def test_both_plugins_are_found_and_the_broken_one_breaks_nothing(environment: Environment, tmp_path: Path) -> None:
    found = json.loads(environment.run(["dataflex", "plugins", "list", "--json"], tmp_path).stdout)
    origins = {(row["kind"], row["name"]): (row["plugin"], row["version"]) for row in found["components"]}
    assert origins["selector", "k_center"] == ("dataflex-example-plugin", "0.1.0")
    for kind, name in (("mixer", "tempered"), ("weighter", "per_sample")):
        assert origins[kind, name] == ("dataflex-example-plugin", "0.1.0")
    assert origins["reward", "unit_tests"] == ("dataflex-example-plugin", "0.1.0")
    assert origins["selector", "nice"][0] == "dataflex-sdk"
    [broken] = found["broken"]
    assert (broken["plugin"], broken["version"]) == ("broken-plugin", "0.0.1")
    assert broken["error"].endswith("RuntimeError: this plugin cannot live\n")
    listed = environment.run(["dataflex", "--help"], tmp_path)
    assert listed.stderr == ""


@pytest.mark.integration
def test_its_selector_is_used_from_yaml_beside_a_broken_plugin(environment: Environment, tmp_path: Path) -> None:
    config = tiny_project(tmp_path, component_name="k_center", component_params={"batch_size": 4})
    environment.run(["dataflex", "train", str(config)], tmp_path)
    selections = [pq.read_table(tmp_path / "out" / "selections" / f"step-{step}.parquet") for step in (2, 4)]
    chosen = [{row["index"] for row in selection.to_pylist() if row["chosen"]} for selection in selections]
    assert [len(indices) for indices in chosen] == [8, 8]
    assert not chosen[0] & chosen[1]  # what was taken once is covered


@pytest.mark.integration
def test_it_passes_the_contract_and_its_own_tests(environment: Environment) -> None:
    example = environment.folder.parent / "example"
    done = environment.run(["pytest", "-q", "-p", "no:cacheprovider"], example)
    assert " passed" in done.stdout
    assert "failed" not in done.stdout
