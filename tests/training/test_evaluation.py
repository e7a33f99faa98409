from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from dataflex.config.values import metric_key
from dataflex.curriculum.schedule import Schedule
from dataflex.data import ChatTemplate, tokenize
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import ConfigError, TrainingError
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_samples, tiny_tokenizer
from dataflex.testing.ranks import run_ranks
from dataflex.training.evaluation import AnswerMetric, Evaluator
from dataflex.utils.distributed import Ranks
from helpers.runs import tiny_trainer

LENGTH = "helpers.rewards:text_length"


def metric(params: dict[str, Any], max_new_tokens: int = 6) -> AnswerMetric:
    made = AnswerMetric.from_params(params, max_new_tokens=max_new_tokens, max_prompt_length=128)
    assert made is not None
    return made


def evaluator(dataset: TokenizedDataset | None = None, **changes: Any) -> Evaluator:
    tokenizer = tiny_tokenizer()
    made = Evaluator(
        tiny_lora(tiny_model()),
        tokenizer,
        ChatTemplate.load("chatml", tokenizer),
        tiny_dataset(7, seed=5) if dataset is None else dataset,
        3,
        nullcontext,
        Ranks(),
    )
    return replace(made, **changes)


def unlabelled(count: int) -> TokenizedDataset:
    """Prompts without an answer."""
    samples = [replace(sample, messages=sample.messages[:1]) for sample in tiny_samples(count, seed=5)]
    return tokenize(samples, ChatTemplate.load("chatml", tiny_tokenizer()), 128, keep_unlabelled=True, progress=False)


def test_the_loss_is_the_token_mean_of_a_plain_float64_computation() -> None:
    dataset = tiny_dataset(7, seed=5)
    total, tokens = 0.0, 0
    model = tiny_lora(tiny_model()).double().eval()
    for example in dataset:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([example.input_ids])).logits[0]
        targets = torch.tensor(example.labels)
        for place in range(1, len(targets)):
            if targets[place] != IGNORE_INDEX:
                total -= float(torch.log_softmax(logits[place - 1], dim=-1)[targets[place]])
                tokens += 1
    assert evaluator(dataset).evaluate() == {"eval_loss": pytest.approx(total / tokens, rel=1e-5)}


def test_neither_batch_size_nor_order_changes_a_sample() -> None:
    dataset = tiny_dataset(7, seed=5)
    losses = evaluator(dataset).losses()
    for size in (1, 7):
        other = evaluator(dataset, batch_size=size).losses()
        assert [loss.total for loss in other] == pytest.approx([loss.total for loss in losses], rel=1e-5)
    turned = evaluator(dataset[::-1]).losses()[::-1]
    assert [loss.total for loss in turned] == pytest.approx([loss.total for loss in losses], rel=1e-5)


def test_answers_are_those_of_transformers_greedy_search() -> None:
    made = evaluator(metric=metric({"metric": LENGTH}))
    stop = sorted(made.template.stop_token_ids(made.tokenizer))
    greedy = GenerationConfig(do_sample=False, max_new_tokens=6, eos_token_id=stop, pad_token_id=2)
    for sample, answer in zip(made.dataset.samples, made.answers(), strict=True):
        ids = made.template.encode_prompt(sample.prompt, sample.tools)
        with torch.no_grad():
            expected = made.model.generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), generation_config=greedy
            )
        assert answer.sample_id == sample.id
        assert answer.token_ids == expected[0, len(ids) :].tolist()
        assert answer.reward == len(answer.text) % 7 / 6


@pytest.mark.parametrize("ranks", [1, 2])
def test_samples_that_share_an_id_get_their_own_answers(ranks: int) -> None:
    dataset = tiny_dataset(5, seed=5)
    same = TokenizedDataset(replace(example, sample=replace(example.sample, id="same")) for example in dataset)
    expected = evaluator(dataset, metric=metric({"metric": LENGTH})).answers()
    assert len({tuple(answer.token_ids) for answer in expected}) > 1
    for found in run_ranks(
        ranks, lambda rank: evaluator(same, metric=metric({"metric": LENGTH}), ranks=rank).answers()
    ):
        assert [(one.token_ids, one.reward) for one in found] == [(one.token_ids, one.reward) for one in expected]


def test_both_are_reported_and_the_model_is_left_as_it_was() -> None:
    made = evaluator(metric=metric({"metric": LENGTH}))
    made.model.train()
    state = torch.get_rng_state()
    found = made.evaluate()
    assert set(found) == {"eval_loss", "eval_text_length"}
    rewards = [answer.reward for answer in made.answers()]
    assert found["eval_text_length"] == pytest.approx(sum(rewards) / len(rewards))
    assert made.model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts_without_answers_have_a_metric_and_no_loss() -> None:
    made = evaluator(unlabelled(3))
    with pytest.raises(TrainingError, match="no evaluation sample has an answer to compute a loss on"):
        made.evaluate()
    assert set(replace(made, metric=metric({"metric": LENGTH})).evaluate()) == {"eval_text_length"}
    with pytest.raises(TrainingError, match="no metric"):
        made.answers()


@pytest.mark.parametrize(
    ("params", "key"),
    [
        ({"metric": "exact_match"}, "eval_exact_match"),
        ({"metric": "some.module:score"}, "eval_score"),
        ({"metric": [{"metric": "token_f1"}, {"metric": "exact_match"}]}, "eval_metric"),
    ],
)
def test_a_metric_is_reported_under_its_own_name(params: dict[str, Any], key: str) -> None:
    assert metric_key(params) == key


def test_the_best_model_can_be_the_one_that_answers_best(tmp_path: Path) -> None:
    trainer = tiny_trainer(
        tmp_path,
        selector=RandomSelector(),
        schedule=Schedule(2, 2, 2),
        learning_rate=0.1,
        eval_strategy="steps",
        eval_steps=1,
        eval_metric=LENGTH,
        eval_max_new_tokens=6,
        metric_for_best_model="text_length",
        load_best_model_at_end=True,
    )
    results = trainer.train()
    values = {e["current_steps"]: e["eval_text_length"] for e in trainer.log.history if "eval_text_length" in e}
    assert len(values) == 6
    assert len(set(values.values())) > 1
    assert results["best_metric"] == max(values.values())
    assert values[results["best_step"]] == results["best_metric"]
    assert results["eval_text_length"] == results["best_metric"] != values[6]
    assert trainer.evaluate()["eval_text_length"] == results["best_metric"]
    lines = (tmp_path / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum("eval_text_length" in json.loads(line) for line in lines) == 6


def test_what_cannot_be_evaluated_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown metric"):
        tiny_trainer(tmp_path, eval_metric="exact_mach")
    with pytest.raises(TrainingError, match=r"eval_metric: .*no reference \(wanted\)"):
        tiny_trainer(
            tmp_path, eval_strategy="steps", eval_metric={"metric": "exact_match", "reference_column": "wanted"}
        )
    with pytest.raises(
        TrainingError, match="metric_for_best_model 'eval_bleu' is unknown; known: eval_loss, eval_exact"
    ):
        tiny_trainer(tmp_path, eval_strategy="steps", eval_metric="exact_match", metric_for_best_model="bleu")
