"""Names of chat templates: the tokenizer's own, those that come with dataflex, and which of them fit a tokenizer."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflex.data.encoding import control_tokens
from dataflex.data.hints import nearest_hint
from dataflex.data.probe import Source, frame_of
from dataflex.errors import DataError
from dataflex.utils.foreign import FILES, foreign
from dataflex.utils.home import home_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
ALIASES = {"chatml": "qwen"}

_INCLUDE = re.compile(r"\{#- include (_\w+\.jinja) -#\}\n")
_NO_BOS = '{%- set bos_token = "" -%}\n'


def template_names() -> list[str]:
    """Names of the templates that come with dataflex, sorted."""
    names = (Path(entry.name) for entry in _folder().iterdir())
    return sorted(name.stem for name in names if name.suffix == ".jinja" and not name.stem.startswith("_"))


def read_source(name: str | None, tokenizer: PreTrainedTokenizerBase) -> Source:
    """The Jinja text of a template by its name; :meth:`dataflex.ChatTemplate.load` says which names there are.

    Raises:
        DataError: Unknown name, a file that cannot be read, or no template in the tokenizer.
    """
    if name is None or name == AUTO:
        return Source(AUTO, _own_text(tokenizer), tokenizer)
    if name.endswith((".jinja", ".jinja2", ".j2")):
        path = home_path(name)
        if not path.is_file():
            raise DataError(f"template file {path.absolute()} does not exist")
        with foreign(DataError, f"cannot read the template {path}", FILES):
            return Source(name, path.read_text(encoding="utf-8"), tokenizer)
    known = ALIASES.get(name, name)
    if known not in template_names():
        choice = ", ".join([AUTO, *template_names(), *ALIASES])
        hint = nearest_hint(name, [AUTO, *template_names(), *ALIASES]) or "or the path of a .jinja file"
        raise DataError(f"unknown template {name!r}; known: {choice}", hint=hint)
    text = _packaged(f"{known}.jinja")
    return Source(known, text if _adds_bos(tokenizer) else _NO_BOS + text, tokenizer)


def fitting_hint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Which templates end an answer with a token of this tokenizer, the nearest first."""
    names = fitting_templates(tokenizer)
    if not names:
        return "no template of dataflex ends an answer with a token of this tokenizer: write a .jinja file that does"
    return f"templates that fit this tokenizer: {', '.join(names)}; or a .jinja file with generation markers"


def fitting_templates(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Names of the templates whose end of an answer the tokenizer knows.

    The tokenizer's own (``null``) comes first, then those of which it knows the most tokens. Instead of ``qwen`` its
    other name ``chatml`` is given.
    """
    shown = {name: alias for alias, name in ALIASES.items()}
    special = control_tokens(tokenizer)
    fitting = []
    if tokenizer.chat_template and _fits(None, tokenizer):
        fitting.append("null")
    ours = [name for name in template_names() if _fits(name, tokenizer)]
    texts = {name: _packaged(f"{name}.jinja") for name in ours}
    ours.sort(key=lambda name: -sum(token in texts[name] for token in special))
    return fitting + [shown.get(name, name) for name in ours]


def _fits(name: str | None, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        return frame_of(read_source(name, tokenizer)).end is not None
    except DataError:
        return False  # a template of the tokenizer that cannot be rendered fits nothing


def _folder() -> Any:
    return files("dataflex.data").joinpath("templates")


def _packaged(name: str) -> str:
    """The text of a packaged template, with the macro files that it includes put in place."""
    text: str = _folder().joinpath(name).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: _packaged(match[1]), text)


def _own_text(tokenizer: PreTrainedTokenizerBase) -> str:
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template of its own", hint=_named_hint(tokenizer)
        )
    return str(source)


def _named_hint(tokenizer: PreTrainedTokenizerBase) -> str:
    names = [name for name in fitting_templates(tokenizer) if name != "null"]
    return f"name one as `template`: {', '.join(names) or 'a .jinja file'}"


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
