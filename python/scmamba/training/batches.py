"""Training batches: which cells, which of their genes, which values are masked.

The cost of a step is linear in the number of positions, and the network identifies genes by their embedding, not by position: a model may read whole cells, as
published, or each cell's expressed genes plus masked ones, a tenth of the length (canonical order kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..data import read_cells
from ..data.h5ad_files import open_backed
from ..genes import Vocabulary
from ..utils.columns import as_text
from ..utils.errors import DataError
from ..utils.options import option
from .options import MaskingOptions

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass
class CellSource:
    """Cells that measured the same genes.

    Attributes
    ----------
    name
        Name of the file or study, for messages.
    values
        (n, m) CSR float32 log1p(CP10k) over the measured genes of the vocabulary, in its order.
    genes
        (m,) positions of those genes in the vocabulary.
    groups
        (n,) donor of each cell, as strings ('' where unknown).
    totals
        (n,) total counts of each cell over those genes.
    """

    name: str
    values: sparse.csr_matrix
    genes: np.ndarray
    groups: np.ndarray
    totals: np.ndarray

    def __len__(self) -> int:
        return self.values.shape[0]

    @cached_property
    def by_length(self) -> np.ndarray:
        """(n,) cells ordered by their number of expressed genes."""
        return np.argsort(np.diff(self.values.indptr), kind="stable")

    def take(self, keep: np.ndarray) -> CellSource:
        """Select cells.

        Parameters
        ----------
        keep
            Mask or indices.

        Returns
        -------
        A source of those cells.
        """
        return replace(
            self, values=self.values[keep], groups=self.groups[keep], totals=self.totals[keep]
        )


@dataclass(frozen=True)
class SequenceConfig(MaskingOptions):
    """What one training sequence holds.

    The other attributes are those of :class:`~scmamba.training.options.MaskingOptions`.

    Attributes
    ----------
    zeros
        Masked zeros per sequence, drawn between these two numbers, so that inference may mask few or many at once. They stand
        for all masked zeros of the cell: their loss is weighted so that the proportion stated by the two probabilities holds.
        Two fractions, e.g. ``(0.04, 1.0)``, are shares of the cell's zeros (drawn evenly on the scale of logarithms): then any
        number of passes works, and models that read whole cells draw too.
    """

    zeros: tuple[float, float] = option((100, 2000), "Masked zeros per sequence, from and to.")


@dataclass
class Batch:
    """(B, l) values, masked positions, loss weights, genes and what is not padding (``None``: whole cells, all genes as they are)."""

    x: Tensor
    mask: Tensor
    weight: Tensor
    genes: Tensor
    keep: Tensor | None = None


def read_sources(
    files: Sequence[str | PathLike[str] | AnnData],
    vocabulary: Vocabulary,
    *,
    donor: str | None = "donor",
    min_total: float = 200,
    min_cells_per_donor: int = 0,
    force: bool = False,
) -> list[CellSource]:
    """Read h5ad files (or open objects) into training sources, with the paper's filters.

    Parameters
    ----------
    files
        Paths of h5ad files of raw counts, or AnnData objects.
    vocabulary
        Genes of the model.
    donor
        Column of ``obs`` with the donor; ``None`` for none.
    min_total
        Minimum total counts of a cell (paper: 200).
    min_cells_per_donor
        Minimum number of such cells of a donor (paper: 200); 0 for no limit.
    force
        Continue although few genes are shared with the vocabulary.

    Returns
    -------
    One source per file.

    Raises
    ------
    DataError
        A file cannot be read, or no cell of it passes the filters.

    Examples
    --------
    >>> from scmamba.datasets import brain_cohort
    >>> from scmamba.genes import Vocabulary
    >>> from scmamba.training import read_sources
    >>> (source,) = read_sources([brain_cohort(30, n_donors=2, seed=0)], Vocabulary.published())
    >>> len(source)  # one cell has fewer than 200 counts
    29
    """
    from pathlib import Path

    sources = []
    for file in files:
        adata = open_backed(Path(file)) if isinstance(file, (str, PathLike)) else file
        name = (
            Path(file).stem
            if isinstance(file, (str, PathLike))
            else str(adata.uns.get("name", "cells"))
        )
        cells = read_cells(adata, vocabulary, force=force)
        blocks, totals = zip(*(cells.to_model(cells.linear(rows)) for rows in cells.blocks(2000)))
        has_donor = donor is not None and donor in adata.obs
        groups = as_text(adata.obs[donor]) if has_donor else np.full(len(cells), "")
        values = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
        source = CellSource(name, values, cells.genes, groups, np.concatenate(totals))
        keep = source.totals >= min_total
        if has_donor and min_cells_per_donor:
            names, counts = np.unique(groups[keep], return_counts=True)
            keep &= np.isin(groups, names[counts >= min_cells_per_donor])
        if not keep.any():
            raise DataError(
                f"No cell of {name} has {min_total:.0f} counts (and a donor with {min_cells_per_donor} cells); no cell is left to train on."
            )
        sources.append(source.take(keep))
    return sources


def sample_rows(source: CellSource, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw cells of similar length, so that little of a batch is padding: a random subset of a window of the ranking by length."""
    size = min(size, len(source))
    window = min(len(source), 4 * size)
    # Starts beyond either end are moved to it, so that the shortest and longest cells are drawn as often as others.
    drawn = int(rng.integers(-window // 2, len(source) - window // 2, endpoint=True))
    start = min(max(drawn, 0), len(source) - window)
    return source.by_length[start + rng.choice(window, size, replace=False)]


def make_batch(
    source: CellSource,
    rows: np.ndarray,
    config: SequenceConfig,
    reads: str,
    rng: np.random.Generator,
) -> Batch:
    """Make a training batch of cells of one source.

    Parameters
    ----------
    source
        The cells.
    rows
        (B,) indices of the cells of the batch.
    config
        Which values are masked, and how many genes are read.
    reads
        ``"all"`` or ``"expressed"``: what the model reads of a cell (:class:`scmamba.ModelConfig`).
    rng
        Random numbers.

    Returns
    -------
    The batch.

    Examples
    --------
    >>> import numpy as np
    >>> from scmamba.datasets import brain_cohort
    >>> from scmamba.genes import Vocabulary
    >>> from scmamba.training import SequenceConfig, make_batch, read_sources
    >>> (source,) = read_sources([brain_cohort(30, n_donors=2, seed=0)], Vocabulary.published())
    >>> rng = np.random.default_rng(0)
    >>> batch = make_batch(source, np.arange(4), SequenceConfig(genes_per_step=100), "expressed", rng)
    >>> tuple(batch.x.shape)
    (4, 100)
    """
    if reads == "all":
        return _whole_cells(source, rows, config, rng)
    return pad([expressed_genes(source, row, config, rng) for row in rows], source.genes)


def _whole_cells(
    source: CellSource, rows: np.ndarray, config: SequenceConfig, rng: np.random.Generator
) -> Batch:
    x = source.values[rows].toarray()
    share = np.full((len(rows), 1), config.mask_zero, dtype=np.float32)
    if is_zero_share(config):
        share = np.array([[_share(config, rng)] for _ in rows], dtype=np.float32)
    mask = torch.from_numpy(
        rng.random(x.shape, dtype=np.float32)
        < np.where(x != 0, np.float32(config.mask_nonzero), share)
    )
    weight = torch.ones(mask.shape)
    if is_zero_share(config):
        weight = torch.from_numpy(np.where(x != 0, np.float32(1), config.mask_zero / share))
    return Batch(torch.from_numpy(x), mask, weight, torch.from_numpy(source.genes))


def is_zero_share(config: SequenceConfig) -> bool:
    """Whether masked zeros are drawn as a share of the cell's zeros (and any are masked at all)."""
    return config.mask_zero > 0 and config.zeros[1] <= 1


def _share(config: SequenceConfig, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(config.zeros))))


def _number_of_zeros(config: SequenceConfig, zeros: int, rng: np.random.Generator) -> int:
    """How many of a cell's ``zeros`` are masked."""
    if config.mask_zero <= 0:
        return 0
    if is_zero_share(config):
        return min(max(1, round(_share(config, rng) * zeros)), zeros)
    return min(int(rng.integers(int(config.zeros[0]), int(config.zeros[1]), endpoint=True)), zeros)


def expressed_genes(
    source: CellSource, row: int, config: SequenceConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One cell's columns, values, masked positions and weights: its non-zeros and a sample of its zeros, all of those masked."""
    span = slice(source.values.indptr[row], source.values.indptr[row + 1])
    on, values = source.values.indices[span], source.values.data[span]
    total_zeros = len(source.genes) - len(on)
    if config.genes_per_step and len(on) > config.genes_per_step:
        chosen = np.sort(rng.choice(len(on), config.genes_per_step, replace=False))
        values, shown = values[chosen], on[chosen]
    else:
        shown = on
    off = _zero_columns(on, len(source.genes), _number_of_zeros(config, total_zeros, rng), rng)
    columns = np.concatenate([shown, off])
    order = np.argsort(columns)
    hidden = np.concatenate(
        [rng.random(len(shown)) < config.mask_nonzero, np.ones(len(off), dtype=bool)]
    )
    # The sampled zeros carry the weight of all zeros that would be masked, scaled as the non-zeros were cut.
    zero_weight = config.mask_zero * total_zeros * (len(shown) / max(len(on), 1)) / max(len(off), 1)
    weight = np.concatenate([np.ones(len(shown)), np.full(len(off), zero_weight)])
    x = np.concatenate([values, np.zeros(len(off), dtype=np.float32)])
    return columns[order], x[order], hidden[order], weight[order]


def _zero_columns(
    on: np.ndarray, n_genes: int, number: int, rng: np.random.Generator
) -> np.ndarray:
    """``number`` distinct columns that are not in ``on`` (sorted)."""
    if number == 0:
        return np.empty(0, dtype=np.int64)
    ranks = rng.choice(n_genes - len(on), number, replace=False)
    # The r-th column not in `on` is r plus how many of `on` come before it.
    return ranks + np.searchsorted(on - np.arange(len(on)), ranks, side="right")


def pad(
    cells: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], genes: np.ndarray
) -> Batch:
    """Cells as (columns, values, hidden, weights) -> a batch as long as the longest; ``genes`` (m,) is the gene of each column."""
    length = max(1, max(len(columns) for columns, *_ in cells))
    shape = (len(cells), length)
    x, weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    mask, keep, positions = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, np.int64)
    for i, (columns, values, hidden, weights) in enumerate(cells):
        n = len(columns)
        positions[i, :n], x[i, :n], mask[i, :n], weight[i, :n], keep[i, :n] = (
            genes[columns],
            values,
            hidden,
            weights,
            True,
        )
    return Batch(*(torch.from_numpy(a) for a in (x, mask, weight, positions, keep)))
