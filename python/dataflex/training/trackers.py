"""The trackers of ``report_to``: accelerate's, each started with the names and folders that belong to this run.

Only the main process has trackers. A resumed run is a new run to a tracker that keeps runs apart (all but tensorboard,
which goes on in the same folder): what it logged before the kill stays with the run that was killed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    MLflowTracker,
    SwanLabTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
    get_available_trackers,
)
from matplotlib.figure import Figure

from dataflex.errors import DataflexError, TrainingError
from dataflex.report.drawing import look, pixels
from dataflex.training.arguments import TrainingArguments
from dataflex.utils.distributed import Ranks

logger = logging.getLogger(__name__)

PROJECT = "dataflex"
"""Name of the project or experiment, where neither the arguments nor the tracker's own variables give one."""
TENSORBOARD_DIR = "tensorboard"


def check_trackers(names: Sequence[str]) -> None:
    """Raise TrainingError, naming them all, if trackers are unknown to accelerate or not installed."""
    available = {str(getattr(tracker, "value", tracker)) for tracker in get_available_trackers()}
    missing = [name for name in names if name not in available]
    if missing:
        raise TrainingError(
            f"report_to names trackers that are not installed: {', '.join(missing)}; "
            f"available: {', '.join(sorted(available)) or 'none'}",
            hint='pip install "dataflex-sdk[trackers]", or report_to: none',
        )


def start_trackers(
    accelerator: Accelerator, args: TrainingArguments, ranks: Ranks, hyperparameters: Mapping[str, Any], step: int
) -> None:
    """Start the trackers of ``args.report_to`` on the main process; ``accelerator.log`` reaches them from then on.

    Args:
        accelerator: Gets the trackers.
        args: Names of the trackers, output folder, name of the run.
        ranks: The processes of the run.
        hyperparameters: Numbers and texts that every tracker stores with the run.
        step: Steps taken so far.

    Raises:
        TrainingError: A tracker cannot start (no login, no network, wrong names); those before it are closed.
    """

    def start() -> None:
        for name in args.report_to:
            try:
                tracker = _MAKERS.get(name, _any_tracker(name))(args, step)
                tracker.start()
                tracker.store_init_configuration(dict(hyperparameters))
            except Exception as error:  # the tracker's package may raise anything
                for started in accelerator.trackers:
                    started.finish()
                accelerator.trackers.clear()
                raise _cannot_start(name, error) from error
            accelerator.trackers.append(tracker)

    if args.report_to:
        ranks.on_main(start)


def show_pictures(accelerator: Accelerator, pictures: Iterable[tuple[str, Figure]], step: int) -> None:
    """Give the trackers that take pictures those of the report, as ``report/NAME``; a failure is said.

    Args:
        accelerator: Has the trackers; only the main process does.
        pictures: Names and figures.
        step: Steps taken so far.
    """
    takers = [tracker for tracker in accelerator.trackers if tracker.name in _PICTURES]
    for name, figure in pictures if takers else ():
        for tracker in takers:
            try:
                with look():  # a tracker may draw it
                    _PICTURES[tracker.name](tracker, f"report/{name}", figure, step)
            except Exception as error:  # the tracker's package may raise anything, and the run is worth more
                logger.warning("%s got no picture %s: %s: %s", tracker.name, name, type(error).__name__, error)


def _image(tracker: Any, name: str, figure: Figure, step: int) -> None:
    tracker.log_images({name: [pixels(figure)]}, step=step)


def _tensorboard_image(tracker: Any, name: str, figure: Figure, step: int) -> None:
    tracker.writer.add_image(name, pixels(figure), global_step=step, dataformats="HWC")


def _mlflow_figure(tracker: Any, name: str, figure: Figure, step: int) -> None:
    tracker.log_figure(figure, f"{name}-step-{step}.png")


def _trackio_image(tracker: Any, name: str, figure: Figure, step: int) -> None:
    import trackio

    tracker.log({name: trackio.Image(pixels(figure))}, step=step)


_PICTURES: dict[str, Callable[[Any, str, Figure, int], None]] = {
    "mlflow": _mlflow_figure,
    "swanlab": _image,
    "tensorboard": _tensorboard_image,
    "trackio": _trackio_image,
    "wandb": _image,
}
"""How each tracker takes a picture; others take none."""


def _cannot_start(name: str, error: Exception) -> DataflexError:
    if isinstance(error, DataflexError):
        return error
    first = str(error).strip().split("\n")[0]
    return TrainingError(
        f"the tracker {name} cannot start: {type(error).__name__}: {first}",
        hint="log in to it, use its offline mode (WANDB_MODE=offline, swanlab_mode: offline), or report_to: none",
    )


def _tensorboard(args: TrainingArguments, step: int) -> GeneralTracker:
    """Events in ``output_dir/tensorboard``; those of steps that are taken again are hidden."""
    return TensorBoardTracker(TENSORBOARD_DIR, args.output_dir, purge_step=step + 1 if step else None)


def _mlflow(args: TrainingArguments, step: int) -> GeneralTracker:
    """MLflow's own variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, ...) say where to and under which name."""
    return MLflowTracker(PROJECT, run_name=args.run_name)


def _wandb(args: TrainingArguments, step: int) -> GeneralTracker:
    folder = os.environ.get("WANDB_DIR", str(args.output_dir))
    return WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), name=args.run_name, dir=folder)


def _trackio(args: TrainingArguments, step: int) -> GeneralTracker:
    return TrackioTracker(os.environ.get("TRACKIO_PROJECT", PROJECT), name=args.run_name)


def _swanlab(args: TrainingArguments, step: int) -> GeneralTracker:
    """SwanLab with the keys ``swanlab_*``; its key and the webhook come from the environment."""
    import swanlab

    options = args.swanlab
    if options.api_key is not None and options.mode == "cloud":
        swanlab.login(api_key=_secret("swanlab_api_key", options.api_key))
    callbacks = []
    if options.lark_webhook_url is not None:
        from swanlab.plugin.notification import LarkCallback

        secret = None if options.lark_secret is None else _secret("swanlab_lark_secret", options.lark_secret)
        url = _secret("swanlab_lark_webhook_url", options.lark_webhook_url)
        callbacks.append(LarkCallback(webhook_url=url, secret=secret))
    folder = options.logdir or os.environ.get("SWANLAB_LOG_DIR", str(args.output_dir / "swanlog"))
    return SwanLabTracker(
        options.project,
        workspace=options.workspace,
        experiment_name=options.run_name or args.run_name,
        mode=None if options.mode == "cloud" else options.mode,  # its default; SwanLab 0.7 renamed it online
        logdir=folder,
        callbacks=callbacks,
    )


def _secret(key: str, variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise TrainingError(f"{key}: the environment variable {variable} is not set")
    return value


def _any_tracker(name: str) -> Callable[[TrainingArguments, int], GeneralTracker]:
    """Another tracker that accelerate knows."""

    def make(args: TrainingArguments, step: int) -> GeneralTracker:
        kind = LOGGER_TYPE_TO_CLASS[name]
        return kind(PROJECT, args.output_dir) if kind.requires_logging_directory else kind(PROJECT)

    return make


_MAKERS: dict[str, Callable[[TrainingArguments, int], GeneralTracker]] = {
    "mlflow": _mlflow,
    "swanlab": _swanlab,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
}
