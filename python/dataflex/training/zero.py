"""DeepSpeed's ZeRO stages 1 and 2: optimizer moments (and reduced gradients) are sharded over the processes.

Parameters stay whole on every process, so that a selection's passes are what they are without ZeRO. What a
selector or a checkpoint needs of the optimizer, Adam's moments by parameter, is put together from the shards when it is
asked for. Mixed precision stays with autocast: the engine keeps the weights in the precision that they have.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.models.model import trainable_parameters
from dataflex.training.arguments import TrainingArguments
from dataflex.training.optimization import create_optimizer
from dataflex.training.steps import Stepper

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroStepper(Stepper):
    """Takes optimizer steps with a DeepSpeed engine; arguments as for :class:`Stepper`."""

    def _prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        import deepspeed

        self._model = model
        restored = {parameter: dict(state) for parameter, state in optimizer.state.items()}
        optimizer.state.clear()
        engine, zero, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            model_parameters=self._parameters,
            config=engine_settings(self._args),
            dist_init_required=False,
        )
        self._sharded = zero
        if restored:
            _scatter(zero, optimizer, restored)
        return engine, zero

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        self._wrapped.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def _backpropagate(self, loss: Tensor) -> None:
        self._wrapped.backward(loss)

    def _step(self) -> float | None:
        self._wrapped.step()  # clips, too
        norm = self._wrapped.get_global_grad_norm()
        return None if norm is None else float(norm)

    def whole_optimizer(self) -> torch.optim.Optimizer:
        """An AdamW with the moments of every parameter, gathered from all ranks; a copy, which takes no steps.

        Every rank has to ask for it.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        whole = create_optimizer(self._model, self._args)
        for group, sharded in zip(whole.param_groups, self._raw.param_groups, strict=True):
            group["lr"] = sharded["lr"]
        steps = [state["step"] for state in self._raw.state.values() if "step" in state]
        if steps:
            for _, parameter in trainable_parameters(self._model):
                moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
                whole.state[parameter] = {"step": steps[0].detach().cpu().clone(), **moments}
        return whole

    def close(self) -> None:
        """Take the engine's hooks off the model."""
        self._wrapped.destroy()


def _scatter(zero: Any, optimizer: torch.optim.Optimizer, restored: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
    """Give every rank its shard of the moments of a checkpoint, before the engine's first step."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

    steps = next(iter(restored.values()))["step"]
    for shard, parameters in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        optimizer.state[shard] = {"step": steps.clone(), **{key: torch.zeros_like(shard) for key in MOMENTS}}
        lazy_init_hp_params_optimizer_state(parameters, shard, optimizer.state)
    for parameter, state in restored.items():
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, state[key], key)


def engine_settings(args: TrainingArguments) -> dict[str, Any]:
    """The engine's configuration: the user's, with what the run decides written into it."""
    return {
        **{key: value for key, value in (args.deepspeed or {}).items() if key != "train_batch_size"},
        "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
        # The steps say themselves which micro-batch is the last of a global batch.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": args.max_grad_norm,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
