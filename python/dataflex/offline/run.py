"""From a configuration to a subset on disk, or to what it would cost."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dataflex.config import RunConfig, validate_component
from dataflex.config.fields import FileConfig
from dataflex.curriculum.selection_file import write_selection
from dataflex.errors import ConfigError, SelectionError
from dataflex.models.model import load_tokenizer, to_device
from dataflex.offline.api import as_offline, checked_context, run_selector
from dataflex.offline.card import subset_card
from dataflex.offline.context import build_context, launched_ranks, resolve_count
from dataflex.offline.dry_run import DryRun, dry_run
from dataflex.offline.selection import OfflineSelection, RowSource
from dataflex.offline.subset import refuse_existing
from dataflex.offline.work import check_agreed, dated_template, working_in
from dataflex.report.page import write_page
from dataflex.report.read import read_report
from dataflex.report.sections import lay_out
from dataflex.selectors.base import SelectionContext, Selector
from dataflex.training.run import build_model, load_datasets, outlined_datasets
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import sweep, write_text

logger = logging.getLogger(__name__)

_ACTING = """
model_name_or_path adapter_name_or_path trust_remote_code quantization_bit quantization_method quantization_type
double_quantization finetuning_type freeze_trainable_layers
freeze_trainable_modules freeze_extra_modules lora_target lora_rank lora_alpha dataset dataset_dir
eval_dataset val_size template cutoff_len max_samples task_column seed bf16 fp16 components_cfg_file component_name
component_params cache_dir overwrite_cache preprocessing_num_workers
"""
_NEUTRAL = "stage do_train train_type output_dir overwrite_output_dir"

ACTING_KEYS = frozenset(_ACTING.split())
"""Keys of a run that a selection acts on."""
NEUTRAL_KEYS = frozenset(_NEUTRAL.split())
"""Keys that say what a run is and where it goes; a selection has its own words for these."""


@dataclass(frozen=True, slots=True)
class SubsetFiles:
    """Where a selection's files go.

    Attributes:
        rows: JSON Lines of the chosen rows.
    """

    rows: Path

    @property
    def scores(self) -> Path:
        """Parquet of all candidates with score and rank."""
        return self.rows.with_suffix(".scores.parquet")

    @property
    def card(self) -> Path:
        """Markdown that describes the subset."""
        return self.rows.with_suffix(".card.md")

    @property
    def report(self) -> Path:
        """The page that people look at."""
        return self.rows.with_suffix(".report.html")

    @property
    def work(self) -> Path:
        """Folder of features and answers, which a selection that was killed goes on with."""
        return self.rows.with_suffix(".work")

    @property
    def all(self) -> list[Path]:
        """The files that a selection writes."""
        return [self.rows, self.scores, self.card, self.report]


def select_from_config(
    config: RunConfig,
    output: Path,
    *,
    num_samples: float,
    checkpoint: Path | None = None,
    overwrite: bool = False,
) -> OfflineSelection:
    """Select as a configuration says and write the subset, the scores of all candidates and a card.

    Processes that torchrun or accelerate launch started share the work; the main one writes.

    Args:
        config: Of a training run: model, data, selector; what acts on training only is named and left aside.
        output: The subset, a ``.jsonl`` file; the other files stand beside it.
        num_samples: Number of rows (int) or share of the candidates (float).
        checkpoint: Folder ``checkpoint-STEP`` whose weights and optimizer are used.
        overwrite: Replace files of an earlier selection.

    Raises:
        DataflexError: Whatever stops it; the files are written at the end, each atomically.
    """
    files = SubsetFiles(output)
    ranks = launched_ranks()
    if output.suffix != ".jsonl":
        raise SelectionError(f"the output {output} must be a .jsonl file", hint=f"-o {output.with_suffix('.jsonl')}")
    ranks.on_main(lambda: refuse_existing(files.all, overwrite=overwrite))
    with _prepared(config, num_samples, files.work, ranks, kept=True) as (selector, context):
        ranks.on_main(lambda: _sweep(files))
        chosen = run_selector(selector, context, checkpoint)
        folder = config.origin.folder
        source = RowSource(config.dataset, Path(config.locate(config.dataset_dir)), (folder,) if folder else ())
        selection = as_offline(chosen, context.train_dataset, source)
        ranks.on_main(lambda: _write(files, selection, context, config, checkpoint))
    return selection


def _sweep(files: SubsetFiles) -> None:
    """Remove what a selection into the same files left half written when it was killed."""
    sweep(files.rows.parent, only=[file.name for file in files.all])


def dry_run_from_config(
    config: RunConfig,
    work: Path,
    *,
    num_samples: float,
    checkpoint: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
) -> DryRun:
    """Predict time, memory and disk of :func:`select_from_config` from a few batches.

    Of large data some rows are read, and stand for all (:data:`dataflex.training.run.OUTLINED`).

    Args:
        config: As there.
        work: A folder to write a shard to, on the disk that the features would go to.
        num_samples: As there.
        checkpoint: As there.
        output: As there; None: not known yet.
        overwrite: As there.

    Raises:
        SelectionError: Several processes were started, or the selection itself would be refused.
    """
    ranks = launched_ranks()
    if ranks.count > 1:
        raise SelectionError(f"a dry run predicts the time of one process; {ranks.count} were started")
    if output is not None:
        refuse_existing(SubsetFiles(output).all, overwrite=overwrite)
    with (
        _prepared(config, num_samples, work, ranks, kept=False) as (selector, context),
        checked_context(selector, context, checkpoint) as current,
    ):
        return dry_run(selector, current)


@contextmanager
def _prepared(
    config: RunConfig, num_samples: float, work: Path, ranks: Ranks, *, kept: bool
) -> Iterator[tuple[Selector[Any], SelectionContext]]:
    """The selector and its context, as the configuration says; ``kept`` work is locked and dated."""
    if ranks.is_main:
        for warning in FileConfig.warnings(config):
            logger.warning("%s", warning)
        _say_what_does_not_act(config)
    selector = _build_selector(config)
    if selector.needs_eval_dataset and not config.has_eval_data:
        raise ConfigError(config.origin.about("eval_dataset", f"selector {selector.name!r} selects for one; set it"))
    with working_in(work, selector, ranks) if kept else nullcontext():
        try:
            context = _selection_context(config, num_samples, work if kept else None, work, selector, ranks)
            yield selector, context
        finally:
            selector.close()


def _selection_context(
    config: RunConfig, num_samples: float, dated: Path | None, work: Path, selector: Selector[Any], ranks: Ranks
) -> SelectionContext:
    """The context, with what needs no model checked before it is loaded.

    ``dated`` is the folder that notes its day. Without one nothing is selected, and a few rows stand for all, unless
    the selector compares the candidates' text with what it has on disk.
    """
    tokenizer = load_tokenizer(config.locate(config.model_name_or_path), trust_remote_code=config.trust_remote_code)
    template = dated_template(config.template, tokenizer, dated, ranks)
    every = dated is not None or "train_dataset" in selector.reads_text
    training, evaluation = (load_datasets if every else outlined_datasets)(config, template)
    count = resolve_count(num_samples, len(training))
    selector.check_data(training.samples)
    model = build_model(config).eval()
    context = build_context(
        to_device(model, ranks.device if ranks.count > 1 else "cuda") if torch.cuda.is_available() else model,
        tokenizer,
        template,
        training,
        evaluation,
        num_samples=count,
        seed=config.seed,
        output_dir=work,
        precision=config.precision,
        ranks=ranks,
    )
    check_agreed(selector, context)
    return context


def _build_selector(config: RunConfig) -> Selector[Any]:
    if config.train_type not in ("static", "dynamic_select"):
        text = f"{config.train_type} chooses no rows: a subset needs a selector (train_type dynamic_select)"
        raise ConfigError(config.origin.about("train_type", text))
    spec = config.component()
    return cast(Selector[Any], validate_component(spec).from_params(dict(spec.params)))


def _say_what_does_not_act(config: RunConfig) -> None:
    """Name the keys that were given a value of their own and that no selection reads."""
    fields = type(config).model_fields
    idle = [
        key
        for key in fields
        if key in config.model_fields_set - ACTING_KEYS - NEUTRAL_KEYS and getattr(config, key) != fields[key].default
    ]
    if idle:
        logger.info("these keys act on training only: %s", ", ".join(idle))


def _write(
    files: SubsetFiles,
    selection: OfflineSelection,
    context: SelectionContext,
    config: RunConfig,
    checkpoint: Path | None,
) -> None:
    """Scores, card and report first: a subset that is there is complete."""
    write_selection(files.scores, selection, context.train_dataset, config.task_column)
    dropped = context.train_dataset.report.dropped
    facts = {
        "selected from": ", ".join(config.dataset),
        "selected for": ", ".join(config.eval_dataset or ["a part of it"]) if config.has_eval_data else "nothing",
        "model": config.model_name_or_path,
        "adapter": config.adapter_name_or_path or "new",
        "checkpoint": checkpoint or "none",
        "seed": config.seed,
        "scores of all candidates": files.scores.name,
        **({"rows without a token to learn, which are no candidates": dropped} if dropped else {}),
    }
    report = read_report(files.scores)
    pages = lay_out(report)
    described = config.to_yaml(), config.task_column, pages.summary.lines()
    write_text(files.card, subset_card(files.rows.name, selection, context.train_dataset, facts, *described))
    write_page(report, pages)
    selection.write_jsonl(files.rows, overwrite=True)
