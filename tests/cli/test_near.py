"""``dataflex near``: keys from a file, from arguments and from flags; errors with their line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import dataflex.retrieval.index
from dataflex import cli
from dataflex.config import NearConfig, load_near_config
from dataflex.errors import ConfigError
from dataflex.retrieval.matrix import load_matrix
from helpers.encoders import WordEncoder
from helpers.near import rows
from helpers.rows import write_rows

DOCUMENTED = """\
candidate_path: OpenDCAI/DataFlex-selector-openhermes-10w
query_path: OpenDCAI/DataFlex-selector-openhermes-10w
embed_model: Qwen/Qwen3-Embedding-0.6B
embed_method: auto
batch_size: 32
save_indices_path: top_indices.npy
max_K: 1000
cache_dir: ../dataflex_saves/near_output
"""


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, ["near", *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataflex.retrieval.index, "open_encoder", lambda model, settings: WordEncoder())
    write_rows(tmp_path / "train.jsonl", rows(10))
    write_rows(tmp_path / "target.jsonl", rows(1, start=50))
    return tmp_path


def test_the_documented_keys_load_with_the_documented_splits(tmp_path: Path) -> None:
    file = tmp_path / "near.yaml"
    file.write_text(DOCUMENTED)
    config = load_near_config(file)
    assert config.warnings() == []
    assert (config.max_K, config.batch_size, config.embed_method) == (1000, 32, "auto")
    assert (config.candidate_split, config.query_split) == ("train", "validation")


def test_model_name_is_another_name_of_embed_model() -> None:
    keys = {"candidate_path": "a", "query_path": "b"}
    assert load_near_config({**keys, "model_name": "m"}).embed_model == "m"
    with pytest.raises(ConfigError, match="model_name: 'm' is not embed_model, which is 'n'; keep one"):
        load_near_config({**keys, "model_name": "m", "embed_model": "n"})


def test_every_problem_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "near.yaml"
    file.write_text("candidate_path: a\nembed_modell: m\nmax_K: many\nsave_indices_path: x.txt\nbatch_size: 0\n")
    with pytest.raises(ConfigError) as caught:
        load_near_config(file, ["index=tree"])
    assert caught.value.problems == [
        f"{file}:2: unknown key 'embed_modell'; did you mean 'embed_model'?",
        f"{file}:3: max_K: expected an integer, got 'many'",
        f"{file}:4: save_indices_path: expected a name that ends with .npy, got 'x.txt'",
        f"{file}:5: batch_size: expected at least 1, got 0",
        f"{file}: query_path is required",
        f"{file}: embed_model is required",
        "override index=tree: index: expected 'auto', 'exact' or 'hnsw', got 'tree'",
    ]


def test_sentence_transformers_is_spelt_either_way() -> None:
    keys = {"candidate_path": "a", "query_path": "b", "embed_model": "m"}
    for spelling in ("sentence-transformer", "sentence-transformers"):
        assert load_near_config({**keys, "embed_method": spelling}).embed_method == "sentence-transformer"


def test_from_a_file_with_paths_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = folder / "configs"
    below.mkdir()
    write_rows(below / "near_target.jsonl", rows(2, start=50))
    (below / "near.yaml").write_text(
        "candidate_path: train.jsonl\nquery_path: near_target.jsonl\nembed_model: m\nmax_K: 4\n"
    )
    done = run("configs/near.yaml")
    assert done.exit_code == 0, done.output
    assert load_matrix(folder / "top_indices.npy").neighbors.shape == (6, 4)
    beside = "top_indices.similarities.npy, top_indices.rows.npy, top_indices.json"
    assert f"wrote top_indices.npy; beside it {beside}" in done.output
    assert (folder / "near_cache").is_dir()


def test_from_flags_and_arguments(folder: Path) -> None:
    done = run(
        "query_path=target.jsonl", "max_K=9", "--candidate-path", "train.jsonl", "--embed-model", "m", "--max-K", "5",
        "--save-indices-path", "out/it.npy", "--cache-dir", "cache",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert load_matrix(folder / "out" / "it.npy").neighbors.shape == (3, 5)
    assert (folder / "cache").is_dir()


def test_a_flag_wins_over_the_file(folder: Path) -> None:
    Path("near.yaml").write_text("candidate_path: train.jsonl\nquery_path: target.jsonl\nembed_model: m\nmax_K: 4\n")
    assert run("near.yaml", "--max-K", "2").exit_code == 0
    assert load_matrix(folder / "top_indices.npy").neighbors.shape == (3, 2)


def test_an_error_names_the_place_of_the_key(folder: Path) -> None:
    Path("near.yaml").write_text("candidate_path: train.jsonl\nquery_path: target.jsonl\nembed_model: m\nmax_K: 99\n")
    done = run("near.yaml")
    assert done.exit_code == 1
    assert (
        "error: near.yaml:4: max_K: 99 neighbours of each query are asked for, there are 30 candidates" in done.output
    )
    assert "hint: max_K: 30 or less" in done.output


def test_nothing_given_lists_what_is_required() -> None:
    done = run()
    assert done.exit_code == 1
    for key in ("candidate_path", "query_path", "embed_model"):
        assert f"{key} is required" in done.output


def test_help_describes_every_key_and_imports_nothing_heavy() -> None:
    text = run("--help").output
    flat = " ".join(text.split())
    for name, field in NearConfig.model_fields.items():
        assert f"--{name.replace('_', '-')} VALUE" in text
        assert str(field.description).split(";")[0][:40] in flat
    script = (
        "import sys\nfrom dataflex.cli import cli\n"
        "try:\n    cli(['near', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    done: Any = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
