"""Judge replies on disk, addressed by what was asked.

One SQLite file in WAL mode: any number of processes may read and write it at once, and a killed process loses nothing
that it stored. A key is a SHA-256 of the endpoint, model, prompt and parameters; prompts and API keys are not stored.
The first reply to a question stays: whoever asks again, or asked at the same time, gets that one.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from dataflex.errors import RewardError

LOCK_TIMEOUT_SECONDS = 60.0


class ReplyCache:
    """A map from request keys to replies; use it as a context manager.

    Args:
        path: The file, created if needed; None keeps replies in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        with self._explained():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: every reply is durable by itself. The connection moves between threads, never concurrently.
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._use_write_ahead_log()
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID"
            )

    def get(self, key: str) -> str | None:
        """The stored reply, or None."""
        with self._explained():
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def _use_write_ahead_log(self) -> None:
        """Switch to WAL; two processes that do so at once may collide, and sqlite's own timeout does not cover it."""
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def put(self, key: str, reply: str) -> str:
        """Store a reply unless there is one; return the one that is stored."""
        with self._explained():
            self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, reply))
        return self.get(key) or reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RewardError(
                f"the reply cache {self.path or 'in memory'} cannot be used: {error}",
                hint="set cache_path to a file on a local disk, or to null for no cache; a damaged file may be deleted",
            ) from error


def cache_key(question: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able question, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
