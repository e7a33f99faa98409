from __future__ import annotations

import os
import stat

import pytest

from dataflex.utils.files import atomic_directory, atomic_path, write_json, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "old")
    with pytest.raises(UnicodeEncodeError), atomic_path(target) as temporary:
        temporary.write_text("half \ud800", encoding="utf-8")
    assert target.read_text(encoding="utf-8") == "old"
    write_text(target, "new")
    assert target.read_text(encoding="utf-8") == "new"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "d"
    for text in ("old", "new"):
        with atomic_directory(target) as staged:
            (staged / "sub").mkdir()
            (staged / "sub" / "a.txt").write_text(text, encoding="utf-8")
        assert (target / "sub" / "a.txt").read_text(encoding="utf-8") == text
    with pytest.raises(UnicodeEncodeError), atomic_directory(target) as staged:
        (staged / "b.txt").write_text("half \ud800", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert [path.name for path in target.iterdir()] == ["sub"]


def test_files_are_readable_as_the_umask_says(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
        with atomic_directory(tmp_path / "d"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o750


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())
