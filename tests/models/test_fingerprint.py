from __future__ import annotations

import datetime
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from dataflex.models import fingerprint
from dataflex.models.fingerprint import state_fingerprint
from dataflex.models.model import load_model, trainable_parameters
from dataflex.testing import stepped_optimizer, tiny_lora, tiny_model

BF16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
FP16 = partial(torch.autocast, "cpu", dtype=torch.float16)


def of(model, autocast=nullcontext, optimizer=None):
    return state_fingerprint(model, autocast, optimizer)


def lora(**settings):
    """The same weights, whatever the settings."""
    torch.manual_seed(0)
    config = LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | settings))
    return get_peft_model(tiny_model(), config)


def frozen(model, name="q_proj.base_layer.weight"):
    return next(parameter for key, parameter in model.named_parameters() if key.endswith(name))


def test_trainable_values_and_moments_count():
    model = tiny_lora(tiny_model())
    optimizer = stepped_optimizer(model, 2)
    first = of(model, optimizer=optimizer)
    assert first == of(model, optimizer=optimizer)
    assert of(model) != first
    _, parameter = trainable_parameters(model)[0]
    optimizer.state[parameter]["exp_avg"].view(-1)[0] += 1e-6
    assert of(model, optimizer=optimizer) != first
    second = of(model)
    with torch.no_grad():
        parameter.view(-1)[0] += 1e-6
    assert of(model) != second


def test_equal_models_are_equal_and_other_base_weights_are_not():
    first = of(tiny_lora(tiny_model()))
    assert of(tiny_lora(tiny_model())) == first
    assert of(tiny_lora(tiny_model(seed=1))) != first
    assert of(tiny_lora(tiny_model(rope_theta=5e5))) != first
    assert of(tiny_lora(tiny_model(rms_norm_eps=1e-3))) != first


def test_one_frozen_value_is_enough(monkeypatch):
    monkeypatch.setattr(fingerprint, "SAMPLED_VALUES", 3)  # as in a large tensor, the value is in no sample
    model = tiny_lora(tiny_model())
    first = of(model)
    with torch.no_grad():
        frozen(model).view(-1)[1] += 1e-6
    assert of(model) != first


def test_a_write_past_the_version_counter_is_sampled():
    model = tiny_lora(tiny_model())
    first = of(model)
    frozen(model).data += 1e-3
    assert of(model) != first


def test_frozen_values_are_read_whole_once(monkeypatch):
    model = tiny_lora(tiny_model())
    first = of(model)
    monkeypatch.setattr(fingerprint, "_crc32", lambda tensor: pytest.fail("read again"))
    assert of(model) == first


def test_precision_of_weights_and_of_forward_passes_counts():
    model = tiny_lora(tiny_model())
    found = [of(model), of(model, BF16), of(model, FP16)]
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    assert len({*found, of(model)}) == 4
    assert of(model, partial(BF16, enabled=False)) == of(model)


@pytest.mark.parametrize("change", [{"lora_alpha": 16}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}])
def test_the_scale_of_an_adapter_counts(change):
    assert of(lora(**change)) != of(lora())


def test_what_leaves_the_values_alone_does_not_count(tmp_path):
    model = lora()
    first = of(model)
    assert of(lora(lora_dropout=0.5)) == first  # no dropout in eval mode
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.train()
    assert of(model) == first
    with torch.no_grad():
        model(torch.tensor([[5, 6]]))
    base = tiny_model()
    first = of(base)
    base.save_pretrained(tmp_path)
    assert of(base) == first
    assert of(load_model(str(tmp_path))) == first


def test_an_adapter_that_is_off_counts():
    model = lora()
    first = of(model)
    with model.disable_adapter():
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)  # peft freezes them too
        assert of(model) != first
    assert of(model) == first


@pytest.mark.gpu
def test_the_device_does_not_count():
    model = tiny_lora(tiny_model())
    first = of(model)
    assert of(model.cuda()) == first


def test_buffers_count_if_they_are_saved():
    model = tiny_lora(tiny_model())
    first = of(model)
    model.register_buffer("passing", torch.ones(2), persistent=False)
    assert of(model) == first
    model.register_buffer("kept", torch.ones(2))
    second = of(model)
    assert second != first
    model.kept[1] = 2
    assert of(model) != second


def test_values_that_json_lacks_count_whole():
    long = np.arange(5000)  # its repr leaves the middle out
    other = long.copy()
    other[2500] = 0
    assert fingerprint.fingerprint([long]) == fingerprint.fingerprint([long.copy()]) != fingerprint.fingerprint([other])
    assert fingerprint.fingerprint([datetime.date(2024, 1, 2)]) == fingerprint.fingerprint(["2024-01-02"])
    assert fingerprint.fingerprint([{1, 2}]) == fingerprint.fingerprint([{2, 1}])  # no plain form: its repr
