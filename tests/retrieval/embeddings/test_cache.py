from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataflex.errors import ModelError
from dataflex.retrieval.embeddings.cache import embed_texts, sorted_unique
from helpers import encoders
from helpers.encoders import WordEncoder, texts


def shards(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.rglob("*.safetensors")}


def test_each_text_has_the_unit_vector_of_the_encoder(tmp_path: Path) -> None:
    given = ["a b", "c", "a b", "long long text"]
    found = embed_texts(given, WordEncoder(), tmp_path)
    plain = WordEncoder().encode(given).astype(np.float64)
    expected = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found.vectors[found.place], expected, atol=1e-7)
    assert found.vectors.shape == (3, 64)


def test_texts_are_encoded_once_each_and_longest_first(tmp_path: Path) -> None:
    encoder = WordEncoder()
    embed_texts(["bb", "a", "ccc", "a"], encoder, tmp_path, shard_rows=2)
    assert encoder.calls == [["ccc", "bb"], ["a"]]


def test_equal_lengths_are_sorted_by_text() -> None:
    distinct, place = sorted_unique(["b", "a", "b", "cc"])
    assert distinct == ["cc", "a", "b"]
    assert place.tolist() == [2, 1, 2, 0]


def test_a_second_run_and_another_order_read_the_cache_and_load_no_model(tmp_path: Path) -> None:
    first = embed_texts(texts(20), WordEncoder(), tmp_path, shard_rows=8)
    encoder = WordEncoder()
    again = embed_texts(texts(20)[::-1], encoder, tmp_path, shard_rows=8)
    assert encoder.calls == []
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.vectors[again.place][::-1], first.vectors[first.place])


@pytest.mark.parametrize("change", ["encoder", "texts"])
def test_another_encoder_or_other_texts_have_a_place_of_their_own(change: str, tmp_path: Path) -> None:
    embed_texts(texts(20), WordEncoder(), tmp_path)
    kept = shards(tmp_path)
    encoder = WordEncoder(version=2 if change == "encoder" else 1)
    embed_texts(texts(21 if change == "texts" else 20), encoder, tmp_path)
    assert len(encoder.calls) == 1
    folders = {path.parent for path in tmp_path.rglob("*.safetensors")}
    assert len(folders) == 2
    assert any(kept.items() <= {p.name: p.read_bytes() for p in folder.iterdir()}.items() for folder in folders)


def test_a_damaged_shard_is_embedded_again_and_only_that_one(tmp_path: Path) -> None:
    expected = embed_texts(texts(20), WordEncoder(), tmp_path, shard_rows=8)
    file = sorted(tmp_path.rglob("*.safetensors"))[1]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    encoder = WordEncoder()
    found = embed_texts(texts(20), encoder, tmp_path, shard_rows=8)
    assert [len(call) for call in encoder.calls] == [8]
    np.testing.assert_array_equal(found.vectors, expected.vectors)


@pytest.mark.integration
def test_a_killed_embedding_goes_on_where_it_stopped(tmp_path: Path) -> None:
    unbroken = embed_texts(texts(40), WordEncoder(), tmp_path / "unbroken", shard_rows=8)
    cache = tmp_path / "killed"
    script = [sys.executable, "-c", f"from helpers.encoders import main; main({str(cache)!r}, 3)"]
    done = subprocess.run(script, cwd=Path(encoders.__file__).parents[1], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    left = shards(cache)
    assert len(left) == 3

    encoder = WordEncoder()
    resumed = embed_texts(texts(40), encoder, cache, shard_rows=8)
    assert encoder.calls == [sorted_unique(texts(40))[0][start : start + 8] for start in (24, 32)]
    assert left.items() <= shards(cache).items()
    assert shards(cache) == shards(tmp_path / "unbroken")
    np.testing.assert_array_equal(resumed.vectors, unbroken.vectors)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_vector_that_has_no_direction_is_an_error_that_names_the_text(value: float, tmp_path: Path) -> None:
    class Broken(WordEncoder):
        def encode(self, texts):
            vectors = super().encode(texts)
            vectors[list(texts).index("bad")] = value
            return vectors

    with pytest.raises(ModelError, match=r"1 of 2 texts a vector that is zero or not finite: 'bad'"):
        embed_texts(["bad", "good"], Broken(), tmp_path)
    assert shards(tmp_path) == {}
