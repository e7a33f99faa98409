"""``unit_tests`` against the contract of dataflex, and what its child processes may not do."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from dataflex import RewardRequest
from dataflex.errors import RewardError
from dataflex.testing import RewardContract
from dataflex_example import unit_tests
from dataflex_example.locked_down import Limits, NotStartedError, namespaces_work, run_tests
from dataflex_example.unit_tests import UnitTestReward, extract_code

DOUBLE = "def double(x):\n    return 2 * x\n"
TESTS = ("assert double(2) == 4", "assert double(-1) == -2", "assert double('a') == 'aa'")
WRONG = "def double(x):\n    return x + 2\n"  # right for 2 alone
PASSES = ("assert True",)
needs_namespaces = pytest.mark.skipif(not namespaces_work(), reason="unshare makes no namespaces here")


def request(answer: str, tests: Any = TESTS, sample_id: str = "q") -> RewardRequest:
    return RewardRequest(sample_id, ({"role": "user", "content": "Write double(x)."},), answer, None, {"tests": tests})


class TestUnitTests(RewardContract):
    def make(self, **params: Any) -> UnitTestReward:
        return UnitTestReward(partial=True, **params)

    def requests(self) -> list[RewardRequest]:
        answers = [DOUBLE, WRONG, "", f"Here it is:\n```python\n{DOUBLE}```\nDone.", "I don't know.", DOUBLE]
        return [request(answer, sample_id=f"q{row}") for row, answer in enumerate(answers)]

    def unscorable(self) -> RewardRequest:
        return request(DOUBLE, tests=None, sample_id="no-tests")


def test_all_tests_have_to_pass_unless_parts_count() -> None:
    requests = [request(DOUBLE), request(WRONG), request("double = None")]
    assert UnitTestReward().score(requests) == [1.0, 0.0, 0.0]
    assert UnitTestReward(partial=True).score(requests) == pytest.approx([1.0, 1 / 3, 0.0])


@pytest.mark.parametrize("tests", [None, [], "def (", ["assert 1", 3], ["assert 1", "1 +"], 7, ["assert 1"] * 1001])
def test_tests_that_cannot_be_run_are_failures(tests: Any) -> None:
    with pytest.raises(RewardError, match=r"sample 'q': column 'tests'"):
        UnitTestReward().score([request(DOUBLE, tests=tests)])


def test_one_text_is_one_test() -> None:
    assert UnitTestReward().score([request(DOUBLE, tests="for x in range(9):\n    assert double(x) == 2 * x")]) == [1.0]


def test_equal_answers_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(code: str, tests: tuple[str, ...], limits: Limits, *, namespaces: bool) -> frozenset[int]:
        ran.append((code, tests))
        return frozenset(range(len(tests)))

    monkeypatch.setattr(unit_tests, "run_tests", run)
    other = request(DOUBLE, tests=TESTS[:1])
    assert UnitTestReward().score([request(DOUBLE), request(DOUBLE), other]) == [1.0] * 3
    assert sorted(ran) == [(DOUBLE, TESTS[:1]), (DOUBLE, TESTS)]


def test_an_interpreter_that_does_not_start_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **options: Any) -> frozenset[int]:
        raise NotStartedError("the interpreter did not start (exit status 1)")

    monkeypatch.setattr(unit_tests, "run_tests", run)
    with pytest.raises(RewardError, match="did not start"):
        UnitTestReward().score([request(DOUBLE)])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("x = 1", "x = 1"),
        ("Sure:\n```python\nx = 1\n```\nand\n```py\ny = 2\n```\n", "x = 1\n\ny = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("- item\n  ```Python\n  x = 1\n  ```", "  x = 1\n"),
        ("```python\nx = 1", "```python\nx = 1"),
    ],
)
def test_code_is_what_stands_in_the_fences(answer: str, code: str) -> None:
    assert extract_code(answer) == code


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "def (",
        "x = '\ud800'",
        "\0",
        "while True: pass",
        "x = [0] * 10**9",
        "f = open('big', 'wb'); [f.write(bytes(2**20)) for _ in range(4)]; f.close()",
        "files = [open(__import__('os').devnull) for _ in range(64)]",
        "import numpy",
    ],
)
def test_code_that_does_not_come_to_its_end_passes_nothing(code: str) -> None:
    assert run_tests(code, PASSES, Limits(timeout=20, cpu_seconds=1)) == frozenset()


@pytest.mark.parametrize(
    "test",
    [
        "import os; assert dict(os.environ) == {} or set(os.environ) == {'LC_CTYPE'}",
        "import os; assert os.listdir('.') == []",
        "import sys; assert not any('site-packages' in path for path in sys.path)",
        "import os; assert os.getpgrp() == os.getsid(0)",
        "import sys; assert sys.stdin.read() == ''; print('x' * 10**6)",
        "import resource; assert resource.getrlimit(resource.RLIMIT_CPU) == (5, 5)",
        "import os; assert {int(fd) for fd in os.listdir('/proc/self/fd')} - {0, 1, 2} != set()",
    ],
)
def test_what_the_child_finds(test: str) -> None:
    assert run_tests("", [test], Limits()) == {0}


def test_tests_that_passed_before_the_time_was_up_count() -> None:
    start = time.monotonic()
    tests = ["assert True", "__import__('time').sleep(600)", "assert True"]
    assert run_tests("", tests, Limits(timeout=2)) == {0}
    assert time.monotonic() - start < 60


def test_a_child_that_floods_its_report_is_stopped() -> None:
    code = """
import os
for fd in range(3, 32):
    try:
        while True:
            os.write(fd, b"x" * 4096)
    except OSError:
        pass
"""
    assert run_tests(code, PASSES, Limits(timeout=2)) == frozenset()


@pytest.mark.skipif(os.getuid() == 0, reason="the limit of processes does not hold for the superuser")
def test_no_process_and_no_thread_can_be_started() -> None:
    tests = ["import os; os.fork()", "import threading; threading.Thread(target=print).start()"]
    assert run_tests("", tests, Limits()) == frozenset()


def alive(marker: str) -> list[int]:
    """Processes whose command line holds the marker."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(int(folder.name))
    return found


STRAY = "import subprocess; subprocess.Popen(['{sleep}', '{seconds}'], start_new_session={session})"


@pytest.mark.skipif(os.getuid() != 0, reason="only the superuser's code can start processes at all")
@pytest.mark.parametrize(("session", "namespaces"), [(False, False), pytest.param(True, True, marks=needs_namespaces)])
def test_what_the_code_started_dies_with_it(session: bool, namespaces: bool) -> None:
    seconds = f"{600 + int(session)}.{os.getpid()}"
    code = STRAY.format(sleep=shutil.which("sleep"), seconds=seconds, session=session)
    assert run_tests(code, PASSES, Limits(), namespaces=namespaces) == {0}
    end = time.monotonic() + 20
    while alive(seconds):
        assert time.monotonic() < end
        time.sleep(0.05)


@needs_namespaces
def test_namespaces_cut_the_network() -> None:
    test = "import socket; assert [name for _, name in socket.if_nameindex()] == ['lo']"
    assert run_tests("", [test], Limits(), namespaces=True) == {0}
    assert UnitTestReward(namespaces="require").score([request(DOUBLE)]) == [1.0]


def test_namespaces_that_are_required_and_not_to_be_had_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(unit_tests, "namespaces_work", lambda: False)
    with pytest.raises(RewardError, match="namespaces: require"):
        UnitTestReward(namespaces="require").check()
    UnitTestReward().check()
    assert "with network access" in caplog.text
    UnitTestReward(namespaces="off").check()
