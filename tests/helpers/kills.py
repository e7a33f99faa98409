"""Runs in processes of their own that can be killed at any moment."""

from __future__ import annotations

import multiprocessing
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from dataflex.curriculum.schedule import Schedule
from dataflex.testing import tiny_dataset
from helpers.mixing import domain_trainer
from helpers.runs import tiny_trainer

FORKSERVER = multiprocessing.get_context("forkserver")
# The imports, which take longer than a run, are made once.
FORKSERVER.set_forkserver_preload(["helpers.runs", "helpers.kills", "transformers.models.llama.modeling_llama"])


def train(output_dir: Path, kind: str = "selector") -> None:
    """A run with evaluations and checkpoints, which goes on where it was killed.

    Args:
        output_dir: Its folder.
        kind: ``selector`` (two selections by NICE), ``mixer`` (two mixtures by DoReMi) or ``weighter`` (by losses).
    """
    torch.set_num_threads(1)
    settings = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True}
    if kind == "selector":
        tiny_trainer(output_dir, resume_from_checkpoint=True, **settings).train()
        return
    component = {"mixer": "doremi"} if kind == "mixer" else {"weighter": "loss"}
    schedule = None if kind == "mixer" else Schedule(2, 6, 1)
    held_out = tiny_dataset(4, seed=50)
    domain_trainer(
        output_dir,
        resume_from_checkpoint=True,
        eval_dataset=held_out,
        schedule=schedule,
        **component,
        **settings,
    ).train()


def start(output_dir: Path, kind: str = "selector") -> BaseProcess:
    """Begin such a run."""
    process = FORKSERVER.Process(target=train, args=(output_dir, kind))
    process.start()
    return process


def finish(output_dir: Path, kind: str = "selector") -> float:
    """Run to the end; returns the seconds that it took."""
    begun = time.monotonic()
    process = start(output_dir, kind)
    process.join()
    assert process.exitcode == 0, f"the run in {output_dir} ended with {process.exitcode}"
    return time.monotonic() - begun


def kill_after(output_dir: Path, seconds: float, kind: str = "selector") -> bool:
    """Start a run and kill it after some seconds; returns whether it was still running."""
    process = start(output_dir, kind)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL
