"""The output folder of a run: free to use, to start over in, or to resume from."""

from __future__ import annotations

import logging
from pathlib import Path

from dataflex.errors import CheckpointError, TrainingError
from dataflex.rewards.spending import SPENDING_FILE
from dataflex.training.arguments import TrainingArguments
from dataflex.training.checkpoint import checkpoints, last_checkpoint, read_state
from dataflex.training.checkpointer import BEST_MODEL
from dataflex.training.trackers import TENSORBOARD_DIR
from dataflex.training.tracking import LOG_FILE, PLOT_FILE
from dataflex.utils.files import remove_folder

logger = logging.getLogger(__name__)

LEFTOVERS = (
    "selections",
    BEST_MODEL,
    TENSORBOARD_DIR,
    LOG_FILE,
    PLOT_FILE,
    "all_results.json",
    "trainer_state.json",
    "report.html",
    SPENDING_FILE,
)


def prepare_output_dir(args: TrainingArguments) -> Path | None:
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
    out = args.output_dir
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(args.resume_from_checkpoint, Path):
        return _prepare_for(args.resume_from_checkpoint, args)
    if args.resume_from_checkpoint:
        found = last_checkpoint(out)
        if found is None:
            logger.warning("%s holds no checkpoint to resume from: starting at step 0", out)
        return found
    _clear(args, "resume_from_checkpoint: true goes on")
    return None


def _prepare_for(source: Path, args: TrainingArguments) -> Path:
    """Make the folder ready for a run that goes on from a checkpoint by name."""
    out = args.output_dir
    if not source.is_dir():
        raise CheckpointError(f"resume_from_checkpoint: there is no folder {source}")
    read_state(source)  # raises for a damaged one, before anything is given up for it
    if source.resolve().parent != out.resolve():
        _clear(args, "resume_from_checkpoint: true goes on with what is in it")
        return source
    own = [path.resolve() for path in checkpoints(out)]
    later = own[own.index(source.resolve()) + 1 :] if source.resolve() in own else []
    if later and not args.overwrite_output_dir:
        names = ", ".join(path.name for path in later)
        raise TrainingError(
            f"{names} in {out} came after {source.name}, which the run is to go on from",
            hint="overwrite_output_dir: true gives them up, resume_from_checkpoint: true goes on from the last one",
        )
    for path in later:
        remove_folder(path)
    return source


def _clear(args: TrainingArguments, otherwise: str) -> None:
    """Remove what a run left in the output folder, if that is allowed."""
    out = args.output_dir
    if any(out.iterdir()) and not args.overwrite_output_dir:
        raise TrainingError(
            f"the output folder {out} is not empty",
            hint=f"overwrite_output_dir: true starts over in it, {otherwise}; or name another",
        )
    for path in [*checkpoints(out), *(out / name for name in LEFTOVERS)]:
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
