from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dataflex.config import RunConfig, config_schema, load_config, versions
from dataflex.utils.messages import redact

RUN: dict[str, Any] = {
    "model_name_or_path": "owner/model",
    "dataset": "rows, more/rows.json",
    "output_dir": "out",
    "train_type": "dynamic_select",
    "component_name": "nice",
    "eval_dataset": "held_out",
    "update_step": 2,
    "num_train_epochs": 1.0,
    "learning_rate": 1e-4,
    "logging_steps": 1,
    "save_steps": 1,
    "report_to": "none",
    "component_params": {"proj_dim": 64},
}


def replay(config: RunConfig, folder: Path) -> RunConfig:
    file = folder / "replay.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    return load_config(file)


def test_a_resolved_run_repeats_the_run(tmp_path: Path) -> None:
    config = load_config(RUN)
    again = replay(config, tmp_path)
    inlined = {"components_cfg_file", "component_params"}
    assert again.model_dump(exclude=inlined) == config.model_dump(exclude=inlined)
    assert again.component().params == config.component().params
    assert again.warnings() == config.warnings()
    body = yaml.safe_load(config.to_yaml())
    assert yaml.safe_load(again.to_yaml()) == body
    assert body["components_cfg_file"] is False
    assert body["component_params"]["proj_dim"] == 64
    assert body["component_params"]["mc_samples"] == 4


def test_a_static_run_repeats_without_new_warnings(tmp_path: Path) -> None:
    config = RunConfig(model_name_or_path="m", dataset=["d"], output_dir="o")
    again = replay(config, tmp_path)
    assert again.model_dump() == config.model_dump()
    assert again.warnings() == []


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for name in (folder / "model", folder / "data", folder / "rows", elsewhere):
        name.mkdir(parents=True)
    (folder / "extra.json").write_text("[]")
    (folder / "run.yaml").write_text(
        "model_name_or_path: model\ndataset: [rows, extra.json, owner/rows]\noutput_dir: out\ndataset_dir: data\n"
    )
    monkeypatch.chdir(elsewhere)
    body = yaml.safe_load(load_config(folder / "run.yaml").to_yaml())
    assert body["model_name_or_path"] == str(folder / "model")
    assert body["dataset_dir"] == str(folder / "data")
    assert body["dataset"] == ["rows", str(folder / "extra.json"), "owner/rows"]
    assert body["output_dir"] == "out"


def test_the_head_says_what_wrote_it_and_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    head = [line for line in load_config(RUN).to_yaml().splitlines() if line.startswith("#")]
    text = "\n".join(head)
    assert f"python {platform.python_version()}" in text
    assert "torch 2." in text
    assert "+00:00" in text
    assert head[-1] == "# git: none"


def test_the_head_names_the_git_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *identity, *arguments], check=True)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert f"# git: {revision}\n" in load_config(RUN).to_yaml()


def test_secrets_are_not_written() -> None:
    # unchecked values: the loader would refuse them
    config = RunConfig.model_construct(
        **load_config({**RUN, "train_type": "static"}).model_dump()
        | {
            "swanlab_api_key": "verysecret1",
            "component_params": {"a": [{"api_key": "verysecret2", "x": "sk-verysecret3"}], "api_key": "DF_API_KEY"},
        }
    )
    text = config.to_yaml()
    assert "verysecret" not in text
    assert yaml.safe_load(text)["component_params"]["api_key"] == "DF_API_KEY"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_redaction_leaves_everything_else_as_it_is(value: Any) -> None:
    safe = json.dumps(value)
    if not any(word in safe for word in ("sk-", "hf_", "api_key", "secret", "password", "webhook_url", "token")):
        assert redact(value) == value


def test_versions_are_read_without_importing_the_packages() -> None:
    found = versions()
    assert list(found)[:2] == ["dataflex", "python"]
    assert found["torch"] not in ("", "not installed")


def test_the_schema_describes_every_key() -> None:
    schema = config_schema()
    properties = schema["properties"]
    assert set(properties) == set(RunConfig.model_fields)
    assert all(entry["description"] for entry in properties.values())
    assert schema["required"] == ["model_name_or_path", "dataset", "output_dir"]
    assert False in properties["eval_strategy"]["enum"]
    assert {"type": "null"} in properties["report_to"]["anyOf"]
    assert properties["lora_dropout"]["exclusiveMaximum"] == 1
    json.dumps(schema, allow_nan=False)


def test_characters_that_act_are_escaped_and_mean_the_same() -> None:
    name = "a\u202eb\x9b\u65e5"
    text = load_config(RUN, [f"run_name={yaml.safe_dump(name)}"]).to_yaml()
    assert not {"\u202e", "\x9b"} & set(text)
    assert yaml.safe_load(text)["run_name"] == name
