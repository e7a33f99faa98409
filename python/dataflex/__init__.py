"""dataflex: choose the data that a language model is fine-tuned on, while it is being fine-tuned."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataflex.config import RunConfig, load_config
    from dataflex.curriculum.schedule import Schedule
    from dataflex.data.dataset import TokenizedDataset, tokenize
    from dataflex.data.formats import DatasetFormat
    from dataflex.data.sources import load_samples
    from dataflex.data.templates import ChatTemplate
    from dataflex.errors import DataflexError
    from dataflex.offline.api import less_static, select
    from dataflex.offline.selection import OfflineSelection
    from dataflex.plugins.hookspecs import HOOK_API_VERSION, hookimpl
    from dataflex.projection.projector import AdamMoments, ProjectionKind, Projector
    from dataflex.retrieval.index import NearIndex
    from dataflex.rewards.base import RewardBackend
    from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
    from dataflex.selectors.delta_loss import DeltaLossSelector
    from dataflex.selectors.less import LessSelector
    from dataflex.selectors.loss import LossSelector
    from dataflex.selectors.near import NearSelector
    from dataflex.selectors.nice import NiceSelector
    from dataflex.selectors.random import RandomSelector
    from dataflex.selectors.rds import RdsSelector
    from dataflex.selectors.tsds import TsdsSelector
    from dataflex.training.arguments import TrainingArguments
    from dataflex.training.run import train
    from dataflex.training.trainer import Trainer
    from dataflex.types import RewardRequest, Sample
    from dataflex.version import __version__

_HOMES = {
    "AdamMoments": "dataflex.projection.projector",
    "ChatTemplate": "dataflex.data.templates",
    "DataflexError": "dataflex.errors",
    "DatasetFormat": "dataflex.data.formats",
    "DeltaLossSelector": "dataflex.selectors.delta_loss",
    "HOOK_API_VERSION": "dataflex.plugins.hookspecs",
    "LessSelector": "dataflex.selectors.less",
    "LossSelector": "dataflex.selectors.loss",
    "NearIndex": "dataflex.retrieval.index",
    "NearSelector": "dataflex.selectors.near",
    "NiceSelector": "dataflex.selectors.nice",
    "OfflineSelection": "dataflex.offline.selection",
    "ProjectionKind": "dataflex.projection.projector",
    "Projector": "dataflex.projection.projector",
    "RandomSelector": "dataflex.selectors.random",
    "RdsSelector": "dataflex.selectors.rds",
    "RewardBackend": "dataflex.rewards.base",
    "RewardRequest": "dataflex.types",
    "RunConfig": "dataflex.config",
    "Sample": "dataflex.types",
    "Schedule": "dataflex.curriculum.schedule",
    "Selection": "dataflex.selectors.base",
    "SelectionContext": "dataflex.selectors.base",
    "Selector": "dataflex.selectors.base",
    "SelectorConfig": "dataflex.selectors.base",
    "TokenizedDataset": "dataflex.data.dataset",
    "Trainer": "dataflex.training.trainer",
    "TrainingArguments": "dataflex.training.arguments",
    "TsdsSelector": "dataflex.selectors.tsds",
    "__version__": "dataflex.version",
    "hookimpl": "dataflex.plugins.hookspecs",
    "less_static": "dataflex.offline.api",
    "load_config": "dataflex.config",
    "load_samples": "dataflex.data.sources",
    "select": "dataflex.offline.api",
    "tokenize": "dataflex.data.dataset",
    "train": "dataflex.training.run",
}

__all__ = [
    "HOOK_API_VERSION",
    "AdamMoments",
    "ChatTemplate",
    "DataflexError",
    "DatasetFormat",
    "DeltaLossSelector",
    "LessSelector",
    "LossSelector",
    "NearIndex",
    "NearSelector",
    "NiceSelector",
    "OfflineSelection",
    "ProjectionKind",
    "Projector",
    "RandomSelector",
    "RdsSelector",
    "RewardBackend",
    "RewardRequest",
    "RunConfig",
    "Sample",
    "Schedule",
    "Selection",
    "SelectionContext",
    "Selector",
    "SelectorConfig",
    "TokenizedDataset",
    "Trainer",
    "TrainingArguments",
    "TsdsSelector",
    "__version__",
    "hookimpl",
    "less_static",
    "load_config",
    "load_samples",
    "select",
    "tokenize",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: ``import dataflex`` does not import torch."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'dataflex' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
