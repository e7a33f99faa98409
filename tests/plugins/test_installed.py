from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dataflex.plugins.installed import may_have_plugins

GROUP = "[console_scripts]\nother = other:main\n\n[dataflex]\nmine = mine.plugin\n"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("mine-1.0.dist-info/entry_points.txt", GROUP, True),
        ("mine.egg-info/entry_points.txt", GROUP, True),
        ("EGG-INFO/entry_points.txt", GROUP, True),
        ("mine-1.0.dist-info/entry_points.txt", GROUP.replace("[dataflex]", "[dataflex.other]"), False),
        ("mine-1.0.dist-info/METADATA", "[dataflex]\n", False),
        ("mine/entry_points.txt", GROUP, False),
    ],
)
def test_a_plugin_is_seen_by_its_entry_points(
    file: str, text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "absent")])
    assert may_have_plugins() is expected


def test_an_archive_may_hold_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugins.zip").write_bytes(b"")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "plugins.zip")])
    assert may_have_plugins()


def test_the_working_directory_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.egg-info").mkdir()
    (tmp_path / "mine.egg-info" / "entry_points.txt").write_text(GROUP, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [""])
    assert may_have_plugins()
