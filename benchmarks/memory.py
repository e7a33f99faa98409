"""Memory of a run by the size of its model and what is trained: computed, and measured where the model is at hand.

Usage: python benchmarks/memory.py [--model FOLDER] [--publish]

Computed are the sums of :mod:`dataflex.doctor.need`, which the doctor uses, for models that are built on torch's meta
device from the numbers of their published configurations: nothing is loaded. Measured is, in a fresh process for each
method, what the resident set grows by from before the model is loaded to the peak of one training step and one exact
selection (features, with ``masked``), on the CPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from dataflex.data import ChatTemplate
from dataflex.data.collate import Batch
from dataflex.data.dataset import tokenize
from dataflex.doctor.fit import Outline, sizes
from dataflex.doctor.need import Need, exact_selection, feature_selection, needed, sharded
from dataflex.gradients.exact import exact_sums, exact_targets
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.slots import parameter_slots
from dataflex.models.bounds import Bounds
from dataflex.models.losses import mean_losses
from dataflex.models.model import add_lora, load_model, load_tokenizer, trainable_parameters
from dataflex.models.quantization import Quantization
from dataflex.models.trainable import train_all
from dataflex.projection.projector import Projector
from dataflex.testing import tiny_context, tiny_samples
from measuring import machine
from measuring.memory import PeakMemory, resident
from scale import fresh

ROOT = Path(__file__).resolve().parents[1]
MODEL, RESULTS, PAGE = (
    ROOT / place for place in ("models/SmolLM2-135M-Instruct", "benchmarks/results/memory.json", "docs/memory.md")
)
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)
MODELS: dict[str, Any] = {
    name: kind(**dict(zip(SIZES, numbers, strict=True)))
    for name, kind, numbers in (
        ("SmolLM2-135M", LlamaConfig, (49152, 576, 1536, 30, 9, 3, True)),
        ("Qwen2.5-0.5B", Qwen2Config, (151936, 896, 4864, 24, 14, 2, True)),
        ("Qwen2.5-7B", Qwen2Config, (152064, 3584, 18944, 28, 28, 4, False)),
        ("Llama-3.1-8B", LlamaConfig, (128256, 4096, 14336, 32, 32, 8, False)),
        ("Llama-3.3-70B", LlamaConfig, (128256, 8192, 28672, 80, 64, 8, False)),
    )
}
"""By the numbers of their published configurations."""
SHOWN = "Llama-3.1-8B"
"""The model whose parts are listed."""
RANK, PROCESSES, TARGETS = 16, 8, 64
ROWS, TOKENS = 4, 512
MEASURED_ROWS, MEASURED_TOKENS, CANDIDATES, FEW = 4, 128, 24, 8
GIB = 2**30


@dataclass(frozen=True)
class Method:
    """What is trained, and how.

    Attributes:
        lora: An adapter of rank :data:`RANK` on all linear layers, or else all parameters, in float32.
        dtype: Of frozen weights.
        quantization: How they are stored; None: in that type.
        masked: Features of some coordinates, or else exact scores.
        processes: Of FSDP2.
    """

    lora: bool = False
    dtype: torch.dtype = torch.bfloat16
    quantization: Quantization | None = None
    masked: bool = False
    processes: int = 1


METHODS = {
    "LoRA, r = 16, bf16": Method(lora=True),
    "QLoRA, r = 16, nf4": Method(lora=True, quantization=Quantization(4)),
    "full": Method(),
    "full, masked features": Method(masked=True),
    "LoRA, r = 16, FSDP2 on 8": Method(lora=True, dtype=torch.float32, processes=PROCESSES),
    "full, FSDP2 on 8": Method(processes=PROCESSES),
}
MEASURED = {
    "LoRA, r = 16, float32": Method(lora=True, dtype=torch.float32),
    "QLoRA, r = 16, nf4": Method(lora=True, dtype=torch.float32, quantization=Quantization(4)),
    "full": Method(),
    "full, masked features": Method(masked=True),
}


def outlined(config: Any, method: Method, tokens: int, *, recomputes: bool) -> tuple[Outline, int]:
    """Sizes of a model on the meta device, and the coordinates that masked features read of what is trained."""
    dtype = method.dtype if method.lora else torch.float32
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
        saved = 0 if method.quantization is None else method.quantization.saved_bytes(base)
        bounds = Bounds.of(base)
        model: nn.Module = add_lora(base, rank=RANK) if method.lora else train_all(base)
        for _, values in trainable_parameters(model):
            values.data = values.data.float()
    found = sizes(model, tokens, bounds=bounds, saved=saved, recomputes=recomputes)
    return found, coordinates(model) if method.masked else 0


def coordinates(model: nn.Module) -> int:
    """How many coordinates ``projection: masked`` reads by default."""
    return sum(slot.size for slot in parameter_slots(model, Projector(4096, "masked").kind.picks).values())


def need_of(config: Any, method: Method, rows: int, tokens: int, targets: int, *, recomputes: bool) -> Need:
    """The computed memory of a process that trains ``rows`` rows of ``tokens`` tokens at once."""
    found, read = outlined(config, method, tokens, recomputes=recomputes)
    activations = rows * tokens * found.bytes_per_token
    selection = feature_selection(read) if method.masked else exact_selection(found.trainable, targets)
    if method.processes == 1:
        return needed(found.base_bytes, found.trainable, activations, selection=selection)
    sizes_of = (found.parameters, found.trainable, found.whole)
    return sharded(*sizes_of, activations, method.processes, selection=selection)


def computed() -> dict[str, dict[str, Any]]:
    """By method and model: the parts of the need with gradient checkpointing, and the activations without."""
    return {name: {key: parts(config, method) for key, config in MODELS.items()} for name, method in METHODS.items()}


def parts(config: Any, method: Method) -> dict[str, float]:
    """The parts of a need with gradient checkpointing, and ``kept``: the activations without."""
    plain, recomputing = (need_of(config, method, ROWS, TOKENS, TARGETS, recomputes=it) for it in (False, True))
    return {**asdict(recomputing), "kept": plain.activations}


def measured(name: str, folder: str) -> int:
    """Bytes that the process grows by until its peak; meant for a fresh process."""
    method = MEASURED[name]
    tokenizer = load_tokenizer(folder)
    rows = tokenize(tiny_samples(CANDIDATES + FEW), ChatTemplate.load(None, tokenizer), MEASURED_TOKENS, progress=False)
    before = resident("VmRSS")
    base = load_model(folder, precision="fp32", quantization=method.quantization)
    model: nn.Module = add_lora(base, rank=RANK) if method.lora else train_all(base)
    with PeakMemory(torch.device("cpu")) as work, TemporaryDirectory() as place:
        optimizer = torch.optim.AdamW([values for _, values in trainable_parameters(model)], lr=1e-5)
        train(model, optimizer)
        context = tiny_context(
            Path(place),
            model=model,
            optimizer=optimizer,
            train_dataset=rows.select(range(CANDIDATES)),
            eval_dataset=rows.select(range(CANDIDATES, CANDIDATES + FEW)),
        )
        select(context, method, Path(place))
    return work.start - before + (work.extra or 0)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step on random tokens."""
    ids = torch.randint(10, 1000, (MEASURED_ROWS, MEASURED_TOKENS), generator=torch.Generator().manual_seed(0))
    model.train()
    mean_losses(model, Batch(ids, torch.ones_like(ids), ids.clone())).mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def select(context: Any, method: Method, place: Path) -> None:
    """Exact scores of the candidates, or features."""

    def features(dataset: Any, projector: Projector, kind: str) -> SampleFeatures:
        settings: dict[str, Any] = {"gradient_type": kind, "adam_variant": "adamw"}
        return SampleFeatures(context, dataset, projector, batch_tokens=MEASURED_ROWS * MEASURED_TOKENS, **settings)

    if method.masked:
        for dataset, kind in ((context.eval_dataset, "sgd"), (context.train_dataset, "adam")):
            found = features(dataset, Projector(4096, "masked"), kind)
            found.fill(place / kind, save_rows=CANDIDATES, description=kind)
        return
    some = Projector(4096)
    targets = exact_targets(
        context, features(context.eval_dataset, some, "sgd"), [[1.0]] * FEW, [0] * FEW, seed=0, description="targets"
    )
    candidates = features(context.train_dataset, some, "adam")
    exact_sums(context, candidates, targets, place / "s", {}, save_rows=CANDIDATES, description="rows")


def measure(folder: str) -> dict[str, dict[str, float]]:
    """By method: computed and measured bytes."""
    found = {}
    for name, method in MEASURED.items():
        need = need_of(MODELS["SmolLM2-135M"], method, MEASURED_ROWS, MEASURED_TOKENS, FEW, recomputes=False)
        found[name] = {"computed": need.total, "measured": float(fresh(measured, name, folder))}
    return found


def gib(value: float) -> str:
    """Bytes in GiB, three figures of small numbers."""
    size = value / GIB
    return f"{size:,.0f}" if size >= 100 else f"{size:.1f}" if size >= 10 else f"{size:.2f}"


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The tables of the page by name."""
    found = results["computed"]
    totals = [["computed, GiB a process", *MODELS], ["---"] * (1 + len(MODELS))]
    for name, models in found.items():
        totals.append(
            [name, *(f"{gib(total(it))} ({gib(total(it) - it['activations'] + it['kept'])})" for it in models.values())]
        )
    heads = ["frozen weights", "trained", "whole at once", "a selection", "activations (kept)"]
    listed = [[f"computed, GiB, {SHOWN}", *heads], ["---"] * 6]
    for name, models in found.items():
        it = models[SHOWN]
        cells = [gib(it[key]) for key in ("frozen", "trained", "gathered", "selection")]
        listed.append([name, *cells, f"{gib(it['activations'])} ({gib(it['kept'])})"])
    beside = [["MiB, SmolLM2-135M on a CPU", "computed", "measured", "measured / computed"], ["---"] * 4]
    for name, it in results["measured"].items():
        mib = [f"{it[key] / 2**20:,.0f}" for key in ("computed", "measured")]
        beside.append([name, *mib, f"{it['measured'] / it['computed']:.2f}"])
    return {name: _markdown(lines) for name, lines in (("totals", totals), ("parts", listed), ("measured", beside))}


def total(it: Mapping[str, float]) -> float:
    """Bytes with gradient checkpointing."""
    return sum(value for key, value in it.items() if key != "kept")


def _markdown(lines: list[list[str]]) -> str:
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def marked(name: str) -> tuple[str, str]:
    """The lines of the page that a table stands between."""
    return f"<!-- memory: {name} -->\n", f"<!-- /memory: {name} -->"


def publish(results: Mapping[str, Any]) -> None:
    """Keep the results, and write their tables into the page."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables(results).items():
        start, end = marked(name)
        before, _, rest = text.partition(start)
        text = before + start + table + end + rest.partition(end)[2]
    PAGE.write_text(text, encoding="utf-8")


def lines(results: Mapping[str, Any]) -> Iterator[str]:
    """What is printed."""
    yield machine.describe(results["machine"])
    yield from tables(results).values()


def main() -> None:
    """Compute, measure, print."""
    parser = argparse.ArgumentParser(description="Memory of a run by model and method: computed, and measured.")
    parser.add_argument("--model", default=str(MODEL), help="folder of SmolLM2-135M-Instruct, to measure")
    parser.add_argument("--publish", action="store_true", help="write results/memory.json and docs/memory.md")
    options = parser.parse_args()
    results = {
        "machine": machine.facts(torch.device("cpu")),
        "computed": computed(),
        "measured": measure(options.model),
    }
    print("\n".join(lines(results)))
    if options.publish:
        publish(results)


if __name__ == "__main__":
    main()
