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
    from dataflex.mixers.base import Mixer, MixerConfig, MixtureContext
    from dataflex.mixers.doremi import DoReMiMixer
    from dataflex.mixers.odm import OdmMixer
    from dataflex.mixers.random import RandomMixer
    from dataflex.mixers.static import StaticMixer
    from dataflex.offline.api import less_static, select
    from dataflex.offline.explain import explain
    from dataflex.offline.selection import OfflineSelection
    from dataflex.plugins.hookspecs import HOOK_API_VERSION, hookimpl
    from dataflex.projection.projector import AdamMoments, ProjectionKind, Projector
    from dataflex.report.api import Report
    from dataflex.retrieval.index import NearIndex
    from dataflex.rewards.base import RewardBackend
    from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
    from dataflex.selectors.delta_loss import DeltaLossSelector
    from dataflex.selectors.in_context import InContextSelector
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
    from dataflex.weighters.adapt import AdaptWeighter
    from dataflex.weighters.base import GlobalBatch, Weighter, WeighterConfig
    from dataflex.weighters.loss import LossWeighter

_HOMES = {
    "AdamMoments": "dataflex.projection.projector",
    "AdaptWeighter": "dataflex.weighters.adapt",
    "ChatTemplate": "dataflex.data.templates",
    "DataflexError": "dataflex.errors",
    "DatasetFormat": "dataflex.data.formats",
    "DeltaLossSelector": "dataflex.selectors.delta_loss",
    "DoReMiMixer": "dataflex.mixers.doremi",
    "GlobalBatch": "dataflex.weighters.base",
    "HOOK_API_VERSION": "dataflex.plugins.hookspecs",
    "InContextSelector": "dataflex.selectors.in_context",
    "LessSelector": "dataflex.selectors.less",
    "LossSelector": "dataflex.selectors.loss",
    "LossWeighter": "dataflex.weighters.loss",
    "Mixer": "dataflex.mixers.base",
    "MixerConfig": "dataflex.mixers.base",
    "MixtureContext": "dataflex.mixers.base",
    "NearIndex": "dataflex.retrieval.index",
    "NearSelector": "dataflex.selectors.near",
    "NiceSelector": "dataflex.selectors.nice",
    "OdmMixer": "dataflex.mixers.odm",
    "OfflineSelection": "dataflex.offline.selection",
    "ProjectionKind": "dataflex.projection.projector",
    "Projector": "dataflex.projection.projector",
    "RandomMixer": "dataflex.mixers.random",
    "RandomSelector": "dataflex.selectors.random",
    "RdsSelector": "dataflex.selectors.rds",
    "Report": "dataflex.report.api",
    "RewardBackend": "dataflex.rewards.base",
    "RewardRequest": "dataflex.types",
    "RunConfig": "dataflex.config",
    "Sample": "dataflex.types",
    "Schedule": "dataflex.curriculum.schedule",
    "Selection": "dataflex.selectors.base",
    "SelectionContext": "dataflex.selectors.base",
    "Selector": "dataflex.selectors.base",
    "SelectorConfig": "dataflex.selectors.base",
    "StaticMixer": "dataflex.mixers.static",
    "TokenizedDataset": "dataflex.data.dataset",
    "Trainer": "dataflex.training.trainer",
    "TrainingArguments": "dataflex.training.arguments",
    "TsdsSelector": "dataflex.selectors.tsds",
    "Weighter": "dataflex.weighters.base",
    "WeighterConfig": "dataflex.weighters.base",
    "__version__": "dataflex.version",
    "explain": "dataflex.offline.explain",
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
    "AdaptWeighter",
    "ChatTemplate",
    "DataflexError",
    "DatasetFormat",
    "DeltaLossSelector",
    "DoReMiMixer",
    "GlobalBatch",
    "InContextSelector",
    "LessSelector",
    "LossSelector",
    "LossWeighter",
    "Mixer",
    "MixerConfig",
    "MixtureContext",
    "NearIndex",
    "NearSelector",
    "NiceSelector",
    "OdmMixer",
    "OfflineSelection",
    "ProjectionKind",
    "Projector",
    "RandomMixer",
    "RandomSelector",
    "RdsSelector",
    "Report",
    "RewardBackend",
    "RewardRequest",
    "RunConfig",
    "Sample",
    "Schedule",
    "Selection",
    "SelectionContext",
    "Selector",
    "SelectorConfig",
    "StaticMixer",
    "TokenizedDataset",
    "Trainer",
    "TrainingArguments",
    "TsdsSelector",
    "Weighter",
    "WeighterConfig",
    "__version__",
    "explain",
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
