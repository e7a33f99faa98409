"""The model card of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.utils.files import write_text
from dataflex.utils.shown import shown


def write_model_card(output_dir: Path, facts: Mapping[str, Any], summary: Sequence[tuple[str, str]] = ()) -> None:
    """Write ``README.md`` with the metadata block that model hubs read.

    Args:
        output_dir: Folder of the run.
        facts: What its table holds.
        summary: Questions and answers of the report.
    """
    adapter = (output_dir / "adapter_config.json").is_file()
    lines = ["---", f"library_name: {'peft' if adapter else 'transformers'}", "tags:", "- dataflex"]
    lines += ["- lora"] * adapter
    if facts.get("base_model"):
        lines.append(f"base_model: {json.dumps(str(facts['base_model']))}")
    lines += ["---", "", f"# {_cell(output_dir.name)}", ""]
    what = "An adapter" if adapter else "A model"
    lines.append(f"{what} that was fine-tuned with dataflex: training samples were selected while it was trained.")
    for question, answer in summary:
        lines += ["", f"**{question}** {_cell(answer)}"]
    lines += ["", "| | |", "|---|---|"]
    lines += [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items() if value is not None]
    files = "The report with pictures: `report.html`. Which samples were selected, with their scores: `selections/`."
    lines += ["", f"{files} Configuration: `config.yaml`.", ""]
    write_text(output_dir / "README.md", "\n".join(lines))


def _cell(value: Any) -> str:
    return shown(value, target="markdown")
