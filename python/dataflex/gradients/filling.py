"""Filling a store: ranks share its missing shards, with a folder that all of them see or without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dataflex.gradients.layout import Shard
from dataflex.gradients.store import FeatureStore
from dataflex.models.model import undisturbed
from dataflex.utils.distributed import Ranks
from dataflex.utils.progress import progress_bar

SAVE_ROWS = 512
"""Rows that a kill may lose where nobody says so: about a second of forward passes."""

Compute = Callable[[list[int]], Tensor]
"""Maps the numbers of b rows, which are computed together, to their values ``(b, k)``."""


def fill_store(
    store: FeatureStore,
    model: nn.Module,
    compute: Compute,
    *,
    description: str,
    save_rows: int = SAVE_ROWS,
    ranks: Ranks,
) -> None:
    """Compute the store's missing shards, which the ranks share; every rank returns when all are written.

    Args:
        store: Where the rows go; its layout says which are computed together.
        model: Held in eval mode and left undisturbed.
        compute: Computes the rows of a batch.
        description: For the progress bar.
        save_rows: Most rows that a kill may lose beside those of the batch that it comes in.
        ranks: The processes of the run; the store lies where all of them see it.
    """
    missing = ranks.share(ranks.on_main(store.missing))
    # None waits for one that has failed.
    ranks.together(lambda: _fill(store, model, compute, missing, description, save_rows, ranks))


def fill_apart(
    open_store: Callable[[], FeatureStore],
    model: nn.Module,
    compute: Compute,
    *,
    prepare: Callable[[], None],
    description: str,
    save_rows: int = SAVE_ROWS,
    ranks: Ranks,
) -> Tensor:
    """All rows of a store, on every rank; the ranks need see no folder in common.

    Whatever shards a rank finds where it looks count, be the folder its own or shared; what nobody has is computed, by
    the rank that has begun with it if there is one, and every rank keeps what it has computed. Rows travel as tensors,
    which is for stores of few numbers a row.

    Args:
        open_store: Opens the store where this rank keeps it; the ranks do so in turn, as some may share a folder.
        model: As for :func:`fill_store`.
        compute: As for :func:`fill_store`.
        prepare: Whatever comes before the first row that is computed.
        description: For the progress bar.
        save_rows: As for :func:`fill_store`.
        ranks: The processes of the run.

    Returns:
        ``(n, k)`` in the store's type, on the CPU.
    """

    def found() -> tuple[FeatureStore, dict[Shard, int]]:
        opened = open_store()
        return opened, {shard: opened.begun(shard) for shard in opened.missing()}

    store, absent = ranks.in_turn(found)
    held = ranks.gather([absent.get(shard, -1) for shard in store.shards])  # rows that are there; -1: all
    owners = {
        shard: next((rank for rank in range(ranks.count) if held[rank][number] < 0), None)
        for number, shard in enumerate(store.shards)
    }
    missing = {
        shard: [held[rank][number] for rank in range(ranks.count)]
        for number, shard in enumerate(store.shards)
        if owners[shard] is None
    }
    if missing:
        prepare()
    makers = _makers(missing, ranks.count)
    own_share = [shard for shard, rank in makers.items() if rank == ranks.index]
    ranks.together(lambda: _fill(store, model, compute, own_share, description, save_rows, ranks))
    return _exchanged(store, {shard: makers.get(shard, owners[shard]) for shard in store.shards}, ranks)


def _makers(missing: Mapping[Shard, Sequence[int]], count: int) -> dict[Shard, int]:
    """The rank that computes each shard: whoever has begun with it, else the one with the least to do.

    Args:
        missing: Rows of each shard that each rank has.
        count: Number of ranks.
    """
    makers: dict[Shard, int] = {}
    rows = [0] * count
    for shard, held in sorted(missing.items(), key=lambda item: -max(item[1])):
        rank = held.index(max(held)) if any(held) else rows.index(min(rows))
        makers[shard] = rank
        rows[rank] += shard[1] - shard[0] - held[rank]
    return makers


def _exchanged(store: FeatureStore, owners: Mapping[Shard, int | None], ranks: Ranks) -> Tensor:
    """``(n, k)`` of all shards, each from the rank that has it, on every rank."""

    def of(rank: int) -> list[Shard]:
        return [shard for shard in store.shards if owners[shard] == rank]

    own = [store.read(shard) for shard in of(ranks.index)]
    parts = ranks.gather_tensors(torch.cat(own) if own else torch.empty((0, store.dim), dtype=store.dtype))
    values = torch.empty((store.num_rows, store.dim), dtype=store.dtype)
    order = torch.from_numpy(store.layout.order)
    for rank, part in enumerate(parts):
        at = 0
        for start, stop in of(rank):
            values[order[start:stop]] = part[at : at + stop - start]
            at += stop - start
    return values


def _fill(
    store: FeatureStore,
    model: nn.Module,
    compute: Compute,
    missing: Sequence[Shard],
    description: str,
    save_rows: int,
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
            making = store.making((start, stop), save_rows)
            bar.update(making.count)
            for rows in store.layout.rows_of(start + making.count, stop):
                making.expect(len(rows))
                making.add(compute(rows))
                bar.update(len(rows))
            making.finish()
