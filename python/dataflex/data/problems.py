"""Rows that cannot be used: all are counted, the first few shown, in one error."""

from __future__ import annotations

from dataclasses import dataclass, field

from dataflex.errors import DataError

MAX_REPORTED = 5


@dataclass
class Problems:
    """Collects what is wrong with rows.

    Attributes:
        lines: The first few problems, each with its row.
        count: How many there are.
        hint: What to do about the first that says so.
    """

    lines: list[str] = field(default_factory=list)
    count: int = 0
    hint: str | None = None

    def add(self, row: str, error: DataError) -> None:
        """Note that ``row`` cannot be used."""
        self.count += 1
        self.hint = self.hint or error.hint
        if len(self.lines) < MAX_REPORTED:
            self.lines.append(f"{row}: {error.message}")

    def extend(self, other: Problems) -> None:
        """Add the problems of rows further on."""
        self.count += other.count
        self.hint = self.hint or other.hint
        self.lines += other.lines[: MAX_REPORTED - len(self.lines)]

    def raise_if_any(self, head: str, hint: str | None = None) -> None:
        """Raise one error for all.

        Args:
            head: What cannot be done; ``COUNT`` stands for the number of rows.
            hint: What to do, unless a problem says so itself.

        Raises:
            DataError: There are problems.
        """
        if not self.count:
            return
        more = [f"  ... and {self.count - len(self.lines):,} more"] if self.count > len(self.lines) else []
        text = "\n".join([head.replace("COUNT", f"{self.count:,}"), *(f"  {line}" for line in self.lines), *more])
        raise DataError(text, hint=self.hint or hint)
