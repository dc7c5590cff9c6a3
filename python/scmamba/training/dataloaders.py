"""Where the cells of a step come from: sources in memory, or a collection on disk. Either way a step is a function of its number.

The cells of step k follow from the seed and k; the masked values of a cell from the seed, k and the cell. So a batch can be read
by one process or by eight, at once or in pieces, and a run that was killed continues as if it had not been.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ..data.cell_batch import CellBatch
from ..data.collection import Collection
from ..data.loader import PrefetchLoader
from ..data.values import SCALE
from ..genes import Vocabulary
from ..utils.errors import DataError
from .batches import (
    Batch,
    CellSource,
    SequenceConfig,
    expressed_genes,
    pad,
    read_sources,
    sample_rows,
)
from .distributed import BatchShard, Loss, ShardedStep
from .trainer import TrainerConfig

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass
class SourceSlice:
    """Cells of one source: its number, the rows, and for each row what identifies the cell for good."""

    source: CellSource
    number: int
    rows: np.ndarray
    keys: list[tuple[int, ...]]


class BatchSource(Protocol):
    """A source of the cells of a step."""

    def __len__(self) -> int:
        """Cells there are."""

    def draw(
        self, k: int, size: int, rng: np.random.Generator, share: BatchShard
    ) -> list[SourceSlice]:
        """This share's cells of step ``k``, of ``size`` cells in all. ``rng`` is the same for all shares."""

    def pseudobulk(self) -> list[CellSource]:
        """For each source one whose counts, summed over its cells, are those of all its cells."""


class InMemorySource:
    """Sources in memory: a step draws a source by its number of cells, then cells of similar length."""

    def __init__(self, sources: Sequence[CellSource]) -> None:
        if not sources:
            raise DataError("There is nothing to train on: no file was given.")
        self.sources = list(sources)
        sizes = np.array([len(s) for s in sources], dtype=np.float64)
        self._chance = sizes / sizes.sum()

    def __len__(self) -> int:
        return sum(len(s) for s in self.sources)

    def draw(
        self, k: int, size: int, rng: np.random.Generator, share: BatchShard
    ) -> list[SourceSlice]:
        """This share's rows of one source."""
        number = int(rng.choice(len(self.sources), p=self._chance))
        rows = sample_rows(self.sources[number], size, rng)
        rows = rows[share.of(len(rows))]
        return (
            [SourceSlice(self.sources[number], number, rows, [(number, int(row)) for row in rows])]
            if len(rows)
            else []
        )

    def sample(self, number: int, seed: int = 12345) -> list[SourceSlice]:
        """Some cells of every source, always the same; about ``number`` in all."""
        rng, parts = np.random.default_rng(seed), []
        for i, source in enumerate(self.sources):
            rows = np.sort(
                rng.choice(
                    len(source),
                    min(len(source), max(1, number // len(self.sources))),
                    replace=False,
                )
            )
            parts.append(SourceSlice(source, i, rows, [(i, int(row)) for row in rows]))
        return parts

    def pseudobulk(self) -> list[CellSource]:
        """The sources themselves."""
        return self.sources


class CollectionSource:
    """A collection on disk, every cell once an epoch.

    Parameters
    ----------
    similar
        Batches of cells of similar length: little padding for models that read expressed genes.
    """

    def __init__(self, collection: Collection, *, seed: int, similar: bool) -> None:
        self.collection, self.seed, self.similar = collection, seed, similar
        self._shelf: tuple[tuple[int, int, int], PrefetchLoader] | None = None
        self._local: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.collection)

    def draw(
        self, k: int, size: int, rng: np.random.Generator, share: BatchShard
    ) -> list[SourceSlice]:
        """This share's cells, by file."""
        mine = share.of(size)
        return list(self.parts(self._open(size, share).at(k * size + mine))) if len(mine) else []

    def pseudobulk(self) -> list[CellSource]:
        """Each file as one cell that has all its counts."""
        sources = []
        for member, sums in zip(self.collection.members, self.collection.gene_sums()):
            total, ours = sums.sum(), sums[member.genes]
            values = sparse.csr_matrix(
                np.log1p(SCALE * ours / max(total, 1.0))[None, :].astype(np.float32)
            )
            sources.append(
                CellSource(
                    member.store.name, values, member.genes, np.full(1, ""), np.array([total])
                )
            )
        return sources

    def parts(self, block: CellBatch) -> Iterator[SourceSlice]:
        """A block of cells as sources, one a file."""
        for f in np.unique(block.files):
            piece = block.take(np.flatnonzero(block.files == f))
            yield SourceSlice(
                self._source(int(f), piece),
                int(f),
                np.arange(len(piece)),
                [(int(c),) for c in piece.cells],
            )

    def _open(self, size: int, share: BatchShard) -> PrefetchLoader:
        wanted = (size, share.rank, share.world)
        if self._shelf is None or self._shelf[0] != wanted:
            order = self.collection.order(seed=self.seed, group=size if self.similar else 0)
            self._shelf = (
                wanted,
                PrefetchLoader(self.collection, order, shard=share.rank, shards=share.world),
            )
        return self._shelf[1]

    def _source(self, f: int, block: CellBatch) -> CellSource:
        member = self.collection.members[f]
        if f not in self._local:
            self._local[f] = np.full(len(self.collection.vocabulary), -1, dtype=np.int32)
            self._local[f][member.genes] = np.arange(len(member.genes), dtype=np.int32)
        values = block.values
        ours = sparse.csr_matrix(
            (values.data, self._local[f][values.indices], values.indptr),
            shape=(len(block), len(member.genes)),
        )
        return CellSource(
            member.store.name, ours, member.genes, np.full(len(block), ""), block.totals
        )


def sample_sources(collection: Collection, cells: int = 64, seed: int = 12345) -> list[CellSource]:
    """At most ``cells`` random cells of each file, in memory: what a validation loss is measured on."""
    rng, feed = np.random.default_rng(seed), CollectionSource(collection, seed=0, similar=False)
    files = collection.file_of(collection.cells)
    found = []
    for f in np.unique(files):
        own = collection.cells[files == f]
        found += list(
            feed.parts(
                collection.read(np.sort(rng.choice(own, min(cells, len(own)), replace=False)))
            )
        )
    return [part.source for part in found]


def make_slices_batch(
    parts: Sequence[SourceSlice],
    config: SequenceConfig,
    reads: str,
    n_genes: int,
    seed: Sequence[int],
) -> Batch:
    """One batch of the cells of several sources; positions in it are those of the vocabulary.

    The masked values of a cell depend on ``seed`` and the cell's key alone.
    """
    cells = [
        (part.source, row, np.random.default_rng([*seed, *key]))
        for part in parts
        for row, key in zip(part.rows, part.keys)
    ]
    if reads != "all":
        entries = []
        for source, row, rng in cells:
            columns, *rest = expressed_genes(source, row, config, rng)
            entries.append((source.genes[columns], *rest))
        return pad(entries, np.arange(n_genes))
    x, mask = np.zeros((len(cells), n_genes), np.float32), np.zeros((len(cells), n_genes), bool)
    for i, (source, row, rng) in enumerate(cells):
        span = slice(source.values.indptr[row], source.values.indptr[row + 1])
        x[i, source.genes[source.values.indices[span]]] = source.values.data[span]
        # Genes the study did not measure are read as zeros, as published, and do not enter the loss.
        chance = np.where(
            x[i, source.genes] != 0, np.float32(config.mask_nonzero), np.float32(config.mask_zero)
        )
        mask[i, source.genes] = rng.random(len(source.genes), dtype=np.float32) < chance
    return Batch(
        torch.from_numpy(x), torch.from_numpy(mask), torch.ones(mask.shape), torch.arange(n_genes)
    )


def batch_loss(network: nn.Module, batch: Batch) -> Loss:
    """Weighted squared errors at the masked positions (paper, Methods)."""
    device = next(network.parameters()).device
    x, mask, weight = (v.to(device) for v in (batch.x, batch.mask, batch.weight))
    genes: Tensor | None = None if batch.keep is None else batch.genes.to(device)
    keep = None if batch.keep is None else batch.keep.to(device)
    error = (network.reconstruct(x, mask, genes, keep) - x) ** 2  # type: ignore[operator]
    weight = weight * mask
    return Loss((error * weight).sum(), weight.sum())


def sum_losses(losses: Sequence[Loss], network: nn.Module) -> Loss:
    """One loss of several; of none (fewer cells than processes) one that adds nothing and still takes part in the exchange of gradients."""
    if not losses:
        zero = torch.stack([p.sum() * 0 for p in network.parameters() if p.requires_grad]).sum()
        return Loss(zero, torch.zeros_like(zero))
    return (
        losses[0]
        if len(losses) == 1
        else Loss(*(torch.stack(parts).sum() for parts in zip(*losses)))
    )


def reconstruction(
    feed: BatchSource, sequence: SequenceConfig, config: TrainerConfig
) -> ShardedStep:
    """The step of pre-training and of imputation: predict the masked values (paper, Methods)."""

    def draw(network: nn.Module, k: int, rng: np.random.Generator, share: BatchShard) -> Loss:
        parts = feed.draw(k, config.batch_size * share.whole, rng, share)
        if not parts:
            return sum_losses([], network)
        settings = network.config
        return batch_loss(
            network,
            make_slices_batch(parts, sequence, settings.reads, settings.n_genes, [config.seed, k]),  # type: ignore[arg-type, union-attr]
        )

    return ShardedStep(draw)


def open_batch_source(
    data: Collection | Sequence[str | PathLike[str] | AnnData],
    vocabulary: Vocabulary,
    *,
    seed: int,
    reads: str,
    min_total: float = 200,
    force: bool = False,
) -> BatchSource:
    """A collection as it is (filter and split it before), or a list of files read into memory.

    Raises
    ------
    DataError
        A collection of other genes; files that cannot be read, or have no cell of ``min_total`` counts.
    """
    if not isinstance(data, Collection):
        return InMemorySource(read_sources(data, vocabulary, min_total=min_total, force=force))
    if data.vocabulary.ensembl_ids != vocabulary.ensembl_ids:
        raise DataError(
            f"The collection was opened with another vocabulary ({len(data.vocabulary):,} genes) than the model has "
            f"({len(vocabulary):,}). Open it with Collection(..., vocabulary=model.genes)."
        )
    return CollectionSource(data, seed=seed, similar=reads == "expressed")


def open_held_out(
    data: Collection | Sequence[str | PathLike[str] | AnnData],
    vocabulary: Vocabulary,
    *,
    force: bool = False,
) -> list[CellSource]:
    """Cells for the validation loss: files whole, of a collection a sample."""
    return (
        sample_sources(data)
        if isinstance(data, Collection)
        else read_sources(data, vocabulary, force=force)
    )
