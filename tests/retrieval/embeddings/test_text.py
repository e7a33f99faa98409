from __future__ import annotations

from typing import Any

import pytest

from dataflex.data import load_samples
from dataflex.errors import ConfigError, DataError
from dataflex.retrieval.embeddings.text import TextTemplate
from dataflex.types import Sample


def sample(row: dict[str, Any]) -> Sample:
    return load_samples([row])[0]


ALPACA = sample(
    {"id": "a", "instruction": "Sort.", "input": "2, 1", "output": " 1, 2 ", "system": "Be kind.", "t": "x"}
)


def test_the_default_joins_instruction_input_and_output_without_the_system_turn() -> None:
    assert TextTemplate().render(ALPACA) == "Sort.\n2, 1\n 1, 2"


def test_the_default_renders_the_turns_of_a_conversation() -> None:
    turns = [("system", "S"), ("human", "Hi"), ("gpt", "Hello"), ("human", "Bye"), ("gpt", "Goodbye")]
    row = sample({"conversations": [{"from": role, "value": text} for role, text in turns]})
    assert TextTemplate().render(row) == "user: Hi\nassistant: Hello\nuser: Bye\nassistant: Goodbye"


def test_function_calls_are_part_of_the_text() -> None:
    call = '{"name": "weather", "arguments": {"city": "Röm"}}'
    turns = [("human", "Weather?"), ("function_call", call), ("observation", "Sun"), ("gpt", "Sunny")]
    row = sample({"conversations": [{"from": role, "value": text} for role, text in turns]})
    assert f"assistant: {call}\ntool: Sun\n" in TextTemplate().render(row)


def test_a_template_sees_prompt_response_system_and_metadata() -> None:
    text = TextTemplate("{{ system }}|{{ prompt }}|{{ response }}|{{ metadata.t }}|{{ id }}|{{ messages | length }}")
    assert text.render(ALPACA) == "Be kind.|Sort.\n2, 1| 1, 2 |x|a|3"


def test_a_query_without_an_answer_has_an_empty_response() -> None:
    row = sample({"messages": [{"role": "user", "content": "Why?"}]})
    assert TextTemplate().render(row) == "Why?"
    assert TextTemplate("{{ prompt }}{{ response }}").render(row) == "Why?"


def test_a_name_that_does_not_exist_is_an_error_with_the_names_that_do() -> None:
    with pytest.raises(
        DataError, match=r"'\{\{ instruction \}\}' cannot render sample 'a' \(row 0\).*\n.*it knows prompt"
    ):
        TextTemplate("{{ instruction }}").render(ALPACA)


def test_a_template_that_is_no_jinja_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"text template '\{\{' is not valid Jinja"):
        TextTemplate("{{")


def test_a_template_cannot_reach_into_python() -> None:
    with pytest.raises(DataError, match="unsafe"):
        TextTemplate("{{ prompt.__class__.__mro__ }}").render(ALPACA)
