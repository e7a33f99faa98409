"""The contract of an encoder, and how a model is told apart from another."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray


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

    def close(self) -> None:
        """Free what the encoder holds; it may be used again afterwards."""
        return None


def model_identity(name: str) -> dict[str, str | None]:
    """What tells a model from another one: the content of a local folder, the revision of one from the hub.

    A hub model that is not in the local cache has no revision yet (None).
    """
    folder = Path(name)
    if folder.is_dir():
        return {"sha256": _folder_digest(folder)}
    return {"model": name, "revision": _cached_revision(name)}


def _folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of all files of a folder, hidden ones left out."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = file.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        with file.open("rb") as opened:
            digest.update(f"{inside.as_posix()}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def _cached_revision(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for repository in (name, f"sentence-transformers/{name}"):  # short names stand for the package's own models
        try:
            found = try_to_load_from_cache(repository, "config.json")
        except HFValidationError:
            continue
        if isinstance(found, str):
            return Path(found).parent.name
    return None
