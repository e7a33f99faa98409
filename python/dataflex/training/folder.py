"""The output folder of a run: free to use, to start over in, or to resume from."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from dataflex.errors import CheckpointError, TrainingError
from dataflex.training.arguments import TrainingArguments
from dataflex.training.checkpoint import checkpoints, last_checkpoint
from dataflex.training.checkpointer import BEST_MODEL
from dataflex.training.trackers import TENSORBOARD_DIR
from dataflex.training.tracking import LOG_FILE, PLOT_FILE

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
)


def prepare_output_dir(args: TrainingArguments) -> Path | None:
    """Make the output folder ready and find the checkpoint to go on from.

    Starting over removes checkpoints, selections, logs and results of the last run, and nothing else: stored features
    and answers carry fingerprints and are used again only where they fit.

    Returns:
        The checkpoint to resume from, or None to start at step 0.

    Raises:
        TrainingError: The folder is not empty and neither ``overwrite_output_dir`` nor ``resume_from_checkpoint`` is
            set.
        CheckpointError: ``resume_from_checkpoint`` names a folder that does not exist.
    """
    out = args.output_dir
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(args.resume_from_checkpoint, Path):
        if not args.resume_from_checkpoint.is_dir():
            raise CheckpointError(f"resume_from_checkpoint: there is no folder {args.resume_from_checkpoint}")
        return args.resume_from_checkpoint
    if args.resume_from_checkpoint:
        found = last_checkpoint(out)
        if found is None:
            logger.warning("%s holds no checkpoint to resume from: starting at step 0", out)
        return found
    if any(out.iterdir()) and not args.overwrite_output_dir:
        raise TrainingError(
            f"the output folder {out} is not empty",
            hint="overwrite_output_dir: true starts over in it, resume_from_checkpoint: true goes on; or name another",
        )
    for path in [*checkpoints(out), *(out / name for name in LEFTOVERS)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return None
