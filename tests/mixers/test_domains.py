"""Domains, given proportions and numbers of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import DataError
from dataflex.mixers.domains import Domain, as_proportions, by_size, evenly, find_domains, largest_remainder
from dataflex.types import Sample


def sample(number: int, source: str = "", **metadata: str) -> Sample:
    return Sample(str(number), number, (), metadata=metadata, source=source)


def domains(*sizes: int) -> list[Domain]:
    return [Domain(f"d{number}", np.arange(size)) for number, size in enumerate(sizes)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).filter(lambda values: sum(values) > 0.01), st.integers(0, 500))
def test_numbers_of_rows_are_those_of_the_largest_remainders(values, total):
    proportions = np.array(values) / sum(values)
    counts = largest_remainder(proportions, total).tolist()
    quotas = [float(share) * total for share in proportions]
    expected = [int(quota) for quota in quotas]
    for _ in range(total - sum(expected)):
        left = [quota - count for quota, count in zip(quotas, expected, strict=True)]
        expected[left.index(max(left))] += 1
    assert sum(counts) == total
    assert counts == expected


def test_domains_are_datasets_in_the_order_of_the_configuration():
    samples = [sample(0, "b"), sample(1, "a"), sample(2, "b")]
    found = find_domains(samples, None, ["a", "b", "c"])
    assert [(domain.name, domain.rows.tolist()) for domain in found] == [("a", [1]), ("b", [0, 2]), ("c", [])]


def test_domains_are_values_of_a_column():
    samples = [sample(0, language="de"), sample(1, language="en"), sample(2, language="de")]
    found = find_domains(samples, "language")
    assert [(domain.name, domain.rows.tolist()) for domain in found] == [("de", [0, 2]), ("en", [1])]


@pytest.mark.parametrize(
    ("column", "what"), [("language", "no value in the column 'language'"), (None, "the name of a dataset")]
)
def test_a_row_without_a_domain_is_named(column, what):
    with pytest.raises(DataError, match=what) as caught:
        find_domains([sample(0, "a", language="de"), sample(7)], column)
    assert "1 of 2" in str(caught.value)
    assert "7" in str(caught.value)


@pytest.mark.parametrize("values", [[0.5, 0.25, 0.25], [50, 25, 25]])
def test_proportions_may_be_percent(values):
    assert as_proportions(values, domains(3, 3, 3), "x").tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("values", "sizes", "message"),
    [
        ([0.5], (1, 1), "1 numbers for 2 domains"),
        ([1.5, -0.5], (1, 1), "at least 0"),
        ([float("nan"), 1.0], (1, 1), "finite"),
        ([0.5, 0.6], (1, 1), "must sum to 1"),
        ([0.5, 0.5], (1, 0), "domains without rows: d1"),
    ],
)
def test_wrong_proportions_are_refused(values, sizes, message):
    with pytest.raises(DataError, match=message):
        as_proportions(values, domains(*sizes), "x")


def test_an_empty_domain_gets_nothing():
    assert by_size(domains(3, 0, 1)).tolist() == [0.75, 0, 0.25]
    assert evenly(domains(3, 0, 1)).tolist() == [0.5, 0, 0.5]
