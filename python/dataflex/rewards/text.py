"""Comparing an answer's words with a reference's: normalisation, exact match, contained phrase, F1, ROUGE-L, regex.

Normalisation follows SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250, official evaluation script): lower case, no
punctuation, no articles, single spaces. It deviates where that script would call different answers equal or equal
answers different:

- text is NFKC-normalised, and case-folded in place of lower-cased;
- a sign, a decimal point or a comma inside a number stays (-5 is not 5, 3.14 is not 314), as do ``#`` and ``%`` after
  a word (C# is not C); apostrophes and full stops go, other punctuation becomes a space (well-known = well known);
- symbols (currency, mathematics) are not punctuation;
- what would leave nothing of either text is not stripped: the answer "A" is a letter, not an article;
- scripts that write without spaces are compared by character.

Functions take plain text and return a number in [0, 1].
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import regex

Take = Literal["first", "last"]

_PUNCTUATION = regex.compile(
    r"(?P<keep>(?<=\d)[.,](?=\d)|(?<!\w)-(?=[.,]?\d)|(?<=\w)[#%](?!\w))|(?P<drop>['\u2019.])|\p{P}"
)
_ARTICLE = regex.compile(r"\b(?:a|an|the)\b", regex.IGNORECASE)
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[^\s{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What two texts may differ in and still be equal; white space at least, Unicode compatibility forms too."""

    casefold: bool = True
    strip_punctuation: bool = True
    strip_articles: bool = True


DEFAULT = Normalisation()


def comparable(first: str, second: str, rules: Normalisation = DEFAULT) -> tuple[str, str]:
    """Both texts normalised alike: a rule that would leave one of them empty is applied to neither."""
    forms = _plain(first, rules), _plain(second, rules)
    for applies, strip in _strippers(rules):
        stripped = strip(forms[0]), strip(forms[1])
        if applies and all(stripped):
            forms = stripped
    return forms


def exact_match(prediction: str, reference: str, rules: Normalisation = DEFAULT, *, contains: bool = False) -> float:
    """1.0 if the normalised texts are equal, else 0.0 (SQuAD's EM, with the deviations above).

    Args:
        prediction: The answer.
        reference: What is right.
        rules: What the texts may differ in.
        contains: Also 1.0 if the reference is a phrase of whole words inside the answer. An answer that lists every
            candidate is right too by this rule: use it for short answers only.
    """
    answer, wanted = comparable(prediction, reference, rules)
    if answer == wanted:
        return 1.0
    return float(contains and _has_phrase(words(answer), words(wanted)))


def token_f1(prediction: str, reference: str, rules: Normalisation = DEFAULT) -> float:
    """SQuAD's F1: the harmonic mean of precision and recall over the bags of words, symmetric in its texts.

    Where normalisation leaves no words of one text, the score is 1.0 if the texts are equal without stripping, else
    0.0.
    """
    first, second = (Counter(words(_stripped(text, rules))) for text in (prediction, reference))
    if not first or not second:
        return float(_plain(prediction, rules) == _plain(reference, rules))
    common = (first & second).total()
    return 2 * common / (first.total() + second.total())


def rouge_l(prediction: str, reference: str, rules: Normalisation = DEFAULT) -> float:
    """ROUGE-L (Lin 2004, aclanthology.org/W04-1013): F1 of the longest common subsequence of words, not stemmed.

    Articles count whatever ``rules`` say. rapidfuzz finds the subsequence; it is used in place of the package
    rouge-score, which knows no letters but a-z and calls two equal Chinese texts different.
    """
    from rapidfuzz.distance import LCSseq

    rules = replace(rules, strip_articles=False)
    first, second = (words(_stripped(text, rules)) for text in (prediction, reference))
    if not first or not second:
        return float(_plain(prediction, rules) == _plain(reference, rules))
    common: int = LCSseq.similarity(first, second)
    return 2 * common / (len(first) + len(second))


def regex_match(
    prediction: str,
    pattern: regex.Pattern[str],
    *,
    group: int | str | None = None,
    reference: str | None = None,
    take: Take = "last",
    timeout: float = 1.0,
    rules: Normalisation = DEFAULT,
) -> float:
    """1.0 if the pattern is found in the answer and, with ``group``, that group equals the reference.

    Args:
        prediction: The answer.
        pattern: Compiled by the ``regex`` package, which bounds the time of a search.
        group: Number or name of the group that is compared with ``reference``; None: finding the pattern is enough.
        reference: What the group must be equal to after normalisation.
        take: Which match counts if there are several.
        timeout: Longest search in seconds; patterns can take exponential time.
        rules: What group and reference may differ in.

    Raises:
        TimeoutError: The search took longer than ``timeout``.
    """
    found: Any = None
    for match in pattern.finditer(prediction, timeout=timeout):
        found = match
        if take == "first":
            break
    if found is None or group is None:
        return float(found is not None)
    captured = found[group]
    return 0.0 if captured is None or reference is None else exact_match(captured, reference, rules)


def words(text: str) -> list[str]:
    """Words of a text; in scripts without spaces every character is one."""
    return _WORD.findall(text)


def _plain(text: str, rules: Normalisation) -> str:
    text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-")
    return " ".join((text.casefold() if rules.casefold else text).split())


def _stripped(text: str, rules: Normalisation) -> str:
    text = _plain(text, rules)
    for applies, strip in _strippers(rules):
        text = strip(text) if applies else text
    return text


def _strippers(rules: Normalisation) -> tuple[tuple[bool, Callable[[str], str]], ...]:
    return (rules.strip_punctuation, _without_punctuation), (rules.strip_articles, _without_articles)


def _without_punctuation(text: str) -> str:
    def replacement(match: regex.Match[str]) -> str:
        if match["keep"]:
            return match[0]
        return "" if match["drop"] else " "

    return " ".join(_PUNCTUATION.sub(replacement, text).split())


def _without_articles(text: str) -> str:
    return " ".join(_ARTICLE.sub(" ", text).split())


def _has_phrase(text: list[str], phrase: list[str]) -> bool:
    length = len(phrase)
    return bool(phrase) and any(text[start : start + length] == phrase for start in range(len(text) - length + 1))
