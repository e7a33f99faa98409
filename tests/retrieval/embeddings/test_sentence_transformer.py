"""The real package on a tiny random model that is made here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from dataflex.config import load_near_config
from dataflex.errors import ModelError
from dataflex.models.identity import model_identity
from dataflex.retrieval.embeddings import encoders
from dataflex.retrieval.embeddings.sentence_transformer import SentenceTransformerEncoder, resolve_precision

TEXTS = ["red green blue", "red", "green blue red green blue", "blue blue"]
CONFIG = {"candidate_path": "a", "query_path": "b", "embed_model": "m"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of width 16 with a vocabulary of seven words, in transformers' own form (mean pooling then)."""
    path = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
        BertModel(config).save_pretrained(path)
    return path


@pytest.fixture
def encoder(folder: Path) -> Iterator[SentenceTransformerEncoder]:
    pytest.importorskip("sentence_transformers", reason="needs the extra near")
    made = SentenceTransformerEncoder(str(folder), devices=["cpu"], batch_size=2)
    yield made
    made.close()


def mean_pooled(folder: Path, text: str) -> np.ndarray:
    """The mean of the last hidden states, computed by hand."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        states = BertModel.from_pretrained(folder)(**tokenizer(text, return_tensors="pt")).last_hidden_state
    return states[0].mean(dim=0).numpy()


def test_vectors_are_those_of_the_model_whatever_the_batch(encoder: SentenceTransformerEncoder, folder: Path) -> None:
    vectors = encoder.encode(TEXTS)
    assert (vectors.shape, vectors.dtype, encoder.dim) == ((4, 16), np.float32, 16)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(vector, mean_pooled(folder, text), atol=1e-5)


def test_static_embeddings_need_no_tokenizer_of_transformers(tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers", reason="needs the extra near")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "long": 1, "word": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    static = package.sentence_transformer.modules.StaticEmbedding(tokenizer, embedding_dim=8)
    package.SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    encoder = SentenceTransformerEncoder(str(tmp_path), devices=["cpu"])
    assert encoder.coverage(["long word", "word"]) is None
    assert encoder.encode(["long word", "word"]).shape == (2, 8)


def test_what_the_model_sees_is_counted_with_its_own_tokenizer(encoder: SentenceTransformerEncoder) -> None:
    found = encoder.coverage(["word " * 2000, "word"])
    assert found.max_length is not None
    assert (found.texts, found.cut) == (2, 1)
    assert found.tokens >= 2001


def test_bf16_is_close_and_comes_out_as_float32(encoder: SentenceTransformerEncoder, folder: Path) -> None:
    half = SentenceTransformerEncoder(str(folder), devices=["cpu"], precision="bf16")
    vectors = half.encode(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), atol=0.05)
    assert half.identity()["precision"] == "bf16"


@pytest.mark.slow
def test_several_devices_give_the_same_vectors_in_the_same_order(
    encoder: SentenceTransformerEncoder, folder: Path
) -> None:
    several = SentenceTransformerEncoder(str(folder), devices=["cpu", "cpu"], batch_size=2)
    try:
        for count in (4, 3, 1):
            np.testing.assert_allclose(several.encode(TEXTS[:count]), encoder.encode(TEXTS[:count]), atol=1e-6)
    finally:
        several.close()


def test_identity_follows_the_content_of_the_folder_not_its_name(
    encoder: SentenceTransformerEncoder, folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / ".cache").write_text("hidden files do not count")
    assert model_identity(str(copy)) == model_identity(str(folder))
    assert encoder.identity()["sha256"] == model_identity(str(folder))["sha256"]
    (copy / "config.json").write_text("{}")
    assert model_identity(str(copy)) != model_identity(str(folder))


def test_a_model_from_the_hub_is_told_by_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = {"sentence-transformers/short": "/cache/snapshots/abc123/config.json"}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: cached.get(name))
    assert model_identity("short") == {"model": "short", "revision": "abc123"}
    assert model_identity("owner/other") == {"model": "owner/other", "revision": None}


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize("content", [None, "{}"])
def test_a_model_that_cannot_be_loaded_is_a_clear_error(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    model = SentenceTransformerEncoder(str(tmp_path) if content else "no/where", devices=["cpu"])
    for use in (model.check, model.identity if content is None else model.check, lambda: model.encode(["a"])):
        with pytest.raises(ModelError, match=r"cannot load the embedding model .*\n.*embed_model names a local folder"):
            use()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match=r'needs sentence-transformers.*\n.*pip install "dataflex-sdk\[near\]"'):
        SentenceTransformerEncoder("m")


def test_half_precision_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_precision("auto", ["cpu"]) == "fp32"
    assert resolve_precision("fp16", ["cpu"]) == "fp16"
    for supported, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda found=supported: found)
        assert resolve_precision("auto", ["cuda:0", "cuda:1"]) == expected


@pytest.mark.parametrize(
    ("installed", "gpu", "expected"),
    [
        (False, True, ("sentence-transformer", "vllm is not installed")),
        (True, False, ("sentence-transformer", "there is no GPU")),
        (True, True, ("vllm", "it is installed and there is a GPU")),
    ],
)
def test_auto_takes_vllm_where_it_can_run(
    installed: bool, gpu: bool, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert encoders.automatic_method() == expected


@pytest.mark.usefixtures("encoder")
def test_settings_reach_the_encoder() -> None:
    settings = load_near_config(
        {**CONFIG, "embed_device": "cuda:0, cuda:1", "batch_size": 7, "embed_precision": "fp16"}
    )
    made = encoders.open_encoder("m", settings)
    assert isinstance(made, SentenceTransformerEncoder)
    assert (made.devices, made.batch_size, made.precision) == (["cuda:0", "cuda:1"], 7, "fp16")


@pytest.mark.usefixtures("encoder")
@pytest.mark.parametrize("part", [".", "2_Dense"])
def test_pickled_weights_of_any_part_are_refused(folder: Path, tmp_path: Path, part: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / part).mkdir(exist_ok=True)
    if part == ".":
        (copy / "model.safetensors").unlink()
    torch.save({}, copy / part / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"its weights are pickled \(pytorch_model.bin\), which may run code"):
        SentenceTransformerEncoder(str(copy), devices=["cpu"]).check()
