"""Tokens a second of answers drawn by transformers and by vLLM, from the same LoRA model, prompts and lengths.

    python benchmarks/rollouts.py --model models/SmolLM2-135M-Instruct --backends hf vllm

Answers are cut at ``--max-new-tokens`` and have no end token, so that both draw the same number of tokens. The time of
a first, uncounted round is shown apart: it holds the start of the engine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dataflex.models.model import add_lora, load_model, load_tokenizer
from dataflex.rollouts import Prompt, Rollout, Sampling, sample_answers
from dataflex.rollouts.vllm import VllmRolloutConfig, VllmSampler

QUESTION = "Explain in a few sentences why the number {} is, or is not, a prime number."


def main() -> None:
    """Parse the arguments, time each backend, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--backends", nargs="+", choices=("hf", "vllm"), default=["hf", "vllm"])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    model = add_lora(load_model(options.model), rank=options.rank, alpha=2 * options.rank).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    prompts = [
        Prompt(str(number), tokenizer(QUESTION.format(number))["input_ids"]) for number in range(options.prompts)
    ]
    how: dict[str, Any] = {
        "answers_per_prompt": options.answers,
        "stop_token_ids": set(),
        "seed": 0,
        "autocast": nullcontext,
    }
    sampling = Sampling(0.7, options.max_new_tokens)
    print(
        f"{options.prompts} prompts x {options.answers} answers x {options.max_new_tokens} tokens, {device}, ", end=""
    )
    print(f"{torch.get_num_threads()} threads, LoRA rank {options.rank}, {next(model.parameters()).dtype}")
    print(f"{'backend':8} {'first round s':>14} {'tokens/s median':>16} {'range':>20}")
    with TemporaryDirectory() as folder:
        for backend in options.backends:
            sampler = VllmSampler(VllmRolloutConfig())

            def draw(step: int, backend: str = backend, sampler: VllmSampler = sampler) -> list[Rollout]:
                if backend == "vllm":
                    return sampler.sample_answers(
                        model, tokenizer, prompts, sampling, step=step, folder=Path(folder), **how
                    )
                return sample_answers(
                    model, tokenizer, prompts, sampling, step=step, batch_size=options.batch_size, **how
                )

            first, speeds = timed(draw, options.rounds)
            sampler.close()
            print(
                f"{backend:8} {first:14.1f} {median(speeds):16.1f} {min(speeds):9.1f} - {max(speeds):8.1f}", flush=True
            )


def timed(draw: Callable[[int], list[Rollout]], rounds: int) -> tuple[float, list[float]]:
    """Seconds of a first round, and tokens a second of each later one."""
    start = time.perf_counter()
    draw(0)
    first = time.perf_counter() - start
    speeds = []
    for step in range(1, rounds + 1):
        start = time.perf_counter()
        tokens = sum(len(rollout.token_ids) for rollout in draw(step))
        speeds.append(tokens / (time.perf_counter() - start))
    return first, speeds


if __name__ == "__main__":
    main()
