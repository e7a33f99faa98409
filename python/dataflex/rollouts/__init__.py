"""Rollouts: Monte Carlo answers of the model in training, drawn by transformers or by vLLM, and their file.

A model in its current state and prompts come in, answers as they were sampled go out.
May import ``models``, ``plugins`` and what they may.

Both samplers draw from pi_T = softmax(logits / T), with other random numbers. Token ids are kept as sampled, with the
end token when it was sampled; text is for rewards only and is never tokenised again.
"""

from dataflex.rollouts.answers import Prompt, Rollout, Sampling
from dataflex.rollouts.file import RolloutFile
from dataflex.rollouts.hf import sample_answers

__all__ = ["Prompt", "Rollout", "RolloutFile", "Sampling", "sample_answers"]
