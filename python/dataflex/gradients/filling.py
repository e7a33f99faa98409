"""Filling a store: ranks share its missing shards, with a folder that all of them see or without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dataflex.gradients.store import FeatureStore, Shard
from dataflex.models.model import undisturbed
from dataflex.utils.distributed import Ranks
from dataflex.utils.progress import progress_bar

Split = Callable[[list[int]], list[list[int]]]
"""Splits the rows of a shard into those that are computed together. It sees one shard only, so that a row's batch, and
with it its rounding, is the same in a resumed run and for any number of ranks."""


def fill_store(
    store: FeatureStore,
    model: nn.Module,
    features: Callable[[list[int]], Tensor],
    *,
    description: str,
    batches: Split | None = None,
    ranks: Ranks,
) -> None:
    """Compute the store's missing shards, which the ranks share; every rank returns when all are written.

    Args:
        store: Where the rows go.
        model: Held in eval mode and left undisturbed.
        features: Maps the numbers of b rows to their features ``(b, k)``.
        description: For the progress bar.
        batches: Splits the rows of a shard; None: one at a time.
        ranks: The processes of the run; the store lies where all of them see it.
    """
    missing = ranks.share(ranks.on_main(store.missing))
    # None waits for one that has failed.
    ranks.together(lambda: _fill(store, model, features, missing, description, batches, ranks))


def fill_apart(
    open_store: Callable[[], FeatureStore],
    model: nn.Module,
    features: Callable[[list[int]], Tensor],
    *,
    prepare: Callable[[], None],
    description: str,
    batches: Split | None = None,
    ranks: Ranks,
) -> Tensor:
    """All rows of a store, on every rank; the ranks need see no folder in common.

    Whatever shards a rank finds where it looks count, be the folder its own or shared; what nobody has is computed,
    and every rank keeps what it has computed. Rows travel as tensors, which is for stores of few numbers a row.

    Args:
        open_store: Opens the store where this rank keeps it; the ranks do so in turn, as some may share a folder.
        model: As for :func:`fill_store`.
        features: As for :func:`fill_store`.
        prepare: Whatever comes before the first row that is computed.
        description: For the progress bar.
        batches: As for :func:`fill_store`.
        ranks: The processes of the run.

    Returns:
        ``(n, k)`` in the store's type, on the CPU.
    """

    def found() -> tuple[FeatureStore, list[Shard]]:
        opened = open_store()
        return opened, opened.missing()

    store, absent = ranks.in_turn(found)
    have = ranks.gather([shard for shard in store.shards if shard not in absent])
    owners = {tuple(shard): rank for rank in reversed(range(ranks.count)) for shard in have[rank]}
    missing = [shard for shard in store.shards if shard not in owners]
    if missing:
        prepare()
    owners |= {shard: number % ranks.count for number, shard in enumerate(missing)}
    ranks.together(lambda: _fill(store, model, features, ranks.share(missing), description, batches, ranks))
    own = [torch.cat([rows for _, rows in store.blocks_of(shard)]) for shard in _of(owners, store, ranks.index)]
    parts = ranks.gather_tensors(torch.cat(own) if own else torch.empty((0, store.dim), dtype=store.dtype))
    values = torch.empty((store.num_rows, store.dim), dtype=store.dtype)
    for rank, part in enumerate(parts):
        at = 0
        for start, stop in _of(owners, store, rank):
            values[start:stop] = part[at : at + stop - start]
            at += stop - start
    return values


def _of(owners: Mapping[tuple[int, ...], int], store: FeatureStore, rank: int) -> list[Shard]:
    """The shards that a rank hands to the others."""
    return [shard for shard in store.shards if owners[shard] == rank]


def _fill(
    store: FeatureStore,
    model: nn.Module,
    features: Callable[[list[int]], Tensor],
    missing: Sequence[Shard],
    description: str,
    batches: Split | None,
    ranks: Ranks,
) -> None:
    """Compute and write this rank's share of the missing shards."""
    todo = sum(stop - start for start, stop in missing)
    total = store.num_rows if ranks.count == 1 else todo
    with (
        undisturbed(model),
        progress_bar(total, description, unit="row", initial=total - todo, disable=not ranks.is_main) as bar,
    ):
        for start, stop in missing:
            rows = list(range(start, stop))
            shard = torch.empty((len(rows), store.dim), dtype=torch.promote_types(store.dtype, torch.float32))
            for batch in batches(rows) if batches else [[row] for row in rows]:
                shard[[row - start for row in batch]] = features(batch).cpu()
                bar.update(len(batch))
            store.write(start, shard)
