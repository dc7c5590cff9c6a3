"""Shuffled reading in constant memory, ahead of the training step.

The order of an epoch is a function of the seed and the epoch alone (:mod:`scmamba.data.sampler`). Blocks of consecutive cells are
shuffled and distributed over 64 stripes; position p of the epoch belongs to stripe p mod 64. A process that reads every k-th position, k a
divisor of 64, reads whole blocks and none twice, and all processes together read the sequence that a single one would read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from .sampler import EpochSampler

if TYPE_CHECKING:
    from .cell_batch import CellBatch
    from .collection import Collection


#: Cells in the order of the files, and where each position of the load finds its own.
Chunk = tuple["CellBatch", np.ndarray]


class PrefetchLoader:
    """Prefetching loader: gives one of several processes its cells, and reads the next chunk in the background.

    Parameters
    ----------
    shard, shards
        This reader takes every ``shards``-th position, beginning with ``shard``.
    """

    def __init__(
        self, collection: Collection, order: EpochSampler, *, shard: int = 0, shards: int = 1
    ) -> None:
        self.collection, self.order, self.shard, self.shards = collection, order, shard, shards
        self._loads: OrderedDict[tuple[int, int], Chunk | Future[Chunk]] = OrderedDict()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="scmamba-reading")

    def __len__(self) -> int:
        return len(self.order)

    def at(self, positions: np.ndarray) -> CellBatch:
        """Cells at absolute positions (epochs one after the other), in the order given.

        Parameters
        ----------
        positions
            (n,) positions; all must belong to this reader.

        Returns
        -------
        CellBatch
            Cell ``i`` is the one at ``positions[i]``.
        """
        epochs, within = np.divmod(np.asarray(positions, dtype=np.int64), len(self.order))
        loads = within // self.order.span
        pieces: list[CellBatch] = []
        order: list[np.ndarray] = []
        for epoch, load in dict.fromkeys(zip(epochs.tolist(), loads.tolist())):
            mine = (epochs == epoch) & (loads == load)
            first = self._first(epoch, load)
            block, place = self._load(epoch, load)
            pieces.append(block.take(place[(within[mine] - first) // self.shards]))
            order.append(np.flatnonzero(mine))
        if len(pieces) == 1:
            return pieces[0]
        joined, came = _join(pieces), np.concatenate(order)
        return joined if bool((np.diff(came) > 0).all()) else joined.take(np.argsort(came))

    def epoch(self, number: int, batch_size: int) -> Iterator[CellBatch]:
        """This reader's batches of one epoch; the last may be smaller."""
        base = number * len(self.order)
        own = np.arange((self.shard - base) % self.shards, len(self.order), self.shards)
        for start in range(0, len(own), batch_size):
            yield self.at(base + own[start : start + batch_size])

    def _first(self, epoch: int, load: int) -> int:
        """First position of the load, within its epoch, that is this reader's."""
        start = load * self.order.span
        return start + (self.shard - (epoch * len(self.order) + start)) % self.shards

    def _load(self, epoch: int, load: int) -> Chunk:
        key = (epoch, load)
        following = (epoch, load + 1) if load + 1 < self.order.chunks else (epoch + 1, 0)
        if key not in self._loads:
            self._loads[key] = self._reader.submit(self._read, *key)
        found = self._loads[key]
        ready = found.result() if isinstance(found, Future) else found
        self._loads[key] = ready
        if following not in self._loads:
            # At most this load, the one before it (a batch may straddle both) and the next are in memory.
            for old in [k for k in self._loads if k != key][:-1]:
                del self._loads[old]
            self._loads[following] = self._reader.submit(self._read, *following)
        return ready

    def _read(self, epoch: int, load: int) -> Chunk:
        end = min((load + 1) * self.order.span, len(self.order))
        positions = np.arange(self._first(epoch, load), end, self.shards)
        cells = self.collection.cells[self.order.epoch(epoch)[positions]]
        # Kept as the files have them: putting a whole load in order would copy it once more than handing out batches does.
        by_file = np.argsort(cells)
        place = np.empty(len(cells), dtype=np.int64)
        place[by_file] = np.arange(len(cells))
        return self.collection.read_sorted(cells[by_file]), place


def _join(blocks: list[CellBatch]) -> CellBatch:
    from scipy import sparse

    from .cell_batch import CellBatch

    values = sparse.csr_matrix(sparse.vstack([b.values for b in blocks], format="csr"))
    return CellBatch(
        values,
        *(
            np.concatenate([getattr(b, name) for b in blocks])
            for name in ("totals", "cells", "files")
        ),
    )
