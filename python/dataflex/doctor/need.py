"""What a process holds in memory at the peak of a run, in bytes, from the sizes of its model.

With P parameters, of which p are trained, s bytes of optimizer state a trained value (AdamW: 8) and N processes:

============ ====================================== ==========================================================
             one process, or each with the whole     each of N with FSDP2 (float32 throughout)
============ ====================================== ==========================================================
frozen       as stored                               4 (P - p) / N
trained      p (8 + s): value, gradient, state       p (8 + s) / N
gathered     0                                       4 (what is outside the layers + two layers)
selection    :func:`exact_selection`, or 8 p' of the p' coordinates that features read: whole on every process
activations  tokens of the largest batch, times what autograd keeps of each
============ ====================================== ==========================================================

Left out: libraries, what the backward pass holds for a moment beside them (the gradient of the logits above all), and
the memory that allocators keep.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataflex.gradients.exact import BLOCK_VALUES

VALUE = 4
"""Bytes of a float32."""
TRAINED = 2 * VALUE
"""A trained value with its gradient, float32 each."""
MOMENTS = 2 * VALUE
"""Adam's two moments, float32 whatever the optimizer keeps, as a selection reads them."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one process, by what they are for (see the module)."""

    frozen: float
    trained: float
    gathered: float
    selection: float
    activations: float

    @property
    def lasting(self) -> float:
        """What no smaller batch makes less."""
        return self.frozen + self.trained + self.gathered + self.selection

    @property
    def total(self) -> float:
        """All of it."""
        return self.lasting + self.activations


def exact_selection(parameters: int, targets: int, directions: int = 1) -> int:
    """Bytes that exact scores hold beside the model (:mod:`dataflex.gradients.exact`).

    Sums of unit vectors are int64, and beside them lie first the gradients of a few targets, then the means; while the
    candidates pass, the means and both moments.

    Args:
        parameters: p.
        targets: How many there are.
        directions: d.
    """
    rows = VALUE * min(targets * parameters, max(parameters, BLOCK_VALUES))
    sums, means = 2 * VALUE * directions * parameters, VALUE * directions * parameters
    return max(sums + max(rows, means), means + MOMENTS * parameters)


def feature_selection(coordinates: int) -> int:
    """Bytes that projected features hold beside the model: both moments of what is read; features are on the disk."""
    return MOMENTS * coordinates


def needed(
    frozen_bytes: float, trainable: int, activations: float, *, state_bytes: int = MOMENTS, selection: float = 0.0
) -> Need:
    """What a process with a whole model holds.

    Args:
        frozen_bytes: Size of the weights that are not trained.
        trainable: p.
        activations: Bytes of the largest batch.
        state_bytes: s.
        selection: What a selection adds.
    """
    return Need(frozen_bytes, trainable * (TRAINED + state_bytes), 0.0, selection, activations)


def sharded(
    parameters: int, trainable: int, whole: int, activations: float, processes: int, *, selection: float = 0.0
) -> Need:
    """What each of some processes with AdamW and FSDP2 holds.

    Args:
        parameters: P.
        trainable: p.
        whole: Parameters that are whole at once: those outside the layers, and of two layers.
        activations: Bytes of a process's largest batch.
        processes: N.
        selection: What a selection adds.
    """
    frozen = VALUE * (parameters - trainable) / processes
    return Need(frozen, trainable * (TRAINED + MOMENTS) / processes, VALUE * whole, selection, activations)
