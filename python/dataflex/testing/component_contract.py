"""What all components have in common: parameters that are validated and documented."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from dataflex.errors import ConfigError
from dataflex.plugins.configurable import Configurable

_UNKNOWN = "a_parameter_that_nobody_has"


class ComponentContract(ABC):
    """Tests of a component's parameters; a subclass implements :meth:`make`."""

    @abstractmethod
    def make(self) -> Configurable[Any]:
        """A new component, always with the same parameters."""

    def test_unknown_parameters_are_errors(self) -> None:
        """A parameter that the component does not have is a ConfigError that names it."""
        component = type(self.make())
        try:
            component.from_params({_UNKNOWN: 1})
        except ConfigError as error:
            if _UNKNOWN in str(error):
                return
            raise AssertionError(f"the error does not name the unknown parameter: {error}") from error
        raise AssertionError(f"{component.__name__} accepts a parameter that it does not have (is extra forbidden?)")

    def test_parameters_are_documented(self) -> None:
        """Every parameter has a description, which ``dataflex plugins show`` prints."""
        fields = type(self.make()).Config.model_fields
        bare = [name for name, field in fields.items() if not (field.description or "").strip()]
        if bare:
            raise AssertionError(f"no description: {', '.join(bare)}; Field(..., description=...)")
