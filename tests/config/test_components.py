from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dataflex.config import ComponentSpec, RunConfig, load_config, resolve_path, validate_component
from dataflex.config.components import merge, packaged_file
from dataflex.errors import ConfigError
from dataflex.plugins.builtins import register_selectors
from helpers.plugins import Site, plugin_site

HEAD = """\
model_name_or_path: owner/model
dataset: rows
output_dir: out
train_type: dynamic_select
update_step: 1
components_cfg_file: parts.yaml
"""


def known(*others: str) -> str:
    """Our selectors and others, as messages list them."""
    names = list(others)
    register_selectors(lambda name, target, summary="": names.append(name))
    return ", ".join(sorted(names))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A working directory with a plugin's selector ``mine``, whose parameters are alpha, mode and backend."""
    monkeypatch.delenv("DATAFLEX_LOAD_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    with plugin_site(tmp_path, monkeypatch) as made:
        made.install_selector("mine")
        yield made


def load(parts: str, *overrides: str, name: str = "mine", check: bool = True) -> RunConfig:
    Path("parts.yaml").write_text(parts, encoding="utf-8")
    Path("run.yaml").write_text(f"{HEAD}component_name: {name}\n", encoding="utf-8")
    return load_config("run.yaml", overrides, check_component=check)


def problems(parts: str, *overrides: str, name: str = "mine") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(parts, *overrides, name=name)
    return [line.replace(f"{Path.cwd()}/", "") for line in caught.value.problems]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    "parts",
    [
        "selectors:\n  mine: {name: mine, params: {alpha: 2}}\n",
        "mine: {name: mine, params: {alpha: 2}}\n",
        "mixers:\n  random: 5\nmine: {params: {alpha: 2}}\nselectors:\nweighters: {loss: {name: loss}}\n",
    ],
)
def test_both_structures_are_accepted(parts: str) -> None:
    spec = load(parts).component()
    assert (spec.name, spec.params) == ("mine", {"alpha": 2})
    assert validate_component(spec).Config(**spec.params).alpha == 2.0


@pytest.mark.usefixtures("site")
def test_an_entry_may_have_a_name_of_its_own() -> None:
    spec = load("strong: {name: mine, params: {alpha: 9}}\nweak: {name: mine}\n", name="strong").component()
    assert (spec.name, spec.params) == ("mine", {"alpha": 9})


@pytest.mark.usefixtures("site")
def test_a_registered_selector_without_an_entry_has_its_defaults() -> None:
    spec = load("other: {name: nice}\n").component()
    assert (spec.name, spec.params) == ("mine", {})


@pytest.mark.usefixtures("site")
def test_parameters_of_the_run_are_merged_deeply_over_those_of_the_file() -> None:
    parts = "mine: {params: {alpha: 1, backend: {a: {x: 1, y: 2}}}}\n"
    spec = load(parts, "component_params={mode: hard, backend: {a: {y: 3}, b: {z: 4}}}").component()
    assert spec.params == {"alpha": 1, "mode": "hard", "backend": {"a": {"x": 1, "y": 3}, "b": {"z": 4}}}


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(base, over) == {"a": {"b": 1, "c": 2}}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (
            "mine:\n  name: mine\n  params:\n    alpha: -1\n    alhpa: 2\n    mode: sof\n",
            [
                "parts.yaml:4: alpha: expected more than 0.0, got -1",
                "parts.yaml:6: mode: expected 'soft' or 'hard', got 'sof'; did you mean 'soft'?",
                "parts.yaml:5: unknown key 'alhpa'; did you mean 'alpha'?",
            ],
        ),
        (
            "mine:\n  params:\n    backend:\n      a: {x: y}\n",
            ["parts.yaml:4: backend.a.x: expected an integer, got 'y'"],
        ),
        (
            "mine:\n  params:\n    backend:\n      a:\n        api_key: sk-verysecret1\n",
            [
                "parts.yaml:5: backend.a.api_key: expected the name of an environment variable, in capitals, got what "
                "looks like the secret itself; put it in the environment and name that variable here"
            ],
        ),
        (
            "mine:\n  nam: mine\n",
            ["parts.yaml:2: unknown key 'nam'; did you mean 'name'?; a component has name and params"],
        ),
        ("mine: 3\n", ["parts.yaml:1: mine: expected a mapping with name and params, got 3"]),
        (
            "mine: {params: [1]}\n",
            ["parts.yaml:1: mine: expected name: text and params: a mapping, got 'mine' and [1]"],
        ),
        (
            "mine: {name: mine}\nselectors:\n  mine: {name: mine}\n",
            ["parts.yaml:3: 'mine' is defined twice (first at parts.yaml:1)"],
        ),
        ("- mine\n", ["parts.yaml: expected a mapping of components, got ['mine']"]),
        ("selectors: 3\n", ["parts.yaml:1: selectors: expected a mapping with name and params, got 3"]),
        (
            "mine: {name: mien}\n",
            [
                f"parts.yaml:1: unknown selector 'mien'; known: {known('mine')}\n  hint: did you mean 'mine'?",
            ],
        ),
    ],
)
def test_problems_point_into_the_components_file(parts: str, expected: list[str]) -> None:
    assert problems(parts) == expected


@pytest.mark.usefixtures("site")
def test_problems_of_the_runs_own_parameters_point_there() -> None:
    with Path("run.yaml").open("w") as file:
        file.write(f"{HEAD}component_name: mine\ncomponent_params:\n  backend: {{}}\n  alpha: wrong\n")
    Path("parts.yaml").write_text("mine: {params: {alpha: 1}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config("run.yaml", ["component_params.mode=loud"], check_component=True)
    assert caught.value.problems == [
        "run.yaml:10: alpha: expected a number, got 'wrong'",
        "override component_params.mode=loud: mode: expected 'soft' or 'hard', got 'loud'",
    ]


@pytest.mark.usefixtures("site")
def test_a_secret_in_the_runs_own_parameters_is_reported_once() -> None:
    found = problems("", "component_params.backend={a: {api_key: sk-verysecret1}}")
    assert [line.startswith("override component_params.backend=") for line in found] == [True, True]
    assert ["put it in the environment" in line for line in found] == [True, False]  # then: not an integer
    assert "secret1" not in "".join(found)


@pytest.mark.usefixtures("site")
def test_parameters_and_keys_are_reported_together() -> None:
    assert problems("mine: {params: {alpha: 0}}\n", "lora_rank=0") == [
        "override lora_rank=0: lora_rank: expected at least 1, got 0",
        "parts.yaml:1: alpha: expected more than 0.0, got 0",
    ]


@pytest.mark.usefixtures("site")
def test_an_unknown_component_is_answered_with_the_nearest() -> None:
    assert problems("theirs: {name: mine}\n", name="their") == [
        "run.yaml:7: component_name: unknown selector 'their'; did you mean 'theirs'?; "
        f"known: {known('mine', 'theirs')}"
    ]


@pytest.mark.usefixtures("site")
def test_a_component_that_needs_an_evaluation_set_says_so() -> None:
    source = (
        Path("my_plugin_module.py").read_text().replace('name = "mine"', 'name = "mine"; needs_eval_dataset = True')
    )
    Path("my_plugin_module.py").write_text(source)
    assert problems("") == [
        "run.yaml:7: component_name: mine selects for an evaluation set; set eval_dataset or val_size"
    ]
    assert load("", "val_size=0.5").has_eval_data


@pytest.mark.usefixtures("site")
def test_a_selector_that_cannot_be_imported_is_a_problem_of_the_configuration() -> None:
    Path("my_plugin_module.py").write_text(
        "from dataflex.plugins.hookspecs import hookimpl\n"
        "@hookimpl\ndef register_selectors(register): register('mine', 'not_there:Class')\n"
    )
    [found] = problems("")
    assert found.startswith("run.yaml:7: component_name: selector 'mine' of my-plugin cannot be imported")


@pytest.mark.usefixtures("site")
def test_a_missing_components_file_is_an_error_that_names_both_places() -> None:
    Path("folder").mkdir()
    Path("folder/run.yaml").write_text(f"{HEAD}component_name: mine\n")
    with pytest.raises(ConfigError) as caught:
        load_config("folder/run.yaml")
    here = Path.cwd()
    assert caught.value.problems == [
        "folder/run.yaml:6: components_cfg_file: 'parts.yaml' does not exist; "
        f"looked for {here}/parts.yaml and {here}/folder/parts.yaml"
    ]


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("path", ["src/dataflex/configs/components.yaml", "./src/dataflex/configs/components.yaml"])
def test_the_documented_components_file_is_replaced_by_the_packaged_one(path: str) -> None:
    config = load("", f"components_cfg_file={path}", "val_size=0.5", name="nice", check=False)
    assert config.component().where.startswith(f"{packaged_file()}:")
    assert any("using the file that comes with dataflex" in warning for warning in config.warnings())
    Path("src/dataflex/configs").mkdir(parents=True)
    Path("src/dataflex/configs/components.yaml").write_text("nice: {params: {seed: 1}}\n")
    assert config.component().params == {"seed": 1}
    assert config.warnings() == load("", "val_size=0.5", name="mine", check=False).warnings()


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(
    "path", ["python/dataflex/configs/components.yaml", "/a/python/dataflex/configs/components.yaml"]
)
def test_runs_from_before_the_file_moved_find_the_packaged_one(path: str) -> None:
    config = load("", f"components_cfg_file={path}", "val_size=0.5", name="nice", check=False)
    assert config.component().where.startswith(f"{packaged_file()}:")
    assert any("using the file that comes with dataflex" in warning for warning in config.warnings())


@pytest.mark.usefixtures("site")
def test_false_means_no_components_file() -> None:
    config = load("mine: {params: {alpha: 1}}", "components_cfg_file=false", "component_params.mode=hard")
    assert config.component().params == {"mode": "hard"}


def test_a_run_without_a_selector_has_no_component() -> None:
    config = RunConfig(model_name_or_path="m", dataset=["d"], output_dir="o")
    with pytest.raises(ConfigError, match="component_name: the run names no selector"):
        config.component()


def test_paths_are_looked_up_here_then_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    monkeypatch.chdir(here)
    (there / "data").mkdir()
    assert resolve_path("data", there) == there / "data"
    (here / "data").mkdir()
    assert resolve_path("data", there) == here / "data"
    assert resolve_path(there / "data") == there / "data"
    with pytest.raises(ConfigError, match=r"'none' does not exist; looked for .*here/none and .*there/none"):
        resolve_path("none", there)


def test_path_parameters_are_looked_up_here_then_beside_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, project = tmp_path / "here", tmp_path / "project"
    (project / "parts").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    run = project / "run.yaml"
    run.write_text(HEAD.replace("parts.yaml", "parts/parts.yaml") + "component_name: near\n", encoding="utf-8")
    (project / "parts" / "parts.yaml").write_text("near: {params: {indices_path: matrix.npy}}\n", encoding="utf-8")

    def found(*overrides: str) -> str:
        config = load_config(run, overrides, check_component=True)
        written = yaml.safe_load(config.to_yaml())["component_params"]
        assert written == config.component().params
        return str(Path(written["indices_path"]).relative_to(tmp_path))

    with pytest.raises(
        ConfigError, match=r"here/matrix\.npy does not exist; .*\(looked for .*parts/matrix\.npy, too\)"
    ):
        found()
    (project / "parts" / "matrix.npy").touch()
    assert found() == "project/parts/matrix.npy"
    (project / "own.npy").touch()
    assert found("component_params.indices_path=own.npy") == "project/own.npy"
    (here / "matrix.npy").touch()
    assert found() == "here/matrix.npy"
    assert found("component_params.cache_dir=new") == "here/matrix.npy"  # nothing to find: as it is


def test_path_parameters_of_the_packaged_file_are_beside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "top_indices.npy").touch()
    (tmp_path / "run.yaml").write_text(HEAD.replace("parts.yaml", "null") + "component_name: near\n", encoding="utf-8")
    params = load_config(tmp_path / "run.yaml", check_component=True).component().params
    assert params["indices_path"] == str(tmp_path / "top_indices.npy")


def test_places_fall_back_to_the_entry() -> None:
    spec = ComponentSpec("selector", "x", {}, "f:1", {("a",): "f:2"})
    assert spec.at("t", ("a", "b", 0)) == "f:2: t"
    assert spec.at("t", ("c",)) == "f:1: t"
