"""Small, deterministic, offline stand-ins: tokenizer, model, adapter, samples, tokenised dataset."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dataflex.types import Message, Sample

if TYPE_CHECKING:
    from dataflex.data.dataset import TokenizedDataset

VOCAB_SIZE = 384
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")

_CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Japan": "Tokyo", "Egypt": "Cairo"}
_WORDS = ("apple", "river", "stone", "cloud", "table", "green", "music", "paper", "night", "bread")
_QUESTIONS = len(_CAPITALS) + len(_WORDS) + 100
_CORPUS = (
    "user assistant system tool",
    "What is the capital of France? The capital of France is Paris.",
    "Write the word apple in reverse. Which letter comes first? Answer with one word.",
    "You are a helpful assistant. Below is an instruction that describes a task.",
    "What is 3 plus 4? The answer is 7. It's 12 o'clock; don't be late!",
    '{"name": "get_weather", "arguments": {"city": "Rome"}}',
    "Instruction: Response: Input: human gpt\n\n" * 4,
    *_CAPITALS,
    *_CAPITALS.values(),
    *_WORDS,
)


@lru_cache(maxsize=8)
def _trained(extra_tokens: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE + len(extra_tokens),
        special_tokens=[*SPECIAL_TOKENS, *extra_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(
    *, extra_tokens: tuple[str, ...] = (), chat_template: str | None = None, add_bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with about 400 entries, trained once a process; each call returns a fresh object.

    Args:
        extra_tokens: Further special tokens, for example ``("<|eot_id|>",)``.
        chat_template: Jinja text of the tokenizer's own chat template.
        add_bos: Plain encoding puts ``<s>`` in front, as Llama tokenizers do.
    """
    backend = Tokenizer.from_str(_trained(tuple(extra_tokens)))
    if add_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>", *extra_tokens],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def tiny_model(vocab_size: int | None = None, seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A float32 Llama of 2 layers and width 32 in eval mode, with weights fixed by ``seed``.

    Args:
        vocab_size: Number of tokens; that of :func:`tiny_tokenizer` when None.
        seed: Seed of the weights; the global RNG is left as it was.
        **overrides: Fields of ``LlamaConfig`` (``num_hidden_layers=1``, ``tie_word_embeddings=True``, ...).
    """
    tokenizer = tiny_tokenizer()
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer) if vocab_size is None else vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    if vocab_size is None:
        fields |= {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    else:
        fields |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: LlamaForCausalLM = LlamaForCausalLM(LlamaConfig(**(fields | overrides)))  # type: ignore[no-untyped-call]
    ready: LlamaForCausalLM = model.float().eval()  # type: ignore[no-untyped-call]
    return ready


def tiny_lora(model: LlamaForCausalLM, r: int = 4, seed: int = 0) -> PeftModel:
    """``model`` with LoRA on all linear layers but the head; B is not zero, so that all gradients are generic."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    assert isinstance(adapted, PeftModel)
    return adapted.eval()


def tiny_samples(n: int, seed: int = 0, *, distinct: bool = False) -> list[Sample]:
    """``n`` short one-turn samples of three families (``metadata["task"]``): capital, sum, reverse.

    Args:
        n: How many.
        seed: Seed of the draw.
        distinct: No two ask the same; there are 116 questions.

    Raises:
        ValueError: More distinct samples are asked for than there are.
    """
    if distinct and n > _QUESTIONS:
        raise ValueError(f"{n} distinct samples are asked for, there are {_QUESTIONS}")
    generator = random.Random(seed)
    found: list[Sample] = []
    asked: set[str] = set()
    while len(found) < n:
        sample = _sample(len(found), generator)
        question = sample.messages[0]["content"]
        if not (distinct and question in asked):
            found.append(sample)
            asked.add(question)
    return found


def _sample(row: int, generator: random.Random) -> Sample:
    task = generator.choice(("capital", "sum", "reverse"))
    if task == "capital":
        country = generator.choice(sorted(_CAPITALS))
        question, answer = f"What is the capital of {country}?", _CAPITALS[country]
    elif task == "sum":
        left, right = generator.randrange(10), generator.randrange(10)
        question, answer = f"What is {left} plus {right}?", str(left + right)
    else:
        word = generator.choice(_WORDS)
        question, answer = f"Write the word {word} in reverse.", word[::-1]
    messages: tuple[Message, ...] = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    )
    return Sample(id=str(row), row=row, messages=messages, metadata={"task": task})


def tiny_dataset(
    n: int = 8,
    seed: int = 0,
    *,
    template: str = "chatml",
    cutoff_len: int = 128,
    tokenizer: PreTrainedTokenizerFast | None = None,
    distinct: bool = False,
) -> TokenizedDataset:
    """:func:`tiny_samples`, tokenised with ``template`` and :func:`tiny_tokenizer` (or ``tokenizer``)."""
    from dataflex.data import ChatTemplate, tokenize

    loaded = ChatTemplate.load(template, tokenizer or tiny_tokenizer())
    return tokenize(tiny_samples(n, seed, distinct=distinct), loaded, cutoff_len, progress=False)
