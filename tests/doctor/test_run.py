from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dataflex.cli import cli
from dataflex.config import load_config
from dataflex.data import ChatTemplate, tokenize
from dataflex.data.collate import collate
from dataflex.doctor import fit
from dataflex.doctor.check import Check
from dataflex.doctor.run import diagnose_file
from dataflex.gradients.memory import bytes_per_token
from dataflex.models.losses import mean_losses
from dataflex.models.model import add_lora, load_model
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_model, tiny_samples, tiny_tokenizer
from dataflex.training.checkpoint import PREFIX, checkpoints
from helpers.doctor import write_project
from helpers.families import family_model
from helpers.runs import tiny_trainer


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def checks(*overrides: str) -> list[Check]:
    return diagnose_file("run.yaml", overrides)


def failures(*overrides: str) -> dict[str, Check]:
    return {check.name: check for check in checks(*overrides) if check.status == "fail"}


@pytest.mark.usefixtures("project")
def test_a_sound_run_passes_everything() -> None:
    found = checks()
    assert {check.name: check.status for check in found} == dict.fromkeys(
        (
            "configuration",
            "output folder",
            "selector",
            "tokenizer",
            "rows",
            "template",
            "training set",
            "labels",
            "evaluation set",
            "schedule",
            "candidates",
            "model",
            "tokens and positions",
            "memory",
            "disk, checkpoints",
            "disk, features",
        ),
        "pass",
    )
    details = {check.name: check.detail for check in found}
    assert details["schedule"] == "7 steps of 2 rows; 2 selections of up to 6 of 12"
    assert "[[" in details["labels"]
    assert "16 rows of 256 numbers, 2 times" in details["disk, features"]
    assert not Path("out").exists()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("overrides", "name", "fix"),
    [
        (["lora_rnak=4"], "configuration", None),
        (["dataset=nowhere.jsonl"], "rows", "dataset_info.json"),
        (["model_name_or_path=./nowhere"], "configuration", None),
        (["template=nonsense"], "template", "path of a .jinja file"),
        (["update_step=7"], "schedule", "update_step of at most 6"),
        (["lora_target=nothing"], "model", "q_proj"),
        (["eval_dataset=null"], "configuration", "set eval_dataset"),
        (
            ["component_name=nice", "component_params={reward_model_backend: api}"],
            "reward",
            "DF_API_KEY",
        ),
    ],
)
def test_what_is_wrong_fails_with_its_fix(
    overrides: list[str], name: str, fix: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DF_API_KEY", raising=False)
    found = failures(*overrides)
    assert name in found
    assert fix is None or fix in f"{found[name].detail} {found[name].fix}"


@pytest.mark.usefixtures("project")
def test_a_judge_that_cannot_be_reached_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DF_API_KEY", "sk-4f9a")
    with socket.socket() as unused:  # bound and not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        params = f"{{reward_model_backend: api, reward_backend_params: {{api: {{api_url: '{url}', model_name: m}}}}}}"
        found = failures("component_name=nice", f"component_params={params}")
    assert f"the judge at {url} cannot be reached: no connection" in found["reward"].detail


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("overrides", "schedule", "checkpoints", "features"),
    [
        # Regularly at 2, 4 and 6, before the selections at 1 and 4, at the end (7).
        ([], "2 selections of up to 6", "5 of them and", ", 2 times"),
        (["save_total_limit=1", "component_params.keep_features=none"], "2 selections", "2 of them and", "numbers"),
        # The second cycle ends in its second selection: 1, 4 | 8, 11.
        (["num_train_epochs=1.7", "save_steps=100"], "12 steps of 2 rows; 4 selections", "5 of them and", ", 2 times"),
        (
            [
                "num_train_epochs=2",
                "save_steps=100",
                "component_params.keep_features=all",
                "load_best_model_at_end=true",
            ],
            "14 steps of 2 rows; 4 selections",
            "5 of them, the best model and",
            ", 4 times",
        ),
        (["num_train_epochs=0.1"], "1 steps of 2 rows", "1 of them and", None),
        (["component_params.scoring=exact"], "2 selections of up to 6", "5 of them and", None),
    ],
)
def test_checkpoints_and_features_are_counted_over_the_whole_run(
    overrides: list[str], schedule: str, checkpoints: str, features: str | None
) -> None:
    details = {check.name: check.detail for check in checks("eval_strategy=epoch", *overrides)}
    assert schedule in details["schedule"]
    assert checkpoints in details["disk, checkpoints"]
    assert ("disk, features" in details) == (features is not None)
    assert features is None or details["disk, features"].endswith(features)


def test_the_checkpoints_that_are_counted_are_those_that_a_run_saves(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, selector=RandomSelector(), num_train_epochs=1.5, save_steps=4)
    trainer.train()
    saved = {int(path.name.removeprefix(PREFIX)) for path in checkpoints(tmp_path)}
    assert saved == fit.checkpoint_steps(trainer.phases, 4) == {2, 4, 5, 8, 10, 12}


@pytest.mark.usefixtures("project")
def test_a_run_without_selections_needs_no_rows_for_one() -> None:
    assert "schedule" not in failures("update_step=7", "update_times=0", "warmup_step=3")


def test_a_folder_that_is_taken_fails_unless_the_run_says_what_to_do(project: Path) -> None:
    (project / "out").mkdir()
    assert failures() == {}
    (project / "out" / "file").touch()
    assert "resume_from_checkpoint" in str(failures()["output folder"].fix)
    assert failures("overwrite_output_dir=true") == {}
    assert failures("resume_from_checkpoint=true") == {}


def test_rows_without_answers_fail(project: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}]}] * 30
    (project / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert failures()["labels"].detail == "none of 30 rows has a token to learn"


def test_many_cut_or_empty_rows_are_warnings(project: Path) -> None:
    text = (project / "train.jsonl").read_text()
    warned = {check.name for check in checks("cutoff_len=12") if check.status == "warn"}
    assert "training set" in warned
    rows = [json.loads(line) for line in text.splitlines()]
    messages = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in rows
    ]
    for row in messages[:3]:
        del row["messages"][1]
    (project / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    found = [check for check in checks() if check.status == "warn"]
    assert [(check.name, check.detail) for check in found] == [("labels", "3 of 12 rows have no token to learn")]


def test_what_stands_out_in_rows_is_a_warning_each(project: Path) -> None:
    path = project / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["completion"], rows[1]["completion"] = " ", "I am {{name}}."
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [check for check in checks() if check.status == "warn"]
    assert [(check.name, check.detail[:30]) for check in found] == [
        ("training set", "1 of 12 rows have an empty ans"),
        ("training set", "1 of 12 rows have a placeholde"),
    ]


def test_a_folder_without_safetensors_fails(project: Path) -> None:
    (project / "model" / "model.safetensors").unlink()
    assert "there are no weights in" in failures()["model"].detail


@pytest.mark.usefixtures("project")
def test_too_little_memory_or_disk_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda device: 320_000)
    statuses = {check.name: check.status for check in checks()}
    assert statuses["memory"] == "warn"
    monkeypatch.setattr(fit, "available_bytes", lambda device: 1000)
    monkeypatch.setattr(fit.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert set(failures()) == {"memory", "disk, checkpoints", "disk, features"}


@pytest.mark.usefixtures("project")
def test_the_outline_is_that_of_the_loaded_model() -> None:
    """Sizes exactly; activations as measured on the real model, whose attention keeps a little more or less."""
    config = load_config("run.yaml")
    model = add_lora(load_model("model"), rank=config.lora_rank, alpha=16)
    dataset = tokenize(tiny_samples(1), ChatTemplate.load("chatml", tiny_tokenizer()), 128, progress=False)
    batch = collate(list(dataset), 2)
    tokens = batch.input_ids.numel()
    found = fit.outline(config, tokens)
    assert found.parameters == sum(value.numel() for value in model.parameters())
    assert found.trainable == sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert found.base_bytes == 4 * (found.parameters - found.trainable)
    batch.labels[:] = batch.input_ids  # the outline takes the loss of every token
    measured = bytes_per_token(lambda: mean_losses(model, batch), tokens, model)
    assert found.bytes_per_token == pytest.approx(measured, rel=0.15)


@pytest.mark.usefixtures("project")
def test_recomputing_takes_less_memory_but_not_less_than_the_output_head() -> None:
    """Two layers: all but the head's part falls to about half, plus the layers' inputs."""
    plain, recomputing = (
        fit.outline(load_config("run.yaml", [f"gradient_checkpointing={value}"]), 64).bytes_per_token
        for value in ("false", "true")
    )
    head = 384 * 4  # bytes of a token's logits, float32
    assert head < recomputing < 0.8 * plain


@pytest.mark.usefixtures("project")
def test_a_model_that_cannot_run_without_values_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise NotImplementedError("aten::nonzero on meta\nmore")

    monkeypatch.setattr(fit, "_kept_bytes", refuse)
    found = {check.name: check for check in checks()}["memory"]
    assert found.status == "warn"
    assert "NotImplementedError: aten::nonzero on meta)" in found.detail


def test_an_adapter_that_cannot_be_read_fails(project: Path) -> None:
    (project / "adapter").mkdir()
    assert "cannot load the adapter" in failures("adapter_name_or_path=./adapter")["model"].detail


@pytest.mark.usefixtures("project")
def test_the_outline_leaves_the_models_attention_alone() -> None:
    before = dict(fit.ALL_ATTENTION_FUNCTIONS)
    fit.outline(load_config("run.yaml"), 8)
    assert dict(fit.ALL_ATTENTION_FUNCTIONS) == before
    assert torch.get_default_device().type == "cpu"


@pytest.mark.integration
@pytest.mark.usefixtures("project")
def test_the_command_checks_installation_and_run() -> None:
    done = CliRunner().invoke(cli, ["doctor", "run.yaml", "--json"])
    assert done.exit_code == 0, done.output
    names = {check["name"] for check in json.loads(done.stdout)}
    assert names >= {"projection sjlt", "labels", "memory"}
    done = CliRunner().invoke(cli, ["doctor", "run.yaml", "update_step=7"])
    assert done.exit_code == 1
    assert "FAIL  schedule" in done.stdout
    assert "what to do\n" in done.stdout


@pytest.mark.usefixtures("project")
def test_tokens_beyond_the_embedding() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<a>"])  # 385 tokens, the embedding has 384 rows
    tokenizer.save_pretrained("model")
    (check,) = [check for check in checks() if check.name == "tokens and positions"]
    assert (check.status, check.detail) == (
        "warn",
        "the tokenizer has 385 tokens, the model's embedding 384 rows; no row that was looked at uses one beyond",
    )
    with Path("target.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "say <a>", "completion": "a"}) + "\n")
    detail = failures()["tokens and positions"].detail
    assert detail.startswith("evaluation set: 1 of 5 rows use tokens beyond the model's embedding of 384 rows (the ")
    assert ": row 4 uses token 384 ('<a>'); " in detail


@pytest.mark.usefixtures("project")
def test_rows_and_answers_beyond_the_positions() -> None:
    def found(*overrides: str) -> list[tuple[str, str]]:
        of_all = checks(*overrides)
        return [(check.status, check.detail) for check in of_all if check.name == "tokens and positions"]

    tiny_model(max_position_embeddings=16).save_pretrained("model")
    rows = found()
    assert [status for status, _ in rows] == ["warn", "warn"]  # rotary positions go on
    assert "training set: 12 of 12 are longer than the 16 positions that the model was trained with" in rows[0][1]
    family_model("gpt2", n_positions=64).save_pretrained("model")
    assert found()[0] == ("pass", "embedding of 384 rows, 64 positions")
    ((status, detail),) = found("eval_metric={metric: exact_match}", "eval_strategy=epoch", "eval_max_new_tokens=60")
    assert status == "fail"
    assert detail.startswith("evaluation prompts with their longest answers: 4 of 4 are longer than the 64 positions")
    nice = ("component_name=nice", "component_params={reward: exact_match, max_new_tokens: 60}")
    ((status, detail),) = found(*nice)
    assert status == "fail"
    assert detail.endswith("lower max_new_tokens or max_prompt_length")
