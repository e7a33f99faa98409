from __future__ import annotations

import json
import shutil

import pytest
import torch

from dataflex.errors import ModelError
from dataflex.models.adapters import load_adapter
from dataflex.models.model import (
    add_lora,
    base_model,
    load_model,
    load_tokenizer,
    outline_model,
    recomputing,
    recomputing_layers,
    save_model,
    trainable_parameters,
)
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from helpers.architectures import architecture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_lora_on_all_linear_layers_but_the_head(folder):
    model = add_lora(load_model(str(folder)), rank=3, alpha=6)
    names = [name for name, _ in trainable_parameters(model)]
    assert len(names) == 2 * 7 * 2
    assert all("lora_" in name for name in names)
    assert not any("lm_head" in name for name in names)
    assert all(3 in parameter.shape for _, parameter in trainable_parameters(model))


def test_lora_on_named_layers(folder):
    for target in ("q_proj", ["q_proj"]):
        names = [name for name, _ in trainable_parameters(add_lora(load_model(str(folder)), rank=2, target=target))]
        assert len(names) == 4
        assert all("q_proj" in name for name in names)
    with pytest.raises(ModelError, match="lora_target 'qkv' fits no module") as caught:
        add_lora(load_model(str(folder)), target="qkv")
    assert "q_proj" in str(caught.value)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_base_weights_take_the_precision_and_adapters_stay_float32(folder, precision, dtype):
    model = add_lora(load_model(str(folder), precision=precision))
    assert base_model(model).lm_head.weight.dtype == dtype
    assert {parameter.dtype for _, parameter in trainable_parameters(model)} == {torch.float32}


def test_an_adapter_goes_on_from_where_it_was_saved(folder, tmp_path):
    saved = tiny_lora(load_model(str(folder)))
    (tmp_path / "keep.txt").write_text("mine", encoding="utf-8")
    save_model(saved, tiny_tokenizer(), tmp_path)
    assert (tmp_path / "keep.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    loaded = load_adapter(load_model(str(folder)), tmp_path)
    for (name, expected), (other, found) in zip(trainable_parameters(saved), trainable_parameters(loaded), strict=True):
        assert name == other
        assert torch.equal(found, expected)


def test_missing_models_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match="cannot load the") as caught:
            load(str(tmp_path / "nowhere"))
        assert "HF_HUB_OFFLINE forbids the hub" in str(caught.value)


def test_pickled_weights_are_not_read(tmp_path):
    model = tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for load in (load_model, outline_model):
        with pytest.raises(
            ModelError, match=r"its weights are pickled \(pytorch_model.bin\), which may run code"
        ) as caught:
            load(str(tmp_path))
        assert "save_pretrained(FOLDER) writes safetensors" in caught.value.hint


def test_a_tokenizer_without_padding_pads_with_its_end_token(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "</s>"


def test_a_frozen_model_is_said():
    model = tiny_model()
    model.requires_grad_(False)
    with pytest.raises(ModelError, match="no trainable parameters"):
        trainable_parameters(model)


def test_recomputing_follows_training_and_keeps_eval_mode():
    model = tiny_model().eval()
    layers = list(model.model.layers)
    with recomputing(recomputing_layers(model)):
        assert not any(module.training for module in model.modules())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with recomputing(recomputing_layers(model)):
        assert [module for module in model.modules() if module.training] == layers
    assert not any(module.training for module in model.modules())


def test_layers_that_cannot_recompute_in_eval_mode_do_not(monkeypatch):
    model = tiny_model().eval()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with recomputing(recomputing_layers(model)):
        assert not any(module.training for module in model.modules())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def forward(self, hidden_states, **kwargs):
        return torch.nn.functional.dropout(hidden_states, training=self.training)

    monkeypatch.setattr(type(model.model.layers[0]), "forward", forward)
    with recomputing(recomputing_layers(model)):
        assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("config.json", "null", "TypeError"),
        ("config.json", '{"model_type": "llama", "hidden_size": "wide"}', "'hidden_size'"),
        ("config.json", '{"model_type": "llama", "hidden_act": "zz", "hidden_size": 32}', "'zz' is missing or unknown"),
        ("model.safetensors", "", "the file is damaged or cut off"),
        ("tokenizer.json", "[", "not valid JSON: Expecting value (line 1, column 2)"),
        ("tokenizer_config.json", "3", "AttributeError"),
    ],
)
def test_damaged_files_of_a_model_are_an_error_of_one_line(folder, tmp_path, name, text, cause):
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / name).write_text(text, encoding="utf-8")
    load = load_tokenizer if name.startswith("tokenizer") else load_model
    with pytest.raises(ModelError, match=r"cannot (load|read) ") as caught:
        load(str(damaged))
    assert cause in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("load", [load_model, outline_model])
def test_weights_of_another_model_are_refused_before_they_take_memory(folder, tmp_path, load):
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")  # sizes of 7B by default
    with pytest.raises(ModelError, match=r"its weights are not those that its config\.json describes") as caught:
        load(str(other))
    assert "lm_head.weight has shape [384, 32] in the files, [32000, 4096] by the configuration (and 20 more)" in str(
        caught.value
    )


def test_layers_that_are_not_in_the_files_are_not_made_up(tmp_path):
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path)
    tiny_model(num_hidden_layers=2).config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"9 tensors that its config.json describes are not in its files"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("load", [load_model, outline_model])
def test_files_of_weights_that_are_missing_are_named(tmp_path, load):
    tiny_model().save_pretrained(tmp_path, max_shard_size="50KB")
    load(str(tmp_path))
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(ModelError, match=r"1 of the 4 files of weights .* are missing: model-00002-of-00004"):
        load(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": 3}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"cannot read .*index\.json"):
        load(str(tmp_path))


@pytest.mark.parametrize("load", [load_model, outline_model])
def test_quantised_weights_are_refused(folder, tmp_path, load):
    quantised = shutil.copytree(folder, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (quantised / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="its weights are quantised, which is not supported"):
        load(str(quantised))


def test_routers_and_fused_layers_are_left_out_of_all_linear_layers() -> None:
    """Peft's layers broke on a router that returns a tuple, and peft refuses what Mamba's kernels fuse."""
    mixture = architecture("phimoe")
    assert not [name for name, _ in mixture.named_parameters() if "router" in name and "lora" in name]
    assert [name for name, _ in mixture.named_parameters() if "q_proj.lora_A" in name]
    recurrent = architecture("mamba")
    assert [name for name, _ in recurrent.named_parameters() if "in_proj.lora_A" in name]
    assert not [name for name, _ in recurrent.named_parameters() if "out_proj" in name and "lora" in name]
    falcon = architecture("falcon")  # its linear layers have a forward pass of their own
    assert [name for name, _ in falcon.named_parameters() if "dense.lora_A" in name]
