"""The order in which cells are read in an epoch."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass

#: Processes that divide this number read nothing twice.
N_STRIPES = 64
#: Bytes the values and gene numbers of one chunk should take.
_LOAD_BYTES = 96e6


def shuffle_window(n: int, mean_length: float) -> int:
    """Cells of one chunk: about 96 MB of sparse values, at most 16,384 cells, whole stripes."""
    fits = int(_LOAD_BYTES / (8 * max(mean_length, 1.0)))
    return max(N_STRIPES, min(16_384, fits, n) // N_STRIPES * N_STRIPES)


@dataclass
class EpochSampler:
    """The order of every epoch.

    Attributes
    ----------
    n
        Number of cells; position i of the order means row i of ``Collection.cells``.
    block, span
        Neighboring cells read together; cells shuffled with one another at a time.
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
        self.n_stripes = N_STRIPES if self.n >= N_STRIPES else 1
        self.span = max(self.n_stripes, min(self.span, self.n) // self.n_stripes * self.n_stripes)
        # Small collections: blocks so small that every stripe gets several.
        self.block = max(1, min(self.block, self.n // (4 * self.n_stripes)))

    def __len__(self) -> int:
        """Positions of an epoch; up to 63 cells, different ones each time, are omitted."""
        return self.n // self.n_stripes * self.n_stripes

    @property
    def chunks(self) -> int:
        """Chunks of an epoch: cells that are read and shuffled together."""
        return -(-len(self) // self.span)

    def epoch(self, number: int) -> np.ndarray:
        """(len,) the cells in order; the last two epochs are cached."""
        if number not in self._kept:
            while len(self._kept) > 1:
                self._kept.popitem(last=False)
            self._kept[number] = self._make(number)
        return self._kept[number]

    def _make(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 7, number])
        # Blocks start at an offset of their own in every epoch, so that neighbors are not the same each time.
        shift = int(rng.integers(self.block))
        starts = np.arange(-shift, self.n, self.block)
        rng.shuffle(starts)
        cells = (starts[:, None] + np.arange(self.block)).ravel()
        cells = cells[(cells >= 0) & (cells < self.n)][: len(self)]
        lanes = cells.reshape(self.n_stripes, -1)
        wide = self.span // self.n_stripes
        order = np.empty(len(self), dtype=np.int64)
        for load in range(self.chunks):
            part = rng.permuted(lanes[:, load * wide : (load + 1) * wide], axis=1).T.ravel()
            order[load * self.span : load * self.span + len(part)] = (
                self._alike(part, rng) if self.group else part
            )
        return order

    def _alike(self, cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Cells of similar length next to each other, the groups in random order."""
        assert self.lengths is not None
        ranked = cells[
            np.argsort(self.lengths[cells] * rng.uniform(0.9, 1.1, len(cells)), kind="stable")
        ]
        groups = [ranked[i : i + self.group] for i in range(0, len(ranked), self.group)]
        # The last, smaller group stays last: every other one begins at a multiple of the batch.
        turns = [*rng.permutation(len(groups) - 1), len(groups) - 1]
        return np.concatenate([groups[i] for i in turns])
