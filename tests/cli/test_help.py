"""What a user waits for before anything happens: the help of every command imports nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from dataflex.cli.near_flags import described_keys
from dataflex.config import NearConfig
from helpers.scripts import load_script

HEAVY = (
    "accelerate",
    "datasets",
    "hnswlib",
    "matplotlib",
    "numpy",
    "httpx2",
    "pandas",
    "peft",
    "pyarrow",
    "safetensors",
    "sentence_transformers",
    "tokenizers",
    "torch",
    "transformers",
    "pydantic",
    "vllm",
)
PROBE = """
import json, sys
from click.testing import CliRunner
from dataflex.cli import cli
found = {}
for path in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli, [*path, "--help"])
    assert done.exit_code == 0 and "Usage: " in done.stdout, (path, done.output)
    found[" ".join(path)] = sorted(set(json.loads(sys.argv[2])) & set(sys.modules))
print(json.dumps(found))
"""
benchmark = load_script("benchmarks/help.py")
PATHS = list(benchmark.command_paths(benchmark.cli))


def test_every_command_is_found() -> None:
    names = {" ".join(path) for path in PATHS}
    assert names >= {"", "train", "select", "near", "export", "doctor", "preview", "config validate", "plugins show"}


@pytest.mark.integration
def test_no_help_imports_a_heavy_package() -> None:
    """All of them in one process: what one has imported would show with all that follow."""
    arguments = [json.dumps(PATHS), json.dumps(HEAVY)]
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert len(found) == len(PATHS)
    assert {name: heavy for name, heavy in found.items() if heavy} == {}


def test_the_benchmark_compares_pairs() -> None:
    spent: Any = benchmark.Spent
    pairs = [
        (spent(90.0, 80.0), spent(30.0, 20.0)),
        (spent(500.0, 70.0), spent(400.0, 20.0)),
        (spent(61, 9), spent(30, 4)),
    ]
    assert benchmark.differences(pairs) == {"wall_ms": 60.0, "cpu_ms": 50.0, "ratio": 61 / 30}


def test_the_flags_of_near_are_the_keys_of_its_configuration() -> None:
    described = {key: info.description for key, info in NearConfig.model_fields.items()}
    assert list(described_keys().items()) == list(described.items())
