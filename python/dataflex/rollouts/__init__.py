"""Monte Carlo answers of the model in training.

Answers are drawn from pi_T = softmax(logits / T) by transformers (:mod:`dataflex.rollouts.hf`) or by vLLM
(:mod:`dataflex.rollouts.vllm`): the same distribution, other random numbers. Token ids are kept as sampled, with the
end token when it was sampled; text is for rewards only and is never tokenised again.
"""

from dataflex.rollouts.answers import Prompt, Rollout, Sampling
from dataflex.rollouts.file import RolloutFile
from dataflex.rollouts.hf import sample_answers

__all__ = ["Prompt", "Rollout", "RolloutFile", "Sampling", "sample_answers"]
