"""The types of the shipped reference of the human brain as clusters of doublet detection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from ..preprocessing.brain_typing import brain_types

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class BrainClusters:
    """Cell types as clusters.

    Attributes
    ----------
    names
        (k,) types.
    codes
        (n,) type of each cell.
    expected
        (k, genes) expected share of each gene in the counts of a type, all above zero.
    """

    names: np.ndarray
    codes: np.ndarray
    expected: np.ndarray

    @classmethod
    def find(cls, adata: AnnData, counts: sparse.csr_matrix) -> BrainClusters | None:
        """Types of the cells; ``None`` if these are no brain cells, or all are of one type.

        Parameters
        ----------
        adata
            The object whose ``var`` names the columns of ``counts``.
        counts
            (n, genes) counts.
        """
        found = brain_types(adata, counts)
        if found is None or len(found.names) < 2:
            return None
        average = np.asarray(counts.sum(axis=0)).ravel() + 0.5
        average /= average.sum()
        # Genes that the reference lacks have the rate of the average cell in every type.
        expected = np.tile(average, (len(found.names), 1))
        expected[:, found.genes] = found.rates * average[found.genes].sum()
        return cls(found.names, found.codes, np.maximum(expected, 1e-9))
