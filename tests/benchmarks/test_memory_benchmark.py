"""The page about memory is what its script says, and the script's sums are those of the doctor."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import memory
from dataflex.doctor.need import exact_selection
from dataflex.models.model import trainable_parameters
from dataflex.models.trainable import train_all
from dataflex.testing import tiny_model

PUBLISHED = {
    "SmolLM2-135M": 134_515_008,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.3-70B": 70_553_706_496,
}
"""Parameters that the models' cards and files state."""


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads(memory.RESULTS.read_text(encoding="utf-8"))


def test_the_models_have_as_many_parameters_as_is_published() -> None:
    assert memory.MODELS.keys() == PUBLISHED.keys()
    for name, config in memory.MODELS.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(values.numel() for values in model.parameters()) == PUBLISHED[name], name


def test_the_page_shows_the_results(results: dict) -> None:
    page = memory.PAGE.read_text(encoding="utf-8")
    for name, table in memory.tables(results).items():
        start, end = memory.marked(name)
        assert page.partition(start)[2].partition(end)[0] == table
    assert "**Computed**, not measured" in page


@pytest.mark.parametrize("method", ["QLoRA, r = 16, nf4", "full, FSDP2 on 8"])
def test_the_results_are_those_of_this_version(results: dict, method: str) -> None:
    name = "Qwen2.5-7B"
    found = memory.parts(memory.MODELS[name], memory.METHODS[method])
    assert found == pytest.approx(results["computed"][method][name])


def test_what_was_measured_is_above_what_is_computed(results: dict) -> None:
    assert results["measured"].keys() == memory.MEASURED.keys()
    for it in results["measured"].values():
        assert 1 < it["measured"] / it["computed"] < 2


def test_parts_by_hand() -> None:
    config = tiny_model().config
    count = sum(values.numel() for values in tiny_model().parameters())
    alone = memory.need_of(config, memory.METHODS["full"], 1, 8, 64, recomputes=False)
    assert (alone.frozen, alone.trained, alone.gathered) == (0, 16 * count, 0)
    assert alone.selection == exact_selection(count, 64) == 8 * count + 64 * 4 * count  # all targets fit into 128 MiB
    eighth = memory.need_of(config, memory.METHODS["full, FSDP2 on 8"], 1, 8, 64, recomputes=False)
    layer = sum(values.numel() for values in tiny_model().model.layers[0].parameters())
    assert eighth.trained == 2 * count
    assert eighth.gathered == 4 * count  # of two layers, both are whole at once
    assert eighth.selection == alone.selection
    assert layer * 2 < count


@pytest.mark.parametrize(("targets", "directions", "expected"), [(64, 1, 12), (1, 1, 12), (64, 3, 36)])
def test_exact_scores_of_many_parameters(targets: int, directions: int, expected: int) -> None:
    assert exact_selection(10**9, targets, directions) == expected * 10**9


def test_masked_features_read_some_of_each_matrix() -> None:
    model = train_all(tiny_model(hidden_size=512, intermediate_size=1024, num_hidden_layers=1))
    sizes = [(values.ndim, values.numel()) for _, values in trainable_parameters(model)]
    expected = sum(min(size, 16384) if ndim == 2 else size for ndim, size in sizes)
    assert memory.coordinates(model) == pytest.approx(expected, rel=0.02)
