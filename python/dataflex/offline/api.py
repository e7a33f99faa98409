"""Selection from Python, without a training run: ``df.select`` and ``df.less_static``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from dataflex.curriculum.checks import text_problems
from dataflex.curriculum.story import log_selection, selection_statistics
from dataflex.data.cache import CacheSettings
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.templates import ChatTemplate
from dataflex.errors import ConfigError, SelectionError
from dataflex.models.model import Precision
from dataflex.offline.context import at_checkpoint, build_context, launched_ranks, resolve_count, shared_folder
from dataflex.offline.selection import OfflineSelection, RowSource
from dataflex.offline.static import score_checkpoints
from dataflex.offline.work import check_agreed, dated_template, working_in
from dataflex.selectors.base import Selection, SelectionContext, Selector
from dataflex.selectors.less import LessSelector
from dataflex.selectors.outcome import check_agreement, check_selection
from dataflex.training.component import as_component
from dataflex.training.inputs import as_dataset, as_tokenizer, check_model
from dataflex.utils.aliases import also_called
from dataflex.utils.home import home_path
from dataflex.utils.progress import Stopwatch


@also_called(tokenizer="processing_class")
def select(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase,
    train_dataset: Any,
    eval_dataset: Any = None,
    *,
    selector: str | Selector[Any] = "less",
    num_samples: float | str,
    checkpoint: str | Path | None = None,
    template: str | ChatTemplate | None = None,
    cutoff_len: int = 2048,
    seed: int = 42,
    precision: Precision = "fp32",
    output_dir: str | Path | None = None,
    dataset_dir: str | Path | None = None,
    data_cache_dir: str | Path | None = None,
    overwrite_cache: bool = False,
    preprocessing_num_workers: int | None = None,
    **params: Any,
) -> OfflineSelection:
    """Select once, for the model as it is or as a checkpoint holds it, without training.

    The model, its gradients, its mode and all random state are left as they were. Under torchrun or accelerate launch
    the processes, each with the same model and data, share the work, and all return the same selection.

    Args:
        model: Causal language model with trainable parameters (a peft model, as a rule), on the device to compute on.
        processing_class: Its tokenizer; may be called ``tokenizer``.
        train_dataset: Candidates: rows (``datasets.Dataset``, list of dicts) in a known form or tokenised as for a
            trainer of transformers (``input_ids``), a file, a name in ``dataset_info.json``, or a tokenised dataset.
        eval_dataset: What the selection is for, in the same forms; None for selectors without a target.
        selector: Name of a registered selector, or one that is built already.
        num_samples: How many candidates: a number (int) or a share (float up to 1, or text as ``"5%"``).
        checkpoint: Folder ``checkpoint-STEP`` of a training run (this package's, transformers' or TRL's): its weights
            are used, and the optimizer's moments that ``gradient_type: adam`` needs. None: the weights of ``model``,
            and no moments.
        template: Chat template by name; None: the tokenizer's own.
        cutoff_len: Longest sample in tokens.
        seed: Seed of selectors that draw.
        precision: Of the forward passes (autocast).
        output_dir: Folder of features and answers, which make a killed selection resumable; None: a temporary one.
            Processes on several machines need one on a disk that they share.
        dataset_dir: Folder of ``dataset_info.json``.
        data_cache_dir: Folder of tokenised data, for any run (``cache_dir`` of a configuration; here that name is the
            selector's folder of features); None: the common one, for data of 2,000 rows and more.
        overwrite_cache: Tokenise again what the cache has.
        preprocessing_num_workers: Processes that tokenise, at most one a core; None: one, with threads.
        **params: Parameters of the selector, if it is named.

    Raises:
        SelectionError: The selection cannot succeed; raised before anything is computed where that can be known.
        CheckpointError: The checkpoint is damaged or of another model.
        DataError: Rows of no known form.
        ConfigError: A parameter of the selector is wrong.
        ModelError: What was passed as model or tokenizer is none.

    Example:
        >>> chosen = dataflex.select(model, tokenizer, rows, targets, num_samples=0.05, gradient_type="sgd")
        >>> subset = chosen.to_dataset()
    """
    _refuse_arguments(params)
    built = as_component("selector", selector, params)
    cache = _cache(data_cache_dir, overwrite_cache, preprocessing_num_workers)
    inputs = _Inputs.of(model, processing_class, template, cutoff_len, seed, precision, dataset_dir, output_dir, cache)
    try:
        with _context(built, inputs, train_dataset, eval_dataset, num_samples, output_dir) as context:
            return _finish(run_selector(built, context, checkpoint), context, train_dataset, dataset_dir)
    finally:
        built.close()


@also_called(tokenizer="processing_class")
def less_static(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase,
    train_dataset: Any,
    eval_dataset: Any,
    checkpoints: Sequence[str | Path],
    *,
    num_samples: float | str,
    learning_rates: Sequence[float] | None = None,
    template: str | ChatTemplate | None = None,
    cutoff_len: int = 2048,
    seed: int = 42,
    precision: Precision = "fp32",
    output_dir: str | Path | None = None,
    dataset_dir: str | Path | None = None,
    data_cache_dir: str | Path | None = None,
    overwrite_cache: bool = False,
    preprocessing_num_workers: int | None = None,
    **params: Any,
) -> OfflineSelection:
    """Select as LESS does (arXiv 2402.04333): over the checkpoints of a warm-up run.

    The score of a candidate z is ::

        max over tasks D of  sum_i eta_i (1 / |D|) sum_{j in D} cos(phi_i(z), phi_i(j)),

    phi_i the features at checkpoint i (:class:`dataflex.LessSelector`) and eta_i its learning rate, normalised to a
    sum of one. The order is that of the authors' code: checkpoints are summed, then the mean is taken over a task's
    examples, then the maximum over tasks. (The paper's text takes the cosine with a task's mean gradient instead of
    the mean of the cosines.)

    Args:
        model: The model that the checkpoints belong to; its weights are restored afterwards.
        processing_class: Its tokenizer; may be called ``tokenizer``.
        train_dataset: Candidates; as for :func:`select`.
        eval_dataset: Target examples with reference answers.
        checkpoints: Folders ``checkpoint-STEP`` that the trainer, or transformers', wrote, with optimizer state unless
            ``gradient_type="sgd"``; one at the end of each epoch in the paper.
        num_samples: How many candidates: a number (int) or a share (float up to 1, or text as ``"5%"``).
        learning_rates: One a checkpoint, in any unit; None: the mean that its run has logged for its epoch.
        template: As for :func:`select`.
        cutoff_len: Longest sample in tokens.
        seed: As for :func:`select`.
        precision: As for :func:`select`.
        output_dir: As for :func:`select`.
        dataset_dir: As for :func:`select`.
        data_cache_dir: As for :func:`select`.
        overwrite_cache: As for :func:`select`.
        preprocessing_num_workers: As for :func:`select`.
        **params: Parameters of :class:`dataflex.LessSelector`.

    Raises:
        CheckpointError: A checkpoint is damaged, of another model, or lacks what is needed; the hint says what to do.
        SelectionError: The selection cannot succeed.
        DataError: Rows of no known form.
        ConfigError: A parameter is wrong.

    Example:
        >>> chosen = dataflex.less_static(model, tokenizer, rows, targets, ["out/checkpoint-100", "out/checkpoint-200"],
        ...                               num_samples=0.05)
    """
    _refuse_arguments(params)
    selector = LessSelector(**params)
    cache = _cache(data_cache_dir, overwrite_cache, preprocessing_num_workers)
    inputs = _Inputs.of(model, processing_class, template, cutoff_len, seed, precision, dataset_dir, output_dir, cache)
    folders = [home_path(path) for path in checkpoints]
    try:
        with _context(selector, inputs, train_dataset, eval_dataset, num_samples, output_dir) as context:
            selection = score_checkpoints(selector, context, folders, learning_rates)
            check_agreement(selection, context.ranks)
            if context.ranks.is_main:
                seconds = sum(selection.report["seconds"].values())
                log_selection(selection, len(context.train_dataset), selection_statistics(selection, (), seconds))
            return _finish(selection, context, train_dataset, dataset_dir)
    finally:
        selector.close()


@contextmanager
def checked_context(
    selector: Selector[Any], context: SelectionContext, checkpoint: str | Path | None
) -> Iterator[SelectionContext]:
    """The context, at a checkpoint if one is given, in which the selector has been checked.

    Raises:
        SelectionError: The selection cannot succeed.
        CheckpointError: The checkpoint is damaged, of another model, or lacks the optimizer's state.
    """
    if selector.needs_eval_dataset and not context.eval_dataset:
        raise SelectionError(f"selector {selector.name!r} needs an evaluation set", hint="pass eval_dataset")
    unreadable = [*text_problems(selector, context.train_dataset, context.eval_dataset)]
    if unreadable:
        raise SelectionError("; ".join(unreadable), hint="pass the rows themselves, not what they were tokenised to")
    adam = getattr(selector.config, "gradient_type", None) == "adam"
    state = at_checkpoint(context, home_path(checkpoint), needs_optimizer=adam) if checkpoint else nullcontext(context)
    with state as current:
        selector.check(current)
        yield current


def run_selector(selector: Selector[Any], context: SelectionContext, checkpoint: str | Path | None) -> Selection:
    """One checked selection; errors as :func:`checked_context`, and whatever the selector raises."""
    watch = Stopwatch()
    with checked_context(selector, context, checkpoint) as current, watch.phase("selection"):
        selection = selector.select(current)
    check_selection(selection, len(context.train_dataset), context.num_samples)
    check_agreement(selection, context.ranks)
    if context.ranks.is_main:
        statistics = selection_statistics(selection, (), watch.seconds["selection"])
        log_selection(selection, len(context.train_dataset), statistics)
    return selection


def _cache(folder: str | Path | None, overwrite: bool, workers: int | None) -> CacheSettings:
    return CacheSettings(None if folder is None else home_path(folder), overwrite, workers)


@dataclass(frozen=True)
class _Inputs:
    """What both functions are given alike."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    cutoff_len: int
    seed: int
    precision: Precision
    dataset_dir: str | Path | None
    cache: CacheSettings

    @classmethod
    def of(
        cls,
        model: Any,
        processing_class: Any,
        template: str | ChatTemplate | None,
        cutoff_len: int,
        seed: int,
        precision: Precision,
        dataset_dir: str | Path | None,
        output_dir: str | Path | None,
        cache: CacheSettings,
    ) -> _Inputs:
        """Checked model and tokenizer, and the template by its name."""
        check_model(model)
        tokenizer = as_tokenizer(processing_class)
        work = None if output_dir is None else home_path(output_dir)
        loaded = dated_template(template, tokenizer, work, launched_ranks())
        return cls(model, tokenizer, loaded, cutoff_len, seed, precision, dataset_dir, cache)

    def dataset(self, data: Any, *, keep_unlabelled: bool = False) -> TokenizedDataset:
        """Tokenise."""
        folder = None if self.dataset_dir is None else home_path(self.dataset_dir)
        return as_dataset(
            data, self.template, self.cutoff_len, self.cache, keep_unlabelled=keep_unlabelled, dataset_dir=folder
        )


@contextmanager
def _context(
    selector: Selector[Any],
    inputs: _Inputs,
    train_dataset: Any,
    eval_dataset: Any,
    num_samples: float | str,
    output_dir: str | Path | None,
) -> Iterator[SelectionContext]:
    """The context, with a temporary output folder where none is named."""
    ranks = launched_ranks()
    training = inputs.dataset(train_dataset)
    held_out = None if eval_dataset is None else inputs.dataset(eval_dataset, keep_unlabelled=True)
    work = None if output_dir is None else home_path(output_dir)
    with working_in(work, selector, ranks), shared_folder(ranks, work) as folder:
        context = build_context(
            inputs.model,
            inputs.tokenizer,
            inputs.template,
            training,
            held_out,
            num_samples=resolve_count(num_samples, len(training)),
            seed=inputs.seed,
            output_dir=folder,
            precision=inputs.precision,
            ranks=ranks,
        )
        check_agreed(selector, context)
        yield context


def _finish(
    selection: Selection, context: SelectionContext, train_dataset: Any, dataset_dir: str | Path | None
) -> OfflineSelection:
    source = RowSource(train_dataset, None if dataset_dir is None else home_path(dataset_dir))
    return as_offline(selection, context.train_dataset, source)


def as_offline(selection: Selection, candidates: TokenizedDataset, source: RowSource) -> OfflineSelection:
    """The selection with the rows that its candidates come from."""
    return OfflineSelection(**vars(selection), candidates=candidates, source=source)


_ADVICE = {
    "args": "learning_rate and the like act on training only; here there are seed, precision, template, cutoff_len",
    "bf16": 'precision="bf16"',
    "fp16": 'precision="fp16"',
    "max_length": "cutoff_len",
    "max_seq_length": "cutoff_len",
    "num_train_samples": "num_samples",
}
"""Arguments of training that people write here, and what to write instead."""


def _refuse_arguments(params: dict[str, Any]) -> None:
    """Raise ConfigError for arguments that no selector has and that are called something else here; all of them."""
    wrong = [f"{name} is no argument here: {_ADVICE[name]}" for name in params if name in _ADVICE]
    if wrong:
        raise ConfigError(wrong)
