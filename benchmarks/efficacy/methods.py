"""The methods of the table, each as the public API builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import dataflex as df

from .pools import RIGHT
from .protocol import METRIC, Protocol

OLD = {"baseline": "none", "reference_answer": "none"}
"""NICE's defaults in 0.1.0: the rule of the paper's code."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        selector: Name of the selector; empty: no training at all.
        params: Its parameters beside the reward and the folder of its features.
        trains: Whether the model goes on with the choice; ``after``: a new adapter is trained on it; no: the choice
            alone is measured.
        draw: Number of the selection's own draw, for methods that draw: pool, warm-up and training stay the seed's.
    """

    selector: str
    params: dict[str, Any] = field(default_factory=dict)
    trains: bool | Literal["after"] = True
    draw: int = 0

    @property
    def asks(self) -> bool:
        """Whether it needs answers and rewards."""
        return self.selector == "nice"

    def build(self, protocol: Protocol, cache: Path) -> df.Selector[Any]:
        """The selector; those by gradient share the features of the candidates in ``cache``."""
        if self.selector == "oracle":
            return Oracle()
        params = dict(self.params)
        if self.selector in ("nice", "less"):
            params["cache_dir"] = cache
        if self.asks:
            params |= {"reward": {"name": "metric", "params": METRIC}, "max_new_tokens": protocol.max_new_tokens}
        return BUILDERS[self.selector](**params)


class Oracle(df.Selector[df.SelectorConfig]):
    """Takes the planted right rows, by their column ``task``: what no method can know."""

    name = "oracle"
    Config = df.SelectorConfig

    def select(self, context: df.SelectionContext) -> df.Selection:
        """The right rows in the pool's order."""
        tasks = [sample.metadata.get("task") for sample in context.train_dataset.samples]
        chosen = np.flatnonzero(np.array([task == RIGHT for task in tasks]))[: context.num_samples]
        return df.Selection(chosen, None, self.name, context.step, context.round, {})


BUILDERS: dict[str, Callable[..., df.Selector[Any]]] = {
    "random": df.RandomSelector,
    "less": df.LessSelector,
    "nice": df.NiceSelector,
}

COOL = {"generation_temperature": 0.7}
"""The temperature of the answers in 0.1.0."""

METHODS: dict[str, Method] = {
    "then: random": Method("random", trains="after"),
    "then: random, second draw": Method("random", trains="after", draw=1),
    "then: random, third draw": Method("random", trains="after", draw=2),
    "then: oracle": Method("oracle", trains="after"),
    "then: less": Method("less", trains="after"),
    "then: nice": Method("nice", trains="after"),
    "then: nice, second_moment": Method("nice", {"adam_variant": "second_moment"}, trains="after"),
    "zero-shot": Method(""),
    "random": Method("random"),
    "oracle": Method("oracle"),
    "less": Method("less"),
    "nice": Method("nice"),
    "nice, temperature 0.7": Method("nice", COOL),
    "nice, old defaults": Method("nice", {**OLD, **COOL}),
    "nice, no baseline": Method("nice", {"baseline": "none"}, trains=False),
    "nice, no baseline, temperature 0.7": Method("nice", {**COOL, "baseline": "none"}, trains=False),
    "nice, no references": Method("nice", {"reference_answer": "none"}, trains=False),
    "nice, fallback": Method("nice", {"reference_answer": "fallback"}, trains=False),
    "nice, second_moment": Method("nice", {"adam_variant": "second_moment"}, trains=False),
}
"""Without parameters a method is as it is shipped."""
