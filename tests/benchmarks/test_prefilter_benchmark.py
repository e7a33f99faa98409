from __future__ import annotations

from pathlib import Path

from dataflex.testing import tiny_project
from helpers.scripts import load_script

prefilter = load_script("benchmarks/prefilter.py")


def test_both_selections_are_predicted_made_and_compared(tmp_path: Path) -> None:
    params = {"proj_dim": 128, "save_interval": 8}
    config = tiny_project(tmp_path, component_name="less", component_params=params)
    options = prefilter.parse(["--config", str(config), "--keep", "0.5", "seed=1"])
    assert options.overrides == ["seed=1"]
    full, filtered = prefilter.run(options)
    assert (full.looked_at, filtered.looked_at) == (24, 12)
    assert filtered.name == "rds, keep 0.5"
    assert {"prefilter: hidden states", "training gradients"} <= set(filtered.parts)
    assert all(measured is not None and measured > 0 for _, measured in filtered.parts.values())
    assert len(filtered.selected) == 8
    assert full.looked_at_lift == 1
    text = "\n".join(prefilter.lines([full, filtered]))
    assert "| all rows | 24 |" in text
    assert "| rds, keep 0.5 | 12 |" in text
    assert "lift of the rows that rds, keep 0.5 left" in text


def test_the_quickstart_gets_its_model_from_the_repository() -> None:
    assert prefilter.parse([]).overrides == [f"model_name_or_path={prefilter.MODEL}"]
    assert prefilter.parse(["model_name_or_path=m"]).overrides == ["model_name_or_path=m"]
