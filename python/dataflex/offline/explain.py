"""Why a row has its score: the targets that pull it, and the rows that are most like it.

The files of a run hold the scores (:mod:`dataflex.report.explain`). What each target adds to one is not kept, since
that would be n x q numbers: it is computed again for the rows that are asked about, by one pass over the targets with
the model as it was at the selection, from the run's own configuration, checkpoint and answers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.config import RunConfig, load_config, validate_component
from dataflex.curriculum.text_groups import most_similar, text_of
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import ConfigError, DataError, DataflexError, SelectionError
from dataflex.gradients.exact import sketch_projector
from dataflex.gradients.pulls import MOST_VALUES, score_parts, target_cosines
from dataflex.models.model import load_tokenizer, to_device, trainable_parameters
from dataflex.offline.api import checked_context
from dataflex.offline.context import build_context
from dataflex.offline.work import dated_template
from dataflex.report.explain import RowStory, find_rows, row_stories
from dataflex.report.read import RunReport, SelectionFile, read_report
from dataflex.report.table import Column, Sheet, score_text
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient import GradientSelector
from dataflex.training.run import build_model, load_datasets
from dataflex.training.trainer import Trainer
from dataflex.types import group_names
from dataflex.utils.distributed import Ranks
from dataflex.utils.home import home_path
from dataflex.utils.progress import Stopwatch

logger = logging.getLogger(__name__)

SHOWN_TARGETS, SHOWN_NEIGHBOURS = 5, 5
"""Targets of either end, and rows most like a row, that a table lists."""


def explain(
    place: str | Path,
    rows: Sequence[str | int] = (),
    *,
    top: int = 0,
    lowest: int = 0,
    step: int | None = None,
    targets: bool = True,
    trainer: Trainer | None = None,
) -> list[RowStory]:
    """Say of some rows how they were scored at each selection, which targets pull them, and what is most like them.

    The targets need the model: they are computed from the run's ``config.yaml``, the checkpoint of the selection and,
    for NICE, its answers. The configuration of a run from Python names no data: pass its ``trainer``. Nothing is drawn,
    nobody is asked for a reward, and nothing in the run's folder is changed.

    Args:
        place: The ``output_dir`` of a run, or a subset of ``dataflex select``.
        rows: Ids of rows, or their positions among the candidates.
        top: Explain so many of the best of the chosen too.
        lowest: Explain so many rows of the lowest scores too.
        step: The selection made after so many steps; None: the last.
        targets: Compute what the targets add; False: what the files tell.
        trainer: The trainer of the run, or one that is built like it; its model is left as it is.

    Returns:
        A story a row; what could not be said, and why, is in its ``unknown``.

    Raises:
        DataError: There is no selection, no such row, or the folder is no run.

    Example:
        >>> best, worst = explain("output/quickstart", top=1, lowest=1)  # doctest: +SKIP
        >>> best.tables["targets"].to_pandas()  # doctest: +SKIP
    """
    report = read_report(home_path(place))
    selection = _selection(report, step)
    places = find_rows(selection, [str(row) for row in rows], top, lowest)
    if not places:
        raise DataError("no row to explain is named", hint="name its id, or ask for the best (--top 3)")
    stories = row_stories(report, places)
    if not targets:
        return stories
    try:
        with _at_selection(report, selection, trainer) as (selector, context):
            _check_rows(selection, context.train_dataset, places)
            stories = [_with_texts(story, selection, context.train_dataset) for story in stories]
            found = _targets(selector, context, selection, places)
    except DataflexError as error:
        reason = f"the targets that pull it are not known: {error.message}"
        return [replace(story, unknown=[reason]) for story in stories]
    return [
        replace(story, sheets={"scores": story.sheets["scores"], "targets": sheet, **story.sheets})
        for story, sheet in zip(stories, found, strict=True)
    ]


def _selection(report: RunReport, step: int | None) -> SelectionFile:
    if not report.selections:
        raise DataError(f"{report.name} has no selection to explain")
    if step is None:
        return report.selections[-1]
    for selection in report.selections:
        if selection.step == step:
            return selection
    steps = ", ".join(str(selection.step) for selection in report.selections)
    raise DataError(f"{report.name} has no selection at step {step}", hint=f"there are selections at {steps}")


@contextmanager
def _at_selection(
    report: RunReport, selection: SelectionFile, trainer: Trainer | None
) -> Iterator[tuple[GradientSelector[Any], SelectionContext]]:
    """The selector and its context as they were at a selection; files go to a temporary folder.

    Raises:
        DataflexError: The run cannot be brought back to there, or its selector compares no gradients.
    """
    file = report.output_dir / "config.yaml"
    checkpoint = report.output_dir / f"checkpoint-{selection.step}"
    if not report.trained or (trainer is None and not file.is_file()):
        raise SelectionError(f"there is no {file.name} in {report.output_dir}")
    if not checkpoint.is_dir():
        raise SelectionError(f"{checkpoint.name}, the model of that selection, was not kept", hint="save_total_limit")
    if trainer is None:
        config = _configuration(file)
        selector, build = _configured(config, report), partial(_context, config)
    else:
        selector, build = _of_trainer(trainer, report), partial(_same_context, trainer)
    with tempfile.TemporaryDirectory() as folder:
        try:
            logger.info("what each target adds takes a pass over all of them with the model of %s", checkpoint.name)
            with checked_context(selector, build(Path(folder)), checkpoint) as found:
                yield selector, found
        finally:
            selector.close()


def _configuration(file: Path) -> RunConfig:
    try:
        return load_config(file)
    except ConfigError as error:
        first = error.message.split("\n")[0]
        raise SelectionError(f"{first}; a run from Python is told by explain(..., trainer=trainer)") from error


def _configured(config: RunConfig, report: RunReport) -> GradientSelector[Any]:
    """The selector of a run's configuration."""
    spec = config.component()
    return _replaying(validate_component(spec), spec.params, report)


def _of_trainer(trainer: Trainer, report: RunReport) -> GradientSelector[Any]:
    """The selector of a run's trainer."""
    if trainer.selector is None:
        raise SelectionError("the trainer has no selector")
    given = trainer.selector.config
    params = {name: getattr(given, name) for name in given.model_fields_set}
    return _replaying(type(trainer.selector), params, report)


def _replaying(kind: type[Any], params: Mapping[str, Any], report: RunReport) -> GradientSelector[Any]:
    """A selector that takes its answers and rewards from the run's folder."""
    params = dict(params)
    if not issubclass(kind, GradientSelector):
        raise SelectionError(f"{kind.name} compares no gradients: its scores are no sums over targets")
    kept = params.pop("cache_dir", None)
    if "replay_rewards" in kind.Config.model_fields:
        params["replay_rewards"] = params.get("replay_rewards") or kept or report.output_dir
    return kind.from_params(params)


def _context(config: RunConfig, folder: Path) -> SelectionContext:
    ranks = Ranks()
    tokenizer = load_tokenizer(config.locate(config.model_name_or_path), trust_remote_code=config.trust_remote_code)
    template = dated_template(config.template, tokenizer, None, ranks)
    training, evaluation = load_datasets(config, template)
    model = build_model(config).eval()
    return build_context(
        to_device(model, "cuda") if torch.cuda.is_available() else model,
        tokenizer,
        template,
        training,
        evaluation,
        num_samples=1,
        seed=config.seed,
        output_dir=folder,
        precision=config.precision,
        ranks=ranks,
    )


def _same_context(trainer: Trainer, folder: Path) -> SelectionContext:
    """The context of a trainer's selections."""
    mixed = trainer.args.mixed_precision
    return build_context(
        trainer.model,
        trainer.tokenizer,
        trainer.template,
        trainer.train_dataset,
        trainer.eval_dataset,
        num_samples=1,
        seed=trainer.args.seed,
        output_dir=folder,
        precision="fp32" if mixed == "no" else mixed,
        ranks=Ranks(),
    )


def _check_rows(selection: SelectionFile, dataset: TokenizedDataset, places: Sequence[int]) -> None:
    """Raise SelectionError unless the data still holds the rows that were scored."""
    ids = selection.texts("id")
    same = len(dataset) == len(selection.chosen)
    if not same or any(dataset[place].sample.id != ids[place] for place in places):
        raise SelectionError("the data has changed since the run: its rows are other ones")


def _with_texts(story: RowStory, selection: SelectionFile, dataset: TokenizedDataset) -> RowStory:
    """The row's own texts, and the rows whose words are most like its."""
    sample = dataset[story.place].sample
    texts = {"prompt": sample.prompt[-1]["content"] if sample.prompt else "", "answer": sample.reference or ""}
    ids = selection.texts("id")
    rows = [
        (
            ids[place] or str(place),
            likeness,
            text_of(dataset[place].sample),
            _finite(selection.scores[place]),
            "yes" if selection.chosen[place] else "no",
        )
        for place, likeness in most_similar(dataset, story.place, SHOWN_NEIGHBOURS)
    ]
    columns = (
        Column("id"),
        Column("likeness", "ratio", "cosine of the words of both (tf-idf): 1 the same words, 0 none in common"),
        Column("prompt"),
        Column("score", "score"),
        Column("chosen"),
    )
    sheet = Sheet("neighbours", f"{story.id}: rows with the most similar words", columns, rows)
    return replace(story, texts=texts, sheets={**story.sheets, "neighbours": sheet} if rows else story.sheets)


def _targets(
    selector: GradientSelector[Any], context: SelectionContext, selection: SelectionFile, places: Sequence[int]
) -> list[Sheet]:
    """A table a row: the targets that pull it most and least, and what all of them add up to."""
    p = sum(parameter.numel() for _, parameter in trainable_parameters(context.model))
    if len(places) * p > MOST_VALUES and len(places) > 1:
        raise SelectionError(
            f"gradients of {len(places)} rows with {p:,} parameters are too many at once",
            hint=f"explain {max(1, MOST_VALUES // p)} at a time",
        )
    projector = sketch_projector(selector.config.seed)
    gradients = selector.target_gradients(context, projector, Stopwatch())
    rows = replace(context, train_dataset=context.train_dataset.select(places))
    found = target_cosines(context, selector.training_gradients(rows, projector), gradients.features, gradients.factors)
    tasks = group_names(gradients.samples, selector.config.task_column)
    parts = score_parts(found, gradients.aggregate, tasks)
    names = [(sample.id, text_of(sample)) for sample in gradients.samples]
    used = selection.report.get("scoring")
    projected = isinstance(used, dict) and used.get("used") == "projected"
    return [
        _target_sheet(names, found[row].numpy(), parts[row].numpy(), float(selection.scores[place]), projected)
        for row, place in enumerate(places)
    ]


def _target_sheet(
    names: Sequence[tuple[str, str]],
    cosines: NDArray[np.float64],
    parts: NDArray[np.float64],
    score: float,
    projected: bool,
) -> Sheet:
    order = np.argsort(-parts, kind="stable").tolist()
    few = len(order) <= 2 * SHOWN_TARGETS
    shown = order if few else [*order[:SHOWN_TARGETS], *order[-SHOWN_TARGETS:]]
    rows = [(*names[target], _finite(cosines[target]), _finite(parts[target])) for target in shown]
    note = f"All {len(order)} targets add up to {score_text(float(parts.sum()))}; the score was {score_text(score)}"
    note += " (by projected features, which differ a little)." if projected else "."
    columns = (
        Column("target"),
        Column("prompt"),
        Column("cosine", "ratio", "of the row's gradient with the target's: 1 the same direction, below 0 against it"),
        Column("part", "score", "what the target adds to the score"),
    )
    title = "the targets that pull it" if few else "the targets that pull it most and least"
    return Sheet("targets", title, columns, rows, note)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
