"""The lines that a run logs of its steps and evaluations, as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataflex.utils.facts import number_text
from dataflex.utils.progress import duration


def log_line(entry: Mapping[str, Any]) -> str | None:
    """A log entry of a step or an evaluation as a line; None for selections and mixtures, which say more."""
    step, total = entry["current_steps"], entry["total_steps"]
    if "selection_round" in entry or "mixture_round" in entry:
        return None
    if "loss" in entry:
        parts = [f"loss {number_text(entry['loss'])}", f"learning rate {entry['learning_rate']:.3g}"]
        if "grad_norm" in entry:
            parts.append(f"gradient norm {number_text(entry['grad_norm'])}")
        if "weight_max" in entry:
            low, middle, high = (number_text(entry[f"weight_{name}"]) for name in ("min", "median", "max"))
            parts.append(f"weights {low} to {high}, median {middle}")
        if entry.get("remaining_time") is not None and step < total:
            parts.append(f"{duration(entry['remaining_time'])} left")
        return f"step {step:,} of {total:,}: {', '.join(parts)}"
    found = [f"{key} {number_text(value)}" for key, value in entry.items() if key.startswith("eval_")]
    return f"evaluation at step {step:,}: {', '.join(found)}"


def step_details(step: int, values: Mapping[str, float], seconds: float) -> str:
    """One step, whether or not it is logged."""
    norm = f", gradient norm {number_text(values['grad_norm'])}" if "grad_norm" in values else ""
    return f"step {step:,}: loss {number_text(values['loss'])}{norm}, {seconds:.2f} s"
