"""The global random states of a process: torch's (on the CPU), numpy's and Python's."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

RandomStates = tuple[Any, Any, Any]


def random_states() -> RandomStates:
    """The states as they are now, for :func:`set_random_states`."""
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_random_states(states: RandomStates) -> None:
    """Put back what :func:`random_states` returned."""
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
