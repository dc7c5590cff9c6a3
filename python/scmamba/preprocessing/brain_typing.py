"""Types of cells by the shipped brain reference, for methods that need the profile of each type rather than a call of each cell.

Each cell is scored by itself; :func:`scmamba.annotate` also uses its neighbors, has more levels and gives probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.special import softmax

from ..datasets.brain_reference import load_reference, shrink_differences, specific_genes
from ..genes import Vocabulary, match_adata

if TYPE_CHECKING:
    from anndata import AnnData

#: The reference is used if at least this many of its genes were measured.
MIN_GENES = 100
#: Log likelihoods are divided by this: counts of genes are no independent draws.
_TEMPERATURE = 1.5
#: Share of the sample's average in every expected profile.
_AVERAGE = 0.05
_ROUNDS = 3
#: Counts of a type that learns factors of genes.
_MIN_COUNTS = 5000.0
#: Share of the counts of a type's specific genes below which the type is absent.
_COMPLETE = 0.42
#: Share of the cells whose type must be present; cells of other tissues have fewer.
_PRESENT = 0.5


@dataclass(frozen=True)
class BrainTypes:
    """Types of cells, and the expected profile of each type in these cells.

    Attributes
    ----------
    names
        (k,) types that are present.
    codes
        (n,) type of each cell.
    genes
        (m,) columns of the data that are genes of the reference.
    rates
        (k, m) expected share of each of these genes in the counts of a type; rows sum to 1.
    """

    names: np.ndarray
    codes: np.ndarray
    genes: np.ndarray
    rates: np.ndarray


def shared_genes(adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """(m,) columns of ``adata`` and (m,) rows of the reference that are the same gene; of several columns the first.

    Parameters
    ----------
    adata
        The object whose ``var`` names the genes.
    """
    match = match_adata(adata, _vocabulary())
    rows, first = np.unique(match.positions[match.matched], return_index=True)
    return match.matched[first], rows


@lru_cache(maxsize=1)
def _vocabulary() -> Vocabulary:
    return Vocabulary.from_ids(list(load_reference().genes))


def brain_types(adata: AnnData, counts: sparse.csr_matrix) -> BrainTypes | None:
    """Give each cell the type whose expected profile its counts fit best.

    Parameters
    ----------
    adata
        The object whose ``var`` names the columns of ``counts``.
    counts
        (n, n_vars) counts.

    Returns
    -------
    The types; ``None`` if fewer than 100 genes of the reference were measured, or most cells lack the expected genes of their type (other
    tissues).
    """
    columns, rows = shared_genes(adata)
    if len(columns) < MIN_GENES:
        return None
    reference = load_reference()
    rates = reference.rates[rows]
    kinds = reference.table["type"].to_numpy(str)
    part = sparse.csr_matrix(counts[:, columns], dtype=np.float64)
    names, codes = np.unique(kinds, return_inverse=True)
    rates = rates / rates.sum(axis=0)
    typing = _Typing(part, rates, codes)
    present = typing.present()
    own = np.bincount(codes[typing.weights.argmax(axis=1)], minlength=len(names))
    if own[present].sum() < _PRESENT * own.sum():
        return None
    typing.fit(among=present[codes])
    # A type that is present needs a cell.
    best = codes[typing.weights.argmax(axis=1)]
    kept, new = np.unique(best, return_inverse=True)
    return BrainTypes(names[kept], new, columns, typing.profiles()[kept])


class _Typing:
    """Expectation maximization of the factors of the genes and the probabilities of the columns of the reference."""

    def __init__(self, counts: sparse.csr_matrix, rates: np.ndarray, codes: np.ndarray) -> None:
        self.counts, self.rates, self.codes = counts, rates, codes
        self.members = np.eye(int(codes.max()) + 1)[codes]
        self.scored = shrink_differences(rates)
        self.damped = counts.copy()
        self.damped.data = np.log1p(self.damped.data)
        self.depth = np.asarray(counts.sum(axis=1)).ravel()
        average = np.asarray(counts.sum(axis=0)).ravel() + 0.5
        self.average = average / average.sum()
        self.log_factor = np.zeros(len(rates))
        self.fit(np.ones(len(codes), dtype=bool))

    def fit(self, among: np.ndarray) -> None:
        """Fit ``weights`` (n, columns) and ``log_factor`` (genes) with some of the columns."""
        log_prior = np.where(among, -np.log(max(among.sum(), 1)), -np.inf)
        for round_ in range(_ROUNDS):
            expected = self.scored * np.exp(self.log_factor)[:, None]
            expected = (1 - _AVERAGE) * expected / expected.sum(axis=0)
            expected += _AVERAGE * self.average[:, None]
            scores = (self.damped @ np.log(expected)) / _TEMPERATURE
            self.weights = softmax(scores + log_prior, axis=1)
            if round_ < _ROUNDS - 1:
                self._learn_factors()
                share = np.maximum(self.weights.mean(axis=0), 1e-4)
                log_prior = np.where(among, np.log(share), -np.inf)

    def _learn_factors(self) -> None:
        size = self.depth @ self.weights
        expected = (1 - _AVERAGE) * (self.scored @ (self.members * size[:, None]))
        by_type = size @ self.members
        expected += _AVERAGE * self.average[:, None] * by_type
        observed = self.counts.T @ (self.weights @ self.members)
        weight = expected / (expected + 10) * (by_type >= _MIN_COUNTS)
        total = (weight * np.log((observed + 2) / (expected + 2))).sum(axis=1)
        self.log_factor = np.clip(total / (weight.sum(axis=1) + 1), -3, 3)

    def present(self) -> np.ndarray:
        """(types,) bool: the specific genes of the type are expressed by the cells that fit it best."""
        means = self.rates @ self.members / self.members.sum(axis=0)
        best = self.codes[self.weights.argmax(axis=1)]
        out = np.zeros(means.shape[1], dtype=bool)
        for code in np.unique(best):
            genes = specific_genes(means, code)
            own = np.flatnonzero(best == code)
            observed = np.asarray(self.counts[own][:, genes].sum(axis=0)).ravel()
            expected = 0.9 * self.depth[own].sum() * means[genes, code]
            weight = np.minimum(expected, 5.0)
            shares = np.minimum(observed / np.maximum(expected, 1e-9), 1.0)
            out[code] = (shares * weight).sum() >= _COMPLETE * max(weight.sum(), 1e-9)
        return out

    def profiles(self) -> np.ndarray:
        """(types, genes) expected profiles: columns of a type in the proportions of the cells, with the factors of the genes."""
        size = (self.depth @ self.weights + 1e-9)[:, None] * self.members
        rates = (self.rates @ size) * np.exp(self.log_factor)[:, None]
        return (rates / rates.sum(axis=0)).T
