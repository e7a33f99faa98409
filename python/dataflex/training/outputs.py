"""What a selection has to be, what is logged about it, and the model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection
from dataflex.utils.distributed import Ranks
from dataflex.utils.facts import numbers
from dataflex.utils.files import write_text
from dataflex.utils.shown import shown


def check_selection(selection: Selection, num_candidates: int, num_samples: int) -> None:
    """Raise SelectionError unless the selection is ``num_samples`` positions in range, with n scores and a JSON report.

    The positions are distinct, except where the selection says that they repeat.
    """
    indices = selection.indices
    problems = []
    if indices.dtype != np.int64 or indices.shape != (num_samples,):
        problems.append(f"indices are {indices.dtype}{indices.shape}, expected int64({num_samples},)")
    elif not selection.repeats and len(np.unique(indices)) != num_samples:
        problems.append(f"indices repeat: {num_samples - len(np.unique(indices))} of {num_samples}")
    if indices.size and (indices.min() < 0 or indices.max() >= num_candidates):
        problems.append(f"indices reach from {indices.min()} to {indices.max()}, there are {num_candidates} candidates")
    if selection.scores is not None and selection.scores.shape != (num_candidates,):
        problems.append(f"scores have shape {selection.scores.shape}, expected ({num_candidates},)")
    try:
        json.dumps(selection.report)
    except (TypeError, ValueError) as error:
        problems.append(f"its report is not plain JSON: {error}")
    if problems:
        raise SelectionError(f"selector {selection.selector!r} returned a wrong selection: {'; '.join(problems)}")


def check_agreement(selection: Selection, ranks: Ranks) -> None:
    """Raise SelectionError on every rank unless all of them selected the same samples in the same order."""
    digests = ranks.gather(hashlib.sha256(selection.indices.tobytes()).hexdigest())
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise SelectionError(
            f"selector {selection.selector!r} selected other samples on rank {different[0]} than on rank 0",
            hint="a selector must not depend on the rank: draw from (context.seed, context.round), and gather what "
            "ranks compute with context.ranks",
        )


def selection_statistics(selection: Selection, previous: Sequence[int], total: float) -> dict[str, float | int]:
    """Numbers about a selection for logs and trackers.

    Args:
        selection: The new selection.
        previous: Positions that the last one chose; empty before the first.
        total: Seconds that the selection took.

    Returns:
        ``selection_round``, ``selected``; where the method has scores their mean over the chosen and over all usable
        candidates; ``selection_overlap``, the share of the chosen that the last selection chose too; how reliable the
        target was, where the selector knows; and the seconds of each phase that the selector reports, and in all.
    """
    statistics: dict[str, float | int] = {
        "selection_round": selection.round,
        "selected": len(selection.indices),
    }
    if selection.scores is not None:
        usable = selection.scores[np.isfinite(selection.scores)]
        statistics["selection_mean_score"] = float(selection.scores[selection.indices].mean())
        statistics["selection_mean_score_of_all"] = float(usable.mean())
    if previous:
        statistics["selection_overlap"] = float(np.isin(selection.indices, previous).mean())
    for what, value in numbers(selection.report.get("reliability")).items():
        statistics[f"selection_reliability/{what}"] = round(value, 4)
    for phase, seconds in numbers(selection.report.get("seconds")).items():
        statistics[f"selection_seconds/{phase.replace(' ', '_')}"] = round(seconds, 3)
    return {**statistics, "selection_seconds/total": round(total, 3)}


def write_model_card(output_dir: Path, facts: Mapping[str, Any]) -> None:
    """Write ``README.md`` with the metadata block that model hubs read."""
    lines = ["---", "library_name: peft", "tags:", "- dataflex", "- lora"]
    if facts.get("base_model"):
        lines.append(f"base_model: {json.dumps(str(facts['base_model']))}")
    lines += ["---", "", f"# {_cell(output_dir.name)}", ""]
    lines.append("An adapter that was fine-tuned with dataflex: training samples were selected while it was trained.")
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items() if value is not None]
    lines += ["", "Which samples were selected, with their scores: `selections/`. Configuration: `config.yaml`.", ""]
    write_text(output_dir / "README.md", "\n".join(lines))


def _cell(value: Any) -> str:
    return shown(value, target="markdown")
