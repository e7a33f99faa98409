"""The same bits whatever computes them, and in whatever order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.projection.adam import AdamMoments, AdamVariant, adam_normalize
from dataflex.projection.kernels.native import native_status
from dataflex.projection.projector import Projector
from helpers.projections import VARIANTS, adam_for, by_torch, exact, gradients, moments, torch_only

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

needs_native = pytest.mark.skipif(native_status().module is None, reason=f"no native kernels: {native_status().reason}")


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
