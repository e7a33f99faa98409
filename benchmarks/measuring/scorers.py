"""Ways to the same scores: a candidate's mean cosine with the gradients of some targets, exact, without a store.

    s_i = (1 / m) sum_j <g_i, g_j> / (|g_i| |g_j|),      g the gradient of a row's loss by the LoRA weights.

Every way gets the same batches, and its scores are compared with those of the loop over single rows.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataflex.data import TokenizedDataset
from dataflex.data.collate import Batch, collate
from dataflex.gradients.exact import cosines_of, exact_pass, exact_targets
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import mean_losses
from dataflex.projection.projector import Projector

PLAIN, OURS, LOOP = "forward and backward", "dataflex, exact", "one row after the other"
DATTRI, BERGSON = "dattri-llm, GradCos", "bergson, scorer in memory"


@dataclass(frozen=True)
class Rows:
    """Tokenised rows and their batches.

    Attributes:
        data: The rows.
        batches: Their numbers, each once.
        pad: The padding token.
    """

    data: TokenizedDataset
    batches: list[list[int]]
    pad: int

    @property
    def order(self) -> list[int]:
        """The numbers of all rows, batch after batch."""
        return [row for batch in self.batches for row in batch]

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(rows) for rows in self.batches)

    def batch(self, rows: list[int]) -> Batch:
        """Some rows, padded."""
        return collate([self.data[row] for row in rows], self.pad)


@dataclass(frozen=True)
class Task:
    """What is scored.

    Attributes:
        model: A peft model in eval mode.
        context: A selection context around it.
        candidates: n rows.
        targets: m rows.
    """

    model: Any
    context: Any
    candidates: Rows
    targets: Rows

    def in_order(self, scores: Tensor) -> Tensor:
        """``(n,)`` scores by the candidates' numbers, from those batch after batch."""
        found = torch.empty(len(scores), dtype=torch.float64)
        found[self.candidates.order] = scores.double()
        return found


@dataclass(frozen=True)
class Way:
    """A contender.

    Attributes:
        name: Its row in the table.
        prepare: From the task to what is timed, which returns the scores ``(n,)`` (None: nothing to compare).
        module: What must be importable.
        package: What ``pip install`` must be given for that.
    """

    name: str
    prepare: Callable[[Task], Callable[[], Tensor | None]]
    module: str = "dataflex"
    package: str = ""

    def missing(self) -> str | None:
        """The package to install, if it is not there."""
        return None if importlib.util.find_spec(self.module) else f"pip install {self.package}"

    def version(self) -> str | None:
        """The installed version of another package."""
        return importlib.metadata.version(self.package.split("==")[0]) if self.package else None


def plain(task: Task) -> Callable[[], None]:
    """The least that any way must do: forward and backward pass of all rows."""

    def run() -> None:
        for rows in (task.targets, task.candidates):
            for batch in rows:
                mean_losses(task.model, batch).mean().backward()
                task.model.zero_grad(set_to_none=True)

    return run


def ours(task: Task) -> Callable[[], Tensor]:
    """This package, its comparison of the rules with plain gradients left out: that is made once a run."""
    sides = [
        SampleFeatures(
            task.context, rows.data, Projector(1024), gradient_type="sgd", adam_variant="adamw", batch_tokens=2048
        )
        for rows in (task.targets, task.candidates)
    ]
    for side in sides:
        side.prepare()
    number = len(task.targets.data)

    def run() -> Tensor:
        found = exact_targets(task.context, sides[0], [[1.0]] * number, [0] * number, seed=0, description="targets")
        scored = exact_pass(task.context, sides[1], found.vectors)
        return task.in_order(cosines_of(torch.cat([scored(rows) for rows in task.candidates.batches]))[:, 0])

    return run


def loop(task: Task) -> Callable[[], Tensor]:
    """A backward pass a row: the mean of the targets' unit gradients is kept, of a candidate its cosine with that."""

    def unit(rows: Rows, row: int) -> Tensor:
        gradient = sample_gradient(task.model, rows.batch([row]), nullcontext)  # (p,)
        return gradient / gradient.norm()

    def run() -> Tensor:
        direction = sum(unit(task.targets, row) for row in task.targets.order) / len(task.targets.data)
        return torch.stack(
            [unit(task.candidates, row) @ direction for row in range(len(task.candidates.data))]
        ).double()

    return run


class Batches(Dataset[dict[str, Tensor]]):
    """Batches as items: dattri-llm's streams take no collate function."""

    def __init__(self, rows: Rows) -> None:
        self._batches = [vars_of(batch) for batch in rows]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._batches[index]


def vars_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by name."""
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}


def dattri(task: Task) -> Callable[[], Tensor]:
    """dattri-llm's TracIn with normalised gradients, live, with factorised gradients of the LoRA layers."""
    from dattri_llm import AttributionArguments, AttributionTask, HookManagerConfig, TracInAttributor

    names = adapter_layers(task.model)
    config = HookManagerConfig(hook_types=dict.fromkeys(names, "linear_io"))
    train, test = Batches(task.candidates), Batches(task.targets)

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return mean_losses(model, Batch(**{name: value[0] for name, value in batch.items()})).sum()

    def run() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            arguments = AttributionArguments(
                output_dir=folder,
                per_device_train_batch_size=1,
                per_device_eval_batch_size=1,
                use_cpu=True,
                dataloader_pin_memory=False,
            )
            attributor = TracInAttributor(arguments, task=AttributionTask(loss, task.model))
            score = attributor.attribute(train, test, hook_config=config, normalized_grad=True)
        _, matrix = score.agnostic_matrix()  # (n, m) in the order of the batches
        return task.in_order(torch.as_tensor(matrix).double().mean(dim=1))

    return run


def bergson(task: Task) -> Callable[[], Tensor]:
    """Bergson's collector and scorer in memory, without projection: first the targets' mean, then the candidates."""
    from bergson.collector.collector import CollectorComputer
    from bergson.collector.in_memory_collector import InMemoryCollector
    from bergson.config import IndexConfig, PreprocessConfig
    from bergson.gradients import GradientProcessor
    from bergson.score.score_writer import InMemorySequenceScoreWriter
    from bergson.score.scorer import Scorer
    from bergson.utils.peft import detect_peft_modules

    logging.disable(logging.INFO)  # it names its 420 modules at each pass
    layers = detect_peft_modules(task.model)
    sides = (task.targets, task.candidates)
    data = [listed(rows) for rows in sides]

    def collected(side: int, folder: str, **given: Any) -> Any:
        config = IndexConfig(run_path=folder, loss_reduction="mean")
        config.partial_run_path.mkdir(parents=True, exist_ok=True)  # it leaves its losses there
        collector = InMemoryCollector(
            model=task.model.base_model,
            cfg=config,
            processor=GradientProcessor(),
            target_modules=layers,
            data=data[side],
            **given,
        )
        computer = CollectorComputer(
            task.model, data[side], collector=collector, batches=sides[side].batches, cfg=config
        )
        computer.run_with_collector_hooks(desc=("targets", "candidates")[side])
        return collector

    def run() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            mean = PreprocessConfig(unit_normalize=True, aggregation="mean")
            queries = collected(0, f"{folder}/targets", preprocess_cfg=mean).gradients
            writer = InMemorySequenceScoreWriter(len(task.candidates.data), 1)
            scorer = Scorer(queries, list(queries), writer, torch.device("cpu"), torch.float32, unit_normalize=True)
            collected(1, f"{folder}/candidates", scorer=scorer)
        return writer.scores[:, 0].double()

    return run


def listed(rows: Rows) -> Any:
    """The rows as bergson reads them."""
    import datasets

    examples = [rows.data[row] for row in range(len(rows.data))]
    return datasets.Dataset.from_list(
        [{"input_ids": list(example.input_ids), "labels": list(example.labels)} for example in examples]
    )


def adapter_layers(model: Any) -> list[str]:
    """Names of the LoRA layers A and B."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part.startswith("lora_") for part in name.split("."))
    ]


WAYS = (
    Way(PLAIN, plain),
    Way(OURS, ours),
    Way(LOOP, loop),
    Way(DATTRI, dattri, "dattri_llm", "dattri-llm==0.1.0"),
    Way(BERGSON, bergson, "bergson", "bergson==2.5.1"),
)
