"""Every public name is documented: arguments, shapes, units, errors, and the source of each method.

Read from signatures and from the code: an argument that is added, an error that is raised, or a tensor without a shape
fails until its docstring says so.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

import dataflex
from helpers.scripts import ROOT

CONSTANTS = {"HOOK_API_VERSION", "__version__", "hookimpl"}
NAMES = [name for name in dataflex.__all__ if name not in CONSTANTS]
METHODS = {
    "AdaptWeighter",
    "DeltaLossSelector",
    "DoReMiMixer",
    "InContextSelector",
    "LessSelector",
    "LossSelector",
    "LossWeighter",
    "NearSelector",
    "NiceSelector",
    "OdmMixer",
    "Projector",
    "RdsSelector",
    "TsdsSelector",
    "less_static",
}
"""Names that carry out a method which somebody else has described."""

SOURCE = re.compile(r"arXiv \d{4}\.\d{4,5}|openreview|DataFlex|Johnson-Lindenstrauss")
SHAPE = re.compile(r"``\([^`]*\)``")
TENSOR = re.compile(r"\bTensor\b|\bNDArray\b")
NUMBER = re.compile(r"\b(int|float)\b")
MEASURED = re.compile(
    r"(^|_)(len|length|steps?|times|seconds|timeout|bytes|dim|epochs|tokens)$|^max_|^num_samples$|_size$|_ratio$|_rate$"
)
UNITS = re.compile(
    r"\b(tokens?|steps?|samples?|rows?|share|number|dimension|seconds|bytes|times|selections?|candidates|"
    r"passes|rate|often|norm|answers?|queries|neighbours|checkpoints|texts|evaluations)\b",
    re.IGNORECASE,
)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example|Yields):$", re.MULTILINE)


@dataclass(frozen=True)
class Documented:
    """A function, method or class with its docstring, split at its sections."""

    label: str
    value: Any
    text: str

    def section(self, name: str) -> str:
        """The text of a section, empty if there is none."""
        parts = SECTION.split(self.text)
        return next((body for title, body in zip(parts[1::2], parts[2::2], strict=True) if title == name), "")

    def entry(self, name: str) -> str:
        """What is said of an argument or attribute: its entry, else all that is said."""
        for section in ("Args", "Attributes"):
            found = re.search(rf"^    {re.escape(name)}: (.*(?:\n {{6,}}.*)*)", self.section(section), re.MULTILINE)
            if found:
                return found[1]
        return self.text


def functions_of(name: str) -> Iterator[Documented]:
    """The function that a name stands for, or the public methods of the class that dataflex wrote."""
    value = getattr(dataflex, name)
    if not inspect.isclass(value):
        yield Documented(name, value, inspect.getdoc(value) or "")
        return
    for attribute in sorted(vars(value)):
        if attribute.startswith("_") or isinstance(vars(value)[attribute], type):
            continue
        found = inspect.getattr_static(value, attribute)
        function = getattr(found, "__func__", None) or getattr(found, "fget", None) or getattr(found, "func", found)
        if inspect.isfunction(function):
            yield Documented(f"{name}.{attribute}", function, inspect.getdoc(getattr(value, attribute, function)) or "")


def arguments_of(function: Callable[..., Any]) -> dict[str, str]:
    """Name and annotation of each argument but ``self``."""
    parameters = inspect.signature(function).parameters.values()
    return {part.name: str(part.annotation) for part in parameters if part.name not in ("self", "cls")}


def inherited_text(name: str, documented: Documented) -> str:
    """The docstring together with those of the same method of base classes."""
    method = documented.label.partition(".")[2]
    value = getattr(dataflex, name)
    if not method:
        return documented.text
    texts = [getattr(vars(base).get(method), "__doc__", None) or "" for base in value.__mro__ if method in vars(base)]
    return "\n".join([documented.text, *map(inspect.cleandoc, texts)])


def raised_by(function: Callable[..., Any]) -> set[str]:
    """Classes of the errors that the body of a function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None]
    classes = [part.func if isinstance(part, ast.Call) else part for part in raised]
    names = {part.id for part in classes if isinstance(part, ast.Name)}
    return {name for name in names if name.endswith("Error")} - {"NotImplementedError"}


def fields_of(name: str) -> dict[str, tuple[str, str]]:
    """Annotation and description of each field or constructor argument of a class; a base may describe it."""
    value = getattr(dataflex, name)
    if issubclass(value, BaseModel):
        return {key: (str(info.annotation), info.description or "") for key, info in value.model_fields.items()}
    found = arguments_of(vars(value)["__init__"]) if "__init__" in vars(value) else {}
    if dataclasses.is_dataclass(value):
        found = {part.name: str(part.type) for part in dataclasses.fields(value)}
    own = [base for base in value.__mro__ if base.__module__.startswith("dataflex")]
    texts = [Documented(name, base, inspect.cleandoc(base.__doc__ or "")) for base in own]
    return {
        key: (note, next((text.entry(key) for text in texts if re.search(rf"\b{key}\b", text.text)), ""))
        for key, note in found.items()
        if key != "params"
    }


ALL = [(name, documented) for name in NAMES for documented in functions_of(name)]
CLASSES = [name for name in NAMES if inspect.isclass(getattr(dataflex, name))]


def test_every_public_name_has_a_home() -> None:
    assert set(dataflex.__all__) == set(dataflex._HOMES)
    assert dir(dataflex) == sorted(dataflex.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_documented_where_they_live(name: str) -> None:
    value = getattr(dataflex, name)
    assert len(inspect.getdoc(value) or "") > 20
    assert value.__module__ == dataflex._HOMES[name] or value.__module__.startswith("dataflex.")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'NoSuchSelector'"):
        _ = dataflex.NoSuchSelector


@pytest.mark.parametrize(("name", "documented"), ALL, ids=[documented.label for _, documented in ALL])
def test_arguments_and_errors_are_described(name: str, documented: Documented) -> None:
    assert documented.text
    text = inherited_text(name, documented)
    missing = [part for part in arguments_of(documented.value) if not re.search(rf"\b{part}\b", text)]
    assert missing == []
    said = documented.section("Raises") + (getattr(dataflex, name).__doc__ or "")
    assert [error for error in raised_by(documented.value) if error not in said] == []


@pytest.mark.parametrize(("name", "documented"), ALL, ids=[documented.label for _, documented in ALL])
def test_tensors_have_shapes(name: str, documented: Documented) -> None:
    whole = Documented(documented.label, documented.value, inherited_text(name, documented))
    for argument, annotation in arguments_of(documented.value).items():
        if TENSOR.search(annotation):
            assert SHAPE.search(whole.entry(argument)), f"{argument}: {annotation} has no shape"
    if TENSOR.search(str(inspect.signature(documented.value).return_annotation)):
        assert SHAPE.search(whole.section("Returns") or whole.text), "what is returned has no shape"


@pytest.mark.parametrize(("name", "documented"), ALL, ids=[documented.label for _, documented in ALL])
def test_numbers_have_units(name: str, documented: Documented) -> None:
    del name
    for argument, annotation in arguments_of(documented.value).items():
        if NUMBER.search(annotation) and MEASURED.search(argument):
            assert UNITS.search(documented.entry(argument)), f"{argument}: no unit in {documented.entry(argument)!r}"


@pytest.mark.parametrize("name", CLASSES)
def test_fields_and_constructor_arguments_are_described(name: str) -> None:
    fields = fields_of(name)
    assert [key for key, (_, text) in fields.items() if not text] == []
    for key, (note, text) in fields.items():
        assert not TENSOR.search(note) or SHAPE.search(text), f"{key}: no shape in {text!r}"
        if NUMBER.search(note) and MEASURED.search(key):
            assert UNITS.search(text), f"{key}: no unit in {text!r}"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_names_its_source(name: str) -> None:
    assert SOURCE.search(inspect.getdoc(getattr(dataflex, name)) or "")


def test_selectors_are_methods_or_the_baseline() -> None:
    selectors = {name for name in NAMES if name.endswith("Selector") and name != "Selector"}
    assert selectors - METHODS == {"RandomSelector"}


def test_the_reference_page_has_every_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    found = set(re.findall(r"^\.\. auto\w+:: dataflex\.(\w+)(?:\(.*\))?$", page, re.MULTILINE))
    assert found == set(dataflex.__all__) - {"__version__"}
