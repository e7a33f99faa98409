"""The exceptions that dataflex raises: one root, a few subclasses, each with an optional hint.

A message says what happened, what was found and what was expected; the hint says what to do about it. The
command line prints both without a traceback (``--traceback`` shows it).
"""

from __future__ import annotations

from collections.abc import Iterable

from dataflex.visible import visible


class DataflexError(Exception):
    """Root of all errors that dataflex raises on purpose.

    Characters that act on a terminal are written out (:mod:`dataflex.visible`): a message may quote data, paths and
    servers, and Python prints it as it is.

    Args:
        message: What happened, what was found, what was expected.
        hint: What the user can do about it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = visible(message, lines=True)
        self.hint = None if hint is None else visible(hint, lines=True)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class ConfigError(DataflexError):
    """One or more problems in a configuration, all reported at once.

    Args:
        problems: One line a problem, each with ``file:line`` where it is known.
    """

    def __init__(self, problems: str | Iterable[str], *, hint: str | None = None) -> None:
        given = [problems] if isinstance(problems, str) else problems
        self.problems = [visible(problem, lines=True) for problem in given]
        super().__init__("\n".join(self.problems), hint=hint)


class DataError(DataflexError):
    """A dataset, row or chat template cannot be used."""


class ModelError(DataflexError):
    """A model, adapter or tokenizer cannot be loaded, adapted or saved."""


class GradientError(DataflexError):
    """Per-sample gradients cannot be computed or normalised."""


class ProjectionError(DataflexError):
    """A projection was asked for with impossible arguments."""


class StoreError(DataflexError):
    """A feature store is damaged or belongs to another run."""


class RolloutError(DataflexError):
    """Answers of the model cannot be sampled, or stored ones cannot be used."""


class RewardError(DataflexError):
    """A reward backend could not score its requests."""


class SelectionError(DataflexError):
    """A selector could not produce the selection it was asked for."""


class TrainingError(DataflexError):
    """The training loop cannot start or go on."""


class CheckpointError(TrainingError):
    """A checkpoint is torn, missing or belongs to another run."""


class PluginError(DataflexError):
    """A component is unknown, broken or of the wrong type."""
