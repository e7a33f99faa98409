"""The scripts of the page about other people's trainers, each run to its end as it stands there."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.pages import Block, blocks_of
from helpers.reader import furnish

SCRIPTS = [block for block in blocks_of("docs/trainers.md") if block.language == "python"]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    furnish(folder)
    return folder


def test_the_page_has_four_complete_scripts() -> None:
    expected = ["less_trainer.py", "nice_sft.py", "weighted_trainer.py", "select_sft.py"]
    assert [block.file for block in SCRIPTS] == expected


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:.pin_memory. argument is set as true but no accelerator")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda block: block.file)
def test_a_script_runs(script: Block, furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "from trl" in script.text and find_spec("trl") is None:
        pytest.skip("TRL is not installed (the dev extra brings it)")
    shutil.copytree(furnished, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    exec(compile(script.text, str(script), "exec"), {"__name__": "__main__"})
    if "selector=" in script.text and "curriculum" in script.text:
        selections = sorted((tmp_path / "output" / Path(str(script.file)).stem / "selections").iterdir())
        assert [file.name for file in selections] == ["step-2.parquet", "step-4.parquet"]
        assert [sum(pq.read_table(file)["chosen"].to_pylist()) for file in selections] == [8, 8]
