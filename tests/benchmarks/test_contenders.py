from __future__ import annotations

import math

import pytest
import torch

from dataflex.projection.adam import adam_normalize
from dataflex.projection.projector import Projector
from measuring import contenders
from measuring.case import Case, make_cases


def case(rows: int = 3, parameters: int = 1000, dim: int = 256) -> Case:
    return next(make_cases([rows], [parameters], [dim], torch.device("cpu")))


@pytest.mark.parametrize("contender", [contenders.index_add, contenders.index_add_plain, contenders.sparse_product])
@pytest.mark.parametrize("values_at_once", [1, 700, contenders.VALUES_AT_ONCE])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_the_sparse_torch_contenders_compute_the_features_of_sjlt(
    contender: object, values_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "VALUES_AT_ONCE", values_at_once)
    work = case()
    expected = Projector(work.dim, sparsity=contenders.SPARSITY).project(work.grads, work.adam)
    torch.testing.assert_close(contender(work)(), expected, rtol=1e-4, atol=1e-4)  # type: ignore[operator]


@pytest.mark.parametrize("values_at_once", [1, 700, contenders.VALUES_AT_ONCE])
def test_adam_in_place_is_the_normalisation_of_dataflex(values_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "VALUES_AT_ONCE", values_at_once)
    work = case()
    out = torch.empty_like(work.grads)
    contenders.torch_adam(work, out)
    torch.testing.assert_close(out, adam_normalize(work.grads, work.adam), rtol=1e-4, atol=1e-5)


def test_exact_contenders_compute_products_and_squares() -> None:
    work = case()
    u = adam_normalize(work.grads, work.adam).double()
    one, eight = contenders.exact(work)
    for contender, number in ((one, 1), (eight, 8)):
        products, squares, finite = contender.run()  # type: ignore[misc]
        assert products.shape == (3, number)
        assert finite.all()
        torch.testing.assert_close(squares, u.square().sum(dim=1))
    assert contender.stored == 4 * 8 * 1000


def test_cases_are_every_combination_over_the_same_gradients() -> None:
    cases = list(make_cases([1, 3], [50, 80], [32, 64], torch.device("cpu")))
    assert [(c.rows, c.parameters, c.dim) for c in cases] == [
        (b, p, k) for p in (50, 80) for k in (32, 64) for b in (1, 3)
    ]
    assert torch.equal(cases[0].grads, cases[1].grads[:1])


def test_normalised_gradients_of_a_case_stay_within_the_bound(recwarn: pytest.WarningsRecorder) -> None:
    for kind in contenders.KINDS:
        assert Projector(256, kind).project(case().grads, case().adam).isfinite().all()
    assert not [warning for warning in recwarn if "clamped" in str(warning.message)]


@pytest.mark.parametrize(("entries", "count"), [(256 * 10, 10), (256 * 1000, 1000), (10**9, 1000), (1, 1)])
def test_a_part_of_a_case_says_how_large_it_is(entries: int, count: int) -> None:
    work = case()
    part, share = work.part(entries)
    assert part.parameters == len(part.adam) == count
    assert share == count / 1000
    assert torch.equal(part.grads, work.grads[:, :count])


def test_every_contender_runs_and_has_a_name_of_its_own() -> None:
    work = case()
    entered = [
        *contenders.floors(work),
        *contenders.ours(work, ["sjlt"]),
        *contenders.baselines(work),
    ]
    assert len({contender.name for contender in entered}) == len(entered)
    assert {contenders.SJLT, contenders.TORCH_ADAM, contenders.GEMM} <= {contender.name for contender in entered}
    for contender in entered:
        assert 0 < contender.share <= 1
        assert contender.stored is not None
        assert math.isfinite(contender.stored)
