"""The text of a row, with the part that is learnt set apart: ``dataflex preview``.

The text is decoded from the token ids, so it is what the model sees: special tokens, cuts and all.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

import click
from transformers import PreTrainedTokenizerBase

from dataflex.config import RunConfig
from dataflex.data.encoding import IGNORE_INDEX, Encoded
from dataflex.data.templates import ChatTemplate
from dataflex.doctor.look import Look, learnt_tokens, look, spread
from dataflex.errors import ConfigError
from dataflex.models.model import load_tokenizer
from dataflex.training.run import load_rows
from dataflex.types import Sample
from dataflex.utils.shown import shown

MARKS = ("[[", "]]")
"""Around what is learnt, where there is no colour."""


def preview(config: RunConfig, *, samples: int, rows: int, evaluation: bool, colour: bool) -> Iterator[str]:
    """Lines of the preview.

    Args:
        config: The run.
        samples: Rows to print.
        rows: Rows to count over, at most.
        evaluation: Of the evaluation set, in place of the training set.
        colour: Mark what is learnt with colour, in place of brackets.

    Raises:
        DataflexError: Model, template or data cannot be used.
    """
    tokenizer = load_tokenizer(config.locate(config.model_name_or_path), trust_remote_code=config.trust_remote_code)
    template = ChatTemplate.load(config.template, tokenizer)
    training, held_out = load_rows(config)
    if evaluation and held_out is None:
        raise ConfigError("the run has no evaluation set", hint="set eval_dataset or val_size")
    seen = look((held_out or []) if evaluation else training, template, config.cutoff_len, rows)
    yield from (
        f"{'evaluation' if evaluation else 'training'} set: {seen.lines()[0]}",
        *(f"  {line}" for line in seen.lines()[1:]),
        f"template: {template.name}; learnt is what is {'green' if colour else f'between {MARKS[0]} and {MARKS[1]}'}",
    )
    for place in spread(len(seen.samples), samples):
        yield ""
        yield _heading(seen, place)
        yield marked(seen.encoded[place], tokenizer, colour=colour)


def _heading(seen: Look, place: int) -> str:
    sample: Sample = seen.samples[place]
    row = seen.encoded[place]
    cut = ", cut" if row.truncated else ""
    heading = f"row {sample.row} (id {sample.id}): {len(row.input_ids)} tokens, {learnt_tokens(row)} learnt{cut}"
    return shown(heading)


def marked(row: Encoded, tokenizer: PreTrainedTokenizerBase, *, colour: bool) -> str:
    """The row's text with what is learnt in green, or in brackets."""
    pairs = [(label != IGNORE_INDEX, token) for token, label in zip(row.input_ids, row.labels, strict=True)]
    parts = []
    for learnt, run in groupby(pairs, key=itemgetter(0)):
        text = shown(tokenizer.decode([token for _, token in run]), lines=True)
        if colour:
            parts.append(click.style(text, fg="green", bold=True) if learnt else click.style(text, dim=True))
        else:
            parts.append(f"{MARKS[0]}{text}{MARKS[1]}" if learnt else text)
    return "".join(parts)
