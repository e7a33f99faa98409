"""The scripts of the page about clusters, as they stand there: SLURM's with stand-ins for its commands, and Ray's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch

from helpers.pages import blocks_of
from helpers.reader import furnish

BLOCKS = blocks_of("docs/cluster.md")
SCRIPTS = {str(block.file): block.text for block in BLOCKS if block.language == "python"}
[JOB] = [block for block in BLOCKS if block.language == "bash"]
NODES = 2

SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames job-nodes" ] && printf '127.0.0.1\\n127.0.0.2\\n'
"""
SRUN = """#!/bin/sh
pids=
for node in 0 1; do "$@" & pids="$pids $!"; done
for pid in $pids; do wait "$pid" || exit 1; done
"""
TORCHRUN = f"""#!/bin/sh
echo "$*" >> torchruns
exec {sys.executable} -m torch.distributed.run "$@"
"""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo"),
]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The folder that all machines see."""
    furnish(tmp_path)
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "home"), **more}


def assert_trained(folder: Path) -> None:
    output = folder / "output" / "cluster"
    assert [file.name for file in sorted((output / "selections").iterdir())] == ["step-2.parquet", "step-4.parquet"]
    for file in (output / "selections").iterdir():
        assert sum(pq.read_table(file)["chosen"].to_pylist()) == 2 * 2 * 2 * NODES  # steps, batch, accumulation
    assert {file.name for file in (output / "checkpoint-6").glob("rng_state_*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


def submit(folder: Path) -> None:
    """Run the job as ``sbatch`` does, on two nodes of a GPU each that are this machine."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, text in {"scontrol": SCONTROL, "srun": SRUN, "torchrun": TORCHRUN}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    told = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "job-nodes",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", JOB.text],
        cwd=folder,
        env=environment(folder, PATH=f"{commands}{os.pathsep}{os.environ['PATH']}", **told),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_job_of_slurm_trains_on_two_nodes(cluster: Path) -> None:
    submit(cluster)
    assert_trained(cluster)
    assert len((cluster / "torchruns").read_text().splitlines()) == NODES


@pytest.mark.exhaustive
def test_the_job_of_slurm_goes_on_where_it_was(cluster: Path) -> None:
    submit(cluster)
    output = cluster / "output" / "cluster"
    weights = output / "checkpoint-6" / "adapter_model.safetensors"
    expected, made = weights.read_bytes(), (output / "selections" / "step-2.parquet").stat().st_mtime_ns
    weights.unlink()
    (output / "checkpoint-6" / "trainer_state.json").unlink()  # as a kill leaves it
    submit(cluster)
    assert_trained(cluster)
    assert (output / "selections" / "step-2.parquet").stat().st_mtime_ns == made
    assert weights.read_bytes() == expected


def test_the_command_for_machines_without_a_queue_is_that_of_the_job() -> None:
    [command] = [block for block in BLOCKS if block.language == "console"]
    job = JOB.text.partition("srun ")[2].replace("\\\n", "").split()
    for told, value in {"$first": "node0", '"$SLURM_JOB_NUM_NODES"': "2", '"$SLURM_GPUS_ON_NODE"': "8"}.items():
        job = [word.replace(told, value) for word in job]
    assert command.text.removeprefix("$ ").split() == [
        {'"$SLURM_JOB_ID"': "1", '"node0:29500"': "node0:29500"}.get(word, word) for word in job
    ]


def workers(driver: psutil.Process) -> Iterator[psutil.Process]:
    for process in driver.children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if "RayTrainWorker" in " ".join(process.cmdline()):
                yield process


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dies", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["whole", "one dies"])
def test_ray_trains_with_two_workers_and_starts_them_again_when_one_dies(cluster: Path, dies: bool) -> None:
    state = cluster / "output" / "cluster" / "checkpoint-2" / "trainer_state.json"
    with (cluster / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "on_ray.py"],
            cwd=cluster,
            env=environment(cluster, RAY_USAGE_STATS_ENABLED="0"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        found: list[psutil.Process] = []
        while dies and driver.poll() is None and not state.exists():
            found = [*workers(psutil.Process(driver.pid))] if len(found) < NODES else found
            time.sleep(0.005)
        for worker in found[:1]:
            worker.kill()
        assert driver.wait(400) == 0, (cluster / "log").read_text()[-4000:]
    finally:
        driver.kill()
        driver.wait()
    assert len(found) == (NODES if dies else 0)
    assert_trained(cluster)
