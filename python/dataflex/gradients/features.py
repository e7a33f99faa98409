"""Features phi = P u of whole batches: what training samples and evaluation prompts have in common.

The batched rules (:mod:`dataflex.gradients.hooks`) stream every parameter's block through Adam normalisation and
projection into the accumulator of the batch. Before they are trusted, they are compared, parameter by parameter, with
plain backward passes on this very model (:mod:`dataflex.gradients.check`); where they do not apply or do not agree,
every item gets a backward pass of its own, which is announced with its reason.

What becomes of the blocks is a collector's affair (:mod:`dataflex.gradients.collectors`): features, or anything else
that one pass over the gradients can give (:meth:`GradientFeatures.collect`).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dataflex.errors import GradientError
from dataflex.gradients.check import VERDICTS, Verdict, compared, without_zeros
from dataflex.gradients.collectors import Collector, ProjectedFeatures, at_rates
from dataflex.gradients.context import GradientContext
from dataflex.gradients.filling import fill_store
from dataflex.gradients.hooks import BatchedGradients, Sink, UnsupportedModel
from dataflex.gradients.layout import Layout, by_length
from dataflex.gradients.memory import BatchTokens, available_bytes, bytes_per_token, fitting_tokens
from dataflex.gradients.slots import factor_runs, parameter_slots, picked_values, section_starts
from dataflex.gradients.store import FeatureDtype, FeatureStore
from dataflex.models.model import recomputing, recomputing_layers, undisturbed
from dataflex.models.rope import LengthClass, ScaledRotary, length_class, scaled_rotaries
from dataflex.models.sharding import is_sharded
from dataflex.models.wide import in_float32
from dataflex.projection.projector import AdamMoments, Projector
from dataflex.types import Autocast

logger = logging.getLogger(__name__)

GradientType = Literal["adam", "sgd"]
FEATURE_VERSION = 5
"""Grows when the same inputs give other features."""
CHECKED_ITEMS = 2
EXAMINED_ITEMS = 32
"""Two items with a finite gradient are compared, among so many that are spread over the data."""


@dataclass(frozen=True, slots=True)
class Work:
    """One batch for the rules.

    Attributes:
        rows: b.
        losses: Runs the forward pass: losses ``(b,)``.
        groups: Numbers of consecutive rows that make one item; None: every row is an item.
    """

    rows: int
    losses: Callable[[], Tensor]
    groups: list[int] | None = None


class GradientFeatures(ABC):
    """Computes features of items (samples, prompts) in the model's current state.

    Args:
        context: Model, optimizer and processes as they are now.
        projector: P.
        adam: Moments that normalise the gradients; None: raw gradients.
        batch_tokens: Most padded tokens b x t of one batch, or ``auto``; a single longer item is a batch of its own.
        rates: Of each parameter, which raw gradients are scaled by; empty: 1 for all.
    """

    def __init__(
        self,
        context: GradientContext,
        projector: Projector,
        *,
        adam: AdamMoments | None,
        batch_tokens: BatchTokens,
        rates: Sequence[float] = (),
    ) -> None:
        self._context = context
        self._model: nn.Module = context.model
        self._autocast: Autocast = context.autocast
        self._projector = projector
        self._adam = adam
        self._device = next(context.model.parameters()).device
        self._pick = projector.kind.picks
        self._slots = parameter_slots(context.model, self._pick)
        self._sections = section_starts(self._slots.values())
        self._factors = factor_runs(self._slots.values(), rates) if adam is None else ()
        self._layers = recomputing_layers(context.model)
        self._batch_tokens = batch_tokens
        self._rule: BatchedGradients | None = None
        self._announced = False

    @abstractmethod
    def __len__(self) -> int:
        """Number of items."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """JSON-able facts that fix the features, beside projection and batches."""

    @abstractmethod
    def _find_lengths(self) -> NDArray[np.int64]:
        """``(items,)`` int64: tokens of each item's longest row."""

    @abstractmethod
    def _work(self, items: Sequence[int]) -> Work:
        """The batch of some items."""

    @abstractmethod
    def _plain(self, item: int) -> Tensor:
        """An item's gradient ``(p,)`` from a backward pass of its own."""

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return self._find_lengths()

    def _length(self, item: int) -> int:
        return int(self._lengths[item])

    def _rows(self, item: int) -> int:
        """Rows that an item takes in a batch."""
        del item
        return 1

    def _horizon(self, item: int) -> int:
        """The length that fixes the rotary frequencies of an item's rows."""
        return self._length(item)

    def _length_class(self, item: int) -> LengthClass:
        """Only items of equal class may share a batch."""
        return length_class(self._rotaries, self._horizon(item)) if self._rotaries else ()

    @cached_property
    def _rotaries(self) -> list[ScaledRotary]:
        return scaled_rotaries(self._model)

    def fill(
        self, directory: Path, *, save_rows: int, description: str, dtype: FeatureDtype = "float32"
    ) -> FeatureStore:
        """A complete store of all items; rows whose gradient is not finite are NaN.

        Args:
            directory: Folder of the store; what the same state left there is used.
            save_rows: Most rows that a kill may lose, beside those of the batch that it comes in.
            description: For the progress bar.
            dtype: Type of the features on disk.
        """
        facts = {
            "version": FEATURE_VERSION,
            "projection": self._projector.spec(),
            **self.facts(),
            "batch_tokens": self.batch_tokens,
        }
        ranks = self._context.ranks
        layout = self.layout()
        store = ranks.main_first(lambda: FeatureStore(directory, facts, layout, self._projector.dim, dtype))
        if ranks.on_main(lambda: bool(store.missing())):
            self.prepare()
        fill_store(store, self._model, self.features, description=description, save_rows=save_rows, ranks=ranks)
        return store

    def layout(self) -> Layout:
        """Which items are computed together: neighbours in length, of one length class, within the token budget."""
        items = range(len(self))
        return by_length(
            self._lengths,
            self.batch_tokens,
            rows=np.array([self._rows(item) for item in items], np.int64),
            classes=[self._length_class(item) for item in items] if self._rotaries else None,
        )

    def prepare(self) -> None:
        """Compare the batched rules with plain backward passes; without this, every item gets a pass of its own."""
        self._rule = self._checked_rule()

    @property
    def batch_tokens(self) -> int:
        """The token budget; ``auto`` is decided, and said with its reason, when it is first asked for."""
        if self._batch_tokens == "auto":
            fitting: int = self._context.ranks.with_model(self._fitting_tokens)
            self._batch_tokens = fitting
        return self._batch_tokens

    def features(self, items: Sequence[int]) -> Tensor:
        """Features ``(g, k)`` float32 of g items, computed together where the rules apply.

        The model is in eval mode (:func:`dataflex.models.model.undisturbed`), and :meth:`prepare` was called.
        """
        return self.collect(items, self._collector)

    def collect(self, items: Sequence[int], collector: Callable[[int], Collector]) -> Tensor:
        """Stream the raw gradients of g items, computed together where the rules apply; the model as for features.

        Args:
            items: The g items.
            collector: Makes what takes the gradients of so many items; called again where they turn out not to be
                computed together.

        Returns:
            The collectors' results in the order of the items, ``(g, ...)``.
        """
        collector = at_rates(collector, self._factors)
        if self._rule is not None:
            try:
                taker = collector(len(items))
                self._run(self._rule, items, taker.add)
                return taker.result()
            except UnsupportedModel as error:
                self._announce(str(error))
        return torch.cat([self._collect_alone(item, collector(1)) for item in items])

    @property
    def adam(self) -> AdamMoments | None:
        """Moments that normalise the gradients; None: raw gradients."""
        return self._adam

    def batches_of(self, groups: list[list[int]], most_items: int) -> list[list[list[int]]]:
        """Groups of items of one length class that stay together, in batches as those of :meth:`layout`.

        Args:
            groups: The groups, which may not be empty.
            most_items: The most items of a batch; a single larger group is a batch of its own.
        """
        if self._rule is None:
            return [[group] for group in groups]
        batches: list[list[list[int]]] = []
        rows = items = 0
        for group in sorted(groups, key=lambda group: (self._length_class(group[0]), self._longest(group))):
            own = sum(map(self._rows, group))
            rows, items = rows + own, items + len(group)
            # Groups come in order of length, so this one sets the width of the batch that it joins.
            fits = rows * self._longest(group) <= self.batch_tokens and items <= most_items
            if fits and batches and self._length_class(batches[-1][0][0]) == self._length_class(group[0]):
                batches[-1].append(group)
            else:
                batches.append([group])
                rows, items = own, len(group)
        return batches

    def _longest(self, items: Sequence[int]) -> int:
        return max(map(self._length, items))

    def _collector(self, rows: int) -> Collector:
        return ProjectedFeatures(rows, self._device, self._projector, self._adam, self._sections)

    def _collect_alone(self, item: int, collector: Collector) -> Tensor:
        """What comes of an item's plain gradient, a parameter at a time."""
        with recomputing(self._layers):
            gradient = picked_values(self._slots, self._plain(item)[None])  # (1, p)
        for slot in self._slots.values():
            collector.add(gradient[:, slot.offset : slot.offset + slot.size], slot.offset)
        return collector.result()

    def _run(self, rule: BatchedGradients, items: Sequence[int], sink: Sink) -> None:
        work = self._work(items)
        with recomputing(self._layers):
            rule.run(work.rows, work.losses, sink, groups=work.groups)

    def _fitting_tokens(self) -> int:
        """The token budget that free memory allows."""
        longest = int(self._lengths.argmax())
        with self._gradient_pass():
            work = self._work([longest])
            per_token = bytes_per_token(work.losses, work.rows * self._length(longest), self._model)
        available = available_bytes(self._device)
        tokens = fitting_tokens(available, per_token, self._device.type)
        logger.info(
            "feature_batch_tokens: %d (auto: %.1f GiB free, %.0f KiB of activations a token)",
            tokens,
            available / 2**30,
            per_token / 2**10,
        )
        return tokens

    def _checked_rule(self) -> BatchedGradients | None:
        """The rules if they agree with plain backward passes on some items, else None, with a warning.

        Raises:
            GradientError: No item has a finite gradient, so that nothing can be compared, or memory runs out.
        """
        kind = f"{type(self).__name__} {[slot.size for slot in self._slots.values()]}"
        try:
            rule = BatchedGradients(self._model, self._pick)
        except UnsupportedModel as error:
            self._announce(str(error))
            return None
        verdict = VERDICTS.find(self._model, kind)
        if verdict is None:
            # The processes hold the same model and data: one of them compares, if it holds the model whole.
            reason, unseen, complete = self._context.ranks.with_model(self._judged)
            verdict = Verdict(reason, unseen)
            if complete:
                VERDICTS.keep(self._model, kind, verdict)
        if verdict.reason is None:
            return rule
        self._announce(verdict.reason)
        return None

    def _judged(self) -> tuple[str | None, list[str], bool]:
        """The verdict on the rules, and whether it holds for later; JSON-able."""
        try:
            verdict, complete = self._compared()
        except torch.OutOfMemoryError as error:  # no fault of the rules, and one sample at a time would hide it
            raise GradientError(
                f"there is not enough memory for a batch of gradients: {error}",
                hint="a smaller feature_batch_tokens, or auto; gradient_checkpointing: true",
            ) from error
        except (UnsupportedModel, RuntimeError) as error:  # a model may forbid the taps in its own way
            return str(error), [], False
        return verdict.reason, verdict.unseen, complete

    def _compared(self) -> tuple[Verdict, bool]:
        """The verdict on the rules, and whether it holds for later: lengths differed and every parameter was seen."""
        autocast, self._autocast = self._autocast, nullcontext
        try:
            with self._gradient_pass(), in_float32(self._model), without_zeros(self._model):
                items, expected = self._finite_gradients()
                rule = BatchedGradients(self._model, self._pick)  # of the parameters that are wide for the time

                def run(sink: Sink) -> frozenset[str]:
                    work = self._work(items)
                    return rule.run(work.rows, work.losses, sink, groups=work.groups)

                verdict = compared(self._model, expected, run, self._pick)
        finally:
            self._autocast = autocast
        if verdict.unseen:
            logger.debug("no gradient to compare in %d parameters: %s", len(verdict.unseen), verdict.unseen[:5])
        return verdict, len({self._length(item) for item in items}) > 1 and not verdict.unseen

    def _finite_gradients(self) -> tuple[list[int], Tensor]:
        """Two items of different length, if there are any, and their plain gradients ``(g, p)``.

        An item whose gradient is not finite would prove nothing.

        Raises:
            GradientError: There is no other.
        """
        candidates = self._comparable()
        varied = len({self._length(item) for item in candidates}) > 1
        found: dict[int, Tensor] = {}
        for item in candidates:
            if varied and any(self._length(item) == self._length(other) for other in found):
                continue
            gradient = self._plain(item)
            if gradient.isfinite().all():
                found[item] = picked_values(self._slots, gradient)
            if len(found) == CHECKED_ITEMS:
                break
        if not found:
            raise GradientError(
                f"none of the {len(candidates)} examined of {len(self)} gradients is finite, so that there is nothing "
                "to compare the batched rules with",
                hint="are the model's weights finite? Train with a smaller learning rate, or in another precision",
            )
        return list(found), torch.stack(list(found.values()))

    def _comparable(self) -> list[int]:
        """Items that may share a batch, spread over the data: the shortest, one of median length, then the others.

        They are of the length class of which there are most.
        """
        spread = range(0, len(self), max(1, len(self) // EXAMINED_ITEMS))
        classes = Counter(self._length_class(item) for item in spread)
        common = max(classes, key=classes.__getitem__)
        items = sorted((item for item in spread if self._length_class(item) == common), key=self._length)
        middle = len(items) // 2
        return [*items[:1], *items[middle:], *items[1:middle]]

    @contextmanager
    def _gradient_pass(self) -> Iterator[None]:
        with undisturbed(self._model), recomputing(self._layers):
            yield

    def _announce(self, reason: str) -> None:
        """Say that gradients are computed one at a time; with sharded parameters each would be everyone's."""
        if is_sharded(self._model):
            raise GradientError(
                f"the batched rules do not fit this model, and sharded parameters allow nothing else yet: {reason}",
                hint="fsdp: false, or a selector without gradients (loss, delta_loss, rds, random)",
            )
        if not self._announced:
            text = (
                "gradients are computed one sample at a time, which takes two to four times as long: the batched rules"
            )
            logger.warning("%s do not fit this model: %s", text, reason)
        self._announced = True
