"""The card beside a subset: what was chosen, from what, for what, and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from dataflex.config import versions
from dataflex.data.dataset import TokenizedDataset
from dataflex.offline.selection import OfflineSelection
from dataflex.utils.groups import GroupRow, by_length, group_rows, length_names
from dataflex.utils.shown import shown

NOTHING = "(none)"
MOST_GROUPS = 40
"""Groups that a table lists."""


def subset_card(
    name: str,
    selection: OfflineSelection,
    candidates: TokenizedDataset,
    facts: Mapping[str, Any],
    config: str,
    task_column: str,
    summary: Sequence[tuple[str, str]] = (),
) -> str:
    """Markdown with the metadata block that dataset hubs read.

    Args:
        name: File name of the subset.
        selection: What was chosen.
        candidates: What it was chosen from; their texts are not read.
        facts: Facts of the run that the selection does not know.
        config: The resolved configuration as YAML.
        task_column: Column that groups rows.
        summary: Questions and answers of the report.
    """
    table = {
        "rows": f"{len(selection.indices):,} of {len(candidates):,} candidates",
        "selector": selection.selector,
        **facts,
        **_score_facts(selection),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": ", ".join(f"{package} {number}" for package, number in versions().items()),
    }
    lines = ["---", "tags:", "- dataflex", "- data-selection", "---", "", f"# {shown(name, target='markdown')}", ""]
    for question, answer in summary:
        lines += [f"**{question}** {_cell(answer)}", ""]
    lines += ["A subset that was selected with dataflex. Every row is a row of its source with one more key:", ""]
    lines += [
        "- `_dataflex.score`: the selector's score, null if it has none",
        "- `_dataflex.rank`: 0 is the best; the rows are in this order",
        "- `_dataflex.selector`: name of the selector",
        "- `_dataflex.row`: number of the row in its source, from 0 (over all sources, if there are several)",
        "",
        "Rows keep the columns of their source. Where that has a mapping (`columns`, `tags`) in dataset_info.json, the",
        "subset needs the same.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(key)} | {_cell(value)} |" for key, value in table.items()),
        "",
        *_groups(selection, candidates, task_column),
        "What the selector reports:",
        "",
        *_block("json", json.dumps(selection.report, indent=2, ensure_ascii=False)),
        "The configuration, resolved:",
        "",
        *_block("yaml", config.rstrip()),
    ]
    return "\n".join(lines)


def _score_facts(selection: OfflineSelection) -> dict[str, str]:
    if selection.scores is None or not len(selection.indices):
        return {}
    chosen, usable = selection.scores[selection.indices], selection.scores[np.isfinite(selection.scores)]
    looked_at = int(np.sum(~np.isnan(selection.scores)))
    return {
        **({"looked at": f"{looked_at:,} candidates"} if looked_at < len(selection.scores) else {}),
        "scores of the chosen": f"{chosen.min():.6g} to {chosen.max():.6g}",
        "scores of all": f"{usable.min():.6g} to {usable.max():.6g}, median {np.median(usable):.6g}",
    }


def _groups(selection: OfflineSelection, candidates: TokenizedDataset, column: str) -> list[str]:
    """Rows by task where any has one, by source where there are several, by length."""
    chosen = np.zeros(len(candidates), dtype=np.bool_)
    chosen[selection.indices] = True
    draws = [(chosen, selection.scores)]
    tasks = candidates.groups(column)
    sources = [source or NOTHING for source in candidates.sources()]
    lines = []
    if any(task is not None for task in tasks):
        lines += _table(column, group_rows([NOTHING if task is None else task for task in tasks], draws))
    if len(set(sources)) > 1:
        lines += _table("source", group_rows(sources, draws))
    return [*lines, *_table("tokens", by_length(group_rows(length_names(candidates.lengths), draws)))]


def _table(what: str, groups: Sequence[GroupRow]) -> list[str]:
    lines = [f"| {_cell(what)} | candidates | chosen | share of the chosen |", "|---|---|---|---|"]
    for row in groups[:MOST_GROUPS]:
        lines.append(f"| {_cell(row.name)} | {row.candidates:,} | {row.selected:,} | {row.selected_share:.1%} |")
    if len(groups) > MOST_GROUPS:
        lines.append(f"| {len(groups) - MOST_GROUPS:,} more | | | |")
    return [*lines, ""]


def _block(language: str, text: str) -> list[str]:
    """A fenced block that its own content cannot end."""
    text = shown(text, lines=True)
    longest = max((len(run) for run in _backtick_runs(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", text, fence, ""]


def _backtick_runs(text: str) -> list[str]:
    return ["".join(run) for run in "".join(c if c == "`" else " " for c in text).split()]


def _cell(value: Any) -> str:
    return shown(value, target="markdown")
