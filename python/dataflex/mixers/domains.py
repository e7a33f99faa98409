"""Domains of a dataset, and how a mixture of them becomes numbers of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dataflex.config.values import MixtureRule
from dataflex.errors import DataError
from dataflex.types import Sample, group_names
from dataflex.utils.shown import listed

Shares: TypeAlias = "Sequence[float] | Mapping[str, float]"
TOLERANCE = 1e-6
"""How far the sum of given proportions may be from 1 (or, for shares in percent, 100)."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A part of the candidates.

    Attributes:
        name: Its dataset, or the value of the column that tells domains apart.
        rows: ``(n_d,)`` int64 positions of its candidates, rising.
    """

    name: str
    rows: NDArray[np.int64]


def find_domains(samples: Sequence[Sample], column: str | None, named: Sequence[str] = ()) -> tuple[Domain, ...]:
    """The domains of a dataset, those of ``named`` first and in that order, then in order of appearance.

    Args:
        samples: The n candidates.
        column: Column whose values are the domains; None: the dataset that each row is from.
        named: Domains that there are whether or not they have rows (the names of ``dataset:``).

    Raises:
        DataError: Rows without a value in the column, or rows that came without a dataset's name.
    """
    groups = group_names(samples, column) if column else [sample.source or None for sample in samples]
    without = [sample.id for sample, group in zip(samples, groups, strict=True) if group is None]
    if without:
        what = f"have no value in the column {column!r}" if column else "came without the name of a dataset"
        raise DataError(
            f"{len(without)} of {len(samples)} rows {what}, so that they belong to no domain: {listed(without)}",
            hint="domain_column names a column that tells the domains apart",
        )
    rows: dict[str, list[int]] = {name: [] for name in named}
    for position, group in enumerate(groups):
        rows.setdefault(str(group), []).append(position)
    return tuple(Domain(name, np.array(own, dtype=np.int64)) for name, own in rows.items())


def largest_remainder(proportions: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Numbers of rows by the method of largest remainders (Hamilton): they sum to ``total``.

    Each domain gets the whole part of its quota; what is left goes to the largest fractions, ties to the first domain.

    Args:
        proportions: ``(K,)`` non-negative, sum 1.
        total: Rows to share out.
    """
    quotas = proportions * total
    counts = np.floor(quotas).astype(np.int64)
    order = np.argsort(-(quotas - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def initial_mixture(
    domains: Sequence[Domain],
    rule: MixtureRule | None,
    given: Shares | None,
    own: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """The proportions that a run begins with.

    Args:
        domains: K domains.
        rule: ``mixture`` (the given ones), ``stratified`` (by size) or ``uniform``; None: the given ones, else the
            mixer's own, else by size.
        given: Proportions that the run's settings name.
        own: Proportions that the mixer names.

    Returns:
        ``(K,)`` float64, sum 1, 0 for a domain without rows.

    Raises:
        DataError: The given ones do not fit, or there are none where the rule wants some.
    """
    if not any(len(domain.rows) for domain in domains):
        raise DataError("no domain has a row")
    if rule == "uniform":
        return evenly(domains)
    if rule == "stratified":
        return by_size(domains)
    if given is not None:
        return as_proportions(given, domains, "init_mixture_proportions")
    if own is not None:
        return own
    if rule == "mixture":
        raise DataError(
            "mixture_sample_rule mixture needs init_mixture_proportions",
            hint=f"one share a domain: {listed([domain.name for domain in domains])}; or stratified, uniform",
        )
    return by_size(domains)


def as_proportions(values: Shares, domains: Sequence[Domain], what: str) -> NDArray[np.float64]:
    """Given proportions as they are used: one a domain, non-negative, sum 1.

    Args:
        values: The numbers, in the order of the domains or by their names (those left out get nothing); numbers that
            sum to 100 are percent.
        domains: K domains.
        what: Where the numbers are from, for messages.

    Raises:
        DataError: Another number of values, a negative one, another sum, or a share for a domain without rows.
    """
    names = [domain.name for domain in domains]
    if isinstance(values, Mapping):
        unknown = [name for name in values if name not in names]
        if unknown:
            raise DataError(f"{what} names domains that there are not: {listed(unknown)}; there are {listed(names)}")
        values = [values.get(name, 0.0) for name in names]
    given = np.asarray(list(values), dtype=np.float64)
    if given.shape != (len(names),):
        raise DataError(f"{what} has {len(values)} numbers for {len(names)} domains: {listed(names)}")
    total = float(given.sum())
    if not np.isfinite(given).all() or given.min() < 0:
        raise DataError(f"{what} must be finite numbers of at least 0, got {given.tolist()}")
    if math.isclose(total, 100, rel_tol=TOLERANCE):
        given, total = given / 100.0, total / 100
    if not math.isclose(total, 1, abs_tol=TOLERANCE):
        raise DataError(f"{what} must sum to 1 (or 100, in percent), got {total:g}", hint=f"domains: {listed(names)}")
    empty = [domain.name for domain, share in zip(domains, given, strict=True) if share > 0 and not len(domain.rows)]
    if empty:
        raise DataError(
            f"{what} gives a share to domains without rows: {listed(empty)}",
            hint="is all of their data left out (too long, nothing to learn)?",
        )
    given /= total
    return given


def by_size(domains: Sequence[Domain]) -> NDArray[np.float64]:
    """Proportions by the numbers of rows."""
    sizes = np.array([len(domain.rows) for domain in domains], dtype=np.float64)
    sizes /= sizes.sum()
    return sizes


def evenly(domains: Sequence[Domain]) -> NDArray[np.float64]:
    """The same share for every domain that has rows."""
    filled = np.array([len(domain.rows) > 0 for domain in domains], dtype=np.float64)
    filled /= filled.sum()
    return filled
