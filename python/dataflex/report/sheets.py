"""The report as tables of text: the terminal and the page show the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataflex.report.read import RunReport, SelectionFile
from dataflex.utils.facts import flat, numbers
from dataflex.utils.groups import GroupRow, by_length, group_rows, length_names
from dataflex.utils.reliability import LOW, decisive, meaning

NOTHING = "(none)"
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


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table.

    Attributes:
        title: What it shows.
        head: Names of the columns.
        rows: Cells, as text that is not escaped for any target yet.
        texts: How many columns, from the left, are text; the others are numbers.
        note: What else there is to say.
        marked: Rows that stand out.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    texts: int = 1
    note: str = ""
    marked: frozenset[int] = frozenset()


def sheets(report: RunReport) -> list[Sheet]:
    """All tables that have a row, in their order."""
    found = [
        *_selected(report.selections),
        _mixtures(report.mixtures),
        _weights(report.weights),
        _left_out(report),
        _data(report.results),
        _time(report.seconds),
        _results(report.results),
    ]
    return [sheet for sheet in found if sheet.rows]


def _selected(selections: Sequence[SelectionFile]) -> Iterator[Sheet]:
    """What was selected, by everything that is known of the rows."""
    if not selections:
        return
    last = selections[-1]
    yield _selections(selections)
    yield _reliability(selections)
    yield from _groups(selections)
    yield _quantiles(last)
    yield _excerpts(last)
    yield _facts(last)


def _selections(selections: Sequence[SelectionFile]) -> Sheet:
    rows = []
    before: SelectionFile | None = None
    some = any(selection.looked_at is not None for selection in selections)
    for selection in selections:
        chosen = selection.scores[selection.chosen]
        looked_at = selection.looked_at or len(selection.chosen)
        rows.append(
            (
                str(selection.step),
                *([f"{looked_at:,}"] if some else []),
                f"{int(selection.chosen.sum()):,}",
                _score(_mean(chosen)),
                _score(_mean(selection.scores)),
                _overlap(before, selection),
                f"{sum(selection.seconds.values()):.1f}" if selection.seconds else "-",
            )
        )
        before = selection
    name, count = selections[-1].facts.get("selector", "?"), len(selections)
    title = f"{name}: {count} selection{'s' if count > 1 else ''} from {len(selections[0].chosen):,} rows"
    looked = ["looked at"] if some else []
    head = ("step", *looked, "selected", "mean score", "mean score of all", "chosen last time too", "seconds")
    return Sheet(title, head, rows, texts=0, note=NOT_LOOKED_AT if some else "")


def _reliability(selections: Sequence[SelectionFile]) -> Sheet:
    """How far two halves of the targets agreed at each selection, and what that says."""
    rows: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for selection in selections:
        known = numbers(selection.report.get("reliability"))
        value = decisive(known.get("targets"), known.get("answers"))
        if value is None:
            continue
        if value < LOW:
            marked.add(len(rows))
        values = (f"{known[name]:.2f}" if name in known else "-" for name in ("targets", "answers"))
        rows.append((str(selection.step), *values, f"{'low: ' if value < LOW else ''}{meaning(value)}"))
    note = (
        "The cosine of two halves of the targets, and of two halves of each prompt's answers: 1 where they agree, 0 "
        f"for noise. Below {LOW} more targets, more answers or a softer reward help."
    )
    head = ("step", "halves of the targets", "halves of the answers", "what it says")
    return Sheet("can the target be trusted?", head, rows, texts=4, note=note, marked=frozenset(marked))


def _groups(selections: Sequence[SelectionFile]) -> Iterator[Sheet]:
    """By task and by source where there is more than one of them, by length where lengths are known."""
    first = selections[0]
    draws = [(selection.chosen, selection.scores) for selection in selections]
    note = "all selections counted together" if len(selections) > 1 else ""
    some = any(selection.looked_at is not None for selection in selections)
    for what, values in (("task", first.tasks), ("source", first.sources)):
        names = [NOTHING if value is None else str(value) for value in values]
        if any(value is not None for value in values) and (what == "task" or len(set(names)) > 1):
            yield _group_sheet(what, group_rows(names, draws), note, some)
    if first.tokens:
        yield _group_sheet("tokens", by_length(group_rows(length_names(first.tokens), draws)), note, some)


def _group_sheet(what: str, groups: Sequence[GroupRow], note: str, some: bool) -> Sheet:
    rows = [
        (
            row.name,
            f"{row.candidates:,}",
            f"{row.share:.1%}",
            *([f"{row.looked_at:,}"] if some else []),
            f"{row.selected:,}",
            f"{row.selected_share:.1%}",
            f"{row.lift:.2f}x",
            _score(row.mean_score),
        )
        for row in groups[:MOST_GROUPS]
    ]
    if len(groups) > MOST_GROUPS:
        note = "; ".join(filter(None, [note, f"{len(groups) - MOST_GROUPS:,} more, of which fewer rows were selected"]))
    looked = ["looked at"] if some else []
    head = (what, "rows", "share", *looked, "selected", "share of selected", "lift", "mean score")
    return Sheet(f"selected by {what}", head, rows, note=note)


def _quantiles(selection: SelectionFile) -> Sheet:
    scores = selection.scores
    everything, chosen = scores[np.isfinite(scores)], scores[selection.chosen & np.isfinite(scores)]
    rows = []
    if len(everything) and len(chosen):
        pairs = zip(QUANTILES, np.quantile(everything, QUANTILES), np.quantile(chosen, QUANTILES), strict=True)
        rows = [(f"{share:.0%}", _score(float(of_all)), _score(float(of_chosen))) for share, of_all, of_chosen in pairs]
    return Sheet(f"scores at step {selection.step}", ("quantile", "of all rows", "of the selected"), rows)


def _excerpts(selection: SelectionFile) -> Sheet:
    found = selection.facts.get("excerpts")
    rows = [
        (
            str(row.get("place", "")),
            str(row.get("id", "")),
            str(row.get("prompt", "")),
            str(row.get("answer", "")),
            _score(numbers(row).get("score")),
        )
        for row in (found if isinstance(found, list) else [])
        if isinstance(row, Mapping)
    ]
    return Sheet(f"rows at step {selection.step}", ("place", "id", "prompt", "answer", "score"), rows, texts=4)


def _facts(selection: SelectionFile) -> Sheet:
    known = {key: value for key, value in selection.report.items() if key not in ("seconds", "left_out")}
    return Sheet(f"what the selector says at step {selection.step}", ("fact", "value"), list(flat(known)))


def _mixtures(mixtures: Sequence[Mapping[str, Any]]) -> Sheet:
    """A row a domain and mixture: its share, its rows, and its loss in the phase before."""
    rows = []
    for mixture in mixtures:
        columns = [mixture.get(key) for key in ("domains", "proportions", "counts", "losses_before")]
        lists = [column if isinstance(column, list) else [] for column in columns]
        for name, share, count, loss in zip(*lists, strict=False):
            known = numbers({"share": share, "count": count, "loss": loss})
            rows.append(
                (
                    str(mixture.get("step", "?")),
                    str(name),
                    f"{known['share']:.1%}" if "share" in known else "-",
                    f"{known['count']:,.0f}" if "count" in known else "-",
                    f"{known['loss']:.4f}" if "loss" in known else "-",
                )
            )
    names = [str(mixture["mixer"]) for mixture in mixtures if mixture.get("mixer")]
    title = f"{names[-1]}: {len(names)} mixture{'s' if len(names) > 1 else ''}" if names else "mixture"
    note = "" if len(rows) <= MOST_ROWS else f"the last {MOST_ROWS} of {len(rows)} rows"
    return Sheet(title, ("step", "domain", "share", "rows", "loss before"), rows[-MOST_ROWS:], texts=2, note=note)


def _weights(entries: Sequence[Mapping[str, Any]]) -> Sheet:
    """Quantiles of the weights at some steps, evenly spaced."""
    chosen = [entries[round(place)] for place in np.linspace(0, len(entries) - 1, min(len(entries), MOST_STEPS))]
    rows = []
    for entry in chosen:
        known = numbers(entry)
        values = [known.get(f"weight_{name}") for name in WEIGHTS]
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append((str(entry.get("current_steps", "?")), *cells))
    note = f"{len(chosen)} of {len(entries)} logged steps" if len(entries) > len(chosen) else ""
    return Sheet("weights of samples", ("step", *WEIGHTS), rows, texts=0, note=note)


def _left_out(report: RunReport) -> Sheet:
    totals: dict[str, float] = {}
    for selection in report.selections:
        for name, count in selection.left_out.items():
            totals[name] = totals.get(name, 0.0) + count
    last = report.selections[-1].left_out if report.selections else {}
    rows = [(name, f"{last.get(name, 0):,.0f}", f"{total:,.0f}") for name, total in totals.items()]
    return Sheet("left out", ("what", "of the last selection", "of all selections"), rows)


def _data(results: Mapping[str, Any]) -> Sheet:
    """What became of the rows of the training and the evaluation set."""
    found = results.get("data")
    rows = []
    for name, counts in found.items() if isinstance(found, Mapping) else ():
        known = numbers(counts)
        keys = ("total", "dropped", "truncated", "kept", "tokens", "label_tokens")
        rows.append((str(name), *(f"{known[key]:,.0f}" if key in known else "-" for key in keys)))
    head = ("data", "rows", "nothing to learn, left out", "cut to cutoff_len", "used", "tokens", "of them learnt")
    return Sheet("data", head, rows)


def _time(seconds: Mapping[str, float]) -> Sheet:
    rows = [(name, f"{value:.1f}") for name, value in seconds.items()]
    return Sheet("time", ("phase", "seconds"), [*rows, ("total", f"{sum(seconds.values()):.1f}")])


def _results(results: Mapping[str, Any]) -> Sheet:
    plain = {key: value for key, value in results.items() if not isinstance(value, Mapping)}
    return Sheet("results", ("result", "value"), list(flat(plain)))


def _overlap(before: SelectionFile | None, now: SelectionFile) -> str:
    count = int(now.chosen.sum())
    if before is None or not count or len(before.chosen) != len(now.chosen):
        return "-"
    return f"{(before.chosen & now.chosen).sum() / count:.0%}"


def _mean(scores: Any) -> float | None:
    finite = scores[np.isfinite(scores)]
    return float(finite.mean()) if len(finite) else None


def _score(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:+.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:+.4g}"
