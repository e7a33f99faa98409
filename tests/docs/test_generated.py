"""The parts of pages that are written from the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from dataflex.config import RunConfig
from dataflex.plugins.registry import registry
from helpers.pages import pages
from helpers.scripts import ROOT, load_script

generated = load_script("docs/_ext/generated.py")
PAGE = ROOT / "docs" / "some.md"


def test_the_sections_hold_every_key_once() -> None:
    found = generated.sections()
    assert [key for keys in found.values() for key in keys] == list(RunConfig.model_fields)
    assert {"Model", "Data", "Dynamic selection"} <= set(found)


def test_the_configuration_page_has_a_row_for_every_key() -> None:
    path = ROOT / "docs" / "configuration.md"
    text = generated.filled(path.read_text(encoding="utf-8"), path)
    assert {key for key in RunConfig.model_fields if f"| `{key}` |" not in text} == set()
    assert "| `lora_rank` | integer, at least 1 | `8` | rank r of the adapters |" in text
    assert "| `model_name_or_path` | text | required |" in text


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | None, "integer or null"),
        (Literal["a", "b"], "`a`, `b`"),
        (Annotated[float, Field(gt=0, le=1)], "number"),
        (list[str], "list of text"),
        (dict[str, int], "mapping"),
        (tuple[float, float], "list of number"),
        (bool | Path, "true or false or path"),
    ],
)
def test_values_in_words(annotation: object, text: str) -> None:
    assert generated.value_text(annotation) == text


def test_bounds_of_a_field() -> None:
    class Model(BaseModel):
        share: float = Field(0.1, gt=0, le=1, description="how | much")

    assert "| `share` | number, above 0, at most 1 | `0.1` | how \\| much |" in generated.table(Model.model_fields)


def test_every_component_has_a_page_with_its_parameters() -> None:
    """Selectors whose parameters are explained on a page of their own, and all that have a generated table."""
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in pages() if page.startswith("docs"))
    for kind in ("selector", "mixer", "weighter"):
        names = {name for found, name in registry().components if found == kind}
        shown = set(re.findall(rf"<!-- generated: {kind} (\w+) -->", text))
        assert names - shown == ({"random"} if kind == "selector" else set())  # which has none


def test_every_command_has_its_help() -> None:
    text = generated.command_help("", PAGE)
    assert "## dataflex config validate\n\n```text\nUsage: dataflex config validate" in text
    assert "--checkpoint" in text


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[how](../CONTRIBUTING.md)", "[how](contributing.md)"),
        ("[run](../examples/quickstart/README.md#what)", "[run](quickstart.md#what)"),
        ("[near](near.md#tsds)", "[near](near.md#tsds)"),
        ("[code](../python/dataflex/gradients/store.py)", "code"),
        ("[web](https://example.org/a.md)", "[web](https://example.org/a.md)"),
        ("![figure](figures/projection.svg)", "![figure](figures/projection.svg)"),
        ("```text\n[as](../is.md)\n```", "```text\n[as](../is.md)\n```"),
    ],
)
def test_links_lead_somewhere_or_are_text(link: str, expected: str) -> None:
    assert generated.relinked(link, PAGE, PAGE) == expected


def test_links_of_another_file_fit_the_page_that_shows_it() -> None:
    source = ROOT / "examples" / "near" / "README.md"
    assert generated.relinked("[x](../../docs/near.md)", source, ROOT / "docs" / "near-example.md") == "[x](near.md)"


def test_an_unknown_part_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is generated for 'nothing'"):
        generated.filled("<!-- generated: nothing -->", PAGE)
