"""Which cells the defaults of the selectors rest on, and where each of the other defaults comes from.

A default stays unless another value beats it, by a rule that was written down before the cells were measured, those of
``tsds`` and of ``less`` by the second moment excepted: over the pools in which both were measured, never worse in any
of them, and on average better by :data:`MARGIN` in the AUC of right rows against all others, or by :data:`MARGIN_WRONG`
against wrong answers, for at most :data:`DEARER` times the processor seconds, and the bytes a row. (The bytes came in
when 16,384 numbers had been measured in one pool.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import dataflex as df

from .cells import Cell
from .store import Result
from .tables import rows

MARGIN, MARGIN_WRONG, DEARER = 0.005, 0.02, 2.0
CONFIGS: dict[str, type[BaseModel]] = {
    selector.name: selector.Config
    for selector in (
        df.LessSelector,
        df.NiceSelector,
        df.RdsSelector,
        df.TsdsSelector,
        df.NearSelector,
        df.InContextSelector,
        df.LossSelector,
        df.DeltaLossSelector,
    )
}
TECHNICAL = frozenset(
    (
        *(
            "cache_dir",
            "save_interval",
            "feature_batch_tokens",
            "features_dtype",
            "keep_features",
            "seed",
            "task_column",
        ),
        *("batch_tokens", "loss_batch_tokens", "batch_size", "embed_device", "embed_precision", "trust_remote_code"),
        *("rollout_batch_size", "rollout_backend", "rollout_backend_params", "replay_rewards", "on_no_signal"),
        *("indices_path", "verify", "max_prompt_length"),
    )
)
"""Parameters about where and how a choice is computed, or what a run does when there is none to make."""


@dataclass(frozen=True)
class Measured:
    """A default that was measured against other values.

    Attributes:
        component: Name of the selector.
        parameter: Its parameter.
        shipped: Method of the table with the default.
        others: Other values, as the page shows them, with their methods.
        why: What decides where no value beats another.
        size: Bytes a row on disk and in memory over those of the default, for values where they differ.
    """

    component: str
    parameter: str
    shipped: str
    others: Mapping[str, str]
    why: str
    size: Mapping[str, float] = field(default_factory=dict)


MEASURED = (
    Measured(
        "less",
        "adam_variant",
        "then: less",
        {"less": "less, formula of LESS", "second_moment": "then: less, second_moment"},
        "what the optimizer would step",
    ),
    Measured(
        "less",
        "scoring",
        "then: less",
        {f"projected, {k} numbers": f"less, projected to {k}" for k in (512, 4096, 16384)},
        "no error of a projection, and no features on disk",
    ),
    Measured(
        "less",
        "proj_dim",
        "less, projected to 4096",
        {str(k): f"less, projected to {k}" for k in (512, 16384)},
        "error of an inner product about `1 / sqrt(k)`; memory and disk grow with k",
        {"512": 1 / 8, "16384": 4.0},
    ),
    Measured("less", "projection", "less, projected to 4096", {"rademacher": "less, rademacher"}, "the fastest"),
    Measured(
        "less", "aggregate", "then: less", {"round_robin": "then: less, round robin"}, "one direction: exact scores"
    ),
    Measured(
        "less",
        "prefilter",
        "then: less",
        {f"rds keeps {keep}": f"less, {keep} kept by rds" for keep in ("25%", "50%")},
        "all rows are looked at unless asked otherwise",
    ),
    Measured("nice", "adam_variant", "then: nice", {"second_moment": "then: nice, second_moment"}, "as for less"),
    Measured("nice", "scoring", "then: nice", {"projected, 4096 numbers": "nice, projected to 4096"}, "as for less"),
    Measured("nice", "generation_temperature", "then: nice", {"0.7": "nice, answers at 0.7"}, "an unbiased gradient"),
    Measured("nice", "mc_samples", "then: nice", {"8": "nice, 8 answers"}, "half as many answers to draw and to score"),
    Measured(
        "nice", "baseline", "then: nice", {"none": "nice, no baseline"}, "less variance where rewards are not sparse"
    ),
    Measured(
        "nice",
        "reference_answer",
        "then: nice",
        {"none": "then: nice, no references", "fallback": "nice, fallback"},
        "a signal where no answer earns anything",
    ),
    Measured("nice", "aggregate", "then: nice", {"round_robin": "nice, round robin"}, "the paper's mean"),
    Measured("rds", "aggregate", "then: rds", {"mean": "rds, mean"}, "the paper's rule"),
    Measured(
        "tsds", "representation", "then: tsds", {"gradient": "then: tsds, gradients"}, "no pass over the candidates"
    ),
)
SOURCES: dict[tuple[str, str], str] = {
    **{
        (name, "gradient_type"): "the optimizer's steps; `sgd` where there is none" for name in ("less", "nice", "tsds")
    },
    **{(name, "candidates"): "all rows, unless asked otherwise" for name in ("less", "nice", "tsds", "in_context")},
    **{("nice", name): "as for less" for name in ("proj_dim", "projection", "prefilter")},
    **{("tsds", name): "as for less" for name in ("adam_variant", "proj_dim", "projection", "prefilter")},
    ("tsds", "embed_method"): "the encoder's own",
    ("tsds", "embed_model"): "none: to be named",
    ("tsds", "encoder"): "none: another place of the same",
    ("tsds", "text_template"): "the encoder's own",
    ("tsds", "query_template"): "the encoder's own",
    ("tsds", "max_K"): "from the sizes of pool and choice",
    ("tsds", "kde_K"): "from the size of the pool",
    **{("tsds", name): "the paper's code (arXiv 2410.11303)" for name in ("sigma", "alpha", "C")},
    ("nice", "reward"): "none: to be named",
    ("nice", "reward_model_backend"): "a judge on the same machine",
    ("nice", "reward_backend_params"): "the reward's own",
    ("nice", "max_new_tokens"): "room for an answer; a limit, not a length",
    **{
        ("nice", name): "off: answers of the model itself, not of a cut one"
        for name in ("generation_top_p", "generation_top_k")
    },
    ("nice", "length_normalize"): "off: the gradient of the expected reward",
    ("in_context", "prefilter"): "all rows are looked at unless asked otherwise",
    ("in_context", "num_shots"): "the first number that was tried",
    ("near", "advance"): "off: the nearest rows in every round",
    **{
        ("loss", name): "DataFlex's selector"
        for name in ("focus", "focus_weight", "quantiles", "temperature", "replacement")
    },
    ("delta_loss", "window_size"): "DataFlex's selector",
}
"""Other parameters that change a choice, and where their defaults come from: they were not measured."""


@dataclass(frozen=True)
class Comparison:
    """A default beside another value, over the pools in which both were measured.

    Attributes:
        pools: How many.
        auc: ``(pools, 2)`` AUC of right rows against all others: the default's, the other's.
        wrong: ``(pools, 2)`` the same against wrong answers.
        cost: Mean processor seconds of a selection, the default's and the other's.
        size: Bytes a row of the other over those of the default.
    """

    pools: int
    auc: np.ndarray[Any, np.dtype[np.float64]]
    wrong: np.ndarray[Any, np.dtype[np.float64]]
    cost: tuple[float, float]
    size: float = 1.0

    @property
    def beaten(self) -> bool:
        """Whether the other value is better by the rule above."""
        if not self.pools:
            return False
        gains = [own[:, 1] - own[:, 0] for own in (self.auc, self.wrong)]
        better = gains[0].mean() >= MARGIN or gains[1].mean() >= MARGIN_WRONG
        bearable = self.cost[1] <= DEARER * self.cost[0] and self.size <= DEARER
        return bool(better and bearable and all((gain >= 0).all() for gain in gains))


def compare(found: Mapping[Cell, Result], default: str, other: str) -> Comparison:
    """Both methods in every pool in which both made a choice with scores."""
    pools = [
        (result, counterpart)
        for cell, result in found.items()
        if cell.method == default
        and "auc" in result
        and (counterpart := found.get(Cell(other, cell.seed, cell.task, cell.budget))) is not None
        and "auc" in counterpart
    ]

    def values(key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([[own[key] for own in pair] for pair in pools], dtype=np.float64).reshape(-1, 2)

    cost = values("choice_processor").mean(axis=0).tolist() if pools else [0.0, 0.0]
    return Comparison(len(pools), values("auc"), values("auc_wrong"), (cost[0], cost[1]))


def comparisons(found: Mapping[Cell, Result]) -> Iterator[tuple[Measured, str, Comparison]]:
    """Every default beside every other value."""
    for choice in MEASURED:
        for value, method in choice.others.items():
            outcome = compare(found, choice.shipped, method)
            yield choice, value, replace(outcome, size=choice.size.get(value, 1.0))


def table(found: Mapping[Cell, Result]) -> str:
    """The defaults with the lines that they rest on, then the others with their sources."""
    measured = [_line(choice, value, outcome) for choice, value, outcome in comparisons(found)]
    heads = ("parameter", "default", "other", "pools", "AUC", "against wrong answers", "processor seconds", "so")
    return f"\n{rows(heads, measured)}\nNot measured:\n\n{rows(('parameter', 'of', 'default', 'from'), _sourced())}\n"


def _sourced() -> list[Sequence[str]]:
    """Parameters with their sources, one line for all selectors that share a default and its source."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for (name, key), why in SOURCES.items():
        lines.setdefault((key, shown(CONFIGS[name].model_fields[key]), why), []).append(name)
    return [(f"`{key}`", ", ".join(names), default, why) for (key, default, why), names in lines.items()]


def shown(field: FieldInfo) -> str:
    """A field's default as YAML shows it."""
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return ", ".join(f"{part:.4g}" for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(choice: Measured, value: str, outcome: Comparison) -> Sequence[str]:
    name = f"`{choice.component}.{choice.parameter}`"
    field = CONFIGS[choice.component].model_fields[choice.parameter]
    if not outcome.pools:
        return [name, shown(field), value, "0", "", "", "", f"no scores; {choice.why}"]
    auc, wrong = (" to ".join(f"{mean:.3f}" for mean in own.mean(axis=0)) for own in (outcome.auc, outcome.wrong))
    cost = " to ".join(f"{seconds:,.0f}" for seconds in outcome.cost)
    so = "**the other is better**" if outcome.beaten else choice.why
    return [name, shown(field), value, str(outcome.pools), auc, wrong, cost, so]
