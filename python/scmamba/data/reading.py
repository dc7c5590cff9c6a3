"""Shuffled reading in constant memory: which cell comes when, and the shelf that holds the cells to come.

The order of an epoch is a function of the seed and the epoch alone, whoever reads it. Blocks of neighbouring cells are put in random
order and dealt out to 64 lanes; position p of the epoch belongs to lane p mod 64. A reader of every k-th position, k a divisor of 64, thus
reads whole blocks and nothing twice, and all readers together see the very sequence a single one would have seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .collection import Block, Collection

#: Processes that divide this number read nothing twice.
LANES = 64
#: Bytes the values and gene numbers of one shelf-load should take.
_LOAD_BYTES = 96e6


def span_of(n: int, mean_length: float) -> int:
    """Cells of one shelf-load: about 96 MB of sparse values, at most 16,384 cells, whole lanes."""
    fits = int(_LOAD_BYTES / (8 * max(mean_length, 1.0)))
    return max(LANES, min(16_384, fits, n) // LANES * LANES)


@dataclass
class Order:
    """The order of every epoch.

    Attributes
    ----------
    n
        Number of cells; a position of the order stands for the cell at that place of ``Collection.cells``.
    block, span
        Neighbouring cells read together; cells shuffled with one another at a time.
    group, lengths
        Sort each span by ``lengths`` (n,) into batches of ``group`` cells, so that little of a batch is padding; 0: leave them mixed.
    """

    n: int
    block: int = 64
    span: int = 8192
    seed: int = 0
    group: int = 0
    lengths: np.ndarray | None = None
    _kept: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        self.lanes = LANES if self.n >= LANES else 1
        self.span = max(self.lanes, min(self.span, self.n) // self.lanes * self.lanes)
        # Small collections: blocks so small that every lane gets several.
        self.block = max(1, min(self.block, self.n // (4 * self.lanes)))

    def __len__(self) -> int:
        """Positions of an epoch; up to 63 cells, other ones each time, are left out."""
        return self.n // self.lanes * self.lanes

    @property
    def loads(self) -> int:
        """Shelf-loads of an epoch."""
        return -(-len(self) // self.span)

    def epoch(self, number: int) -> np.ndarray:
        """(len,) the cells in order; the last two epochs asked for are remembered."""
        if number not in self._kept:
            while len(self._kept) > 1:
                self._kept.popitem(last=False)
            self._kept[number] = self._make(number)
        return self._kept[number]

    def _make(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 7, number])
        # Blocks start at an offset of their own in every epoch, so that neighbours are not the same each time.
        shift = int(rng.integers(self.block))
        starts = np.arange(-shift, self.n, self.block)
        rng.shuffle(starts)
        cells = (starts[:, None] + np.arange(self.block)).ravel()
        cells = cells[(cells >= 0) & (cells < self.n)][: len(self)]
        lanes = cells.reshape(self.lanes, -1)
        wide = self.span // self.lanes
        order = np.empty(len(self), dtype=np.int64)
        for load in range(self.loads):
            part = rng.permuted(lanes[:, load * wide : (load + 1) * wide], axis=1).T.ravel()
            order[load * self.span : load * self.span + len(part)] = self._alike(part, rng) if self.group else part
        return order

    def _alike(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cells of similar length next to each other, the groups in random order."""
        assert self.lengths is not None
        ranked = cells[np.argsort(self.lengths[cells] * rng.uniform(0.9, 1.1, len(cells)), kind="stable")]
        groups = [ranked[i : i + self.group] for i in range(0, len(ranked), self.group)]
        # The last, smaller group stays last: every other one begins at a multiple of the batch.
        turns = [*rng.permutation(len(groups) - 1), len(groups) - 1]
        return np.concatenate([groups[i] for i in turns])


#: Cells in the order of the files, and where each position of the load finds its own.
Load = tuple["Block", np.ndarray]


class Shelf:
    """Hands out the cells of an order to one of several readers; the next load is read while the present one is used.

    Parameters
    ----------
    shard, shards
        This reader takes every ``shards``-th position, beginning with ``shard``.
    """

    def __init__(self, collection: Collection, order: Order, *, shard: int = 0, shards: int = 1) -> None:
        self.collection, self.order, self.shard, self.shards = collection, order, shard, shards
        self._loads: OrderedDict[tuple[int, int], Load | Future[Load]] = OrderedDict()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="scmamba-reading")

    def __len__(self) -> int:
        return len(self.order)

    def at(self, positions: np.ndarray) -> Block:
        """Cells at absolute positions (epochs one after the other); all must belong to this reader."""
        epochs, within = np.divmod(np.asarray(positions, dtype=np.int64), len(self.order))
        loads = within // self.order.span
        pieces: list[Block] = []
        for epoch, load in dict.fromkeys(zip(epochs.tolist(), loads.tolist())):
            mine = (epochs == epoch) & (loads == load)
            first = self._first(epoch, load)
            block, place = self._load(epoch, load)
            pieces.append(block.take(place[(within[mine] - first) // self.shards]))
        return pieces[0] if len(pieces) == 1 else _join(pieces)

    def epoch(self, number: int, batch_size: int) -> Iterator[Block]:
        """This reader's batches of one epoch; the last may be smaller."""
        base = number * len(self.order)
        own = np.arange((self.shard - base) % self.shards, len(self.order), self.shards)
        for start in range(0, len(own), batch_size):
            yield self.at(base + own[start : start + batch_size])

    def _first(self, epoch: int, load: int) -> int:
        """First position of the load, within its epoch, that is this reader's."""
        start = load * self.order.span
        return start + (self.shard - (epoch * len(self.order) + start)) % self.shards

    def _load(self, epoch: int, load: int) -> Load:
        key = (epoch, load)
        following = (epoch, load + 1) if load + 1 < self.order.loads else (epoch + 1, 0)
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

    def _read(self, epoch: int, load: int) -> Load:
        end = min((load + 1) * self.order.span, len(self.order))
        positions = np.arange(self._first(epoch, load), end, self.shards)
        cells = self.collection.cells[self.order.epoch(epoch)[positions]]
        # Kept as the files have them: putting a whole load in order would copy it once more than handing out batches does.
        by_file = np.argsort(cells)
        place = np.empty(len(cells), dtype=np.int64)
        place[by_file] = np.arange(len(cells))
        return self.collection.read_sorted(cells[by_file]), place


def _join(blocks: list[Block]) -> Block:
    from scipy import sparse

    from .collection import Block

    values = sparse.csr_matrix(sparse.vstack([b.values for b in blocks], format="csr"))
    return Block(values, *(np.concatenate([getattr(b, name) for b in blocks]) for name in ("totals", "cells", "files")))
