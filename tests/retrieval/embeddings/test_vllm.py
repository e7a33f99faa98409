"""The vLLM encoder against a stand-in that checks its calls; the real engine under the marker ``vllm``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dataflex.config import load_near_config
from dataflex.errors import ModelError
from dataflex.retrieval.embeddings.encoders import open_encoder
from dataflex.retrieval.embeddings.vllm import VllmEncoder
from dataflex.testing import tiny_tokenizer


class FakeVllm:
    """What the stand-in saw, and how it behaves."""

    def __init__(self) -> None:
        self.engines: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.shutdowns = 0
        self.fails_at = ""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    state = FakeVllm()

    class LLM:
        def __init__(
            self, *, model: str, runner: str, dtype: str, max_num_seqs: int, trust_remote_code: bool, **on_cpu: Any
        ) -> None:
            if state.fails_at == "start":
                raise ValueError("No supported architecture")
            assert runner == "pooling"
            # Else the engine wants most of the machine's memory to be free.
            assert on_cpu == {
                "load_format": "safetensors",
                "enforce_eager": True,
                "kv_cache_memory_bytes": 2 * 2**30,
                "enable_chunked_prefill": False,
            }
            state.engines.append({"model": model, "dtype": dtype, "seqs": max_num_seqs, "trust": trust_remote_code})
            core = SimpleNamespace(shutdown=lambda: setattr(state, "shutdowns", state.shutdowns + 1))
            self.llm_engine = SimpleNamespace(engine_core=core)
            self.model_config = SimpleNamespace(max_model_len=8)

        def get_tokenizer(self) -> Any:
            return tiny_tokenizer()

        def embed(self, prompts: list[str], *, use_tqdm: bool, tokenization_kwargs: dict[str, Any]) -> list[Any]:
            if state.fails_at == "embed":
                raise ValueError("Embedding API is not supported by this model")
            state.calls.append({"prompts": prompts, "tqdm": use_tqdm, **tokenization_kwargs})
            return [SimpleNamespace(outputs=SimpleNamespace(embedding=[float(len(text)), 1.0])) for text in prompts]

    module = ModuleType("vllm")
    module.LLM = LLM  # type: ignore[attr-defined]
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    return state


def test_texts_go_in_one_call_and_come_back_in_order(fake: FakeVllm) -> None:
    encoder = VllmEncoder("m", precision="bf16", batch_size=5, trust_remote_code=True)
    assert not fake.engines
    vectors = encoder.encode(["a", "ccc"])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 1], [3, 1]]
    assert fake.engines == [{"model": "m", "dtype": "bfloat16", "seqs": 5, "trust": True}]
    assert fake.calls == [{"prompts": ["a", "ccc"], "tqdm": False, "truncate_prompt_tokens": -1}]
    assert encoder.dim == 2
    assert len(fake.engines) == 1


def test_close_frees_the_engine_and_the_next_call_starts_another(fake: FakeVllm) -> None:
    encoder = VllmEncoder("m")
    encoder.close()
    encoder.encode(["a"])
    encoder.close()
    encoder.close()
    assert fake.shutdowns == 1
    encoder.encode(["a"])
    assert len(fake.engines) == 2


@pytest.mark.parametrize(
    ("at", "message"),
    [("start", "'m' did not start.*engine's own log"), ("embed", "failed to embed 1 texts.*sentence-transformer")],
)
def test_failures_are_clear_errors(at: str, message: str, fake: FakeVllm) -> None:
    fake.fails_at = at
    with pytest.raises(ModelError, match=rf"(?s){message}"):
        VllmEncoder("m").encode(["a"])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match=r'needs vLLM.*\n.*pip install "dataflex-sdk\[vllm\]"'):
        VllmEncoder("m")


def test_settings_reach_the_encoder(fake: FakeVllm) -> None:
    settings = load_near_config(
        {"candidate_path": "a", "query_path": "b", "embed_model": "m", "embed_method": "vllm", "batch_size": 3}
    )
    encoder = open_encoder("m", settings)
    encoder.encode(["a"])
    assert fake.engines == [{"model": "m", "dtype": "auto", "seqs": 3, "trust": False}]
    assert encoder.identity()["method"] == "vllm"


def test_a_hub_model_is_fetched_before_it_is_told_by_its_revision(
    fake: FakeVllm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def revision(name: str, file: str) -> str | None:
        return "/cache/snapshots/abc123/config.json" if fake.engines and name == "owner/m" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", revision)
    encoder = VllmEncoder("owner/m")
    first = encoder.identity()
    assert first == {"method": "vllm", "model": "owner/m", "revision": "abc123", "precision": "auto"}
    assert VllmEncoder("owner/m").identity() == first
    assert len(fake.engines) == 1  # a cached one is told without an engine
    assert "sha256" in VllmEncoder(str(tmp_path)).identity()
    assert len(fake.engines) == 1


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("default")  # vLLM's own warnings are no errors of ours
@pytest.mark.slow
@pytest.mark.skipif("DATAFLEX_TEST_EMBED_MODEL" not in os.environ, reason="DATAFLEX_TEST_EMBED_MODEL names no encoder")
def test_the_real_engine_gives_the_vectors_of_sentence_transformers() -> None:
    """Needs vLLM, and DATAFLEX_TEST_EMBED_MODEL: the folder of a sentence-transformers model that vLLM knows."""
    from dataflex.retrieval.embeddings.sentence_transformer import SentenceTransformerEncoder

    model = os.environ["DATAFLEX_TEST_EMBED_MODEL"]
    texts = ["What is 2 plus 3?", "The capital of France is Paris.", "long " * 2000]
    engine, plain = VllmEncoder(model, precision="fp32"), SentenceTransformerEncoder(model, devices=["cpu"])
    try:
        found, expected = engine.encode(texts), plain.encode(texts)
    finally:
        engine.close()
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.999


@pytest.mark.usefixtures("fake")
def test_texts_beyond_the_engine_s_length_are_counted() -> None:
    found = VllmEncoder("m").coverage(["short", "one two three four five six seven eight nine ten"])
    assert (found.texts, found.cut, found.max_length) == (2, 1, 8)
