"""The contract of an encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataflex.retrieval.embeddings.coverage import Coverage


class Encoder(ABC):
    """Turns texts into vectors of one dimension d.

    Attributes:
        method: How configurations and sidecars call it.
    """

    method: ClassVar[str]

    @property
    @abstractmethod
    def dim(self) -> int:
        """d; may load the model."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """JSON-able facts that fix the vectors of a text: equal facts, equal vectors up to rounding."""

    def check(self) -> None:
        """Raise ModelError if the model cannot be used, as far as that can be known in seconds."""
        return None

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of n texts, ``(n, d)`` float32, not normalised.

        Raises:
            ModelError: The model cannot be loaded or fails.
        """

    def coverage(self, texts: Sequence[str]) -> Coverage | None:
        """What the encoder sees of the texts; None if it cannot say. It may load the model.

        Raises:
            ModelError: The model cannot be loaded.
        """
        del texts
        return None

    def close(self) -> None:
        """Free what the encoder holds; it may be used again afterwards."""
        return None
