"""Whatever a server makes of a key, nothing of it is shown."""

from __future__ import annotations

import html
import json
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import quote

import pytest

from dataflex.rewards.redaction import SHOWN_CHARACTERS, key_problems, redacted

KEYS = ["sk-planted+7f/3c=91b", r"""sk-"plan'ted\back\\slash\n<&%>91b""", "planted", r"\planted\\"]
WHOLE: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "upper case": str.upper,
    "a literal": repr,
    "bytes": lambda key: repr(key.encode()),
    "JSON": json.dumps,
    "JSON in JSON": lambda key: json.dumps(json.dumps(key)),
    "a URL": lambda key: quote(key, safe=""),
    "a URL in small letters": lambda key: "".join(f"%{ord(c):02x}" for c in key),
    "a URL in a URL": lambda key: quote(quote(key, safe=""), safe=""),
    "a page": html.escape,
    "a page's numbers": lambda key: "".join(f"&#{ord(c)};" for c in key),
    "a page's hexadecimal numbers": lambda key: "".join(f"&#x{ord(c):X};" for c in key),
    "\\u": lambda key: "".join(f"\\u{ord(c):04X}" for c in key),
    "\\x": lambda key: "".join(f"\\x{ord(c):02x}" for c in key),
    "octal": lambda key: "".join(f"\\{ord(c):03o}" for c in key),
    "hexadecimal": lambda key: key.encode().hex(),
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("spelling", WHOLE.values(), ids=WHOLE)
def test_a_key_is_found_in_every_spelling(spelling: Callable[[str], str], key: str) -> None:
    text = redacted(f"no access for {spelling(key)}, again: {spelling(key)}.", key)
    assert text.count("(redacted)") == 2
    # Quotation marks around a literal, and the letter before it, stay.
    rest = text.replace("(redacted)", "").translate(str.maketrans("", "", "'\"\\b;&quot"))
    assert rest.split() == "no access for , again: .".translate(str.maketrans("", "", "b;&quot")).split()


@pytest.mark.parametrize("key", KEYS[:2])
@pytest.mark.parametrize("before", ["", "u:", "id:", "Bearer "])
@pytest.mark.parametrize("encode", [b64encode, urlsafe_b64encode])
def test_base64_of_a_key_is_found_wherever_it_begins(encode: Callable[[bytes], bytes], before: str, key: str) -> None:
    text = redacted(f"Basic {encode((before + key).encode()).decode()} was refused", key)
    assert text.endswith("(redacted) was refused")
    kept = encode(before.encode()).decode().rstrip("=")
    assert len(text) <= len(f"Basic {kept}(redacted) was refused")


@pytest.mark.parametrize("shown", ["sk-plan************91b", "sk-p...91b", "sk-pl…b", "****91b", "sk-planted+***"])
def test_what_a_server_shows_of_a_key_is_not_shown(shown: str) -> None:
    text = redacted(f"Incorrect API key: {shown}. See", KEYS[0])
    assert text.replace("*", "").startswith("Incorrect API key: (redacted)")
    assert "91b" not in text


def test_a_text_is_shown_short_and_on_one_line() -> None:
    assert redacted("a\n\tb", None) == "a b"
    assert redacted("x" * 1000, "key") == "x" * SHOWN_CHARACTERS + "..."
    assert redacted(" " * 100_000 + "key" * 1000, "key").replace("(redacted)", "").strip(".(redact") == ""


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("piece", ["\\", "&amp;", "%25", "sk-", "*", ".", "\\u00", "a", "&#000", "sk-\\\\", "cGxh"])
def test_no_text_takes_long(piece: str, key: str) -> None:
    start = time.monotonic()
    redacted(piece * (100_000 // len(piece)), key)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("key", "problems"),
    [
        ("sk-4f9a", []),
        ("sk-'\"\\%", []),
        ("one\ntwo", ["a line break"]),
        ("one\r\ntwo", ["a line break"]),
        ("one two", ["white space"]),
        ("ключ", ["a character that is not printable ASCII"]),
        ("a\x00b", ["a character that is not printable ASCII"]),
        ("é\nb", ["a line break", "a character that is not printable ASCII"]),
    ],
)
def test_what_no_header_can_carry_is_named(key: str, problems: list[str]) -> None:
    assert key_problems(key) == problems
