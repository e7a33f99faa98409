from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import dataflex.offline.run as offline
import dataflex.training.run as online
from dataflex import load_config
from dataflex.cli import cli
from dataflex.data.sources import load_samples
from dataflex.doctor.run import diagnose_file
from dataflex.errors import DataflexError
from dataflex.retrieval.matrix import NearMatrix, sample_digests
from dataflex.testing import tiny_samples
from helpers.doctor import write_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose model must not be loaded, and a NEAR matrix of other rows than its own."""

    def loaded(config):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(online, "build_model", loaded)
    monkeypatch.setattr(offline, "build_model", loaded)
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path)
    other = tiny_samples(12, seed=7)
    NearMatrix(np.array([[0, 1], [2, 3]]), np.arange(12), sample_digests(other), {}).save(tmp_path / "m.npy")
    return tmp_path


NEAR = ["component_name=near", "component_params={indices_path: m.npy}", "update_times=1"]
CASES = {
    "folder": (["output_dir=."], "the output folder . is not empty"),
    "file": (["output_dir=run.yaml"], "run.yaml is a file"),
    "size": (["update_step=9"], "9 x 2 samples does not fit into 12 candidates"),
    "matrix": (NEAR, "the neighbours were searched in other data"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_needs_no_model_is_found_before_one_is_loaded(project, case):
    overrides, message = CASES[case]
    with pytest.raises(DataflexError) as caught:
        online.train_from_config(load_config("run.yaml", overrides))
    assert message in str(caught.value)


def test_a_selection_and_its_dry_run_find_them_too(project):
    config = load_config("run.yaml", NEAR)
    for select in (
        lambda: offline.select_from_config(config, project / "s.jsonl", num_samples=2),
        lambda: offline.dry_run_from_config(config, project / "dry", num_samples=2),
    ):
        with pytest.raises(DataflexError, match="searched in other data"):
            select()
    assert not (project / "s.work").exists()
    (project / "s.jsonl").touch()
    done = CliRunner().invoke(cli, ["select", "run.yaml", "-n", "2", "-o", "s.jsonl", "--dry-run"])
    assert (done.exit_code, "s.jsonl would be overwritten" in done.output) == (1, True)


def test_the_doctor_finds_a_matrix_of_other_rows(project):
    found = {check.name: check for check in diagnose_file("run.yaml", NEAR)}
    assert found["candidates"].status == "fail"
    assert "searched in other data" in found["candidates"].detail
    own = load_samples("train.jsonl")
    NearMatrix(np.array([[0, 1, 2, 3, 4, 5]]), np.arange(12), sample_digests(own), {}).save(project / "m.npy")
    assert {check.name: check for check in diagnose_file("run.yaml", NEAR)}["candidates"].status == "pass"
