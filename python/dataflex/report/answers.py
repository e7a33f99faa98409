"""Sampled answers and their rewards, as ``rollouts/step-N.jsonl`` holds them, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dataflex.utils.facts import numbers

MOST_ANSWERS = 20_000
"""Answers that are read of a file: 20,000 lines of 1 kB are parsed in half a second."""
MOST_TEXT = 300
"""Characters of a prompt or an answer that are kept to look at."""
SHOWN = 3
"""Best and worst answers that are kept of a round."""
_WHAT = ("metric", "model_name", "hf_model_name_or_path", "model_name_or_path")
"""Parameters of rewards that say what scores."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, cut to what is shown."""

    id: str
    prompt: str
    reference: str
    text: str
    reward: float


@dataclass(frozen=True, slots=True)
class Answers:
    """The scored answers of one round.

    Attributes:
        rewards: Per prompt (``Sample.id``) the rewards of its answers.
        best: Answers of the highest rewards, each to another prompt.
        worst: Those of the lowest.
        cut: There are more than :data:`MOST_ANSWERS`, of which the first were read.
        reward: What scored them: the reward's name, and its metric or model, if it has one; empty: not known.
    """

    rewards: dict[str, list[float]]
    best: list[Answer]
    worst: list[Answer]
    cut: bool
    reward: str = ""

    @property
    def means(self) -> list[float]:
        """Mean reward of each prompt."""
        return [sum(own) / len(own) for own in self.rewards.values()]


def read_answers(path: Path) -> Answers:
    """Read a file of answers; those without a reward and lines that cannot be read are left out."""
    rewards: dict[str, list[float]] = {}
    best: dict[str, Answer] = {}
    worst: dict[str, Answer] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for row in _rows(islice(file, MOST_ANSWERS)):
            answer = _answer(row)
            if answer is None:
                continue
            rewards.setdefault(answer.id, []).append(answer.reward)
            if answer.id not in best or answer.reward > best[answer.id].reward:
                best[answer.id] = answer
            if answer.id not in worst or answer.reward < worst[answer.id].reward:
                worst[answer.id] = answer
        cut = next(file, None) is not None
    highest = sorted(best.values(), key=lambda answer: -answer.reward)[:SHOWN]
    lowest = sorted(worst.values(), key=lambda answer: answer.reward)[:SHOWN]
    return Answers(rewards, highest, lowest, cut, _reward(path.with_suffix(".meta.json")))


def _reward(sidecar: Path) -> str:
    """The reward that a file's sidecar names; empty where a kill left several, of which one has no answers."""
    found: Any = None
    with suppress(OSError, ValueError):
        found = json.loads(sidecar.read_text(encoding="utf-8"))
    entries = found.values() if isinstance(found, dict) else ()
    names = {_name(entry["rewards"]) for entry in entries if isinstance(entry, dict) and entry.get("rewards")}
    return names.pop() if len(names) == 1 else ""


def _name(facts: Any) -> str:
    """Name of a reward, and its metric or model."""
    if not isinstance(facts, dict) or "name" not in facts:
        return ""
    config = facts.get("config")
    what = next((config[key] for key in _WHAT if config.get(key)), None) if isinstance(config, dict) else None
    parts = what if isinstance(what, list) else [what]
    names = [str(part.get("metric") if isinstance(part, dict) else part) for part in parts]
    return f"{facts['name']} ({', '.join(names)})" if what else str(facts["name"])


def _rows(lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        with suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def _answer(row: Mapping[str, Any]) -> Answer | None:
    reward = numbers(row).get("reward")
    if reward is None:
        return None
    turns = row.get("prompt")
    last = turns[-1] if isinstance(turns, list) and turns else {}
    prompt = last.get("content") if isinstance(last, Mapping) else None
    asked, reference, text = (str(text or "")[:MOST_TEXT] for text in (prompt, row.get("reference"), row.get("text")))
    return Answer(str(row.get("sample_id", "")), asked, reference, text, reward)
