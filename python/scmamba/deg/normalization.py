"""Library sizes of samples: the trimmed mean of M-values (Robinson and Oshlack, Genome Biol 11:R25, 2010)."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

TRIM_M, TRIM_A = 0.30, 0.05


def tmm_factors(counts: np.ndarray) -> np.ndarray:
    """Normalization factors of samples, with a geometric mean of 1.

    Parameters
    ----------
    counts
        (samples, genes) sums of counts; every sample has some.

    Returns
    -------
    (samples,) factors: effective library size = total x factor.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> counts = rng.poisson(rng.gamma(1, 20, 500), (4, 500))
    >>> bool(np.allclose(tmm_factors(counts), 1, atol=0.1))
    True
    """
    counts = counts[:, counts.any(axis=0)].astype(np.float64)
    total = counts.sum(axis=1)
    upper = np.quantile(counts, 0.75, axis=1) / total
    if np.median(upper) < 1e-20:  # mostly zeros: the deepest sample is the reference
        reference = int(np.argmax(np.sqrt(counts).sum(axis=1)))
    else:
        reference = int(np.argmin(np.abs(upper - upper.mean())))
    log2 = np.array(
        [_log_factor(row, counts[reference], n, total[reference]) for row, n in zip(counts, total)]
    )
    result: np.ndarray = np.exp2(log2 - log2.mean())
    return result


def _log_factor(
    sample: np.ndarray, reference: np.ndarray, n_sample: float, n_reference: float
) -> float:
    """log2 of one sample's factor against the reference."""
    seen = (sample > 0) & (reference > 0)
    x, y = sample[seen] / n_sample, reference[seen] / n_reference
    m, a = np.log2(x / y), (np.log2(x) + np.log2(y)) / 2
    if m.size == 0 or np.abs(m).max() < 1e-6:
        return 0.0
    variance = (1 - x) / sample[seen] + (1 - y) / reference[seen]  # of m, by the delta method
    n = m.size
    low_m, low_a = np.floor(n * TRIM_M) + 1, np.floor(n * TRIM_A) + 1
    rank_m, rank_a = rankdata(m), rankdata(a)
    kept = (rank_m >= low_m) & (rank_m <= n + 1 - low_m)
    kept &= (rank_a >= low_a) & (rank_a <= n + 1 - low_a)
    return float((m[kept] / variance[kept]).sum() / (1 / variance[kept]).sum()) if kept.any() else 0
