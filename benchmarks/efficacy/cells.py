"""One cell of the table: a method on the pool of a seed, from the base model to the test rows, kept when it is done.

Everything random follows from the seed, so all methods of a seed start from the same adapter, take the same warm-up
steps, and select in the same state of the model. Methods by gradient share the candidates' features, and those of NICE
their answers and rewards, as resumed runs do: what one has computed the next one reads.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import dataflex as df
from dataflex.models.model import add_lora, load_model, load_tokenizer
from dataflex.training.evaluation import AnswerMetric, Evaluator
from dataflex.training.inputs import as_dataset
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import write_json

from .measures import of_choice
from .methods import METHODS, Method
from .pools import Pool, Row, build
from .protocol import CUTOFF, EPOCHS, METRIC, TEMPLATE, Protocol, cell_key

logger = logging.getLogger(__name__)

DRAW = 1000
"""Between the seeds of two draws of a selection, further apart than the seeds of pools."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where and how cells are computed.

    Attributes:
        protocol: What they have in common.
        model: Folder of the base model.
        folder: Results, and the work of runs that go on.
    """

    protocol: Protocol
    model: Path
    folder: Path

    def cell(self, name: str, seed: int, *, only_cached: bool = False) -> Result | None:
        """The result of a method on the pool of a seed, from the cache if it is there."""
        method, pool = METHODS[name], build(seed, self.protocol.sizes)
        key = cell_key(self.protocol, pool, self.model, resolved(method, self.protocol))
        path = self.folder / "results" / f"{key}.json"
        if path.is_file():
            return {**json.loads(path.read_text(encoding="utf-8")), "method": name}
        if only_cached:
            return None
        begun = time.perf_counter()
        found = _Cell(self, method, pool, seed, key).run()
        facts = {"seed": seed, "total_seconds": time.perf_counter() - begun, "revision": revision()}
        result = {"method": name, **facts, "utc": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", **found}
        write_json(path, result)
        return result


def resolved(method: Method, protocol: Protocol) -> dict[str, Any]:
    """A method with all parameters that hold, so that another default is another cell."""
    config = method.build(protocol, Path()).config.model_dump(mode="json") if method.selector else {}
    facts = {"selector": method.selector, "trains": method.trains, "params": {**config, "cache_dir": None}}
    return {**facts, "draw": method.draw} if method.draw else facts


@dataclass(frozen=True)
class _Cell:
    """A cell that is being computed."""

    bench: Bench
    method: Method
    pool: Pool
    seed: int
    key: str

    def run(self) -> Result:
        """Train, or select only, and measure."""
        tokenizer = load_tokenizer(str(self.bench.model))
        model = self._adapted()
        if not self.method.selector:
            return self._tested(model, tokenizer)
        work = self.bench.folder / "work" / self.key
        try:
            if self.method.trains == "after":
                return self._trained_after(tokenizer, work)
            return self._trained(model, tokenizer, work) if self.method.trains else self._chosen(model, tokenizer)
        except df.DataflexError as error:
            if "no evaluation prompt carries a signal" not in str(error):
                raise
            return {"stopped": "no signal"}
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _adapted(self) -> PreTrainedModel:
        torch.manual_seed(self.seed)
        rank = self.bench.protocol.rank
        return add_lora(load_model(str(self.bench.model)), rank=rank, alpha=2 * rank)

    @property
    def _shared(self) -> Path:
        """What the methods of a seed share: features, answers, the state after the warm-up."""
        return self.bench.folder / "work" / f"shared-{cell_key(self.bench.protocol, self.pool, self.bench.model, {})}"

    def _arguments(self, work: Path, **more: Any) -> df.TrainingArguments:
        """How every cell trains."""
        return df.TrainingArguments(
            output_dir=work,
            overwrite_output_dir=True,
            seed=self.seed,
            template=TEMPLATE,
            cutoff_len=CUTOFF,
            learning_rate=self.bench.protocol.learning_rate,
            per_device_train_batch_size=self.bench.protocol.batch,
            plot_loss=False,
            **more,
        )

    def _trained(self, model: Any, tokenizer: PreTrainedTokenizerBase, work: Path) -> Result:
        protocol = self.bench.protocol
        trainer = df.Trainer(
            model,
            tokenizer,
            self.pool.rows,
            self.pool.prompts,
            self.method.build(protocol, self._shared),
            schedule=df.Schedule(protocol.warmup_step, protocol.update_step, 1),
            args=self._arguments(work),
        )
        begun = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begun
        kept = self._shared / f"checkpoint-{protocol.warmup_step}"
        if not kept.exists():
            shutil.copytree(work / kept.name, kept)
        table = pq.read_table(work / "selections" / f"step-{protocol.warmup_step}.parquet")
        facts = json.loads(table.schema.metadata[b"dataflex"])
        ranked = sorted(
            row
            for row in zip(*(table[name].to_pylist() for name in ("rank", "index")), strict=True)
            if row[0] is not None
        )
        scores = table["score"].to_pylist()
        return {
            **of_choice(self.pool, [index for _, index in ranked], None if None in scores else scores),
            **_of_report(facts["report"]),
            **self._tested(trainer.model, tokenizer),
            "train_seconds": seconds,
        }

    def _trained_after(self, tokenizer: PreTrainedTokenizerBase, work: Path) -> Result:
        """Select after the warm-up, then train a new adapter on the choice alone, every row in each epoch."""
        found = self._chosen(self._adapted(), tokenizer)
        trainer = df.Trainer(
            self._adapted(),
            tokenizer,
            [self.pool.rows[place] for place in found["indices"]],
            args=self._arguments(work, num_train_epochs=EPOCHS),
        )
        trainer.train()
        return {**found, **self._tested(trainer.model, tokenizer)}

    def _chosen(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Result:
        protocol = self.bench.protocol
        checkpoint = self._shared / f"checkpoint-{protocol.warmup_step}"
        if not checkpoint.exists():
            self.bench.cell("random", self.seed)
        if not checkpoint.exists():  # the cell of random rows came from the cache
            _Cell(self.bench, METHODS["random"], self.pool, self.seed, f"{self.key}-warmup").run()
        found = df.select(
            model,
            tokenizer,
            self.pool.rows,
            self.pool.prompts,
            selector=self.method.build(protocol, self._shared),
            num_samples=protocol.chosen,
            checkpoint=checkpoint,
            template=TEMPLATE,
            cutoff_len=CUTOFF,
            seed=self.seed + DRAW * self.method.draw,
        )
        scores = None if found.scores is None else found.scores.tolist()
        indices = found.indices.tolist()
        return {"indices": indices, **of_choice(self.pool, indices, scores), **_of_report(found.report)}

    def _tested(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Result:
        """Greedy answers of the model to the test rows."""
        template = df.ChatTemplate.load(TEMPLATE, tokenizer)
        metric = AnswerMetric.from_params(
            METRIC, max_new_tokens=self.bench.protocol.max_new_tokens, max_prompt_length=CUTOFF
        )
        rows: Sequence[Row] = self.pool.test
        dataset = as_dataset(list(rows), template, CUTOFF, keep_unlabelled=True)
        begun = time.perf_counter()
        evaluator = Evaluator(model, tokenizer, template, dataset, len(rows), nullcontext, Ranks(), metric)
        rewards = [float(answer.reward or 0.0) for answer in evaluator.answers()]
        return {
            "exact_match": fmean(rewards),
            "test_rewards": rewards,
            "test_seconds": time.perf_counter() - begun,
        }


def _of_report(report: Result) -> Result:
    """Reliability, rewards and seconds from a selection's own report."""
    kept = {key: report[key] for key in ("reliability", "seconds", "prompts", "rewards", "scoring") if key in report}
    rewards = report.get("rewards")
    if rewards:
        kept["share_rewarded"] = rewards["mean"]  # of rewards 0 and 1
    return kept


def revision() -> str:
    """The commit of the working tree."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
