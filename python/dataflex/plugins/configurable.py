"""Components that carry their own, validated parameters."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dataflex.errors import ConfigError
from dataflex.utils.messages import explain_all


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
            raise ConfigError([f"{self.name}: {line}" for line in validation_lines(error, self.Config)]) from error

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> Self:
        """Build the component from its mapping in a configuration file."""
        return cls(**params)


def validation_lines(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One readable line per problem of a pydantic validation error.

    Args:
        error: What pydantic raised.
        model: The model that was validated; its fields are offered in place of an unknown one.
    """
    return [text for _, text in explain_all(error, model)]
