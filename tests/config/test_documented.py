"""The configurations that DataFlex's own documentation prints, keys as printed there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dataflex.config import load_config, load_export_config
from dataflex.config.components import packaged_file
from dataflex.errors import ConfigError
from helpers.plugins import Site, plugin_site

FIXTURES = Path(__file__).parents[1] / "fixtures"
NICE = FIXTURES / "documented_nice.yaml"
NEAR = FIXTURES / "documented_near.yaml"
COMPONENTS = FIXTURES / "documented_components.yaml"
MERGE = FIXTURES / "documented_merge.yaml"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.chdir(tmp_path)
    with plugin_site(tmp_path, monkeypatch) as made:
        yield made


@pytest.mark.usefixtures("site")
def test_nice_loads_with_only_the_reward_backend_changed() -> None:
    reward = "component_params.reward_backend_params={metric: {metric: exact_match}}"
    config = load_config(NICE, ["component_params.reward_model_backend=metric", reward], check_component=True)
    assert (config.lora_alpha, config.learning_rate, config.planned_steps) == (8, 1e-4, 30)
    assert config.component().params["reward_model_backend"] == "metric"
    keys = [warning.split(": ")[1] for warning in config.warnings()]
    assert keys == ["save_steps", "components_cfg_file", "early_stopping_steps"]


@pytest.mark.usefixtures("site")
def test_nice_loads_with_the_components_file_as_printed() -> None:
    config = load_config(NICE, [f"components_cfg_file={COMPONENTS}"], check_component=True)
    assert config.component().params["reward_backend_params"]["api"]["api_key"] == "DF_API_KEY"


@pytest.mark.usefixtures("site")
def test_near_loads_with_the_components_file_as_printed() -> None:
    with pytest.raises(ConfigError, match=r"indices_path: .*/top_indices\.npy does not exist; .*`dataflex near`"):
        load_config(NEAR, [f"components_cfg_file={COMPONENTS}"], check_component=True)
    matrix = Path("src/dataflex/offline_selector/top_indices.npy")
    matrix.parent.mkdir(parents=True)
    matrix.touch()
    config = load_config(NEAR, [f"components_cfg_file={COMPONENTS}"], check_component=True)
    assert (config.ddp_timeout, config.planned_steps) == (1800, 1400)
    assert config.component().name == "near"
    assert config.warnings() == []


@pytest.mark.usefixtures("site")
def test_near_loads_with_the_packaged_file_once_the_offline_step_has_left_its_matrix() -> None:
    Path("top_indices.npy").touch()
    config = load_config(NEAR, check_component=True)
    assert config.component().params == {"indices_path": str(Path("top_indices.npy").absolute()), "cache_dir": None}


def test_the_packaged_components_are_those_printed_but_for_the_cache_and_the_measured_temperature() -> None:
    printed = yaml.safe_load(COMPONENTS.read_text())["nice"]
    packaged = yaml.safe_load(packaged_file().read_text())["selectors"]["nice"]
    assert packaged["params"].pop("cache_dir") is None
    assert printed["params"].pop("cache_dir") is not None
    assert packaged["params"].pop("generation_temperature") == 1.0  # docs/efficacy.md
    assert printed["params"].pop("generation_temperature") == 0.7
    assert packaged == printed


def test_merge_loads() -> None:
    config = load_export_config(MERGE)
    assert (config.adapter_name_or_path, config.export_size) == (["../dataflex_saves/nice_output"], 5)
    assert config.export_legacy_format is False


def test_a_merge_warns_and_reports_all_its_problems_at_once(tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    file.write_text("model_name_or_path: m\nexport_dir: d\nfinetuning_type: lora\n")
    [warning] = load_export_config(file).warnings()
    assert warning == f"{file}:3: finetuning_type: dataflex does not act on this LLaMA-Factory key"
    file.write_text("model_name_or_path: m\nexport_dri: x\nexport_device: gpu\nfinetuning_type: lora\n")
    with pytest.raises(ConfigError) as caught:
        load_export_config(file, ["export_legacy_format=true"])
    assert caught.value.problems == [
        f"{file}:2: unknown key 'export_dri'; did you mean 'export_dir'?",
        f"{file}:3: export_device: expected 'cpu' or 'auto', got 'gpu'; did you mean 'cpu'?",
        f"{file}: export_dir is required",
        "override export_legacy_format=true: export_legacy_format: not supported: pickled weights run code when they "
        "are loaded; set false for safetensors",
    ]
