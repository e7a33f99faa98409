"""What plugins are told in the course of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataflex.selectors.random import RandomSelector
from helpers.plugins import plugin_site
from helpers.runs import tiny_trainer

WATCHER = """
    import json
    from pathlib import Path
    from dataflex.plugins.hookspecs import hookimpl

    def note(folder, text):
        with (Path(folder) / "noted.jsonl").open("a") as file:
            file.write(json.dumps(text) + "\\n")

    @hookimpl
    def on_selection(selection, context):
        note(context.output_dir, [selection.round, selection.step, len(selection.indices), context.num_samples])

    @hookimpl
    def on_train_end(output_dir, results):
        note(output_dir, results["steps"])
"""
FAILING = """
    from dataflex.plugins.hookspecs import hookimpl

    @hookimpl
    def on_selection(selection):
        raise ValueError("I did not like it")
"""


def test_plugins_see_each_selection_and_the_end_and_cannot_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("DATAFLEX_LOAD_PLUGINS", raising=False)
    (tmp_path / "site").mkdir()
    with plugin_site(tmp_path / "site", monkeypatch) as site:
        site.install("a-failing", FAILING)
        site.install("watcher", WATCHER)
        tiny_trainer(tmp_path / "out", selector=RandomSelector()).train()
    noted = (tmp_path / "out" / "noted.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in noted] == [[1, 2, 12, 12], [2, 5, 12, 12], 8]
    assert caplog.text.count("plugin a-failing: on_selection failed: ValueError: I did not like it") == 1
