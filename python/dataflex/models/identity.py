"""What tells a model, or a file, from another one: its content, not its name."""

from __future__ import annotations

import hashlib
from pathlib import Path


def model_identity(name: str) -> dict[str, str | None]:
    """What tells a model from another one: the content of a local folder, the revision of one from the hub.

    A hub model that is not in the local cache has no revision yet (None).
    """
    folder = Path(name)
    if folder.is_dir():
        return {"sha256": _folder_digest(folder)}
    return {"model": name, "revision": _cached_revision(name)}


def file_digest(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of all files of a folder, hidden ones left out."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = file.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts):
            continue
        digest.update(f"{inside.as_posix()}\0{file_digest(file)}\0".encode())
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
