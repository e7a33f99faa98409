"""Which of the steppers takes the steps of a run."""

from __future__ import annotations

import logging

from torch import nn

from dataflex.config.deepspeed import shards_parameters, zero_stage
from dataflex.models.sharding import is_sharded
from dataflex.training.arguments import TrainingArguments
from dataflex.training.fsdp import FsdpStepper
from dataflex.training.steps import Stepper
from dataflex.training.zero import ZeroStepper
from dataflex.utils.distributed import Ranks

logger = logging.getLogger(__name__)


def stepper_class(args: TrainingArguments, ranks: Ranks, model: nn.Module) -> type[Stepper]:
    """What takes the steps of a run; a single process has nothing to shard."""
    if is_sharded(model):
        return FsdpStepper
    if args.deepspeed is None or shards_parameters(args.deepspeed):  # stage 3 in one process, as `placed` said
        return Stepper
    if zero_stage(args.deepspeed) == 0:
        logger.info("deepspeed: stage 0 shards nothing: plain data parallelism, without DeepSpeed")
        return Stepper
    if ranks.count > 1:
        return ZeroStepper
    logger.warning("deepspeed: has no effect in a single process, which has nothing to shard")
    return Stepper
