"""Does an installed dataflex work? Imports it, runs its checks, selects rows and trains on them, with a tiny model.

    python tools/smoke.py [--native yes|no]

Nothing of the source tree is imported: run it with the Python of the environment to look at.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path


def main() -> None:
    """Run every step; the first that fails ends it."""
    parser = argparse.ArgumentParser(description="Try an installed dataflex with a tiny model.")
    parser.add_argument("--native", choices=("yes", "no"), help="the native extension has to be there, or not")
    wanted = parser.parse_args().native
    os.environ["HF_HUB_OFFLINE"] = "1"
    installed(wanted)
    with tempfile.TemporaryDirectory() as folder:
        command("doctor")
        selected_from_python()
        trained_by_the_command(Path(folder))
    print("smoke test: everything works")


def installed(native: str | None) -> None:
    """Where dataflex is, and whether its kernels are native."""
    import dataflex
    from dataflex.projection.kernels.native import native_status

    place = Path(dataflex.__file__).parent
    if Path(sysconfig.get_paths()["purelib"]).resolve() not in place.resolve().parents:
        raise SystemExit(f"dataflex was imported from {place}, not from this environment")
    status = native_status()
    print(f"dataflex {dataflex.__version__} in {place}; native kernels: {status.reason}")
    if native is not None and (status.module is not None) != (native == "yes"):
        raise SystemExit(f"native kernels: expected {native}, got: {status.reason}")


def selected_from_python() -> None:
    """One selection through the public API."""
    import dataflex as df
    from dataflex.testing import tiny_lora, tiny_model, tiny_samples, tiny_tokenizer

    def rows(count: int, seed: int) -> list[dict[str, str]]:
        samples = tiny_samples(count, seed, distinct=True)
        return [{"instruction": sample.messages[0]["content"], "output": sample.reference or ""} for sample in samples]

    chosen = df.select(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        rows(24, 0),
        rows(4, 50),
        selector="less",
        num_samples=6,
        template="chatml",
        gradient_type="sgd",
        proj_dim=128,
    )
    if len(chosen.indices) != 6:
        raise SystemExit(f"asked for 6 rows, got {chosen}")
    print(f"selected from Python: {chosen}")


def trained_by_the_command(folder: Path) -> None:
    """A training with two selections, from a file."""
    from dataflex.testing import tiny_project

    params = {"proj_dim": 128, "gradient_type": "adam"}
    command("train", str(tiny_project(folder, component_name="less", component_params=params)))
    if not (folder / "out" / "adapter_model.safetensors").is_file():
        raise SystemExit(f"the training left no adapter in {folder / 'out'}")


def command(*arguments: str) -> None:
    """Run the command line of this environment."""
    line = [str(Path(sys.executable).with_name("dataflex")), *arguments]
    print("$ dataflex", *arguments, flush=True)
    subprocess.run(line, check=True)


if __name__ == "__main__":
    main()
