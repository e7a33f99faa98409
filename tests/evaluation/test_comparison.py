from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dataflex.cli import cli
from dataflex.config import RunConfig, load_config
from dataflex.errors import ConfigError, ModelError
from dataflex.evaluation.comparison import Comparison, Ratios, Scored, compare, default_trained, estimates
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from helpers.documented import LLAMA3_TOKENS, documented_project

LENGTH = "helpers.rewards:text_length"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documented working directory with two adapters of its model."""
    root = documented_project(tmp_path)
    monkeypatch.chdir(root)
    size = len(tiny_tokenizer(extra_tokens=LLAMA3_TOKENS))
    for seed in (0, 1):
        tiny_lora(tiny_model(vocab_size=size, max_position_embeddings=1024), seed=seed).save_pretrained(
            f"adapter{seed}"
        )
    return root


def run_config(*overrides: str) -> RunConfig:
    return load_config("nice.yaml", ["bf16=false", f"eval_metric={LENGTH}", "eval_max_new_tokens=6", *overrides])


def ratios(values: np.ndarray, weights: np.ndarray | None = None) -> Ratios:
    return Ratios(values, np.ones_like(values) if weights is None else weights)


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    stream = np.random.default_rng(0)
    tokens = stream.integers(1, 20, size=40).astype(float)
    nats = tokens * stream.uniform(1, 3, size=40)
    better = nats - 0.2 * tokens + stream.normal(0, 0.01, size=40)
    scored = [Scored("base", {"eval_loss": ratios(nats, tokens)}), Scored("a", {"eval_loss": ratios(better, tokens)})]
    base, other = estimates(scored, resamples=4000, seed=1)

    drawn = np.random.default_rng(7).integers(0, 40, size=(4000, 40))
    plain = nats[drawn].sum(1) / tokens[drawn].sum(1)
    expected = np.quantile(plain, [0.025, 0.975])
    found = base.estimates["eval_loss"]
    assert found.value == pytest.approx(nats.sum() / tokens.sum())
    assert [found.low, found.high] == pytest.approx(expected, abs=0.02)
    paired = better[drawn].sum(1) / tokens[drawn].sum(1) - plain
    difference = other.differences["eval_loss"]
    assert [difference.low, difference.high] == pytest.approx(np.quantile(paired, [0.025, 0.975]), abs=0.002)
    assert difference.high < 0
    assert difference.high - difference.low < found.high - found.low  # paired: both models find the same rows hard
    assert base.differences == {}


def test_rows_that_lack_a_quantity_do_not_count() -> None:
    values, weights = np.array([1.0, 0.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    [found] = estimates([Scored("base", {"eval_x": ratios(values, weights)})], resamples=500, seed=0)
    assert found.estimates["eval_x"].value == pytest.approx(2 / 3)
    assert 0 <= found.estimates["eval_x"].low <= found.estimates["eval_x"].high <= 1


def test_the_same_seed_gives_the_same_intervals() -> None:
    scored = [Scored("base", {"eval_x": ratios(np.random.default_rng(0).uniform(size=30))})]
    assert estimates(scored, resamples=250, seed=3) == estimates(scored, resamples=250, seed=3)
    assert estimates(scored, resamples=250, seed=3) != estimates(scored, resamples=250, seed=4)


@pytest.mark.integration
@pytest.mark.usefixtures("project")
def test_adapters_are_compared_with_their_base_model_one_by_one() -> None:
    found = compare(run_config(), ["adapter0", "adapter1", "adapter0"], resamples=50)
    base, first, second, again = found.results
    assert [result.name for result in found.results] == ["base", "adapter0", "adapter1", "adapter0"]
    assert set(base.estimates) == {"eval_loss", "eval_text_length"}
    assert first == again  # unloading leaves nothing of an adapter behind
    assert first.estimates != second.estimates
    difference = first.differences["eval_loss"].value
    assert difference == pytest.approx(first.estimates["eval_loss"].value - base.estimates["eval_loss"].value)
    alone = compare(run_config("eval_metric=null"), [], resamples=50)
    assert alone.results[0].estimates["eval_loss"] == base.estimates["eval_loss"]
    assert set(alone.results[0].estimates) == {"eval_loss"}


@pytest.mark.integration
def test_the_command_prints_a_table_or_json_and_writes_answers(project: Path) -> None:
    command = ["eval", "nice.yaml", "bf16=false", f"eval_metric={LENGTH}", "eval_max_new_tokens=6", "--resamples", "20"]
    done = CliRunner().invoke(cli, [*command, "--adapter", "adapter0", "--answers", "answers.jsonl"])
    assert done.exit_code == 0, done.output
    head, base, adapter, note = done.stdout.splitlines()
    assert head.split("  ")[0] == "model"
    assert "eval_loss - base" in head
    assert "eval_text_length" in head
    assert base.startswith("base ")
    assert adapter.startswith("adapter0 ")
    assert note == "2 rows of my_target; in brackets: 95% intervals, 20 draws"
    rows = [json.loads(line) for line in (project / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["model"] for row in rows] == ["base", "base", "adapter0", "adapter0"]
    assert all(row["reward"] == len(row["text"]) % 7 / 6 for row in rows)
    assert all(row["prompt"][-1]["role"] == "user" and row["reference"] for row in rows)
    done = CliRunner().invoke(cli, [*command, "--adapter", "adapter0", "--json"])
    found = json.loads(done.stdout)
    assert found["samples"] == 2
    assert [model["name"] for model in found["models"]] == ["base", "adapter0"]
    loss = found["models"][0]["estimates"]["eval_loss"]
    assert loss["low"] <= loss["value"] <= loss["high"]
    assert found["models"][1]["differences"].keys() == {"eval_loss", "eval_text_length"}


@pytest.mark.usefixtures("project")
def test_without_names_the_adapter_of_the_run_is_taken(project: Path) -> None:
    with pytest.raises(ModelError, match="holds nothing trained yet"):
        default_trained(run_config())
    assert default_trained(run_config("adapter_name_or_path=adapter1")) == ["adapter1"]
    assert default_trained(run_config("output_dir=adapter0")) == ["adapter0"]
    with pytest.raises(ModelError, match=r"adapter_config.json is missing in .*data"):
        compare(run_config(), ["adapter0", "data"])
    done = CliRunner().invoke(cli, ["eval", "nice.yaml", "--base-only", "--adapter", "adapter0"])
    assert done.exit_code == 2


@pytest.mark.usefixtures("project")
def test_a_run_without_evaluation_data_cannot_be_evaluated() -> None:
    none = ["eval_dataset=null", "eval_strategy=no", "load_best_model_at_end=false", "early_stopping_steps=null"]
    with pytest.raises(ConfigError, match="there is nothing to evaluate on"):
        compare(run_config(*none, "train_type=static"), [])


def test_a_comparison_without_rows_of_one_quantity_still_prints() -> None:
    scored = [Scored("base", {"eval_x": ratios(np.array([0.0, 1.0]))})]
    lines = Comparison("d", 2, 10, estimates(scored, resamples=10, seed=0), scored).lines()
    assert lines[0].split() == ["model", "eval_x", "eval_x", "-", "base"]
    assert "0.5000 [" in lines[1]


@pytest.mark.usefixtures("project")
def test_a_model_without_room_for_a_row_is_not_evaluated() -> None:
    tiny_model(vocab_size=100).save_pretrained("model")
    with pytest.raises(ModelError, match=r"evaluation set: .* use tokens beyond the model's embedding of 100 rows"):
        compare(run_config(), [])
