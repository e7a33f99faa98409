"""The choice of a method on a pool: after the warm-up, as far as the largest budget goes.

A choice is best first, so a smaller budget is the head of a larger one, and a method selects once for all of them.
Everything random follows from the seed: all methods of a seed take the same warm-up steps and select in the same state
of the model.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import dataflex as df
from dataflex.models.model import add_lora, load_model

from .measures import of_scores
from .methods import Method, write_matrix
from .pools import Pool
from .protocol import CUTOFF, TEMPLATE, Protocol
from .spent import spent
from .store import Result

DRAW = 1000
"""Between the seeds of two draws of a selection, further apart than the seeds of pools."""
LOW_RELIABILITY = "mostly noise"
"""What a selection warns with where its target cannot be trusted."""


@dataclass(frozen=True)
class Setting:
    """A pool with everything that its cells share.

    Attributes:
        protocol: How cells are trained.
        pool: The pool.
        seed: Its seed.
        max_new_tokens: Longest answer.
        model: Folder of the base model.
        encoder: Folder of the model that embeds texts, if there is one.
        work: Folder of what runs leave behind.
        shared: Digest of what the methods of the pool share.
    """

    protocol: Protocol
    pool: Pool
    seed: int
    max_new_tokens: int
    model: Path
    encoder: Path | None
    work: Path
    shared: str

    def adapted(self) -> PreTrainedModel:
        """The base model with the adapter that all methods of the seed start from."""
        torch.manual_seed(self.seed)
        rank = self.protocol.rank
        return add_lora(load_model(str(self.model)), rank=rank, alpha=2 * rank)

    def arguments(self, folder: Path, **more: Any) -> df.TrainingArguments:
        """How every cell trains."""
        return df.TrainingArguments(
            output_dir=folder,
            overwrite_output_dir=True,
            seed=self.seed,
            template=TEMPLATE,
            cutoff_len=CUTOFF,
            learning_rate=self.protocol.learning_rate,
            per_device_train_batch_size=self.protocol.batch,
            plot_loss=False,
            **more,
        )

    def trainer(
        self, tokenizer: PreTrainedTokenizerBase, selector: df.Selector[Any], folder: Path, updates: int = 1
    ) -> df.Trainer:
        """A run that selects after the warm-up and goes on with the choice, once or several times."""
        protocol = self.protocol
        return df.Trainer(
            self.adapted(),
            tokenizer,
            self.pool.rows,
            self.pool.prompts,
            selector,
            schedule=df.Schedule(protocol.warmup_step, protocol.update_step, updates),
            args=self.arguments(folder),
        )

    def warmed(self, tokenizer: PreTrainedTokenizerBase) -> Path:
        """The checkpoint after the warm-up, made once."""
        kept = self.work / f"warm-{self.shared}"
        if not kept.exists():
            run = self.work / f"warming-{self.shared}"
            self.trainer(tokenizer, df.RandomSelector(), run).train()
            shutil.move(run / f"checkpoint-{self.protocol.warmup_step}", kept)
            shutil.rmtree(run)
        return kept


def choose(setting: Setting, method: Method, tokenizer: PreTrainedTokenizerBase, count: int) -> Result:
    """The ``count`` best rows by a method, what its scores are worth, and what the selection reports."""
    checkpoint, model = setting.warmed(tokenizer), setting.adapted()
    # Those of the table have a folder of their own, so that their seconds are whole; ablations share their features.
    cache = setting.work / f"features-{setting.shared}{f'-{method.selector}' if method.trains else ''}"
    try:
        with _warnings() as said, spent("choice") as costs:
            if method.selector == "near":
                assert setting.encoder is not None
                write_matrix(setting.pool, cache, setting.encoder, width=count)
            found = df.select(
                model,
                tokenizer,
                setting.pool.rows,
                setting.pool.prompts,
                selector=method.build(setting.max_new_tokens, cache, setting.encoder),
                num_samples=count,
                checkpoint=checkpoint,
                template=TEMPLATE,
                cutoff_len=CUTOFF,
                seed=setting.seed + DRAW * method.draw,
            )
    except df.DataflexError as error:
        if "no evaluation prompt carries a signal" not in str(error):
            raise
        return {"stopped": "no signal"}
    finally:
        if method.trains:
            shutil.rmtree(cache, ignore_errors=True)
    scores = None if found.scores is None else found.scores.tolist()
    facts = {**of_scores(setting.pool, scores), **of_report(found.report), **costs}
    return {"indices": found.indices.tolist(), "warned": any(LOW_RELIABILITY in text for text in said), **facts}


def of_report(report: Result) -> Result:
    """Reliability, rewards and seconds from a selection's own report."""
    kept = {key: report[key] for key in ("reliability", "seconds", "prompts", "rewards", "scoring") if key in report}
    rewards = report.get("rewards")
    if rewards:
        kept["share_rewarded"] = rewards["mean"]  # of rewards 0 and 1
    return kept


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The warnings that dataflex logs meanwhile."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener, logger = Listener(logging.WARNING), logging.getLogger("dataflex")
    logger.addHandler(listener)
    try:
        yield said
    finally:
        logger.removeHandler(listener)
