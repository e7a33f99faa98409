"""Small training runs: a tiny LoRA model, a selector, a reward that random answers can earn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflex.curriculum.schedule import Schedule
from dataflex.selectors.nice import NiceSelector
from dataflex.testing import EchoReward, tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training.arguments import TrainingArguments
from dataflex.training.trainer import Trainer


def tiny_nice(**params: Any) -> NiceSelector:
    """NICE with few, short answers, which alone make the target: the exact policy gradient."""
    defaults: dict[str, Any] = {
        "reward": EchoReward(),
        "baseline": "none",
        "reference_answer": "none",
        "proj_dim": 256,
        "mc_samples": 3,
        "max_new_tokens": 6,
        "generation_temperature": 1.0,
        "save_interval": 5,
    }
    return NiceSelector(**(defaults | params))


def tiny_arguments(output_dir: Path, **changes: Any) -> TrainingArguments:
    """Global batches of four rows, and nothing drawn."""
    defaults: dict[str, Any] = {
        "output_dir": output_dir,
        "template": "chatml",
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "plot_loss": False,
        "seed": 3,
    }
    return TrainingArguments(**(defaults | changes))


def tiny_trainer(
    output_dir: Path, *, model: Any = None, selector: Any = None, schedule: Schedule | None = None, **args: Any
) -> Trainer:
    """A trainer over 24 candidates and 4 evaluation samples: 2 random steps, then 2 selections of 3 steps."""
    return Trainer(
        tiny_lora(tiny_model()) if model is None else model,
        tiny_tokenizer(),
        tiny_dataset(24, seed=0),
        tiny_dataset(4, seed=50),
        tiny_nice() if selector is None else selector,
        schedule=schedule or Schedule(warmup_step=2, update_step=3, update_times=2),
        args=tiny_arguments(output_dir, **args),
    )
