"""``~`` in paths of configurations, components, Python and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import dataflex
from dataflex.cli import cli
from dataflex.config import load_config, load_export_config, load_near_config
from dataflex.data.sources import load_samples
from dataflex.errors import ConfigError
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_project, tiny_tokenizer
from dataflex.utils.home import expand_home
from helpers.rows import alpaca_rows, write_rows


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_every_path_of_a_configuration_is_expanded(home: Path) -> None:
    run = {
        "model_name_or_path": "~/m",
        "dataset": ["~/a.jsonl", "b"],
        "eval_dataset": "~/e.jsonl",
        "output_dir": "~/out",
    }
    (home / "m").mkdir()
    more = {"output_dir": "~/out", "dataset_dir": "~/data", "swanlab_logdir": "~/s", "template": "~/t.jinja"}
    config = load_config(run | more)
    assert config.output_dir == str(home / "out")
    assert config.dataset == [str(home / "a.jsonl"), "b"]
    assert config.eval_dataset == [str(home / "e.jsonl")]
    assert (config.dataset_dir, config.swanlab_logdir) == (str(home / "data"), str(home / "s"))
    assert (config.model_name_or_path, config.template) == (str(home / "m"), str(home / "t.jinja"))
    export = load_export_config({"model_name_or_path": "m", "adapter_name_or_path": ["~/x"], "export_dir": "~/y"})
    assert (export.adapter_name_or_path, export.export_dir) == ([str(home / "x")], str(home / "y"))
    near = {"candidate_path": "~/c", "query_path": "q", "embed_model": "~/m", "save_indices_path": "~/n.npy"}
    found = load_near_config(near | {"cache_dir": "~/k", "query_template": "~ {{ prompt }}"})
    assert (found.candidate_path, found.embed_model) == ([str(home / "c")], str(home / "m"))
    assert (found.save_indices_path, found.cache_dir) == (str(home / "n.npy"), str(home / "k"))
    assert found.query_template == "~ {{ prompt }}"


def test_paths_of_components_and_of_arguments_are_expanded(home: Path) -> None:
    (home / "m.npy").touch()
    assert dataflex.LessSelector(cache_dir="~/c").config.cache_dir == home / "c"
    assert dataflex.NearSelector(indices_path="~/m.npy").config.indices_path == home / "m.npy"
    assert dataflex.TsdsSelector(embed_model="~/m").config.embed_model == str(home / "m")
    assert dataflex.TrainingArguments(output_dir="~/o").output_dir == home / "o"


def test_an_unknown_home_is_an_error_with_its_key(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"output_dir: '~nosuchuser/x': ~nosuchuser is nobody's home here") as caught:
        load_config({"model_name_or_path": "m", "dataset": ["~nosuchuser/d"], "output_dir": "~nosuchuser/x"})
    assert "dataset: '~nosuchuser/d'" in str(caught.value)
    with pytest.raises(ConfigError, match="~nosuchuser is nobody's home here"):
        load_samples("~nosuchuser/rows.jsonl")
    with pytest.raises(ConfigError, match="~nosuchuser is nobody's home here"):
        dataflex.TrainingArguments(output_dir="~nosuchuser")


def test_rows_and_subsets_from_python(home: Path) -> None:
    write_rows(home / "rows.jsonl", alpaca_rows(6))
    assert len(load_samples("~/rows.jsonl")) == len(load_samples(Path("~/rows.jsonl"))) == 6
    chosen = dataflex.select(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        "~/rows.jsonl",
        selector=RandomSelector(),
        num_samples=2,
        template="chatml",
        output_dir="~/work",
    )
    chosen.write_jsonl("~/subset.jsonl")
    assert len((home / "subset.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert not Path("~").exists()
    assert len(tiny_dataset(2)) == 2


def test_the_command_line(home: Path, tmp_path: Path) -> None:
    run = tiny_project(tmp_path / "project", component_name="random", component_params={})
    done = CliRunner().invoke(cli, ["select", str(run), "-n", "2", "-o", "~/subset.jsonl", "output_dir=~/out"])
    assert done.exit_code == 0, done.output
    assert json.loads((home / "subset.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert not Path("~").exists()
    failed = CliRunner().invoke(cli, ["select", str(run), "-n", "2", "-o", "~nosuchuser/subset.jsonl"])
    assert failed.exit_code != 0
    assert "~nosuchuser is nobody's home here" in failed.output


@pytest.mark.parametrize("value", ["a/~", "./~", "~x~".replace("~", "t"), None, 3, "hub/id"])
def test_what_does_not_start_with_it_stays(value: object) -> None:
    assert expand_home(value) == value
