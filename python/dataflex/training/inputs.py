"""What users hand to the trainer, turned into what the loop works on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dataflex.data.dataset import TokenizedDataset, tokenize
from dataflex.data.sources import load_samples
from dataflex.data.templates import ChatTemplate


def as_template(template: str | ChatTemplate | None, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """A chat template by name, or the tokenizer's own.

    Raises:
        DataError: Unknown name, or the tokenizer has no template.
    """
    return template if isinstance(template, ChatTemplate) else ChatTemplate.load(template, tokenizer)


def as_dataset(
    data: Any,
    template: ChatTemplate,
    cutoff_len: int,
    *,
    keep_unlabelled: bool = False,
    dataset_dir: Path | None = None,
) -> TokenizedDataset:
    """Tokenise rows, a ``datasets.Dataset``, a file or a dataset's name; a tokenised dataset passes through.

    Args:
        data: What to train or evaluate on.
        template: Renders conversations.
        cutoff_len: Longest sample in tokens.
        keep_unlabelled: Keep samples without an answer: an evaluation set for rewards needs none.
        dataset_dir: Folder of ``dataset_info.json``.

    Raises:
        DataError: Rows of no known form, or nothing left to train on.
    """
    if isinstance(data, TokenizedDataset):
        return data
    samples = load_samples(data, dataset_dir=dataset_dir)
    return tokenize(samples, template, cutoff_len, keep_unlabelled=keep_unlabelled)
