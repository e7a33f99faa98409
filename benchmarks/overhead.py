"""What a curriculum inside transformers' trainer adds to its steps, beside the trainer alone.

    python benchmarks/overhead.py --model models/SmolLM2-135M-Instruct

In every round both train the same new adapter for as many steps, in turns. A step is reading its rows, and computing.
What the curriculum adds is what its callback takes and what reading takes longer; both are timed where they happen, so
that the noise of a step, which is a hundred times longer, is in the denominator alone. Times are processor times of
the process: other work on the machine lengthens a step's wall time, and hardly this. Boundaries of phases, where a
selection is made (here the cheapest, of random rows), are counted apart, as are the preparations before the first step.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, TrainerCallback

import dataflex as df
from dataflex.integrations.transformers import Curriculum
from dataflex.models.model import add_lora, load_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[1]
MOST = 0.01
"""The goal: what is added to a step outside selections, as a share of it."""
READING, COMPUTING = "reading", "computing"
BEGINNING, BOUNDARY = "on_train_begin", "on_epoch_begin"
EVENTS = tuple(name for name in dir(TrainerCallback) if name.startswith("on_"))


class Clock:
    """Seconds of what happens again and again, by its name: on the wall, and of the processor."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.processor: dict[str, list[float]] = defaultdict(list)

    def note(self, name: str, since: tuple[float, float]) -> None:
        """Note what went by since :func:`now`."""
        self.wall[name].append(time.perf_counter() - since[0])
        self.processor[name].append(time.process_time() - since[1])


def now() -> tuple[float, float]:
    """Both clocks."""
    return time.perf_counter(), time.process_time()


class TimedTrainer(transformers.Trainer):
    """Notes how long the rows of each step are read."""

    clock: Clock

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """Read."""
        since = now()
        found = super().get_batch_samples(*arguments, **named)
        self.clock.note(READING, since)
        return found


class StepClock(TrainerCallback):
    """Notes how long each step computes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_begin(self, *arguments: Any, **named: Any) -> None:
        """The rows are there."""
        self._since = now()

    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        """The optimizer has taken its step."""
        self._clock.note(COMPUTING, self._since)


class TimedCallback(TrainerCallback):
    """Notes how long each call of a callback takes."""

    def __init__(self, inner: TrainerCallback, clock: Clock) -> None:
        for event in EVENTS:
            setattr(self, event, partial(self._call, clock, event, getattr(inner, event)))

    @staticmethod
    def _call(clock: Clock, event: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        since = now()
        outcome = call(*arguments, **named)
        clock.note(event, since)
        return outcome


@dataclass(frozen=True)
class Round:
    """One round; seconds of the processor but for ``waiting`` and ``wall``.

    Attributes:
        step: Of a step of the trainer alone, on average.
        followed: Of a step with the curriculum, the callback's calls included.
        reading: Of a step of the trainer alone, for reading rows.
        added_reading: How much longer reading takes with the curriculum, a step.
        calls: Of the callback during steps, a step.
        boundary: Of opening a phase, random selection included.
        beginning: Before the first step.
        waiting: How much longer reading takes on the wall, a step: with workers, which are started in each phase.
        wall: Median wall seconds of a step, of the trainer alone and with the curriculum.
    """

    step: float
    followed: float
    reading: float
    added_reading: float
    calls: float
    boundary: float
    beginning: float
    waiting: float
    wall: tuple[float, float]

    @property
    def share(self) -> float:
        """What is added to a step outside selections, as a share of it."""
        return (self.added_reading + self.calls) / self.step


class Setting:
    """Model, rows and arguments that both trainers share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(str(options.model))
        self.model = load_model(str(options.model))
        ids = torch.randint(len(self.tokenizer), (options.rows, options.tokens)).tolist()
        self.data = Dataset.from_list([{"input_ids": row, "labels": row} for row in ids])

    def schedule(self) -> df.Schedule:
        """Selections of random rows throughout."""
        steps = self.options.update_step
        return df.Schedule(0, steps, self.options.steps // steps)

    def run(self, train_dataset: Any, callbacks: Sequence[TrainerCallback]) -> Clock:
        """Train a new adapter."""
        clock, options = Clock(), self.options
        with TemporaryDirectory() as folder:
            args = transformers.TrainingArguments(
                output_dir=folder,
                max_steps=options.steps,
                per_device_train_batch_size=options.batch,
                gradient_accumulation_steps=options.accumulation,
                dataloader_num_workers=options.workers,
                dataloader_pin_memory=torch.cuda.is_available(),
                accelerator_config={"dispatch_batches": False},
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            )
            trainer = TimedTrainer(
                add_lora(self.model, rank=options.rank, alpha=2 * options.rank),
                args,
                train_dataset=train_dataset,
                data_collator=DataCollatorForSeq2Seq(self.tokenizer),
                processing_class=self.tokenizer,
                callbacks=[*(TimedCallback(each, clock) for each in callbacks), StepClock(clock)],
            )
            trainer.clock = clock
            trainer.train()
            self.model = trainer.model.unload()
        return clock

    def alone(self) -> Clock:
        """The trainer as it is."""
        return self.run(self.data, [])

    def followed(self, *more: TrainerCallback) -> Clock:
        """The trainer with a curriculum."""
        curriculum = Curriculum(self.data, selector="random", schedule=self.schedule(), selection_repeats=True)
        return self.run(curriculum.train_dataset, [curriculum.callback, *more])


def measure(setting: Setting, *more: TrainerCallback) -> list[Round]:
    """Both trainers in turns; the first of them changes from round to round, and a first round does not count.

    Args:
        setting: What they share.
        more: Callbacks that count as the curriculum's.
    """
    rounds = []
    for number in range(setting.options.rounds + 1):
        if number % 2:
            followed, alone = setting.followed(*more), setting.alone()
        else:
            alone, followed = setting.alone(), setting.followed(*more)
        if number:
            rounds.append(compared(alone, followed, setting.options.steps))
    return rounds


def compared(alone: Clock, followed: Clock, steps: int) -> Round:
    """What the steps of two runs took."""

    def wall(clock: Clock) -> float:
        return median(sum(pair) for pair in zip(clock.wall[READING], clock.wall[COMPUTING], strict=True))

    plain = {name: sum(alone.processor[name]) / steps for name in (READING, COMPUTING)}
    during = [event for event in EVENTS if event not in (BEGINNING, BOUNDARY)]
    return Round(
        step=sum(plain.values()),
        followed=sum(sum(followed.processor[name]) for name in (READING, COMPUTING)) / steps,
        reading=plain[READING],
        added_reading=sum(followed.processor[READING]) / steps - plain[READING],
        calls=sum(sum(followed.processor[event]) for event in during) / steps,
        boundary=mean(followed.processor[BOUNDARY]),
        beginning=sum(followed.processor[BEGINNING]),
        waiting=(sum(followed.wall[READING]) - sum(alone.wall[READING])) / steps,
        wall=(wall(alone), wall(followed)),
    )


def table(rounds: Sequence[Round], options: argparse.Namespace) -> str:
    """Markdown."""

    def spread(values: Sequence[float], shape: str) -> str:
        return f"{median(values):{shape}} ({min(values):{shape}} to {max(values):{shape}})"

    def row(text: str, name: str) -> str:
        return f"| {text} | {spread([1000 * getattr(each, name) for each in rounds], ',.3f')} |"

    share = median(each.share for each in rounds)
    goal = f"goal: below {MOST:.0%}, {'met' if share < MOST else 'not met'}"
    opening = median(each.boundary / each.step for each in rounds) / options.update_step
    beginning = median(each.beginning for each in rounds) / options.rows
    lines = [
        "| | processor ms: median of the rounds (least to most) |",
        "| --- | --- |",
        row("a step of the trainer alone", "step"),
        row("of it, reading rows", "reading"),
        row("added to reading", "added_reading"),
        row("added to reading, on the wall", "waiting"),
        row("the callback during steps", "calls"),
        row("opening a phase, with a selection of random rows", "boundary"),
        "",
        f"Added outside selections: {spread([each.share for each in rounds], '.3%')} of a step; {goal}.",
        f"Opening phases of {options.update_step} steps: {opening:.3%} of a step.",
        f"Whole steps, times the trainer alone: {spread([each.followed / each.step for each in rounds], '.3f')} by "
        f"processor time, {spread([each.wall[1] / each.wall[0] for each in rounds], '.3f')} on the wall.",
        f"Before the first step: {1e6 * beginning:.0f} processor microseconds a row.",
    ]
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=128, help="in a row")
    parser.add_argument("--batch", type=int, default=2, help="rows of a device and forward pass")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes of the data loader; their time is not seen")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--update-step", type=int, default=10, help="steps of a phase")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and print."""
    options = parse()
    print(
        f"{options.steps} steps of {options.batch} x {options.accumulation} rows of {options.tokens} tokens, "
        f"{options.workers} workers, LoRA rank {options.rank}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}\n"
    )
    rounds = measure(Setting(options))
    print(table(rounds, options))
    if options.json:
        settings = {name: getattr(value, "name", value) for name, value in vars(options).items() if name != "json"}
        options.json.write_text(
            json.dumps({"settings": settings, "rounds": list(map(asdict, rounds))}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
