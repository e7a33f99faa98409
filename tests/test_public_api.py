from __future__ import annotations

import inspect

import pytest

import dataflex


def test_every_public_name_has_a_home():
    assert set(dataflex.__all__) == set(dataflex._HOMES)
    assert dir(dataflex) == sorted(dataflex.__all__)


@pytest.mark.parametrize("name", [name for name in dataflex.__all__ if name[0] != "_" and not name.isupper()])
def test_public_names_are_documented_where_they_live(name):
    value = getattr(dataflex, name)
    if name != "hookimpl":
        assert inspect.getdoc(value)
        assert value.__module__ == dataflex._HOMES[name] or value.__module__.startswith("dataflex.")


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'NoSuchSelector'"):
        _ = dataflex.NoSuchSelector
