"""A selection's context outside of a training run: the model as it is, or as a checkpoint holds it."""

from __future__ import annotations

import atexit
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from dataflex.config.values import count_or_share
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.templates import ChatTemplate
from dataflex.errors import SelectionError
from dataflex.models.bounds import examine
from dataflex.models.model import DTYPES, Precision, trainable_parameters
from dataflex.offline.checkpoints import check_adapter, open_checkpoint
from dataflex.selectors.base import SelectionContext
from dataflex.types import Autocast
from dataflex.utils.distributed import Ranks
from dataflex.utils.launch import process_count


def launched_ranks() -> Ranks:
    """This process among those that torchrun or accelerate launch started, which then share the work; alone otherwise.

    Joins their process group, or makes it, for the life of the process: gloo on CPUs, nccl on GPUs.
    """
    joined = torch.distributed.is_initialized()
    if process_count() == 1 and not joined:
        return Ranks()
    from accelerate import PartialState

    # Without a GPU accelerate forms a group only if it is told to use the CPU.
    state = PartialState(cpu=not torch.accelerator.is_available())
    if not joined:
        atexit.register(state.destroy_process_group)  # its threads, left running, can abort a process at its end
    return Ranks(state.process_index, state.num_processes, state.device)


@contextmanager
def shared_folder(ranks: Ranks, wanted: Path | None) -> Iterator[Path]:
    """The folder that is wanted, or a temporary one that all ranks use, which must then run on one machine."""
    if wanted is not None:
        yield wanted
        return
    with ExitStack() as stack:
        yield Path(ranks.on_main(lambda: stack.enter_context(tempfile.TemporaryDirectory())))
        ranks.barrier()  # before the main process removes it


def resolve_count(wanted: float | str, candidates: int) -> int:
    """Number of samples: a share of the candidates (a float up to 1, or ``5%``) or a number (an int).

    Raises:
        SelectionError: It is neither, nothing would be selected, or more than there is.
    """
    if isinstance(wanted, str):
        try:
            wanted = count_or_share(wanted)
        except ValueError as error:
            raise SelectionError(f"num_samples: expected a number (500) or a share (5%), got {wanted!r}") from error
    share = isinstance(wanted, float)
    if share and not 0 < wanted <= 1:
        raise SelectionError(f"num_samples {wanted} is not a share of the candidates, above 0 and up to 1")
    count = max(1, math.floor(wanted * candidates + 0.5)) if share else int(wanted)
    if not 0 < count <= candidates:
        raise SelectionError(f"num_samples {count} does not fit: there are {candidates} candidates")
    return count


def build_context(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    train_dataset: TokenizedDataset,
    eval_dataset: TokenizedDataset | None,
    *,
    num_samples: int,
    seed: int,
    output_dir: Path,
    precision: Precision,
    ranks: Ranks,
) -> SelectionContext:
    """The context of a single selection: step 0, round 1 of 1, no optimizer.

    Raises:
        ModelError: A row has tokens, or is longer, than the model has room for.
    """
    examine(model, tokenizer, {"candidates": train_dataset, "evaluation set": eval_dataset}).raise_or_warn()
    return SelectionContext(
        model=model,
        tokenizer=tokenizer,
        template=template,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        num_samples=num_samples,
        step=0,
        round=1,
        num_rounds=1,
        total_samples=num_samples,
        seed=seed,
        output_dir=output_dir,
        optimizer=None,
        autocast=autocast_for(model, precision),
        ranks=ranks,
    )


@contextmanager
def at_checkpoint(context: SelectionContext, directory: Path, *, needs_optimizer: bool) -> Iterator[SelectionContext]:
    """The context with weights, step and optimizer of a checkpoint; the model is restored afterwards.

    Args:
        context: Context of a selection without a checkpoint.
        directory: The checkpoint: dataflex's own, or one of transformers' Trainer.
        needs_optimizer: A checkpoint without the optimizer's state will not do.

    Raises:
        CheckpointError: The checkpoint is damaged, of another model, or lacks the optimizer's state.
    """
    source = open_checkpoint(directory)
    check_adapter(directory, context.model)
    before = _weights(context.model)
    try:
        source.load_weights(context.model)
        yield replace(context, step=source.step, optimizer=source.optimizer(context.model, needed=needs_optimizer))
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)


def _weights(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The tensors that loading a checkpoint overwrites, each with a copy of its value."""
    if isinstance(model, PeftModel):
        tensors: list[Any] = [parameter for _, parameter in trainable_parameters(model)]
    else:
        tensors = [*model.parameters(), *model.buffers()]
    return [(tensor, tensor.detach().clone()) for tensor in tensors]


def autocast_for(model: nn.Module, precision: Precision) -> Autocast:
    """The context of forward passes in that precision, on the model's device."""
    if precision == "fp32":
        return nullcontext
    device = next(model.parameters()).device
    return partial(torch.autocast, device.type, dtype=DTYPES[precision])
