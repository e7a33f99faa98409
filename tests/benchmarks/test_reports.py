from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from measuring import report
from measuring.contenders import ADAM_PASS, GEMM, SJLT, fused_name
from measuring.goals import Measured, outcomes
from measuring.timing import BASELINE, FLOOR, OURS, Times

MACHINE = {
    "date": "2026-01-01 00:00 UTC",
    "device": "cpu",
    "processor": "Some CPU",
    "vector units": ["avx2"],
    "cores": 2,
    "threads": 2,
    "other load": 0.0,
    "kernels": "avx2",
    "versions": {"torch": "2"},
}


def measured(name: str, role: str, seconds: list[float], share: float = 1.0, memory: int | None = None) -> Measured:
    times = Times(seconds, [second / 2 for second in seconds], memory)
    return Measured(32, 1_000_000, 4096, name, role, share, 0.0, times)


RESULTS = [
    measured(ADAM_PASS, FLOOR, [0.032, 0.064]),
    measured(SJLT, OURS, [0.064, 0.096]),
    measured(fused_name("rademacher"), OURS, [0.64, 0.64], memory=64_000_000),
    measured(GEMM, BASELINE, [3.2, 3.2], share=0.0625),
]


def test_goals_compare_inside_a_round_and_in_the_named_direction() -> None:
    found = {outcome.text: outcome for outcome in outcomes(RESULTS, amx=False)}
    floor = found[f"{SJLT} / {ADAM_PASS} <= 2.2"]
    assert floor.value == floor.processor == pytest.approx(1.75)
    assert floor.met
    gemm = found[f"{GEMM} / {SJLT} >= 40"]
    assert gemm.value == pytest.approx((50 + 100 / 3) / 2)
    assert gemm.met
    assert found[f"{GEMM} / rademacher, Adam fused >= 1.5"].met
    assert not found["rademacher: extra memory of a call, MB, < 64"].met


def test_the_dense_goal_is_higher_with_matrix_units() -> None:
    found = {outcome.text: outcome for outcome in outcomes(RESULTS, amx=True)}
    assert not found[f"{GEMM} / rademacher, Adam fused >= 8"].met


def test_goals_of_what_was_not_measured_are_not_judged() -> None:
    assert not list(outcomes(RESULTS[:1], amx=False))


def test_the_tables_mark_what_was_scaled_and_what_was_missed() -> None:
    text = report.markdown(MACHINE, RESULTS, list(outcomes(RESULTS, amx=True)))
    assert f"| {GEMM} | ~100 (50.0) |" in text
    assert f"| **{SJLT}** | 2.50 (1.25) |" in text
    assert "**no**" in text
    assert "| rademacher, Adam fused | 4096 | 64 | 0 |" in text


def test_the_document_is_json_and_holds_every_round() -> None:
    document = json.loads(json.dumps(report.document(MACHINE, RESULTS, list(outcomes(RESULTS, amx=False)))))
    assert [result["wall_seconds"] for result in document["results"]] == [result.times.wall for result in RESULTS]
    assert {goal["parameters"] for goal in document["goals"]} == {1_000_000}


def test_the_figure_names_every_contender(tmp_path: Path) -> None:
    report.plot(tmp_path / "times.svg", MACHINE, RESULTS)
    comments = (tmp_path / "times.svg").read_text(encoding="utf-8")
    assert ET.fromstring(comments).tag.endswith("svg")
    assert all(f"<!-- {result.name} -->" in comments for result in RESULTS)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text
