from __future__ import annotations

import errno
import os
import shutil
import stat

import pytest
from safetensors import SafetensorError

from dataflex.errors import DataflexError
from dataflex.utils.files import atomic_directory, atomic_path, remove_folder, sweep, write_json, write_text


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


def test_what_killed_writers_left_is_swept(tmp_path):
    for name in (".a.json.abcd1234.tmp", "sub/.b.parquet.abcd_234.tmp", "other/.c.abcd1234.tmp", ".keep.tmp", ".d.old"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in (".checkpoint-2.abcd1234.tmp", ".best_model.abcd1234.old", ".checkpoint-4.abcd1234.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name, encoding="utf-8")
    (tmp_path / "checkpoint-4").mkdir()
    removed = [path.name for path in sweep(tmp_path, inside=["sub", "absent"])]
    assert removed == [
        ".a.json.abcd1234.tmp",
        ".checkpoint-2.abcd1234.tmp",
        ".checkpoint-4.abcd1234.old",
        ".b.parquet.abcd_234.tmp",
    ]
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".d.old", ".keep.tmp", "best_model/x", "other/.c.abcd1234.tmp"]


def test_a_sweep_can_be_of_some_files_only(tmp_path):
    for name in (".a.jsonl.abcd1234.tmp", ".b.jsonl.abcd1234.tmp"):
        (tmp_path / name).touch()
    assert [path.name for path in sweep(tmp_path, only=["a.jsonl"])] == [".a.jsonl.abcd1234.tmp"]
    assert sweep(tmp_path / "nowhere") == []


def test_a_removal_that_is_killed_leaves_nothing_half(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "a").touch()
    monkeypatch.setattr(shutil, "rmtree", lambda path: None)  # killed here
    remove_folder(folder)
    assert not folder.exists()
    monkeypatch.undo()
    assert len(sweep(tmp_path)) == 1
    assert not list(tmp_path.iterdir())


def test_of_a_link_to_a_folder_the_link_is_removed(tmp_path):
    folder, link = tmp_path / "elsewhere", tmp_path / "tensorboard"
    folder.mkdir()
    (folder / "events").touch()
    link.symlink_to(folder)
    remove_folder(link)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (folder / "events").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_in_one_line(tmp_path, number):
    for writer in (atomic_path, atomic_directory):
        with pytest.raises(DataflexError, match=r"cannot write .*/a: the disk") as caught, writer(tmp_path / "a"):
            raise OSError(number, "no")
        assert "free some space" in str(caught.value.hint)
    with pytest.raises(DataflexError, match="the disk is full"), atomic_directory(tmp_path / "a"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())
