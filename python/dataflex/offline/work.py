"""The folder of a selection's features and answers: its date, its lock, and the processes that share it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dataflex.data.templates import ChatTemplate
from dataflex.errors import SelectionError
from dataflex.models.fingerprint import state_fingerprint
from dataflex.plugins.configurable import Configurable
from dataflex.selectors.base import SelectionContext
from dataflex.training import facts
from dataflex.training.folder import exclusive, folders_of
from dataflex.training.inputs import as_template
from dataflex.training.sameness import check_ranks
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import write_json
from dataflex.utils.foreign import JSON, foreign
from dataflex.utils.going_on import going_on
from dataflex.utils.lock import LOCK_FILE

logger = logging.getLogger(__name__)

BEGUN = "begun.json"
"""File of the day on which the work in a folder was begun."""


@contextmanager
def working_in(work: Path | None, selector: Configurable[Any], ranks: Ranks) -> Iterator[None]:
    """Hold the folders that a selection writes to; what stops it says how it goes on.

    Args:
        work: Folder of features and answers; None: a temporary one.
        selector: May have a ``cache_dir``.
        ranks: The processes that share the folders; the main one holds the locks.

    Raises:
        DataflexError: Another run is in one of them.
    """

    def way() -> str | None:
        kept = work is not None and work.is_dir() and any(path.name != LOCK_FILE for path in work.iterdir())
        return f"the same selection goes on with what is in {work}" if kept else None

    folders = folders_of(work, selector) if work is not None else folders_of(Path(), selector)[1:]
    with exclusive(folders, ranks), going_on(way):
        yield


def dated_template(
    template: str | ChatTemplate | None, tokenizer: PreTrainedTokenizerBase, work: Path | None, ranks: Ranks
) -> ChatTemplate:
    """The template; one that prints the date prints the day on which the work in a folder was begun.

    Args:
        template: Its name, or the template itself, which keeps its date.
        tokenizer: Encodes its text.
        work: Folder of features and answers, which notes the day; None: it does not last.
        ranks: The processes that share the folder.

    Raises:
        DataError: Unknown name, or the tokenizer has no template.
    """
    found = as_template(template, tokenizer)
    if work is None or isinstance(template, ChatTemplate) or not found.prints_date:
        return found
    noted = datetime.fromisoformat(ranks.on_main(lambda: _noted_date(work / BEGUN, found.now)))
    return as_template(template, tokenizer, noted)


def _noted_date(file: Path, now: datetime) -> str:
    """The date in a file, which is written where there is none."""
    if not file.exists():
        write_json(file, {"date": now.isoformat()})
    with foreign(SelectionError, f"cannot read {file}", (*JSON, LookupError, TypeError), hint="remove the file"):
        date = datetime.fromisoformat(json.loads(file.read_text(encoding="utf-8"))["date"])
    if date.date() != now.date():
        logger.info("the template prints the date: that of %s, when %s was begun, is kept", date.date(), file.parent)
    return date.isoformat()


def check_agreed(selector: Configurable[Any], context: SelectionContext) -> None:
    """Raise TrainingError on every rank, with the names, unless all ranks were started alike."""
    ranks = context.ranks
    if ranks.count == 1:
        return
    digest = state_fingerprint(context.model, context.autocast)
    found = {
        **facts.model_facts(context.model),
        **facts.data_facts(context.train_dataset, context.eval_dataset, context.template),
        **facts.selector_facts(selector),
        **facts.common_facts(ranks.count),
        "seed": context.seed,
        "num_samples": context.num_samples,
        "output_dir": str(context.output_dir),
        "weights": {"shown": "(values of all parameters)", "digest": digest},
    }
    check_ranks(facts.as_json(found), ranks)
