"""Values of rows in a form that JSON has: Parquet, ``datasets`` and Python hold more kinds than JSON.

Dates and times become ISO 8601 text, decimals and UUIDs their text (exact), bytes base64, numpy values those of Python;
NaN and infinities, which JSON lacks, become null.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
from pydantic_core import to_jsonable_python

from dataflex.errors import DataError
from dataflex.utils.shown import quoted


def plain(value: Any) -> Any:
    """``value`` out of nothing but mappings with text keys, lists, text, finite numbers, booleans and None.

    What JSON knows stays as it is.

    Raises:
        DataError: Something inside has no form in JSON.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.generic, np.ndarray)):
        return _of_numpy(value)
    return _of_other(value)


def _key(key: Any) -> str:
    """A mapping's key, as ``json.dumps`` writes it."""
    if isinstance(key, str):
        return key
    found = plain(key)
    if isinstance(found, (list, dict)):
        raise DataError(f"the key {quoted(key)} has no form in JSON")
    return found if isinstance(found, str) else json.dumps(found)


def _of_numpy(value: np.generic | np.ndarray[Any, Any]) -> Any:
    if value.dtype.kind in "mM":  # dates and durations, whose tolist() may be a bare count of nanoseconds
        if isinstance(value, np.ndarray) and value.ndim:
            return [plain(item) for item in value]
        return None if np.isnat(value) else str(value)
    return plain(value.tolist())


def _of_other(value: Any) -> str | None:
    if isinstance(value, (date, time, timedelta)):
        if value != value:  # pandas' NaT
            return None
        iso = getattr(value, "isoformat", None)  # also pandas' Timedelta, down to the nanosecond
        return str(iso() if iso else to_jsonable_python(value))
    if isinstance(value, (Decimal, UUID)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode()
    raise DataError(f"{quoted(value)} is a {type(value).__name__}, which has no form in JSON")
