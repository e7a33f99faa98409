"""The contract of a selector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from dataflex.plugins.configurable import ComponentConfig, ConfigT, Configurable
from dataflex.selectors.plan import Plan
from dataflex.types import Selection, SelectionContext


class SelectorConfig(ComponentConfig):
    """Base of every selector's parameters."""


class Selector(Configurable[ConfigT], ABC):
    """Chooses ``context.num_samples`` of the n candidates.

    A subclass names its parameters in ``Config`` and implements :meth:`select`. It is built from a configuration
    file (``from_params``) or from Python (``MySelector(alpha=0.5)``).

    Attributes:
        needs_eval_dataset: The trainer refuses to start without an evaluation set.
    """

    name: ClassVar[str] = "selector"
    needs_eval_dataset: ClassVar[bool] = False

    def check(self, context: SelectionContext) -> None:
        """Raise before any work is lost if a selection with this context cannot succeed.

        Called once before training starts, with ``step`` 0 and the ``num_samples`` of the largest selection to come.
        The default accepts everything.
        """
        del context

    @abstractmethod
    def select(self, context: SelectionContext) -> Selection:
        """Select ``context.num_samples`` candidates.

        Returns:
            A selection whose ``indices`` are positions in ``context.train_dataset``, best first; distinct, unless it
            says ``repeats``.

        Raises:
            SelectionError: No valid selection of that size exists.
        """

    def plan(self, context: SelectionContext) -> Plan:
        """What :meth:`select` would compute with this context, for a dry run; nothing is computed here.

        The default plans nothing: the selection costs no time worth predicting.
        """
        del context
        return Plan()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state that a resumed run needs; empty for selectors without memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        del state

    def close(self) -> None:
        """Free what the selector holds (engines, connections). Called when training ends, however it ends."""
        return None
