"""``~`` at the start of a path: the home folder, wherever a path is written.

A shell expands ``~`` at the start of a word only: ``output_dir=~/run`` reaches a program as it stands. What is not
expanded becomes a folder of the name ``~``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationInfo, field_validator

from dataflex.errors import ConfigError

_NAMES = "path|dir|logdir|file|folder|model|dataset|checkpoint|deepspeed|fsdp_config"
PATH_FIELD = re.compile(rf"(^|_)({_NAMES})$|^template$")
"""Names of text fields that hold a path, or a name that may be one."""


def expand_home(value: Any) -> Any:
    """A path (text or ``Path``) with the home folder in the place of ``~`` or ``~user``; anything else as it is.

    Raises:
        ValueError: There is no such user.
    """
    if not isinstance(value, str | Path) or not str(value).startswith("~"):
        return value
    try:
        return type(value)(str(Path(value).expanduser()))
    except RuntimeError as error:
        user = str(value).split("/")[0]
        raise ValueError(f"{str(value)!r}: {user} is nobody's home here; ./{value} is a name with ~") from error


def home_path(value: str | Path) -> Path:
    """:func:`expand_home` as a path.

    Raises:
        ConfigError: There is no such user.
    """
    try:
        return Path(expand_home(value))
    except ValueError as error:
        raise ConfigError(str(error)) from error


class HomePaths(BaseModel):
    """Base of models whose paths may start with ``~``: fields of type ``Path``, and text ones by :data:`PATH_FIELD`."""

    @field_validator("*", mode="before")
    @classmethod
    def _expand_home(cls, value: Any, info: ValidationInfo) -> Any:
        if not _is_path(cls, str(info.field_name)):
            return value
        return [expand_home(part) for part in value] if isinstance(value, list) else expand_home(value)


def _is_path(model: type[BaseModel], name: str) -> bool:
    annotation = model.model_fields[name].annotation
    return PATH_FIELD.search(name) is not None or "Path" in str(annotation)
