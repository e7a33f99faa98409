"""The pictures of the report: what goes in are numbers, what comes out are matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dataflex.report.compare import overlap, rank_correlation
from dataflex.report.drawing import SERIES, canvas, colour, look, name
from dataflex.report.groups import Grouping
from dataflex.report.read import SelectionFile, entries_with
from dataflex.report.table import time_text
from dataflex.utils.facts import numbers
from dataflex.utils.reliability import HIGH, LOW

MOST_BARS = 12
MOST_ROUNDS = 8
BINS = 40
FAINTEST, STRONGEST = 0.08, 0.43
"""How much of its colour a square of :func:`round_matrix` has, for 0 and for 1; its number must stay readable."""
_ROW = 0.44
"""Inches that two bars with their name take."""


def _percent(value: float, place: float) -> str:
    """A share at a tick of an axis; groups of a thousand tasks have shares below 1 %."""
    del place
    return f"{100 * value:.3g}%"


def group_bars(grouping: Grouping) -> Figure:
    """Share of each group among all rows and among the selected, with its lift."""
    rows = list(grouping.rows[:MOST_BARS])
    places = np.arange(len(rows))
    with look():
        figure, axes = canvas(0.75 + _ROW * len(rows))
        axes.barh(places - 0.19, [row.share for row in rows], 0.36, color=colour("all"), label="of all rows")
        axes.barh(
            places + 0.19, [row.selected_share for row in rows], 0.36, color=colour("chosen"), label="of the selected"
        )
        for place, row in zip(places.tolist(), rows, strict=True):
            end = max(row.share, row.selected_share)
            axes.text(end, place, f" {row.lift:.1f}x", va="center", color=colour("ink"))
        axes.set_yticks(places, [name(row.name) for row in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * max(max(row.share, row.selected_share) for row in rows))
        axes.xaxis.set_major_formatter(_percent)
        axes.locator_params(axis="x", nbins=5)
        axes.spines["left"].set_visible(False)
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def score_histogram(selection: SelectionFile) -> Figure | None:
    """Scores of all rows and of the selected, each as a share of its own rows; None where there are none to compare."""
    finite = np.isfinite(selection.scores)
    everything, chosen = selection.scores[finite], selection.scores[finite & selection.chosen]
    if not len(chosen) or everything.min() == everything.max():
        return None
    low, high = np.quantile(everything, [0.002, 0.998])
    low, high = min(low, chosen.min()), max(high, chosen.max())
    edges = np.linspace(low, high, BINS + 1)
    with look():
        figure, axes = canvas(2.5)
        for values, role, label in ((everything, "all", "all rows"), (chosen, "chosen", "selected")):
            shares = np.histogram(np.clip(values, low, high), edges)[0] / len(values)
            axes.stairs(shares, edges, fill=True, color=colour(role), alpha=0.55, label=label)
            axes.stairs(shares, edges, color=colour(role), linewidth=1.2)
        axes.set_xlabel("score")
        axes.yaxis.set_major_formatter(_percent)
        axes.locator_params(nbins=5)
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def length_scores(selection: SelectionFile) -> Figure | None:
    """Scores by length: the middle half of all rows as a band, their median as a line, selected rows as dots."""
    tokens = selection.tokens()
    finite = np.isfinite(selection.scores) & (tokens > 0)
    if finite.sum() < BINS or tokens[finite].min() == tokens[finite].max():
        return None
    lengths, scores = tokens[finite], selection.scores[finite]
    order = np.argsort(lengths, kind="stable")
    parts = np.array_split(order, min(16, len(order) // 10))
    middles = [float(np.median(lengths[part])) for part in parts]
    bands = np.array([np.quantile(scores[part], [0.25, 0.5, 0.75]) for part in parts])
    chosen = np.flatnonzero(finite & selection.chosen)
    dots = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), 150)).astype(int)]
    with look():
        figure, axes = canvas(2.6)
        axes.fill_between(
            middles, bands[:, 0], bands[:, 2], color=colour("all"), alpha=0.4, linewidth=0, label="half of all"
        )
        axes.plot(middles, bands[:, 1], color=colour("faint"), label="median")
        axes.plot(tokens[dots], selection.scores[dots], ".", color=colour("chosen"), markersize=5, label="selected")
        if middles[-1] > 8 * middles[0]:
            axes.set_xscale("log", base=2)
            axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set(xlabel="tokens", ylabel="score")
        axes.locator_params(axis="y", nbins=5)
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def round_matrix(selections: Sequence[SelectionFile]) -> Figure | None:
    """Rows in common of every two selections (above the diagonal), and how alike their orders are (below)."""
    shown = list(selections)[-MOST_ROUNDS:]
    if len(shown) < 2:
        return None
    with look():
        figure, axes = canvas(0.9 + 0.42 * len(shown))
        for row, one in enumerate(shown):
            for column, other in enumerate(shown):
                upper = column > row
                value = overlap(one.chosen, other.chosen) if upper else rank_correlation(one.scores, other.scores)
                if row == column or value is None:
                    continue
                ground = colour("chosen" if upper else "third")
                axes.add_patch(_square(column, row, ground, max(value, 0.0)))
                text = f"{value:.0%}" if upper else f"{value:.2f}"
                axes.text(column, row, text, ha="center", va="center")
        ends = (-0.5, len(shown) - 0.5)
        axes.set(xlim=ends, ylim=ends[::-1], xlabel="selection at step")
        places = [str(selection.step) for selection in shown]
        axes.set_xticks(range(len(shown)), places)
        axes.set_yticks(range(len(shown)), places)
        axes.spines[:].set_visible(False)
    return figure


def _square(column: int, row: int, ground: str, strength: float) -> Any:
    from matplotlib.patches import Rectangle

    corner = (column - 0.47, row - 0.44)
    return Rectangle(
        corner, 0.94, 0.88, facecolor=ground, alpha=FAINTEST + (STRONGEST - FAINTEST) * strength, linewidth=0
    )


def reliability_line(steps: Sequence[int], values: Sequence[float]) -> Figure:
    """How reliable the target was at each selection, against what is noise and what is good."""
    with look():
        figure, axes = canvas(2.2)
        low = min(0.0, *values) - 0.03
        axes.axhspan(low, LOW, color=colour("second"), alpha=0.16, linewidth=0)
        axes.axhspan(HIGH, 1.0, color=colour("third"), alpha=0.16, linewidth=0)
        axes.plot(range(len(values)), values, "o-", color=colour("chosen"))
        edge = len(values) - 0.4
        for place, text in ((low + 0.02, "mostly noise"), (LOW + 0.02, "usable"), (HIGH + 0.02, "the halves agree")):
            axes.text(edge, place, text, ha="right", va="bottom", color=colour("ink"))
        axes.set(xlim=(-0.4, edge), ylim=(low, 1.0), xlabel="selection at step", ylabel="reliability")
        axes.set_xticks(range(len(values)), [f"{step:,}" for step in steps])
        axes.locator_params(axis="y", nbins=5)
    return figure


def reward_bars(rounds: Mapping[int, Sequence[float]]) -> Figure:
    """Prompts of each round by their mean reward, in five classes from the lowest to the highest.

    Args:
        rounds: Mean reward of each prompt, by step.
    """
    shown = dict(list(rounds.items())[-MOST_ROUNDS:])
    every = [value for means in shown.values() for value in means]
    low, high = min(every), max(every)
    edges = np.linspace(low, high if high > low else low + 1, 6)
    with look():
        figure, axes = canvas(1.25 + 0.36 * len(shown))
        starts = np.zeros(len(shown))
        counts = np.array([np.histogram(means, edges)[0] / len(means) for means in shown.values()])  # (rounds, 5)
        for number in range(5):
            label = f"{edges[number]:.2g} to {edges[number + 1]:.2g}"
            role = ("second", "fifth", "all", "third", "chosen")[number]
            axes.barh(range(len(shown)), counts[:, number], 0.7, left=starts, color=colour(role), label=label)
            starts += counts[:, number]
        axes.set_yticks(range(len(shown)), [f"step {step:,}" for step in shown])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1), xlabel="share of the prompts, by their mean reward")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def losses(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Training and evaluation loss over steps, with a mark at each selection; None where none is known."""
    lines = [
        (*entries_with(history, "loss"), "chosen", "-", "training"),
        (*entries_with(history, "eval_loss"), "second", "o--", "evaluation"),
    ]
    if not any(steps for steps, *_ in lines):
        return None
    with look():
        figure, axes = canvas(2.6)
        for steps, values, role, style, label in lines:
            if steps:
                axes.plot(*_thin(steps, values), style, color=colour(role), markersize=4, label=label)
        for number, step in enumerate(entries_with(history, "selection_round")[0]):
            axes.axvline(
                step, color=colour("faint"), linestyle=":", linewidth=1.2, label=None if number else "selection"
            )
        axes.set(xlabel="step", ylabel="loss (nats a token)")
        axes.locator_params(nbins=5)
        figure.legend(loc="outside upper left", ncols=3)
    return figure


def _thin(steps: Sequence[float], values: Sequence[float], most: int = 400) -> tuple[list[float], list[float]]:
    """At most so many points: the means of runs of neighbours."""
    parts = np.array_split(np.arange(len(steps)), min(len(steps), most))
    at, found = np.asarray(steps), np.asarray(values)
    return [float(at[part].mean()) for part in parts], [float(found[part].mean()) for part in parts]


def time_bars(seconds: Mapping[str, float]) -> Figure:
    """What took how long, the longest first."""
    rows = sorted(seconds.items(), key=lambda row: -row[1])[:MOST_BARS]
    with look():
        figure, axes = canvas(0.45 + 0.27 * len(rows))
        places = range(len(rows))
        axes.barh(places, [value for _, value in rows], 0.7, color=colour("chosen"))
        for place, (_, value) in zip(places, rows, strict=True):
            axes.text(value, place, f" {time_text(value)}", va="center")
        axes.set_yticks(places, [name(what.removeprefix("selection: ")) for what, _ in rows])
        axes.set_xlim(0, 1.2 * max(rows[0][1], 1e-9))
        axes.set_xticks([])
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
    return figure


def mixture_areas(mixtures: Sequence[Mapping[str, Any]], stop: float) -> Figure | None:
    """The share of each domain in each phase, the last until ``stop``; beyond six domains the smaller ones are one."""
    known = [found for found in mixtures if isinstance(found.get("proportions"), list) and "step" in numbers(found)]
    names = [str(domain) for domain in known[-1].get("domains", [])] if known else []
    known = [found for found in known if len(found["proportions"]) == len(names)]
    if not known or not names:
        return None
    shares = np.array([found["proportions"] for found in known], dtype=np.float64)  # (mixtures, domains)
    order = np.argsort(-shares.mean(axis=0), kind="stable")
    first, rest = order[: len(SERIES) - 1], order[len(SERIES) - 1 :]
    parts, labels = [*shares[:, first].T], [name(names[place]) for place in first]
    if len(rest):
        parts, labels = [*parts, shares[:, rest].sum(axis=1)], [*labels, f"{len(rest)} others"]
    steps = [numbers(found)["step"] for found in known]
    steps, parts = [*steps, max(stop, steps[-1] + 1)], [np.append(part, part[-1]) for part in parts]
    with look():
        figure, axes = canvas(2.5 + 0.2 * (len(labels) // 2))
        axes.stackplot(steps, *parts, labels=labels, colors=[colour(role) for role in SERIES], alpha=0.85, step="post")
        axes.set(xlabel="step", ylim=(0, 1), xlim=(steps[0], steps[-1]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.locator_params(axis="x", nbins=5)
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def weight_bands(entries: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Quantiles of the samples' weights over the steps."""
    columns = {what: entries_with(entries, f"weight_{what}") for what in ("min", "q25", "median", "q75", "max")}
    steps = columns["median"][0]
    if not steps or any(found[0] != steps for found in columns.values()):
        return None
    thin = {what: _thin(*found) for what, found in columns.items()}
    with look():
        figure, axes = canvas(2.5)
        for lower, upper, alpha, label in (("min", "max", 0.18, "all weights"), ("q25", "q75", 0.4, "half of them")):
            at = thin["median"][0]
            axes.fill_between(
                at, thin[lower][1], thin[upper][1], color=colour("chosen"), alpha=alpha, linewidth=0, label=label
            )
        axes.plot(*thin["median"], color=colour("chosen"), label="median")
        axes.axhline(1, color=colour("faint"), linestyle=":", linewidth=1.2)
        axes.set(xlabel="step", ylabel="weight of a sample")
        axes.locator_params(nbins=5)
        figure.legend(loc="outside upper left", ncols=3)
    return figure
