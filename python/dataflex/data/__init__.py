"""Data: formats, sources, chat templates, encoding, tokenised datasets, collation.

Rows of any known form come in, token ids with labels and padded batches go out.
May import ``config``, ``plugins``, ``utils``, ``types`` and ``errors``.

Names are imported when they are first used: reading rows does not import torch. (``collate`` is the module; the
function is ``dataflex.data.collate.collate``.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflex.data.collate import Batch as Batch
    from dataflex.data.dataset import Example as Example
    from dataflex.data.dataset import TokenizationReport as TokenizationReport
    from dataflex.data.dataset import TokenizedDataset as TokenizedDataset
    from dataflex.data.dataset import tokenize as tokenize
    from dataflex.data.encoding import IGNORE_INDEX as IGNORE_INDEX
    from dataflex.data.encoding import Encoded as Encoded
    from dataflex.data.formats import Columns as Columns
    from dataflex.data.formats import DatasetFormat as DatasetFormat
    from dataflex.data.sources import load_samples as load_samples
    from dataflex.data.templates import ChatTemplate as ChatTemplate

_MODULES = {
    "IGNORE_INDEX": "encoding",
    "Batch": "collate",
    "ChatTemplate": "templates",
    "Columns": "formats",
    "DatasetFormat": "formats",
    "Encoded": "encoding",
    "Example": "dataset",
    "TokenizationReport": "dataset",
    "TokenizedDataset": "dataset",
    "load_samples": "sources",
    "tokenize": "dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
