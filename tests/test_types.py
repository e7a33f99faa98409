"""What of a conversation is asked, and what is the reference answer."""

from __future__ import annotations

import pytest

from dataflex.types import Message, Sample

ASK: Message = {"role": "user", "content": "What is the capital of France?"}
ANSWER: Message = {"role": "assistant", "content": "Paris"}
AGAIN: Message = {"role": "user", "content": "And of Peru?"}
CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "capital", "arguments": {}}}],
}
RESULT: Message = {"role": "tool", "content": "Lima"}


@pytest.mark.parametrize(
    ("messages", "asked", "reference"),
    [
        ((ASK, ANSWER), 1, "Paris"),
        ((ASK, ANSWER, AGAIN, ANSWER), 3, "Paris"),
        ((ASK, ANSWER, AGAIN), 3, None),
        ((ASK, CALL, RESULT), 3, None),
        ((ASK, CALL), 1, None),
        ((ASK, CALL | {"content": "One moment."}), 1, "One moment."),
        ((ASK,), 1, None),
        ((), 0, None),
    ],
)
def test_the_prompt_is_all_turns_but_an_answer_at_the_end(
    messages: tuple[Message, ...], asked: int, reference: str | None
) -> None:
    sample = Sample("id", 0, messages)
    assert (sample.prompt, sample.reference) == (messages[:asked], reference)
