from __future__ import annotations

import string
import time
from collections import Counter

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from dataflex.rewards.text import Normalisation, comparable, exact_match, regex_match, rouge_l, token_f1, words

PROSE = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
WORDS = ("the", "a", "cat,", "sat.", "on", "mat", "red")
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
BOOLS = st.booleans()
RULES = st.builds(Normalisation, BOOLS, BOOLS, BOOLS)


def squad_f1(prediction: str, reference: str) -> float:
    """SQuAD's F1 written from its definition, for lower-case ASCII words."""

    def tokens(text: str) -> list[str]:
        kept = "".join(character for character in text.lower() if character not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    found, wanted = tokens(prediction), tokens(reference)
    common = sum((Counter(found) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("Paris", "paris"),
        ("  The  Eiffel Tower. ", "Eiffel tower"),
        ("**Paris**", "Paris"),
        ("U.S.A.", "USA"),
        ("don't", "don’t"),  # noqa: RUF001
        ("well-known", "well known"),
        ("\uff30\uff41\uff52\uff49\uff53", "Paris"),  # full-width letters
        ("STRASSE", "straße"),
        ("A", "a"),
        ("?", "?"),
        ("−5", "-5"),  # noqa: RUF001
        ("", ""),
    ],
)
def test_texts_that_mean_the_same_are_equal(prediction: str, reference: str) -> None:
    assert exact_match(prediction, reference) == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("London", "Paris"),
        ("", "Paris"),
        ("...", "Paris"),
        ("the", "A"),
        ("the", "the cat"),
        ("-5", "5"),
        ("3.14", "314"),
        ("C#", "C"),
        ("C++", "C"),
        ("50%", "50"),
        ("$5", "€5"),
        ("Paris is nice", "Paris"),
    ],
)
def test_texts_that_differ_are_not_equal(prediction: str, reference: str) -> None:
    assert exact_match(prediction, reference) == 0.0


@pytest.mark.parametrize(
    ("rules", "prediction", "reference"),
    [
        (Normalisation(casefold=False), "paris", "Paris"),
        (Normalisation(strip_punctuation=False), "Paris.", "Paris"),
        (Normalisation(strip_articles=False), "the cat", "cat"),
    ],
)
def test_each_rule_can_be_switched_off(rules: Normalisation, prediction: str, reference: str) -> None:
    assert exact_match(prediction, reference) == 1.0
    assert exact_match(prediction, reference, rules) == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The capital of France is Paris.", "Paris", 1.0),
        ("It is New York City", "new york", 1.0),
        ("It is York, New", "new york", 0.0),
        ("comparison", "Paris", 0.0),
        ("Paris", "Paris, France", 0.0),
        ("The answer: A", "A", 1.0),
        ("答案是巴黎。", "巴黎", 1.0),
        ("答案是黎巴嫩。", "巴黎", 0.0),
        ("", "Paris", 0.0),
    ],
)
def test_contains_finds_whole_word_phrases(prediction: str, reference: str, expected: float) -> None:
    assert exact_match(prediction, reference, contains=True) == expected


@given(PROSE, PROSE, RULES, BOOLS)
def test_exact_match_is_zero_or_one_and_equal_texts_match(a: str, b: str, rules: Normalisation, contains: bool) -> None:
    assert exact_match(a, b, rules, contains=contains) in (0.0, 1.0)
    assert exact_match(a, a, rules, contains=contains) == 1.0
    assert exact_match(a, b, rules) == exact_match(b, a, rules)


@given(PROSE, PROSE, RULES)
def test_normalisation_never_empties_a_text(a: str, b: str, rules: Normalisation) -> None:
    first, second = comparable(a, b, rules)
    assert bool(first) == bool(comparable(a, a, Normalisation(False, False, False))[0])
    assert (second, first) == comparable(b, a, rules)


@given(PROSE, PROSE, RULES)
def test_token_f1_is_a_symmetric_share(a: str, b: str, rules: Normalisation) -> None:
    assert 0.0 <= token_f1(a, b, rules) <= 1.0
    assert token_f1(a, b, rules) == token_f1(b, a, rules)
    assert token_f1(a, a, rules) == 1.0


@given(
    *[st.lists(st.sampled_from(["the", "a", "cat,", "sat.", "on", "mat", "red"]), min_size=1, max_size=8).map(" ".join)]
    * 2
)
def test_token_f1_is_that_of_squad_where_words_are_left(a: str, b: str) -> None:
    if all(set(text.split()) - {"the", "a"} for text in (a, b)):
        assert token_f1(a, b) == pytest.approx(squad_f1(a, b))


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat", "a cat sat down", 0.8),
        ("the", "the cat", 0.0),
        ("dog", "cat", 0.0),
        ("北京大学", "北京", 2 / 3),
        ("ベルリン市", "ベルリン", 8 / 9),
    ],
)
def test_token_f1_values(prediction: str, reference: str, expected: float) -> None:
    assert token_f1(prediction, reference) == pytest.approx(expected)


def test_words_are_characters_where_no_spaces_are_written() -> None:
    assert words("GPT很好 ok") == ["GPT", "很", "好", "ok"]
    assert words("서울 도시") == ["서울", "도시"]


ANSWER = regex.compile(r"answer: (?P<it>\w+)")


@pytest.mark.parametrize(
    ("prediction", "reference", "take", "expected"),
    [
        ("answer: Rome, no, answer: Paris", "paris", "last", 1.0),
        ("answer: Rome, no, answer: Paris", "paris", "first", 0.0),
        ("Paris", "paris", "last", 0.0),
    ],
)
def test_regex_compares_a_group_with_the_reference(prediction: str, reference: str, take: str, expected: float) -> None:
    assert regex_match(prediction, ANSWER, group="it", reference=reference, take=take) == expected  # type: ignore[arg-type]


def test_regex_without_a_group_asks_for_the_pattern_only() -> None:
    assert regex_match("so, answer: 3", ANSWER) == 1.0
    assert regex_match("3", ANSWER) == 0.0


def test_a_group_that_took_no_part_is_no_match() -> None:
    assert regex_match("b", regex.compile("(a)|b"), group=1, reference="b") == 0.0


def test_a_catastrophic_pattern_is_stopped() -> None:
    start = time.perf_counter()
    with pytest.raises(TimeoutError):
        regex_match("a" * 200 + "b", regex.compile(r"^(a|a)*$"), timeout=0.05)
    assert time.perf_counter() - start < 5


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """The textbook recurrence."""
    row = [0] * (len(second) + 1)
    for a in first:
        before = row[:]
        for column, b in enumerate(second, start=1):
            row[column] = before[column - 1] + 1 if a == b else max(before[column], row[column - 1])
    return row[-1]


@given(*[st.lists(st.sampled_from(["the", "cat", "dog", "sat", "是", "b"]), max_size=12)] * 2)
def test_rouge_l_follows_its_definition(first: list[str], second: list[str]) -> None:
    found = rouge_l(" ".join(first), " ".join(second))
    if not first or not second:
        assert found == float(first == second)
        return
    common = longest_common_subsequence(first, second)
    precision, recall = common / len(first), common / len(second)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert found == pytest.approx(expected)


def test_rouge_l_of_prose() -> None:
    assert rouge_l("The cat sat.", "the CAT sat!") == 1.0
    assert rouge_l("法国的首都是巴黎", "巴黎是法国的首都") == pytest.approx(2 * 5 / 16)
    assert rouge_l("...", "!!!") == 0.0
    assert rouge_l("", "x") == 0.0
