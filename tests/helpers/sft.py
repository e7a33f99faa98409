"""TRL's SFTTrainer around tiny parts: rows in every form that it takes, and a trainer of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig

from dataflex.integrations.transformers import Curriculum
from dataflex.testing import tiny_model, tiny_samples, tiny_tokenizer
from dataflex.types import Sample
from helpers import foreign

CHAT_TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n"
    "{% if turn['role'] == 'assistant' %}{% generation %}{{ turn['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ turn['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def conversational(sample: Sample) -> dict[str, Any]:
    """A list of turns."""
    return {"messages": list(map(dict, sample.messages)), "task": sample.metadata["task"]}


def prompt_completion(sample: Sample) -> dict[str, Any]:
    """Turns of the prompt and of the completion."""
    return {"prompt": [dict(sample.messages[0])], "completion": [dict(sample.messages[1])]}


def plain_prompt_completion(sample: Sample) -> dict[str, Any]:
    """Texts of the prompt and of the completion."""
    return {"prompt": sample.messages[0]["content"], "completion": f" {sample.reference}"}


def text(sample: Sample) -> dict[str, Any]:
    """One text."""
    return {"text": f"{sample.messages[0]['content']} {sample.reference}"}


def data(form: Any, n: int = 24, seed: int = 0, *, distinct: bool = True) -> Dataset:
    """Rows in a form."""
    return Dataset.from_list([form(sample) for sample in tiny_samples(n, seed, distinct=distinct)])


def lora() -> LoraConfig:
    """A small adapter of all linear layers."""
    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def settings(output_dir: Path) -> dict[str, Any]:
    """Those of a tiny run, without TRL's own defaults that need a GPU or recompute."""
    return foreign.settings(output_dir) | {"bf16": False, "gradient_checkpointing": False, "max_length": 64}


def trainer(found: Curriculum, output_dir: Path, parts: dict[str, Any] | None = None, **changes: Any) -> Any:
    """An unmodified SFTTrainer of a tiny model with a new adapter, or of other ``parts``."""
    import trl

    given: dict[str, Any] = {
        "model": tiny_model(),
        "args": trl.SFTConfig(**(settings(output_dir) | changes)),
        "train_dataset": found.train_dataset,
        "processing_class": tiny_tokenizer(chat_template=CHAT_TEMPLATE),
        "callbacks": [found.callback],
        "peft_config": lora(),
    }
    return trl.SFTTrainer(**(given | (parts or {})))
