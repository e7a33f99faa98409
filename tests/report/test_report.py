"""The page, the tables for programs, and runs that go on."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import dataflex as df
from dataflex.cli.app import cli
from dataflex.curriculum.selection_file import write_selection
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import DataError
from dataflex.report.compare import overlap, rank_correlation
from dataflex.report.page import made_of, refresh_page
from dataflex.report.read import read_report
from dataflex.report.sections import Pages, lay_out
from dataflex.selectors.base import Selection
from dataflex.testing import tiny_dataset
from dataflex.types import group_names
from dataflex.utils.files import write_json
from helpers.runs import tiny_trainer

NICE = "nice (rows whose gradients raise the reward of the model's own answers to the evaluation prompts)"


def log(folder: Path, *entries: dict[str, object]) -> None:
    lines = [json.dumps({"current_steps": step, "total_steps": 9, **entry}) for step, entry in enumerate(entries, 1)]
    (folder / "trainer_log.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def rollouts(folder: Path, step: int, rewards: list[list[float]]) -> None:
    lines = [
        {"prompt": [{"role": "user", "content": f"ask {row}"}], "sample_id": str(row), "text": f"{row}.{number}"}
        | {"reference": "right", "reward": reward}
        for row, own in enumerate(rewards)
        for number, reward in enumerate(own)
    ]
    path = folder / "rollouts" / f"step-{step}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def selected(folder: Path, step: int, chosen: list[int], scores: list[float], **report: object) -> None:
    file = folder / "selections" / f"step-{step}.parquet"
    found = Selection(np.array(chosen), np.array(scores), "nice", step, step, report)
    write_selection(file, found, tiny_dataset(len(scores), seed=3), "task")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two selections that goes on."""
    rng = np.random.default_rng()
    for step in (2, 5):
        scores = rng.normal(size=60).tolist()
        reliability = {"targets": 0.2 if step == 5 else 0.8}
        selected(tmp_path, step, np.argsort(scores)[::-1][:9].tolist(), scores, reliability=reliability)
    log(tmp_path, {"loss": 2.0}, {"loss": 1.5, "eval_loss": 1.8}, {"loss": 1.0}, {"eval_loss": 1.2, "loss": 0.9})
    rollouts(tmp_path, 2, [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    return tmp_path


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ({"requests": 0}, "Not known yet."),
        ({"requests": 800}, "4.0 s for selections so far; 1,600 requests to the judge."),
        ({"requests": 8, "prompt_tokens": 4000, "reply_tokens": 90}, "8,000 tokens read and 180 written."),
        ({"requests": 8, "reply_tokens": 90, "price": 0.21}, "180 written, for 0.42 at the prices of the config"),
    ],
)
def test_the_cost_is_what_all_selections_took(judge: dict[str, float], said: str, tmp_path: Path) -> None:
    seconds = {"answers": 2.0} if judge["requests"] else {}
    for step in (2, 5):
        selected(tmp_path, step, [0], [0.5, 0.4], seconds=seconds, reward_backend={"name": "api", **judge})
    log(tmp_path, {"loss": 2.0})
    assert said in df.Report(tmp_path).summary["What did it cost?"]


class Page(HTMLParser):
    """Elements of a page, and whether each that must be closed is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_its_pictures_are_named(run: Path) -> None:
    text = df.Report(run).write().read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object", "base", "form"} == set()
    outside = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert all(link.startswith(("#", "data:")) for link in outside)
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert all(picture["role"] == "img" for picture in pictures)
    questions = [str(picture["aria-label"]).split("?")[0] for picture in pictures]
    assert questions[0] == "Which rows were chosen"
    assert set(questions) >= {"Do the selections agree", "What was rewarded", "Did the model learn"}
    assert len(set(questions)) == len(questions) >= 7
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "var(--chosen)" in text
    assert "#0072b2" not in text.split("</style>", 1)[1]


def test_a_run_that_goes_on_has_a_page_of_what_there_is(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    refresh_page(run)
    assert "A run that goes on: step 4 of 9." in (run / "report.html").read_text(encoding="utf-8")
    (run / "selections" / "step-5.parquet").write_bytes(b"half")
    refresh_page(run)
    assert "report.html could not be written: DataError" in caplog.text


def test_the_summary_says_what_was_chosen_how_sure_it_is_and_what_to_change(run: Path) -> None:
    answers = df.Report(run).summary
    assert answers["What was chosen?"].startswith(f"{NICE} chose 2 times, the last time 9 of 60 rows (15.0%).")
    assert "All selections together: " in answers["What was chosen?"]
    assert answers["Can it be trusted?"].startswith(
        "In part. Reliability of the targets (what the rows are chosen for), of 1: 0.80 at"
    )
    assert "More targets" in answers["What would I change?"]
    assert "0.20" in answers["What would I change?"]


def test_a_group_whose_rows_are_used_up_is_said_with_what_to_change(tmp_path: Path) -> None:
    """Each selection takes ten rows: all six of the first task and four of others."""
    dataset = tiny_dataset(60)
    tasks = np.array(group_names(dataset.samples, "task"))
    first, others = np.flatnonzero(tasks == tasks[0]), np.flatnonzero(tasks != tasks[0])
    for step in (2, 5):
        scores = np.zeros(60)
        chosen = np.concatenate([first, others[step : step + 4]])
        scores[first] = 1.0
        facts = {"reliability": {"targets": 0.1}}
        write_selection(
            tmp_path / "selections" / f"step-{step}.parquet",
            Selection(chosen, scores, "nice", step, 1, facts),
            dataset,
            "task",
        )
    answers = df.Report(tmp_path).summary
    share = len(first) / (len(first) + 4)
    assert f"{share:.0%} of the selected rows are of {tasks[0]} (task)" in answers["What was chosen?"]
    assert "and 100% of the rows that it has at each selection" in answers["What was chosen?"]
    assert f"Fewer rows a selection, or more rows of task {tasks[0]}" in answers["What would I change?"]
    assert f"{1 - share:.0%} of the selected are of other groups" in answers["What would I change?"]
    assert "Such a direction prefers some rows, too" in answers["Can it be trusted?"]


@pytest.mark.parametrize(
    ("scores", "chosen", "said"),
    [
        (lambda tokens: tokens, lambda tokens: tokens > 40, "Scores rise strongly with length"),
        (lambda tokens: -tokens, lambda tokens: tokens < 20, "Scores fall strongly with length"),
        (
            lambda tokens: np.abs(tokens - 25),
            lambda tokens: tokens < 6,
            "no trend); that the selected are shorter comes of something else",
        ),
        (lambda tokens: np.abs(tokens - 25), lambda tokens: np.abs(tokens - 25) > 22, "; 0: no trend)."),
    ],
)
def test_what_length_has_to_do_with_it_is_said(tmp_path: Path, scores: Any, chosen: Any, said: str) -> None:
    tokens = np.tile(np.arange(1, 50), 3)
    path = tmp_path / "selections" / "step-1.parquet"
    path.parent.mkdir()
    columns = {"tokens": tokens, "score": scores(tokens).astype(float), "chosen": chosen(tokens)}
    metadata = {b"dataflex": json.dumps({"selector": "x", "report": {}}).encode()}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    (found,) = [section for section in lay_out(read_report(tmp_path)).sections if section.key == "tokens"]
    assert said in found.answer


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"metric": "token_f1"}, " by metric (token_f1)"),
        (
            {"metric": [{"metric": "numeric", "weight": 2.0}, {"metric": "json_equal"}]},
            " by metric (numeric, json_equal)",
        ),
        ({"model_name": "judge-4", "api_key": None}, " by metric (judge-4)"),
        ({}, " by metric"),
        (None, ""),
    ],
)
def test_what_rewards_is_named(run: Path, config: dict[str, object] | None, said: str) -> None:
    drawn = {"answers": {}, "rewards": None}
    scored = {"answers": {}, "rewards": {"name": "metric", "config": config, "samples": "0"}}
    entries = {"0": drawn} if config is None else {"0": drawn, "1": scored}
    write_json(run / "rollouts" / "step-2.meta.json", entries)
    (found,) = [section for section in lay_out(read_report(run)).sections if section.key == "rewards"]
    assert found.answer == f"The mean reward of 3 prompts{said} is 0.5."


def test_a_reward_that_may_be_another_one_is_not_named(run: Path) -> None:
    entries = {str(n): {"rewards": {"name": name, "config": {}}} for n, name in enumerate(("metric", "api"))}
    write_json(run / "rollouts" / "step-2.meta.json", entries)
    assert read_report(run).answers[2].reward == ""


def test_tables_hold_numbers_for_programs(run: Path) -> None:
    report = df.Report(run)
    by_task = report.to_pandas("by task")
    assert by_task["rows"].sum() == 60
    assert by_task["selected"].sum() == 18
    assert (by_task["lift"] == by_task["share of selected"] / by_task["share"]).all()
    rewards = report.tables["rewards"].to_pylist()
    assert rewards == [{"step": 2, "prompts": 3, "answers": 6, "mean reward": 0.5, "never": 1, "always": 1}]
    answers = report.to_pandas("answers")
    assert answers[answers["place"] == "best"]["reward"].tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(DataError, match="no table 'nothing'"):
        report.to_pandas("nothing")


def test_a_notebook_shows_the_page_shut_in(run: Path) -> None:
    shown = df.Report(run)._repr_html_()
    page = Page(shown)
    ((tag, attributes),) = page.elements
    assert (tag, attributes["sandbox"]) == ("iframe", "")
    assert "<h1>" in str(attributes["srcdoc"])
    assert repr(df.Report(run)).startswith(f"Report({run.name}: {NICE} chose 2 times")


def test_the_command_prints_json_with_the_meaning_of_every_number(run: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(run), "--json"], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["finished"] is False
    columns = {column["name"]: column["meaning"] for column in found["tables"]["by task"]["columns"]}
    assert "random choice" in columns["lift"]
    assert (run / "report.html").is_file()


def test_a_subset_has_a_report_by_its_folder_and_by_its_files(tmp_path: Path) -> None:
    scores = tmp_path / "subset.scores.parquet"
    write_selection(scores, Selection(np.array([1]), np.arange(4.0), "less", 7, 1), tiny_dataset(4), "task")
    for place in (tmp_path, scores, tmp_path / "subset.jsonl"):
        report = df.Report(place)
        assert report.read.page == tmp_path / "subset.report.html"
        assert report.read.selections[0].step == 7
    write_json(tmp_path / "all_results.json", {})
    assert df.Report(scores).read.name == "subset"
    (tmp_path / "all_results.json").unlink()
    scores.with_name("other.scores.parquet").write_bytes(scores.read_bytes())
    with pytest.raises(DataError, match="2 subsets"):
        df.Report(tmp_path)


def test_groups_of_data_without_tasks_are_the_words_and_scripts_of_the_rows(tmp_path: Path) -> None:
    russian = tiny_dataset(2)
    examples = [replace(one, sample=replace(one.sample, metadata={})) for one in tiny_dataset(80, seed=5)]
    examples += [
        replace(one, sample=replace(one.sample, metadata={}, messages=({"role": "user", "content": "что это такое"},)))
        for one in russian
    ]
    chosen = Selection(np.array([80]), np.arange(82.0), "x", 1, 1)
    write_selection(tmp_path / "selections" / "step-1.parquet", chosen, TokenizedDataset(examples), "task")
    report = df.Report(tmp_path)
    scripts = report.to_pandas("by script").set_index("script")["rows"].to_dict()
    assert scripts == {"Latin": 80, "Cyrillic": 2}
    words = report.to_pandas("by words")
    assert words["rows"].sum() == 82
    assert len(words) > 2


def test_a_run_rewrites_its_page_after_each_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []

    def noted(output_dir: Path) -> Pages | None:
        pages = refresh_page(output_dir)
        states.extend(re.findall(r'class="state">([^<]*)', (output_dir / "report.html").read_text(encoding="utf-8")))
        return pages

    monkeypatch.setattr("dataflex.training.trainer.refresh_page", noted)
    tiny_trainer(tmp_path).train()
    rate = "Learning rate 0.01."
    assert states == [f"A run that goes on: step {step} of 8. {rate}" for step in (2, 5)]
    assert f"A finished run. {rate}" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "GiB of memory" in df.Report(tmp_path).summary["What did it cost?"]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"**What was chosen?** {NICE} chose 2 times" in card


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            "model_name_or_path: /models/SmolLM2\nfinetuning_type: lora\ndataset: [pile, files/more.jsonl]\n"
            "eval_dataset: target\nlearning_rate: 2.0e-4",
            "SmolLM2 (lora) on pile, more.jsonl towards target, learning rate 0.0002.",
        ),
        ("dataset: null\nlearning_rate: 1.0e-3", "Learning rate 0.001."),
        ("- a list", ""),
    ],
)
def test_a_page_names_model_rows_and_learning_rate(tmp_path: Path, settings: str, text: str) -> None:
    (tmp_path / "trainer_log.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "config.yaml").write_text(settings, encoding="utf-8")
    assert made_of(read_report(tmp_path)) == text
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot read .*config\.yaml"):
        read_report(tmp_path)


HOSTILE = [
    "<script>alert(1)</script>",
    "</svg><img src=x onerror=alert(2)>",
    r"$\frac{1}{2}$",
    "\x1b[2J",
    "\u202e\u0645\u0631\u062d",
    "{{ 7 * 7 }}{% if x %}",
    "\ud800😀",
    "a" * 100_000,
]


@pytest.mark.parametrize(("n", "rounds"), [(20_000, 2), pytest.param(200_000, 4, marks=pytest.mark.exhaustive)])
def test_a_large_run_of_hostile_texts_is_a_small_page_of_text(tmp_path: Path, n: int, rounds: int) -> None:
    rng = np.random.default_rng()
    tasks = [f"{HOSTILE[number % 6]}{number}" for number in range(2_000)]
    for step in range(1, rounds + 1):
        scores = rng.normal(size=n)
        excerpts = [
            {"place": "best", "id": text[:300], "prompt": text[:300], "answer": text[:300], "score": 1.0}
            for text in HOSTILE
        ]
        facts = {"selector": HOSTILE[0], "report": {HOSTILE[1]: HOSTILE[2]}, "excerpts": excerpts}
        table = pa.table(
            {
                "id": [str(number) for number in range(n)],
                "task": rng.permutation(np.repeat(tasks, n // len(tasks))),
                "tokens": rng.integers(1, 5_000, n),
                "score": scores,
                "chosen": scores > 2,
            }
        ).replace_schema_metadata({b"dataflex": json.dumps(facts).encode()})
        path = tmp_path / "selections" / f"step-{step}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
    text = df.Report(tmp_path).write().read_text(encoding="utf-8")
    assert len(text.encode()) < 500_000
    assert {tag for tag, _ in Page(text).elements} & {"script", "img"} == set()
    assert not {"\x1b", "\u202e"} & set(text)
    assert "{{ 7 * 7 }}" in text
    assert r"$\frac{1}{2}$" in text
    assert "1,960 more" in text
    assert re.search(r"0\.\d% of the selected rows are of", text)


def test_overlap_and_rank_correlation_are_what_they_are_by_hand() -> None:
    assert overlap(np.array([True, True, False]), np.array([False, True, True])) == 0.5
    assert overlap(np.array([True]), np.array([True, False])) is None
    one, other = np.array([1.0, 2.0, 2.0, 4.0, np.nan, 9.0]), np.array([10.0, 30.0, 20.0, 20.0, 5.0, np.inf])
    # ranks 0, 1.5, 1.5, 3 and 0, 3, 1.5, 1.5: deviations -1.5 0 0 1.5 and -1.5 1.5 0 0, each of size sqrt(4.5)
    assert rank_correlation(one, other) == pytest.approx(2.25 / 4.5)
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert rank_correlation(np.ones(3), np.arange(3.0)) is None
