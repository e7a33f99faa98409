from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import dataflex
from dataflex.curriculum.schedule import Schedule
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import CheckpointError, SelectionError
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.model import trainable_parameters
from dataflex.offline.checkpoints import open_checkpoint
from dataflex.offline.context import at_checkpoint
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_context, tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training import checkpoint
from helpers.influence import by_task, full_cosines
from helpers.runs import tiny_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs of two steps with a falling learning rate; checkpoints at the end of the first two."""
    folder = tmp_path_factory.mktemp("run")
    tiny_trainer(
        folder,
        selector=RandomSelector(),
        schedule=Schedule(warmup_step=2),
        num_train_epochs=3,
        save_steps=2,
        lr_scheduler_type="linear",
        adam_beta2=0.99,
    ).train()
    return folder


def two_tasks() -> TokenizedDataset:
    """Evaluation samples of two of the three families."""
    everything = tiny_dataset(12, seed=100)
    return everything.select(i for i, s in enumerate(everything.samples) if s.metadata["task"] != "sum")


def score(checkpoints, **params):
    model = tiny_lora(tiny_model())
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    defaults = {"projection": "identity", "proj_dim": parameters, "num_samples": 4, "template": "chatml"}
    defaults |= {"seed": 0, "save_interval": 5}
    return dataflex.less_static(
        model, tiny_tokenizer(), tiny_dataset(12), two_tasks(), checkpoints, **(defaults | params)
    )


def by_hand(checkpoints, weights, **kind):
    """sum over checkpoints, mean over a task's examples, max over tasks, in plain torch on full gradients."""
    context = tiny_context(Path("unused"), steps=0, eval_dataset=two_tasks())
    total = 0
    for directory, weight in zip(checkpoints, weights, strict=True):
        with at_checkpoint(context, directory, needs_optimizer=True) as current:
            total = total + weight * full_cosines(current, **kind)
    return by_task(context, total)


@pytest.mark.parametrize("kind", [{}, {"adam_variant": "less"}, {"gradient_type": "sgd"}])
def test_scores_equal_the_formula(run, kind):
    checkpoints = [run / "checkpoint-2", run / "checkpoint-4"]
    rates = [1e-2 * (1 + 5 / 6) / 2, 1e-2 * (4 / 6 + 3 / 6) / 2]  # linear from 1e-2 to 0 in 6 steps, by epoch
    weights = [rate / sum(rates) for rate in rates]
    found = score(checkpoints, **kind)
    np.testing.assert_allclose(found.scores, by_hand(checkpoints, weights, **kind), rtol=0, atol=1e-5)
    assert [entry["weight"] for entry in found.report["checkpoints"]] == pytest.approx(weights)
    assert [entry["step"] for entry in found.report["checkpoints"]] == [2, 4]
    assert found.report["aggregate"] == "task_max"
    assert found.indices.tolist() == np.argsort(-found.scores, kind="stable")[:4].tolist()
    other = score(checkpoints, learning_rates=[3, 1], **kind)
    np.testing.assert_allclose(other.scores, by_hand(checkpoints, [0.75, 0.25], **kind), rtol=0, atol=1e-5)
    assert not np.allclose(other.scores, found.scores, atol=1e-4)


def test_targets_may_choose_in_turns(run):
    checkpoints = [run / "checkpoint-2", run / "checkpoint-4"]
    best, turns = (score(checkpoints, aggregate=rule) for rule in ("max", "round_robin"))
    assert np.array_equal(turns.scores, best.scores)
    assert len(set(turns.indices.tolist())) == len(turns.indices)


def test_the_optimizer_of_the_checkpoint_is_used(run):
    context = tiny_context(Path("unused"), steps=0)
    with at_checkpoint(context, run / "checkpoint-4", needs_optimizer=True) as current:
        [group] = current.optimizer.param_groups
        assert group["betas"] == (0.9, 0.99)
        steps = {int(state["step"]) for state in current.optimizer.state.values()}
        assert (current.step, steps) == (4, {4})
        stored = load_file(run / "checkpoint-4" / "optimizer.safetensors")
        weights = load_file(run / "checkpoint-4" / "adapter_model.safetensors")
        for name, parameter in trainable_parameters(current.model):
            for moment in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(current.optimizer.state[parameter][moment], stored[f"{name}/{moment}"])
            assert torch.equal(parameter, weights[name.replace(".default", "")])


def test_the_model_is_left_as_it_was(run):
    model = tiny_lora(tiny_model())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    dataflex.less_static(
        model,
        tiny_tokenizer(),
        tiny_dataset(6),
        two_tasks(),
        [run / "checkpoint-2"],
        num_samples=2,
        template="chatml",
        proj_dim=256,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_features_are_kept_and_used_again(run, tmp_path, monkeypatch):
    checkpoints = [run / "checkpoint-2", run / "checkpoint-4"]
    first = score(checkpoints, output_dir=tmp_path)
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["step-2", "step-4"]
    monkeypatch.setattr(SampleFeatures, "features", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(score(checkpoints, output_dir=tmp_path).scores, first.scores)
    score(checkpoints, output_dir=tmp_path, keep_features="none")
    assert not (tmp_path / "features").exists()


def test_a_target_that_is_broken_at_one_checkpoint_is_left_out_of_all(run, monkeypatch, caplog):
    checkpoints = [run / "checkpoint-2", run / "checkpoint-4"]
    real = SampleFeatures.features

    def features(self, rows):
        values = real(self, rows)
        if len(self._dataset) == len(two_tasks()) and self._context.step == 4:
            values[[row == 1 for row in rows]] = float("nan")
        return values

    monkeypatch.setattr(SampleFeatures, "features", features)
    found = score(checkpoints, learning_rates=[1, 1], aggregate="mean")
    context = tiny_context(Path("unused"), steps=0, eval_dataset=two_tasks())
    total = 0
    for directory in checkpoints:
        with at_checkpoint(context, directory, needs_optimizer=True) as current:
            total = total + 0.5 * np.delete(full_cosines(current), 1, axis=1).mean(axis=1)
    np.testing.assert_allclose(found.scores, total, rtol=0, atol=1e-5)
    broken = two_tasks().samples[1].id
    assert found.report["targets"]["not_finite"] == [broken]
    assert found.report["left_out"]["targets with a gradient that is not finite"] == 1
    assert f"not finite and are left out: {broken}" in caplog.text


def test_a_checkpoint_without_optimizer_state(run, tmp_path):
    bare = tmp_path / "bare"
    tiny_trainer(
        bare, selector=RandomSelector(), schedule=Schedule(warmup_step=3), save_steps=2, save_only_model=True
    ).train()
    checkpoint, last = bare / "checkpoint-2", bare / "checkpoint-3"
    with pytest.raises(CheckpointError, match=r"holds no optimizer state\n.*gradient_type: sgd needs none"):
        score([checkpoint], learning_rates=[1])
    assert score([checkpoint], learning_rates=[1], gradient_type="sgd").step == 2
    both = score([checkpoint, last], learning_rates=[1, 1], gradient_type="sgd")
    assert [entry["step"] for entry in both.report["checkpoints"]] == [2, 3]
    with pytest.raises(CheckpointError, match=r"knows no learning rates\n.*pass learning_rates"):
        score([checkpoint], gradient_type="sgd")


def test_all_checkpoints_are_checked_before_the_first_features(run, tmp_path, monkeypatch):
    monkeypatch.setattr(SampleFeatures, "features", lambda *_: pytest.fail("computed"))
    torn, renamed = (shutil.copytree(run / "checkpoint-4", tmp_path / name) for name in ("torn", "checkpoint-9"))
    (torn / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors was altered"):
        score([run / "checkpoint-2", torn], learning_rates=[1, 1])
    with pytest.raises(
        SelectionError, match=r"checkpoint-9: another checkpoint has taken 4 steps, too\n  hint: .*name"
    ):
        score([run / "checkpoint-4", renamed], learning_rates=[1, 1])


def test_wrong_checkpoints_and_rates_are_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match=r"its manifest cannot be read.*\n.*checkpoint-STEP"):
        score([tmp_path], learning_rates=[1])
    with pytest.raises(SelectionError, match="there are no checkpoints"):
        score([])
    with pytest.raises(SelectionError, match="1 checkpoints and 2 learning rates"):
        score([run / "checkpoint-2"], learning_rates=[1, 2])
    for rates in ([0.0], [-1.0], [float("nan")]):
        with pytest.raises(SelectionError, match="learning rates must be at least 0"):
            score([run / "checkpoint-2"], learning_rates=rates)
    torn = tmp_path / "checkpoint-2"
    shutil.copytree(run / "checkpoint-2", torn)
    (torn / "optimizer.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors was altered"):
        score([torn], learning_rates=[1])


def test_the_rate_of_an_epoch_is_the_mean_of_its_log(run, tmp_path):
    assert open_checkpoint(run / "checkpoint-4").logged_rate() == pytest.approx(1e-2 * (4 / 6 + 3 / 6) / 2)
    alone = tmp_path / "checkpoint-4"
    shutil.copytree(run / "checkpoint-4", alone)
    assert open_checkpoint(alone).logged_rate() == pytest.approx(1e-2 * (4 / 6 + 3 / 6) / 2)
    (tmp_path / "trainer_log.jsonl").write_text(json.dumps({"current_steps": 6, "learning_rate": 1}) + "\n")
    with pytest.raises(CheckpointError, match=r"no learning rate was logged in steps 3 to 4\n.*pass learning_rates"):
        open_checkpoint(alone).logged_rate()


def test_the_files_of_a_checkpoint_are_hashed_once_a_look(run, monkeypatch):
    looked_at = []
    damage = checkpoint.damage
    monkeypatch.setattr(checkpoint, "damage", lambda directory: looked_at.append(directory) or damage(directory))
    open_checkpoint(run / "checkpoint-4").logged_rate()
    assert looked_at == [run / "checkpoint-4"]
    with at_checkpoint(tiny_context(Path("unused"), steps=0), run / "checkpoint-4", needs_optimizer=True):
        assert looked_at == [run / "checkpoint-4"] * 2


def test_some_rows_can_be_looked_at(run, tmp_path):
    checkpoints = [run / "checkpoint-2", run / "checkpoint-4"]
    everything = score(checkpoints)
    found = score(checkpoints, candidates=10, prefilter={"name": "rds", "keep": 0.6}, output_dir=tmp_path)
    rows = np.flatnonzero(~np.isnan(found.scores))
    assert len(rows) == 6
    np.testing.assert_allclose(found.scores[rows], everything.scores[rows], atol=1e-6)
    assert set(found.indices.tolist()) <= set(rows.tolist())
    assert (tmp_path / "prefilter" / "hidden_states" / "step-4").is_dir()  # of the last checkpoint's model
