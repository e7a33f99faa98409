"""One cell of the table: a method on the pool of a task and a seed, from the base model to the test rows.

A new adapter is trained on the choice for a number of steps that does not depend on its size, so a small choice is seen
more often. Methods without a choice of their own (all rows, none) and right rows that are fewer than the budget are the
same cell at every budget, and measured once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

import dataflex as df
from dataflex.data.cache import CacheSettings
from dataflex.models.model import load_model, load_tokenizer
from dataflex.training.evaluation import AnswerMetric, Evaluator
from dataflex.training.inputs import as_dataset
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import write_json

from .choices import Setting, choose, of_report
from .measures import of_choice, of_scores
from .methods import METHODS
from .pools import Pool, build
from .protocol import CUTOFF, ENCODER, METRIC, MODEL, TEMPLATE, Protocol, digest, pool_facts, weights_digest
from .public import PublicRows
from .spent import spent
from .store import Result, Store
from .tasks import TASKS


@dataclass(frozen=True)
class Cell:
    """Which cell.

    Attributes:
        method: Name of the method.
        seed: Of the pool, the adapter, the warm-up and the training.
        task: Name of the target task.
        budget: Share of the pool that is chosen; None: the rows of the steps that a run goes on for.
    """

    method: str
    seed: int
    task: str = "kinds"
    budget: float | None = None


@dataclass(frozen=True)
class Bench:
    """Where and how cells are computed.

    Attributes:
        protocol: What they have in common.
        most: Largest budget, which choices go as far as.
        model: Folder of the base model; where it is absent, results are looked up for the published one.
        encoder: Folder of the model that embeds texts, likewise; None: methods that need it are not measured.
        store: Results.
        public: Public rows in the pools, or none; where their package is absent, results are looked up.
    """

    protocol: Protocol
    most: float | None
    model: Path
    encoder: Path | None
    store: Store
    public: PublicRows | None = None

    def find(self, cell: Cell) -> Result | None:
        """The kept result of a cell, or None."""
        found = self.store.find(self.key(cell))
        return None if found is None else {**found, **asdict(cell)}

    def measurable(self, cell: Cell) -> bool:
        """Whether what the cell needs is at hand."""
        rows = self.public is None or self.public.wheel is not None
        return self.model.is_dir() and rows and (self.encoder is not None or not METHODS[cell.method].embeds)

    def measure(self, cell: Cell) -> Result:
        """Compute a cell and keep it."""
        wall, processor = time.perf_counter(), time.process_time()
        found = _Run(self, cell).result()
        whole = {"total_seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
        facts = {"revision": revision(), "utc": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"}
        self.store.keep(self.key(cell), _rounded({**asdict(cell), **found, **whole, **facts}))
        return self.find(cell) or found

    def key(self, cell: Cell) -> str:
        """Digest of everything that a cell's outcome depends on, but the code."""
        method = METHODS[cell.method]
        resolved = method.resolved(self.longest(cell), self._encoder_digest)
        counts = {"count": self.count(cell), "furthest": self._furthest(cell) if method.chooses else 0}
        return digest({**self._pool_facts(cell), "method": resolved, **counts})

    def count(self, cell: Cell) -> int:
        """Rows that are trained on: the budget, unless the method has a number of its own."""
        rows, selector = self._rows(cell), METHODS[cell.method].selector
        count = self.protocol.chosen(rows, cell.budget)
        own = {"": 0, "all": rows, "oracle": min(self.protocol.sizes.right, count)}
        return own.get(selector, count)

    def choice(self, cell: Cell, tokenizer: PreTrainedTokenizerBase) -> Result:
        """A method's choice on a pool, which all budgets share."""
        method, setting = METHODS[cell.method], self.setting(cell)
        count = self._furthest(cell)
        resolved = method.resolved(self.longest(cell), self._encoder_digest)
        path = self.store.folder / "choices" / f"{digest({'shared': setting.shared, **resolved, 'count': count})}.json"
        if path.is_file():
            kept: Result = json.loads(path.read_text(encoding="utf-8"))
            return kept
        found = choose(setting, method, tokenizer, count)
        write_json(path, found)
        return found

    def setting(self, cell: Cell) -> Setting:
        """What the cells of a pool share."""
        shared, work = digest(self._pool_facts(cell)), self.store.folder / "work"
        where = (self.model, self.encoder, work, shared)
        return Setting(self._protocol(cell), self.pool(cell), cell.seed, self.longest(cell), *where)

    def longest(self, cell: Cell) -> int:
        """Tokens of the longest answer."""
        return self.protocol.max_new_tokens or TASKS[cell.task].max_new_tokens

    def pool(self, cell: Cell) -> Pool:
        """The cell's pool."""
        drawn = self._drawn(cell)
        return drawn if self.public is None else self.public.beside(drawn, cell.seed)

    def _drawn(self, cell: Cell) -> Pool:
        """The pool's generated rows."""
        return _pool(cell.seed, self.protocol, cell.task)

    def _rows(self, cell: Cell) -> int:
        """Rows of the pool, which are known without the package of public ones."""
        return len(self._drawn(cell).rows) + (0 if self.public is None else self.public.total)

    def _furthest(self, cell: Cell) -> int:
        """How many rows a method is asked for: the right rows, or those of the largest budget."""
        if METHODS[cell.method].selector == "oracle":
            return self.protocol.sizes.right
        return self.protocol.chosen(self._rows(cell), self.most)

    def _pool_facts(self, cell: Cell) -> dict[str, Any]:
        """Public rows by the digest of their package, so that results are found without it."""
        facts = pool_facts(self._protocol(cell), self._drawn(cell), self._model_digest, cell.task)
        return facts if self.public is None else {**facts, "public": self.public.facts}

    def _protocol(self, cell: Cell) -> Protocol:
        method, found = METHODS[cell.method], self.protocol
        if method.warmup is not None:
            found = replace(found, warmup_step=method.warmup)
        return replace(found, update_step=found.steps // method.updates) if method.updates else found

    @property
    def _model_digest(self) -> str:
        return weights_digest(self.model) if self.model.is_dir() else MODEL

    @property
    def _encoder_digest(self) -> str:
        return ENCODER if self.encoder is None else weights_digest(self.encoder)


@dataclass(frozen=True)
class _Run:
    """A cell that is being computed."""

    bench: Bench
    cell: Cell

    def result(self) -> Result:
        """Choose, train and test, as far as the method does."""
        method, tokenizer = METHODS[self.cell.method], load_tokenizer(str(self.bench.model))
        if method.selector == "":
            return self._tested(load_model(str(self.bench.model)), tokenizer)
        if method.trains is True:
            return self._gone_on(tokenizer)
        pool, count = self.bench.pool(self.cell), self.bench.count(self.cell)
        choice = self.bench.choice(self.cell, tokenizer) if method.chooses else {"indices": [*range(len(pool.rows))]}
        if "stopped" in choice:
            return choice
        indices = choice["indices"][:count]
        found = {**choice, "indices": indices, **of_choice(pool, indices)}
        return {**found, **self._trained(indices, tokenizer)} if method.trains else found

    def _trained(self, indices: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Result:
        """Train a new adapter on the choice alone and test it."""
        setting = self.bench.setting(self.cell)
        with self._folder() as folder, spent("train") as costs:
            arguments = setting.arguments(folder, max_steps=setting.protocol.steps)
            rows = [setting.pool.rows[place] for place in indices]
            trainer = df.Trainer(setting.adapted(), tokenizer, rows, args=arguments)
            trainer.train()
        return {**self._tested(trainer.model, tokenizer), **costs}

    def _gone_on(self, tokenizer: PreTrainedTokenizerBase) -> Result:
        """Let the run that warmed up select and go on with the choice, as often as the method does."""
        setting, updates = self.bench.setting(self.cell), METHODS[self.cell.method].updates or 1
        cache = setting.work / f"features-{setting.shared}"
        with self._folder() as folder:
            selector = METHODS[self.cell.method].build(setting.max_new_tokens, cache, setting.encoder)
            trainer = setting.trainer(tokenizer, selector, folder, updates)
            trainer.train()
            first, every = setting.protocol.warmup_step, setting.protocol.update_step
            paths = [folder / "selections" / f"step-{first + every * number}.parquet" for number in range(updates)]
            return {**_selected(paths, setting.pool), **self._tested(trainer.model, tokenizer)}

    def _tested(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> Result:
        """Greedy answers of the model to the test rows, and its loss on their references."""
        template, rows = df.ChatTemplate.load(TEMPLATE, tokenizer), self.bench.pool(self.cell).test
        longest = self.bench.longest(self.cell)
        metric = AnswerMetric.from_params(METRIC, max_new_tokens=longest, max_prompt_length=CUTOFF)
        dataset = as_dataset(list(rows), template, CUTOFF, CacheSettings(), keep_unlabelled=True)
        evaluator = Evaluator(model, tokenizer, template, dataset, len(rows), nullcontext, Ranks(), metric)
        with spent("test") as costs:
            rewards = [float(answer.reward or 0.0) for answer in evaluator.answers()]
            losses = [loss.total / loss.tokens for loss in evaluator.losses() if loss is not None]
        return {"test_rewards": rewards, "test_losses": losses, **costs}

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where the run writes, until it is done."""
        folder = self.bench.store.folder / "work" / self.bench.key(self.cell)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _selected(paths: Sequence[Path], pool: Pool) -> Result:
    """The choices of a run, from its tables of selections: all rows, one after the other, and the last one's scores."""
    indices: list[int] = []
    for path in paths:
        table = pq.read_table(path)
        columns = zip(*(table[name].to_pylist() for name in ("rank", "index")), strict=True)
        indices += [index for _, index in sorted(row for row in columns if row[0] is not None)]
    facts = json.loads(table.schema.metadata[b"dataflex"])
    scores = table["score"].to_pylist()
    of = of_scores(pool, None if None in scores else scores)
    return {"indices": indices, **of_choice(pool, indices), **of, **of_report(facts["report"])}


@lru_cache(maxsize=64)
def _pool(seed: int, protocol: Protocol, task: str) -> Pool:
    return build(seed, protocol.sizes, task)


def _rounded(value: Any) -> Any:
    """Floats to six digits: no figure of the table has more than three."""
    if isinstance(value, dict):
        return {key: _rounded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_rounded(own) for own in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def revision() -> str:
    """The commit of the working tree."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
