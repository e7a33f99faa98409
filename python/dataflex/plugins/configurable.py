"""Components that carry their own, validated parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dataflex.errors import ConfigError, DataflexError
from dataflex.utils.home import HomePaths
from dataflex.utils.messages import Path, explain_all

if TYPE_CHECKING:
    from dataflex.plugins.registry import Kind


class ComponentConfig(HomePaths):
    """Base of the parameters of every component: unknown keys are errors, defaults are validated."""

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,  # it may be a key in a wrong place, and tracebacks end in logs
    )

    nested: ClassVar[Mapping[str, Kind]] = {}
    """Parameters that name another component, as {name, params}, and its kind."""

    @classmethod
    def find_problems(cls, params: Mapping[str, Any]) -> list[tuple[Path, str]]:
        """Where each wrong value of some parameters lies, and what is wrong with it: all at once.

        Args:
            params: The parameters before they are validated.
        """
        nested = cls.find_nested_problems(params)
        try:
            cls.model_validate(dict(params))
        except ValidationError as error:
            return [*explain_all(error, cls), *nested]
        except DataflexError as error:
            return nested or [((), one_line(error))]
        return nested

    @classmethod
    def find_nested_problems(cls, params: Mapping[str, Any]) -> list[tuple[Path, str]]:
        """The same for parameters of what a parameter names (a backend), which this model does not know itself.

        Args:
            params: The parameters before they are validated; nothing about them may be taken for granted.
        """
        del params
        return []

    def find_idle(self) -> list[tuple[Path, str]]:
        """Parameters that have no effect because of others: where they lie, and why."""
        return []


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
        except (ValidationError, DataflexError) as error:
            problems = self.Config.find_problems(params)
            raise ConfigError([f"{self.name}: {text}" for _, text in problems] or one_line(error)) from error

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> Self:
        """Build the component from its mapping in a configuration file."""
        return cls(**params)


def one_line(error: Exception) -> str:
    """An error's message, with its hint in brackets."""
    text, hint = (error.message, error.hint) if isinstance(error, DataflexError) else (str(error), None)
    return f"{text} ({hint})" if hint else text


def validation_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One readable line per problem of a pydantic validation error.

    Args:
        error: What pydantic raised.
        model: The model that was validated; its fields are offered in place of an unknown one.
    """
    return [text for _, text in explain_all(error, model)]
