"""Facts that a selector or a file gives as JSON, taken as what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_LISTED = 8


def numbers(value: object) -> dict[str, float]:
    """The finite numbers of a mapping by name; nothing of anything else, which a plugin's report may hold."""
    found = value.items() if isinstance(value, Mapping) else ()
    return {str(name): number for name, number in found if _is_number(number)}


def number_text(value: float | None) -> str:
    """A number with four digits, as lines for people show it; None is one that was not finite."""
    return "not a number" if value is None else f"{value:.4g}"


def flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as names with dots and short texts; a long list is counted."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        short = len(value) <= _LISTED and not any(isinstance(item, Mapping | list) for item in value)
        yield name, (", ".join(map(_text, value)) or "none") if short else f"{len(value):,} entries"
    else:
        yield name, _text(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
