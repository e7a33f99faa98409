"""What a finished run says about itself: ``all_results.json``, ``trainer_state.json``, card, plot and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataflex.data.dataset import TokenizedDataset
from dataflex.report.read import read_report
from dataflex.report.run import write_html
from dataflex.training.outputs import write_model_card
from dataflex.training.state import RunState
from dataflex.training.tracking import PLOT_FILE, plot_losses
from dataflex.utils.files import write_json


def run_results(
    state: RunState,
    history: Sequence[Mapping[str, Any]],
    *,
    total_steps: int,
    datasets: Mapping[str, TokenizedDataset | None],
    of_best: bool,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """What ``all_results.json`` holds.

    Args:
        state: The run at its end.
        history: Its log entries.
        total_steps: Steps of the whole schedule.
        datasets: The sets ``training`` and ``evaluation``.
        of_best: The weights that are saved are the best evaluation's, not the last one's.
        seconds: Wall-clock seconds by kind of work.
    """
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluations = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
    if of_best:
        best = [entry for entry in evaluations if entry["current_steps"] == state.best.step]
        evaluations = best or evaluations
    last = {key: value for key, value in evaluations[-1].items() if key.startswith("eval_")} if evaluations else {}
    training = datasets["training"]
    return {
        "steps": state.step,
        "total_steps": total_steps,
        "selections": state.round,
        "train_samples": 0 if training is None else len(training),
        "data": {name: asdict(dataset.report) for name, dataset in datasets.items() if dataset is not None},
        "train_loss": losses[-1] if losses else None,
        "eval_loss": None,
        **last,
        "best_metric": state.best.value,
        "best_step": state.best.step,
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
    write_model_card(output_dir, {"base_model": base_model, **scalars(results)})
    if plot:
        plot_losses(history, output_dir / PLOT_FILE)
    write_html(read_report(output_dir))


def scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """The texts and numbers among the values."""
    return {key: value for key, value in values.items() if isinstance(value, str | int | float)}
