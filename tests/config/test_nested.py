"""Mistakes below a parameter, and parameters that do nothing because of others: the user's own line, all at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from dataflex.cli import cli
from dataflex.config import load_config, load_near_config
from dataflex.errors import ConfigError

HEAD = """model_name_or_path: m
dataset: d.jsonl
eval_dataset: e.jsonl
output_dir: out
train_type: dynamic_select
component_name: nice
update_step: 1
component_params:
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(HEAD + text, encoding="utf-8")
    return file


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text), overrides, check_component=True)
    return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]


def test_a_nested_mistake_has_the_user_s_line_and_the_nearest_key_beside_all_others(tmp_path):
    text = """  reward_model_backend: metric
  mc_sampels: 3
  reward_backend_params:
    metric:
      metric: exact_match
      containz: true
    metrik: {metric: f1}
  rollout_backend_params: {gpu_memory_utilisation: 2}
"""
    found = problems(tmp_path, "  max_new_tokens: 0\n" + text, "learning_rate=-1")
    expected = (
        ("run.yaml:9: ", "max_new_tokens: expected at least 1"),
        ("run.yaml:11: ", "unknown key 'mc_sampels'; did you mean 'mc_samples'?"),
        ("run.yaml:15: ", "reward_backend_params.metric: unknown key 'containz'; did you mean 'contains'?"),
        ("run.yaml:16: ", "'metrik' is neither a reward backend nor a metric; did you mean 'metric'?"),
        ("run.yaml:17: ", "unknown key 'rollout_backend_params.gpu_memory_utilisation'"),
        ("override learning_rate", "learning_rate: expected more than 0"),
    )
    assert len(found) == len(expected)
    for place, text in expected:
        assert [line for line in found if line.startswith(place) and text in line], (place, found)


def test_what_is_absent_lies_where_its_backend_was_named(tmp_path):
    text = "  reward_model_backend: api\n  reward_backend_params: {api: {api_url: http://x/v1}}\n"
    components = "components_cfg_file=false"
    found = problems(tmp_path, text, components)
    assert [line for line in found if line.startswith("run.yaml:9: reward_backend_params.api: model_name is required")]


def test_a_reward_of_its_own_params_is_checked_the_same_way(tmp_path):
    found = problems(tmp_path, "  reward: {name: metric, params: {metric: exact_match, containz: true}}\n")
    assert len(found) == 1
    assert found[0].startswith("run.yaml:9: reward.params: unknown key 'containz'; did you mean 'contains'")


def test_an_unknown_backend_lies_at_its_name(tmp_path):
    found = problems(tmp_path, "  seed: 1\n  reward_model_backend: metrc\n")
    assert found[0].startswith("run.yaml:10: unknown reward 'metrc'")
    assert "did you mean 'metric'" in found[0]


def test_a_prefilter_s_mistakes_have_their_lines_beside_all_others(tmp_path):
    text = """  reward: exact_match
  prefilter:
    name: rds
    keep: 1.5
    params:
      agregate: max
  mc_sampels: 3
"""
    found = problems(tmp_path, text)
    assert [line.split(": ", 1)[0] for line in found] == ["run.yaml:12", "run.yaml:14", "run.yaml:15"]
    assert "prefilter.keep: expected less than 1" in found[0]
    assert "prefilter.params: unknown key 'agregate'; did you mean 'aggregate'?" in found[1]
    absent = problems(tmp_path, "  reward: exact_match\n  prefilter: {name: near, keep: 0.5}\n")
    assert absent == ["run.yaml:10: prefilter.params: indices_path is required"]


def test_paths_of_a_prefilter_start_at_the_file_that_names_them(tmp_path, monkeypatch):
    (tmp_path / "top.npy").touch()
    (tmp_path / "elsewhere").mkdir()
    prefilter = "{name: near, keep: 0.5, params: {indices_path: top.npy}}"
    file = written(tmp_path, f"  reward: exact_match\n  prefilter: {prefilter}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    params = load_config(file, (), check_component=True).component().params
    assert params["prefilter"]["params"] == {"indices_path": str(tmp_path / "top.npy")}


def test_parameters_that_do_nothing_beside_others_are_named(tmp_path):
    text = """  reward: exact_match
  reward_model_backend: metric
  reward_backend_params: {api: {model_name: x}, exact_match: {contains: true}}
  gradient_type: sgd
  adam_variant: less
  rollout_backend_params: {enforce_eager: true}
"""
    found = [line.replace(f"{tmp_path}/", "") for line in load_config(written(tmp_path, text)).warnings()]
    for line in (
        "run.yaml:10: component_params.reward_model_backend: has no effect beside reward",
        "run.yaml:11: component_params.reward_backend_params.api: has no effect: the reward is exact_match",
        "run.yaml:13: component_params.adam_variant: has no effect with gradient_type sgd",
    ):
        assert [warning for warning in found if warning.startswith(line)], (line, found)
    assert not [warning for warning in found if "reward_backend_params.exact_match" in warning]


def test_keys_of_a_new_adapter_beside_an_old_one_are_named_and_defaults_are_not(tmp_path):
    (tmp_path / "adapter").mkdir()
    base = {"model_name_or_path": "m", "dataset": "d", "output_dir": "o", "adapter_name_or_path": str(tmp_path)}
    keys = {"lora_rank": 4, "per_device_eval_batch_size": 3, "components_cfg_file": "x"}
    warned = load_config(base | keys).warnings()
    assert [line.split(": ")[0] for line in warned] == [
        "components_cfg_file",
        "per_device_eval_batch_size",
        "lora_rank",
    ]
    assert load_config({**base, "lora_rank": 8, "lora_alpha": 16, "save_steps": 500}).warnings() == []


def test_nobody_is_warned_about_defaults(tmp_path):
    text = "  reward_model_backend: metric\n  reward_backend_params: {metric: {metric: exact_match}}\n"
    assert load_config(written(tmp_path, text)).warnings() == []
    warned = load_config(written(tmp_path, text), ["save_steps=400", "logging_steps=400"]).warnings()
    assert [line.split(": ")[1] for line in warned] == ["save_steps", "logging_steps"]


def test_keys_of_the_graph_beside_an_exact_search_are_named():
    near = {"candidate_path": "c", "query_path": "q", "embed_model": "m", "index": "exact"}
    assert load_near_config(near | {"hnsw_m": 32}).warnings() == []
    warned = load_near_config(near | {"hnsw_m": 8, "min_recall": 0.9, "embed_method": "vllm", "embed_device": "cpu"})
    assert [line.split(":")[0] for line in warned.warnings()] == ["min_recall", "hnsw_m", "embed_device"]


def test_an_export_names_keys_without_effect(tmp_path, monkeypatch):
    done = {"largest_logit_difference": None, "export_dir": "x", "dtype": "float32", "files": []}
    monkeypatch.setattr("dataflex.models.export.export", lambda run: done)
    file = tmp_path / "merge.yaml"
    file.write_text("model_name_or_path: m\nexport_dir: x\nexport_size: 010\nlora_rank: 3\n", encoding="utf-8")
    said = CliRunner().invoke(cli, ["export", str(file)]).stderr
    assert "export_size: 010 is 8" in said
    assert "merge.yaml:4: lora_rank" in said
