"""The tables of the report: the terminal, the page and programs have the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dataflex.report.answers import Answer
from dataflex.report.compare import overlap, rank_correlation
from dataflex.report.groups import Grouping, groupings
from dataflex.report.read import RunReport, SelectionFile
from dataflex.report.table import Column, Sheet
from dataflex.utils.facts import flat, numbers
from dataflex.utils.reliability import LOW, decisive, meaning

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
NOT_LOOKED_AT = (
    "Only the rows that were looked at (candidates, prefilter) have a score. Shares and lift count all rows: they are "
    "those of the choice as a whole, what went before the scores included."
)
WEIGHTS = ("min", "q25", "median", "q75", "max")
MOST_ROWS, MOST_STEPS = 60, 12
"""Rows of the table of mixtures, and steps of that of weights."""
MOST_GROUPS = 40
"""Groups that a table lists; ids in the task column would make it endless."""
LOOKED_AT = Column("looked at", "count", "rows that have a score; the others were left out before")


def sheets(report: RunReport, found: Sequence[Grouping] | None = None) -> list[Sheet]:
    """All tables that have a row, in their order.

    Args:
        report: What was read.
        found: Its groups, where they have been counted already: that takes seconds for a million rows.
    """
    if found is None:
        found = list(groupings(report.selections)) if report.selections else []
    tables = [
        *_selected(report, found),
        _mixtures(report.mixtures),
        _weights(report.weights),
        _left_out(report),
        _data(report.results),
        _time(report.seconds),
        _results(report.results),
    ]
    return [sheet for sheet in tables if sheet.rows]


def _selected(report: RunReport, found: Sequence[Grouping]) -> Iterator[Sheet]:
    """What was selected, by everything that is known of the rows."""
    if not report.selections:
        return
    last = report.selections[-1]
    yield _selections(report.selections)
    yield _reliability(report.selections)
    for grouping in found:
        yield _group_sheet(grouping, report.selections)
    yield _quantiles(last)
    yield _excerpts(last)
    yield from _answers(report)
    yield _facts(last)


def _selections(selections: Sequence[SelectionFile]) -> Sheet:
    rows = []
    before: SelectionFile | None = None
    some = any(selection.looked_at is not None for selection in selections)
    for now in selections:
        shared = None if before is None else overlap(before.chosen, now.chosen)
        correlation = None if before is None else rank_correlation(before.scores, now.scores)
        values = (_mean(now.scores[now.chosen]), _mean(now.scores), shared, correlation)
        looked_at = [now.looked_at or len(now.chosen)] if some else []
        seconds = sum(now.seconds.values()) if now.seconds else None
        rows.append((now.step, *looked_at, int(now.chosen.sum()), *values, seconds))
        before = now
    count = len(selections)
    title = f"{selections[-1].selector}: {count} selection{'s' if count > 1 else ''}"
    columns = (
        Column("step", "count", "optimizer steps before the selection"),
        *([LOOKED_AT] if some else []),
        Column("selected", "count"),
        Column("mean score", "score", "of the selected rows"),
        Column("mean score of all", "score", "of all rows that have a score"),
        Column("chosen last time too", "percent", "share of the selected rows that the selection before chose"),
        Column("order kept", "ratio", "Spearman's rank correlation of the scores with those of the selection before"),
        Column("seconds", "seconds"),
    )
    title = f"{title} from {len(selections[0].chosen):,} rows"
    return Sheet("selections", title, columns, rows, NOT_LOOKED_AT if some else "")


def _reliability(selections: Sequence[SelectionFile]) -> Sheet:
    """How far two halves of the targets agreed at each selection, and what that says."""
    rows: list[tuple[Any, ...]] = []
    marked: set[int] = set()
    for selection in selections:
        known = selection.reliability
        value = decisive(known.get("targets"), known.get("answers"))
        if value is None:
            continue
        if value < LOW:
            marked.add(len(rows))
        says = f"{'low: ' if value < LOW else ''}{meaning(value)}"
        rows.append((selection.step, known.get("targets"), known.get("answers"), says))
    note = (
        "The cosine of two halves of the targets, and of two halves of each prompt's answers: 1 where they agree, 0 "
        f"for noise. Below {LOW} more targets, more answers or a softer reward help."
    )
    columns = (
        Column("step", "count"),
        Column("halves of the targets", "ratio"),
        Column("halves of the answers", "ratio"),
        Column("what it says"),
    )
    return Sheet("reliability", "can the target be trusted?", columns, rows, note, frozenset(marked))


def _group_sheet(grouping: Grouping, selections: Sequence[SelectionFile]) -> Sheet:
    some = any(selection.looked_at is not None for selection in selections)
    rows = [
        (
            row.name,
            row.candidates,
            row.share,
            *([row.looked_at] if some else []),
            row.selected,
            row.selected_share,
            row.lift,
            row.mean_score,
        )
        for row in grouping.rows[:MOST_GROUPS]
    ]
    notes = [f"Groups: {grouping.known_by}."]
    if len(selections) > 1:
        notes.append(f"The {len(selections)} selections are counted together, a row once for each that chose it.")
    if len(grouping.rows) > MOST_GROUPS:
        notes.append(f"{len(grouping.rows) - MOST_GROUPS:,} more, of which fewer rows were selected.")
    columns = (
        Column(grouping.what),
        Column("rows", "count"),
        Column("share", "share", "of all rows"),
        *([LOOKED_AT] if some else []),
        Column("selected", "count"),
        Column("share of selected", "share", "of all that were selected"),
        Column("lift", "lift", "share of selected over share: 1 is what a random choice gives"),
        Column("mean score", "score", "of all its rows, selected or not"),
    )
    return Sheet(f"by {grouping.what}", f"selected by {grouping.what}", columns, rows, " ".join(notes))


def _quantiles(selection: SelectionFile) -> Sheet:
    scores = selection.scores
    everything, chosen = scores[np.isfinite(scores)], scores[selection.chosen & np.isfinite(scores)]
    rows: list[tuple[Any, ...]] = []
    if len(everything) and len(chosen):
        found = np.quantile(everything, QUANTILES).tolist(), np.quantile(chosen, QUANTILES).tolist()
        rows = [(f"{share:.0%}", *values) for share, *values in zip(QUANTILES, *found, strict=True)]
    meaning_of_it = "this share of the rows has a score of at most the numbers beside it"
    columns = (
        Column("quantile", "text", meaning_of_it),
        Column("of all rows", "score"),
        Column("of the selected", "score"),
    )
    return Sheet("scores", f"scores at step {selection.step}", columns, rows)


def _excerpts(selection: SelectionFile) -> Sheet:
    rows = [
        (*(row.get(key) or "" for key in ("place", "id", "prompt", "answer")), numbers(row).get("score"))
        for row in selection.excerpts
    ]
    columns = (*map(Column, ("place", "id", "prompt", "answer")), Column("score", "score"))
    return Sheet("rows", f"rows at step {selection.step}", columns, rows)


def _answers(report: RunReport) -> Iterator[Sheet]:
    """Rewards of each round, and the best and worst answers of the last."""
    rounds = report.answers
    rows = []
    for step, found in rounds.items():
        means = found.means
        every = [reward for own in found.rewards.values() for reward in own]
        low, high = min(every), max(every)
        counts = (len(means), len(every), sum(every) / len(every))
        never, always = (sum(set(own) == {end} for own in found.rewards.values()) for end in (low, high))
        rows.append((step, *counts, never, always))
    columns = (
        Column("step", "count"),
        Column("prompts", "count"),
        Column("answers", "count", "sampled answers that have a reward"),
        Column("mean reward", "score"),
        Column("never", "count", "prompts all of whose answers earned the lowest reward of the round"),
        Column("always", "count", "prompts all of whose answers earned the highest"),
    )
    notes = (
        ["Some rounds have more answers, of which the first were read."] if any(a.cut for a in rounds.values()) else []
    )
    notes += _references(report.selections[-1]) if report.selections else []
    yield Sheet("rewards", "rewards of sampled answers", columns, rows, " ".join(notes))
    if rounds:
        step, last = list(rounds.items())[-1]
        shown = [("best", answer) for answer in last.best] + [("worst", answer) for answer in last.worst]
        heads = (*map(Column, ("place", "prompt", "answer", "reference")), Column("reward", "score"))
        yield Sheet("answers", f"best and worst answers at step {step}", heads, [_answer(*pair) for pair in shown])


def _references(selection: SelectionFile) -> list[str]:
    """How reference answers were rewarded, where they count beside the sampled ones."""
    known = numbers(selection.report.get("reference_rewards"))
    if not known.get("answers") or selection.report.get("reference_answer") != "sample":
        return []
    return [
        f"Beside them each reference counted as one more answer (mean reward {known.get('mean', 0.0):.3g}): a prompt "
        "all of whose sampled answers earned the same still says something where its reference earned another reward."
    ]


def _answer(place: str, answer: Answer) -> tuple[Any, ...]:
    return place, answer.prompt, answer.text, answer.reference, answer.reward


def _facts(selection: SelectionFile) -> Sheet:
    known = {key: value for key, value in selection.report.items() if key not in ("seconds", "left_out", "score")}
    columns = (Column("fact"), Column("value"))
    return Sheet("facts", f"what the selector says at step {selection.step}", columns, list(flat(known)))


def _mixtures(mixtures: Sequence[Mapping[str, Any]]) -> Sheet:
    """A row a domain and mixture: its share, its rows, and its loss in the phase before."""
    rows = []
    for mixture in mixtures:
        found = [mixture.get(key) for key in ("domains", "proportions", "counts", "losses_before")]
        lists = [values if isinstance(values, list) else [] for values in found]
        for name, share, count, loss in zip(*lists, strict=False):
            known = numbers({"share": share, "count": count, "loss": loss})
            rows.append((numbers(mixture).get("step"), str(name), *map(known.get, ("share", "count", "loss"))))
    names = [str(mixture["mixer"]) for mixture in mixtures if mixture.get("mixer")]
    title = f"{names[-1]}: {len(names)} mixture{'s' if len(names) > 1 else ''}" if names else "mixture"
    columns = (
        Column("step", "count"),
        Column("domain"),
        Column("share", "share", "of the rows of the next phase"),
        Column("rows", "count"),
        Column("loss before", "loss", "mean training loss of the domain in the phase before, nats a token"),
    )
    note = "" if len(rows) <= MOST_ROWS else f"the last {MOST_ROWS} of {len(rows)} rows"
    return Sheet("mixtures", title, columns, rows[-MOST_ROWS:], note)


def _weights(entries: Sequence[Mapping[str, Any]]) -> Sheet:
    """Quantiles of the weights at some steps, evenly spaced."""
    chosen = [entries[round(place)] for place in np.linspace(0, len(entries) - 1, min(len(entries), MOST_STEPS))]
    rows = []
    for entry in chosen:
        known = numbers(entry)
        rows.append((known.get("current_steps"), *(known.get(f"weight_{name}") for name in WEIGHTS)))
    note = "A weight multiplies the loss of a sample; their mean is 1."
    note += f" {len(chosen)} of {len(entries)} logged steps." if len(entries) > len(chosen) else ""
    columns = (Column("step", "count"), *(Column(name, "weight") for name in WEIGHTS))
    return Sheet("weights", "weights of samples", columns, rows, note)


def _left_out(report: RunReport) -> Sheet:
    totals: dict[str, float] = {}
    for selection in report.selections:
        for name, count in selection.left_out.items():
            totals[name] = totals.get(name, 0.0) + count
    last = report.selections[-1].left_out if report.selections else {}
    rows = [(name, last.get(name, 0), total) for name, total in totals.items()]
    columns = (Column("what"), Column("of the last selection", "count"), Column("of all selections", "count"))
    return Sheet("left out", "left out", columns, rows)


def _data(results: Mapping[str, Any]) -> Sheet:
    """What became of the rows of the training and the evaluation set."""
    found = results.get("data")
    keys = ("total", "dropped", "truncated", "kept", "tokens", "label_tokens")
    rows = []
    for name, counts in found.items() if isinstance(found, Mapping) else ():
        known = numbers(counts)
        rows.append((str(name), *map(known.get, keys)))
    heads = ("rows", "nothing to learn, left out", "cut to cutoff_len", "used", "tokens", "of them learnt")
    return Sheet("data", "data", (Column("data"), *(Column(head, "count") for head in heads)), rows)


def _time(seconds: Mapping[str, float]) -> Sheet:
    rows = [*seconds.items(), ("total", sum(seconds.values()))]
    return Sheet("time", "time", (Column("phase"), Column("seconds", "seconds")), rows)


def _results(results: Mapping[str, Any]) -> Sheet:
    plain = {key: value for key, value in results.items() if not isinstance(value, Mapping)}
    return Sheet("results", "results", (Column("result"), Column("value")), list(flat(plain)))


def _mean(scores: Any) -> float | None:
    finite = scores[np.isfinite(scores)]
    return float(finite.mean()) if len(finite) else None
