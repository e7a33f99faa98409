"""Verifiable rewards: a metric compares the answer with a reference; no model is needed.

``metric`` is the name of a metric in :data:`METRICS`, or a function of ``(prediction, reference, metadata)`` that
returns a finite number (the reference is None where the sample has none): ``"package.module:function"``, or in Python
the function itself. The named metrics return numbers in [0, 1]. A list of metrics with weights gives their weighted
mean. A sample may carry several references in a list column (``reference_column``): the best one counts, as in SQuAD,
for each metric.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from numbers import Real
from typing import Any, ClassVar

import regex
from pydantic import Field, ValidationError, field_serializer, field_validator, model_validator

from dataflex.errors import PluginError, RewardError
from dataflex.plugins.configurable import ComponentConfig
from dataflex.plugins.registry import callable_from
from dataflex.rewards.base import Failure, RewardBackend, RewardConfig, settle
from dataflex.rewards.functions import call_problem, function_digest, function_name
from dataflex.rewards.numeric import Decimal, Percent, numeric_match
from dataflex.rewards.structured import choice_match, json_match
from dataflex.rewards.text import Normalisation, Take, exact_match, regex_match, rouge_l, token_f1
from dataflex.rewards.units import Units, quantity_match
from dataflex.types import RewardRequest

_NORMALISATION = ("casefold", "strip_punctuation", "strip_articles")


class MetricOptions(ComponentConfig):
    """Options of the named metrics; one that the chosen metric does not have is an error."""

    casefold: bool = Field(True, description="texts may differ in case")
    strip_punctuation: bool = Field(True, description="texts may differ in punctuation")
    strip_articles: bool = Field(True, description="texts may differ in a, an, the")
    contains: bool = Field(False, description="exact_match: the reference may be a phrase inside the answer")
    take: Take = Field("last", description="numeric, regex, choice: which number, match or letter of the answer counts")
    rel_tol: float = Field(1e-6, ge=0, lt=1, description="numeric, json_equal: relative tolerance")
    abs_tol: float = Field(0.0, ge=0, allow_inf_nan=False, description="numeric, json_equal: absolute tolerance")
    decimal: Decimal = Field(".", description="numeric: the decimal separator; the other one groups thousands")
    percent: Percent = Field("fraction", description="numeric: 45 % is 0.45 (fraction) or 45 (ignore)")
    units: Units = Field(
        "ignore", description="numeric: 5 km is 5000 m (convert; an answer without a unit has the reference's; require)"
    )
    pattern: str | None = Field(None, description="regex: what the answer must contain")
    group: int | str | None = Field(
        None, description="regex: the group that must equal the reference; null: the pattern is enough"
    )
    timeout: float = Field(1.0, gt=0, description="regex: longest search in an answer, in seconds")
    letters: str = Field("ABCDEFGHIJ", pattern="^[A-Z]{2,}$", description="choice: the letters that can be chosen")
    list_order: bool = Field(True, description="json_equal: whether the order of lists matters")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            regex.compile(pattern or "")
        except regex.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @property
    def rules(self) -> Normalisation:
        """How texts are normalised."""
        return Normalisation(self.casefold, self.strip_punctuation, self.strip_articles)

    @cached_property
    def compiled(self) -> regex.Pattern[str]:
        """The compiled pattern."""
        return regex.compile(self.pattern or "")


class MetricPart(MetricOptions):
    """One metric with its options, and its weight among several."""

    metric: str | Callable[..., Any] = Field(
        description="name of a metric, or a function (package.module:function) of (prediction, reference, metadata)"
    )
    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="weight in the mean of several metrics")

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str | Callable[..., Any]) -> str | Callable[..., Any]:
        if not isinstance(metric, str):
            if isinstance(metric, type) and issubclass(metric, RewardBackend):
                raise ValueError(f"{metric.__name__} is a class of reward backends, expected an object of it")
            return metric
        if metric in METRICS or metric.count(":") == 1:
            return metric
        near = difflib.get_close_matches(metric, METRICS, n=1)
        raise ValueError(
            f"unknown metric; known: {', '.join(METRICS)}, or package.module:function"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )

    @model_validator(mode="after")
    def _options_fit(self) -> MetricPart:
        unused = sorted(self.model_fields_set - {"metric", "weight", *self.chosen.options})
        if unused:
            raise ValueError(f"metric {self.label!r} has no option {', '.join(unused)}")
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
        return METRICS.get(self.metric, CALLABLE) if isinstance(self.metric, str) else CALLABLE

    @property
    def label(self) -> str:
        """What messages and stored facts call the metric."""
        return self.metric if isinstance(self.metric, str) else function_name(self.metric)

    @field_serializer("metric")
    def _written_metric(self, metric: str | Callable[..., Any]) -> str:
        return metric if isinstance(metric, str) else function_name(metric)

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function that ``metric`` is or names.

        Raises:
            PluginError: It cannot be imported, or not be called as a metric is.
        """
        function = callable_from(self.metric) if isinstance(self.metric, str) else self.metric
        problem = call_problem(function)
        if problem is not None:
            raise PluginError(f"metric {self.label!r} {problem}")
        return function


class MetricConfig(RewardConfig, MetricOptions):
    """Parameters of verifiable rewards: one metric with its options, or several with theirs."""

    metric: str | Callable[..., Any] | list[MetricPart] = Field(
        description="name of a metric, a function (package.module:function) of (prediction, reference, metadata), or a "
        "list of {metric, weight, options}, whose weighted mean is the reward"
    )
    reference_column: str | None = Field(
        None, description="column that holds the reference or a list of them; null: the sample's last assistant turn"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> MetricConfig:
        options = self.model_fields_set & set(MetricOptions.model_fields)
        if isinstance(self.metric, list) and (not self.metric or options):
            raise ValueError(
                f"with several metrics, {', '.join(sorted(options))} belongs to one of them"
                if options
                else "metric: the list is empty"
            )
        try:
            _ = self.parts
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
        return self

    @field_serializer("metric")
    def _written_metric(self, metric: str | Callable[..., Any] | list[MetricPart]) -> Any:
        if isinstance(metric, list):
            return [part.model_dump(mode="json") for part in metric]
        return metric if isinstance(metric, str) else function_name(metric)

    @cached_property
    def parts(self) -> list[MetricPart]:
        """The metrics whose weighted mean is the reward."""
        if isinstance(self.metric, list):
            return self.metric
        options = {name: getattr(self, name) for name in self.model_fields_set & set(MetricOptions.model_fields)}
        return [MetricPart(metric=self.metric, **options)]


@dataclass(frozen=True, slots=True)
class Metric:
    """A way to score one answer.

    Attributes:
        score: Function of (options, prediction, reference, metadata); it raises where the answer cannot be scored. The
            reference is None only if ``needs_reference`` allows it.
        options: Fields of :class:`MetricOptions` that it reads.
        needs_reference: Tells whether a sample without a reference can be scored with these options.
        package: Tells which package of the extra ``metrics`` these options need, if any.
    """

    score: Callable[..., float]
    options: tuple[str, ...] = ()
    needs_reference: Callable[[MetricPart], bool] = lambda config: True
    package: Callable[[MetricPart], str | None] = lambda config: None


def _exact_match(config: MetricPart, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    return exact_match(prediction, reference, config.rules, contains=config.contains)


def _token_f1(config: MetricPart, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    return token_f1(prediction, reference, config.rules)


def _rouge_l(config: MetricPart, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    return rouge_l(prediction, reference, config.rules)


def _choice(config: MetricPart, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    return choice_match(prediction, reference, letters=config.letters, take=config.take)


def _json_equal(config: MetricPart, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    return json_match(
        prediction, reference, rel_tol=config.rel_tol, abs_tol=config.abs_tol, list_order=config.list_order
    )


def _numeric(config: MetricPart, prediction: str, reference: str, metadata: Mapping[str, Any]) -> float:
    options: dict[str, Any] = {
        "take": config.take,
        "rel_tol": config.rel_tol,
        "abs_tol": config.abs_tol,
        "decimal": config.decimal,
        "percent": config.percent,
    }
    if config.units == "ignore":
        return numeric_match(prediction, reference, **options)
    return quantity_match(prediction, reference, strict=config.units == "require", **options)


def _regex(config: MetricPart, prediction: str, reference: str | None, metadata: Mapping[str, Any]) -> float:
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


def _callable(config: MetricPart, prediction: str, reference: str | None, metadata: Mapping[str, Any]) -> float:
    value = config.function(prediction, reference, metadata)
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{config.label} returned {value!r}, expected a finite number")
    return float(value)


METRICS: dict[str, Metric] = {
    "exact_match": Metric(_exact_match, (*_NORMALISATION, "contains")),
    "choice": Metric(_choice, ("letters", "take")),
    "numeric": Metric(
        _numeric,
        ("take", "rel_tol", "abs_tol", "decimal", "percent", "units"),
        package=lambda config: None if config.units == "ignore" else "pint",
    ),
    "json_equal": Metric(_json_equal, ("rel_tol", "abs_tol", "list_order")),
    "regex": Metric(
        _regex, (*_NORMALISATION, "pattern", "group", "take", "timeout"), lambda config: config.group is not None
    ),
    "rouge_l": Metric(_rouge_l, ("casefold", "strip_punctuation"), package=lambda config: "rapidfuzz"),
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
        """Import the functions and packages that the metrics need.

        Raises:
            PluginError: A function cannot be imported.
            RewardError: A package is missing.
        """
        for part in self.config.parts:
            if part.chosen is CALLABLE:
                _ = part.function
            package = part.chosen.package(part)
            if package is not None and find_spec(package) is None:
                raise RewardError(
                    f"metric {part.label!r} needs a package that is not installed: {package}",
                    hint='pip install "dataflex-sdk[metrics]"',
                )

    def facts(self) -> dict[str, Any]:
        """Name, parameters and what the functions are; see :meth:`RewardBackend.facts`."""
        functions = [function_digest(part.function) for part in self.config.parts if part.chosen is CALLABLE]
        return {**super().facts(), **({"functions": functions} if functions else {})}

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`RewardBackend.score`.

        An answer cannot be scored if its sample lacks the reference that a metric needs, if a pattern takes too long,
        or if a function fails: one metric that fails among several fails the answer.

        Raises:
            PluginError: A function cannot be imported.
            RewardError: A package is missing, or an answer could not be scored and ``on_error`` is ``raise``.
        """
        self.check()
        with self._stats.timed():
            outcomes = [self._outcome(request) for request in requests]
        return settle(outcomes, requests, backend=self.name, on_error=self.config.on_error, stats=self._stats)

    def _outcome(self, request: RewardRequest) -> float | Failure:
        references = self._references(request)
        total, weights = 0.0, 0.0
        for part in self.config.parts:
            if not references and part.chosen.needs_reference(part):
                return Failure(
                    f"no reference ({self.config.reference_column or 'the sample has no assistant turn with text'})"
                )
            try:
                best = max(
                    part.chosen.score(part, request.prediction, reference, request.metadata)
                    for reference in references or [None]
                )
            except Exception as error:  # a user's function may raise anything
                return Failure(f"{type(error).__name__}: {error}", error)
            total, weights = total + part.weight * best, weights + part.weight
        return total / weights

    def _references(self, request: RewardRequest) -> Sequence[str | None]:
        column = self.config.reference_column
        value = request.reference if column is None else request.metadata.get(column)
        values = value if isinstance(value, list | tuple) else [value]
        return [str(item) for item in values if item is not None and str(item).strip()]
