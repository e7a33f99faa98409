"""What every judge backend shares: the prompt that shows an answer to a judge, and reading the judge's score.

The answer, the reference and the conversation are data, and the answer comes from a model that is trained to please
the judge. Each is put in a block ``<answer-TAG>`` ... ``</answer-TAG>``, where TAG is a hash of everything that is
shown: equal requests have equal prompts (so that they can be cached), yet no text can contain the mark that its own
content hashes to, so that no block can be closed from inside. Control tokens of chat templates (``<|im_end|>`` and
the like) inside the data are broken up by a space, since a tokenizer would read them as the end of the turn.

The score is read from the judge's reply alone, and strictly: a reply that is anything else than a score is not one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from importlib.resources import files

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from dataflex.errors import ConfigError, RewardError
from dataflex.rewards.base import RewardConfig
from dataflex.rewards.strict_json import parse_json
from dataflex.types import Message, RewardRequest
from dataflex.utils.deadline import cpu_limit
from dataflex.utils.home import home_path

REMINDER = '\n\nYour last reply was not readable. Reply with the JSON object {"score": ...} alone.'
"""Added to the prompt when a reply was not a score: a judge at temperature 0 would repeat itself."""

SCORE_PATTERN = r'\{"score": (0(\.[0-9]{1,2})?|1(\.0)?)\}'
"""What a judge whose decoding can be constrained may write."""

_VARIABLES = frozenset({"conversation", "answer", "reference", "tag", "metadata"})
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
_CONTROL_TOKEN = re.compile(
    r"<\|[^<>\s]{1,64}\|>|<｜[^<>\s]{1,64}｜>|</?s>|<(?:bos|eos|pad|unk)>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"  # noqa: RUF001
)


class JudgeConfig(RewardConfig):
    """Parameters that all judge backends have."""

    judge_prompt: str | None = Field(
        None, description="Jinja template, or its path, for samples without a reference; null: the built-in one"
    )
    judge_prompt_with_reference: str | None = Field(
        None, description="Jinja template, or its path, for samples with a reference; null: the built-in one"
    )
    use_reference: bool = Field(True, description="show the judge the reference answer where there is one")
    parse_retries: int = Field(2, ge=0, description="how often to ask again when a reply is not a score")


class JudgePrompt:
    """Renders requests as prompts.

    A template sees ``conversation``, ``answer`` and ``reference`` (blocks, see the module's docstring), ``tag`` (the
    mark of the blocks) and ``metadata`` (the sample's other columns, as they are). It must show ``answer`` once.

    Args:
        config: The templates.

    Raises:
        ConfigError: A template cannot be read or parsed, lacks ``answer`` or uses an unknown variable.
    """

    def __init__(self, config: JudgeConfig) -> None:
        # StrictUndefined: a misspelt column is an error, never an empty place in the prompt.
        self._environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        self._use_reference = config.use_reference
        self._without = self._template(config.judge_prompt, "judge_prompt", "without_reference.jinja")
        self._with = self._template(
            config.judge_prompt_with_reference, "judge_prompt_with_reference", "with_reference.jinja"
        )

    def render(self, request: RewardRequest, control_tokens: Collection[str] = ()) -> str:
        """The prompt of one request.

        Args:
            request: The answer to grade.
            control_tokens: Further control tokens to break up, those of the judge's own tokenizer.

        Raises:
            RewardError: The template fails on this request, or does not show the answer's block exactly once.
        """
        conversation = [(str(turn["role"]), defused(_content(turn), control_tokens)) for turn in request.messages]
        answer = defused(request.prediction, control_tokens)
        shows_reference = self._use_reference and request.reference is not None
        reference = defused(request.reference or "", control_tokens) if shows_reference else None
        tag = _tag(conversation, answer, reference)
        block = _block("answer", tag, answer)
        values = {
            "conversation": "\n".join(_block(role, tag, content) for role, content in conversation),
            "answer": block,
            "reference": None if reference is None else _block("reference", tag, reference),
            "tag": tag,
            "metadata": request.metadata,
        }
        try:
            with cpu_limit():
                text = (self._with if shows_reference else self._without).render(values)
        except Exception as error:  # a template runs expressions on a sample's columns
            raise RewardError(f"the judge prompt cannot be rendered: {type(error).__name__}: {error}") from error
        if not text.count(block) == text.count(f"<answer-{tag}>") == text.count(f"</answer-{tag}>") == 1:
            raise RewardError("the judge prompt does not show the answer exactly once")
        return text

    def _template(self, given: str | None, key: str, builtin: str) -> Template:
        source = _source(given, key) if given else (files("dataflex.rewards") / "prompts" / builtin).read_text("utf-8")
        try:
            used = meta.find_undeclared_variables(self._environment.parse(source))
            template = self._environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"{key}: not a Jinja template: {error}") from error
        if unknown := sorted(used - _VARIABLES):
            raise ConfigError(f"{key}: unknown variables {', '.join(unknown)}; known: {', '.join(sorted(_VARIABLES))}")
        if "answer" not in used:
            raise ConfigError(f"{key}: the template does not show {{{{ answer }}}}")
        return template


def parse_score(text: str) -> float | None:
    """The score of a judge's reply, or None if it is not one.

    A score is a JSON number in [0, 1], or a JSON object whose ``score`` is one; a code fence around it is allowed.
    Everything else is None: other text around it, a number out of range or in quotes, true, NaN, a repeated key.
    """
    text = text.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        value = parse_json(fenced[1] if fenced else text)
    except ValueError:
        return None
    if isinstance(value, dict):
        value = value.get("score")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return abs(float(value))  # -0.0 is 0.0


def defused(text: str, control_tokens: Collection[str] = ()) -> str:
    """``text`` with a space inside every control token, so that a tokenizer reads it as plain characters.

    Lone surrogates, which no request can carry, become question marks.
    """
    text = _CONTROL_TOKEN.sub(_broken, text.encode("utf-8", "replace").decode("utf-8"))
    longest_first = sorted(control_tokens, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), _broken, text) if longest_first else text


def _broken(match: re.Match[str]) -> str:
    return f"{match[0][0]} {match[0][1:]}"


def _content(message: Message) -> str:
    calls = message.get("tool_calls")
    return message["content"] + (f"\n{json.dumps(calls, ensure_ascii=False)}" if calls else "")


def _tag(conversation: list[tuple[str, str]], answer: str, reference: str | None) -> str:
    """16 hexadecimal digits that depend on every character shown, and occur in none of the texts."""
    shown = json.dumps([conversation, answer, reference])
    tag = hashlib.sha256(shown.encode()).hexdigest()[:16]
    while tag in shown:
        tag = hashlib.sha256(tag.encode()).hexdigest()[:16]
    return tag


def _block(name: str, tag: str, content: str) -> str:
    return f"<{name}-{tag}>\n{content}\n</{name}-{tag}>"


def _source(given: str, key: str) -> str:
    if "{{" in given or "{%" in given:
        return given
    try:
        return home_path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}: {given!r} is neither a template (no {{{{ ... }}}}) nor a readable file: {error}"
        ) from error
