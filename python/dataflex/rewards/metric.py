"""Verifiable rewards: a metric compares the answer with a reference; no model is needed.

``metric`` is the name of a metric in :data:`METRICS`, or ``"package.module:function"``, a function of
``(prediction, reference, metadata)`` that returns a finite number (the reference is None where the sample has none).
The named metrics return numbers in [0, 1]. A sample may carry several references in a list column
(``reference_column``): the best one counts, as in SQuAD.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, ClassVar

import regex
from pydantic import Field, field_validator, model_validator

from dataflex.plugins import callable_from
from dataflex.rewards.base import Failure, RewardBackend, RewardConfig, settle
from dataflex.rewards.numeric import Decimal, Percent, numeric_match
from dataflex.rewards.text import Normalisation, Take, exact_match, regex_match, token_f1
from dataflex.types import RewardRequest

_NORMALISATION = ("casefold", "strip_punctuation", "strip_articles")


class MetricConfig(RewardConfig):
    """Parameters of verifiable rewards; an option that the chosen metric does not have is an error."""

    metric: str = Field(description="name of a metric, or package.module:function(prediction, reference, metadata)")
    reference_column: str | None = Field(
        None, description="column that holds the reference or a list of them; null: the sample's last assistant turn"
    )
    casefold: bool = Field(True, description="texts may differ in case")
    strip_punctuation: bool = Field(True, description="texts may differ in punctuation")
    strip_articles: bool = Field(True, description="texts may differ in a, an, the")
    contains: bool = Field(False, description="exact_match: the reference may be a phrase inside the answer")
    take: Take = Field("last", description="numeric, regex: which number or match of the answer counts")
    rel_tol: float = Field(1e-6, ge=0, lt=1, description="numeric: relative tolerance")
    abs_tol: float = Field(0.0, ge=0, allow_inf_nan=False, description="numeric: absolute tolerance")
    decimal: Decimal = Field(".", description="numeric: the decimal separator; the other one groups thousands")
    percent: Percent = Field("fraction", description="numeric: 45 % is 0.45 (fraction) or 45 (ignore)")
    pattern: str | None = Field(None, description="regex: what the answer must contain")
    group: int | str | None = Field(
        None, description="regex: the group that must equal the reference; null: the pattern is enough"
    )
    timeout: float = Field(1.0, gt=0, description="regex: longest search in an answer, in seconds")

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        if metric in METRICS or metric.count(":") == 1:
            return metric
        near = difflib.get_close_matches(metric, METRICS, n=1)
        raise ValueError(
            f"unknown metric; known: {', '.join(METRICS)}, or package.module:function"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            regex.compile(pattern or "")
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _options_fit(self) -> MetricConfig:
        known = {"metric", "reference_column", *RewardConfig.model_fields, *self.chosen.options}
        unused = sorted(self.model_fields_set - known)
        if unused:
            raise ValueError(f"metric {self.metric!r} has no option {', '.join(unused)}")
        if self.metric == "regex":
            self._check_group()
        return self

    def _check_group(self) -> None:
        if self.pattern is None:
            raise ValueError("metric 'regex' needs a pattern")
        compiled = self.compiled
        if self.group is not None and self.group not in {*range(compiled.groups + 1), *compiled.groupindex}:
            raise ValueError(f"the pattern has no group {self.group!r}")

    @property
    def chosen(self) -> Metric:
        """The metric that ``metric`` names."""
        return METRICS.get(self.metric, CALLABLE)

    @property
    def rules(self) -> Normalisation:
        """How texts are normalised."""
        return Normalisation(self.casefold, self.strip_punctuation, self.strip_articles)

    @cached_property
    def compiled(self) -> regex.Pattern[str]:
        """The compiled pattern."""
        return regex.compile(self.pattern or "")

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function that ``metric`` names.

        Raises:
            PluginError: It cannot be imported.
        """
        return callable_from(self.metric)


@dataclass(frozen=True, slots=True)
class Metric:
    """A way to score one answer.

    Attributes:
        score: Function of (config, prediction, reference, metadata); it raises where the answer cannot be scored. The
            reference is None only if ``needs_reference`` allows it.
        options: Fields of :class:`MetricConfig` that it reads.
        needs_reference: Tells whether a sample without a reference can be scored with this configuration.
    """

    score: Callable[..., float]
    options: tuple[str, ...] = ()
    needs_reference: Callable[[MetricConfig], bool] = lambda config: True


def _exact_match(config: MetricConfig, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    return exact_match(prediction, reference, config.rules, contains=config.contains)


def _token_f1(config: MetricConfig, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    return token_f1(prediction, reference, config.rules)


def _numeric(config: MetricConfig, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    return numeric_match(
        prediction,
        reference,
        take=config.take,
        rel_tol=config.rel_tol,
        abs_tol=config.abs_tol,
        decimal=config.decimal,
        percent=config.percent,
    )


def _regex(config: MetricConfig, prediction: str, reference: str | None, metadata: Mapping[str, Any]) -> float:
    try:
        return regex_match(
            prediction,
            config.compiled,
            group=config.group,
            reference=reference,
            take=config.take,
            timeout=config.timeout,
            rules=config.rules,
        )
    except TimeoutError:
        raise TimeoutError(f"the pattern took more than {config.timeout:g} s (timeout)") from None


def _callable(config: MetricConfig, prediction: str, reference: str | None, metadata: Mapping[str, Any]) -> float:
    value = config.function(prediction, reference, metadata)
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{config.metric} returned {value!r}, expected a finite number")
    return float(value)


METRICS: dict[str, Metric] = {
    "exact_match": Metric(_exact_match, (*_NORMALISATION, "contains")),
    "numeric": Metric(_numeric, ("take", "rel_tol", "abs_tol", "decimal", "percent")),
    "regex": Metric(
        _regex, (*_NORMALISATION, "pattern", "group", "take", "timeout"), lambda config: config.group is not None
    ),
    "token_f1": Metric(_token_f1, _NORMALISATION),
}
"""The metrics that a configuration can name."""

CALLABLE = Metric(_callable, needs_reference=lambda config: False)


class MetricReward(RewardBackend[MetricConfig]):
    """Scores answers against references.

    Example:
        >>> MetricReward(metric="exact_match").score([RewardRequest("0", (), "It's Paris.", "Paris")])
        [0.0]
        >>> MetricReward(metric="exact_match", contains=True).score([RewardRequest("0", (), "It's Paris.", "Paris")])
        [1.0]
    """

    name: ClassVar[str] = "metric"
    Config = MetricConfig

    def check(self) -> None:
        """Import the function, if the metric is one.

        Raises:
            PluginError: It cannot be imported.
        """
        if self.config.chosen is CALLABLE:
            _ = self.config.function

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`RewardBackend.score`.

        An answer cannot be scored if its sample lacks the reference that the metric needs, if a pattern takes too
        long, or if the function fails.

        Raises:
            PluginError: The function cannot be imported.
        """
        self.check()
        with self._stats.timed():
            outcomes = [self._outcome(request) for request in requests]
        return settle(outcomes, requests, backend=self.name, on_error=self.config.on_error, stats=self._stats)

    def _outcome(self, request: RewardRequest) -> float | Failure:
        config, metric = self.config, self.config.chosen
        references = self._references(request)
        if not references and metric.needs_reference(config):
            return Failure(f"no reference ({config.reference_column or 'the sample has no assistant turn with text'})")
        try:
            return max(
                metric.score(config, request.prediction, reference, request.metadata)
                for reference in references or [None]
            )
        except Exception as error:  # a user's function may raise anything
            return Failure(f"{type(error).__name__}: {error}", error)

    def _references(self, request: RewardRequest) -> Sequence[str | None]:
        column = self.config.reference_column
        value = request.reference if column is None else request.metadata.get(column)
        values = value if isinstance(value, list | tuple) else [value]
        return [str(item) for item in values if item is not None and str(item).strip()]
