from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from dataflex.errors import ModelError
from dataflex.models.adapters import load_adapter, outline_adapter
from dataflex.models.model import load_model, outline_model, trainable_parameters
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from helpers.families import family_model

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    tiny_lora(load_model(base)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def saved(model, folder, **lora) -> Path:
    """A LoRA adapter with generic values."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, **lora))
    with torch.no_grad():
        for _, parameter in trainable_parameters(adapted):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder)
    return folder


def refusals(base, path):
    """What loading says, and the doctor's outline: the same, in one line, but for what only values tell."""
    said = []
    for model, load in ((load_model(base), load_adapter), (outline_model(base), outline_adapter)):
        with pytest.raises(ModelError) as caught:
            load(model, str(path))
        assert "\n" not in caught.value.message
        said.append(caught.value)
    return said


@pytest.mark.parametrize("trainable", [True, False])
def test_an_adapter_is_loaded_as_it_was_saved(base, adapter, trainable):
    loaded = load_adapter(load_model(base), adapter, trainable=trainable)
    expected = tiny_lora(load_model(base))
    own, other = expected.state_dict(), loaded.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert any(parameter.requires_grad for parameter in loaded.parameters()) is trainable
    assert loaded.training is trainable or not trainable
    assert loaded.peft_config["default"].base_model_name_or_path == base
    assert outline_adapter(outline_model(base), str(adapter)).state_dict().keys() == other.keys()


def test_pickled_weights_are_refused_though_peft_would_read_them(base, adapter):
    class Trap:
        def __reduce__(self):
            return os.abort, ()

    torch.save(Trap(), adapter / "adapter_model.bin")
    load_adapter(load_model(base), adapter)  # safetensors are there too
    (adapter / WEIGHTS).unlink()
    for error in refusals(base, adapter):
        assert "its weights are pickled (adapter_model.bin), which may run code when they are read" in error.message
        assert "save_pretrained(FOLDER) writes safetensors" in error.hint


def test_weights_or_configuration_that_are_missing(base, adapter, tmp_path):
    (adapter / WEIGHTS).unlink()
    for error in refusals(base, adapter):
        assert (
            error.message == f"cannot load the adapter {str(adapter)!r}: there are no weights in {adapter} ({WEIGHTS})"
        )
    for error in refusals(base, tmp_path):
        assert f"{CONFIG} is missing in {tmp_path}" in error.message
    for error in refusals(base, tmp_path / "nowhere"):
        assert "there is no folder" in error.hint


@pytest.mark.parametrize("length", [0, 100, 2000])
def test_torn_weights(base, adapter, length):
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:length])
    for error in refusals(base, adapter):
        assert "the file is damaged or cut off (Error while deserializing header" in error.message


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[", "not valid JSON: Expecting value"),
        ("null", "TypeError"),
        ('{"peft_type": "NOPE"}', "'NOPE' is missing or unknown"),
        ('{"peft_type": "LORA", "r": "x", "target_modules": ["q_proj"]}', "TypeError"),
        ('{"peft_type": "LORA", "target_modules": ["nowhere"]}', "Target modules {'nowhere'} not found"),
        ('{"peft_type": "LORA", "target_modules": ["q_proj"], "task_type": "SEQ_CLS"}', "it is LORA for SEQ_CLS"),
        ('{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}', "it is PROMPT_TUNING for CAUSAL_LM"),
    ],
)
def test_odd_configurations(base, adapter, text, cause):
    (adapter / CONFIG).write_text(text, encoding="utf-8")
    for error in refusals(base, adapter):
        assert error.message.startswith(f"cannot load the adapter {str(adapter)!r}: ")
        assert cause in error.message


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_tokens_that_were_added_are_counted(base, tmp_path):
    model = load_model(base)
    model.resize_token_embeddings(387, mean_resizing=False)
    path = saved(model, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    for error in refusals(base, path):
        assert error.message.endswith(
            ": its model.embed_tokens has 387 rows, the model's 384: tokens were added when it was trained"
        )
        assert "model.resize_token_embeddings(387)" in error.hint


@pytest.mark.parametrize(
    ("size", "cause"),
    [
        ({"hidden_size": 64}, "q_proj.lora_A has shape [2, 64], the model's [2, 32] (and 3 more)"),
        ({"num_hidden_layers": 3}, "2 tensors have no place in the model (model.layers.2.self_attn.q_proj.lora_A"),
        (
            {"num_hidden_layers": 1},
            "2 tensors that the model needs are not in it (model.layers.1.self_attn.q_proj",
        ),
    ],
)
def test_an_adapter_of_another_base_model_is_not_put_on_what_fits(base, tmp_path, size, cause):
    saved(tiny_model(**size), tmp_path / "a", target_modules=["q_proj"])
    for error in refusals(base, tmp_path / "a"):
        assert cause in error.message
        assert "; it was trained on another base model" in error.message
        assert error.hint == "model_name_or_path must be the model that the adapter was trained on"


def test_an_adapter_of_another_family(base, tmp_path):
    saved(family_model("gpt2"), tmp_path / "a", target_modules=["c_attn"], fan_in_fan_out=True)
    for error in refusals(base, tmp_path / "a"):
        assert "Target modules {'c_attn'} not found in the base model" in error.message


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_a_base_embedding_beside_lora_on_it_must_be_the_models(base, tmp_path):
    path = saved(load_model(base), tmp_path / "a", target_modules=["q_proj", "embed_tokens"])
    assert any(".base_layer." in name for name in load_file(path / WEIGHTS))
    for precision in ("fp32", "bf16"):  # stored in float32
        model = load_model(base, precision=precision)
        before = model.model.embed_tokens.weight.clone()
        loaded = load_adapter(model, path)
        assert torch.equal(loaded.get_base_model().model.embed_tokens.base_layer.weight, before)
    with pytest.raises(ModelError, match=r"its model.embed_tokens.weight is not the model's; it was trained on"):
        load_adapter(tiny_model(seed=5), path)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_modules_that_are_trained_whole_take_the_adapters_values(base, tmp_path):
    path = saved(
        load_model(base), tmp_path / "a", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    loaded = load_adapter(load_model(base), path)
    stored = load_file(path / WEIGHTS)
    for name in ("model.embed_tokens", "lm_head"):
        module = loaded.get_base_model().get_submodule(name)
        assert torch.equal(module.modules_to_save["default"].weight, stored[f"base_model.model.{name}.weight"])
        assert torch.equal(module.original_module.weight, load_model(base).get_submodule(name).weight)


def test_a_tensor_that_is_missing_is_named(base, adapter):
    tensors = load_file(adapter / WEIGHTS)
    gone = next(name for name in tensors if "k_proj.lora_B" in name)
    del tensors[gone]
    save_file(tensors, adapter / WEIGHTS)
    for error in refusals(base, adapter):
        assert "1 tensors that the model needs are not in it (model.layers.0.self_attn.k_proj.lora_B" in error.message


def test_the_base_model_may_be_named_by_another_path(base, adapter, tmp_path):
    moved = shutil.copytree(base, tmp_path / "moved")
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    (adapter / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "gone/away"}), encoding="utf-8")
    load_adapter(load_model(str(moved)), adapter)
