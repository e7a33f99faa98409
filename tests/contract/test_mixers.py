"""The mixers and weighters of dataflex under the tests that authors of plugins run on theirs; and wrong ones."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest

from dataflex.mixers.base import Mixer, MixerConfig, MixtureContext
from dataflex.mixers.doremi import DoReMiMixer
from dataflex.mixers.odm import OdmMixer
from dataflex.mixers.random import RandomMixer
from dataflex.mixers.static import StaticMixer
from dataflex.plugins.registry import BUILTIN, registry
from dataflex.testing import MixerContract, WeighterContract
from dataflex.weighters.adapt import AdaptWeighter
from dataflex.weighters.base import GlobalBatch, Weighter, WeighterConfig
from dataflex.weighters.loss import LossWeighter


class TestStatic(MixerContract):
    def make(self) -> StaticMixer:
        return StaticMixer()


class TestRandom(MixerContract):
    draws = True

    def make(self) -> RandomMixer:
        return RandomMixer()


class TestDoReMi(MixerContract):
    def make(self) -> DoReMiMixer:
        return DoReMiMixer(eval_samples=3)


class TestOdm(MixerContract):
    def make(self) -> OdmMixer:
        return OdmMixer()


class TestLoss(WeighterContract):
    order_equivariant = True

    def make(self) -> LossWeighter:
        return LossWeighter(strategy="quadratic")


class TestAdapt(WeighterContract):
    order_equivariant = True

    def make(self) -> AdaptWeighter:
        return AdaptWeighter(refresh_interval=2)


@pytest.mark.parametrize(("kind", "contract"), [("mixer", MixerContract), ("weighter", WeighterContract)])
def test_every_component_is_tested(kind: Any, contract: type) -> None:
    tested = {
        case().make().name
        for case in globals().values()
        if isinstance(case, type) and issubclass(case, contract) and case is not contract
    }
    own = {name for (found, name), part in registry().components.items() if found == kind and part.plugin == BUILTIN}
    assert own <= tested


class Broken(Mixer[MixerConfig]):
    """Breaks the clause that it is told to break."""

    Config = MixerConfig
    name = "broken"
    calls = itertools.count()

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.before = 0

    def proportions(self, context: MixtureContext) -> Any:
        self.before += 1
        values = {
            "sum": np.array([0.5, 0.5, 0.5]),
            "empty": np.full(3, 1 / 3),
            "list": [1.0, 0.0, 0.0],
            "chance": np.roll([1.0, 0.0, 0.0], next(self.calls)),
            "memory": np.roll([1.0, 0.0, 0.0], self.before),
            "ranks": np.roll([1.0, 0.0, 0.0], context.ranks.index),
            "seed": np.array([1.0, 0.0, 0.0]),
        }
        if self.how == "trace":
            context.model.eval()
        return values.get(self.how, values["seed"])


@pytest.mark.parametrize(
    ("how", "test"),
    [
        ("sum", "test_returns_proportions"),
        ("list", "test_returns_proportions"),
        ("empty", "test_a_domain_without_rows_gets_nothing"),
        ("chance", "test_equal_runs_mix_the_same"),
        ("memory", "test_a_resumed_run_mixes_the_same"),
        ("ranks", "test_ranks_play_no_part"),
        ("trace", "test_leaves_no_trace"),
        ("seed", "test_draws_follow_seed_and_round"),
    ],
)
def test_a_wrong_mixer_fails_the_test_of_its_clause(tmp_path: Any, how: str, test: str) -> None:
    class Contract(MixerContract):
        draws = True

        def make(self) -> Broken:
            return Broken(how)

    with pytest.raises(AssertionError):
        getattr(Contract(), test)(tmp_path)


class Lopsided(Weighter[WeighterConfig]):
    """Breaks the clause that it is told to break."""

    Config = WeighterConfig
    name = "lopsided"
    calls = itertools.count()

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.before = 0

    def weights(self, batch: GlobalBatch) -> Any:
        self.before += 1
        count = len(batch.examples)
        places = 1.0 + np.arange(count)
        if self.how == "trace":
            batch.model.eval()
        if self.how == "targets":
            assert batch.eval_dataset is not None
        return {
            "shape": np.ones(count + 1),
            "negative": -places,
            "chance": 1 + places * next(self.calls),
            "memory": 1 + places * self.before,
            "ranks": 1 + places * batch.ranks.index,
            "micro_batch": 1 + places * batch.micro_batch,
            "order": places,
        }.get(self.how, np.ones(count))


@pytest.mark.parametrize(
    ("how", "test"),
    [
        ("shape", "test_weighs_every_sample"),
        ("negative", "test_weighs_every_sample"),
        ("chance", "test_equal_runs_weigh_the_same"),
        ("memory", "test_a_resumed_run_weighs_the_same"),
        ("ranks", "test_ranks_play_no_part"),
        ("micro_batch", "test_micro_batches_play_no_part"),
        ("order", "test_order_of_samples_plays_no_part"),
        ("trace", "test_leaves_no_trace"),
        ("targets", "test_needs_what_it_says"),
    ],
)
def test_a_wrong_weighter_fails_the_test_of_its_clause(how: str, test: str) -> None:
    class Contract(WeighterContract):
        order_equivariant = True

        def make(self) -> Lopsided:
            return Lopsided(how)

    with pytest.raises(AssertionError):
        getattr(Contract(), test)()


def test_a_claim_that_is_not_made_is_skipped(tmp_path: Any) -> None:
    with pytest.raises(SkipTest, match="draws = False"):
        TestStatic().test_draws_follow_seed_and_round(tmp_path)
