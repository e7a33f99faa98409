"""Reading a chat completion: what a judge said to its end, or what the server complains about."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dataflex.rewards.wire import HttpReply

_COMPLETE = frozenset({"stop", "eos", "eos_token", "end_turn", "stop_sequence"})
"""Names, as servers have them, of the one reason to finish that leaves a reply whole."""


def completion(reply: HttpReply) -> Mapping[str, Any]:
    """The body of a reply that is a chat completion, with at least one choice that has a message.

    Raises:
        ValueError: It is something else.
    """
    body = reply.json
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ValueError("no choices")
    if not all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices):
        raise ValueError("a choice without a message")
    return dict(body)


def usage(body: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the prompt and of the reply, as the server counts what it bills; 0 where it does not say."""
    said = body.get("usage")
    counts = [said.get(name) if isinstance(said, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if type(count) is int and count > 0 else 0 for count in counts)
    return read, written


def judgement(body: Mapping[str, Any], parse: Callable[[str], float | None]) -> float | str:
    """The score that all choices of a completion have, or what they are in its place.

    A number counts only if the judge finished it: "0.9" that was cut may have been "0.95", and what a filter took away
    may have taken it back.
    """
    found = [_choice(choice, parse) for choice in body["choices"]]
    problem = next((score for score in found if isinstance(score, str)), None)
    if problem is not None:
        return problem
    return found[0] if len(set(found)) == 1 else f"{len(found)} choices that do not agree: {found}"


def _choice(choice: Mapping[str, Any], parse: Callable[[str], float | None]) -> float | str:
    message, finished = choice["message"], choice.get("finish_reason")
    content = message.get("content")
    if not isinstance(finished, str) or finished.lower() not in _COMPLETE:
        return f"not finished (finish_reason: {finished!r}): {content!r}"
    if message.get("refusal") or message.get("tool_calls"):
        return f"a {'refusal' if message.get('refusal') else 'tool call'}: {content!r}"
    if not isinstance(content, str) or not content.strip():
        return "empty"
    score = parse(content)
    return repr(content) if score is None else score


def explanation(reply: HttpReply) -> tuple[str, Any]:
    """What a server says about a request that it refuses, and its code of the error, if it has one."""
    try:
        body = reply.json
    except ValueError:
        return reply.text, None
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return str(error), None
    return str(error.get("message", error)), error.get("code")
