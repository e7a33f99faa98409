"""What the selections of a run need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dataflex.curriculum.schedule import Schedule, longest_selection
from dataflex.data.dataset import TokenizedDataset
from dataflex.selectors.base import Selector


def text_problems(
    selector: Selector[Any], train_dataset: TokenizedDataset, eval_dataset: TokenizedDataset | None
) -> Iterator[str]:
    """Why a selector cannot read what rows say: some were tokenised by somebody else, and have no text."""
    sets = {"train_dataset": ("training set", train_dataset), "eval_dataset": ("evaluation set", eval_dataset)}
    for argument in selector.reads_text:
        what, rows = sets[argument]
        if rows and not rows.samples[0].messages:
            yield f"selector {selector.name!r} reads the text of rows, and the {what} has tokens alone"


def selection_problems(
    schedule: Schedule,
    selector: Selector[Any] | None,
    num_candidates: int,
    eval_dataset: TokenizedDataset | None,
    global_batch: int,
    *,
    num_train_epochs: float,
    repeats: bool,
) -> Iterator[str]:
    """Why the selections of a run cannot be made.

    Args:
        schedule: When the run selects.
        selector: Its selector.
        num_candidates: n.
        eval_dataset: Evaluation set.
        global_batch: Samples of one step.
        num_train_epochs: How often the schedule is gone through.
        repeats: A selection may be larger than the data.
    """
    if selector is None and schedule.update_times and schedule.update_step:
        yield "the schedule has selections but there is no selector"
    if selector is not None and selector.needs_eval_dataset and not eval_dataset:
        yield f"selector {selector.name!r} needs an evaluation set (eval_dataset)"
    longest = longest_selection(schedule.phases(num_train_epochs))
    if longest * global_batch > num_candidates and not repeats:
        yield (
            f"a selection of update_step x global batch = {longest} x {global_batch} samples does not fit into "
            f"{num_candidates} candidates; the largest update_step that does is {num_candidates // global_batch}, or "
            "set selection_repeats: true"
        )
