"""Second names of keyword arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def also_called(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take keyword arguments under a second name, too.

    Args:
        **names: The second name and the argument that it stands for: ``also_called(tokenizer="processing_class")``.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for other, name in names.items():
                if other in kwargs:
                    if name in kwargs:
                        raise TypeError(
                            f"{function.__qualname__}() got {name} and {other}, which are the same argument"
                        )
                    kwargs[name] = kwargs.pop(other)
            return function(*args, **kwargs)

        return call

    return decorate
