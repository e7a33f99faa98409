"""The methods of the table, each as the public API builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import dataflex as df

from .pools import RIGHT, Pool
from .protocol import METRIC

OLD = {"baseline": "none", "reference_answer": "none"}
"""NICE's defaults in 0.1.0: the rule of the paper's code."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        selector: Name of the selector; empty: no training at all; ``all``: every row, nothing is selected.
        params: Its parameters beside the reward, the encoder and the folder of its features.
        trains: Whether the model goes on with the choice; ``after``: a new adapter is trained on it; no: the choice
            alone is measured.
        draw: Number of the selection's own draw, for methods that draw: pool, warm-up and training stay the seed's.
        warmup: Steps on random rows before the selection, if not the protocol's.
        updates: Selections in the protocol's steps, each trained on at once; 0: one, in a run of its own length.
    """

    selector: str
    params: dict[str, Any] = field(default_factory=dict)
    trains: bool | Literal["after"] = True
    draw: int = 0
    warmup: int | None = None
    updates: int = 0

    @property
    def asks(self) -> bool:
        """Whether it needs answers and rewards."""
        return self.selector == "nice"

    @property
    def embeds(self) -> bool:
        """Whether it needs an encoder of texts."""
        return self.selector == "near" or (self.selector == "tsds" and "representation" not in self.params)

    @property
    def chooses(self) -> bool:
        """Whether it selects at all."""
        return self.selector not in ("", "all")

    def resolved(self, max_new_tokens: int, encoder: str) -> dict[str, Any]:
        """All parameters that hold, defaults among them, so that another default is another cell.

        Args:
            max_new_tokens: Longest answer.
            encoder: Digest of the encoder's weights.
        """
        params = {}
        if self.chooses and self.selector != "near":  # near's own are those of the matrix
            params = self.build(max_new_tokens, Path(), Path()).config.model_dump(mode="json")
        params |= {"cache_dir": None} | ({"embed_model": encoder} if self.embeds else {})
        own = {"updates": self.updates} if self.updates else {}
        return {"selector": self.selector, "trains": self.trains, "params": params, "draw": self.draw, **own}

    def build(self, max_new_tokens: int, cache: Path, encoder: Path | None) -> df.Selector[Any]:
        """The selector.

        Args:
            max_new_tokens: Longest answer.
            cache: Folder of features, answers, and of near's matrix.
            encoder: Folder of the model that embeds texts; for those that embed.
        """
        if self.selector == "oracle":
            return Oracle()
        params = dict(self.params)
        if self.selector == "near":
            return df.NearSelector(indices_path=cache / MATRIX, **params)
        if self.selector != "random":
            params["cache_dir"] = cache
        if self.embeds:
            params["embed_model"] = str(encoder)
        if self.asks:
            params = {"reward": {"name": "metric", "params": METRIC}, "max_new_tokens": max_new_tokens} | params
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


MATRIX = "near.npy"


def write_matrix(pool: Pool, cache: Path, encoder: Path, width: int) -> None:
    """Near's offline step: each target's ``width`` nearest rows."""
    index = df.NearIndex(
        pool.rows, pool.prompts, embed_model=str(encoder), save_indices_path=cache / MATRIX, max_K=width, index="exact"
    )
    index.build()


BUILDERS: dict[str, Callable[..., df.Selector[Any]]] = {
    "random": df.RandomSelector,
    "loss": df.LossSelector,
    "rds": df.RdsSelector,
    "tsds": df.TsdsSelector,
    "less": df.LessSelector,
    "in_context": df.InContextSelector,
    "nice": df.NiceSelector,
}

COOL = {"generation_temperature": 0.7}
"""The temperature of the answers in 0.1.0."""
TOKENS = {"name": "metric", "params": {"metric": "token_f1"}}
"""A reward for some of the reference's words, too."""
NO_MOMENTUM = {"adam_variant": "second_moment"}

EXPECTED = {"name": "in_context", "keep": 0.25}
"""Rows whose answers the model expects after four target rows."""
NEAREST = {"name": "less", "keep": 0.25}
"""Rows of the target's kind, of which ``in_context`` takes those whose answers the model expects."""


def _then(selector: str, **params: Any) -> Method:
    return Method(selector, params, trains="after")


def _only(selector: str, **params: Any) -> Method:
    return Method(selector, params, trains=False)


METHODS: dict[str, Method] = {
    "zero-shot": Method(""),
    "then: random": _then("random"),
    "then: random, second draw": Method("random", trains="after", draw=1),
    "then: random, third draw": Method("random", trains="after", draw=2),
    "then: all rows": _then("all"),
    "then: oracle": _then("oracle"),
    "then: loss": _then("loss"),
    "then: near": _then("near"),
    "then: tsds": _then("tsds"),
    "then: tsds, gradients": _then("tsds", representation="gradient"),
    "then: rds": _then("rds"),
    "then: less": _then("less"),
    "then: less, second_moment": _then("less", **NO_MOMENTUM),
    "then: less, after in_context": _then("less", prefilter=EXPECTED),
    "then: in_context, after less": _then("in_context", prefilter=NEAREST),
    "then: less, round robin": _then("less", aggregate="round_robin"),
    "then: nice": _then("nice"),
    "then: nice, second_moment": _then("nice", **NO_MOMENTUM),
    "then: nice, no references": _then("nice", reference_answer="none"),
    "random": Method("random"),
    "oracle": Method("oracle"),
    "less": Method("less"),
    "nice": Method("nice"),
    "nice, temperature 0.7": Method("nice", COOL),
    "nice, old defaults": Method("nice", {**OLD, **COOL}),
    "less, formula of LESS": _only("less", adam_variant="less"),
    **{f"less, projected to {k}": _only("less", scoring="projected", proj_dim=k) for k in (512, 4096, 16384)},
    "less, rademacher": _only("less", scoring="projected", projection="rademacher"),
    "in_context": _only("in_context"),
    **{f"less, {keep:.0%} kept by rds": _only("less", prefilter={"name": "rds", "keep": keep}) for keep in (0.25, 0.5)},
    **{f"less, {steps} steps of warm-up": Method("less", trains=False, warmup=steps) for steps in (4, 36)},
    **{f"less, {number} update{'s' if number > 1 else ''}": Method("less", updates=number) for number in (1, 2, 4)},
    "rds, mean": _only("rds", aggregate="mean"),
    "nice, no baseline": _only("nice", baseline="none"),
    "nice, no baseline, temperature 0.7": _only("nice", **COOL, baseline="none"),
    "nice, answers at 0.7": _only("nice", **COOL),
    "nice, fallback": _only("nice", reference_answer="fallback"),
    "nice, projected to 4096": _only("nice", scoring="projected"),
    "nice, 8 answers": _only("nice", mc_samples=8),
    "nice, round robin": _only("nice", aggregate="round_robin"),
    "nice, rewards of tokens": Method("nice", {"reward": TOKENS}, trains=False),
}
"""Without parameters a method is as it is shipped."""
