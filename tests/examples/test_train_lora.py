"""The configurations of ``examples/train_lora`` and ``examples/merge_lora``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dataflex.cli import cli
from dataflex.config import load_config, load_export_config
from dataflex.testing import tiny_model, tiny_tokenizer
from helpers.near import near_index
from helpers.scripts import ROOT

EXAMPLES = ROOT / "examples"
SELECTORS = ["less", "near", "nice", "random"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the repository, where all outputs go elsewhere: a tiny model, and NEAR's matrix."""
    monkeypatch.chdir(ROOT)
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_model(max_position_embeddings=512).save_pretrained(tmp_path / "model")
    return tmp_path


def matrix(folder: Path) -> Path:
    data = {"dataset_dir": str(EXAMPLES / "quickstart" / "data")}
    target = str(EXAMPLES / "near" / "target.jsonl")
    near_index(folder, "quickstart_train", target, max_K=40, save_indices_path=folder / "near.npy", **data).build()
    return folder / "near.npy"


@pytest.mark.integration
@pytest.mark.parametrize("selector", SELECTORS)
def test_the_small_variant_trains(selector: str, work: Path) -> None:
    out = work / selector
    command = ["train", f"examples/train_lora/cpu/{selector}.yaml", f"model_name_or_path={work}/model"]
    command.append(f"output_dir={out}")
    if selector == "near":
        command.append(f"component_params.indices_path={matrix(work)}")
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "has no effect" not in done.stderr
    assert "beyond the run" not in done.stderr
    assert sorted(path.name for path in (out / "selections").iterdir()) == ["step-2.parquet", "step-4.parquet"]
    if selector == "nice":
        merge = [f"model_name_or_path={work}/model", f"adapter_name_or_path={out}", f"export_dir={work}/merged"]
        done = CliRunner().invoke(cli, ["export", "examples/merge_lora/cpu.yaml", *merge])
        assert done.exit_code == 0, done.output
        assert (work / "merged" / "model.safetensors").is_file()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "left"),
    [("doremi", ["mixtures/step-0.json", "mixtures/step-2.json", "mixtures/step-4.json"]), ("weights", [])],
)
def test_the_small_variant_mixes_or_weighs(name: str, left: list[str], work: Path) -> None:
    out = work / name
    command = ["train", f"examples/train_lora/cpu/{name}.yaml", f"model_name_or_path={work}/model"]
    done = CliRunner().invoke(cli, [*command, f"output_dir={out}"])
    assert done.exit_code == 0, done.output
    assert "has no effect" not in done.stderr
    assert "beyond the run" not in done.stderr
    assert [path for path in left if not (out / path).is_file()] == []
    log = (out / "trainer_log.jsonl").read_text(encoding="utf-8")
    assert log.count('"weight_median"') == (4 if name == "weights" else 0)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert ("weights of samples" if name == "weights" else "doremi: 2 mixtures") in page


@pytest.mark.parametrize("path", ["mixers/doremi", "weighters/loss"])
def test_the_documented_mixer_and_weighter_load_without_a_warning(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(f"examples/train_lora/{path}.yaml", check_component=True)
    assert config.warnings() == []
    assert config.component().name == Path(path).name


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_documented_variant_loads_without_a_warning(
    selector: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    overrides = [f"component_params.indices_path={matrix(tmp_path)}"] if selector == "near" else []
    config = load_config(f"examples/train_lora/selectors/{selector}.yaml", overrides, check_component=True)
    assert config.warnings() == []
    assert config.component().name == selector


def test_random_is_nice_but_for_the_selector() -> None:
    def keys(name: str) -> dict[str, object]:
        found = yaml.safe_load((EXAMPLES / "train_lora" / "selectors" / f"{name}.yaml").read_text(encoding="utf-8"))
        return {key: found[key] for key in found if "eval" not in key and "step" not in key}

    different = {key for key, value in keys("nice").items() if keys("random").get(key) != value}
    best = {"metric_for_best_model", "greater_is_better", "load_best_model_at_end", "early_stopping_min_delta"}
    assert different - best == {"component_name", "output_dir"}


@pytest.mark.parametrize("name", ["cpu", "llama3_lora_sft"])
def test_merges_load_and_name_what_the_runs_leave(name: str) -> None:
    merge = load_export_config(EXAMPLES / "merge_lora" / f"{name}.yaml")
    assert merge.warnings() == []
    run = "cpu/nice.yaml" if name == "cpu" else "selectors/nice.yaml"
    trained = yaml.safe_load((EXAMPLES / "train_lora" / run).read_text(encoding="utf-8"))
    assert merge.adapter_name_or_path == [trained["output_dir"]]
    assert (merge.model_name_or_path, merge.template) == (trained["model_name_or_path"], trained["template"])


def test_the_page_names_every_file() -> None:
    folder = EXAMPLES / "train_lora"
    linked = set(
        re.findall(
            r"\(((?:selectors|mixers|weighters|cpu)/\w+\.yaml)\)", (folder / "README.md").read_text(encoding="utf-8")
        )
    )
    assert linked == {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}
