"""The input of the tests: which matrix, counts or logarithms, and log1p of 10,000 per cell."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scmamba.data.values import SCALE, log1p_cp10k
from scmamba.deg.values import as_csr, as_source, layer_source
from scmamba.utils.errors import DataError

COUNTS = np.array([[2, 0, 6], [0, 0, 0], [1, 1, 2]], dtype=float)
# by hand: log1p(2/8 * 10,000), ...
LOGS = np.log1p([[2500, 0, 7500], [0, 0, 0], [2500, 2500, 5000]])


def normalise(counts, totals=None):
    return log1p_cp10k(counts, totals, dtype=np.float64)


@pytest.fixture()
def adata() -> ad.AnnData:
    out = ad.AnnData(sp.csr_matrix(COUNTS), obs=pd.DataFrame(index=list("abc")))
    out.layers["scmamba"] = sp.csr_matrix(LOGS)
    return out


def test_log1p_of_ten_thousand_per_cell():
    assert SCALE == 10_000
    got = normalise(sp.csr_matrix(COUNTS.astype(np.int32)))
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got.toarray(), LOGS)
    part = normalise(sp.csr_matrix(COUNTS[:, 1:]), np.array([8.0, 0.0, 4.0]))
    np.testing.assert_array_equal(part.toarray(), LOGS[:, 1:])
    # R's order of operations, to the last digit: count / total * 10,000
    odd = normalise(sp.csr_matrix([[1.0, 6.0, 3.0, 39.0]])).data
    np.testing.assert_array_equal(odd, np.log1p(np.array([1, 6, 3, 39]) / 49.0 * 1e4))


def test_a_subset_keeps_the_totals_over_all_genes():
    source = as_source(sp.csr_matrix(COUNTS), "X")
    np.testing.assert_array_equal(source.totals, [8, 0, 4])
    np.testing.assert_array_equal(source.logs().toarray(), LOGS)
    np.testing.assert_array_equal(
        source.logs(np.array([2, 0]), [2, 1]).toarray(), LOGS[[2, 0]][:, [2, 1]]
    )
    np.testing.assert_array_equal(
        source.logs(np.array([True, False, True])).toarray(), LOGS[[0, 2]]
    )
    logs = as_source(sp.csr_matrix(LOGS.astype(np.float32)), "X")
    assert logs.totals is None and logs.logs().dtype == np.float64
    np.testing.assert_allclose(logs.logs([0], [2]).toarray(), LOGS[:1, 2:], rtol=1e-6)


def test_which_matrix_is_read(adata):
    for name in (None, "X"):
        assert layer_source(adata, name).totals.tolist() == [8, 0, 4]
    logs = layer_source(adata, "scmamba")
    assert logs.totals is None and (logs.matrix != adata.layers["scmamba"]).nnz == 0
    for name in ("counts", "raw", "imputed"):
        with pytest.raises(DataError, match="no (layer|adata.raw).*'scmamba'"):
            layer_source(adata, name)
    adata.raw = ad.AnnData(
        sp.csr_matrix(np.hstack([COUNTS, [[2.0], [1], [0]]])), var=pd.DataFrame(index=list("vwxy"))
    )
    raw = layer_source(adata, "raw")
    assert raw.totals.tolist() == [10, 1, 4] and list(raw.genes) == list("vwxy")
    with pytest.raises(DataError, match="X is empty"):
        layer_source(ad.AnnData(obs=adata.obs))


def test_logarithms_of_any_base_are_tested_as_natural_ones(adata):
    for base in (2, 10):
        adata.layers["log"] = sp.csr_matrix(LOGS / np.log(base))
        source = layer_source(adata, "log")
        np.testing.assert_allclose(source.logs().toarray(), LOGS, rtol=1e-12)
        assert source.totals is None and f"base {base}" in source.values


def test_antibodies_are_excluded(adata):
    adata.var["feature_types"] = ["Gene Expression", "Gene Expression", "Antibody Capture"]
    adata.var_names = list("abc")
    source = layer_source(adata)
    assert source.totals.tolist() == [2, 0, 2] and list(source.genes) == ["a", "b"]
    assert source.logs().shape == (3, 2)


def test_the_matrix_of_the_caller_is_unchanged():
    zeros = sp.csr_matrix((np.array([1.0, 0.0, 2.0]), [0, 1, 2], [0, 2, 3]), shape=(2, 3))
    out = as_csr(zeros)
    assert out.nnz == 2 and zeros.nnz == 3 and zeros.data.tolist() == [1, 0, 2]
    full = sp.csr_matrix(COUNTS)
    assert as_csr(full) is full or np.shares_memory(
        as_csr(full).data, full.data
    )  # no unnecessary copy
    np.testing.assert_array_equal(as_csr(COUNTS).toarray(), COUNTS)
    before = full.copy()
    normalise(full)
    assert (full != before).nnz == 0


def test_a_stated_scale_is_used():
    with pytest.raises(DataError, match=r"X holds negative values \(-2\)"):
        as_source(np.array([[1.0, -2.0]]), "X", "counts")
    source = as_source(np.array([[1.0, 3.0]]), "X", "log")
    assert source.totals is None
    forced = as_source(np.array([[0.5, 1.5]]), "X", "counts")
    np.testing.assert_allclose(forced.logs().toarray(), np.log1p([[2500, 7500]]))
    assert as_source(np.array([[1.0, 3.0]]), "X").totals.tolist() == [4.0]
    assert as_source(np.array([[1e6 + 0.5, 3.0]]), "X", "log").totals is None
