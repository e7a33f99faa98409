"""Judge replies on disk, addressed by what was asked.

One SQLite file in WAL mode: any number of processes may read and write it at once, and a killed process loses nothing
that it stored. A key is a SHA-256 of the endpoint, model, prompt and parameters; a reply is stored as the score that it
is, so that neither prompts nor API keys, which a judge may repeat, are in the file. The first reply to a question
stays: whoever asks again, or asked at the same time, gets that one.

Another process may lock the file for a while (a backup, a shell). It is waited for, without holding up the requests
that are under way, since what was paid for must not be asked for again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from dataflex.errors import RewardError

logger = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 600.0
"""How long a locked file is waited for."""

_SAID_AFTER_SECONDS = 2.0
_PAUSE_SECONDS = 0.02
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


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
            # No timeout: waiting is done here, where it can be said and does not hold up requests.
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=0.0, isolation_level=None, check_same_thread=False
            )
            self._patiently("PRAGMA journal_mode = WAL")
            self._patiently("PRAGMA synchronous = NORMAL")
            self._patiently(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID"
            )

    def get(self, key: str) -> str | None:
        """The stored reply, or None."""
        with self._explained():
            row = self._patiently("SELECT reply FROM replies WHERE key = ?", key)
        return None if row is None else str(row[0])

    async def put(self, key: str, reply: str) -> str:
        """Store a reply unless there is one; return the one that is stored."""
        patience = _Patience(self.path)
        with self._explained():
            while True:
                try:
                    self._execute("INSERT OR IGNORE INTO replies VALUES (?, ?)", key, reply)
                    return str(self._execute("SELECT reply FROM replies WHERE key = ?", key)[0])
                except sqlite3.OperationalError as error:
                    await asyncio.sleep(patience.pause(error))

    def _patiently(self, statement: str, *values: str) -> Any:
        patience = _Patience(self.path)
        while True:
            try:
                return self._execute(statement, *values)
            except sqlite3.OperationalError as error:
                time.sleep(patience.pause(error))

    def _execute(self, statement: str, *values: str) -> Any:
        return self._connection.execute(statement, values).fetchone()

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


class _Patience:
    """With a file that another process has locked: says so, and ends after :data:`LOCK_TIMEOUT_SECONDS`."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._start = time.monotonic()
        self._is_said = False

    def pause(self, error: sqlite3.OperationalError) -> float:
        """Seconds until the next attempt; raises ``error`` if there is to be none."""
        waited = time.monotonic() - self._start
        if error.sqlite_errorcode & 0xFF not in _LOCKED or waited > LOCK_TIMEOUT_SECONDS:
            raise error
        if waited > _SAID_AFTER_SECONDS and not self._is_said:
            self._is_said = True
            logger.warning(
                "the reply cache %s is locked by another process; waiting up to %g s for it",
                self._path,
                LOCK_TIMEOUT_SECONDS,
            )
        return _PAUSE_SECONDS


def cache_key(question: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON-able question, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
