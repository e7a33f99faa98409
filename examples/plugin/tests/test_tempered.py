"""``tempered`` and ``per_sample`` against the contracts of dataflex and against their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataflex.testing import MixerContract, WeighterContract, tiny_global_batch, tiny_mixture_context
from dataflex_example.per_sample import PerSampleWeighter
from dataflex_example.tempered import TemperedMixer


class TestTempered(MixerContract):
    def make(self) -> TemperedMixer:
        return TemperedMixer()


class TestPerSample(WeighterContract):
    order_equivariant = True

    def make(self) -> PerSampleWeighter:
        return PerSampleWeighter()


@pytest.mark.parametrize(
    ("alpha", "expected"), [(1.0, [0.9, 0.0, 0.1]), (0.0, [0.5, 0.0, 0.5]), (0.5, [0.75, 0.0, 0.25])]
)
def test_shares_are_powers_of_sizes(tmp_path: Path, alpha: float, expected: list[float]) -> None:
    context = tiny_mixture_context(tmp_path, sizes=(9, 0, 1))
    np.testing.assert_allclose(TemperedMixer(alpha=alpha).proportions(context), expected, rtol=1e-12)


def test_every_sample_counts_alike() -> None:
    batch = tiny_global_batch()
    tokens = np.array([example.num_labels for example in batch.examples])
    assert len(set(tokens)) > 1
    np.testing.assert_allclose(PerSampleWeighter().weights(batch) * tokens, 1.0, rtol=1e-12)
    assert PerSampleWeighter(power=0.0).weights(batch).tolist() == [1.0] * 6
