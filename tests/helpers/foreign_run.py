"""A run of ``transformers.Trainer`` with a curriculum, in processes of its own that can be killed or are several."""

from __future__ import annotations

import gc
import json
import multiprocessing
import shutil
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from dataflex.curriculum.schedule import Schedule
from dataflex.integrations.transformers import Curriculum
from dataflex.mixers.odm import OdmMixer
from dataflex.selectors.less import LessSelector
from dataflex.testing import tiny_dataset
from dataflex.utils.launch import process_count
from dataflex.weighters.loss import LossWeighter
from helpers import foreign, sft

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["helpers.foreign_run", "transformers.models.llama.modeling_llama"])


def component(name: str) -> dict[str, Any]:
    """What decides in a run, and when: two selections, two mixtures, or weights from the third step on."""
    if name == "odm":
        return {"mixer": OdmMixer(), "domain_column": "kind", "schedule": Schedule(2, 3, 2)}
    if name == "loss":
        return {"weighter": LossWeighter(strategy="extremes"), "schedule": Schedule(2, 6, 1)}
    return {"selector": LessSelector(proj_dim=256, save_interval=5), "schedule": Schedule(2, 3, 2)}


def train(output_dir: Path, *, n: int = 24, by: str = "less", **changes: Any) -> None:
    """Train for 8 steps, on from the last whole checkpoint; note what this process trained on, and what was noted."""
    torch.set_num_threads(1)
    targets = foreign.columns(tiny_dataset(4, seed=50))
    rows = foreign.rows(n)
    found = Curriculum([{**row, "kind": "aab"[place % 3]} for place, row in enumerate(rows)], targets, **component(by))
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    args = foreign.arguments(output_dir, **(settings | changes))
    handed = {} if by == "less" else {"compute_loss_func": found.compute_loss_func}
    trainer = foreign.trainer(args, found.train_dataset, [found.callback], **handed)
    seen = foreign.Seen(trainer.model, rows)
    trainer.train(resume_from_checkpoint=forget_torn(output_dir))
    history = trainer.state.log_history
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    noted = [{key: entry[key] for key in entry if key.startswith(("mixture/", "weight"))} for entry in history]
    outcome = {"losses": losses, "batches": seen.batches, "weights": digest(trainer), "noted": [*filter(None, noted)]}
    (output_dir / f"outcome-{args.process_index}.json").write_text(json.dumps(outcome))


def train_sft(output_dir: Path, n: int, **changes: Any) -> None:
    """The same inside TRL's SFTTrainer, on conversations of which the answers are learnt; nothing is resumed."""
    torch.set_num_threads(1)
    parts = sft.data(sft.conversational, n), sft.data(sft.conversational, 4, 50, distinct=False)
    found = Curriculum(*parts, selector=LessSelector(proj_dim=256), schedule=Schedule(2, 3, 2))
    trainer = sft.trainer(found, output_dir, assistant_only_loss=True, **changes)
    ids = [trainer.processing_class.apply_chat_template(row["messages"], return_dict=False) for row in parts[0]]
    seen = foreign.Seen(trainer.model, [{"input_ids": row} for row in ids])
    trainer.train()
    (output_dir / f"outcome-{trainer.args.process_index}.json").write_text(json.dumps({"batches": seen.batches}))


def digest(trainer: Any) -> dict[str, float]:
    """Sums that tell weights apart."""
    return {name: float(value.double().sum()) for name, value in foreign.weights(trainer).items()}


def forget_torn(output_dir: Path) -> bool:
    """Remove checkpoints that a kill left half written (the trainer writes them in place); whether one is left."""
    whole = 0
    for folder in output_dir.glob("checkpoint-*"):
        state = folder / "trainer_state.json"
        try:
            json.loads(state.read_text())
            whole += 1
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(folder)
    return whole > 0


def start(output_dir: Path, by: str) -> BaseProcess:
    """Begin such a run."""
    process = FORKSERVER.Process(target=train, args=(output_dir,), kwargs={"by": by})
    process.start()
    return process


def finish(output_dir: Path, by: str = "less") -> float:
    """Run to the end; returns the seconds that it took."""
    begun = time.monotonic()
    process = start(output_dir, by)
    process.join()
    assert process.exitcode == 0, f"the run in {output_dir} ended with {process.exitcode}"
    return time.monotonic() - begun


def kill_when(output_dir: Path, wanted: Any, *, after: float, by: str = "less") -> bool:
    """Start a run, wait until ``wanted()`` holds and some seconds more, kill it; whether it was still running."""
    process = start(output_dir, by)
    while process.is_alive() and not wanted():
        time.sleep(0.002)
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


if __name__ == "__main__":
    torch.set_num_threads(1)
    more = json.loads(sys.argv[2])
    more["per_device_train_batch_size"] //= process_count()
    if process_count() > 1:
        more["ddp_backend"] = "gloo"
    run = train_sft if more.pop("sft", False) else train
    run(Path(sys.argv[1]), **more)
    if torch.distributed.is_initialized():  # gloo's threads have to end before the interpreter does
        gc.collect()  # DistributedDataParallel goes before its group
        torch.distributed.destroy_process_group()
