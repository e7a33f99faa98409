from __future__ import annotations

import html
import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.markdown import Markdown

from dataflex.cli.app import _logging
from dataflex.errors import ConfigError, DataError
from dataflex.utils.console import print_json, print_table
from dataflex.utils.messages import shown as shown_value
from dataflex.utils.progress import progress_bar
from dataflex.utils.shown import listed, one_record, quoted, shown
from dataflex.visible import visible

CLEAR = "\x1b[2J"
HOSTILE = f"{CLEAR}[/red] ‮evil‬ \x9b31m\r\n| `x` <script>alert(1)</script> [link](http://evil) \ud800"
any_text = st.text(st.characters(exclude_categories=()), max_size=60)


def acts(text: str) -> bool:
    """Whether a terminal would do something else than print letters."""
    return any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or char in "‮‬⁦⁩" for char in text)


@given(any_text)
def test_no_character_acts_and_what_is_shown_stays_as_it_is(text):
    once = visible(text)
    assert not acts(once)
    assert visible(once) == once
    once.encode()
    assert not acts(visible(text, lines=True).replace("\n", "").replace("\t", ""))


@pytest.mark.parametrize("text", ["plain", "Zwölf Übungen", "日本語", "می‌خواهم", "👩‍👩‍👧", "क्‍ष", "e\u0301"])
def test_words_of_all_scripts_stay_as_they_are(text):
    assert shown(text) == text
    assert shown(text, target="html") == text


def test_controls_and_overrides_are_written_as_python_writes_them():
    assert shown("a\x1b[1m\r\n\x9b‮\ud800\U000e0041") == r"a\x1b[1m\r\n\x9b\u202e\ud800\U000e0041"
    assert shown("a\n\tb\r", lines=True) == "a\n\tb\\r"
    assert shown(7) == "7"


@given(any_text, st.integers(3, 40))
def test_a_limit_bounds_what_is_shown(text, limit):
    found = shown(text, limit)
    assert len(found) <= limit
    assert found == shown(text) or found.endswith("...")


def test_a_long_text_is_not_looked_at_beyond_its_limit():
    assert shown("\x1b" * 100_000_000, 10) == r"\x1b\x1..."


@given(st.dictionaries(any_text, any_text))
def test_json_means_the_same_and_holds_nothing_that_acts(value):
    text = shown(json.dumps(value, indent=2, ensure_ascii=False), target="json")
    assert json.loads(text) == value
    assert not acts(text.replace("\n", ""))


@given(any_text)
def test_html_is_text(text):
    found = shown(text, target="html")
    assert not set('<>"') & set(found)
    assert html.unescape(found) == shown(text)


@pytest.mark.parametrize(
    "text",
    [
        "**b**",
        "_i_",
        "`c`",
        "[l](http://e)",
        "![i](x)",
        "<b>",
        "<http://e>",
        "&lt;",
        "~~s~~",
        "a|b",
        "\\*",
        "snake_case",
    ],
)
def test_markdown_is_text(text):
    """The parser finds nothing in it but text, and the text is what was given."""
    tokens = Markdown(shown(text, target="markdown")).parsed
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {child.type for child in tokens[1].children or []} <= {"text", "text_special"}
    assert "".join(child.content for child in tokens[1].children or []) == text


@pytest.mark.parametrize("text", ["http://evil.example", "www.evil.example", "me@evil.example", "@someone"])
def test_markdown_makes_no_link_of_a_bare_address(text):
    assert "\\" in shown(text, target="markdown")


def test_errors_cannot_act_wherever_they_are_printed():
    error = DataError(f"row {HOSTILE}", hint=HOSTILE)
    assert not acts(str(error).replace("\n", ""))
    assert not acts(error.message.replace("\n", ""))
    assert not acts((error.hint or "").replace("\n", ""))
    assert ConfigError([CLEAR]).problems == [r"\x1b[2J"]
    assert CLEAR not in str(ConfigError([CLEAR], hint=CLEAR))


def test_a_log_record_cannot_pass_for_another_one(capsys):
    with _logging(logging.INFO):
        logging.getLogger("dataflex.data").warning("%s", f"id {CLEAR}x\nerror: run this")
    assert capsys.readouterr().err == "warning: id \\x1b[2Jx\n  error: run this\n"
    assert one_record("a\nb") == "a\n  b"


def test_tables_and_json_on_the_terminal(capsys):
    print_table(["name", "n"], [["日本", "1"], [CLEAR, "2"], ["a\nb", "3"]])
    print_json({"a": CLEAR + "\x9b"})
    printed = capsys.readouterr().out
    assert printed.splitlines()[:4] == ["name     n", "日本     1", r"\x1b[2J  2", r"a\nb     3"]
    assert r"\u001b[2J\u009b" in printed


def test_a_bar_says_what_it_does_without_acting(capsys):
    with progress_bar(2, f"embedding {CLEAR}") as bar:
        bar.update(2)
    assert CLEAR not in capsys.readouterr().err


def test_names_in_a_message_are_few_and_short():
    assert listed([CLEAR, "b"]) == r"\x1b[2J, b"
    assert listed(map(str, range(12)), 3) == "0, 1, 2, ..."
    assert len(listed(["x" * 1000])) == 80


def test_a_wrong_value_is_quoted_short():
    assert quoted("a\n") == r"'a\n'"
    assert len(quoted("x" * 1000)) == 80
    assert quoted(10**5000) == "a huge int"
    assert shown_value("‮") == r"'\u202e'"
