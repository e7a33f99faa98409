"""Components that carry their own, validated parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dataflex.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class ComponentConfig(BaseModel):
    """Base of the parameters of every component: unknown keys are errors, defaults are validated."""

    model_config = ConfigDict(extra="forbid", validate_default=True, arbitrary_types_allowed=True)


ConfigT = TypeVar("ConfigT", bound=ComponentConfig)


class Configurable(Generic[ConfigT]):
    """A component built from keyword parameters that its ``Config`` model validates.

    Attributes:
        name: How configuration files and messages call the component.
        Config: pydantic model of the parameters.
        config: The validated parameters.
    """

    name: ClassVar[str] = "component"
    Config: type[ConfigT]
    config: ConfigT

    def __init__(self, **params: Any) -> None:
        """Validate ``params``.

        Raises:
            ConfigError: Every wrong or unknown parameter, all at once.
        """
        try:
            self.config = self.Config(**params)
        except ValidationError as error:
            raise ConfigError([f"{self.name}: {line}" for line in validation_lines(error)]) from error

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> Self:
        """Build the component from its mapping in a configuration file."""
        return cls(**params)


def validation_lines(error: ValidationError) -> list[str]:
    """One readable line per problem of a pydantic validation error."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "value"
        got = f" (got {problem['input']!r})" if _is_shown(problem) else ""
        lines.append(f"{where}: {problem['msg']}{got}")
    return lines


def _is_shown(problem: ErrorDetails) -> bool:
    """Whether the offending value belongs in the message: not whole mappings, nor what may hold a secret."""
    key = str(problem["loc"][-1]) if problem["loc"] else ""
    return (
        problem["type"] not in ("missing", "extra_forbidden")
        and not isinstance(problem["input"], dict | list)
        and not key.endswith(("key", "secret", "token", "password", "url"))
    )
