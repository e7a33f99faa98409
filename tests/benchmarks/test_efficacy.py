"""The pools, measures and cells of ``benchmarks/efficacy``."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from dataflex.testing import tiny_model, tiny_tokenizer
from efficacy import __main__ as program
from efficacy.cells import Bench
from efficacy.measures import auc, of_choice
from efficacy.pools import NOISE, RIGHT, WRONG, Sizes, build
from efficacy.protocol import Protocol
from efficacy.tables import by_seed, interval, markdown
from efficacy.words import KINDS

SEEDS = range(1, 6)
THINGS = {thing: kind for kind, things in KINDS.items() for thing in things}


def thing_of(row) -> str:
    return re.fullmatch(r"What is an? (\w+)\?", row["instruction"]).group(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_asked_about_stands_in_one_part_alone(seed):
    pool = build(seed)
    parts = [pool.prompts, pool.test, [pool.rows[place] for place in pool.places(RIGHT, WRONG)]]
    asked = [{thing_of(row) for row in part} for part in parts]
    assert [len(own) for own in asked] == [12, 48, 48]  # no thing twice
    assert not (asked[0] & asked[1] | asked[0] & asked[2] | asked[1] & asked[2])
    others = [row for row in pool.rows if row["task"] not in (RIGHT, WRONG)]
    words = {word for row in others for word in re.findall(r"\w+", f"{row['instruction']} {row['output']}".lower())}
    assert not words & (asked[0] | asked[1])


@pytest.mark.parametrize("seed", SEEDS)
def test_right_rows_are_right_and_wrong_rows_wrong(seed):
    pool = build(seed)
    for row in [*pool.prompts, *pool.test, *pool.rows]:
        if row["task"] in (RIGHT, WRONG):
            kind = THINGS[thing_of(row)]
            assert row["output"].endswith(f" is a kind of {kind}.") == (row["task"] == RIGHT)
    assert {len(pool.places(task)) for task in (RIGHT, WRONG, NOISE)} == {24}
    assert len(pool.rows) == 280


def test_a_seed_is_a_pool():
    assert build(1) == build(1)
    assert build(1) != build(2)


def test_auc_is_the_share_of_pairs_in_order():
    scores = [0.3, 0.1, 0.3, 0.2, 0.5]
    assert auc(scores, [0, 4], [1, 2, 3]) == pytest.approx((1 + 0.5 + 1 + 3) / 6)
    stream = np.random.default_rng(0)
    pool = build(1)
    found = of_choice(pool, pool.places(RIGHT)[:5] + pool.places(WRONG)[:5], stream.random(280).tolist())
    assert (found["share_right"], found["share_wrong"], found["chosen"]) == (0.5, 0.5, 10)
    parts = (232 * found["auc_families"] + 24 * found["auc_wrong"]) / 256
    assert found["auc"] == pytest.approx(parts)


def test_an_interval_holds_its_mean():
    mean, low, high = interval([[1.0] * 30 + [0.0] * 10, [1.0] * 20 + [0.0] * 20])
    assert mean == pytest.approx(0.625)
    assert low < mean < high


def test_cells_are_computed_once_and_give_the_table(tmp_path, monkeypatch, capsys):
    """A tiny model learns nothing; who chooses what, what is kept, and what the table says are those of a real one."""
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    sizes = Sizes(right=2, wrong=2, family=2, noise=2, prompts=2, test=2)
    protocol = Protocol(sizes=sizes, rank=2, batch=1, warmup_step=1, update_step=2, max_new_tokens=40)
    monkeypatch.setattr(program, "Protocol", lambda asked: replace(protocol, sizes=replace(sizes, test=asked.test)))
    draws = ["then: random", "then: random, second draw", "then: random, third draw"]
    cache, names = tmp_path / "cache", ["zero-shot", "random", "oracle", "nice", "nice, no baseline", *draws]
    arguments = ["--model", str(folder), "--folder", str(cache), "--seeds", "1", "--test-rows", "2", "--methods"]
    arguments += names
    assert program.main([*arguments, "--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]) == 0
    table = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    bench = Bench(protocol, folder, cache)
    found = {name: bench.cell(name, 1, only_cached=True) for name in names}
    assert found["oracle"]["share_right"] == 1.0
    assert found["random"]["chosen"] == 2
    assert len({tuple(found[name]["indices"]) for name in draws}) > 1
    assert "auc" not in found["random"]
    assert 0 <= found["nice"]["auc"] <= 1
    assert found["nice"]["prompts"]["with_reference"] == 2
    assert "exact_match" not in found["nice, no baseline"]
    assert len(found["zero-shot"]["test_rewards"]) == 2
    stamps = {path: path.stat().st_mtime_ns for path in (cache / "results").iterdir()}
    assert len(stamps) == len(names)
    assert program.main([*arguments, "--cached"]) == 0
    assert table in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (cache / "results").iterdir()} == stamps
    assert bench.cell("oracle", 2, only_cached=True) is None
    assert markdown([]) == ""
    assert "| oracle | 1.00 |" in by_seed(list(found.values()), "share_right")
