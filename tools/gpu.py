"""Try everything that needs a GPU on this machine: one command, no network, under eight minutes.

    python tools/gpu.py [--wheels FOLDER] [--out FOLDER] [--steps NAME ...]
    python tools/gpu.py --device cpu --steps tests projection model nice       # the same parts, tiny, without a GPU

Each step is a process of its own with a time limit; where one fails or takes too long, the rest goes on:

- packages: installs the wheels of --wheels (what this machine lacks) into build/gpu/site, without an index
- build: compiles the extension with its CUDA kernels into the source tree, by this machine's own torch and compilers
- tests: ``pytest -m gpu``: features and inner products of the device against those of the CPU, bit by bit
- projection: the kernels against the memory read, plain torch, and ``fast_jl`` where it can be imported
- model: plain steps, features and exact scores of a Llama of 1.2 billion random parameters (``benchmarks/device.py``)
- nice: a tiny model trained on what NICE selects

``FOLDER/gpu.json`` has everything that was measured and the end of what each step printed; a table is printed. Exit
code: 0 if every step is well, 1 if one is not, 2 if there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FLOOR = "memory read"
KEPT_LINES = 60
NO_DEVICE = 2
SITE = ROOT / "build" / "gpu" / "site"
GPU_TESTS = (
    "tests/models/test_fingerprint.py",
    "tests/projection/kernels/test_cuda.py",
    "tests/projection/test_projector.py",
)
TINY_PROJECTION = (
    *("--rows", "32", "--parameters", "4000", "--dim", "4096", "--rounds", "1", "--kinds", "sjlt"),
    *("--no-baselines", "--no-peers"),
)
CPU_PATIENCE = 6  # a CPU with other work may take so many times as long
NAMES = ("packages", "build", "tests", "projection", "model", "nice")


@dataclass(frozen=True)
class Step:
    """A process with a limit.

    Attributes:
        name: Its row in the table.
        command: What to run, from the root of the repository.
        limit: Seconds after which it is ended.
        told: What the table says, from the JSON that the step wrote.
        environment: What it sees beside this process's variables.
    """

    name: str
    command: Sequence[str]
    limit: float
    told: Callable[[dict[str, Any]], str] = lambda found: ""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a step.

    Attributes:
        name: The step's.
        command: What ran.
        state: ``ok``, ``failed`` or ``too long``.
        seconds: Wall time.
        told: What it found, in words.
        found: The JSON that it wrote, if any.
        printed: The end of its output.
    """

    name: str
    command: list[str]
    state: str
    seconds: float
    told: str
    found: dict[str, Any] | None
    printed: list[str]


def steps(device: str, wheels: Path | None, out: Path) -> list[Step]:
    """All steps for a device, in their order; on a GPU their limits add up to less than eight minutes."""
    gpu = device == "cuda"
    packages = sorted(wheels.glob("*.whl")) if wheels else []
    install = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target")
    build = ("setup.py", "-q", "build_ext", "--inplace", "--build-temp", "build/gpu/temp")
    tests = ("-m", "pytest", "-o", "addopts=--import-mode=importlib", "-W", "default", "-q", "-m", "gpu", *GPU_TESTS)
    projection = ("benchmarks/projection.py", "--quick", *(() if gpu else TINY_PROJECTION))
    model = ("benchmarks/device.py", "model", "--device", device, *(() if gpu else ("--size", "tiny", "--rounds", "1")))
    nice = ("benchmarks/device.py", "nice", "--device", device)
    written = {name: ("--json", str(out / f"{name}.json")) for name in NAMES}
    visible = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}

    def step(name: str, seconds: float, *command: str, told: Callable[[Any], str] = lambda found: "") -> Step:
        limit = seconds if gpu else seconds * CPU_PATIENCE
        return Step(name, (sys.executable, *command), limit, told, {"DATAFLEX_CUDA": "1" if gpu else "0", **visible})

    return [
        *([step("packages", 30, *install, str(SITE), *map(str, packages))] if packages else []),
        step("build", 150, *build),
        step("tests", 70, *tests, *(() if gpu else ("--collect-only",))),
        step("projection", 80, *projection, *written["projection"], told=projection_words),
        step("model", 90, *model, *written["model"], told=model_words),
        step("nice", 50, *nice, *written["nice"], told=nice_words),
    ]


def projection_words(found: dict[str, Any]) -> str:
    """Milliseconds a row of each contender, and its time over that of reading the gradients."""
    times = {one["name"]: 1000 * statistics.median(one["wall_seconds"]) / one["rows"] for one in found["results"]}
    met = sum(goal["met"] for goal in found["goals"])
    names = [one["name"] for one in found["results"] if one["name"] != FLOOR]
    shown = [f"{name} {times[name]:.3g} ms a row ({times[name] / times[FLOOR]:.3g} x {FLOOR})" for name in names]
    return "; ".join([f"{met} of {len(found['goals'])} goals met", *shown])


def model_words(found: dict[str, Any]) -> str:
    """Rows a second, ratios, host time and memory of each way."""
    return "; ".join(
        f"{name} {way['rows a second']:.4g} rows/s ({way['times plain']:.3f} x plain), "
        f"host {way['host ms a batch']:.0f} ms a batch, peak {(way['peak bytes'] or 0) / 2**20:,.0f} MiB"
        for name, way in found["ways"].items()
    )


def nice_words(found: dict[str, Any]) -> str:
    """What the run did, and how long it took."""
    return f"{found['selections']} selections on {found['device']} in {found['seconds']:.1f} s"


def run(step: Step, out: Path) -> Outcome:
    """Run a step to its end or its limit; never raises for what the step does."""
    report = out / f"{step.name}.json"
    report.unlink(missing_ok=True)
    places = [str(SITE), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env={**environment, **step.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=step.limit)
        state = "ok" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # compilers and tests that it started, too
        printed, _ = process.communicate()
        state = "too long"
    seconds = time.monotonic() - start
    lines = printed.splitlines()
    found = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else None
    told = step.told(found) if found else (lines[-1] if lines else "")
    return Outcome(step.name, list(step.command), state, seconds, told, found, lines[-KEPT_LINES:])


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row a step."""
    lines = ["| step | | s | found |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.state} | {one.seconds:.0f} | {one.told.replace('|', '/')} |" for one in outcomes]
    return "\n".join(lines)


def device_problem() -> str | None:
    """Why there is no device to try."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported by {sys.executable}: {error}; name a Python that has it: make gpu PYTHON=..."
    if torch.cuda.is_available():
        return None
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return f"no CUDA device: torch {torch.__version__} ({built}) of {sys.executable} sees none"


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured with."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "memory": torch.cuda.mem_get_info()[1] if device == "cuda" else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: the same parts, tiny")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this machine lacks")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="where the JSON goes (build/gpu)")
    parser.add_argument("--steps", nargs="+", choices=NAMES, default=NAMES, help="these alone")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps, write, print; returns the exit code."""
    options = parse(arguments)
    if options.device == "cuda" and (problem := device_problem()) is not None:
        print(f"{problem}. Nothing was run.", file=sys.stderr)
        return NO_DEVICE
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for step in steps(options.device, options.wheels, out):
        if step.name in options.steps:
            print(f"== {step.name} (at most {step.limit:.0f} s)", flush=True)
            outcomes.append(run(step, out))
            if outcomes[-1].state != "ok":
                print("\n".join(outcomes[-1].printed), flush=True)
    report = {"machine": machine(options.device), "steps": [asdict(outcome) for outcome in outcomes]}
    (out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(outcomes)}\n\n{out / 'gpu.json'}")
    return 0 if all(outcome.state == "ok" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
