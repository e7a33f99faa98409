"""How much of the texts an encoder can see: tokens that its vocabulary lacks, and texts that it cuts.

An English encoder turns Chinese into unknown tokens, and a short one drops the end of every long text; the vectors look
like any others. Both are counted before anything is embedded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

TEXTS_AT_ONCE = 1000
UNKNOWN_WORTH_SAYING = 0.02
"""Share of unknown tokens that is said: emoji and rare signs stay below it, another script is far above."""
CUT_WORTH_SAYING = 0.05
"""Share of texts that lose their end that is said."""


@dataclass(frozen=True)
class Coverage:
    """What an encoder sees of n texts.

    Attributes:
        texts: n.
        tokens: Tokens of all texts, special ones that the encoder adds left out.
        unknown: Tokens of these that stand for anything that the vocabulary lacks.
        cut: Texts longer than the encoder's longest sequence, which lose their end.
        max_length: That length in tokens; None if the encoder has no bound.
    """

    texts: int
    tokens: int
    unknown: int
    cut: int
    max_length: int | None

    def to_json(self) -> dict[str, Any]:
        """The counts, for sidecars."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """What the user should know; empty if the encoder sees the texts as they are."""
        found = []
        unknown, cut = self.unknown / max(self.tokens, 1), self.cut / max(self.texts, 1)
        if unknown >= UNKNOWN_WORTH_SAYING:
            found.append(
                f"{unknown:.0%} of the tokens are unknown to the encoder: texts that differ in them look alike; take "
                "an embed_model that knows their language"
            )
        if cut >= CUT_WORTH_SAYING:
            found.append(
                f"{self.cut:,} of {self.texts:,} texts ({cut:.0%}) are longer than the encoder's {self.max_length} "
                "tokens and lose their end; take a longer embed_model, or a shorter text_template"
            )
        return found


def token_coverage(texts: Sequence[str], tokenizer: Any, max_length: int | None) -> Coverage:
    """Count tokens, unknown ones and texts that will be cut.

    Args:
        texts: The texts.
        tokenizer: The encoder's, of transformers.
        max_length: The encoder's longest sequence in tokens, special ones included; None: no bound.
    """
    tokens = unknown = cut = 0
    added = tokenizer.num_special_tokens_to_add(pair=False)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = list(texts[start : start + TEXTS_AT_ONCE])
        ids = tokenizer(part, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        tokens += sum(map(len, ids))
        if tokenizer.unk_token_id is not None:
            unknown += sum(row.count(tokenizer.unk_token_id) for row in ids)
        if max_length is not None:
            cut += sum(len(row) + added > max_length for row in ids)
    return Coverage(len(texts), tokens, unknown, cut, max_length)
