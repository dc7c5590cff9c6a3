"""Negative-binomial tests of sums of counts: the parts that ``compare`` and ``robustness`` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .likelihood_ratio import (
    DispersionFit,
    DispersionTest,
    average_test,
    discovery_weights,
    fit_dispersions,
    wald_test,
)
from .markers import benjamini_hochberg
from .normalization import tmm_factors
from .quasi_likelihood import (
    QLFit,
    QLTest,
    average_level,
    cell_dispersion,
    fit_quasi_likelihood,
    test_coefficient,
)
from .samples import Samples, sample_design, sum_cells

LN2 = float(np.log(2.0))
#: Tests of the sums that take the dispersion between cells into account.
OF_COUNTS = ("likelihood_ratio", "quasi_likelihood", "wald")
#: Genes with a smaller sum over all samples are omitted.
MIN_TOTAL = 15.0


class Tested(NamedTuple):
    """One cell type: the genes kept, and the test of the condition; log2 scale, arrays of length genes."""

    kept: np.ndarray
    change: np.ndarray
    se: np.ndarray
    statistic: np.ndarray
    df: np.ndarray
    p: np.ndarray
    level: np.ndarray
    fit: QLFit | DispersionFit | None = None
    weight: np.ndarray | None = None  # of the false discovery rate

    @property
    def weights(self) -> np.ndarray:
        """(genes,) weights of the false discovery rate; 1 for tests without."""
        return np.ones(self.p.size) if self.weight is None else self.weight

    @property
    def adjusted(self) -> np.ndarray:
        """(genes,) p adjusted by Benjamini and Hochberg, weighted.

        A weight above 1 must not make a gene look more certain than its p.
        """
        found = benjamini_hochberg(np.minimum(self.p / self.weights, 1.0))
        result: np.ndarray = np.maximum(found, self.p)
        return result


def usable_genes(samples: Samples, min_total: float = MIN_TOTAL) -> np.ndarray:
    """Genes with enough counts, in as many samples as half of the smaller group.

    Parameters
    ----------
    samples
        The sums.
    min_total
        Smallest sum over the samples, counts.
    """
    least = max(2, min(samples.sizes) // 2)
    sums = samples.sums
    return np.flatnonzero((sums.sum(axis=0) >= min_total) & ((sums > 0).sum(axis=0) >= least))


def between_cells(part: sp.csr_matrix, code: np.ndarray, n: int) -> np.ndarray:
    """(genes, n) dispersion between the cells of a donor, as it is left in the sum over them.

    Parameters
    ----------
    part
        (cells, genes) counts.
    code
        (cells,) number of the sample, -1 for none.
    n
        Number of samples.
    """
    depth = np.asarray(part.sum(axis=1, dtype=np.float64)).ravel()
    scaled = part.astype(np.float64)
    squares = sum_cells(scaled.multiply(scaled).tocsr(), code, n)
    cross = sum_cells(sp.diags(depth) @ scaled, code, n)
    own = code >= 0
    sizes = np.column_stack([np.bincount(code[own], depth[own] ** power, n) for power in (1, 2)])
    phi = cell_dispersion(sum_cells(part, code, n), squares, cross, sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(sizes[:, 0] > 0, sizes[:, 1] / sizes[:, 0] ** 2, 0.0)
    return phi[:, None] * share


def effective_library(samples: Samples) -> np.ndarray:
    """(samples,) sums over the genes, times the factors of the trimmed mean of M-values.

    Parameters
    ----------
    samples
        The sums.
    """
    kept = samples.sums.any(axis=0)
    result: np.ndarray = samples.sums.sum(axis=1) * tmm_factors(samples.sums[:, kept])
    return result


def test_of_counts(
    test: str,
    kept: np.ndarray,
    given: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    column: int,
    minimum: float = 0.0,
) -> Tested:
    """One of the negative-binomial tests of the sums.

    Parameters
    ----------
    test
        One of ``OF_COUNTS``.
    kept
        Positions of the genes.
    given
        (genes, samples) counts, (samples, k) design, (samples,) log library sizes, (genes, samples) dispersion between cells.
    column
        Column of the design that is tested.
    minimum
        Minimal effect, natural log.
    """
    fit: QLFit | DispersionFit | None
    found: QLTest | DispersionTest
    counts, design, offset, extra = given
    level, weight = average_level(counts, offset), None
    if test == "quasi_likelihood":
        fit = fit_quasi_likelihood(counts, design, offset, extra)
        found = test_coefficient(fit, column, minimum)
    else:
        own = fit_dispersions(counts, design, offset, column, extra)
        found = (wald_test if test == "wald" else average_test)(own, minimum)
        fit = None if test == "wald" else own
        weight = None if test == "wald" else discovery_weights(own)
    change, se = found.change / LN2, found.se / LN2
    return Tested(kept, change, se, found.statistic, found.df, found.p, level, fit, weight)


def test_cells(
    test: str, part: sp.csr_matrix, code: np.ndarray, label: np.ndarray, names: Sequence[str]
) -> Tested | None:
    """The test between donors of some cells, as :func:`scmamba.deg.compare` makes it; None if it cannot be made.

    Parameters
    ----------
    test
        One of ``OF_COUNTS``.
    part
        (cells, genes) counts.
    code
        (cells,) number of the sample, -1 for none.
    label
        (samples,) 0 for group 1, 1 for group 2.
    names
        (samples,) the donors.
    """
    sums = sum_cells(part, code, len(names))
    keep = np.flatnonzero(sums.sum(axis=1) > 0)
    table = pd.DataFrame({"group": label[keep], "donor": np.asarray(names)[keep]})
    samples = Samples(table, sums[keep])
    distinct = table["donor"].nunique()
    paired = 2 * distinct == len(table)
    left = len(table) - 2 - (distinct - 1 if paired else 0)
    if min(samples.sizes) < 2 or left < 1:
        return None
    kept = usable_genes(samples)
    if kept.size == 0:
        return None
    design, column = sample_design(samples, None)
    number = np.full(len(names) + 1, -1)
    number[keep] = np.arange(keep.size)
    extra = between_cells(part, number[code], keep.size)
    counts = np.ascontiguousarray(samples.sums[:, kept].T)
    given = counts, design.matrix, np.log(effective_library(samples)), extra[kept]
    return test_of_counts(test, kept, given, column)


test_of_counts.__test__ = False  # type: ignore[attr-defined]  # no tests of pytest's
test_cells.__test__ = False  # type: ignore[attr-defined]
