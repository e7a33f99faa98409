"""``report.html``: one file, no scripts and nothing from elsewhere, every value escaped."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from dataflex.report.drawing import COLOURS, svg
from dataflex.report.read import RunReport, read_report
from dataflex.report.sections import Pages, Section, lay_out
from dataflex.utils.facts import numbers
from dataflex.utils.files import write_text
from dataflex.utils.shown import shown
from dataflex.version import __version__

logger = logging.getLogger(__name__)

CELL = 400
"""Longest text in a cell, in characters."""


def write_page(report: RunReport, pages: Pages | None = None) -> None:
    """Write the page where it belongs.

    Args:
        report: What was read.
        pages: What it shows, where that has been laid out already.
    """
    write_text(report.page, page_html(report, pages or lay_out(report)))


def refresh_page(output_dir: Path) -> Pages | None:
    """Write the page of a run that goes on; what is wrong with it is said and does not end the run.

    Returns:
        What it shows; None where it could not be written.
    """
    try:
        report = read_report(output_dir)
        pages = lay_out(report)
        write_page(report, pages)
    except Exception as error:  # the run's work is worth more than its page
        logger.warning("report.html could not be written: %s: %s", type(error).__name__, error)
        logger.debug("where that comes from", exc_info=True)
        return None
    return pages


def page_html(report: RunReport, pages: Pages) -> str:
    """The page."""
    environment = Environment(autoescape=True, finalize=_safe)
    environment.filters["cell"] = lambda text: shown(text, CELL)
    source = files("dataflex.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    questions = [
        (question, answer, pages.summary.changes if question.startswith("What would") else [])
        for question, answer in pages.summary.lines()
    ]
    return environment.from_string(source).render(
        name=shown(report.name, 120),
        state=" ".join(filter(None, [_state(report), made_of(report)])),
        summary=questions,
        sections=[_drawn(section) for section in pages.sections],
        colours=COLOURS,
        made=f"dataflex {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _safe(value: Any) -> Any:
    """What a template prints: markup of our own as it is, everything else as text that does nothing."""
    return value if isinstance(value, Markup) else shown(value)


def _drawn(section: Section) -> dict[str, Any]:
    values = {key: getattr(section, key) for key in ("key", "title", "answer", "sheets", "meaning", "folded")}
    figure = section.draw() if section.draw is not None else None
    if figure is None:
        return {**values, "picture": None}
    label = shown(f"{section.title} {section.answer}")
    return {**values, "picture": Markup(svg(figure, section.key, label))}


def made_of(report: RunReport) -> str:
    """Model, rows and learning rate of a run, as far as its configuration names them."""
    settings = report.settings
    parts = []
    if model := settings.get("model_name_or_path"):
        way = f" ({settings['finetuning_type']})" if settings.get("finetuning_type") else ""
        parts.append(f"{Path(str(model)).name}{way}")
    for key, word in (("dataset", "on"), ("eval_dataset", "towards")):
        if names := _names(settings.get(key)):
            parts.append(f"{word} {names}")
    text = " ".join(parts)
    rate = settings.get("learning_rate")
    if isinstance(rate, int | float):
        text = f"{text}, learning rate {rate:g}" if text else f"Learning rate {rate:g}"
    return f"{text}." if text else ""


def _names(value: Any) -> str:
    """Datasets by their names, files by their last part; nothing for what is neither."""
    names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return ", ".join(Path(str(name)).name for name in names)


def _state(report: RunReport) -> str:
    """What the page is of, and how far it is."""
    if not report.trained:
        return "A selection without training."
    if report.results:
        return "A finished run."
    last = numbers(report.history[-1]) if report.history else {}
    if "total_steps" in last:
        return f"A run that goes on: step {last['current_steps']:,.0f} of {last['total_steps']:,.0f}."
    return "A run that goes on."
