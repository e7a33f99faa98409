"""What a model has room for: ids of tokens and positions. What goes beyond is found before anything is computed.

An id beyond the embedding is an IndexError in some step (on a GPU, one that names nothing). A row beyond the positions
is the same for models that look positions up in a table (GPT-2, OPT, GPT-J); those that compute them (rotary) run on,
with positions that they were not trained with.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn
from transformers import PreTrainedModel

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import ModelError
from dataflex.models.model import base_model
from dataflex.utils.launch import is_main_process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

    from dataflex.data.dataset import TokenizedDataset

logger = logging.getLogger(__name__)

_SPARE = 4
"""Rows that a table of positions may have beyond the number in the configuration: OPT keeps 2 for padding."""
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a model has room for; None where that is not known.

    Attributes:
        inputs: Ids that the embedding has a row for, from 0.
        outputs: Ids that the output head has a logit for.
        positions: Positions that the model has, or was trained with.
        table: Positions are looked up: one beyond them is an error.
    """

    inputs: int | None
    outputs: int | None
    positions: int | None
    table: bool

    @classmethod
    def of(cls, model: nn.Module) -> Bounds:
        """The bounds of a causal language model, adapters or not; its weights may be on the meta device.

        Only models of transformers say what they have room for.
        """
        base = base_model(model)
        if not isinstance(base, PreTrainedModel):
            return cls(None, None, None, table=False)
        table = _position_table(base)
        limit = _trained_positions(base.config) if table is None else table
        head = base.get_output_embeddings()  # type: ignore[no-untyped-call]
        return cls(_rows(base.get_input_embeddings()), _rows(head), limit, table is not None)


class Tokens(Protocol):
    """A tokenised row."""

    @property
    def input_ids(self) -> list[int]:
        """T token ids."""

    @property
    def labels(self) -> list[int]:
        """T labels, -100 where there is no loss."""


@dataclass(slots=True)
class Findings:
    """What does not fit.

    Attributes:
        problems: What will fail, with the way on.
        warnings: What will run, with other results than one would expect.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def raise_or_warn(self) -> None:
        """Raise the problems, or log the warnings.

        Raises:
            ModelError: There are problems: all of them.
        """
        if self.problems:
            raise ModelError("\n".join(self.problems))
        self.warn()

    def warn(self) -> None:
        """Log the warnings once, whatever the number of processes."""
        if is_main_process():
            for warning in self.warnings:
                logger.warning("%s", warning)

    def check_padding(self, bounds: Bounds, tokenizer: PreTrainedTokenizerBase) -> None:
        """See that the model has an embedding for the token that fills batches."""
        padding = tokenizer.pad_token_id
        if padding is not None and _outside({int(padding)}, bounds.inputs):
            self.problems.append(
                f"the padding token, {_token(tokenizer, int(padding))}, is beyond the model's embedding of "
                f"{bounds.inputs:,} rows; {_RESIZE}"
            )

    def check_ids(
        self,
        bounds: Bounds,
        tokenizer: PreTrainedTokenizerBase,
        what: str,
        rows: Sequence[Tokens],
        names: Sequence[str],
    ) -> None:
        """Compare the ids of rows and their labels with the model's embedding and head.

        Args:
            bounds: The model's.
            tokenizer: Names the tokens.
            what: Name of the rows, ``training set`` for example.
            rows: The rows.
            names: The id of each.
        """
        beyond = []
        for name, row in zip(names, rows, strict=True):
            labels = set(row.labels) - {IGNORE_INDEX}
            strange = _outside(set(row.input_ids), bounds.inputs) | _outside(labels, bounds.outputs)
            if strange:
                beyond.append((name, min(strange)))
        if beyond:
            shown = ", ".join(f"row {name} uses {_token(tokenizer, number)}" for name, number in beyond[:_SHOWN])
            more = ", ..." if len(beyond) > _SHOWN else ""
            self.problems.append(
                f"{what}: {len(beyond):,} of {len(rows):,} rows use tokens beyond the model's {_size(bounds)} "
                f"(the tokenizer has {len(tokenizer):,} tokens): {shown}{more}; {_RESIZE}"
            )

    def check_lengths(self, bounds: Bounds, what: str, lengths: Collection[int], way_on: str) -> None:
        """Compare the tokens of rows, or of prompts with the longest answer to them, with the model's positions.

        Args:
            bounds: The model's.
            what: Name of the rows.
            lengths: Tokens of each.
            way_on: What makes them shorter.
        """
        limit = bounds.positions
        longer = sum(length > limit for length in lengths) if limit is not None else 0
        if not longer:
            return
        found = f"{what}: {longer:,} of {len(lengths):,} are longer than the {limit:,} positions "
        found += "that the model has" if bounds.table else "that the model was trained with"
        found += f" (the longest: {max(lengths):,} tokens); {way_on}"
        (self.problems if bounds.table else self.warnings).append(found)


_RESIZE = (
    "take the model's own tokenizer, or resize the embedding (model.resize_token_embeddings(len(tokenizer))) and save "
    "the model"
)


def examine(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, sets: Mapping[str, TokenizedDataset | None]
) -> Findings:
    """Which rows of tokenised sets do not fit the model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        sets: The sets by name; None: there is no such set.
    """
    bounds, found = Bounds.of(model), Findings()
    found.check_padding(bounds, tokenizer)
    for what, examples in sets.items():
        if examples:
            if _outside({*examples.id_bounds}, _least(bounds)):  # else no row has to be looked at
                found.check_ids(bounds, tokenizer, what, examples, [example.sample.id for example in examples])
            found.check_lengths(bounds, what, examples.lengths, f"cutoff_len: {bounds.positions} cuts them")
    return found


def _least(bounds: Bounds) -> int | None:
    """The smaller of embedding and head."""
    return min((rows for rows in (bounds.inputs, bounds.outputs) if rows is not None), default=None)


def _outside(ids: set[int], limit: int | None) -> set[int]:
    """Ids below 0, or from ``limit`` on."""
    if not ids or (min(ids) >= 0 and (limit is None or max(ids) < limit)):
        return set()
    return {number for number in ids if number < 0 or (limit is not None and number >= limit)}


def _token(tokenizer: PreTrainedTokenizerBase, number: int) -> str:
    known = 0 <= number < len(tokenizer)
    return f"token {number} ({tokenizer.convert_ids_to_tokens(number)!r})" if known else f"token {number}"


def _size(bounds: Bounds) -> str:
    rows = "embedding" if bounds.inputs is None else f"embedding of {bounds.inputs:,} rows"
    return rows if bounds.outputs in (None, bounds.inputs) else f"{rows} or head of {bounds.outputs:,}"


def _rows(module: Any) -> int | None:
    weight = getattr(module, "weight", None)
    return None if weight is None else int(weight.shape[0])


def _position_table(model: PreTrainedModel) -> int | None:
    """Positions of the table that the model looks them up in; None if it computes them."""
    config: Any = model.config
    text = config.get_text_config()
    if text.model_type == "mpt":  # ALiBi, but of one length
        return int(text.max_seq_len)
    stated = getattr(text, "max_position_embeddings", None)
    return None if stated is None else min(_tables(model, stated), default=None)


def _tables(model: nn.Module, stated: int) -> Iterator[int]:
    """Lengths of what is named after positions and is about as long as the configuration says."""
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if isinstance(module, nn.Embedding) and ("pos" in last or last == "wpe"):
            rows = module.num_embeddings
            kept = int(getattr(module, "offset", 0)) + (0 if module.padding_idx is None else module.padding_idx + 1)
            if stated <= rows < stated + _SPARE:
                yield rows - kept
    for name, buffer in model.named_buffers():
        if "pos" in name.rsplit(".", 1)[-1] and stated in buffer.shape[:2]:  # GPT-J, CodeGen, CTRL; numbers of BERT's
            yield stated


def _trained_positions(config: Any) -> int | None:
    """Positions that the configuration states, scaled as its rotary frequencies are.

    Those of Llama 3 are stated as they are after scaling; its factor is one of frequencies.
    """
    text = config.get_text_config()
    stated = getattr(text, "max_position_embeddings", None)
    if not isinstance(stated, int) or stated <= 0:
        return None
    ropes = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [ropes, *ropes.values()] if isinstance(ropes, Mapping) else []
    scaled = [
        int(kind.get("original_max_position_embeddings") or stated) * float(kind.get("factor") or 1)
        for kind in kinds
        if isinstance(kind, Mapping) and kind.get("rope_type", kind.get("type")) != "llama3"
    ]
    return int(max([stated, *scaled]))
