"""``train_type: dynamic_mix`` and ``dynamic_weight`` in a configuration: what is accepted, refused and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dataflex.config import RunConfig, load_config
from dataflex.errors import ConfigError

REQUIRED: dict[str, Any] = {"model_name_or_path": "m/x", "dataset": ["a", "b"], "output_dir": "out"}
MIX = REQUIRED | {"train_type": "dynamic_mix", "component_name": "doremi", "update_step": 10, "update_times": 2}
WEIGHT = REQUIRED | {"train_type": "dynamic_weight", "component_name": "loss", "warmup_step": 100, "train_step": 500}


def problems(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(values, check_component=True)
    return "\n".join(caught.value.problems)


def warned(values: dict[str, Any]) -> str:
    return "\n".join(load_config(values, check_component=True).warnings())


def test_configurations_of_the_reference_system_load(tmp_path: Path) -> None:
    """Its documented files, but for the stage: every key acts."""
    mix = REQUIRED | {
        "train_type": "dynamic_mix",
        "components_cfg_file": "src/dataflex/configs/components.yaml",
        "component_name": "doremi",
        "mixture_sample_rule": "mixture",
        "init_mixture_proportions": [0.5, 0.5],
        "warmup_step": 100,
        "update_step": 200,
        "update_times": 3,
        "num_train_epochs": 1.0,
    }
    config = load_config(mix, check_component=True)
    assert config.planned_steps == 700
    assert [line for line in config.warnings() if "is not here; using the file" not in line] == []
    weight = WEIGHT | {"components_cfg_file": "src/dataflex/configs/components.yaml"}
    assert load_config(weight, check_component=True).planned_steps == 500
    assert config.component().kind == "mixer"


@pytest.mark.parametrize("nested", [True, False])
def test_both_structures_of_a_components_file(tmp_path: Path, nested: bool) -> None:
    """The reference system's own entries, under their sections or not."""
    mixers = {
        "random": {"name": "random", "params": {"seed": 42}},
        "doremi": {
            "name": "doremi",
            "params": {"reference_model_path": None, "reweight_eta": 0.1, "reweight_eps": 0.01},
        },
        "odm": {"name": "odm", "params": {"alpha": 0.9, "warmup_steps": 100, "num_eval_samples": 8}},
    }
    weighters = {"mine": {"name": "loss", "params": {"strategy": "linupper", "delta": 1.0}}}
    content = {"mixers": mixers, "weighters": weighters} if nested else mixers | weighters
    file = tmp_path / "components.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    for name, entry in mixers.items():
        spec = load_config(MIX | {"components_cfg_file": str(file), "component_name": name}).component()
        assert (spec.kind, spec.name, spec.params) == ("mixer", name, entry["params"])
    spec = load_config(WEIGHT | {"components_cfg_file": str(file), "component_name": "mine"}).component()
    assert (spec.kind, spec.name, spec.params["strategy"]) == ("weighter", "loss", "linupper")


def test_a_name_may_stand_for_a_component_of_each_kind() -> None:
    kinds = {kind: load_config(values).component() for kind, values in (("mixer", MIX), ("weighter", WEIGHT))}
    assert kinds["weighter"].params["strategy"] == "linupper"
    select = MIX | {"train_type": "dynamic_select", "component_name": "loss"}
    assert load_config(select).component().params["focus"] == "medium"
    assert "unknown mixer 'loss'" in problems(MIX | {"component_name": "loss"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (MIX | {"component_name": None}, "train_type dynamic_mix needs the name of a mixer"),
        (WEIGHT | {"component_name": None}, "train_type dynamic_weight needs the name of a weighter"),
        (MIX | {"update_step": 0}, "train_type dynamic_mix needs at least 1, got 0"),
        (MIX | {"init_mixture_proportions": [1.0]}, "1 shares for 2 datasets: a, b"),
        (MIX | {"mixture_sample_rule": "mixed"}, "mixture_sample_rule"),
        (WEIGHT | {"train_step": 100}, "100 steps end within the warm-up (100): no weights"),
        (WEIGHT | {"component_params": {"strategy": "upper"}}, "strategy"),
        (WEIGHT | {"component_name": "adapt"}, "adapt weighs for an evaluation set"),
    ],
)
def test_contradictions(values: dict[str, Any], message: str) -> None:
    assert message in problems(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (MIX | {"train_step": 9}, "train_step: has no effect with train_type dynamic_mix"),
        (MIX | {"selection_repeats": True}, "selection_repeats: has no effect with train_type dynamic_mix"),
        (
            MIX | {"mixture_sample_rule": "uniform", "init_mixture_proportions": [0.1, 0.9]},
            "init_mixture_proportions: has no effect with mixture_sample_rule uniform",
        ),
        (MIX | {"static_mix": True}, "component_name: has no effect with static_mix"),
        (WEIGHT | {"update_step": 9}, "update_step: has no effect with train_type dynamic_weight"),
        (WEIGHT | {"domain_column": "x"}, "domain_column: has no effect with train_type dynamic_weight"),
        (WEIGHT | {"num_train_epochs": 2.0}, "num_train_epochs: has no effect beside train_step"),
        (REQUIRED | {"static_mix": True}, "static_mix: has no effect with train_type static"),
    ],
)
def test_keys_that_do_not_act_are_named(values: dict[str, Any], message: str) -> None:
    assert message in warned(values)


def test_a_static_mixture_needs_neither_component_nor_schedule() -> None:
    config = load_config(REQUIRED | {"train_type": "dynamic_mix", "static_mix": True}, check_component=True)
    assert (config.planned_steps, config.warnings()) == (None, [])


def test_resolved_configurations_say_the_same(tmp_path: Path) -> None:
    for values in (MIX | {"init_mixture_proportions": {"a": 0.25, "b": 0.75}}, WEIGHT):
        config = load_config(values)
        again = RunConfig.model_validate(yaml.safe_load(config.to_yaml()))
        assert again.component().params == config.component().params
        assert again.init_mixture_proportions == config.init_mixture_proportions
        assert again.planned_steps == config.planned_steps
