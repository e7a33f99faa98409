"""The sections of the page: a question, its answer in a line, a picture, and the tables behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from dataflex.report import pictures
from dataflex.report.compare import overlap, rank_correlation
from dataflex.report.groups import LENGTH, Grouping, groupings
from dataflex.report.read import RunReport, SelectionFile, entries_with
from dataflex.report.sheets import sheets
from dataflex.report.summary import Summary, cost, leading, reliability, summarize
from dataflex.report.table import Sheet, score_text
from dataflex.utils.facts import numbers
from dataflex.utils.reliability import HIGH, LOW

TREND, STRONG_TREND = 0.2, 0.5
"""Rank correlations of score and length above which there is a trend, and a strong one."""
ALIKE = 1.15
"""Median lengths that differ by less than this factor are alike."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section.

    Attributes:
        key: Its name for programs and links.
        title: What it is about.
        answer: What it shows, in a line.
        draw: Makes its picture; None where there is nothing to draw.
        sheets: The tables behind it.
        meaning: What the picture's marks and numbers are.
        folded: It is opened by a click: details that few need.
    """

    key: str
    title: str
    answer: str
    draw: Callable[[], Figure | None] | None
    sheets: Sequence[Sheet]
    meaning: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Pages:
    """Everything that is shown of a report.

    Attributes:
        summary: The report in four answers.
        sections: The sections, in their order.
        sheets: All tables, in the order of the terminal.
    """

    summary: Summary
    sections: list[Section]
    sheets: list[Sheet]

    def pictures(self) -> Iterator[tuple[str, Figure]]:
        """Names and figures of all pictures, drawn one after the other."""
        for section in self.sections:
            figure = section.draw() if section.draw is not None else None
            if figure is not None:
                yield section.key, figure


def lay_out(report: RunReport) -> Pages:
    """Count and say everything once; pictures are drawn when they are asked for."""
    found = list(groupings(report.selections)) if report.selections else []
    tables = sheets(report, found)
    named = {sheet.key: sheet for sheet in tables}
    sections = [
        *_of_groups(report, found, named),
        *_of_selections(report, named),
        *_of_rows(named),
        *_of_training(report, named),
        *_of_cost(report, named),
        *_details(named),
    ]
    return Pages(summarize(report, found), sections, tables)


def _taken(named: Mapping[str, Sheet], *keys: str) -> list[Sheet]:
    return [named[key] for key in keys if key in named]


def _of_groups(report: RunReport, found: Sequence[Grouping], named: Mapping[str, Sheet]) -> Iterator[Section]:
    """The first grouping stands open, the others are folded."""
    if not found:
        return
    for number, grouping in enumerate(found):
        if grouping.what == LENGTH:
            draw: Callable[[], Figure | None] = partial(pictures.length_scores, report.selections[-1])
            meaning = "The band holds the middle half of all rows of a length, the line their median score."
            text = _length_answer(report.selections[-1])
        else:
            draw, text = partial(pictures.group_bars, grouping), leading(grouping)
            meaning = (
                "Grey: the group's share of all rows; blue: its share of the selected ones. The number is the lift, "
                "one over the other: 1 is what a random choice gives."
            )
            if grouping.rounds > 1:
                meaning += f" The {grouping.rounds} selections are counted together."
            if len(grouping.rows) > pictures.MOST_BARS:
                meaning += f" The {pictures.MOST_BARS} groups with the most selected rows are drawn."
        title = "Which rows were chosen?" if number == 0 else f"By {grouping.what}"
        title = "Does length decide?" if grouping.what == LENGTH else title
        folded = number > 0 and grouping.what != LENGTH
        meaning += f" Groups: {grouping.known_by}."
        yield Section(grouping.what, title, text, draw, _taken(named, f"by {grouping.what}"), meaning, folded)


def _length_answer(selection: SelectionFile) -> str:
    tokens = selection.tokens()
    middle, of_chosen = np.median(tokens), np.median(tokens[selection.chosen])
    text = f"The median row has {middle:,.0f} tokens, the median selected one {of_chosen:,.0f}."
    correlation = rank_correlation(selection.scores, np.where(np.isfinite(selection.scores), tokens, np.nan))
    if correlation is None:
        return text
    strongly = " strongly" if abs(correlation) >= STRONG_TREND else ""
    trend = (
        f"{'rise' if correlation > 0 else 'fall'}{strongly}" if abs(correlation) >= TREND else "neither rise nor fall"
    )
    text += f" Scores {trend} with length (rank correlation {correlation:+.2f}; 0: no trend)"
    if abs(correlation) >= TREND or 1 / ALIKE < of_chosen / max(middle, 1.0) < ALIKE:
        return f"{text}."
    kind = "longer" if of_chosen > middle else "shorter"
    return f"{text}; that the selected are {kind} comes of something else that they share."


def _of_selections(report: RunReport, named: Mapping[str, Sheet]) -> Iterator[Section]:
    """Scores, what the selections share, targets and rewards."""
    if not report.selections:
        return
    last = report.selections[-1]
    histogram = partial(pictures.score_histogram, last)
    title = "How do the scores tell rows apart?"
    known = last.report.get("score")
    meaning = f"A score is {known}. " if isinstance(known, str) else ""
    meaning += "Scores of the last selection; each colour adds up to 100 % of its own rows."
    yield Section("scores", title, _score_answer(last), histogram, _taken(named, "scores"), meaning)
    yield _agreement(report, named)
    values = {found.step: value for found in report.selections if (value := reliability(found)) is not None}
    if values:
        figure = partial(pictures.reliability_line, list(values), list(values.values()))
        low = [step for step, value in values.items() if value < LOW]
        said = " and ".join(f"{value:.2f}" for value in list(values.values())[-3:])
        text = f"The halves of the targets agree by {said}"
        text += f": at step {low[-1]:,} mostly noise." if low else "."
        meaning = (
            "Reliability: the cosine between the directions of two halves of the targets. Below "
            f"{LOW} rows were ranked by little more than chance in trials, from {HIGH} on the halves say the same."
        )
        yield Section("reliability", "Can the target be trusted?", text, figure, _taken(named, "reliability"), meaning)
    if report.answers:
        yield _rewards(report, named)


def _score_answer(selection: SelectionFile) -> str:
    finite = selection.scores[np.isfinite(selection.scores)]
    chosen = selection.scores[selection.chosen & np.isfinite(selection.scores)]
    if not len(chosen):
        return f"{selection.selector} chooses without scores."
    mean, of_all, spread = float(chosen.mean()), float(finite.mean()), float(finite.std())
    apart = (mean - of_all) / spread if spread else 0.0
    return (
        f"Selected rows score {score_text(mean)} on average, all rows {score_text(of_all)}: {apart:.1f} standard "
        f"deviations apart. The lowest selected score is {score_text(float(chosen.min()))}."
    )


def _agreement(report: RunReport, named: Mapping[str, Sheet]) -> Section:
    selections = report.selections
    if len(selections) < 2:
        text = "There is one selection."
    else:
        shared = overlap(selections[-2].chosen, selections[-1].chosen)
        order = rank_correlation(selections[-2].scores, selections[-1].scores)
        text = "" if shared is None else f"The last selection took {shared:.0%} of its rows from the one before."
        text += "" if order is None else f" The order of all rows agrees by {order:.2f} (1: the same, 0: no relation)."
    meaning = (
        "Above the diagonal: share of the later selection's rows that the earlier one chose too. Below: Spearman's "
        "rank correlation of all scores."
    )
    draw = partial(pictures.round_matrix, selections)
    return Section("selections", "Do the selections agree?", text.strip(), draw, _taken(named, "selections"), meaning)


def _rewards(report: RunReport, named: Mapping[str, Sheet]) -> Section:
    means = {step: found.means for step, found in report.answers.items()}
    first, last = next(iter(means.values())), next(reversed(means.values()))
    reward = next(reversed(report.answers.values())).reward
    text = f"The mean reward of {len(last):,} prompts{f' by {reward}' if reward else ''} is {np.mean(last):.3g}"
    text += f", after {np.mean(first):.3g} at the first selection." if len(means) > 1 else "."
    meaning = "Each bar is all prompts of a selection, in classes by the mean reward of their sampled answers."
    draw = partial(pictures.reward_bars, means)
    return Section("rewards", "What was rewarded?", text, draw, _taken(named, "rewards", "answers"), meaning)


def _of_rows(named: Mapping[str, Sheet]) -> Iterator[Section]:
    if "rows" in named:
        text = "The best of the selected, the last of them, the first that were left out, and the lowest scores."
        yield Section("rows", "What do the rows look like?", text, None, _taken(named, "rows"))


def _of_training(report: RunReport, named: Mapping[str, Sheet]) -> Iterator[Section]:
    """Losses, mixtures and weights."""
    if any(entries_with(report.history, key)[0] for key in ("loss", "eval_loss")):
        steps, values = entries_with(report.history, "eval_loss")
        text = "There was no evaluation."
        if values:
            text = f"The evaluation loss is {values[-1]:.3g} at step {steps[-1]:,.0f}"
            text += f", after {values[0]:.3g} at step {steps[0]:,.0f}." if len(values) > 1 else "."
        meaning = "Cross-entropy in nats a token; dotted lines: selections."
        yield Section("losses", "Did the model learn?", text, partial(pictures.losses, report.history), [], meaning)
    if "mixtures" in named:
        drawn = partial(pictures.mixture_areas, report.mixtures, numbers(report.results).get("steps", 0.0))
        text = summarize(report, []).chosen if not report.selections else ""
        meaning = "Each colour is a domain's share of the rows of a phase."
        yield Section("mixtures", "How were the domains mixed?", text, drawn, _taken(named, "mixtures"), meaning)
    if "weights" in named:
        known = numbers(report.weights[-1])
        low, high = known.get("weight_min"), known.get("weight_max")
        known_both = low is not None and high is not None
        text = f"The weights of the last step lie between {low:.2f} and {high:.2f}." if known_both else ""
        meaning = "A weight multiplies the loss of a sample; 1 leaves it as it is, and the mean of a step is 1."
        bands = partial(pictures.weight_bands, report.weights)
        yield Section("weights", "How were samples weighted?", text, bands, _taken(named, "weights"), meaning)


def _of_cost(report: RunReport, named: Mapping[str, Sheet]) -> Iterator[Section]:
    seconds = {name: value for name, value in report.seconds.items() if value}
    if seconds:
        draw = partial(pictures.time_bars, seconds)
        meaning = "Wall-clock time of the whole run; the table says what belongs to selections."
        yield Section("cost", "What did it cost?", cost(report), draw, _taken(named, "time"), meaning)


def _details(named: Mapping[str, Sheet]) -> Iterator[Section]:
    kept = _taken(named, "left out", "data", "facts", "results")
    if kept:
        yield Section("details", "Details", "What was left out, the data, and every number.", None, kept, folded=True)
