"""What is right and wrong with a run before it starts: ``dataflex doctor CONFIG``.

Nothing is trained and no weights are loaded: the model is looked at by its shapes, the data by up to
:data:`dataflex.doctor.look.ROWS` rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dataflex.config import RunConfig, load_config
from dataflex.config.values import COMPONENT_KINDS
from dataflex.data.templates import ChatTemplate
from dataflex.doctor.bounds import bounds_checks
from dataflex.doctor.check import Check, attempt
from dataflex.doctor.fit import Outline, disk_checks, memory_check, outline
from dataflex.doctor.look import Look, learnt_tokens, look
from dataflex.doctor.plan import mixture_text, run_phases, schedule_check, weights_text
from dataflex.doctor.preview import marked
from dataflex.errors import ConfigError, DataflexError
from dataflex.models.model import load_tokenizer
from dataflex.rewards.base import RewardBackend
from dataflex.selectors.base import Selector
from dataflex.training.component import Component
from dataflex.training.folder import check_output_dir
from dataflex.training.run import build_component, load_rows, training_arguments
from dataflex.types import Sample

TRAINING, EVALUATION = "training set", "evaluation set"
SHOWN = 160
"""Characters of the row that a check shows."""
MANY = 0.1
"""Share of rows that are cut or have no label from which on a dataset is worth a warning."""


@dataclass(frozen=True, slots=True)
class _Data:
    """The rows of the run and what was seen of them."""

    training: Sequence[Sample]
    evaluation: Sequence[Sample] | None
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    looks: dict[str, Look]

    @property
    def longest(self) -> int:
        """Tokens of the longest training row that was looked at."""
        return max(self.looks[TRAINING].lengths)

    @property
    def rows(self) -> tuple[int, int]:
        return len(self.training), len(self.evaluation or ())


def diagnose_file(config: str | Path, overrides: Sequence[str] = ()) -> list[Check]:
    """Read a configuration and check its run; every problem of the file is a check that failed."""
    try:
        run = load_config(config, overrides, check_component=True)
    except ConfigError as error:
        return [Check("configuration", "fail", problem, error.hint) for problem in error.problems]
    return list(diagnose_run(run))


def diagnose_run(config: RunConfig) -> Iterator[Check]:
    """Check a run; none of the checks raises for what it finds, and each runs as far as those before it allow."""
    yield from _configuration(config)
    yield _output_dir(config)
    component = yield from _component(config)
    selector = component.selector
    try:
        yield from _reward(selector)
        data = yield from _data(config)
        if data is None:
            return
        phases = run_phases(config, len(data.training))
        yield schedule_check(config, phases, len(data.training))
        if component.mixer is not None:
            mixer = component.mixer
            yield from attempt("mixture", lambda: mixture_text(config, mixer, data.training, phases), str)
        if component.weighter is not None:
            yield Check("weights", "pass", weights_text(config, component.weighter, phases[-1].stop))
        if selector is not None and type(selector).check_data is not Selector.check_data:
            rows = data.training
            yield from attempt("candidates", lambda: selector.check_data(rows), lambda _: "they fit the selector")
        name = config.model_name_or_path
        found = yield from attempt("model", lambda: outline(config, data.longest), _described(name))
        if found is not None:
            yield from bounds_checks(config, found.bounds, data.tokenizer, data.template, data.looks, selector)
            yield memory_check(config, found, data.longest, selector, data.rows[1])
            yield from disk_checks(config, found, data.rows, phases, selector)
    finally:
        if component.found is not None:
            component.found.close()


def _configuration(config: RunConfig) -> Iterator[Check]:
    warnings = config.warnings()
    yield Check("configuration", "pass", f"{len(config.model_fields_set)} keys, {len(warnings)} warnings")
    for warning in warnings:
        yield Check("configuration", "warn", warning, "remove the key, or what keeps it from acting")


def _output_dir(config: RunConfig) -> Check:
    try:
        settings = training_arguments(config)
        check_output_dir(settings)
    except DataflexError as error:
        return Check("output folder", "fail", error.message, error.hint)
    folder = settings.output_dir
    if not (folder.is_dir() and any(folder.iterdir())):
        return Check("output folder", "pass", str(folder))
    then = "goes on from its last checkpoint" if config.resume_from_checkpoint else "starts over"
    return Check("output folder", "pass", f"{folder}, not empty: the run {then}")


def _component(config: RunConfig) -> Generator[Check, None, Component]:
    """The selector, mixer or weighter; nothing where it cannot be built, or there is none."""
    if config.train_type == "static":
        return Component()
    kind, name = COMPONENT_KINDS[config.train_type], config.component_name or "static"
    return (yield from attempt(kind, lambda: build_component(config), lambda built: name)) or Component()


def _reward(selector: Selector[Any] | None) -> Iterator[Check]:
    """A selector's reward backend, where it has one that will be asked."""
    if selector is None or getattr(selector.config, "replay_rewards", None) is not None:
        return
    reward = getattr(selector, "reward", None)
    if isinstance(reward, RewardBackend):
        yield from attempt("reward", reward.check, lambda _: f"{reward.name} is ready")


def _data(config: RunConfig) -> Generator[Check, None, _Data | None]:
    """Tokenizer, template, rows and labels."""
    place = config.model_name_or_path
    tokenizer = yield from attempt(
        "tokenizer",
        lambda: load_tokenizer(config.locate(place), trust_remote_code=config.trust_remote_code),
        lambda loaded: f"{len(loaded):,} tokens",
    )
    rows = yield from attempt("rows", lambda: load_rows(config), _counted)
    if tokenizer is None or rows is None:
        return None
    template = yield from attempt(
        "template", lambda: ChatTemplate.load(config.template, tokenizer), lambda loaded: loaded.name
    )
    if template is None:
        return None
    training, evaluation = rows
    seen = {TRAINING: (yield from _labels(TRAINING, training, template, config, tokenizer))}
    if evaluation:
        seen[EVALUATION] = yield from _labels(EVALUATION, evaluation, template, config, None)
    looks = {name: found for name, found in seen.items() if found is not None}
    return _Data(training, evaluation, tokenizer, template, looks) if TRAINING in looks else None


def _counted(rows: tuple[Sequence[Sample], Sequence[Sample] | None]) -> str:
    training, evaluation = rows
    held_out = "none" if evaluation is None else f"{len(evaluation):,}"
    return f"{len(training):,} for training, {held_out} for evaluation"


def _labels(
    name: str,
    samples: Sequence[Sample],
    template: ChatTemplate,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Generator[Check, None, Look | None]:
    """The counts of a set and, with a tokenizer, the end of a row with what is learnt in brackets."""
    seen = yield from attempt(
        name, lambda: look(samples, template, config.cutoff_len), lambda found: "\n".join(found.counts())
    )
    if seen is None:
        return None
    rows = len(seen.samples)
    if tokenizer is not None:
        yield from _learnt(seen, tokenizer)
    if len(seen.truncated) > MANY * rows:
        fix = f"raise cutoff_len above {config.cutoff_len}, or leave long rows out of the data"
        yield Check(name, "warn", f"{len(seen.truncated):,} of {rows:,} rows lose tokens to cutoff_len", fix)
    for line in seen.warnings():
        yield Check(name, "warn", line, "correct or remove the rows, or choose another template, if that is not meant")
    return seen


def _learnt(seen: Look, tokenizer: PreTrainedTokenizerBase) -> Iterator[Check]:
    rows = len(seen.samples)
    learnable = [row for row in seen.encoded if learnt_tokens(row)]
    if not learnable:
        fix = "map the column of the answers in dataset_info.json; `dataflex preview` shows the rows"
        yield Check("labels", "fail", f"none of {rows:,} rows has a token to learn", fix)
        return
    text = marked(learnable[0], tokenizer, colour=False)
    yield Check("labels", "pass", text if len(text) <= SHOWN else f"... {text[-SHOWN:]}")
    if len(seen.unlabelled) > MANY * rows:
        fix = "`dataflex preview` shows rows; answers may be empty or in a column that is not mapped"
        yield Check("labels", "warn", f"{len(seen.unlabelled):,} of {rows:,} rows have no token to learn", fix)


def _described(name: str) -> Callable[[Outline], str]:
    def describe(found: Outline) -> str:
        share = found.trainable / found.parameters
        return f"{name}: {found.parameters:,} parameters, {found.trainable:,} of them trained ({share:.2%})"

    return describe
