from __future__ import annotations

import fcntl
import json
import logging
import os
import signal

import pytest

from dataflex.errors import DataflexError
from dataflex.utils.lock import LOCK_FILE, locked
from helpers.locks import HOLD, holder


def test_a_second_process_is_refused_and_told_who_is_there_until_the_first_dies(tmp_path, caplog):
    with holder(tmp_path) as process:
        message = rf"is in use by another run: process {process.pid} on \S+, since 20"
        with pytest.raises(DataflexError, match=message), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with caplog.at_level(logging.INFO), locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert f"the lock of a run that has ended (process {process.pid} on" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_same_process_is_refused_too(tmp_path):
    message = f"in use by another run: process {os.getpid()} on"
    with locked(tmp_path), pytest.raises(DataflexError, match=message), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    fork = "import os; pid = os.fork(); print(pid, flush=True) if pid else time.sleep(30)"
    script = HOLD.replace("time.sleep(60)", fork)
    process = holder(tmp_path, script)
    child = int(process.stdout.readline())
    assert process.wait() == 0
    try:
        os.kill(child, 0)
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_child_that_ends_leaves_the_lock_of_its_parent(tmp_path):
    there = f"print((Path(sys.argv[1]) / '{LOCK_FILE}').exists(), flush=True)"
    fork = f"import os; child = os.fork(); child or sys.exit(); print(os.waitpid(child, 0)[1]); {there}"
    with holder(tmp_path / "made", HOLD.replace("time.sleep(60)", fork)) as process:
        assert process.communicate()[0] == "0\nTrue\n"
    assert not (tmp_path / "made").exists()


def test_a_folder_that_the_lock_made_goes_unless_something_is_in_it(tmp_path):
    with locked(tmp_path / "empty"):
        pass
    with locked(tmp_path / "used"):
        (tmp_path / "used" / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["used"]


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, kind):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        pass
    assert "is on a disk without locks" in caplog.text


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(DataflexError, match=r"cannot use the folder .*: it exists already"), locked(tmp_path / "a"):
        pass
    (tmp_path / LOCK_FILE).write_text("odd", encoding="utf-8")
    with locked(tmp_path):
        pass
