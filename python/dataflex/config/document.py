"""YAML read with the position of every key, so that a problem can be named by file and line.

Only the safe tags are constructed. Two deviations from PyYAML's YAML 1.1: an unquoted ``1e-4`` is a number (YAML 1.2
and everybody's intention) and an unquoted date stays text. Repeated keys, aliases that contain themselves and aliases
that expand without bound are problems, not surprises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from dataflex.utils.messages import shown

KeyPath = tuple[str | int, ...]
"""Where a value sits inside a document: keys of mappings and positions in lists."""

_TAG = "tag:yaml.org,2002:"
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_MAX_NODES = 100_000


@dataclass
class Document:
    """A parsed YAML text.

    Attributes:
        value: Plain Python values: dict with text keys, list, str, int, float, bool, None.
        places: Per key path, where it was written (``file:line``).
        problems: One line a problem; ``value`` holds what could be read.
        notes: Per key path, what to say about a value that YAML 1.1 reads otherwise than it looks.
    """

    value: Any = None
    places: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: dict[KeyPath, str] = field(default_factory=dict)


def parse_yaml(text: str, where: Callable[[int], str]) -> Document:
    """Parse one YAML document.

    Args:
        text: The document.
        where: Turns a line number (from 1) into the words that name it, such as ``file:line``.
    """
    document = Document()
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            document.value = _Reader(loader, where, document).read(node, ())
    except yaml.YAMLError as error:
        document.problems.append(f"{where(_error_line(error, text))}: not valid YAML: {_reason(error)}")
    except RecursionError:
        document.problems.append(f"{where(1)}: nested too deeply to be a configuration")
    return document


class _Reader:
    """Turns a node tree into plain values, noting places and problems on the way."""

    def __init__(self, loader: yaml.SafeLoader, where: Callable[[int], str], document: Document) -> None:
        self.loader = loader
        self.where = where
        self.document = document
        self.open: set[int] = set()  # ids of the containers around the node being read
        self.nodes = 0

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"it expands to more than {_MAX_NODES} values", problem_mark=_mark(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        expected = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != _TAG + expected:
            return self._problem(node, f"the tag {node.tag} is not accepted")
        if id(node) in self.open:
            return self._problem(node, "an alias contains itself")
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self._placed(item, (*path, position)) for position, item in enumerate(node.value)]
        finally:
            self.open.remove(id(node))

    def _placed(self, node: yaml.Node, path: KeyPath, key: yaml.Node | None = None) -> Any:
        self.document.places[path] = self.where(_mark(key or node).line + 1)
        return self.read(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = self.read(key_node, path)
            if not isinstance(key, str):
                self._problem(key_node, f"the key {shown(key)} is not text; put it in quotes")
                continue
            if key in lines:
                self._problem(key_node, f"{key!r} is set twice (first at line {lines[key]})")
                continue
            lines[key] = _mark(key_node).line + 1
            values[key] = self._placed(value_node, (*path, key), key_node)
        for base in self._merged(node):
            for key_node, value_node in base.value:
                key = self.read(key_node, path)
                if isinstance(key, str) and key not in values:
                    values[key] = self._placed(value_node, (*path, key), key_node)
        return values

    def _merged(self, node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
        """The mappings that ``<<`` merges into ``node``, strongest first."""
        for key_node, value_node in node.value:
            if key_node.tag != _TAG + "merge":
                continue
            bases = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for base in bases:
                if isinstance(base, yaml.MappingNode):
                    yield base
                else:
                    self._problem(key_node, "'<<' merges mappings only")

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = node.value
        if node.tag == _TAG + "timestamp":
            return text
        if node.tag == _TAG + "str":
            return float(text) if node.style is None and _EXPONENT.fullmatch(text) else text
        if node.tag not in {_TAG + kind for kind in ("int", "float", "bool", "null")}:
            return self._problem(node, f"the tag {node.tag} is not accepted")
        try:
            value = self.loader.construct_object(node)
        except (ValueError, KeyError, OverflowError, IndexError):
            return self._problem(node, f"{shown(text)} is not a valid {node.tag.removeprefix(_TAG)}")
        if isinstance(value, int) and abs(value) >= 2**63:
            return self._problem(node, f"{shown(text)} is too large an integer")
        note = _surprise(text, value) if node.style is None else None
        if note:
            self.document.notes[path] = f"{self.where(_mark(node).line + 1)}: {_dotted(path)}{note}"
        return value

    def _problem(self, node: yaml.Node, text: str) -> None:
        self.document.problems.append(f"{self.where(_mark(node).line + 1)}: {text}")


def _surprise(text: str, value: Any) -> str | None:
    """What to say about an unquoted scalar that YAML 1.1 reads otherwise than it looks, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if ":" in text:
        return f"{text} is {value}: YAML 1.1 reads numbers with colons to the base 60; in quotes it is text"
    if _OCTAL.fullmatch(text) and value != int(text.replace("_", "")):
        return f"{text} is {value}: YAML 1.1 reads a leading 0 as octal; write {int(text.replace('_', ''))} or {value}"
    return None


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path)) + ": " if path else ""


def _mark(node: yaml.Node) -> yaml.Mark:
    return node.start_mark


def _error_line(error: yaml.YAMLError, text: str) -> int:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    return text.count("\n", 0, getattr(error, "position", 0)) + 1


def _reason(error: yaml.YAMLError) -> str:
    """The parser's words on one line, without the quoted source (it may hold a secret)."""
    parts = [getattr(error, "context", None), getattr(error, "problem", None) or getattr(error, "reason", None)]
    return ", ".join(str(part) for part in parts if part) or type(error).__name__
