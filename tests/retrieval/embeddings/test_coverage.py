"""Unknown tokens and cut texts are counted, said, and kept."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dataflex.retrieval.embeddings.cache import embed_texts
from dataflex.retrieval.embeddings.coverage import Coverage, token_coverage
from dataflex.retrieval.matrix import load_matrix
from helpers.encoders import WordEncoder
from helpers.near import near_index, rows

WORDS = ["[UNK]", "the", "sum", "of", "one", "and", "two"]


def english() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


class EnglishEncoder(WordEncoder):
    """Sees words of one language, four at most."""

    asked = 0

    def coverage(self, texts):
        type(self).asked += 1
        return token_coverage(texts, english(), 4)


def test_unknown_tokens_and_cut_texts_are_counted():
    found = token_coverage(["the sum of one and two", "\u4e00 \u4e8c one", "two"], english(), 4)
    assert found == Coverage(texts=3, tokens=10, unknown=2, cut=1, max_length=4)
    assert [text[:30] for text in found.warnings()] == [
        "20% of the tokens are unknown ",
        "1 of 3 texts (33%) are longer ",
    ]
    assert token_coverage(["the sum of one and two"], english(), None).warnings() == []


def test_it_is_said_before_anything_is_embedded_and_kept_in_the_cache(tmp_path: Path, caplog):
    encoder = EnglishEncoder()
    texts = ["\u4e00 \u4e8c \u4e09", "one and two"]
    with caplog.at_level(logging.WARNING):
        first = embed_texts(texts, encoder, tmp_path, description="embedding queries")
    assert "embedding queries: 50% of the tokens are unknown to the encoder" in caplog.text
    caplog.clear()
    asked = EnglishEncoder.asked
    with caplog.at_level(logging.WARNING):
        again = embed_texts(texts, EnglishEncoder(), tmp_path, description="embedding queries")
    assert EnglishEncoder.asked == asked
    assert again.coverage == first.coverage
    assert "50% of the tokens" in caplog.text


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_similarities_and_what_was_seen_stand_beside_the_matrix(tmp_path: Path, duplicates):
    candidates = [*rows(6), rows(6)[0]]
    built = near_index(tmp_path, candidates, encoder=EnglishEncoder(), duplicates=duplicates).build()
    found = load_matrix(tmp_path / "near.npy")
    assert found.similarities.tolist() == built.similarities.tolist()
    assert (found.similarities[:, :-1] >= found.similarities[:, 1:]).all()
    assert found.similarities.shape == found.neighbors.shape
    facts = json.loads((tmp_path / "near.json").read_text(encoding="utf-8"))
    assert facts["seen"]["queries"]["unknown"] > 0
    assert facts["similarity"]["first"] == pytest.approx(found.similarities[:, 0].mean(), abs=1e-6)
    if duplicates == "keep":
        twins = [set(np_row) for np_row in found.neighbors.tolist()]
        for row, cosines in enumerate(found.similarities.tolist()):
            if {0, 18} <= twins[row]:
                places = found.neighbors[row].tolist()
                assert cosines[places.index(0)] == cosines[places.index(18)]
