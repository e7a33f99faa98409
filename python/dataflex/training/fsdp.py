"""Steps of a model whose parameters are sharded over the processes (FSDP2, :mod:`dataflex.models.sharding`).

Gradients and moments are sharded as the parameters are. A selection and a checkpoint get moments by parameter, whole,
which are gathered one parameter at a time when they are asked for.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from dataflex.config.deepspeed import shards_parameters
from dataflex.config.fsdp import FsdpSettings, launched_fsdp, read_fsdp
from dataflex.gradients.in_step import CommonPasses, ShardedRanks
from dataflex.models.model import to_device, trainable_parameters
from dataflex.models.sharding import shard, whole
from dataflex.training.arguments import TrainingArguments
from dataflex.training.optimization import create_optimizer
from dataflex.training.steps import Stepper
from dataflex.utils.distributed import Ranks

logger = logging.getLogger(__name__)


def fsdp_settings(args: TrainingArguments) -> FsdpSettings | None:
    """How parameters are sharded: the arguments decide, else the launcher; None: not at all."""
    if shards_parameters(args.deepspeed):
        logger.info("deepspeed: parameters are sharded as ZeRO-3 does by torch (FSDP2), without DeepSpeed")
        return FsdpSettings()
    return read_fsdp(args.fsdp, args.fsdp_config) or launched_fsdp(os.environ)


def placed(model: nn.Module, args: TrainingArguments, ranks: Ranks) -> tuple[nn.Module, Ranks]:
    """The model on its device, sharded in place where that is asked for, and the processes that hold it.

    Raises:
        ModelError: It cannot be sharded.
    """
    settings = fsdp_settings(args)
    if settings is None:
        return to_device(model, ranks.device), ranks
    if ranks.count == 1:
        key = "fsdp" if args.deepspeed is None else "deepspeed"
        logger.warning("%s: has no effect in a single process, which has nothing to shard", key)
        return to_device(model, ranks.device), ranks
    shard(model, init_device_mesh(torch.device(ranks.device).type, (ranks.count,)), settings.layers)
    return model, ShardedRanks(ranks.index, ranks.count, ranks.device, passes=CommonPasses(model, ranks))


class FsdpStepper(Stepper):
    """Takes optimizer steps on sharded parameters; arguments as for :class:`Stepper`."""

    def _prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        return model, optimizer

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Every micro-batch reduces its gradients: whole ones would take the memory of all parameters."""
        del last
        return nullcontext()

    def _backpropagate(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def _step(self) -> float | None:
        norm = None
        if self._args.max_grad_norm > 0:
            norm = float(whole(nn.utils.clip_grad_norm_(self._parameters, self._args.max_grad_norm)))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def whole_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer with the whole state of every parameter; a copy, which takes no steps.

        Every rank has to ask for it.
        """
        copy = create_optimizer(self._wrapped, self._args)
        for group, own in zip(copy.param_groups, self._raw.param_groups, strict=True):
            group.update({key: value for key, value in own.items() if key != "params"})
        for _, parameter in trainable_parameters(self._wrapped):
            state = self._raw.state.get(parameter, {})
            copy.state[parameter] = {
                key: whole(value) if isinstance(value, Tensor) else value for key, value in state.items()
            }
        return copy
