"""The pools, measures and cells of ``benchmarks/efficacy``."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from dataflex.testing import tiny_model, tiny_tokenizer
from efficacy import __main__ as program
from efficacy.cells import Bench, Cell
from efficacy.measures import auc, of_choice, of_scores
from efficacy.page import tables
from efficacy.pools import DUPLICATE, NOISE, RIGHT, WRONG, Sizes, again, build
from efficacy.protocol import Protocol, weights_digest
from efficacy.sets import SIZES, CellSet, cells, predict
from efficacy.store import Store
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


@pytest.mark.parametrize("seed", SEEDS)
def test_orders_are_of_customers_of_their_own_and_wrong_ones_differ_from_the_order(seed):
    pool = build(seed, SIZES, "orders")
    asked = [row for row in [*pool.prompts, *pool.test, *pool.rows] if row["task"] in (RIGHT, WRONG)]
    orders = [re.fullmatch(r"(\w+) wants an? (\w+) sent to (\w+)\.", row["instruction"]).groups() for row in asked]
    assert len({name for name, _, _ in orders}) == len(asked) == 12 + 48 + 48
    for row, (_, good, city) in zip(asked, orders, strict=True):
        said = json.loads(row["output"])
        assert list(said) == ["item", "city"]
        assert (said == {"item": good, "city": city}) == (row["task"] == RIGHT)


@pytest.mark.parametrize("task", ["kinds", "orders"])
def test_near_duplicates_repeat_right_rows_of_the_pool(task):
    pool = build(1, SIZES, task)
    assert len(pool.rows) == 380
    right = {again(row["instruction"]): row["output"] for row in pool.rows if row["task"] == RIGHT}
    repeated = [pool.rows[place] for place in pool.places(DUPLICATE)]
    assert len({row["instruction"] for row in repeated}) == 12
    assert all(right[row["instruction"]] == row["output"] for row in repeated)
    scores = [1.0 if row["task"] in (RIGHT, DUPLICATE) else 0.0 for row in pool.rows]
    assert of_scores(pool, scores)["auc"] == 1.0


def test_a_seed_is_a_pool():
    assert build(1) == build(1)
    assert build(1) != build(2)


def test_auc_is_the_share_of_pairs_in_order():
    scores = [0.3, 0.1, 0.3, 0.2, 0.5]
    assert auc(scores, [0, 4], [1, 2, 3]) == pytest.approx((1 + 0.5 + 1 + 3) / 6)
    assert auc([0.3, np.nan, -np.inf, 0.4], [0, 1], [2, 3]) == pytest.approx((1 + 0.5) / 4)  # NaN: not looked at
    stream = np.random.default_rng(0)
    pool = build(1)
    found = of_choice(pool, pool.places(RIGHT)[:5] + pool.places(WRONG)[:5])
    assert found == {"chosen": 10, "share_right": 0.5, "share_wrong": 0.5, "share_duplicate": 0.0}
    found = of_scores(pool, stream.random(280).tolist())
    parts = (232 * found["auc_families"] + 24 * found["auc_wrong"]) / 256
    assert found["auc"] == pytest.approx(parts)


def test_an_interval_holds_its_mean():
    mean, low, high = interval([[1.0] * 30 + [0.0] * 10, [1.0] * 20 + [0.0] * 20])
    assert mean == pytest.approx(0.625)
    assert low < mean < high


def arguments(folder, *more: str) -> list[str]:
    """The command's arguments for a tiny model, which learns nothing."""
    if not (folder / "model").exists():
        tiny_model().save_pretrained(folder / "model")
        tiny_tokenizer().save_pretrained(folder / "model")
    return ["--model", str(folder / "model"), "--folder", str(folder / "cache"), *more]


SMALL = Sizes(right=2, wrong=2, family=2, noise=2, prompts=2, test=2, duplicates=1)
PROTOCOL = Protocol(sizes=SMALL, rank=2, batch=1, warmup_step=1, update_step=2, steps=2, max_new_tokens=40)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The command with a small protocol, results and a page of its own."""

    def protocol(sizes=SMALL, **_):
        return replace(PROTOCOL, sizes=replace(SMALL, test=sizes.test))

    monkeypatch.setattr(program, "Protocol", protocol)
    monkeypatch.setattr(program, "PUBLISHED", tmp_path / "cells.json")
    monkeypatch.setattr(program, "PAGE", tmp_path / "page.md")
    return tmp_path


def bench_of(folder, most=None, **paths) -> Bench:
    where = {"model": folder / "model", "encoder": None} | paths
    return Bench(PROTOCOL, most, store=Store(folder / "cache", folder / "cells.json"), **where)


def test_cells_are_computed_once_and_give_the_table(tiny, capsys):
    """Who chooses what, what is kept, and what the table says are as with a model that learns."""
    draws = ["then: random", "then: random, second draw", "then: random, third draw"]
    names = ["zero-shot", "random", "oracle", "nice", "nice, no baseline", "less, 2 updates", *draws]
    given = arguments(tiny, "--seeds", "1", "--test-rows", "2", "--methods", *names)
    assert program.main([*given, "--json", str(tiny / "r.json"), "--markdown", str(tiny / "r.md")]) == 0
    table = (tiny / "r.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    bench = bench_of(tiny)
    found = {name: bench.find(Cell(name, 1)) for name in names}
    assert found["oracle"]["share_right"] == 1.0
    assert found["random"]["chosen"] == 2
    assert len({tuple(found[name]["indices"]) for name in draws}) > 1
    assert "auc" not in found["random"]
    assert 0 <= found["nice"]["auc"] <= 1
    assert found["nice"]["prompts"]["with_reference"] == 2
    assert "test_rewards" not in found["nice, no baseline"]
    assert found["less, 2 updates"]["chosen"] == 2  # one row a selection
    assert len(found["less, 2 updates"]["test_rewards"]) == 2
    twice = {Cell("less, 2 updates", 1, budget=0.1): found["less, 2 updates"]}
    assert "| less, 2 updates |" in tables([*twice], twice)
    assert len(found["zero-shot"]["test_rewards"]) == len(found["zero-shot"]["test_losses"]) == 2
    stamps = {path: path.stat().st_mtime_ns for path in (tiny / "cache" / "results").iterdir()}
    assert len(stamps) == len(names)
    assert program.main([*given, "--cached"]) == 0
    assert table in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tiny / "cache" / "results").iterdir()} == stamps
    assert bench.find(Cell("oracle", 2)) is None
    assert markdown([]) == ""
    assert "| oracle | 1.00 |" in by_seed(list(found.values()), "share_right")


def test_a_set_is_measured_published_and_read_again_without_model(tiny, monkeypatch, capsys):
    asked = cells(["zero-shot", "then: random", "then: oracle", "then: rds", "then: near"], [1], ["orders"], [0.1, 0.3])
    monkeypatch.setitem(program.SETS, "main", CellSet(tuple(asked), SMALL, most=0.3))
    (tiny / "page.md").write_text("# Page\n\n<!-- efficacy: main -->\n<!-- /efficacy: main -->\nend\n")
    given = arguments(tiny, "--set", "main")
    assert program.main([*given, "--publish"]) == 0
    said, page = capsys.readouterr().out, (tiny / "page.md").read_text()
    assert said.count("left out") == 2  # near has no encoder
    assert "8 of 10 cells measured" in page
    assert page.endswith("<!-- /efficacy: main -->\nend\n")
    published = (tiny / "cells.json").read_text()
    assert len(json.loads(published)) == 6  # zero-shot and two right rows are one cell at both budgets
    bench = bench_of(tiny, most=0.3)
    small, large = (bench.find(Cell("then: rds", 1, "orders", budget)) for budget in (0.1, 0.3))
    rows = len(bench.pool(Cell("then: rds", 1, "orders")).rows)
    assert (small["chosen"], large["chosen"]) == (round(0.1 * rows), round(0.3 * rows))
    assert large["indices"][: small["chosen"]] == small["indices"]
    monkeypatch.setattr("efficacy.cells.MODEL", weights_digest(tiny / "model"))
    (tiny / "model").rename(tiny / "elsewhere")
    rest = ["--model", str(tiny / "model"), "--folder", str(tiny / "other"), "--set", "main", "--publish"]
    assert program.main([*rest, "--cached"]) == 0
    assert (tiny / "page.md").read_text() == page
    assert (tiny / "cells.json").read_text() == published


def test_choices_and_cells_from_nothing_are_the_same(tiny):
    given = arguments(tiny, "--methods", "then: less", "--seeds", "1", "--budgets", "0.1", "--test-rows", "2")
    assert program.main(given) == 0
    first = bench_of(tiny, most=0.1).find(Cell("then: less", 1, "kinds", 0.1))
    shutil.rmtree(tiny / "cache")
    assert program.main(given) == 0
    second = bench_of(tiny, most=0.1).find(Cell("then: less", 1, "kinds", 0.1))
    for key in ("indices", "auc", "test_rewards", "test_losses", "reliability"):
        assert first[key] == second[key]


def test_the_cost_counts_shared_parts_once():
    asked = cells(["zero-shot", "then: oracle", "then: less", "then: near"], [1, 2], ["kinds"], [0.1, 0.2])
    spent = {"train_processor": 36.0, "choice_processor": 360.0}
    found = {cell: spent for cell in asked if cell.method == "then: less" and cell.seed == 1}
    cost = predict(asked, found)
    assert cost.guessed == ("then: near", "then: oracle")
    # A seed: no training for zero-shot, 2 x 3 for the others, 3 choices, one warm-up.
    assert cost.total == pytest.approx(2 * (6 * 36 + 3 * 360 + 36) / 3600)
    assert cost.left == pytest.approx(cost.total - (2 * 36 + 360 + 36) / 3600)
    assert predict(asked, {}) is None
