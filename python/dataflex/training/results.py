"""What a finished run says about itself: ``all_results.json``, ``trainer_state.json``, card, plot and report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataflex.data.dataset import TokenizedDataset
from dataflex.report.page import write_page
from dataflex.report.read import read_report
from dataflex.report.sections import lay_out
from dataflex.training.outputs import write_model_card
from dataflex.training.state import RunState
from dataflex.training.tracking import PLOT_FILE, plot_losses
from dataflex.utils.files import write_json


def passes(steps: int, samples: int, global_batch: int) -> float:
    """Passes over the training data in a number of steps: the ``epoch`` of logs and results.

    A pass is as many steps as it takes to see every sample once; steps on selected samples count like any other.
    """
    return steps / math.ceil(samples / global_batch)


def run_results(
    state: RunState,
    history: Sequence[Mapping[str, Any]],
    *,
    total_steps: int,
    made: Mapping[str, int],
    global_batch: int,
    datasets: Mapping[str, TokenizedDataset | None],
    of_best: bool,
    seconds: Mapping[str, float],
    memory: int,
) -> dict[str, Any]:
    """What ``all_results.json`` holds; names that transformers has mean what they mean there.

    ``train_loss`` is the mean of the losses of all steps; ``train_runtime`` (seconds) and the rates count the parts of
    a run that was resumed together.

    Args:
        state: The run at its end.
        history: Its log entries.
        total_steps: Steps of the whole schedule.
        made: Numbers of selections and mixtures.
        global_batch: Samples of one step.
        datasets: The sets ``training`` and ``evaluation``.
        of_best: The weights that are saved are the best evaluation's, not the last one's.
        seconds: Wall-clock seconds by kind of work.
        memory: Most bytes that the main process has held, on its GPU where it has one.
    """
    evaluations = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
    if of_best:
        best = [entry for entry in evaluations if entry["current_steps"] == state.best.step]
        evaluations = best or evaluations
    last = {key: value for key, value in evaluations[-1].items() if key.startswith("eval_")} if evaluations else {}
    training = datasets["training"]
    samples, runtime = 0 if training is None else len(training), state.runtime
    return {
        "epoch": round(passes(state.step, samples, global_batch), 4) if samples else None,
        "steps": state.step,
        "total_steps": total_steps,
        **made,
        "train_samples": samples,
        "data": {name: asdict(dataset.report) for name, dataset in datasets.items() if dataset is not None},
        "train_loss": state.loss_sum / state.loss_steps if state.loss_steps else None,
        "train_runtime": round(runtime, 4),
        "train_samples_per_second": round(state.loss_steps * global_batch / runtime, 3) if runtime else None,
        "train_steps_per_second": round(state.loss_steps / runtime, 3) if runtime else None,
        "eval_loss": None,
        **last,
        "best_metric": state.best.value,
        "best_step": state.best.step,
        "peak_memory_bytes": memory,
        "seconds": dict(seconds),
    }


def write_results(
    output_dir: Path,
    results: Mapping[str, Any],
    state: RunState,
    history: Sequence[Mapping[str, Any]],
    *,
    base_model: str | None,
    plot: bool,
) -> None:
    """Write everything but the weights.

    Args:
        output_dir: Folder of the run.
        results: :func:`run_results`.
        state: The run at its end.
        history: Its log entries.
        base_model: Name or path of the base model, for the card.
        plot: Draw the losses.
    """
    write_json(output_dir / "all_results.json", dict(results))
    stored = {**state.to_json(), "history": list(history)}
    del stored["indices"]  # in selections/, with scores
    write_json(output_dir / "trainer_state.json", stored)
    report = read_report(output_dir)
    pages = lay_out(report)
    write_model_card(output_dir, {"base_model": base_model, **scalars(results)}, pages.summary.lines())
    if plot:
        plot_losses(history, output_dir / PLOT_FILE)
    write_page(report, pages)


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """The texts and numbers among the values."""
    return {key: value for key, value in values.items() if isinstance(value, str | int | float)}
