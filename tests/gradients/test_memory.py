from __future__ import annotations

import pytest
import torch

from dataflex.data.collate import collate
from dataflex.errors import ConfigError
from dataflex.gradients import memory
from dataflex.gradients.memory import MOST_TOKENS, available_bytes, bytes_per_token, fitting_tokens
from dataflex.models.losses import mean_losses
from dataflex.selectors.less import LessSelector
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model

GIB = 2**30


def test_free_memory_is_that_of_this_machine():
    available = available_bytes(torch.device("cpu"))
    assert 16 * 2**20 < available < 2**50


def test_a_limit_of_the_group_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(f"{3 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{2**20}\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert available_bytes(torch.device("cpu")) == 2 * 2**20
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2**19}\nactive_file 7\n")
    assert available_bytes(torch.device("cpu")) == 2.5 * 2**20
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(torch.device("cpu")) > 2 * 2**20


@pytest.mark.parametrize(
    ("available", "per_token", "expected"),
    [
        (64 * GIB, 1e6, MOST_TOKENS["cpu"]),
        (2 * GIB, 1e6, 1024),
        (2 * GIB, 1.1e6, 512),
        (1.9 * GIB, 1e6, 512),
        (0, 1e6, memory.FEWEST_TOKENS),
        (GIB, 0.0, MOST_TOKENS["cpu"]),
    ],
)
def test_tokens_are_the_power_of_two_that_fits_half_of_it(available, per_token, expected):
    assert fitting_tokens(int(available), per_token, "cpu") == expected
    assert fitting_tokens(64 * GIB, 1e6, "cuda") == 16384


def test_activations_grow_with_layers_and_leave_parameters_out():
    batch = collate([tiny_dataset(1)[0]] * 3, 2)
    sizes = []
    for layers in (1, 2, 3):
        model = tiny_lora(tiny_model(num_hidden_layers=layers))
        sizes.append(bytes_per_token(lambda m=model: mean_losses(m, batch), batch.input_ids.numel(), model))
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.02)
    # A layer keeps at least two inputs of norms, queries, keys, values and three tensors of width 64, in float32.
    assert 4 * (4 * 32 + 3 * 64) < sizes[1] - sizes[0] < 5 * 4 * (4 * 32 + 3 * 64)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("value", [0, -5, 2.5, "many", None])
def test_bad_budgets_are_configuration_errors(value):
    with pytest.raises(ConfigError, match="feature_batch_tokens"):
        LessSelector(feature_batch_tokens=value)


@pytest.mark.parametrize("value", [1, 4096, "auto"])
def test_good_budgets(value):
    assert LessSelector(feature_batch_tokens=value).config.feature_batch_tokens == value
