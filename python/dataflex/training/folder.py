"""The output folder of a run: one run at a time, free to use, to start over in, or to resume from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from dataflex.errors import CheckpointError, TrainingError
from dataflex.plugins.configurable import Configurable
from dataflex.rewards.spending import SPENDING_FILE
from dataflex.training.checkpoint import checkpoints, last_checkpoint, read_state
from dataflex.training.checkpointer import BEST_MODEL
from dataflex.training.trackers import TENSORBOARD_DIR
from dataflex.training.tracking import LOG_FILE, PLOT_FILE
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import remove_folder, sweep
from dataflex.utils.foreign import foreign
from dataflex.utils.lock import LOCK_FILE, locked

logger = logging.getLogger(__name__)

LEFTOVERS = (
    "selections",
    "mixtures",
    "weights",
    BEST_MODEL,
    TENSORBOARD_DIR,
    LOG_FILE,
    PLOT_FILE,
    "all_results.json",
    "trainer_state.json",
    "report.html",
    SPENDING_FILE,
)
WRITTEN = (
    "selections",
    "mixtures",
    "weights",
    "features",
    "scores",
    "rollouts",
    "losses",
    "embeddings",
    "hidden_states",
    "rewards",
    "prefilter",
)
"""Folders in which rounds leave their files."""


class FolderSettings(Protocol):
    """What says how a run uses its output folder: the trainer's arguments."""

    @property
    def output_dir(self) -> Path:
        """The folder."""

    @property
    def overwrite_output_dir(self) -> bool:
        """Whether what is there may be given up."""

    @property
    def resume_from_checkpoint(self) -> bool | Path:
        """Whether, or from where, the run goes on."""


def folders_of(output_dir: Path, selector: Configurable[Any] | None) -> list[Path]:
    """The folders that a run, or a selection, writes to: its own and each ``cache_dir``, the prefilter's included."""
    found = [output_dir]
    while selector is not None:
        cache = getattr(selector.config, "cache_dir", None)
        found += [] if cache is None else [Path(cache)]
        selector = getattr(selector, "prefilter", None)
    return found


@contextmanager
def exclusive(folders: Sequence[Path], ranks: Ranks) -> Iterator[None]:
    """Hold the folders that a run writes to, and free them of what killed runs left half written.

    The main process holds the locks, whatever the number of processes.

    Raises:
        DataflexError: Another run holds one of them.
    """
    with ExitStack() as stack:

        def enter() -> None:
            for folder in sorted({folder.resolve() for folder in folders}):
                stack.enter_context(locked(folder))
                with foreign(TrainingError, f"cannot clean up {folder}"):
                    removed = sweep(folder, inside=WRITTEN)
                if removed:
                    names = ", ".join(path.name for path in removed)
                    logger.info("%s: removed what a killed run left half written: %s", folder, names)

        ranks.on_main(enter)
        yield


def check_output_dir(settings: FolderSettings) -> None:
    """Raise what :func:`prepare_output_dir` would raise over the folder itself; nothing is made or removed.

    Raises:
        TrainingError: The output folder is a file, or holds something that nothing gives free.
        CheckpointError: ``resume_from_checkpoint`` names a folder that does not exist.
    """
    out, source = settings.output_dir, settings.resume_from_checkpoint
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise TrainingError(f"output_dir {out}: {existing} is a file", hint="name another folder")
    if isinstance(source, Path):
        if not source.is_dir():
            raise CheckpointError(f"resume_from_checkpoint: there is no folder {source}")
        if source.resolve().parent != out.resolve():
            _check_free(settings, "resume_from_checkpoint: true goes on with what is in it")
    elif not source:
        _check_free(settings, "resume_from_checkpoint: true goes on")


def resume_source(settings: FolderSettings) -> Path | None:
    """The checkpoint that a run would go on from, None to start at step 0; nothing is made or removed."""
    if isinstance(settings.resume_from_checkpoint, Path):
        return settings.resume_from_checkpoint
    return last_checkpoint(settings.output_dir) if settings.resume_from_checkpoint else None


def begun(settings: FolderSettings) -> datetime | None:
    """When the run began that is to go on; None for a new one, or one of a version that did not note it.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    source = resume_source(settings)
    state = None if source is None or not source.is_dir() else read_state(source)
    noted = (state or {}).get("date")
    with foreign(CheckpointError, f"the date in the state of {source} is damaged", (ValueError, TypeError)):
        return None if noted is None else datetime.fromisoformat(noted)


def prepare_output_dir(settings: FolderSettings) -> Path | None:
    """Make the output folder ready and find the checkpoint to go on from.

    Starting over removes checkpoints, selections, logs and results of the last run, and nothing else: stored features
    and answers carry fingerprints and are used again only where they fit. Going on from a checkpoint that is not the
    last one of the folder gives up what came after it: ``overwrite_output_dir`` has to allow that.

    Returns:
        The checkpoint to resume from, or None to start at step 0.

    Raises:
        TrainingError: The folder is not empty and neither ``overwrite_output_dir`` nor ``resume_from_checkpoint`` is
            set; or something would be given up that ``overwrite_output_dir`` does not give free.
        CheckpointError: ``resume_from_checkpoint`` names a folder that does not exist, or a damaged checkpoint.
    """
    check_output_dir(settings)
    out = settings.output_dir
    with foreign(TrainingError, f"cannot use the output folder {out}"):
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(settings.resume_from_checkpoint, Path):
            return _prepare_for(settings.resume_from_checkpoint, settings)
        if settings.resume_from_checkpoint:
            found = last_checkpoint(out)
            if found is None:
                logger.warning("%s holds no checkpoint to resume from: starting at step 0", out)
            return found
        _clear(out)
        return None


def _prepare_for(source: Path, settings: FolderSettings) -> Path:
    """Make the folder ready for a run that goes on from a checkpoint by name."""
    out = settings.output_dir
    read_state(source)  # raises for a damaged one, before anything is given up for it
    if source.resolve().parent != out.resolve():
        _clear(out)
        return source
    own = [path.resolve() for path in checkpoints(out)]
    later = own[own.index(source.resolve()) + 1 :] if source.resolve() in own else []
    if later and not settings.overwrite_output_dir:
        names = ", ".join(path.name for path in later)
        raise TrainingError(
            f"{names} in {out} came after {source.name}, which the run is to go on from",
            hint="overwrite_output_dir: true gives them up, resume_from_checkpoint: true goes on from the last one",
        )
    for path in later:
        remove_folder(path)
    return source


def _check_free(settings: FolderSettings, otherwise: str) -> None:
    out = settings.output_dir
    taken = out.is_dir() and any(path.name != LOCK_FILE for path in out.iterdir())
    if taken and not settings.overwrite_output_dir:
        raise TrainingError(
            f"the output folder {out} is not empty",
            hint=f"overwrite_output_dir: true starts over in it, {otherwise}; or name another",
        )


def _clear(out: Path) -> None:
    """Remove what a run left in the output folder."""
    for path in [*checkpoints(out), *(out / name for name in LEFTOVERS)]:
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
