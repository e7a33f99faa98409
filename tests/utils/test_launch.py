from __future__ import annotations

import sys

import pytest

from dataflex.errors import ConfigError
from dataflex.utils.launch import is_main_process, process_count, torchrun_command

VARIABLES = (
    "FORCE_TORCHRUN",
    "LOCAL_RANK",
    "RANK",
    "NPROC_PER_NODE",
    "NNODES",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def command(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str | None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = torchrun_command(["train", "a.yaml"])
    return None if found is None else " ".join(found)


def test_without_the_variable_this_process_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch) is None
    assert command(monkeypatch, FORCE_TORCHRUN="0") is None


def test_a_process_of_a_launcher_starts_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, FORCE_TORCHRUN="1", LOCAL_RANK="0") is None


def test_one_node_takes_a_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    head = f"{sys.executable} -m torch.distributed.run"
    expected = f"{head} --nproc_per_node=2 --nnodes=1 --standalone -m dataflex train a.yaml"
    assert command(monkeypatch, FORCE_TORCHRUN="true", NPROC_PER_NODE="2") == expected


def test_a_named_port_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = command(monkeypatch, FORCE_TORCHRUN="1", NPROC_PER_NODE="2", MASTER_PORT="29501")
    assert "--nnodes=1 --node_rank=0 --master_addr=127.0.0.1 --master_port=29501 -m" in str(found)


def test_several_nodes_pass_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    several = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    found = command(monkeypatch, FORCE_TORCHRUN="1", NPROC_PER_NODE="4", **several)
    expected = "--nproc_per_node=4 --nnodes=2 --node_rank=1 --master_addr=10.0.0.1 --master_port=29500 -m"
    assert expected in str(found)


def test_all_problems_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        command(monkeypatch, FORCE_TORCHRUN="1", NPROC_PER_NODE="all", NNODES="2")
    assert caught.value.problems == [
        "NPROC_PER_NODE must be a number, got 'all'",
        "NNODES=2 needs MASTER_ADDR and MASTER_PORT of the first node",
    ]


def test_the_first_rank_is_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert process_count() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process_count() == 4
