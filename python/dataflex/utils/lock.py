"""One process at a time in a folder: a lock that ends with the process that holds it.

The lock is the system's (``flock``) on the file :data:`LOCK_FILE`; what is written in it only tells who holds it. A
process that was killed, in whatever way, holds it no longer, and nothing has to be cleaned up.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from dataflex.errors import DataflexError
from dataflex.utils.foreign import foreign

logger = logging.getLogger(__name__)

LOCK_FILE = ".dataflex.lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What disks answer that know no locks (some mounts of networks)."""
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)
_POLL_SECONDS = 0.1


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it does not exist, while the block runs.

    Raises:
        DataflexError: Another run holds it (its host, process and start are named), or the folder cannot be written.
    """
    file = folder / LOCK_FILE
    is_new = not folder.exists()
    with foreign(DataflexError, f"cannot use the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(file)
    _held.add(descriptor)
    try:
        yield
    finally:
        if _release(file, descriptor) and is_new:
            with suppress(OSError):  # something was written in it: it stays
                folder.rmdir()


@contextmanager
def waiting_lock(file: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file of its own while the block runs; where another process holds it, wait for as long.

    Args:
        file: The file, which is removed at the end.
        what: What is going on meanwhile, for the log.

    Raises:
        DataflexError: The file cannot be written.
    """
    with foreign(DataflexError, f"cannot use the folder {file.parent}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(file, what)
    _held.add(descriptor)
    try:
        yield
    finally:
        _release(file, descriptor)


def _release(file: Path, descriptor: int) -> bool:
    """Give a lock up, if it is this process's: a forked child that ends has none, and its parent's stays."""
    if descriptor not in _held:
        return False
    file.unlink(missing_ok=True)
    _held.discard(descriptor)
    os.close(descriptor)
    return True


def _acquire(file: Path, waiting: str | None = None) -> int:
    """An open file that holds the lock, with this process written in it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _wait_for(descriptor, file, waiting) if waiting else _lock(descriptor, file)
            if not _is_at(descriptor, file):  # the last holder removed it between the two calls
                os.close(descriptor)
                continue
            if left := os.pread(descriptor, 4096, 0):
                logger.info("%s: the lock of a run that has ended (%s) is taken over", file.parent, _holder(left))
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_self()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _lock(descriptor: int, file: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            logger.warning("%s is on a disk without locks: nothing keeps two runs apart there", file.parent)
        elif error.errno in _BUSY:
            raise DataflexError(
                f"{file.parent} is in use by another run: {_holder(os.pread(descriptor, 4096, 0))}",
                hint="wait for it or end it, or name another folder (output_dir, cache_dir)",
            ) from error
        else:
            raise


def _wait_for(descriptor: int, file: Path, what: str) -> None:
    """Take the lock once nobody else has it; asked for again and again, for a wait in the system could not be ended."""
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _BUSY:
                _lock(descriptor, file)
                return
        else:
            return
        if not told:
            logger.info("%s by another process (%s): waiting for it", what, _holder(os.pread(descriptor, 4096, 0)))
            told = True
        time.sleep(_POLL_SECONDS)


def _is_at(descriptor: int, file: Path) -> bool:
    """Whether the open file is still the one of that name."""
    own = os.fstat(descriptor)
    try:
        named = file.stat()
    except FileNotFoundError:
        return False
    return (own.st_dev, own.st_ino) == (named.st_dev, named.st_ino)


def _self() -> dict[str, str | int]:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since}


def _holder(content: bytes) -> str:
    """Who holds a lock, from what is written in it."""
    try:
        found = json.loads(content)
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return "an unknown process"


_held: set[int] = set()


def _forget() -> None:
    """A forked child shares the open file, and would keep the lock when its parent has died."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
