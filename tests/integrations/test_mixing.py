"""Mixers and weighters inside an unmodified ``transformers.Trainer``: what they decide and do in ``df.Trainer``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from dataflex.curriculum.schedule import Schedule
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import TrainingError
from dataflex.integrations.transformers import Curriculum
from dataflex.mixers.doremi import DoReMiMixer
from dataflex.mixers.odm import OdmMixer
from dataflex.mixers.random import RandomMixer
from dataflex.mixers.static import StaticMixer
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training.trainer import Trainer
from dataflex.weighters.adapt import AdaptWeighter
from dataflex.weighters.loss import LossWeighter
from helpers import foreign
from helpers.runs import tiny_arguments

MIXING = Schedule(2, 1, 6)
WEIGHING = Schedule(2, 6, 1)
OWN_LOSS = (StaticMixer, RandomMixer, DoReMiMixer)
"""Mixers for which a trainer keeps its own loss."""


def rows() -> list[dict[str, Any]]:
    """24 rows of three domains of different sizes."""
    return [{**row, "kind": "aaabbc"[place % 6]} for place, row in enumerate(foreign.rows())]


def mixing(mixer: Any, **changes: Any) -> Curriculum:
    settings = {"mixer": mixer, "schedule": MIXING, "domain_column": "kind", "init_mixture_proportions": {"a": 1}}
    return Curriculum(rows(), **(settings | changes))


def weighing(weighter: Any, **changes: Any) -> Curriculum:
    return Curriculum(rows(), foreign.targets(), weighter=weighter, **({"schedule": WEIGHING} | changes))


def inside(found: Curriculum, output_dir: Path, *, own_loss: bool = False, **changes: Any) -> transformers.Trainer:
    parts = {} if own_loss else {"compute_loss_func": found.compute_loss_func}
    return foreign.inside(found, foreign.arguments(output_dir, **changes), **parts)


def own(output_dir: Path, **component: Any) -> Trainer:
    """``df.Trainer`` on the same rows, with the same settings."""
    return Trainer(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        TokenizedDataset.from_columns(rows()),
        TokenizedDataset.from_columns(foreign.targets()),
        args=tiny_arguments(
            output_dir, lr_scheduler_type="linear", domain_column="kind", init_mixture_proportions={"a": 1}
        ),
        **component,
    )


def mixtures(output_dir: Path) -> list[dict[str, Any]]:
    files = sorted((output_dir / "mixtures").iterdir(), key=lambda file: int(file.stem.removeprefix("step-")))
    return [json.loads(file.read_text()) for file in files]


def weights(entries: list[dict[str, Any]]) -> list[list[float]]:
    """Quantiles of the weights of each logged step."""
    names = ("weight_min", "weight_q25", "weight_median", "weight_q75", "weight_max", "weighted_loss")
    return [[entry[name] for name in names] for entry in entries if "weight_min" in entry]


@pytest.mark.parametrize("make", [*OWN_LOSS, OdmMixer])
def test_a_mixer_mixes_as_in_the_own_trainer(tmp_path: Path, make: Any) -> None:
    ours = own(tmp_path / "ours", mixer=make(), schedule=MIXING)
    mine = foreign.Seen(ours.model, foreign.rows())
    ours.train()
    theirs = inside(mixing(make()), tmp_path / "theirs", own_loss=make in OWN_LOSS)
    seen = foreign.Seen(theirs.model, foreign.rows())
    theirs.train()
    assert seen.steps(2) == mine.steps(2)
    assert foreign.losses(theirs) == pytest.approx(foreign.own_losses(tmp_path / "ours"), rel=1e-4)
    expected, found = mixtures(tmp_path / "ours"), mixtures(tmp_path / "theirs")
    assert [each["step"] for each in found] == [0, 2, 3, 4, 5, 6, 7]
    for one, other in zip(found, expected, strict=True):
        assert one["counts"] == other["counts"]
        np.testing.assert_allclose(one["proportions"], other["proportions"], rtol=1e-4)
    if make is OdmMixer:
        seen_losses = [value for each in found for value in each["losses_before"] if value is not None]
        assert seen_losses == pytest.approx(
            [value for each in expected for value in each["losses_before"] if value is not None], rel=1e-4
        )
    noted = [entry for entry in theirs.state.log_history if "mixture_round" in entry]
    assert [entry["mixture/a"] for entry in noted] == [each["proportions"][0] for each in found]


@pytest.mark.parametrize(
    "make",
    [
        lambda: LossWeighter(strategy="extremes"),
        lambda: LossWeighter(strategy="linupper", scope="micro_batch"),
        lambda: AdaptWeighter(refresh_interval=3, anchors=3),
    ],
    ids=["loss", "within micro-batches", "adapt"],
)
def test_a_weighter_weighs_as_in_the_own_trainer(tmp_path: Path, make: Any) -> None:
    ours = own(tmp_path / "ours", weighter=make(), schedule=WEIGHING)
    ours.train()
    theirs = inside(weighing(make()), tmp_path / "theirs")
    theirs.train()
    log = (tmp_path / "ours" / "trainer_log.jsonl").read_text().splitlines()
    expected, found = weights([json.loads(line) for line in log]), weights(theirs.state.log_history)
    assert len(found) == 6
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    record = [(tmp_path / name / "weights" / "steps.jsonl").read_text().splitlines() for name in ("ours", "theirs")]
    rows_of = [[json.loads(line)["rows"] for line in lines] for lines in record]
    assert rows_of[1] == rows_of[0]
    assert len(rows_of[0]) == 6
    assert max(quantiles[4] for quantiles in found) > 1.001
    # The trainer logs what it descends: the weighted losses.
    np.testing.assert_allclose(foreign.losses(theirs)[2:], [quantiles[5] for quantiles in found], rtol=1e-3)


def test_equal_weights_are_the_trainers_own_run(tmp_path: Path) -> None:
    settings = {"max_steps": 20, "gradient_accumulation_steps": 4}
    static = inside(Curriculum(foreign.rows()), tmp_path / "own", own_loss=True, **settings)
    static.train()
    found = weighing(LossWeighter(strategy="uniform"), schedule=None)
    weighted = inside(found, tmp_path / "weighted", **settings)
    weighted.train()
    losses = foreign.losses(static)
    assert len(losses) == len(weights(weighted.state.log_history)) == 20
    np.testing.assert_allclose(foreign.losses(weighted), losses, rtol=1e-6)
    expected = foreign.weights(static)
    for name, value in foreign.weights(weighted).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6)


def test_an_evaluation_has_the_loss_of_the_trainer(tmp_path: Path) -> None:
    held_out = foreign.targets()
    found = weighing(LossWeighter(strategy="extremes"))
    weighted = foreign.inside(
        found, foreign.arguments(tmp_path), compute_loss_func=found.compute_loss_func, eval_dataset=held_out
    )
    plain = foreign.trainer(foreign.arguments(tmp_path), foreign.rows(), eval_dataset=held_out)
    assert weighted.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda: mixing(OdmMixer()), lambda: weighing(AdaptWeighter(refresh_interval=3, anchors=3))],
    ids=["odm", "adapt"],
)
def test_a_checkpoint_goes_on_exactly(tmp_path: Path, make: Any) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    whole = inside(make(), tmp_path / "whole", **settings)
    whole.train()
    for step in (2, 5):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        if (tmp_path / "whole" / "mixtures").exists():
            shutil.copytree(tmp_path / "whole" / "mixtures", folder / "mixtures")
        again = inside(make(), folder, **settings)
        again.train(resume_from_checkpoint=True)
        assert foreign.losses(again) == foreign.losses(whole)
        assert weights(again.state.log_history) == weights(whole.state.log_history)
        if (folder / "mixtures").exists():
            assert mixtures(folder) == mixtures(tmp_path / "whole")
        expected = foreign.weights(whole)
        assert all(torch.equal(value, expected[name]) for name, value in foreign.weights(again).items())


def test_a_checkpoint_of_another_component_is_refused_by_name(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4}
    inside(mixing(OdmMixer()), tmp_path, **settings).train()
    again = inside(mixing(OdmMixer(alpha=0.5)), tmp_path, **settings)
    with pytest.raises(TrainingError, match=r"another run: mixer_params.alpha 0.9 -> 0.5"):
        again.train(resume_from_checkpoint=True)
    with pytest.raises(TrainingError, match=r"another run: mixer 'odm' -> 'random'"):
        inside(mixing(RandomMixer()), tmp_path, **settings).train(resume_from_checkpoint=True)


def test_a_loss_that_the_trainer_computes_by_itself_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    for found in (mixing(OdmMixer()), weighing(LossWeighter())):
        trainer = inside(found, tmp_path, own_loss=True)
        with pytest.raises(TrainingError, match="needs the losses of rows, and the trainer computes them by itself"):
            trainer.train()
        assert trainer.state.global_step == 1


def test_trainers_that_would_count_other_losses_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"label_smoothing_factor=0.1 would not act"):
        inside(weighing(LossWeighter()), tmp_path, label_smoothing_factor=0.1).train()
    found, pad = weighing(LossWeighter()), foreign.collator()
    turned = foreign.inside(
        found,
        foreign.arguments(tmp_path),
        compute_loss_func=found.compute_loss_func,
        data_collator=lambda batch: pad(batch[::-1]),
    )
    with pytest.raises(TrainingError, match="forward pass 1 of a step trains on 2 rows that are not the 2 which the"):
        turned.train()
    loose = foreign.trainer(
        foreign.arguments(tmp_path), foreign.rows(), compute_loss_func=weighing(LossWeighter()).compute_loss_func
    )
    with pytest.raises(TrainingError, match="called by a trainer that does not have its callback"):
        loose.train()


def test_models_with_a_loss_of_their_own_are_refused() -> None:
    loss = weighing(LossWeighter()).compute_loss_func
    outputs = {"logits": torch.zeros(1, 3, 5), "aux_loss": torch.zeros(())}
    with pytest.raises(TrainingError, match=r"the model adds a loss of its own \(aux_loss\)"):
        loss(outputs, torch.tensor([[0, 1, 2]]))


def test_what_does_not_fit_is_said_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a run with a mixer needs a schedule, which says when to mix"):
        mixing(OdmMixer(), schedule=None)
    with pytest.raises(TrainingError, match="one of selector, mixer and weighter, and mixer and weighter were given"):
        mixing(OdmMixer(), weighter="loss")
    with pytest.raises(TrainingError, match="weighter 'adapt' needs an evaluation set"):
        inside(Curriculum(rows(), weighter="adapt"), tmp_path).train()
    with pytest.raises(TrainingError, match="per_device_train_batch_size 1 makes it one sample"):
        inside(weighing(LossWeighter(scope="micro_batch")), tmp_path, per_device_train_batch_size=1).train()
