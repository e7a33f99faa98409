"""Base model and adapters side by side on an evaluation set: loss and metric, with bootstrap confidence intervals.

Rows are drawn again with replacement (Efron 1979), the same draws for every model: a model's interval is over its own
values, the interval of a difference over the paired differences (Koehn 2004), which is narrower where models find the
same rows hard. A loss is the ratio of two sums over the drawn rows, nats and tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dataflex.config import RunConfig
from dataflex.config.values import LOSS
from dataflex.data.dataset import TokenizedDataset, tokenize
from dataflex.data.templates import ChatTemplate
from dataflex.errors import ConfigError, ModelError, TrainingError
from dataflex.models.adapters import adapter_folder, load_adapter
from dataflex.models.model import load_model, load_tokenizer, to_device
from dataflex.offline.context import autocast_for
from dataflex.rollouts import Rollout
from dataflex.rollouts.file import readable_answers, readable_line
from dataflex.training.evaluation import AnswerMetric, Evaluator
from dataflex.training.preflight import model_findings
from dataflex.training.run import evaluation_samples, quantization
from dataflex.types import Sample
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import write_text
from dataflex.utils.launch import process_count

BASE = "base"
CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 100
"""Bootstrap draws of one matrix product: 100 x q counts."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def text(self, *, signed: bool = False) -> str:
        """``0.512 [0.40, 0.62]``, with a sign for a difference."""
        first = f"{self.value:+.4f}" if signed else f"{self.value:.4f}"
        return f"{first} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, slots=True)
class Ratios:
    """Per evaluation sample, what a mean is made of: ``(q,)`` numerators and denominators, both 0 where it is missing.

    Attributes:
        numerators: Nats of a loss, rewards of a metric.
        denominators: Label tokens of a loss, 1 for a metric.
    """

    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]

    @property
    def value(self) -> float:
        """The mean over all samples."""
        return float(self.numerators.sum() / self.denominators.sum())


@dataclass(frozen=True, slots=True)
class Scored:
    """One model on the evaluation set.

    Attributes:
        name: ``base`` or the adapter.
        ratios: Per quantity (``eval_loss``, ``eval_exact_match``, ...), its parts.
        answers: What the model answered, with rewards; empty without a metric.
    """

    name: str
    ratios: Mapping[str, Ratios]
    answers: list[Rollout] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Result:
    """One model's estimates, and their differences to the first model's (empty for that one)."""

    name: str
    estimates: dict[str, Estimate]
    differences: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        dataset: Names of the evaluation data.
        samples: q.
        resamples: Bootstrap draws.
        results: One a model, the base model first.
        scored: What the estimates were made from.
        rows: The q evaluation samples.
    """

    dataset: str
    samples: int
    resamples: int
    results: list[Result]
    scored: list[Scored] = field(repr=False)
    rows: Sequence[Sample] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the single answers."""
        return {
            "dataset": self.dataset,
            "samples": self.samples,
            "confidence": CONFIDENCE,
            "resamples": self.resamples,
            "models": [asdict(result) for result in self.results],
        }

    def lines(self) -> list[str]:
        """A table: a row a model, a column a quantity and its difference to the base model."""
        keys = list(self.results[0].estimates)
        head = ["model", *(name for key in keys for name in (key, f"{key} - {self.results[0].name}"))]
        rows = [head]
        for result in self.results:
            cells = [result.name]
            for key in keys:
                difference = result.differences.get(key)
                cells += [result.estimates[key].text(), "" if difference is None else difference.text(signed=True)]
            rows.append(cells)
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        intervals = f"{CONFIDENCE:.0%} intervals, {self.resamples:,} draws"
        note = f"{self.samples:,} rows of {self.dataset}; in brackets: {intervals}"
        return [*table, note]

    def write_answers(self, path: Path) -> None:
        """Write every model's answers as JSON Lines that can be read by themselves.

        A line has ``model``, ``sample_id``, ``prompt`` (its turns), ``reference``, ``text``, ``reward``, ``finished``.
        """
        keys = ("sample_id", "prompt", "reference", "text", "reward", "finished")
        lines = [
            readable_line({"model": scored.name, **{key: answer[key] for key in keys}})
            for scored in self.scored
            if scored.answers
            for answer in readable_answers(scored.answers, self.rows)
        ]
        write_text(path, "".join(lines))


def compare(config: RunConfig, trained: Sequence[str], *, resamples: int = 1000) -> Comparison:
    """Evaluate the base model of a run, and each adapter on it or model that was trained whole.

    Args:
        config: A training run: its base model, evaluation data, template, precision and ``eval_metric`` are used.
        trained: Folders or hub ids of adapters, or folders of models.
        resamples: Bootstrap draws.

    Raises:
        ConfigError: The run has no evaluation data.
        ModelError: A model or adapter cannot be loaded, or has no room for a row.
        TrainingError: There is nothing to compare: no reference answers and no metric.
        RewardError: An answer could not be scored.
    """
    if process_count() > 1:
        raise TrainingError("several processes were started; models are compared in a single one")
    for name in trained:  # before the base model is evaluated
        if not is_whole_model(config.locate(name)):
            adapter_folder(config.locate(name))
    tokenizer = load_tokenizer(config.locate(config.model_name_or_path), trust_remote_code=config.trust_remote_code)
    template = ChatTemplate.load(config.template, tokenizer)
    samples = evaluation_samples(config)
    if samples is None:
        raise ConfigError(config.origin.about("eval_dataset", "there is nothing to evaluate on; set it, or val_size"))
    metric = AnswerMetric.from_params(
        config.eval_metric, max_new_tokens=config.eval_max_new_tokens, max_prompt_length=config.cutoff_len
    )
    if metric is not None:
        metric.check(samples)
    dataset = tokenize(samples, template, config.cutoff_len, keep_unlabelled=True, name="evaluation set")
    scored = _evaluate_all(config, trained, tokenizer, template, dataset, metric)
    results = estimates(scored, resamples=resamples, seed=config.seed)
    name = ", ".join(config.eval_dataset or [f"{config.val_size:g} of {', '.join(config.dataset)}"])
    return Comparison(name, len(dataset), resamples, results, scored, dataset.samples)


def _evaluate_all(
    config: RunConfig,
    trained: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    dataset: TokenizedDataset,
    metric: AnswerMetric | None,
) -> list[Scored]:
    """The base model, then every trained one: adapters on it, and whole models."""

    def load(name: str) -> PreTrainedModel:
        model = load_model(
            config.locate(name),
            precision=config.precision,
            trust_remote_code=config.trust_remote_code,
            quantization=quantization(config),
        )
        if torch.cuda.is_available():
            to_device(model, "cuda")
        return model

    model = load(config.model_name_or_path)
    model_findings(model, tokenizer, template, None, dataset, metric).raise_or_warn()

    def scored(name: str, current: nn.Module) -> Scored:
        autocast = autocast_for(current, config.precision)
        evaluator = Evaluator(
            current, tokenizer, template, dataset, config.per_device_eval_batch_size, autocast, Ranks(), metric
        )
        return _scored(name, evaluator)

    found = [scored(BASE, model)]
    for name in trained:
        if is_whole_model(config.locate(name)):
            found.append(scored(name, load(name)))
            continue
        adapted = load_adapter(model, config.locate(name), trainable=False)
        found.append(scored(name, adapted))
        model = cast(PreTrainedModel, adapted.unload())
    return found


def _scored(name: str, evaluator: Evaluator) -> Scored:
    ratios: dict[str, Ratios] = {}
    losses = evaluator.losses()
    if any(loss is not None for loss in losses):
        pairs = [(0.0, 0) if loss is None else (loss.total, loss.tokens) for loss in losses]
        ratios[LOSS] = _ratios(pairs)
    answers = evaluator.answers() if evaluator.metric is not None else []
    if evaluator.metric is not None and any(answer.reward is not None for answer in answers):
        pairs = [(0.0, 0) if answer.reward is None else (answer.reward, 1) for answer in answers]
        ratios[evaluator.metric.key] = _ratios(pairs)
    if not ratios:
        raise TrainingError(
            "no evaluation sample has a reference answer, and there is no metric", hint="eval_metric=..."
        )
    return Scored(name, ratios, answers)


def _ratios(pairs: Sequence[tuple[float, int]]) -> Ratios:
    numerators, denominators = np.array(pairs, dtype=np.float64).T  # (q,) each
    return Ratios(numerators, denominators)


def estimates(scored: Sequence[Scored], *, resamples: int, seed: int) -> list[Result]:
    """Values with intervals for each model, and paired differences to the first.

    Args:
        scored: Models on the same q samples, with the same quantities.
        resamples: Bootstrap draws B.
        seed: Seed of the draws.
    """
    drawn = [_draws(each, resamples, seed) for each in scored]  # per model and quantity: (B,)
    results = []
    for number, each in enumerate(scored):
        own = {key: _estimate(ratios.value, drawn[number][key]) for key, ratios in each.ratios.items()}
        differences = {
            key: _estimate(ratios.value - scored[0].ratios[key].value, drawn[number][key] - drawn[0][key])
            for key, ratios in each.ratios.items()
            if number and key in scored[0].ratios
        }
        results.append(Result(each.name, own, differences))
    return results


def _draws(scored: Scored, resamples: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """The mean of every quantity in each draw, ``(B,)``; the draws depend on seed and q alone."""
    size = len(next(iter(scored.ratios.values())).numerators)
    stream = np.random.default_rng([seed, 3])
    parts: dict[str, list[NDArray[np.float64]]] = {key: [] for key in scored.ratios}
    for start in range(0, resamples, _DRAWS_AT_ONCE):
        count = min(_DRAWS_AT_ONCE, resamples - start)
        times = stream.multinomial(size, np.full(size, 1 / size), size=count).astype(np.float64)  # (draws, q)
        for key, ratios in scored.ratios.items():
            with np.errstate(invalid="ignore"):  # 0 / 0: a draw of rows that all lack the quantity
                parts[key].append((times @ ratios.numerators) / (times @ ratios.denominators))
    return {key: np.concatenate(values) for key, values in parts.items()}


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def is_whole_model(folder: str) -> bool:
    """Whether a folder holds a model that was trained without an adapter."""
    return (Path(folder) / "config.json").is_file() and not (Path(folder) / "adapter_config.json").is_file()


def default_trained(config: RunConfig) -> list[str]:
    """The adapter or model that the run left in its output folder, or the adapter that it starts from.

    Raises:
        ModelError: There is neither.
    """
    if (Path(config.output_dir) / "adapter_config.json").is_file() or is_whole_model(config.output_dir):
        return [config.output_dir]
    if config.adapter_name_or_path is not None:
        return [config.adapter_name_or_path]
    raise ModelError(
        f"output_dir {config.output_dir} holds nothing trained yet", hint="name adapters with --adapter, or --base-only"
    )
