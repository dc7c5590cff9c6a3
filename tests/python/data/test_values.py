"""Detection of the scale of values: totals of all cells, a recorded logarithm, and cells without counts."""

from __future__ import annotations

import tracemalloc

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scmamba.data.selection import select_matrix
from scmamba.data.values import (
    classify_values,
    detect_value_scale,
    is_integer,
    log1p_cp10k,
    to_csr,
)
from scmamba.utils.errors import DataError


def logs(n: int, seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """log1p of ``n`` cells whose totals differ by at most half a percent from 10,000, and those totals."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2.0, (n, 40)).astype(float) + 1
    totals = rng.uniform(9_950, 10_050, n)
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * totals[:, None])
    return sparse.csr_matrix(values), totals


@pytest.mark.parametrize("judge", [classify_values, detect_value_scale])
def test_quantiles_of_the_totals_are_over_all_cells_and_not_a_sample(judge):
    values, totals = logs(3000)
    found = judge(values)
    assert found.kind == "log1p"
    np.testing.assert_allclose(found.totals, np.quantile(totals, [0.05, 0.95]), rtol=1e-9)


@pytest.mark.parametrize("judge", [classify_values, detect_value_scale])
def test_totals_of_logged_counts_are_those_of_the_counts(judge):
    counts = np.random.default_rng(2).poisson(np.linspace(0.5, 3, 200)[:, None], (200, 60))
    found = judge(sparse.csr_matrix(np.log1p(counts.astype(float))))
    assert found.kind == "log1p_counts"
    np.testing.assert_allclose(found.totals, np.quantile(counts.sum(axis=1), [0.05, 0.95]))


def test_small_values_are_logarithms_if_log1p_is_recorded():
    rng = np.random.default_rng(1)
    values = rng.gamma(1.0, 0.1, (30, 50)) * (rng.random((30, 50)) < 0.5)
    cells = ad.AnnData(sparse.csr_matrix(np.minimum(values, 0.9)))
    with pytest.raises(DataError, match="holds fractions"):
        select_matrix(cells).detect()
    cells.uns["log1p"] = {"base": None}
    with pytest.raises(DataError, match="looks like logarithms"):
        select_matrix(cells).detect()


def test_cells_without_counts_stay_empty():
    counts = sparse.csr_matrix(np.array([[1.0, 3.0], [2.0, 5.0]]))
    found = log1p_cp10k(counts, totals=np.array([0.0, 7.0]), dtype=np.float64).toarray()
    np.testing.assert_array_equal(found[0], [0.0, 0.0])
    np.testing.assert_allclose(found[1], np.log1p(1e4 * np.array([2, 5]) / 7))


def test_logs_of_some_genes_whose_totals_vary_are_logs():
    """A very variable gene: totals vary more without the logarithm, but cells with more genes have smaller values."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.4, 1.0, 2000) * rng.lognormal(0, 0.6, (150, 1))).astype(float)
    counts[:, 0] = rng.lognormal(5, 1.5, 150)
    values = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)[:, :200]
    back, logged = np.expm1(values).sum(axis=1), values.sum(axis=1)
    ratios = [np.divide(*np.quantile(part, [0.95, 0.05])) for part in (back, logged)]
    assert 1.5 < ratios[1] < ratios[0] < 3 * ratios[1]
    assert classify_values(sparse.csr_matrix(values)).kind == "log1p"


@pytest.mark.parametrize("place", [0, (1 << 20) - 1, 1 << 20, -2, -1])
def test_one_fraction_anywhere_is_found(place):
    values = np.ones((1 << 21) + 5, dtype=np.float32)
    assert is_integer(values)
    values[place] = 0.5
    assert not is_integer(values)


def test_stored_zeros_are_not_copied():
    # What a small file becomes when its values were never written: all are zeros of one gene of one cell.
    n = 4_000_000
    indptr = np.array([0, 1, 1, n + 1])
    data, indices = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int32)
    data[0], data[7], data[9] = 3, 2, np.nan
    rows = sparse.csr_matrix((data, indices, indptr), shape=(3, 5))
    tracemalloc.start()
    try:
        result = to_csr(rows)
        assert classify_values(rows).kind == "not_finite"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < data.nbytes / 4
    assert result.data.dtype == np.float64
    np.testing.assert_array_equal(result.toarray()[:, 0], [3, 0, np.nan])
    assert len(rows.data) == n + 1  # the block itself is left as it is
    rows.data[9] = 0
    np.testing.assert_array_equal(to_csr(rows).toarray()[:, 0], [3, 0, 2])
