from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataflex.errors import RolloutError
from dataflex.rollouts import Prompt, Rollout, RolloutFile, Sampling, sample_answers
from dataflex.rollouts.answers import answer_key, by_row
from dataflex.rollouts.file import parse_rollouts
from dataflex.rollouts.hf import (
    InverseTransformSampler,
    answer_stream,
    neutral_generation,
    truncated,
)
from dataflex.testing import tiny_model, tiny_tokenizer
from dataflex.types import Sample

PROMPTS = [Prompt("a", [5, 6, 7]), Prompt("b", [9, 10, 11, 12, 13, 14]), Prompt("c", [20])]


def draw(model, prompts=PROMPTS, **changes):
    settings = {
        "answers_per_prompt": 3,
        "stop_token_ids": {1, 4},
        "seed": 5,
        "step": 10,
        "batch_size": 4,
        "autocast": nullcontext,
        "show_progress": False,
    }
    sampling = changes.pop("sampling", Sampling(0.8, 8))
    return sample_answers(model, tiny_tokenizer(), prompts, sampling, **(settings | changes))


@pytest.fixture(scope="module")
def model():
    return tiny_model().double()


def test_answers_do_not_depend_on_batches_or_order(model):
    whole = draw(model)
    assert [(rollout.sample_id, rollout.answer) for rollout in whole] == [(s, m) for s in "abc" for m in range(3)]
    for size in (1, 2, 9):
        assert [rollout.token_ids for rollout in draw(model, batch_size=size)] == [r.token_ids for r in whole]
    backwards = {(r.sample_id, r.answer): r.token_ids for r in draw(model, PROMPTS[::-1])}
    assert backwards == {(r.sample_id, r.answer): r.token_ids for r in whole}
    more = {(r.sample_id, r.answer): r.token_ids for r in draw(model, answers_per_prompt=5)}
    assert all(more[r.sample_id, r.answer] == r.token_ids for r in whole)


def test_seed_and_step_change_the_answers(model):
    tokens = [[r.token_ids for r in draw(model, **change)] for change in ({}, {"seed": 6}, {"step": 11})]
    assert tokens[0] != tokens[1] != tokens[2] != tokens[0]


def test_recorded_log_probs_are_those_of_the_sampled_distribution(model):
    for rollout in draw(model):
        prompt = next(p.token_ids for p in PROMPTS if p.sample_id == rollout.sample_id)
        logits = model(torch.tensor([prompt + rollout.token_ids])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / 0.8, dim=-1)
        chosen = expected.gather(1, torch.tensor(rollout.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(rollout.log_probs, dtype=torch.float64), chosen, rtol=1e-6, atol=1e-8)


def test_the_end_token_belongs_to_a_finished_answer_only(model):
    rollouts = draw(model, stop_token_ids=set(range(0, 384, 7)), answers_per_prompt=8)
    finished = [rollout for rollout in rollouts if rollout.finished]
    cut = [rollout for rollout in draw(model) if not rollout.finished]
    assert finished
    assert cut
    assert all(rollout.token_ids[-1] % 7 == 0 for rollout in finished)
    assert all(token % 7 for rollout in rollouts for token in rollout.token_ids[:-1])
    assert all(len(rollout.token_ids) == 8 for rollout in cut)
    tokenizer = tiny_tokenizer()
    assert all(r.text == tokenizer.decode(r.token_ids[:-1], skip_special_tokens=True) for r in finished)


def test_generation_defaults_of_the_model_do_not_leak(model):
    plain = [rollout.token_ids for rollout in draw(model)]
    own = model.generation_config
    own.repetition_penalty, own.min_new_tokens, own.no_repeat_ngram_size = 5.0, 4, 1
    try:
        assert [rollout.token_ids for rollout in draw(model)] == plain
        with neutral_generation(model):
            assert model.generation_config.repetition_penalty != 5.0
        assert model.generation_config is own
    finally:
        own.repetition_penalty = own.min_new_tokens = own.no_repeat_ngram_size = None


def test_token_frequencies_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 12) * 2
    count = 20_000
    uniforms = np.random.default_rng(1).random((count, 1))
    sampler = InverseTransformSampler(Sampling(0.7, 1), uniforms)
    tokens = sampler(torch.zeros(count, 1), logits.expand(count, -1)).argmax(dim=1)
    frequencies = torch.bincount(tokens, minlength=12) / count
    expected = torch.softmax(logits[0].double() / 0.7, dim=0)
    errors = (expected * (1 - expected) / count).sqrt()
    assert float(((frequencies - expected) / errors).abs().max()) < 4


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform):
    logits = torch.tensor([[-1e4, 0.0, 1.0, -1e4]])
    sampler = InverseTransformSampler(Sampling(1.0, 1), np.array([[uniform]]))
    assert int(sampler(torch.zeros(1, 1), logits).argmax()) == (1 if uniform == 0.0 else 2)


def test_truncation_keeps_the_likeliest_tokens():
    log_probs = torch.tensor([[0.5, 0.2, 0.2, 0.1]], dtype=torch.float64).log()
    assert truncated(log_probs, Sampling(1.0, 1)).isfinite().tolist() == [[True] * 4]
    assert truncated(log_probs, Sampling(1.0, 1, top_k=1)).isfinite().tolist() == [[True, False, False, False]]
    assert truncated(log_probs, Sampling(1.0, 1, top_p=0.5)).isfinite().tolist() == [[True, False, False, False]]
    assert truncated(log_probs, Sampling(1.0, 1, top_p=0.85)).isfinite().tolist() == [[True, True, True, False]]
    assert truncated(log_probs, Sampling(1.0, 1, top_k=9)).isfinite().tolist() == [[True] * 4]


def test_streams_are_independent():
    cases = [(Prompt("x", []), 0), (Prompt("x", []), 1), (Prompt("x\0", []), 0), (Prompt("x", [], repeat=1), 0)]
    streams = [answer_stream(1, 2, prompt, number) for prompt, number in cases]
    assert len({float(stream.random()) for stream in streams}) == 4
    assert answer_stream(1, 2, Prompt("x", []), 0).random() == answer_stream(1, 2, Prompt("x", [5]), 0).random()


def test_the_seed_of_an_answer_stays_what_it_was():
    """Another seed would draw, and pay for, stored answers again."""
    found = [answer_key(123, 10, Prompt("row 7", [1]), 2), answer_key(123, 10, Prompt("row 7", [1], repeat=1), 2)]
    assert [key.hex() for key in found] == ["0c467ec675c53f15e9772e7526d82ae8", "aa8d5db139072ec62e6d350ddd5a5a71"]


def test_rows_that_share_an_id_are_told_by_their_order():
    answers = [Rollout(name, number, [1], [0.0], True, "") for name in "aba" for number in range(2)]
    assert by_row(answers, ["a", "b", "a"]) == [answers[:2], answers[2:4], answers[4:]]
    assert by_row([], ["a"]) == [[]]
    assert by_row([], []) == []
    for wrong, ids in ((answers[:5], "aba"), (answers, "ab"), (answers[1:] + answers[:1], "aba"), (answers, [])):
        with pytest.raises(RolloutError, match="as many answers to each"):
            by_row(wrong, list(ids))


STORED = [
    Rollout("a", 0, [1, 2], [-0.5, -0.1], True, "é \u2028 text", 0.5),
    Rollout("a", 1, [3], [-1.0], False, ""),
]
FACTS = {"state": "x", "sampling": (1, 2), "data": "d"}
REWARD = {"name": "metric"}


def test_stored_answers_count_only_for_their_round(tmp_path):
    path = tmp_path / "rollouts" / "step-3.jsonl"
    RolloutFile(path, FACTS, REWARD).write(STORED)
    assert RolloutFile(path, {**FACTS, "sampling": [1, 2]}, REWARD).scored() == STORED
    assert RolloutFile(path, {**FACTS, "state": "y"}, REWARD).scored() is None
    assert RolloutFile(path, {**FACTS, "state": "y"}, REWARD).answered() is None
    assert RolloutFile(tmp_path / "none.jsonl", {}, {}).scored() is None
    path.write_text(path.read_text(encoding="utf-8").replace("0.5", "0.6"), encoding="utf-8")
    assert RolloutFile(path, FACTS, REWARD).scored() is None


def test_lines_can_be_read_by_themselves_and_stay_the_same_to_the_program(tmp_path):
    """The checksum is of the answers alone: with and without what is for people, in a file of before, it is one."""
    plain, readable = tmp_path / "plain.jsonl", tmp_path / "readable.jsonl"
    turns = ({"role": "user", "content": "Wie heißt \u2028 das?\x1b[2J"}, {"role": "assistant", "content": "日本"})
    samples = [Sample("a", 0, turns)]
    RolloutFile(plain, FACTS, REWARD).write(STORED)
    RolloutFile(readable, FACTS, REWARD, samples).write(STORED)
    sidecars = [json.loads(path.with_suffix(".meta.json").read_text(encoding="utf-8")) for path in (plain, readable)]
    assert sidecars[0] == sidecars[1]
    text = readable.read_text(encoding="utf-8")
    assert "Wie heißt" in text
    assert "日本" in text
    assert "\x1b" not in text
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["prompt"] for row in rows] == [[turns[0]]] * 2
    assert [row["reference"] for row in rows] == ["日本"] * 2
    assert parse_rollouts(text) == STORED
    for path in (plain, readable):
        assert RolloutFile(path, FACTS, REWARD, samples).scored() == STORED
        assert RolloutFile(path, FACTS, REWARD).scored() == STORED
    plain.write_text("[1]\n", encoding="utf-8")
    assert RolloutFile(plain, FACTS, REWARD).scored() is None


def test_a_file_of_before_prompts_were_written_is_used(tmp_path):
    """Lines and checksum as versions up to 0.1.0 wrote them."""
    path = tmp_path / "step-3.jsonl"
    line = (
        '{"sample_id": "a", "answer": 0, "token_ids": [1, 2], "log_probs": [-0.5, -0.1], "finished": true, '
        '"text": "\\u00e9 \\u2028 text", "reward": 0.5}\n'
    )
    path.write_text(line, encoding="utf-8")
    meta = {hashlib.sha256(line.encode()).hexdigest(): {"answers": {"state": "x"}, "rewards": REWARD}}
    path.with_suffix(".meta.json").write_text(json.dumps(meta), encoding="utf-8")
    assert RolloutFile(path, {"state": "x"}, REWARD).scored() == STORED[:1]


def test_answers_survive_another_or_a_failed_reward(tmp_path):
    path = tmp_path / "step-3.jsonl"
    unscored = [replace(STORED[0], reward=None), STORED[1]]
    RolloutFile(path, FACTS, REWARD).write_answers(unscored)
    assert RolloutFile(path, FACTS, REWARD).scored() is None
    assert RolloutFile(path, FACTS, REWARD).answered() == unscored
    RolloutFile(path, FACTS, REWARD).write(STORED)
    other = RolloutFile(path, FACTS, {"name": "api"})
    assert other.scored() is None
    assert other.answered() == unscored


@pytest.mark.parametrize("killed", ["write_text", "write_json"])
def test_a_kill_while_rewards_are_stored_loses_no_answer(tmp_path, monkeypatch, killed):
    path = tmp_path / "step-3.jsonl"
    unscored = [replace(STORED[0], reward=None), STORED[1]]
    file = RolloutFile(path, FACTS, REWARD)
    file.write_answers(unscored)

    def kill(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"dataflex.rollouts.file.{killed}", kill)
        with pytest.raises(KeyboardInterrupt):
            file.write(STORED)
    assert (file.scored(), file.answered()) == (None, unscored)
    file.write(STORED)
    assert file.scored() == STORED


@pytest.mark.parametrize(
    ("answers", "rewards", "message"),
    [
        (FACTS, REWARD, None),
        ({**FACTS, "state": "y"}, {"name": "api"}, "(state differs: 'x' on disk, 'y' now); drawing them again"),
        (FACTS, {"name": "api"}, "(name differs: 'metric' on disk, 'api' now); asking again"),
    ],
)
def test_what_is_not_used_is_said_with_the_reason(tmp_path, caplog, answers, rewards, message):
    path = tmp_path / "step-3.jsonl"
    RolloutFile(path, answers, rewards).report_unused()
    RolloutFile(path, FACTS, REWARD).write_answers(STORED)
    RolloutFile(path, FACTS, rewards).report_unused()  # rewards are only missing
    assert not caplog.messages
    RolloutFile(path, FACTS, REWARD).write(STORED)
    RolloutFile(path, answers, rewards).report_unused()
    assert [text.endswith(message) for text in caplog.messages] == ([True] if message else [])


def test_damaged_answers_are_said_to_be(tmp_path, caplog):
    path = tmp_path / "step-3.jsonl"
    RolloutFile(path, FACTS, REWARD).write(STORED)
    path.write_bytes(path.read_bytes()[:-9])
    RolloutFile(path, FACTS, REWARD).report_unused()
    assert "step-3.jsonl is damaged: its lines fit no checksum in step-3.meta.json" in caplog.text


def test_replay_takes_another_models_answers_to_the_same_data(tmp_path):
    path = tmp_path / "step-3.jsonl"
    RolloutFile(path, FACTS, REWARD).write(STORED)
    assert RolloutFile(path, {"data": "d"}, {}).replayed() == STORED
    with pytest.raises(RolloutError, match=r"another evaluation set \(answers.data differs: 'd' on disk, 'e' now\)"):
        RolloutFile(path, {"data": "e"}, {}).replayed()
    with pytest.raises(RolloutError, match=r"rewards.samples differs: None on disk, 's' now"):
        RolloutFile(path, {"data": "d"}, {"samples": "s"}).replayed()
    RolloutFile(path, FACTS, REWARD).write_answers(STORED)
    with pytest.raises(RolloutError, match=r"no intact answers with rewards to replay in .*step-3\.jsonl"):
        RolloutFile(path, FACTS, REWARD).replayed()
    with pytest.raises(RolloutError, match="no intact answers"):
        RolloutFile(tmp_path / "step-4.jsonl", FACTS, REWARD).replayed()


def test_log_probs_of_a_truncated_draw_are_those_of_what_was_kept():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    sampler = InverseTransformSampler(Sampling(1.0, 1, top_k=2), np.array([[0.9]]))
    token = int(sampler(torch.zeros(1, 1), logits).argmax())
    assert token == 1
    expected = torch.log_softmax(logits[0, :2].double(), dim=0)[1]
    torch.testing.assert_close(sampler.log_probs[0][0], expected, rtol=1e-6, atol=0)
