"""Answers and rewards of a round on disk, so that a round is neither drawn nor paid for twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataflex.errors import RolloutError
from dataflex.rollouts.answers import Rollout, by_row
from dataflex.types import Sample
from dataflex.utils.files import differences, write_json, write_text
from dataflex.utils.shown import shown

logger = logging.getLogger(__name__)

FOR_PEOPLE = ("prompt", "reference")
"""Keys of a line that no program needs."""


class RolloutFile:
    """Answers of one round: JSON lines, one answer a line, and a sidecar that says what they are for.

    A line can be read by itself: it holds the turns of its ``prompt`` and the ``reference`` too, which are for people;
    what is stored is the :class:`Rollout`.

    The sidecar (``.meta.json``) maps the SHA-256 of the stored answers to what fixed the answers and what fixed their
    rewards (None before they are scored). It is written first, and keeps the entry of the lines that are replaced: a
    kill between the two leaves the old answers with their facts.

    Args:
        path: The ``.jsonl`` file.
        answers: JSON-able facts that fix the answers.
        rewards: JSON-able facts that fix their rewards.
        samples: The evaluation set whose prompts are answered, M answers a row, for the reader's sake.
    """

    def __init__(
        self, path: Path, answers: Mapping[str, Any], rewards: Mapping[str, Any], samples: Sequence[Sample] = ()
    ) -> None:
        self.path = path
        self._samples = samples
        self._sidecar = path.with_suffix(".meta.json")
        self._answers, self._rewards = json.loads(json.dumps([answers, rewards]))

    def scored(self) -> list[Rollout] | None:
        """The stored answers with their rewards, or None if there are none of this round."""
        meta, text = self._read()
        return parse_rollouts(text) if meta == {"answers": self._answers, "rewards": self._rewards} else None

    def answered(self) -> list[Rollout] | None:
        """The stored answers without rewards, or None if there are none of this round: a reward may have failed."""
        meta, text = self._read()
        return [_unscored(found) for found in parse_rollouts(text)] if meta.get("answers") == self._answers else None

    def report_unused(self) -> None:
        """Warn about stored answers or rewards that are damaged or not of this round, and name what differs."""
        meta, _ = self._read()
        if not meta:
            if self.path.exists():
                logger.warning(
                    "%s is damaged: its lines fit no checksum in %s; the answers are drawn again",
                    self.path,
                    self._sidecar.name,
                )
        elif different := differences(meta.get("answers"), self._answers):
            logger.warning("answers in %s are of another run (%s); drawing them again", self.path, "; ".join(different))
        elif meta.get("rewards") is not None and (different := differences(meta["rewards"], self._rewards)):
            logger.warning("rewards in %s are of another run (%s); asking again", self.path, "; ".join(different))

    def replayed(self) -> list[Rollout]:
        """The stored answers with their rewards, whatever they are from: of the facts, only those given here must fit.

        Raises:
            RolloutError: There are none, they have no rewards, or a given fact differs.
        """
        meta, text = self._read()
        if meta.get("rewards") is None:
            raise RolloutError(
                f"no intact answers with rewards to replay in {self.path}",
                hint="replay_rewards names the output_dir (or cache_dir) of a run that selected at the same steps",
            )
        different = [
            difference
            for kind, given in (("answers", self._answers), ("rewards", self._rewards))
            for difference in differences({key: meta[kind].get(key) for key in given}, given, f"{kind}.")
        ]
        if different:
            raise RolloutError(
                f"the answers in {self.path} are for another evaluation set ({'; '.join(different)})",
                hint="replay with the same eval_dataset, template and max_prompt_length",
            )
        return parse_rollouts(text)

    def write_answers(self, rollouts: Sequence[Rollout]) -> None:
        """Store answers that have no rewards yet, atomically."""
        self._write(rollouts, None)

    def write(self, rollouts: Sequence[Rollout]) -> None:
        """Store answers with their rewards, atomically."""
        self._write(rollouts, self._rewards)

    def _read(self) -> tuple[dict[str, Any], str]:
        """The facts of the stored lines, empty if none are intact, and the lines."""
        try:
            entries = json.loads(self._sidecar.read_text(encoding="utf-8"))
            text = _stored(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}, ""
        found = entries.get(_sha256(text)) if isinstance(entries, dict) else None
        return (found, text) if isinstance(found, dict) else ({}, "")

    def _write(self, rollouts: Sequence[Rollout], rewards: Any) -> None:
        text = "".join(json.dumps(asdict(found)) + "\n" for found in rollouts)
        meta, replaced = self._read()
        kept = {_sha256(replaced): meta} if meta else {}
        write_json(self._sidecar, {**kept, _sha256(text): {"answers": self._answers, "rewards": rewards}})
        lines = readable_answers(rollouts, self._samples) if self._samples else map(asdict, rollouts)
        write_text(self.path, "".join(readable_line(line) for line in lines))


def parse_rollouts(text: str) -> list[Rollout]:
    """The answers in the text of such a file, of an older one, or of :meth:`RolloutFile.scored`'s lines."""
    return [Rollout(**json.loads(line)) for line in _stored(text).splitlines()]


def readable_answers(rollouts: Sequence[Rollout], samples: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    """Each answer with the turns of its prompt and its reference, None where it has none.

    Args:
        rollouts: M answers a row, ordered by row, then by answer number.
        samples: The q rows of the evaluation set.
    """
    for sample, own in zip(samples, by_row(rollouts, [sample.id for sample in samples]), strict=True):
        for found in own:
            yield {"prompt": list(sample.prompt), "reference": sample.reference, **asdict(found)}


def readable_line(row: Mapping[str, Any]) -> str:
    """A line of JSON in which letters of all scripts stay letters."""
    return shown(json.dumps(row, ensure_ascii=False, default=str), target="json") + "\n"


def _unscored(found: Rollout) -> Rollout:
    return Rollout(**{**asdict(found), "reward": None})


def _stored(text: str) -> str:
    """The lines without what is in them for people: the same text whether a line has that or, as in older files, not.

    Raises:
        ValueError: A line is not an object.
    """
    rows = [json.loads(line) for line in text.splitlines()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not an object")
    return "".join(
        json.dumps({key: value for key, value in row.items() if key not in FOR_PEOPLE}) + "\n" for row in rows
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
