"""What a run has asked for, counted in a file of the run's folder, so that a cap is a cap of the run.

The file holds one line a request, its time in UTC, written before the request is sent. An appended line is whole or not
there, so that a process that is killed at any moment has counted everything that it may be billed for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from dataflex.errors import RewardError

SPENDING_FILE = "judge_requests.txt"
"""The name of the file in the run's folder."""


class Spending:
    """Requests of a run.

    Args:
        path: The file, made with the first request; None counts in memory.

    Attributes:
        path: The same.
        requests: How many there were, those of the run's earlier processes included.

    Raises:
        RewardError: The file cannot be read.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        try:
            self.requests = path.read_bytes().count(b"\n") if path is not None and path.exists() else 0
        except OSError as error:
            raise self._unusable(error) from error

    def add(self) -> None:
        """Count one more request.

        Raises:
            RewardError: The file cannot be written.
        """
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab", buffering=0) as file:
                    file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode())
            except OSError as error:
                raise self._unusable(error) from error
        self.requests += 1

    @property
    def hint(self) -> str:
        """What to do where all requests are spent."""
        counted = f"; {self.path} counts those of the whole run, however often it was resumed" if self.path else ""
        return f"raise max_requests, or score fewer answers{counted}"

    def _unusable(self, error: OSError) -> RewardError:
        return RewardError(
            f"the requests of this run cannot be counted in {self.path}: {error.strerror or error}",
            hint="it must be a file that can be read and written; without the count max_requests is no cap",
        )
