"""Answers and rewards of a round on disk, so that a round is neither drawn nor paid for twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataflex.errors import RolloutError
from dataflex.rollouts.answers import Rollout
from dataflex.utils.files import differences, write_json, write_text

logger = logging.getLogger(__name__)


class RolloutFile:
    """Answers of one round: JSON lines, one answer a line, and a sidecar that says what they are for.

    The sidecar (``.meta.json``) maps the SHA-256 of the lines to what fixed the answers and what fixed their rewards
    (None before they are scored). It is written first, and keeps the entry of the lines that are replaced: a kill
    between the two leaves the old answers with their facts.

    Args:
        path: The ``.jsonl`` file.
        answers: JSON-able facts that fix the answers.
        rewards: JSON-able facts that fix their rewards.
    """

    def __init__(self, path: Path, answers: Mapping[str, Any], rewards: Mapping[str, Any]) -> None:
        self.path = path
        self._sidecar = path.with_suffix(".meta.json")
        self._answers, self._rewards = json.loads(json.dumps([answers, rewards]))

    def scored(self) -> list[Rollout] | None:
        """The stored answers with their rewards, or None if there are none of this round."""
        meta, text = self._read()
        return _parse(text) if meta == {"answers": self._answers, "rewards": self._rewards} else None

    def answered(self) -> list[Rollout] | None:
        """The stored answers without rewards, or None if there are none of this round: a reward may have failed."""
        meta, text = self._read()
        return [_unscored(found) for found in _parse(text)] if meta.get("answers") == self._answers else None

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
        return _parse(text)

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
            text = self.path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return {}, ""
        found = entries.get(_sha256(text)) if isinstance(entries, dict) else None
        return (found, text) if isinstance(found, dict) else ({}, "")

    def _write(self, rollouts: Sequence[Rollout], rewards: Any) -> None:
        text = "".join(json.dumps(asdict(found), ensure_ascii=True) + "\n" for found in rollouts)
        meta, replaced = self._read()
        kept = {_sha256(replaced): meta} if meta else {}
        write_json(self._sidecar, {**kept, _sha256(text): {"answers": self._answers, "rewards": rewards}})
        write_text(self.path, text)


def _unscored(found: Rollout) -> Rollout:
    return Rollout(**{**asdict(found), "reward": None})


def _parse(text: str) -> list[Rollout]:
    return [Rollout(**json.loads(line)) for line in text.splitlines()]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
