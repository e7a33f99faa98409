"""The selectors of dataflex under the tests that authors of plugins run on theirs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from dataflex.plugins.registry import BUILTIN, registry
from dataflex.retrieval.matrix import NearMatrix, sample_digests
from dataflex.selectors.delta_loss import DeltaLossSelector
from dataflex.selectors.in_context import InContextSelector
from dataflex.selectors.less import LessSelector
from dataflex.selectors.loss import LossSelector
from dataflex.selectors.near import NearSelector
from dataflex.selectors.nice import NiceSelector
from dataflex.selectors.random import RandomSelector
from dataflex.selectors.rds import RdsSelector
from dataflex.selectors.tsds import TsdsSelector
from dataflex.testing import EchoReward, SelectorContract, tiny_dataset
from helpers.encoders import WordEncoder


class TestRandom(SelectorContract):
    draws = True

    def make(self) -> RandomSelector:
        return RandomSelector()


class TestLoss(SelectorContract):
    draws = True

    def make(self) -> LossSelector:
        return LossSelector()


class TestLossWithReplacement(SelectorContract):
    draws = True

    def make(self) -> LossSelector:
        return LossSelector(replacement=True)


class TestDeltaLoss(SelectorContract):
    draws = True

    def make(self) -> DeltaLossSelector:
        return DeltaLossSelector()


class TestLess(SelectorContract):
    order_equivariant = True

    def make(self) -> LessSelector:
        return LessSelector(proj_dim=256, save_interval=5)


class TestLessOfSomeRows(SelectorContract):
    draws = True
    looks_at_all = False

    def make(self) -> LessSelector:
        prefilter = {"name": "rds", "keep": 0.6}
        return LessSelector(proj_dim=256, save_interval=5, candidates=10, prefilter=prefilter)


class TestInContext(SelectorContract):
    order_equivariant = True

    def make(self) -> InContextSelector:
        return InContextSelector(num_shots=2)


class TestRds(SelectorContract):
    order_equivariant = True

    def make(self) -> RdsSelector:
        return RdsSelector()


class TestNice(SelectorContract):
    order_equivariant = True

    def make(self) -> NiceSelector:
        return NiceSelector(
            reward=EchoReward(),
            proj_dim=256,
            save_interval=5,
            mc_samples=3,
            max_new_tokens=6,
            generation_temperature=1.0,
        )


class TestNear(SelectorContract):
    order_equivariant = True
    advance: ClassVar[bool] = False

    @pytest.fixture(autouse=True)
    def _matrix(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.path = tmp_path_factory.mktemp("near") / "top_indices.npy"
        samples = tiny_dataset(16, seed=0, distinct=True).samples
        neighbors = np.stack([np.random.default_rng(query).permutation(16) for query in range(3)])
        NearMatrix(neighbors, np.arange(16), sample_digests(samples), {"encoder": {"name": "e"}}).save(self.path)

    def make(self) -> NearSelector:
        return NearSelector(indices_path=self.path, advance=self.advance)


class TestNearAdvancing(TestNear):
    advance = True


class TestTsds(SelectorContract):
    draws = True

    def make(self) -> TsdsSelector:
        return TsdsSelector(encoder=WordEncoder(), max_K=12, kde_K=10, alpha=0.1, C=0.2)


class TestTsdsByGradients(SelectorContract):
    draws = True

    def make(self) -> TsdsSelector:
        sizes = {"max_K": 12, "kde_K": 10, "alpha": 0.1, "C": 0.2}
        return TsdsSelector(representation="gradient", proj_dim=256, save_interval=5, **sizes)


def test_every_selector_is_here() -> None:
    tested = {contract.make.__annotations__["return"] for contract in SelectorContract.__subclasses__()}
    builtin = [name for name in registry().names("selector") if registry().find("selector", name).plugin == BUILTIN]
    assert tested >= {registry().get("selector", name).__name__ for name in builtin}
