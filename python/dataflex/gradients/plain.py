"""Per-sample gradients over the trainable parameters.

Training sample i with label tokens T_i contributes g_i, the gradient of its own mean token cross-entropy

    L_i = -(1 / |T_i|) sum_{t in T_i} log softmax(logits_t)[y_t],

and an evaluation prompt x with answers y_1..y_M and advantages A_m contributes the policy gradient (REINFORCE,
Williams 1992) of the distribution that was sampled, softmax(logits / T):

    g_x = grad( -(1 / M) sum_m A_m sum_t log softmax(logits_mt / T)[y_mt] ).

Both are signed as gradients of a loss. The model runs in eval mode (dropout off); ``.grad``, train/eval mode and RNG
state are left as they were. Every function here computes one gradient a backward pass: plain, exact, and independent
of how samples are batched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dataflex.data.collate import Batch
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import GradientError
from dataflex.models.losses import summed_loss, token_log_probs, trailing_logits
from dataflex.models.model import trainable_parameters
from dataflex.models.sharding import used_parameters
from dataflex.types import Autocast


def sample_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean token cross-entropy of a batch of one sample.

    Args:
        model: Causal language model.
        batch: ``(1, t)`` tensors.

    Returns:
        Scalar, float32 or wider.

    Raises:
        GradientError: The sample has no label token that could be predicted.
    """
    if len(batch.input_ids) != 1:
        raise GradientError(f"a sample's own loss needs a batch of one, got {len(batch.input_ids)}")
    total, count = summed_loss(model, batch)
    if count == 0:
        raise GradientError("the sample has no label tokens", hint="tokenise with dataflex, which drops such rows")
    return total / count


def sample_gradient(model: nn.Module, batch: Batch, autocast: Autocast) -> Tensor:
    """g_i of one training sample.

    Args:
        model: Model in its current state, inside :func:`undisturbed`.
        batch: ``(1, t)`` tensors on the model's device.
        autocast: The trainer's forward context.

    Returns:
        ``(p,)`` on the model's device, float32 or wider, in parameter-index order.
    """
    with torch.enable_grad(), autocast(), used_parameters(model) as used:
        loss = sample_loss(model, batch)
    return flat_gradient(model, loss, used())


def policy_loss(
    model: nn.Module,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    weights: Sequence[float],
    temperature: float,
    horizon: int | None = None,
) -> Tensor:
    """-(1 / M) sum_m w_m sum_t log pi_T(y_mt | x, y_m<t), with one forward pass for the M answers.

    Args:
        model: The policy.
        prompt: Token ids of the prompt x.
        answers: M lists of sampled token ids, as sampled, each with at least one token.
        weights: M advantages, already divided by the answer's length where that is wanted.
        temperature: Sampling temperature T.
        horizon: Length whose rotary frequencies all answers have; None: that of prompt and longest answer.

    Returns:
        Scalar, float32 or wider.
    """
    device = next(model.parameters()).device
    longest = max(len(answer) for answer in answers)
    width = len(prompt) + longest
    input_ids = torch.zeros((len(answers), width), dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    targets = torch.full((len(answers), longest), IGNORE_INDEX, dtype=torch.int64)
    for row, answer in enumerate(answers):
        length = len(prompt) + len(answer)
        input_ids[row, :length] = torch.tensor([*prompt, *answer])
        attention_mask[row, :length] = 1
        targets[row, : len(answer)] = torch.tensor(list(answer))
    logits = trailing_logits(
        model, input_ids.to(device), attention_mask.to(device), longest + 1, horizon=max(width, horizon or 0)
    )[:, :-1]
    log_probs = token_log_probs(logits, targets.to(device), temperature).sum(dim=1)
    scale = torch.tensor(weights, dtype=log_probs.dtype, device=device) / len(answers)
    return -(scale * log_probs).sum()


def policy_gradient(
    model: nn.Module,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    weights: Sequence[float],
    *,
    temperature: float,
    horizon: int | None = None,
    autocast: Autocast,
) -> Tensor:
    """g_x of one evaluation prompt: ``(p,)``, float32 or wider; arguments as :func:`policy_loss`."""
    with torch.enable_grad(), autocast(), used_parameters(model) as used:
        loss = policy_loss(model, prompt, answers, weights, temperature, horizon)
    return flat_gradient(model, loss, used())


def flat_gradient(model: nn.Module, loss: Tensor, used: Sequence[Tensor | None]) -> Tensor:
    """Gradient of a loss over the trainable parameters.

    Args:
        model: Owns them.
        loss: Scalar.
        used: What stood for them in the forward pass (:func:`dataflex.models.sharding.used_parameters`).

    Returns:
        ``(p,)``, float32 or wider; zeros for a parameter without use.
    """
    found = torch.autograd.grad(loss, [tensor for tensor in used if tensor is not None], allow_unused=True)
    given = iter(found)
    gradients = [None if tensor is None else next(given) for tensor in used]
    flat = [
        loss.new_zeros(parameter.numel(), dtype=parameter.dtype) if gradient is None else gradient.flatten()
        for (_, parameter), gradient in zip(trainable_parameters(model), gradients, strict=True)
    ]
    return torch.cat([values.to(torch.promote_types(values.dtype, torch.float32)) for values in flat])
