"""Where tokenised data lie, and under which name: one that says what is in them.

The name is a digest of all that the tokens depend on: the rows themselves (bytes of files, values of tables), how they
are read, the template with the dates that it prints, the tokenizer, ``cutoff_len``, and the versions of the packages
that do the work. So an entry is never out of date, and may be used by any run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflex.data.sample_reader import SampleReader
from dataflex.errors import ConfigError, DataError
from dataflex.plugins.registry import registry
from dataflex.utils.home import home_path
from dataflex.version import __version__

if TYPE_CHECKING:
    from dataflex.data.templates import ChatTemplate

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "DATAFLEX_CACHE"
SMALL = 2_000
"""Rows from which on data are kept where no folder is named: fewer take half a second."""
_VERSION = 1
"""Grows when the same input gives other tokens, samples or files."""
_DATES = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """How tokenised data are kept.

    Attributes:
        folder: Where; None: :func:`default_folder`, for data of :data:`SMALL` rows and more.
        overwrite: Make them again.
        workers: Processes that tokenise; None: this one, with the tokenizer's threads.
    """

    folder: Path | None = None
    overwrite: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(
                f"preprocessing_num_workers is {self.workers}, expected at least 1", hint="None: one, with threads"
            )


@cache
def default_folder() -> Path | None:
    """The folder of tokenised data where none is named; None: there is none that can be written to.

    ``$DATAFLEX_CACHE``, else ``dataflex`` in ``$XDG_CACHE_HOME`` or ``~/.cache``, else in that of temporary files.
    """
    if wanted := os.environ.get(CACHE_VARIABLE):
        return home_path(wanted)
    own = Path(os.environ.get("XDG_CACHE_HOME") or home_path("~/.cache")) / "dataflex"
    if _is_writable(own):
        return own
    other = Path(tempfile.gettempdir()) / f"dataflex-{os.getuid()}"
    if not _is_writable(other) or other.stat().st_uid != os.getuid():  # somebody else's, of that name
        return None
    logger.info("%s cannot be written to: tokenised data are kept in %s (or in $%s)", own, other, CACHE_VARIABLE)
    return other


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def cache_name(reader: SampleReader, template: ChatTemplate, cutoff_len: int) -> str | None:
    """The name of these data tokenised so; None if they have none, which is logged.

    Raises:
        DataError: The rows cannot be read.
    """
    backend = getattr(template.tokenizer, "backend_tokenizer", None)
    if backend is None:
        logger.info("the tokenizer is written in Python: nothing tells two of them apart, and its data are not kept")
        return None
    digest = hashlib.sha256()
    digest.update(json.dumps({**_versions(), "cutoff_len": cutoff_len, "formats": _formats()}, sort_keys=True).encode())
    for text in (_tokenizer(template.tokenizer, backend), template.source, _dates(template)):
        digest.update(hashlib.sha256(text.encode()).digest())
    try:
        reader.digest(digest)
    except DataError as error:
        if "no bytes of its own" not in error.message:
            raise
        logger.info("tokenised data are not kept: %s", error.message)
        return None
    return digest.hexdigest()[:40]


def _versions() -> dict[str, Any]:
    packages = {name: version(name) for name in ("transformers", "tokenizers", "jinja2")}
    return {"version": _VERSION, "dataflex": __version__, **packages}


def _formats() -> list[str]:
    """The forms of rows that are known, and the packages that they may come from."""
    found = registry()
    forms = [str(found.find("dataset_format", name)) for name in found.names("dataset_format")]
    return [*forms, *(f"{plugin.distribution} {plugin.version}" for plugin in found.plugins)]


def _tokenizer(tokenizer: Any, backend: Any) -> str:
    """All that a tokenizer of the Rust library depends on; truncation and padding come and go with calls."""
    whole: str = backend.to_str()  # megabytes
    facts = whole[whole.find('"added_tokens"') :]  # in front of it: truncation and padding
    own = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    split = [bool(getattr(tokenizer, "split_special_tokens", False)), bool(backend.encode_special_tokens)]
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    return json.dumps([facts, own, split, kind], sort_keys=True)


def _dates(template: ChatTemplate) -> str:
    """What a template that prints the date prints now; the moment, where that cannot be told."""
    if not template.prints_date:
        return ""
    formats = [text for _, text in _DATES.findall(template.source)]
    if len(formats) < template.source.count("strftime_now("):
        return template.now.isoformat()
    return json.dumps([template.now.strftime(text) for text in formats])
