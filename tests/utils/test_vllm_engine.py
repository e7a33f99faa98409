"""What an engine leaves open is closed; ``tests/vllm`` runs real engines."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from dataflex.utils import vllm_engine
from dataflex.utils.vllm_engine import stop_engine


class Core:
    """The client of an engine in another process, as vLLM 0.32 has it: its reader ends after the shutdown."""

    def __init__(self, *, ends: bool = True) -> None:
        self.log: list[str] = []
        self.stop = threading.Event()
        self.ends = ends
        self.output_queue_thread = threading.Thread(target=self._read, daemon=True, name="reader")
        self.output_queue_thread.start()
        self.resources = SimpleNamespace(ctx=SimpleNamespace(destroy=self._destroy))

    def _read(self) -> None:
        self.stop.wait()
        self.log.append("reader ended")

    def _destroy(self, linger: int) -> None:
        self.log.append(f"context destroyed, linger {linger}")

    def shutdown(self) -> None:
        self.log.append("shut down")
        if self.ends:
            threading.Timer(0.05, self.stop.set).start()


def engine(core: Any) -> Any:
    return SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))


def test_the_context_is_closed_after_its_reader() -> None:
    core = Core()
    stop_engine(engine(core))
    assert core.log == ["shut down", "reader ended", "context destroyed, linger 0"]


def test_no_socket_is_closed_under_a_reader_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vllm_engine, "_STOP_SECONDS", 0.05)
    core = Core(ends=False)
    stop_engine(engine(core))
    assert core.log == ["shut down"]
    assert "vLLM's thread reader did not end" in caplog.text
    core.stop.set()
    core.output_queue_thread.join()


def test_an_engine_in_this_process_has_no_context() -> None:
    stopped: list[bool] = []
    stop_engine(engine(SimpleNamespace(shutdown=lambda: stopped.append(True))))
    assert stopped == [True]
