from __future__ import annotations

import json
import logging
import math

import pytest

from dataflex.curriculum.schedule import Schedule
from dataflex.errors import TrainingError
from dataflex.models.identity import file_digest
from dataflex.selectors.less import LessSelector
from dataflex.selectors.near import NearSelector
from dataflex.selectors.random import RandomSelector
from dataflex.testing import run_ranks, tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training.arguments import TrainingArguments
from dataflex.training.facts import selector_facts
from dataflex.training.sameness import CACHING, COVERED, FACTS, FREE, NEUTRAL_PARAMETERS, TRACKING, check_ranks, compare
from dataflex.training.trainer import Trainer
from helpers.runs import tiny_nice
from helpers.scripts import ROOT


def trainer(output_dir, *, model=None, rows=12, eval_rows=4, selector=None, schedule=None, **args):
    """Two steps without a selection: what a resumed run is compared by does not depend on what it trains."""
    defaults = {"template": "chatml", "per_device_train_batch_size": 2, "plot_loss": False, "save_steps": 1}
    return Trainer(
        tiny_lora(tiny_model()) if model is None else model,
        tiny_tokenizer(),
        tiny_dataset(rows),
        tiny_dataset(eval_rows, seed=50) if eval_rows else None,
        selector or RandomSelector(),
        schedule=schedule or Schedule(warmup_step=2),
        args=TrainingArguments(**(defaults | {"output_dir": output_dir} | args)),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    trainer(folder).train()
    return folder


REFUSED = {
    "base model": ({"model": lambda: tiny_lora(tiny_model(seed=1))}, r"model LlamaForCausalLM \(.*another of that"),
    "model settings": ({"model": lambda: tiny_lora(tiny_model(rope_theta=5e5))}, r"model_config.*rope_theta.*500000"),
    "rank": ({"model": lambda: tiny_lora(tiny_model(), r=8)}, r"lora_rank 4 -> 8, .*trained 28 tensors of"),
    "evaluation set": ({"eval_rows": 5}, r"eval_data 4 rows of \d+ tokens -> 5 rows of \d+ tokens"),
    "no evaluation set": ({"eval_rows": 0}, r"eval_data 4 rows of \d+ tokens -> None"),
    "training set": ({"rows": 13}, r"data 12 rows of"),
    "selector": ({"selector": LessSelector(gradient_type="sgd")}, "selector 'random' -> 'less'"),
    "schedule": ({"schedule": Schedule(1, 1, 1)}, "update_step 0 -> 1, update_times 0 -> 1, warmup_step 2 -> 1"),
    "optimizer": (
        {"weight_decay": 0.1, "max_grad_norm": 0.5, "adam_beta1": 0.8, "adam_beta2": 0.99, "adam_epsilon": 1e-6},
        r"weight_decay 0\.0 -> 0\.1, max_grad_norm 1\.0 -> 0\.5, adam_beta1 0\.9 -> 0\.8, adam_beta2 0\.999 -> 0\.99, "
        "adam_epsilon 1e-08 -> 1e-06",
    ),
    "shuffling": ({"disable_shuffling": True, "seed": 7}, "seed 42 -> 7, disable_shuffling False -> True"),
    "precision": ({"bf16": True}, "precision 'no' -> 'bf16'"),
    "batch": ({"gradient_accumulation_steps": 2}, "global_batch 2 -> 4"),
    "template": ({"template": "alpaca", "cutoff_len": 64}, "template qwen -> alpaca, cutoff_len 2048 -> 64"),
    "best": (
        {"metric_for_best_model": "exact_match", "eval_metric": "exact_match"},
        "metric_for_best_model 'eval_loss'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_run_is_refused_by_name(finished, case):
    options, message = REFUSED[case]
    if callable(options.get("model")):
        options = options | {"model": options["model"]()}
    before = file_digest(finished / "checkpoint-2" / "manifest.json")
    with pytest.raises(TrainingError, match=f"checkpoint-2 belongs to another run: .*{message}"):
        trainer(finished, resume_from_checkpoint=True, **options).train()
    assert file_digest(finished / "checkpoint-2" / "manifest.json") == before


def test_dropout_and_alpha_are_part_of_the_adapter(finished):
    model = tiny_lora(tiny_model())
    model.active_peft_config.lora_dropout, model.active_peft_config.lora_alpha = 0.5, 1
    with pytest.raises(TrainingError, match=r"another run: lora_alpha 8 -> 1, lora_dropout 0\.0 -> 0\.5"):
        trainer(finished, resume_from_checkpoint=True, model=model).train()


def test_what_does_not_decide_the_outcome_is_said(finished, caplog):
    with caplog.at_level(logging.INFO):
        trainer(
            finished,
            resume_from_checkpoint=True,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            save_steps=2,
            logging_steps=1,
        ).train()
    assert (
        "per_device_train_batch_size 2 -> 1, gradient_accumulation_steps 1 -> 2, save_steps 1 -> 2, "
        "logging_steps 10 -> 1" in caplog.text
    )
    assert "could not be compared" not in caplog.text


def test_a_checkpoint_of_an_earlier_version_resumes_and_what_was_not_compared_is_said(tmp_path, caplog):
    trainer(tmp_path).train()
    known = {"total_steps", "global_batch", "schedule", "seed", "learning_rate", "lr_scheduler_type", "warmup_ratio"}
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        facts = state["facts"]
        state["facts"] = {key: facts[key] for key in known} | {"data": facts["data"]["digest"], "selector": "random"}
        for key in ("date", "loss_sum", "loss_steps", "runtime"):
            del state[key]
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest["files"]["state.json"] = file_digest(folder / "state.json")
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (tmp_path / "checkpoint-2").rename(tmp_path / "later")
    assert trainer(tmp_path, resume_from_checkpoint=True).train()["steps"] == 2
    assert "could not be compared: model, model_config, adapter, trained, eval_data, template" in caplog.text
    (tmp_path / "checkpoint-2").rename(tmp_path / "mine")
    with pytest.raises(TrainingError, match=r"another run: data another -> 13 rows of"):
        trainer(tmp_path, rows=13, resume_from_checkpoint=tmp_path / "checkpoint-1").train()


def test_parameters_of_selector_and_reward_are_compared_one_by_one():
    noted = selector_facts(tiny_nice())
    changed = selector_facts(tiny_nice(reward={"name": "exact_match", "params": {"contains": True}}, mc_samples=5))
    found = compare(noted, changed)
    assert "selector_params.mc_samples 3 -> 5" in found.refused
    assert any(line.startswith("selector_params.reward") for line in found.refused)
    elsewhere = compare(noted, selector_facts(tiny_nice(cache_dir="elsewhere", save_interval=9)))
    assert elsewhere.refused == []
    assert [line.split()[0] for line in elsewhere.said] == [
        "selector_params.cache_dir",
        "selector_params.save_interval",
    ]
    assert compare(noted, selector_facts(tiny_nice())).refused == []


def test_a_file_counts_by_its_content(tmp_path):
    for name, content in (("a.npy", b"1"), ("b.npy", b"1"), ("c.npy", b"2")):
        (tmp_path / name).write_bytes(content)
    first, moved, other = (
        selector_facts(NearSelector(indices_path=tmp_path / name)) for name in ("a.npy", "b.npy", "c.npy")
    )
    assert compare(first, moved).refused == []
    assert len(compare(first, other).refused) == 1


def test_a_parameter_that_was_not_noted_is_unknown():
    noted = {"selector": "random", "selector_params": {"old": 1}}
    assert compare(noted, {"selector": "random", "selector_params": {"new": 2}}).unknown == ["selector_params.new"]


def test_a_rank_with_another_selector_has_its_parameters_named():
    def start(ranks):
        check_ranks(selector_facts(RandomSelector() if ranks.index == 0 else LessSelector(proj_dim=64)), ranks)

    with pytest.raises(TrainingError, match=r"selector 'random' -> 'less', .*proj_dim nothing -> 64,"):
        run_ranks(2, start)


def test_facts_are_plain_json_whatever_the_parameters():
    noted = selector_facts(tiny_nice(generation_temperature=math.inf))
    assert json.loads(json.dumps(noted, allow_nan=False))["selector_params"]["generation_temperature"] == "inf"


def test_the_list_has_every_argument_once():
    keys = [fact.key for fact in FACTS]
    listed = [*keys, *FREE, *CACHING, *TRACKING, *COVERED]
    assert len(listed) == len(set(listed))
    assert set(TrainingArguments.model_fields) <= set(listed)
    assert not NEUTRAL_PARAMETERS & (set(TrainingArguments.model_fields) - set(CACHING))


def test_the_documentation_has_the_list():
    page = (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    documented = {key.strip("`"): row[3] for row in cells for key in row[1].split(", ")}
    for fact in FACTS:
        assert documented[fact.key] == ("refused" if fact.decides else "allowed, said")
    for name in NEUTRAL_PARAMETERS:
        assert f"`{name}`" in page


def test_ranks_with_other_settings_are_refused_everywhere(tmp_path):
    def start(ranks):
        args = {"seed": 3 + ranks.index, "learning_rate": 1e-3 * (1 + ranks.index)}
        check_ranks({"output_dir": str(tmp_path), "data": {"digest": "a", "shown": "x"}, **args}, ranks)

    with pytest.raises(TrainingError) as caught:
        run_ranks(2, start)
    assert "rank 1 differs from rank 0: seed 3 -> 4, learning_rate 0.001 -> 0.002" in str(caught.value)
    run_ranks(2, lambda ranks: check_ranks({"seed": 3}, ranks))
    with pytest.raises(TrainingError, match="rank 1 differs from rank 0: output_dir 'a0' -> 'a1'"):
        run_ranks(2, lambda ranks: check_ranks({"output_dir": f"a{ranks.index}"}, ranks))
