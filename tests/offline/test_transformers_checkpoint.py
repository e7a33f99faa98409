"""Checkpoints of a real ``transformers.Trainer``: their features are those of the live optimizer."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.utils.data import Dataset
from transformers.optimization import Adafactor

import dataflex
from dataflex.errors import CheckpointError
from dataflex.gradients.moments import adam_moments
from dataflex.offline.transformers_checkpoint import TransformersCheckpoint
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer

LESS = {"selector": "less", "num_samples": 3, "template": "chatml", "proj_dim": 256}


class Rows(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        example = self.data[index]
        return {"input_ids": example.input_ids, "labels": example.labels}


def padded(rows):
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": tiny_tokenizer().pad_token_id, "labels": -100}
    batch = {
        key: torch.stack(
            [
                torch.nn.functional.pad(torch.as_tensor(row[key]).long(), (0, width - len(row[key])), value=value)
                for row in rows
            ]
        )
        for key, value in fill.items()
    }
    return {**batch, "attention_mask": (batch["labels"] >= -100).long()}


def run(folder: Path, model, **values):
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        save_steps=2,
        logging_steps=1,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"max_steps": 4, "weight_decay": 0.1, "adam_beta2": 0.99, **values},
    )
    trainer = transformers.Trainer(model, args, train_dataset=Rows(tiny_dataset(8)), data_collator=padded)
    trainer.train()
    return trainer


def whole_model():
    """A model that trains matrices, biases and norms, so that both of the trainer's groups have members."""
    model = tiny_model(num_hidden_layers=1, attention_bias=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed_tokens" not in name and "lm_head" not in name)
    return model


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    return folder, run(folder, tiny_lora(tiny_model()))


@pytest.mark.parametrize("build", [lambda: tiny_lora(tiny_model()), whole_model], ids=["lora", "whole"])
def test_moments_are_those_of_the_live_optimizer(tmp_path, build):
    live = run(tmp_path, build())
    model = build()
    source = TransformersCheckpoint(tmp_path / "checkpoint-4")
    source.load_weights(model)
    for (name, found), (_, expected) in zip(model.named_parameters(), live.model.named_parameters(), strict=True):
        assert torch.equal(found, expected), name
    restored = source.optimizer(model, needed=True)
    found = adam_moments(model, restored)
    expected = adam_moments(live.model, live.optimizer.optimizer)
    assert torch.equal(found.exp_avg, expected.exp_avg)
    assert torch.equal(found.exp_avg_sq, expected.exp_avg_sq)
    assert (
        (found.step, found.betas, found.eps) == (expected.step, expected.betas, expected.eps) == (4, (0.9, 0.99), 1e-8)
    )
    assert sorted({group["weight_decay"] for group in restored.param_groups}) == (
        [0.1] if len(restored.param_groups) == 1 else [0.0, 0.1]
    )
    assert {group["lr"] for group in restored.param_groups} == {group["lr"] for group in live.optimizer.param_groups}


def test_the_selection_is_that_of_the_live_optimizer(adapted):
    folder, live = adapted
    rows, targets = tiny_dataset(8), tiny_dataset(3, seed=9)
    params = {key: value for key, value in LESS.items() if key in ("num_samples", "template")}
    chosen = dataflex.select(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        rows,
        targets,
        selector=dataflex.LessSelector(proj_dim=256),
        checkpoint=folder / "checkpoint-4",
        **params,
    )
    assert chosen.step == 4
    live_model = live.model
    moments = dataflex.LessSelector(proj_dim=256)
    moments.check = lambda current: None
    inner = moments.select
    moments.select = lambda current: inner(replace(current, optimizer=live.optimizer.optimizer, step=4))
    expected = dataflex.select(live_model, tiny_tokenizer(), rows, targets, selector=moments, **params)
    assert np.array_equal(chosen.scores, expected.scores)
    assert chosen.indices.tolist() == expected.indices.tolist()


def test_static_less_over_its_checkpoints_uses_the_logged_rates(adapted):
    folder, _ = adapted
    rates = [TransformersCheckpoint(folder / f"checkpoint-{step}").logged_rate() for step in (2, 4)]
    logged = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert rates[0] == pytest.approx(np.mean([entry["learning_rate"] for entry in logged[:2]]))
    options = {key: value for key, value in LESS.items() if key != "selector"}
    chosen = dataflex.less_static(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        tiny_dataset(8),
        tiny_dataset(3, seed=9),
        [folder / "checkpoint-2", folder / "checkpoint-4"],
        **options,
    )
    assert [part["step"] for part in chosen.report["checkpoints"]] == [2, 4]


def select(checkpoint, model=None, **params):
    return dataflex.select(
        model or tiny_lora(tiny_model()),
        tiny_tokenizer(),
        tiny_dataset(8),
        tiny_dataset(3, seed=9),
        checkpoint=checkpoint,
        **(LESS | params),
    )


def test_another_model_is_refused_by_name(adapted):
    folder, _ = adapted
    with pytest.raises(
        CheckpointError, match=r"another adapter than the model: it has r 4, the model 8; lora_alpha 8, the"
    ):
        select(folder / "checkpoint-4", tiny_lora(tiny_model(), r=8))
    with pytest.raises(CheckpointError, match=r"weights of another model: .*lora_A.weight is missing"):
        select(folder / "checkpoint-4", tiny_lora(tiny_model(num_hidden_layers=3)))
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors\n.*PeftModel"):
        select(folder / "checkpoint-4", whole_model())


def test_a_state_that_does_not_fit_is_refused_with_the_reason(adapted, tmp_path):
    folder, _ = adapted
    copy = tmp_path / "checkpoint-4"
    shutil.copytree(folder / "checkpoint-4", copy)
    file = copy / "optimizer.pt"
    saved = torch.load(file, weights_only=True)
    model = tiny_lora(tiny_model())
    next(parameter for parameter in model.parameters() if parameter.requires_grad).requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"has groups of 28 and 0 parameters; the model trains 27"):
        select(copy, model)
    first = next(iter(saved["state"]))
    for change, reason in (
        ({"exp_avg": torch.zeros(3)}, r"the moments in the place of .*lora_A.* have the shapes"),
        ({"max_exp_avg_sq": torch.zeros(3)}, "the state of Adam with amsgrad"),
    ):
        torch.save({**saved, "state": {**saved["state"], first: {**saved["state"][first], **change}}}, file)
        with pytest.raises(CheckpointError, match=reason):
            select(copy)
    torch.save({**saved, "param_groups": [{**group, "amsgrad": True} for group in saved["param_groups"]]}, file)
    with pytest.raises(CheckpointError, match="without amsgrad"):
        select(copy)
    file.write_bytes(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(CheckpointError, match="damaged, or holds more than tensors and numbers"):
        select(copy)
    file.write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"optimizer.pt is damaged, .*: EOFError without a message"):
        select(copy)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"holds no optimizer.pt\n.*gradient_type: sgd"):
        select(copy)
    assert select(copy, gradient_type="sgd").step == 4


def test_one_group_of_all_parameters_and_weights_in_several_files(tmp_path):
    model = whole_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    (tmp_path / "trainer_state.json").write_text('{"global_step": 1}', encoding="utf-8")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float(parameter.numel()))
    optimizer.step()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    other = whole_model()
    source = TransformersCheckpoint(tmp_path)
    source.load_weights(other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    restored = source.optimizer(other, needed=True)
    assert torch.equal(adam_moments(other, restored).exp_avg, adam_moments(model, optimizer).exp_avg)


def bits(name):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    return lambda parameters: getattr(bitsandbytes.optim, name)(parameters)


OTHERS = [
    ("AdamW8bit", r"the state of bitsandbytes in 8 bits \(adamw_8bit, paged_adamw_8bit, or"),
    ("AdamW32bit", r"the state of bitsandbytes in 32 bits \(paged_adamw_32bit, or"),
    (lambda parameters: Adafactor(parameters, lr=1e-3, relative_step=False), "the state of Adafactor: it keeps"),
    (lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9), "the state of SGD or Muon"),
    (lambda parameters: torch.optim.SGD(parameters, lr=1e-3), "the state of plain SGD: it keeps nothing"),
    (torch.optim.NAdam, "the state of NAdam"),
    (lambda parameters: torch.optim.AdamW(parameters, amsgrad=True), "the state of Adam with amsgrad"),
    (torch.optim.ASGD, "the state of another optimizer"),
    (torch.optim.RAdam, "its groups are not those of Adam or AdamW"),
]


@pytest.mark.parametrize(("make", "reason"), OTHERS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_state_of_another_optimizer_is_refused_by_its_name(tmp_path, make, reason):
    model = tiny_lora(tiny_model(), r=64)
    optimizer = (bits(make) if isinstance(make, str) else make)([p for p in model.parameters() if p.requires_grad])
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    (tmp_path / "trainer_state.json").write_text('{"global_step": 1}', encoding="utf-8")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=reason) as caught:
        TransformersCheckpoint(tmp_path).optimizer(model, needed=True)
    assert "gradient_type: sgd" in caught.value.hint
