"""The share of ambient RNA in the cells of one sample, from the genes that each cell type does not express.

Counts of a cell are modeled as a mixture: with probability ``1 - a`` a molecule is the cell's own (the profile of its type), with
probability ``a`` it is ambient (the average profile of the sample). The profile of the type is not known: that of its cells holds the
ambient molecules, too. A gene that a type does not express has ``a`` times the counts that it would have if all molecules were ambient, and
a gene that it does express has more. So the genes with the lowest ratio of observed to ambient counts show the share.

The lowest of many noisy ratios are low by chance. Genes are ranked by the posterior mean of their ratio under the distribution of the
ratios of all genes, and they are chosen in one half of the type's cells and counted in the other half, and the reverse.

Ideas: Young and Behjati 2020 (SoupX: genes that a type does not express), Yang et al. 2020 (DecontX: a mixture for each cell). The code is
independent of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ..data.row_store import Rows

#: A type needs this many cells, and a gene this many counts in half of the cells if all their molecules were ambient.
MIN_CELLS, MIN_EXPECTED = 10, 5.0
#: Fewest genes that a share rests on.
MIN_GENES = 10
#: Largest share that is accepted; types that are more similar to the sample's average have no genes of other types only.
MAX_SHARE = 0.6
#: The same if types are clusters: states of one type that differ fourfold would look like a share of a quarter.
MAX_SHARE_CLUSTERS = 0.25
#: A share is not known if half of its 95% interval is wider than this.
MAX_ERROR = 0.1
#: Share of the sample's counts that must be in types whose share is known.
MIN_KNOWN = 0.5
_GRID = (0.003, 30.0, 40)  # ratios of observed to ambient counts
_STEPS = 30  # of expectation maximization
_Z = 1.96
#: Part of a share that may be own RNA: genes that a type expresses weakly cannot be distinguished from those that it does not express
#: (benchmarks/results/ambient.md: estimates of added shares are up to a tenth too high). Intervals are so much longer below.
OWN_PART = 0.1


@dataclass(frozen=True)
class TypeShare:
    """Share of ambient RNA in the cells of a type.

    Attributes
    ----------
    share, error
        The estimate and its standard error; NaN if it cannot be estimated.
    genes
        Positions of the genes that the type does not express.
    cells, counts
        Size of the type in the sample.
    """

    share: float
    error: float
    genes: np.ndarray
    cells: int
    counts: float

    def known(self, largest: float = MAX_SHARE) -> bool:
        """Whether the estimate can be used."""
        return bool(self.share <= largest and _Z * self.error <= MAX_ERROR)


def type_share(
    counts: sparse.csr_matrix, average: np.ndarray, *, seed: int | np.random.Generator = 0
) -> TypeShare:
    """Share of ambient RNA in the cells of one type.

    Parameters
    ----------
    counts
        (n, genes) of the type.
    average
        (genes,) profile of the sample's ambient RNA; sums to 1.
    seed
        Seed of the split into two halves.
    """
    rng = np.random.default_rng(seed)
    cells = counts.shape[0]
    depth = np.asarray(counts.sum(axis=1)).ravel()
    empty = TypeShare(np.nan, np.nan, np.empty(0, dtype=np.int64), cells, float(depth.sum()))
    if cells < MIN_CELLS:
        return empty
    half = rng.permutation(cells) % 2
    chosen, observed, expected, variance = [], 0.0, 0.0, 0.0
    for k in (0, 1):
        there, here = counts[half == k], counts[half != k]
        genes = unexpressed_genes(there, average)
        if len(genes) < MIN_GENES:
            return empty
        part = here[:, genes]
        mass = average[genes].sum()
        size = depth[half != k]
        own, by_gene = np.asarray(part.sum(axis=1)).ravel(), np.asarray(part.sum(axis=0)).ravel()
        share = own.sum() / (size.sum() * mass)
        # Cells differ in their share and genes in how well the average describes the ambient RNA: the larger of the two counts.
        between_cells = ((own - share * size * mass) ** 2).sum()
        between_genes = ((by_gene - share * size.sum() * average[genes]) ** 2).sum()
        variance += max(between_cells, between_genes, 1.0)
        observed += own.sum()
        expected += size.sum() * mass
        chosen.append(genes)
    genes = np.unique(np.concatenate(chosen))
    return TypeShare(
        observed / expected, float(np.sqrt(variance)) / expected, genes, cells, float(depth.sum())
    )


def unexpressed_genes(counts: sparse.csr_matrix, average: np.ndarray) -> np.ndarray:
    """Genes that a type does not express: as many as give the lowest upper bound of their pooled ratio of observed to ambient counts.

    Parameters
    ----------
    counts
        (n, genes) cells of one type.
    average
        (genes,) profile of the ambient RNA.
    """
    observed = np.asarray(counts.sum(axis=0)).ravel()
    expected = observed.sum() * average
    enough = np.flatnonzero(expected >= MIN_EXPECTED)
    if len(enough) < MIN_GENES:
        return np.empty(0, dtype=np.int64)
    ambient = expected[enough]
    ratio = posterior_ratios(observed[enough], ambient)
    order = np.argsort(ratio, kind="stable")
    mass = np.cumsum(ambient[order])
    total = np.cumsum((ratio * ambient)[order])
    bound = (total + 2 * np.sqrt(total)) / mass
    number = MIN_GENES + int(np.argmin(bound[MIN_GENES - 1 :]))
    return enough[order[:number]]


def posterior_ratios(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """(genes,) posterior mean of the ratio of Poisson counts to their expectation, under the distribution of the ratios of all genes.

    That distribution has any shape (weights on a grid, by expectation maximization). A gene without counts that would have few anyway
    is expected to have the ratio of the others, and not zero.

    Parameters
    ----------
    observed, expected
        (genes,) counts, and those of ambient RNA alone.
    """
    grid = np.geomspace(*_GRID)
    logs = observed[:, None] * np.log(grid) - expected[:, None] * grid
    likely = np.exp(logs - logs.max(axis=1, keepdims=True))
    weight = np.full(len(grid), 1 / len(grid))
    for _ in range(_STEPS):
        weight *= (likely / (likely @ weight)[:, None]).mean(axis=0)
    mean: np.ndarray = (likely @ (weight * grid)) / (likely @ weight)
    return mean


@dataclass
class SampleAmbient:
    """Shares of ambient RNA in a sample, and the counts without it.

    Attributes
    ----------
    average
        (genes,) profile of the ambient RNA: the average of all cells of the sample.
    by_type
        Estimate of each type by its code.
    shares
        Share of each type by its code: the estimate shrunk towards the sample's share, or that share where the type has no estimate.
    share, low, high
        Of the sample: mean over its counts, with a 95% interval. NaN if it cannot be known.
    reason
        Why not; empty otherwise.
    known
        Codes of the types whose estimate is used.
    """

    average: np.ndarray
    by_type: dict[int, TypeShare]
    shares: dict[int, float]
    share: float = np.nan
    low: float = np.nan
    high: float = np.nan
    reason: str = ""
    known: frozenset[int] = frozenset()

    def cell_shares(self, counts: sparse.csr_matrix, codes: np.ndarray) -> np.ndarray:
        """(n,) share in each cell, NaN for cells without a type or where the share of the sample is not known.

        The counts of all genes of the type that have no more counts than the ambient RNA explains are Poisson with a gamma-distributed
        share; its mean over the posterior is the share of the cell. The spread of the gamma distribution is estimated from the cells of
        the type.

        Parameters
        ----------
        counts
            (n, genes).
        codes
            (n,) types, -1: none.
        """
        out = np.full(len(codes), np.nan)
        depth = np.asarray(counts.sum(axis=1)).ravel()
        for code, share in self.shares.items():
            rows = np.flatnonzero(codes == code)
            out[rows] = share
            if share <= 0 or code not in self.known:
                continue
            part = counts[rows]
            ambient = share * depth[rows].sum() * self.average
            pooled = np.asarray(part.sum(axis=0)).ravel()
            genes = np.flatnonzero((ambient > 0) & (pooled <= ambient + np.sqrt(ambient + 1)))
            seen = np.asarray(part[:, genes].sum(axis=1)).ravel()
            expected = depth[rows] * self.average[genes].sum()
            # The genes were chosen for being low here; the pooled share is the one of the held-out halves.
            expected *= seen.sum() / max(share * expected.sum(), 1e-12)
            mean = share * expected
            gap = np.clip(seen - mean, -4 * np.sqrt(mean + 1), 4 * np.sqrt(mean + 1))
            spread = (gap**2 - mean).sum() / max((mean**2).sum(), 1e-12)
            shape = 1 / np.clip(spread, 1e-3, 2.0)
            out[rows] = np.clip((shape + seen) / (shape / share + expected), 0, 0.95)
        return out

    def corrected(
        self, counts: sparse.csr_matrix, codes: np.ndarray, shares: np.ndarray
    ) -> sparse.csr_matrix:
        """(n, genes) expected counts of the cells' own RNA; counts of cells without a share stay.

        Of a gene at most the counts are removed that the ambient RNA explains (three standard deviations above its mean and one), so that
        genes of a subtype stay although the rest of the type does not express them.

        Parameters
        ----------
        counts
            (n, genes).
        codes
            (n,) types, -1: none.
        shares
            (n,) of :meth:`cell_shares`.
        """
        out = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
        depth = np.asarray(counts.sum(axis=1)).ravel()
        lengths = np.diff(out.indptr)
        for code, share in self.shares.items():
            rows = np.flatnonzero((codes == code) & np.isfinite(shares))
            if not len(rows):
                continue
            pooled = np.asarray(counts[rows].sum(axis=0)).ravel()
            own = np.maximum(pooled / max(pooled.sum(), 1e-12) - share * self.average, 0)
            own /= max(own.sum(), 1e-12)
            where = np.concatenate([np.arange(out.indptr[r], out.indptr[r + 1]) for r in rows])
            gene = out.indices[where]
            ambient = np.repeat(shares[rows] * depth[rows], lengths[rows]) * self.average[gene]
            mine = np.repeat((1 - shares[rows]) * depth[rows], lengths[rows]) * own[gene]
            removed = out.data[where] * ambient / np.maximum(ambient + mine, 1e-300)
            most = ambient + 3 * np.sqrt(ambient) + 1
            removed = np.where(ambient > 0, np.minimum(removed, most), 0)
            out.data[where] = np.maximum(out.data[where] - removed, 0)
        out.data[out.data < 1e-6] = 0
        out.eliminate_zeros()
        return out


def sample_ambient(
    counts: Rows, codes: np.ndarray, *, largest: float = MAX_SHARE, seed: int = 0
) -> SampleAmbient:
    """Shares of ambient RNA in one sample.

    Parameters
    ----------
    counts
        (n, genes) counts of all its cells.
    codes
        (n,) types, -1: none; such cells are part of the average only.
    largest
        Largest share of a type that is accepted.
    seed
        Seed of the split into halves.
    """
    average = np.asarray(counts.sum(axis=0)).ravel().astype(np.float64)
    average /= max(average.sum(), 1e-12)
    by_type = {
        int(code): type_share(counts[codes == code], average, seed=seed)
        for code in np.unique(codes[codes >= 0])
    }
    found = SampleAmbient(average, by_type, {})
    known = {code: each for code, each in by_type.items() if each.known(largest)}
    found.reason = _reason(by_type, known, largest)
    if found.reason:
        return found
    found.known = frozenset(known)
    size = sum(each.counts for each in by_type.values())
    value = np.array([each.share for each in known.values()])
    error = np.maximum([each.error for each in known.values()], 1e-4)
    mean, spread, mean_error = _pooled(value, error)
    variance = 0.0
    for code, each in by_type.items():
        weight = each.counts / size
        if code in known:
            keep = spread / (spread + each.error**2)
            found.shares[code] = keep * each.share + (1 - keep) * mean
            variance += (weight * each.error) ** 2
        else:
            found.shares[code] = mean
            variance += weight**2 * (mean_error**2 + spread)
    found.share = sum(by_type[code].counts / size * share for code, share in found.shares.items())
    half = _Z * float(np.sqrt(variance))
    found.low = max((1 - OWN_PART) * found.share - half, 0.0)
    found.high = min(found.share + half, 1.0)
    return found


def _reason(by_type: dict[int, TypeShare], known: dict[int, TypeShare], largest: float) -> str:
    """Why the share of a sample cannot be known; empty if it can."""
    large = [each for each in by_type.values() if each.cells >= MIN_CELLS]
    if len(large) < 2:
        return (
            f"{len(large)} cell type{'s' * (len(large) != 1)} with {MIN_CELLS} cells; two are needed, because ambient RNA shows in the "
            "genes of other types"
        )
    size = sum(each.counts for each in by_type.values())
    if sum(each.counts for each in known.values()) >= MIN_KNOWN * size:
        return ""
    if any(np.isfinite(each.share) and each.share > largest for each in large):
        return (
            "the cell types are too similar: no genes of other types are rare enough in them "
            f"(ratios above {largest:g})"
        )
    return "too few counts of genes of other types"


def _pooled(value: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """Mean of the shares, their variance between types (DerSimonian and Laird 1986), and the standard error of the mean."""
    weight = 1 / error**2
    mean = (weight * value).sum() / weight.sum()
    excess = (weight * (value - mean) ** 2).sum() - (len(value) - 1)
    scale = weight.sum() - (weight**2).sum() / weight.sum()
    spread = max(excess / scale, 0.0) if scale > 0 else 0.0
    weight = 1 / (error**2 + spread)
    mean = float((weight * value).sum() / weight.sum())
    return mean, float(spread), float(np.sqrt(1 / weight.sum()))
