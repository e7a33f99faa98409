"""Accelerator, optimizer, learning-rate schedule and memory settings of the training loop."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from transformers import get_scheduler

from dataflex.config.fsdp import SWITCH
from dataflex.errors import TrainingError
from dataflex.models import optimizers
from dataflex.models.model import trainable_parameters
from dataflex.training.arguments import TrainingArguments
from dataflex.utils.launch import process_count

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def create_accelerator(args: TrainingArguments) -> Accelerator:
    """Accelerate's view of devices and processes, as a launcher (torchrun, accelerate launch) set them up.

    Raises:
        TrainingError: The launcher shards parameters or gradients over the processes, or its processes cannot talk to
            each other.
    """
    # accelerate keeps its settings for the whole process; an earlier run may have had another precision.
    AcceleratorState._reset_state()
    processes = process_count()
    with own_fsdp():
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            # Without a GPU accelerate forms a process group only if it is told to use the CPU.
            cpu=processes > 1 and not torch.accelerator.is_available(),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=args.ddp_timeout)),
                # Buffers of language models are constants, and ranks may take different numbers of forward passes.
                DistributedDataParallelKwargs(broadcast_buffers=False),
            ],
        )
    kind = accelerator.distributed_type
    if kind not in SUPPORTED:
        raise TrainingError(
            f"{kind.value} is not supported yet: every process has to hold all parameters",
            hint="torchrun, or accelerate launch without deepspeed: ZeRO by the key deepspeed of the run, FSDP by its "
            "key fsdp",
        )
    if accelerator.num_processes != processes:
        raise TrainingError(
            f"WORLD_SIZE says {processes} processes, accelerate formed a group of {accelerator.num_processes}",
            hint="start with torchrun or accelerate launch, or unset WORLD_SIZE",
        )
    return accelerator


@contextmanager
def own_fsdp() -> Iterator[None]:
    """The launcher's wish for FSDP is hidden from accelerate, which would wrap the model in its own way."""
    asked = os.environ.pop(SWITCH, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[SWITCH] = asked


def create_optimizer(model: nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """The run's optimizer over the trainable parameters.

    Vectors (biases, norms) carry no weight decay, as in transformers. With LoRA+ (arXiv 2402.12354) the B matrices of
    adapters have a learning rate of their own.

    Raises:
        TrainingError: The package of the optimizer is not installed, or it cannot step all of the parameters.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable_parameters(model):
        decay = args.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((_rate(name, args), decay), []).append(parameter)
    return optimizers.create(
        args.optim,
        model,
        [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()],
        learning_rate=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )


def _rate(name: str, args: TrainingArguments) -> float:
    """Learning rate of a parameter."""
    if args.loraplus_lr_ratio is None:
        return args.learning_rate
    if "lora_embedding_B" in name:
        return args.loraplus_lr_embedding
    return args.learning_rate * (args.loraplus_lr_ratio if "lora_B" in name else 1.0)


def create_scheduler(optimizer: torch.optim.Optimizer, args: TrainingArguments, total_steps: int) -> Any:
    """The learning-rate schedule over the whole run, from transformers."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=math.ceil(args.warmup_ratio * total_steps) if args.warmup_steps is None else args.warmup_steps,
        num_training_steps=total_steps,
    )


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; the embeddings' outputs must then require gradients."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
