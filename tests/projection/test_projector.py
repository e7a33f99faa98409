from __future__ import annotations

import itertools
import json
import math
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.projection.adam import AdamMoments, AdamVariant, adam_normalize
from dataflex.projection.kernels import native, rademacher, sjlt
from dataflex.projection.kernels.native import native_status
from dataflex.projection.projector import Accumulator, ProjectionConfig, ProjectionKind, Projector
from helpers.projections import gradients, moments, torch_only

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VARIANTS: list[AdamVariant | None] = [None, "adamw", "less", "second_moment"]

needs_native = pytest.mark.skipif(native_status().module is None, reason=f"no native kernels: {native_status().reason}")


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "native":
        if native_status().module is None:
            pytest.skip(f"no native kernels: {native_status().reason}")
        yield request.param
    else:
        with torch_only():
            yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def adam_for(count: int, variant: AdamVariant | None) -> AdamMoments | None:
    return None if variant is None else moments(count, variant)


def by_torch(projector: Projector, grads: Tensor, adam: AdamMoments | None = None) -> Tensor:
    with torch_only():
        return projector.project(grads, adam)


def exact(projector: Projector, grads: Tensor, adam: AdamMoments | None, sparsity: int = 8) -> Tensor:
    """P u in float64, without a grid."""
    values = (grads if adam is None else adam_normalize(grads, adam)).double()
    spec, features = projector.spec(), torch.zeros(grads.shape[0], projector.dim, dtype=torch.float64)
    for output, negative in sjlt.placements(
        0, grads.shape[1], dim=projector.dim, sparsity=sparsity, seed=int(spec["seed"])
    ):
        features.index_add_(1, output, torch.where(negative, -values, values))
    return features / math.sqrt(sparsity)


# Native against reference


@needs_native
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (3, 15), (2, 4999), (5, 40000)])
def test_native_and_torch_give_the_same_bits(
    rows: int, count: int, dtype: torch.dtype, variant: AdamVariant | None
) -> None:
    grads, adam, projector = gradients(rows, count).to(dtype), adam_for(count, variant), Projector(256, seed=7)
    assert torch.equal(projector.project(grads, adam), by_torch(projector, grads, adam))


@needs_native
@settings(max_examples=40)
@given(
    rows=st.integers(0, 5),
    count=st.integers(0, 400),
    offset=st.integers(0, 2**40),
    sparsity=st.integers(1, 9),
    segments=st.integers(1, 7),
    seed=st.integers(0, 2**64 - 1),
    dtype=st.sampled_from(DTYPES),
    variant=st.sampled_from(VARIANTS),
)
def test_native_and_torch_agree_for_any_shape(
    rows: int,
    count: int,
    offset: int,
    sparsity: int,
    segments: int,
    seed: int,
    dtype: torch.dtype,
    variant: AdamVariant | None,
) -> None:
    projector = Projector(16 * sparsity * segments, seed=seed, sparsity=sparsity)
    grads, adam = gradients(rows, count).to(dtype), adam_for(count, variant)

    def features() -> Tensor:
        accumulator = projector.accumulator(rows)
        accumulator.add(grads, offset, adam)
        return accumulator.features()

    native_features = features()
    with torch_only():
        assert torch.equal(native_features, features())


@needs_native
def test_native_widens_every_float16_and_bfloat16(threads: None) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        grads = every[every.isfinite()].reshape(1, -1)
        projector = Projector(128)
        assert torch.equal(projector.project(grads), by_torch(projector, grads))
        assert torch.equal(projector.project(grads), projector.project(grads.float()))


# Invariance


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_do_not_depend_on_the_batch(backend: str, variant: AdamVariant | None) -> None:
    grads, adam, projector = gradients(7, 3001), adam_for(3001, variant), Projector(256)
    whole = projector.project(grads, adam)
    assert torch.equal(torch.cat([projector.project(row[None], adam) for row in grads]), whole)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(projector.project(grads[order], adam), whole[order])


CUTS = [(0, 3001), (0, 1, 17, 1000, 3001), (0, 16, 32, 2048, 2999, 3001)]


def in_blocks(
    projector: Projector, grads: Tensor, adam: AdamMoments | None, blocks: Iterable[tuple[int, int]]
) -> Tensor:
    """Features of gradients that come block by block."""
    accumulator = projector.accumulator(grads.shape[0])
    for start, stop in blocks:
        accumulator.add(grads[:, start:stop], start, adam.slice(start, stop) if adam else None)
    return accumulator.features()


@pytest.mark.parametrize("variant", ["adamw", "less"])
@pytest.mark.parametrize("cuts", CUTS)
def test_features_on_one_grid_do_not_depend_on_the_split_in_blocks(
    backend: str, variant: AdamVariant, cuts: tuple[int, ...]
) -> None:
    grads, adam, projector = gradients(3, 3001), moments(3001, variant), Projector(256)
    blocks = list(itertools.pairwise(cuts))
    assert torch.equal(in_blocks(projector, grads, adam, reversed(blocks)), projector.project(grads, adam))


def scaled(
    rows: int, sizes: Sequence[int], variant: AdamVariant | None, seed: int = 0
) -> tuple[Tensor, AdamMoments | None]:
    """Gradients (and moments) of parameters whose u differ in scale by 1e6, 1e-20 in one of them."""
    count = sum(sizes)
    grads, adam = gradients(rows, count, seed), adam_for(count, variant)
    start = 0
    for size, scale in zip(sizes, itertools.cycle((1.0, 1e6, 1e-20, 1e-3)), strict=False):
        grads[:, start : start + size] *= scale
        if adam is not None:
            adam.exp_avg_sq[start : start + size] *= max(scale, 1e-3) ** 2
        start += size
    return grads, adam


@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
@pytest.mark.parametrize("variant", [None, "second_moment"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grids_of_blocks_add_up_in_any_order_and_batch(
    backend: str, kind: str, variant: AdamVariant | None, seed: int
) -> None:
    sizes = [700, 1, 1500, 800]
    grads, adam = scaled(5, sizes, variant, seed)
    grads[3] = 0
    projector = Projector(256, kind=kind)
    blocks = list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
    whole = in_blocks(projector, grads, adam, blocks)
    generator = random.Random(seed)
    for _ in range(5):
        assert torch.equal(in_blocks(projector, grads, adam, generator.sample(blocks, len(blocks))), whole)
    for row in range(5):
        assert torch.equal(in_blocks(projector, grads[row : row + 1], adam, blocks)[0], whole[row])
    with torch_only():
        assert torch.equal(in_blocks(projector, grads, adam, blocks), whole)
    assert not whole[3].any()


@pytest.mark.parametrize("variant", [None, "second_moment"])
def test_parameters_of_any_scale_keep_their_precision(backend: str, variant: AdamVariant | None) -> None:
    sizes = [7000, 5000, 6000, 2000]
    grads, adam = scaled(3, sizes, variant)
    projector = Projector(1024)
    blocks = list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
    for number, (start, stop) in enumerate(blocks):  # each alone, within what its own size allows
        alone = torch.zeros_like(grads)
        alone[:, start:stop] = grads[:, start:stop]
        expected = exact(projector, alone, adam)
        error = (in_blocks(projector, alone, adam, blocks) - expected).norm(dim=1) / expected.norm(dim=1)
        assert error.max() < 1e-5, number
    expected = exact(projector, grads, adam)
    error = (in_blocks(projector, grads, adam, blocks) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5


@needs_native
@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian", "identity"])
def test_learning_rates_of_groups_are_part_of_the_features(backend: str, kind: str) -> None:
    """LoRA+: B learns 16 times as fast as A, so its part of a step is 16 times as large."""
    count = 3001
    adam = replace(moments(count), largest_rate=1.9, rates=((1000, 0.119), (2000, 1.9), (count, 0.119)))
    grads = gradients(3, count)
    projector = Projector(count if kind == "identity" else 256, kind=kind)
    whole = projector.project(grads, adam)
    accumulator = projector.accumulator(3)
    for start, stop in itertools.pairwise((0, 900, 1000, 2500, count)):
        accumulator.add(grads[:, start:stop], start, adam.slice(start, stop))
    if kind == "gaussian":
        torch.testing.assert_close(accumulator.features(), whole, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(accumulator.features(), whole)
    expected = projector.project(adam_normalize(grads, adam))
    assert float((whole - expected).norm() / expected.norm()) < 1e-3
    with torch_only():
        assert kind == "gaussian" or torch.equal(projector.project(grads, adam), whole)
    with pytest.raises(ProjectionError, match="largest rate"):
        accumulator.add(grads, count, moments(count))


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("variant", [None, "adamw"])
def test_features_do_not_depend_on_the_number_of_threads(threads: None, rows: int, variant: AdamVariant | None) -> None:
    # Wide enough that up to five threads find work (2^15 values each).
    count = 5 * 2**15 + 13
    grads, adam, projector = gradients(rows, count), adam_for(count, variant), Projector(256)
    features = []
    for number in (1, 2, 3, 5):
        torch.set_num_threads(number)
        features.append(projector.project(grads, adam))
    assert all(torch.equal(features[0], other) for other in features[1:])


def test_strided_rows_are_read_in_place(backend: str) -> None:
    wide, projector = gradients(6, 2000), Projector(256)
    assert torch.equal(projector.project(wide[::2, 100:1100]), projector.project(wide[::2, 100:1100].contiguous()))
    expanded = wide[:1].expand(4, -1)
    assert torch.equal(projector.project(expanded), projector.project(wide[:1]).expand(4, -1))


def test_autograd_and_inference_mode_do_not_matter(backend: str) -> None:
    grads, projector = gradients(2, 100), Projector(256)
    expected = projector.project(grads)
    assert torch.equal(projector.project(grads.clone().requires_grad_()), expected)
    with torch.inference_mode():
        assert torch.equal(projector.project(gradients(2, 100)), expected)


# Accuracy


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_are_the_projection_in_float64(backend: str, variant: AdamVariant | None) -> None:
    grads, adam, projector = gradients(3, 20000), adam_for(20000, variant), Projector(1024, seed=5)
    expected = exact(projector, grads, adam)
    error = (projector.project(grads, adam) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5


def test_norms_are_kept_on_average(backend: str) -> None:
    grads = torch.randn(40, 3000, generator=torch.Generator().manual_seed(0))
    ratio = Projector(1024).project(grads).norm(dim=1) / grads.norm(dim=1)
    assert ratio.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / 1024 / 40))


def test_rows_of_zeros_and_no_rows_and_no_columns(backend: str) -> None:
    projector = Projector(128)
    assert torch.equal(projector.project(torch.zeros(2, 50)), torch.zeros(2, 128))
    assert projector.project(torch.zeros(0, 50)).shape == (0, 128)
    assert torch.equal(projector.project(torch.zeros(2, 0)), torch.zeros(2, 128))
    assert torch.equal(projector.accumulator(2).features(), torch.zeros(2, 128))


@pytest.mark.parametrize("scale", [1e-37, 1e-34, 5e-32, 1e-30, 1e30])
def test_extreme_scales_of_raw_gradients(backend: str, scale: float) -> None:
    grads, projector = gradients(1, 500).abs().clamp(1e-3, 1) * scale, Projector(256)
    expected = exact(projector, grads, None)
    error = (projector.project(grads).double() - expected).norm() / expected.norm()
    assert error < (1e-5 if scale >= 2.0**-104 else 1e-3 if scale > 1e-35 else 1e-1)  # the grid ends at 2^-104


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
def test_a_second_beta_close_to_one_costs_no_accuracy(backend: str, kind: str, steps: int) -> None:
    """The limit of the bound is 2294 for 0.99999999; a grid for that had an error of 5e-4 (sjlt) and 0.1."""
    generator = torch.Generator().manual_seed(steps)
    betas = (0.9, 1 - 1e-8)
    mean = square = torch.zeros(5000)
    for _ in range(steps):
        gradient = torch.randn(5000, generator=generator)
        mean, square = 0.9 * mean + 0.1 * gradient, betas[1] * square + 1e-8 * gradient**2
    adam = AdamMoments(mean, square, steps, betas, 1e-8)
    grads = torch.randn(2, 5000, generator=generator)
    projector = Projector(256, kind=kind)
    matrix = 1 - 2 * rademacher.negative_signs(0, 5000, dim=256, seed=0).double()  # (k, p)
    dense = adam_normalize(grads, adam).double() @ matrix.T / 16
    expected = exact(projector, grads, adam) if kind == "sjlt" else dense
    error = (projector.project(grads, adam).double() - expected).norm() / expected.norm()
    assert error < (1e-5 if kind == "sjlt" else 5e-4)


# What TRAK's own tests expect of a projector (docs/kernels.md)


@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
def test_how_many_outputs_a_single_entry_reaches(kind: str) -> None:
    grads = torch.zeros(6, 10_001)
    grads[range(6), [0, 1, 17, 5000, 9999, 10_000]] = torch.tensor([1.0, -3.0, 0.25, 1.0, 2.0, 1.0])
    features = Projector(2048, kind=kind).project(grads)
    assert (features != 0).sum(dim=1).tolist() == [8 if kind == "sjlt" else 2048] * 6
    norms = grads.norm(dim=1)
    tolerance = 0.15 if kind == "gaussian" else 1e-4
    assert ((features.norm(dim=1) - norms).abs() <= tolerance * norms).all()


@pytest.mark.parametrize("count", [10_240, 10_241])
def test_sums_of_signs_have_the_parity_of_their_number(count: int) -> None:
    grads = torch.ones(1, count)
    dense = Projector(1024, kind="rademacher").project(grads) * 1024**0.5
    assert (dense.round() % 2 == count % 2).all()
    sparse = Projector(1024).project(grads) * 8**0.5
    assert set((sparse.round() % 2).flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
def test_norms_products_and_right_angles_are_kept(kind: str) -> None:
    rows = torch.rand(16, 10_001, generator=torch.Generator().manual_seed(3)) * 18 - 9
    rows[-1] -= rows[0] @ rows[-1] / rows[0].square().sum() * rows[0]
    features = Projector(2048, kind=kind).project(rows).double()
    cosines = torch.nn.functional.cosine_similarity
    errors = cosines(features[:, None], features[None], dim=2) - cosines(rows[:, None], rows[None], dim=2)
    assert errors.abs().max() < 5 / 2048**0.5
    apart, kept = torch.pdist(rows.double()), torch.pdist(features)
    assert ((kept - apart).abs() < 5 / 4096**0.5 * apart).all()


# Values that cannot be used


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_nan_and_alone(backend: str, variant: AdamVariant | None, value: float) -> None:
    grads, adam, projector = gradients(3, 200), adam_for(200, variant), Projector(128)
    expected = projector.project(grads, adam)
    grads[1, 77] = value
    features = projector.project(grads, adam)
    assert features[1].isnan().all()
    assert torch.equal(features[[0, 2]], expected[[0, 2]])


def test_overflow_in_adam_is_not_finite(backend: str) -> None:
    grads = torch.ones(2, 20)
    grads[0, 3] = 1e30
    features = Projector(128).project(grads, moments(20))
    assert features[0].isnan().all()
    assert features[1].isfinite().all()


def test_values_beyond_the_grid_are_counted_and_warned_about(backend: str) -> None:
    adam = AdamMoments(torch.full((50,), 100.0), torch.full((50,), 1e-4), 1000, (0.9, 0.999), 1e-8)
    grads = torch.zeros(3, 50)
    grads[2, 7] = math.nan
    with pytest.warns(RuntimeWarning, match="100 values in 2 of 3 rows lie beyond .* not those of one Adam run"):
        features = Projector(128).project(grads, adam)
    clamped = torch.full((1, 50), 2.0**3)
    assert torch.equal(features[:1], Projector(128).project(clamped))


def test_moments_of_the_run_do_not_saturate(backend: str) -> None:
    # The largest value that the bound allows: one large gradient after many that were small.
    steps, (b1, b2) = 3000, (0.9, 0.999)
    mean = square = torch.zeros(1, dtype=torch.float64)
    for step in range(steps):
        gradient = (b2 / b1) ** (step - steps)
        mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient**2
    adam = AdamMoments(mean.float(), square.float(), steps, (b1, b2), 0.0)
    grads = torch.ones(1, 1)
    assert adam_normalize(grads, adam).item() > 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Projector(128).project(grads, adam).isfinite().all()
        fast = replace(adam, largest_rate=31.0, rates=((1, 31.0),))
        assert Projector(128).project(grads, fast).isfinite().all()


# Identity, spec, fallback


def test_identity_features_are_the_values() -> None:
    grads, adam, projector = gradients(3, 40).bfloat16(), moments(40), Projector(40, kind="identity")
    assert torch.equal(projector.project(grads), grads.float())
    assert torch.equal(projector.project(grads, adam), adam_normalize(grads, adam))
    accumulator = projector.accumulator(3)
    accumulator.add(grads[:, 10:], 10)
    accumulator.add(grads[:, :10], 0)
    assert torch.equal(accumulator.features(), grads.float())


def test_identity_marks_rows_like_the_other_kinds_and_checks_sizes() -> None:
    grads, projector = torch.ones(2, 4), Projector(4, kind="identity")
    grads[0, 0] = math.nan
    assert projector.project(grads).isnan().all(dim=1).tolist() == [True, False]
    with pytest.raises(ProjectionError, match="dim must be the number of parameters 5, got 4"):
        projector.project(torch.ones(2, 5))
    with pytest.raises(ProjectionError, match="parameters 3 to 5 do not fit in dim 4"):
        projector.accumulator(1).add(torch.ones(1, 2), 3)


def test_spec_fixes_the_matrix_in_json() -> None:
    projector = Projector(256, seed=2**64 - 1, sparsity=4)
    expected = {"kind": "sjlt", "version": 1, "dim": 256, "seed": 2**64 - 1, "sparsity": 4}
    assert json.loads(json.dumps(projector.spec())) == expected
    assert projector.dim == 256


class FoldAccumulator(Accumulator):
    """Adds parameter d to output d mod k."""

    def __init__(self, rows: int, dim: int, device: torch.device | str) -> None:
        super().__init__(rows, dim, device)
        self.sums = torch.zeros(rows, dim)

    def _add(self, block: Tensor, offset: int, adam: AdamMoments | None) -> None:
        outputs = torch.arange(offset, offset + block.shape[1]) % self.dim
        self.sums.index_add_(1, outputs, block.float() if adam is None else adam_normalize(block, adam))

    def features(self) -> Tensor:
        return self.sums


class FoldProjection(ProjectionKind[ProjectionConfig]):
    name = "fold"
    version = 3
    Config = ProjectionConfig

    def accumulator(
        self, rows: int, *, device: torch.device | str = "cpu", exponents: Tensor | None = None
    ) -> FoldAccumulator:
        return FoldAccumulator(rows, self.config.dim, device)


def test_a_kind_of_another_package_needs_an_accumulator_only() -> None:
    kind, grads = FoldProjection(dim=4, seed=9), gradients(2, 10)
    padded = torch.cat([grads, torch.zeros(2, 2)], dim=1)
    torch.testing.assert_close(kind.project(grads), padded.reshape(2, 3, 4).sum(dim=1))
    torch.testing.assert_close(
        kind.project(grads, moments(10))[:, 3], adam_normalize(grads, moments(10))[:, 3::4].sum(1)
    )
    assert kind.spec() == {"kind": "fold", "version": 3, "dim": 4, "seed": 9}
    with pytest.raises(ProjectionError, match="moments of 9 parameters do not fit gradients of 10"):
        kind.project(grads, moments(9))


def test_the_slow_path_is_announced_once() -> None:
    with torch_only(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        native.announce.cache_clear()
        Projector(128).project(torch.ones(1, 4))
        Projector(128).project(torch.ones(1, 4))
    (announcement,) = caught
    assert announcement.category is RuntimeWarning
    assert "plain torch, about 10 times slower than the native kernel: DATAFLEX_NATIVE=0" in str(announcement.message)


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_features_on_a_gpu_have_the_same_bits(dtype: torch.dtype, variant: AdamVariant | None) -> None:
    grads, adam, projector = gradients(3, 40000).to(dtype), adam_for(40000, variant), Projector(256)
    on_gpu = adam and AdamMoments(adam.exp_avg.cuda(), adam.exp_avg_sq.cuda(), *adam.settings)
    with torch_only():
        features = projector.project(grads.cuda(), on_gpu)
    assert features.is_cuda
    assert torch.equal(features.cpu(), projector.project(grads, adam))
