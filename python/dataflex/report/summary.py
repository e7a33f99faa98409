"""What was chosen, whether to trust it, what it cost and what to change: the report in four answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dataflex.plugins.registry import registry
from dataflex.report.compare import overlap
from dataflex.report.groups import LENGTH, Grouping, groupings
from dataflex.report.read import RunReport, SelectionFile, entries_with
from dataflex.report.table import share_text, time_text
from dataflex.utils.facts import numbers
from dataflex.utils.reliability import HIGH, LOW, decisive, meaning
from dataflex.utils.shown import shown

NAME = 40
"""Longest name in a sentence, in characters."""
LENGTH_RATIO = 1.5
"""Selected rows whose median length is so many times that of all, or less than one over it, are told apart by it."""
SAME = 0.95
"""Two selections with more rows in common are one."""
MOST_TIME = 0.5
"""A share of the time above which selections are what to save on."""
FINISHED = 0.7
"""Below this share of finished answers the limit of their length decides what is rewarded."""
CONCENTRATED = 0.9
"""Share of the selected in one group above which the choice is that group."""
USED_UP = 0.9
"""Share of a group's rows that a selection chose above which there is hardly more of the group to choose."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The report in four answers.

    Attributes:
        chosen: What was chosen.
        trust: Whether to trust it.
        cost: What it took.
        changes: What to change, each with its reason; empty where nothing stands out.
    """

    chosen: str
    trust: str
    cost: str
    changes: list[str]

    def lines(self) -> list[tuple[str, str]]:
        """Questions and answers."""
        changes = " ".join(self.changes) or "Nothing stands out."
        return [
            ("What was chosen?", self.chosen),
            ("Can it be trusted?", self.trust),
            ("What did it cost?", self.cost),
            ("What would I change?", changes),
        ]


def summarize(report: RunReport, found: Sequence[Grouping] | None = None) -> Summary:
    """The four answers.

    Args:
        report: What was read.
        found: Its groups, where they have been counted already.
    """
    if found is None:
        found = list(groupings(report.selections)) if report.selections else []
    return Summary(_chosen(report, found), _trust(report), cost(report), list(_changes(report, found)))


def _chosen(report: RunReport, found: Sequence[Grouping]) -> str:
    selections = report.selections
    if not selections:
        return _without_selection(report)
    last, count = selections[-1], len(selections)
    times = "once:" if count == 1 else f"{count} times, the last time"
    n, k = len(last.chosen), int(last.chosen.sum())
    text = f"{_method(last.selector)} chose {times} {k:,} of {n:,} rows ({k / n:.1%})."
    together = ["All selections together:"] if count > 1 and found else []
    return " ".join([text, *together, *(leading(grouping) for grouping in found[:1])])


def _method(name: str) -> str:
    """A selector with what it goes by, where it is registered; a name of someone's own code says nothing more."""
    known = registry().components.get(("selector", name))
    return f"{name} ({known.summary})" if known is not None and known.summary else name


def _without_selection(report: RunReport) -> str:
    if report.mixtures:
        last = report.mixtures[-1]
        domains = list(zip(last.get("domains", []), last.get("proportions", []), strict=False))
        name, share = max(domains, key=lambda pair: pair[1], default=("?", 0.0))
        most = f"most of the last is {name} ({share_text(share)})"
        return f"{len(report.mixtures)} mixtures of {len(domains)} domains; {most}."
    if report.weights:
        return "All rows, each with a weight of its own."
    return "All rows: no selection has been made." if report.results else "No selection has been made yet."


def leading(grouping: Grouping) -> str:
    """The group that gained most, and the one that was left behind, in a sentence."""
    first = max(grouping.rows, key=lambda row: row.selected_share * row.lift)
    name = shown(first.name, NAME)
    what = f"{name} tokens" if grouping.what == LENGTH else f"{name} ({grouping.what})"
    share = share_text(first.selected_share)
    text = f"{share} of the selected rows are of {what}, {first.lift:.1f} times its share of all rows"
    if grouping.used(first) > USED_UP:
        each = " at each selection" if grouping.rounds > 1 else ""
        text += f" and {grouping.used(first):.0%} of the rows that it has{each}"
    none = [row for row in grouping.rows if not row.selected]
    if grouping.what != LENGTH and none:
        more = f" or {len(none) - 1} other groups" if len(none) > 1 else ""
        text += f"; none is of {shown(none[0].name, NAME)}{more}"
    return text + "."


def reliability(selection: SelectionFile) -> float | None:
    """The reliability that counts at a selection, where it is known."""
    return decisive(selection.reliability.get("targets"), selection.reliability.get("answers"))


def _trust(report: RunReport) -> str:
    known = [(selection.step, reliability(selection)) for selection in report.selections]
    values = [(step, value) for step, value in known if value is not None]
    if not values:
        if not report.selections:
            return "There is no selection to trust."
        return "This method has no measure of it: look at the rows below, and at the loss on the evaluation set."
    lowest = min(value for _, value in values)
    judged = "Yes" if lowest >= HIGH else "In part" if max(value for _, value in values) >= LOW else "No"
    said = "; ".join(f"{value:.2f} at step {step:,} ({meaning(value)})" for step, value in values[-3:])
    text = f"{judged}. Reliability of the targets (what the rows are chosen for), of 1: {said}."
    if lowest < LOW:
        text += " Such a direction prefers some rows, too: see whether those below are what the targets ask for."
    return text


def cost(report: RunReport) -> str:
    """Time, of it for selections, requests and memory, where they are known."""
    seconds = report.seconds
    total = sum(seconds.values())
    chosen = sum(value for name, value in seconds.items() if name.startswith("selection"))
    if not total:
        return "Not known yet." if report.trained else "Not recorded."
    parts = [time_text(total)]
    if report.trained and chosen:  # a run that goes on has noted the time of its selections alone
        parts[0] += f", {chosen / total:.0%} of it for selections" if report.results else " for selections so far"
    judge = _judge(report.selections)
    if judge:
        parts.append(judge)
    memory = numbers(report.results).get("peak_memory_bytes")
    if memory:
        parts.append(f"at most {memory / 2**30:.1f} GiB of memory in the main process (of its GPU, in a run on one)")
    return "; ".join(parts) + "."


def _judge(selections: Sequence[SelectionFile]) -> str:
    """What all selections asked of a judge, where they asked one."""
    counted = [numbers(found.report.get("reward_backend")) for found in selections]
    requests, read, written, price = (
        sum(found.get(name, 0.0) for found in counted)
        for name in ("requests", "prompt_tokens", "reply_tokens", "price")
    )
    if not requests:
        return ""
    text = f"{requests:,.0f} requests to the judge"
    if read or written:
        text += f", {read:,.0f} tokens read and {written:,.0f} written"
    return f"{text}, for {price:,.2f} at the prices of the configuration" if price else text


def _changes(report: RunReport, found: Sequence[Grouping]) -> Iterator[str]:
    if report.selections:
        yield from _about_target(report)
        yield from _about_rows(report, found)
    yield from _about_run(report)


def _about_target(report: RunReport) -> Iterator[str]:
    """What would make the scores say more."""
    last = report.selections[-1]
    value = reliability(last)
    if value is not None and value < LOW:
        yield f"More targets, more answers or a softer reward: at the last selection the reliability is {value:.2f}."
    rewards = numbers(last.report.get("rewards"))
    answers, finished = rewards.get("answers", 0.0), rewards.get("finished", 0.0)
    if answers and finished / answers < FINISHED:
        share = 1 - finished / answers
        yield f"A larger max_new_tokens, or shorter answers: at the last selection {share:.0%} of them were cut off."
    prompts = numbers(last.report.get("prompts"))
    total, signal = prompts.get("total", 0.0), prompts.get("with_signal", 0.0)
    if total and signal / total < 0.5:
        yield (
            f"Easier or harder prompts, or more answers: only {signal:.0f} of {total:.0f} prompts told good answers "
            "from bad ones."
        )
    unusable = sum(count for name, count in last.left_out.items() if "not finite" in name)
    if unusable:
        yield f"Look for broken rows: {unusable:,.0f} had a gradient that is not finite."


def _about_rows(report: RunReport, found: Sequence[Grouping]) -> Iterator[str]:
    """What the chosen rows have in common, and what the selections have."""
    last = report.selections[-1]
    for grouping in found[:1]:
        largest = max(grouping.rows, key=lambda row: row.selected_share)
        if grouping.what != LENGTH and grouping.used(largest) > USED_UP and largest.share < largest.selected_share < 1:
            yield (
                f"Fewer rows a selection, or more rows of {grouping.what} {shown(largest.name, NAME)}: nearly all of "
                f"these were chosen, and {1 - largest.selected_share:.0%} of the selected are of other groups."
            )
        if grouping.what != LENGTH and largest.selected_share > CONCENTRATED and largest.share < CONCENTRATED:
            yield (
                f"Fewer rows, or targets of several kinds, if that is too narrow: {largest.selected_share:.0%} of the "
                f"selected are {grouping.what} {shown(largest.name, NAME)}."
            )
    tokens = last.tokens()
    if len(tokens) and last.chosen.any() and np.isfinite(last.scores).any():
        ratio = float(np.median(tokens[last.chosen])) / max(float(np.median(tokens)), 1.0)
        if not 1 / LENGTH_RATIO < ratio < LENGTH_RATIO:
            kind = "longer" if ratio > 1 else "shorter"
            yield f"See whether length decides: the selected rows are {kind}, {ratio:.1f} times the median of all rows."
    if len(report.selections) > 1:
        shared = overlap(report.selections[-2].chosen, last.chosen)
        if shared is not None and shared > SAME and last.chosen.mean() < SAME:
            yield f"One selection less: the last two share {shared:.0%} of their rows."


def _about_run(report: RunReport) -> Iterator[str]:
    """What the log says."""
    steps, values = entries_with(report.history, "eval_loss")
    if len(values) > 1 and values[-1] > 1.02 * min(values):
        best = steps[int(np.argmin(values))]
        yield f"Fewer steps, or load_best_model_at_end: the evaluation loss was lowest at step {best:,.0f}."
    seconds = report.seconds
    chosen = sum(value for name, value in seconds.items() if name.startswith("selection"))
    if report.results and chosen > MOST_TIME * sum(seconds.values()):
        share = chosen / sum(seconds.values())
        yield f"A prefilter or fewer candidates, if time matters: selections took {share:.0%} of it."
