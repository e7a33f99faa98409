"""Processes that hold parts of one model's parameters, and each do a share of the work.

A forward pass gathers parameters, so that all processes have to make it together, and so does a backward pass. A share
may need more passes than another's, or longer ones. So each pass of a share is announced, in the moment in which it
begins, and a process that is done with its own makes one along with a single token, until all are done. No result of
these passes is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dataflex.errors import TrainingError
from dataflex.gradients.hooks import BatchedGradients
from dataflex.models.model import base_model, undisturbed
from dataflex.utils.distributed import Ranks

T = TypeVar("T")

DONE, FORWARD, BOTH = 0, 1, 2
"""What a process does next: nothing of its own, a forward pass, a forward and a backward pass."""


class CommonPasses:
    """The passes of a sharded model that processes make together.

    Args:
        model: The model, whose parameters are sharded.
        ranks: The processes.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._model, self._ranks = model, ranks
        self._sharing = False
        self._passing = False
        root = base_model(model)
        root.register_forward_pre_hook(self._announce, prepend=True)  # before the parameters are gathered
        root.register_forward_hook(self._ended)

    def during(self, work: Callable[[], T]) -> T:
        """What ``work``, this process's share, returns, once all processes are done with theirs.

        Raises:
            PassError: It failed in a pass, which the other processes are in, too.
        """
        self._sharing, self._passing = True, False
        try:
            result = work()
        except Exception as error:
            if self._passing:
                raise PassError from error
            self._go_along()
            raise
        finally:
            self._sharing = False
        self._go_along()
        return result

    def _announce(self, *_: Any) -> None:
        """Say that this process begins a pass."""
        if self._sharing:
            self._passing = False  # the one before has ended
            self._agree(BOTH if torch.is_grad_enabled() else FORWARD)
            self._passing = True

    def _ended(self, *_: Any) -> None:
        """Without gradients a pass ends with the forward pass; with them, it is not known when."""
        self._passing = self._passing and torch.is_grad_enabled()

    def _agree(self, own: int) -> int:
        """What the processes do next."""
        found = set(self._ranks.gather(own)) - {DONE}
        if len(found) > 1:
            raise TrainingError("some processes compute gradients of a sharded model while others compute losses")
        return found.pop() if found else DONE

    def _go_along(self) -> None:
        """Make the passes of the others along."""
        self._sharing = False
        while (kind := self._agree(DONE)) != DONE:
            with undisturbed(self._model):
                if kind == FORWARD:
                    with torch.no_grad():
                        self._losses()
                else:
                    BatchedGradients(self._model).run(1, self._losses, _drop)

    def _losses(self) -> Tensor:
        """``(1,)``: a number that depends on all layers."""
        tokens = torch.zeros((1, 1), dtype=torch.int64, device=self._ranks.device)
        found: Tensor = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
        return found.sum(dim=(1, 2))


class PassError(BaseException):
    """A pass failed in which the other processes are, too: they cannot be waited for, or told."""


def _drop(block: Tensor, offset: int) -> None:
    del block, offset


@dataclass(frozen=True, slots=True)
class ShardedRanks(Ranks):
    """Ranks that hold parts of one model's parameters.

    Attributes:
        passes: Its passes.
    """

    passes: CommonPasses = field(kw_only=True)

    def together(self, work: Callable[[], T]) -> T:
        """As for whole models; ``work`` may make any number of passes.

        Raises:
            DataflexError: As there. What fails within a pass ends this process, and the launcher ends the others.
        """
        try:
            return Ranks.together(self, lambda: self.passes.during(work))
        except PassError as error:
            cause = error.__cause__
            assert cause is not None
            raise cause from None

    def with_model(self, work: Callable[[], T]) -> T:
        """What ``work`` returns on the main process; all of them do it, as its passes are everyone's."""
        found: T = self.gather(work())[0]
        return found
