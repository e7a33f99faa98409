from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from dataflex import cli
from dataflex.cli import app
from dataflex.errors import ConfigError, TrainingError
from helpers.plugins import Site, plugin_site

VALID = """\
model_name_or_path: owner/model
dataset: rows
output_dir: out
"""
HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A working directory with a valid run.yaml, and room for plugins."""
    monkeypatch.delenv("DATAFLEX_LOAD_PLUGINS", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(VALID)
    with plugin_site(tmp_path, monkeypatch) as made:
        yield made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, list(arguments), prog_name="dataflex")


def imports_after(code: str) -> set[str]:
    """Heavy packages that a fresh interpreter has imported after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(list(sys.modules)))"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(HEAVY) & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.integration
@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["select", "--help"], ["version"], ["plugins"], ["config", "schema"]]
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "from click.testing import CliRunner; from dataflex.cli import cli\n"
        f"assert CliRunner().invoke(cli, {arguments!r}).exit_code == 0"
    )
    assert imports_after(code) == set()


@pytest.mark.integration
@pytest.mark.parametrize("code", ["import dataflex", "import dataflex.cli", "import dataflex.config"])
def test_light_imports_import_nothing_heavy(code: str) -> None:
    assert imports_after(code) == set()


@pytest.mark.integration
def test_python_m_dataflex_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "dataflex", "--help"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("Usage: dataflex [OPTIONS] COMMAND")
    for command in ("train", "select", "config", "plugins", "report", "version"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.integration
def test_sigterm_unwinds_what_runs(tmp_path: Path) -> None:
    script = f"""
import pathlib, sys, time
from dataflex import cli
from dataflex.cli import app

@cli.cli.command()
def wait():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        pathlib.Path({str(tmp_path / "closed")!r}).touch()

sys.argv = ["dataflex", "wait"]
cli.main()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (tmp_path / "closed").exists()


@pytest.mark.usefixtures("site")
def test_validate_accepts_and_warns() -> None:
    done = run("config", "validate", "run.yaml", "flash_attn=fa2")
    assert done.exit_code == 0
    assert done.stdout == "run.yaml is valid\n"
    assert done.stderr == (
        "warning: override flash_attn=fa2: flash_attn: dataflex does not act on this LLaMA-Factory key\n"
    )


@pytest.mark.usefixtures("site")
def test_one_problem_is_one_line() -> None:
    done = run("config", "validate", "run.yaml", "lora_rnak=3")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == "error: override lora_rnak=3: unknown key 'lora_rnak'; did you mean 'lora_rank'?\n"


@pytest.mark.usefixtures("site")
def test_several_problems_are_listed() -> None:
    done = run("config", "validate", "run.yaml", "lora_rank=x", "seed=-1")
    assert done.exit_code == 1
    assert done.stderr == (
        "error: 2 problems\n"
        "  override lora_rank=x: lora_rank: expected an integer, got 'x'\n"
        "  override seed=-1: seed: expected at least 0, got -1\n"
    )


@pytest.mark.usefixtures("site")
def test_validate_checks_the_parameters_of_the_selector(site: Site) -> None:
    site.install_selector("mine")
    selection = ["train_type=dynamic_select", "component_name=mine", "update_step=1"]
    assert run("config", "validate", "run.yaml", *selection).exit_code == 0
    done = run("config", "validate", "run.yaml", *selection, "component_params.alpha=0")
    assert done.exit_code == 1
    assert done.stderr == "error: override component_params.alpha=0: alpha: expected more than 0.0, got 0\n"


@pytest.mark.usefixtures("site")
def test_traceback_shows_where_an_error_comes_from() -> None:
    done = run("--traceback", "config", "validate", "none.yaml")
    assert done.exit_code == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "FileNotFoundError" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: none.yaml does not exist")


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["-v", "-q", "version"], ["report", "nowhere"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.usefixtures("site")
def test_show_prints_a_run_that_loads_again() -> None:
    done = run("config", "show", "run.yaml", "lora_rank=4")
    assert yaml.safe_load(done.stdout)["lora_alpha"] == 8
    Path("again.yaml").write_text(done.stdout)
    assert run("config", "validate", "again.yaml").exit_code == 0


def test_schema_is_json() -> None:
    assert "learning_rate" in json.loads(run("config", "schema").stdout)["properties"]


def test_version_lists_the_stack() -> None:
    lines = dict(line.split(" ", 1) for line in run("version").stdout.splitlines())
    assert lines["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"dataflex", "torch", "transformers"} <= set(lines)


class TestPlugins:
    def test_components_are_listed_with_their_package(self, site: Site) -> None:
        site.install_selector("mine")
        lines = run("plugins").stdout.splitlines()
        assert lines[0].split() == ["kind", "name", "plugin", "version", "summary"]
        assert any(line.split()[:4] == ["selector", "mine", "my-plugin", "1.0"] for line in lines)
        assert run("plugins", "list").stdout.splitlines() == lines

    def test_a_broken_plugin_is_listed_with_its_traceback(self, site: Site) -> None:
        site.install("broken", "raise RuntimeError('no')")
        done = run("plugins")
        assert done.exit_code == 0
        assert "broken: broken (broken 1.0)\nTraceback" in done.stdout
        assert done.stdout.endswith("RuntimeError: no\n")

    def test_json(self, site: Site) -> None:
        site.install_selector("mine")
        site.install("broken", "raise RuntimeError('no')")
        found = json.loads(run("plugins", "list", "--json").stdout)
        assert {"nice", "mine"} <= {row["name"] for row in found["components"] if row["kind"] == "selector"}
        [broken] = found["broken"]
        assert (broken["name"], broken["version"]) == ("broken", "1.0")

    def test_show_names_parameters_and_defaults(self, site: Site) -> None:
        site.install_selector("mine")
        done = run("plugins", "show", "mine")
        assert done.stdout.splitlines()[:6] == [
            "selector mine: a selector of a plugin",
            "from my-plugin 1.0, my_plugin_module:Mine",
            "",
            "alpha",
            "    number; default 0.5",
            "    how much of it",
        ]
        [found] = json.loads(run("plugins", "show", "mine", "--json").stdout)
        assert [row.get("default") for row in found["parameters"]] == [0.5, "soft", {}]

    def test_show_a_plugin_names_its_hooks_and_components(self, site: Site) -> None:
        site.install_selector("mine")
        assert run("plugins", "show", "my-plugin").stdout.splitlines() == [
            "plugin my-plugin (my-plugin 1.0); hooks: register_selectors",
            "kind      name  summary",
            "selector  mine  a selector of a plugin",
        ]
        [found] = json.loads(run("plugins", "show", "my-plugin", "--json").stdout)
        assert found["components"] == [{"kind": "selector", "name": "mine"}]
        assert found["hooks"] == ["register_selectors"]

    def test_show_a_broken_plugin_has_its_traceback(self, site: Site) -> None:
        site.install("broken", "raise RuntimeError('no')")
        assert run("plugins", "show", "broken").stdout.endswith("RuntimeError: no\n")
        [found] = json.loads(run("plugins", "show", "broken", "--json").stdout)
        assert "RuntimeError: no" in found["error"]

    def test_a_plugin_without_components_is_listed_too(self, site: Site) -> None:
        site.install("watcher", WATCHER)
        assert run("plugins").stdout.endswith("\nwatcher (watcher 1.0): no components; hooks: on_train_end\n")
        found = json.loads(run("plugins", "list", "--json").stdout)
        assert found["hook_api"] == 1
        assert {"watcher", "builtins"} == {plugin["name"] for plugin in found["plugins"]}

    @pytest.mark.usefixtures("site")
    def test_show_an_unknown_component(self) -> None:
        done = run("plugins", "show", "nothing")
        assert (done.exit_code, done.stderr.splitlines()[0]) == (1, "error: unknown component or plugin 'nothing'")

    def test_show_a_component_that_cannot_be_imported(self, site: Site) -> None:
        site.install(
            "stale",
            "from dataflex.plugins.hookspecs import hookimpl\n"
            "@hookimpl\ndef register_selectors(register): register('old', 'not_there:Class')\n",
        )
        done = run("plugins", "show", "old")
        assert done.exit_code == 1
        assert "'old' of stale cannot be imported" in done.stderr


WATCHER = """
    from dataflex.plugins.hookspecs import hookimpl

    @hookimpl
    def on_train_end(output_dir):
        print(output_dir)
"""

COMMAND = """
    import click
    from dataflex.plugins.hookspecs import hookimpl

    @hookimpl
    def register_commands(cli):
        @cli.command(name="{name}", help="A command of a plugin.")
        def command():
            click.echo("hello from {name}")
"""


class TestPluginCommands:
    def test_a_command_of_a_plugin_runs_and_is_listed(self, site: Site) -> None:
        site.install("greeter", COMMAND.format(name="greet"))
        assert run("greet").stdout == "hello from greet\n"
        assert "A command of a plugin." in run("--help").stdout

    def test_a_plugin_cannot_take_the_name_of_a_command(self, site: Site) -> None:
        site.install("greedy", COMMAND.format(name="train"))
        done = run("--help")
        assert done.exit_code == 0
        assert done.stderr == (
            "warning: plugin greedy: register_commands failed: PluginError: the command 'train' exists already\n"
        )
        assert "A command of a plugin." not in done.stdout

    def test_a_plugin_that_fails_to_register_commands_hides_no_others(self, site: Site) -> None:
        site.install("a-broken", COMMAND.format(name="x").replace("@cli.command", "raise KeyError; @cli.command"))
        site.install("b-works", COMMAND.format(name="greet"))
        assert run("greet").stdout == "hello from greet\n"

    def test_commands_of_dataflex_load_no_plugin(self, site: Site) -> None:
        site.install("loud", "raise RuntimeError('loaded')")
        assert run("config", "validate", "run.yaml").exit_code == 0
        assert "loud_module" not in sys.modules


class TestTrain:
    @pytest.fixture(autouse=True)
    def _fakes(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A training that records its configuration, and a report that prints one line."""
        import dataflex.report.run
        import dataflex.training.run

        del site
        self.trained: list[Any] = []
        monkeypatch.setattr(dataflex.training.run, "train_from_config", self.trained.append)
        monkeypatch.setattr(
            dataflex.report.run,
            "print_report",
            lambda output_dir, page=True: print(f"report of {output_dir}" + ("" if page else ", which has its page")),
        )
        monkeypatch.delenv("FORCE_TORCHRUN", raising=False)

    def test_train_passes_the_configuration_on_and_reports(self) -> None:
        done = run("train", "run.yaml", "learning_rate=1e-3")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "report of out, which has its page\n", "")
        assert self.trained[0].learning_rate == 1e-3

    def test_replayed_rewards_are_a_parameter_of_the_selector(self, tmp_path: Path) -> None:
        nice = [
            "train_type=dynamic_select",
            "component_name=nice",
            "eval_dataset=[a]",
            "warmup_step=1",
            "update_step=1",
        ]
        nice += ["component_params.reward=exact_match", "update_times=1"]
        done = run("train", "run.yaml", *nice, "--replay-rewards", str(tmp_path))
        assert done.exit_code == 0, done.stderr
        assert self.trained[0].component_params["replay_rewards"] == str(tmp_path)
        assert run("train", "run.yaml", "--replay-rewards", "nowhere").exit_code == 2

    def test_errors_of_the_configuration_come_before_any_training(self) -> None:
        assert run("train", "run.yaml", "bf16=true", "fp16=true").exit_code == 1
        assert self.trained == []

    def test_an_error_while_training_has_its_hint_and_no_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import dataflex.training.run

        def fail(config: Any) -> None:
            raise TrainingError("it is full", hint="empty it")

        monkeypatch.setattr(dataflex.training.run, "train_from_config", fail)
        done = run("train", "run.yaml")
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == "error: it is full\nhint: empty it\n"

    def test_an_unexpected_error_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import dataflex.training.run

        monkeypatch.setattr(dataflex.training.run, "train_from_config", lambda config: 1 / 0)
        assert isinstance(run("train", "run.yaml").exception, ZeroDivisionError)

    def test_force_torchrun_becomes_torchrun_with_the_same_arguments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[list[str]] = []

        def execv(path: str, command: list[str]) -> None:
            assert path == command[0] == sys.executable
            started.append(command)
            raise SystemExit(0)

        monkeypatch.setenv("FORCE_TORCHRUN", "1")
        monkeypatch.setattr(os, "execv", execv)
        run("train", "run.yaml", "seed=7")
        assert started[0][1:3] == ["-m", "torch.distributed.run"]
        assert started[0][-5:] == ["-m", "dataflex", "train", "run.yaml", "seed=7"]
        assert self.trained == []

    def test_only_the_main_process_reports(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "1")
        done = run("train", "run.yaml")
        assert (done.stdout, len(self.trained)) == ("", 1)

    def test_report_prints_the_report_of_a_folder(self) -> None:
        Path("finished").mkdir()
        assert run("report", "finished").stdout == "report of finished\n"


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize(("option", "expected"), [("-v", ["details", "facts"]), ("--quiet", []), (None, ["facts"])])
def test_options_set_what_is_logged(option: str | None, expected: list[str]) -> None:
    @cli.cli.command(name="log-something")
    def log_something() -> None:
        logger = logging.getLogger("dataflex.somewhere")
        logger.debug("details")
        logger.info("facts")
        logger.warning("danger")

    try:
        done = run(*([option] if option else []), "log-something")
    finally:
        del cli.cli.commands["log-something"]
    assert done.stderr.splitlines() == [*expected, "warning: danger"]


def test_an_error_with_one_problem_keeps_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    app._print_error(ConfigError("f:1: wrong", hint="right it"))
    assert capsys.readouterr().err == "error: f:1: wrong\nhint: right it\n"


@pytest.mark.parametrize(
    ("arguments", "message", "path"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?", "dataflex"),
        (["plugins", "shwo"], "No such command 'shwo'. Did you mean 'show'?", "dataflex plugins"),
        (["train"], "Missing argument 'CONFIG'.", "dataflex train"),
        (
            ["eval", "run.yaml", "--base-onyl"],
            "No such option '--base-onyl'. Did you mean '--base-only'?",
            "dataflex eval",
        ),
        (["-q", "-v", "version"], "--verbose and --quiet exclude each other", "dataflex"),
    ],
)
def test_wrong_usage_looks_as_every_other_error(arguments: list[str], message: str, path: str) -> None:
    done = CliRunner().invoke(cli.cli, arguments, prog_name="dataflex")
    assert done.exit_code == 2
    assert done.stderr == f"error: {message}\nhint: `{path} --help` shows what there is\n"
    assert done.stdout == ""


def test_no_color_is_followed() -> None:
    with_colour = CliRunner().invoke(cli.cli, ["trian"], color=True).stderr
    assert with_colour.startswith("\x1b[31merror:\x1b[0m ")
    assert CliRunner().invoke(cli.cli, ["trian"], color=True, env={"NO_COLOR": "1"}).stderr.startswith("error: ")


def test_commands_and_options_complete() -> None:
    def completed(words: str, place: int) -> list[str]:
        env = {"_DATAFLEX_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        return CliRunner().invoke(cli.cli, [], prog_name="dataflex", env=env).stdout.split()

    assert completed("dataflex tr", 1) == ["plain,train"]
    assert "plain,--base-only" in completed("dataflex eval --", 2)
