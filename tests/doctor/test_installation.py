from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from dataflex.cli import cli
from dataflex.doctor import installation as doctor
from dataflex.doctor.check import Check
from dataflex.projection.kernels.native import native_status
from dataflex.projection.projector import Projector
from helpers.projections import torch_only

KERNELS = {"projection sjlt", "projection rademacher", "projection gaussian"}


def by_name() -> dict[str, Check]:
    return {check.name: check for check in doctor.diagnose()}


def test_a_sound_installation_fails_nothing() -> None:
    found = by_name()
    assert found.keys() >= KERNELS | {"torch", "native kernels", "threads", "devices", "plugin builtins"}
    assert [check for check in found.values() if check.status == "fail"] == []
    status = native_status()
    assert found["native kernels"].status == ("pass" if status.module else "warn")
    assert status.reason in found["native kernels"].detail


def test_plain_torch_is_a_warning_with_its_reason_and_fix() -> None:
    with torch_only():
        found = by_name()
    assert found["native kernels"].status == "warn"
    assert "DATAFLEX_NATIVE=0" in found["native kernels"].detail
    assert found["native kernels"].fix == "unset DATAFLEX_NATIVE"
    assert all(found[name].status == "pass" and "plain torch" in found[name].detail for name in KERNELS)


def test_a_kernel_that_is_off_by_one_bit_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    project = Projector.project

    def off(self: Projector, grads: torch.Tensor, adam: object = None) -> torch.Tensor:
        features = project(self, grads, adam)
        features[-1, -1] = torch.nextafter(features[-1, -1], torch.tensor(torch.inf))
        return features

    monkeypatch.setattr(doctor.Projector, "project", off)
    found = by_name()
    assert [found[f"projection {kind}"].status for kind in ("sjlt", "rademacher", "gaussian")] == [
        "fail",
        "fail",
        "pass",
    ]
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 1
    failed = {check["name"] for check in json.loads(result.stdout) if check["status"] == "fail"}
    assert failed == {"projection sjlt", "projection rademacher"}


def test_too_many_threads_are_a_warning() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(doctor._processors() + 1)
    try:
        check = by_name()["threads"]
    finally:
        torch.set_num_threads(before)
    assert check.status == "warn"
    assert "OMP_NUM_THREADS" in str(check.fix)


def test_the_command_prints_a_line_a_check() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0
    assert len([line for line in result.stdout.splitlines() if line.startswith(("PASS", "WARN"))]) == len(by_name())
