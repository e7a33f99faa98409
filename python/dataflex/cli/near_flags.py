"""The keys of ``dataflex near`` with their descriptions, for its flags and its help.

They are read from the text of ``config/near.py``: importing it builds pydantic's models, which takes several times as
long as all else that the help of a command needs.
"""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "config" / "near.py"
CLASSES = ("EncoderFields", "NearConfig")


def described_keys() -> dict[str, str]:
    """Description of each field of :class:`dataflex.config.near.NearConfig`, in their order."""
    classes = {node.name: node for node in ast.parse(SOURCE.read_text("utf-8")).body if isinstance(node, ast.ClassDef)}
    fields = [node for name in CLASSES for node in classes[name].body if isinstance(node, ast.AnnAssign)]
    return {ast.unparse(field.target): _description(field) for field in fields}


def _description(field: ast.AnnAssign) -> str:
    assert isinstance(field.value, ast.Call)
    given = {keyword.arg: keyword.value for keyword in field.value.keywords}
    return str(ast.literal_eval(given["description"]))
