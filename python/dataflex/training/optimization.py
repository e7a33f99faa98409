"""Optimizer, learning-rate schedule and memory settings of the training loop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from dataflex.model import trainable_parameters
from dataflex.training.arguments import TrainingArguments


def create_optimizer(model: nn.Module, args: TrainingArguments) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (biases, norms) carry no weight decay, as in transformers."""
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )


def create_scheduler(optimizer: torch.optim.Optimizer, args: TrainingArguments, total_steps: int) -> Any:
    """The learning-rate schedule over the whole run, from transformers."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=math.ceil(args.warmup_ratio * total_steps),
        num_training_steps=total_steps,
    )


def enable_gradient_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; the embeddings' outputs must then require gradients."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
