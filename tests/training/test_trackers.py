"""What every tracker receives, read back from where it stores it; no tracker talks to a network here."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dataflex.config import RunConfig
from dataflex.curriculum.schedule import Schedule
from dataflex.errors import ConfigError, TrainingError
from dataflex.selectors.random import RandomSelector
from dataflex.training.arguments import TrainingArguments
from dataflex.training.run import training_arguments
from helpers.runs import tiny_trainer
from helpers.tracker_files import records

Series = dict[str, dict[int, float]]
"""Per quantity its values by step."""

# The trackers' own packages warn about themselves and their dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")


def train(output_dir: Path, tracker: str, **args: Any) -> Series:
    """A run with two NICE selections and an evaluation; returns what its own log says."""
    trainer = tiny_trainer(output_dir, report_to=[tracker], eval_strategy="steps", eval_steps=4, **args)
    trainer.train()
    logged: Series = {}
    for line in (output_dir / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for key in entry.keys() - {"current_steps", "total_steps", "percentage", "elapsed_time", "remaining_time"}:
            logged.setdefault(key, {})[entry["current_steps"]] = entry[key]
    return logged


def assert_received(found: Series, logged: Series) -> None:
    """The tracker has every value of the log, the ones that matter among them."""
    assert list(logged["loss"]) == list(logged["learning_rate"]) == list(range(1, 9))
    assert list(logged["selection_mean_score"]) == [2, 5]
    assert list(logged["selection_overlap"]) == [5]
    assert list(logged["eval_loss"]) == [4, 8]
    for phase in ("answers", "rewards", "total"):
        assert list(logged[f"selection_seconds/{phase}"]) == [2, 5]
    assert {key: found[key] for key in logged} == {
        key: pytest.approx(values, rel=1e-5, abs=1e-9) for key, values in logged.items()
    }


def assert_drawn(folder: Path, pattern: str) -> None:
    """The tracker has pictures of both selections."""
    for step in (2, 5):
        files = [*folder.rglob(pattern.format(step=step))]
        assert files
        assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_tensorboard(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged = train(tmp_path, "tensorboard")
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {key: {event.step: event.value for event in events.Scalars(key)} for key in events.Tags()["scalars"]}
    assert_received(found, logged)
    pictures = {key: [event.step for event in events.Images(key)] for key in events.Tags()["images"]}
    assert pictures["report/losses"] == pictures["report/scores"] == [2, 5]
    image = events.Images("report/scores")[0]
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert image.width > image.height > 100
    [written] = (tmp_path / "tensorboard").glob("*/hparams.yml")
    assert "learning_rate: 0.01" in written.read_text(encoding="utf-8")


def test_tensorboard_goes_on_in_the_same_folder_and_hides_steps_that_are_taken_again(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged = train(tmp_path, "tensorboard", save_steps=3)
    resumed = train(
        tmp_path, "tensorboard", resume_from_checkpoint=tmp_path / "checkpoint-6", overwrite_output_dir=True
    )
    assert resumed["loss"] == logged["loss"]
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 9))
    tiny_trainer(
        tmp_path,
        report_to=["tensorboard"],
        overwrite_output_dir=True,
        selector=RandomSelector(),
        schedule=Schedule(1),
    ).train()
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "selection")
    monkeypatch.chdir(tmp_path)
    logged = train(tmp_path / "out", "mlflow", run_name="first")
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("selection").experiment_id])
    found = {
        key: {entry.step: entry.value for entry in client.get_metric_history(run.info.run_id, key)}
        for key in run.data.metrics
    }
    assert_received(found, logged)
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert_drawn(tmp_path / "mlruns", "scores-step-{step}.png")
    assert run.data.params["selector"] == "nice"
    assert float(run.data.params["learning_rate"]) == 0.01


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage

    for module in ("trackio", "trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    monkeypatch.setenv("TRACKIO_PROJECT", "selection")
    logged = train(tmp_path / "out", "trackio", run_name="first")
    found: Series = {}
    for entry in sqlite_storage.SQLiteStorage.get_logs("selection", "first"):
        for key in entry.keys() - {"step", "timestamp"}:
            found.setdefault(key, {})[entry["step"]] = entry[key]
    assert_received(found, logged)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "selection")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    logged = train(tmp_path, "wandb", run_name="first")
    [file] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    found: Series = {}
    names = set()
    for content in records(file):
        record = proto.Record.FromString(content)
        if record.HasField("run"):
            names.add((record.run.project, record.run.display_name))
        if record.HasField("history"):
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            for key, value in values.items():
                found.setdefault(key, {})[values["_step"]] = value
    assert_received(found, logged)
    assert ("selection", "first") in names
    assert_drawn(tmp_path / "wandb", "scores_{step}_*.png")


OFFLINE = {"mode": "offline", "project": "selection", "workspace": "mine", "run_name": "first"}


def test_swanlab_offline(tmp_path: Path) -> None:
    proto = pytest.importorskip("swanlab.proto.swanlab.record.v1.record_pb2")
    logged = train(tmp_path, "swanlab", swanlab=OFFLINE)
    [file] = (tmp_path / "swanlog").glob("run-*/run-*.swanlab")
    found: Series = {}
    starts = []
    for content in records(file):
        record = proto.Record.FromString(content)
        if record.HasField("start"):
            starts.append((record.start.project, record.start.workspace, record.start.name))
        if record.HasField("scalar"):
            found.setdefault(record.scalar.key, {})[record.scalar.step] = record.scalar.value.number
    assert_received(found, logged)
    assert starts == [("selection", "mine", "first")]
    assert_drawn(tmp_path / "swanlog", "00{step}-*.png")


def test_swanlab_sends_the_webhook_only_through_its_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lark = pytest.importorskip("swanlab.plugin.notification").LarkCallback
    sent: list[str] = []
    monkeypatch.setattr(lark, "_send_notification", lambda self, state, error: sent.append(self._signer.webhook_url))
    monkeypatch.setenv("TEST_LARK_URL", "http://127.0.0.1:9/hook")
    options = OFFLINE | {"lark_webhook_url": "TEST_LARK_URL"}
    tiny_trainer(
        tmp_path, report_to=["swanlab"], swanlab=options, selector=RandomSelector(), schedule=Schedule(1)
    ).train()
    assert sent == ["http://127.0.0.1:9/hook"]


def test_a_tracker_that_cannot_start_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")

    def refuse(self: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.start", refuse)
    with pytest.raises(TrainingError, match=r"the tracker tensorboard cannot start: OSError: no room\n  hint: log in"):
        tiny_trainer(tmp_path, report_to=["tensorboard"]).train()


class FakeSwanlab(ModuleType):
    """Records what it is told, as the package ``swanlab`` would be told it."""

    def __init__(self) -> None:
        super().__init__("swanlab")
        self.config: dict[str, Any] = {}
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.logged: Series = {}

    def login(self, **given: Any) -> None:
        self.told.append(("login", given))

    def init(self, **given: Any) -> FakeSwanlab:
        self.told.append(("init", given))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self.logged.setdefault(key, {})[step] = value

    def finish(self) -> None:
        self.told.append(("finish", {}))


@pytest.fixture
def swanlab(monkeypatch: pytest.MonkeyPatch) -> FakeSwanlab:
    """The package as the tracker sees it, whether it is installed or not."""
    package, plugin = FakeSwanlab(), ModuleType("swanlab.plugin.notification")
    plugin.LarkCallback = lambda **given: ("lark", given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swanlab", package)
    monkeypatch.setitem(sys.modules, "swanlab.plugin", ModuleType("swanlab.plugin"))
    monkeypatch.setitem(sys.modules, "swanlab.plugin.notification", plugin)
    monkeypatch.setattr("dataflex.training.trackers.get_available_trackers", lambda: ["swanlab"])
    return package


SECRETS = {
    "TEST_SWANLAB_KEY": "key-73f1",
    "TEST_LARK_URL": "https://hooks.example/73f2",
    "TEST_LARK_SECRET": "lark-73f3",
}


def documented_keys(folder: Path) -> RunConfig:
    """Every SwanLab key that the documentation prints, and LLaMA-Factory's two others."""
    return RunConfig(
        model_name_or_path="owner/model",
        dataset=["rows"],
        output_dir=str(folder / "out"),
        use_swanlab=True,
        swanlab_project="medical_dynamic_sft",
        swanlab_run_name="baseline",
        swanlab_workspace="word2li",
        swanlab_mode="local",
        swanlab_logdir=str(folder / "logs"),
        swanlab_api_key="TEST_SWANLAB_KEY",
        swanlab_lark_webhook_url="TEST_LARK_URL",
        swanlab_lark_secret="TEST_LARK_SECRET",
    )


def test_every_swanlab_key_is_passed_on(
    swanlab: FakeSwanlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    args = training_arguments(documented_keys(tmp_path))
    with caplog.at_level(logging.DEBUG):
        given = args.model_dump(include={"report_to", "swanlab"})
        tiny_trainer(tmp_path / "out", selector=RandomSelector(), schedule=Schedule(1), **given).train()
    callback = ("lark", {"webhook_url": SECRETS["TEST_LARK_URL"], "secret": SECRETS["TEST_LARK_SECRET"]})
    assert swanlab.told == [
        (
            "init",
            {
                "project": "medical_dynamic_sft",
                "workspace": "word2li",
                "experiment_name": "baseline",
                "mode": "local",
                "logdir": str(tmp_path / "logs"),
                "callbacks": [callback],
            },
        ),
        ("finish", {}),
    ]
    assert list(swanlab.logged["loss"]) == [1]
    written = caplog.text + "".join(f.read_text(errors="replace") for f in tmp_path.rglob("*") if f.is_file())
    assert not [value for value in SECRETS.values() if value in written]


def test_swanlab_logs_in_with_the_key_where_it_writes_to_its_cloud(
    swanlab: FakeSwanlab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud = {"api_key": "TEST_SWANLAB_KEY"}
    with pytest.raises(TrainingError, match="swanlab_api_key: the environment variable TEST_SWANLAB_KEY is not set"):
        tiny_trainer(tmp_path / "a", report_to=["swanlab"], swanlab=cloud).train()
    assert swanlab.told == []
    monkeypatch.setenv("TEST_SWANLAB_KEY", SECRETS["TEST_SWANLAB_KEY"])
    monkeypatch.delenv("SWANLAB_LOG_DIR", raising=False)
    out = tmp_path / "b"
    trainer = tiny_trainer(
        out, report_to=["swanlab"], swanlab=cloud, selector=RandomSelector(), schedule=Schedule(1), run_name="second"
    )
    trainer.train()
    assert swanlab.told[0] == ("login", {"api_key": SECRETS["TEST_SWANLAB_KEY"]})
    started = dict(swanlab.told)["init"]
    assert (started["mode"], started["experiment_name"], started["logdir"]) == (None, "second", str(out / "swanlog"))
    with pytest.raises(ConfigError, match="expected the name of an environment variable"):
        TrainingArguments(output_dir=out, swanlab={"api_key": "sk-secret"})
