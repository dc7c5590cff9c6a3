"""Training batches: which cells, which of their genes, what is hidden.

The cost of a step is linear in the number of positions, and the network knows genes, not positions: it can be trained on each
cell's expressed genes plus a sample of its zeros (canonical order kept) and finished on whole cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from .._errors import DataError
from ..data import read_cells
from ..data.files import open_backed
from ..genes import Vocabulary

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass
class Source:
    """Cells that measured the same genes.

    Attributes
    ----------
    values
        (n, m) CSR float32 log1p(CP10k) over the measured genes of the vocabulary, in its order.
    genes
        (m,) positions of those genes in the vocabulary.
    groups
        (n,) donor of each cell, as strings ('' where unknown).
    """

    name: str
    values: sparse.csr_matrix
    genes: np.ndarray
    groups: np.ndarray
    totals: np.ndarray

    def __len__(self) -> int:
        return self.values.shape[0]

    def take(self, keep: np.ndarray) -> Source:
        """The cells at ``keep`` (mask or indices)."""
        return replace(self, values=self.values[keep], groups=self.groups[keep], totals=self.totals[keep])


@dataclass(frozen=True)
class SequenceConfig:
    """What one training sequence holds.

    Attributes
    ----------
    genes_per_step
        0: every measured gene. Otherwise the cell's expressed genes plus sampled zeros, at most this many positions.
    zeros
        Sampled zeros per cell when ``genes_per_step`` is set.
    mask_nonzero, mask_zero
        Chance that a non-zero value, and a zero of the whole cell, is hidden and predicted. In short sequences the sampled zeros
        stand for all zeros: hidden ones are weighted so that the loss keeps the proportion the two chances state.
    mask_zero_max
        If larger than ``mask_zero``, each batch draws its zero chance log-uniformly between the two, so that inference may hide any
        share of the zeros at once.
    """

    genes_per_step: int = 0
    zeros: int = 300
    mask_nonzero: float = 0.15
    mask_zero: float = 0.0
    mask_zero_max: float = 0.0


@dataclass
class Batch:
    """(B, l) values, hidden positions and their loss weights; (B, l) or (l,) the genes they are."""

    x: Tensor
    mask: Tensor
    weight: Tensor
    genes: Tensor


def read_sources(
    files: Sequence[str | PathLike[str] | AnnData],
    vocabulary: Vocabulary,
    *,
    donor: str | None = "donor",
    min_total: float = 200,
    min_cells_per_donor: int = 0,
    force: bool = False,
) -> list[Source]:
    """Read h5ad files (or open objects) into training sources, with the paper's filters.

    Cells with fewer than ``min_total`` counts are left out, and donors with fewer than ``min_cells_per_donor`` cells
    (paper: 200 and 200).

    Raises
    ------
    DataError
        A file that cannot be read, or one that has no cell left.
    """
    from pathlib import Path

    sources = []
    for file in files:
        adata = open_backed(Path(file)) if isinstance(file, (str, PathLike)) else file
        name = Path(file).stem if isinstance(file, (str, PathLike)) else str(adata.uns.get("name", "cells"))
        cells = read_cells(adata, vocabulary, force=force)
        blocks, totals = zip(*(cells.to_model(cells.linear(rows)) for rows in cells.blocks(2000)))
        has_donor = donor is not None and donor in adata.obs
        groups = adata.obs[donor].astype(str).to_numpy() if has_donor else np.full(len(cells), "")
        source = Source(name, sparse.vstack(blocks, format="csr"), cells.genes, groups, np.concatenate(totals))
        keep = source.totals >= min_total
        if has_donor and min_cells_per_donor:
            names, counts = np.unique(groups[keep], return_counts=True)
            keep &= np.isin(groups, names[counts >= min_cells_per_donor])
        if not keep.any():
            raise DataError(f"No cell of {name} has {min_total:.0f} counts (and a donor of {min_cells_per_donor} cells); nothing to train on.")
        sources.append(source.take(keep))
    return sources


def draw_batch(source: Source, rows: np.ndarray, config: SequenceConfig, rng: np.random.Generator) -> Batch:
    """Make a batch of the cells ``rows`` of one source."""
    x = source.values[rows].toarray()
    total_zeros = (x == 0).sum(axis=1)
    genes = source.genes
    if config.genes_per_step and config.genes_per_step < x.shape[1]:
        chosen = _choose_positions(x, config, rng)
        x, genes = np.take_along_axis(x, chosen, axis=1), source.genes[chosen]
    mask, weight = _hide(x, total_zeros, config, rng)
    return Batch(torch.from_numpy(x), torch.from_numpy(mask), torch.from_numpy(weight), torch.from_numpy(np.asarray(genes, dtype=np.int64)))


def _choose_positions(x: np.ndarray, config: SequenceConfig, rng: np.random.Generator) -> np.ndarray:
    """(B, l) sorted positions: expressed genes first, zeros to fill; all rows equally long, so nothing is padded."""
    expressed = (x != 0).sum(axis=1)
    length = int(min(config.genes_per_step, expressed.max() + config.zeros, x.shape[1]))
    chosen = np.empty((len(x), length), dtype=np.int64)
    for row, values in enumerate(x):
        on, off = np.flatnonzero(values), np.flatnonzero(values == 0)
        keep = min(len(on), length - min(config.zeros, length // 2, len(off)))
        keep = max(keep, length - len(off))
        picked = rng.choice(on, keep, replace=False) if keep < len(on) else on
        chosen[row] = np.sort(np.concatenate([picked, rng.choice(off, length - keep, replace=False)]))
    return chosen


def _hide(x: np.ndarray, total_zeros: np.ndarray, config: SequenceConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Hidden positions, and loss weights that keep the stated proportion of zeros to non-zeros."""
    zero_chance = config.mask_zero
    if config.mask_zero_max > config.mask_zero > 0:
        zero_chance = float(np.exp(rng.uniform(np.log(config.mask_zero), np.log(config.mask_zero_max))))
    is_zero = x == 0
    zeros = np.maximum(is_zero.sum(axis=1), 1)
    # Short sequences hold few zeros: hide enough of them to learn from, weigh them as the share they stand for.
    chance = np.full(len(x), zero_chance)
    if config.mask_zero > 0:
        chance = np.maximum(chance, np.minimum(1.0, config.mask_zero * total_zeros / zeros)).clip(max=1.0)
    limit = np.where(is_zero, chance[:, None], config.mask_nonzero)
    mask = rng.random(x.shape, dtype=np.float32) < limit
    hidden_zeros = np.maximum((mask & is_zero).sum(axis=1), 1)
    zero_weight = config.mask_zero * total_zeros / hidden_zeros
    weight = np.where(is_zero, zero_weight[:, None], 1.0).astype(np.float32)
    return mask, weight
