"""What the tests see: which matrix, counts or logarithms, and log1p of 10,000 per cell."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scmamba.deg.values import (
    TARGET,
    as_csr,
    as_source,
    layer_source,
    normalise,
    recognise,
    resolve_layer,
)
from scmamba.utils.errors import DataError

COUNTS = np.array([[2, 0, 6], [0, 0, 0], [1, 1, 2]], dtype=float)
# by hand: log1p(2/8 * 10,000), ...
LOGS = np.log1p([[2500, 0, 7500], [0, 0, 0], [2500, 2500, 5000]])


@pytest.fixture()
def adata() -> ad.AnnData:
    out = ad.AnnData(sp.csr_matrix(COUNTS), obs=pd.DataFrame(index=list("abc")))
    out.layers["scmamba"] = sp.csr_matrix(LOGS)
    return out


def test_log1p_of_ten_thousand_per_cell():
    assert TARGET == 10_000
    got = normalise(sp.csr_matrix(COUNTS.astype(np.int32)))
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got.toarray(), LOGS)
    part = normalise(sp.csr_matrix(COUNTS[:, 1:]), np.array([8.0, 0.0, 4.0]))
    np.testing.assert_array_equal(part.toarray(), LOGS[:, 1:])
    # R's order of operations, to the last digit: count / total * 10,000
    odd = normalise(sp.csr_matrix([[1.0, 6.0, 3.0, 39.0]])).data
    np.testing.assert_array_equal(odd, np.log1p(np.array([1, 6, 3, 39]) / 49.0 * 1e4))


def test_a_part_of_a_source_keeps_the_totals_of_all_genes():
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


def test_which_matrix(adata):
    for name in (None, "X", "counts", "raw"):
        matrix, where = resolve_layer(adata, name)
        assert matrix is adata.X and where == "X"
    matrix, where = resolve_layer(adata, "scmamba")
    assert (matrix != adata.layers["scmamba"]).nnz == 0 and where == "layers['scmamba']"
    adata.layers["counts"] = adata.layers["scmamba"] * 2
    assert resolve_layer(adata, "counts")[1] == "layers['counts']"  # a layer of that name wins
    with pytest.raises(DataError, match="no layer 'imputed'.*scmamba, counts"):
        resolve_layer(adata, "imputed")
    empty = ad.AnnData(obs=adata.obs)
    with pytest.raises(DataError, match="has no X"):
        layer_source(empty)


def test_recognised_by_the_values():
    assert recognise(np.array([1, 2, 3]), "X") == "counts"
    assert recognise(np.array([1, 2, -3]), "X") == "log"  # whole numbers below zero are no counts
    assert recognise(np.array([], dtype=int), "X") == "log"
    assert recognise(np.array([], dtype=float), "X") == "log"
    assert recognise(np.array([True]), "X") == "counts"
    assert recognise(np.array([0]), "X") == "counts"
    assert recognise(np.array([1.0, 25.0, 1e6]), "X") == "counts"
    assert recognise(np.array([1.0, 2.0, np.nan]), "X") == "counts"
    assert recognise(np.array([-1.0, 2.0]), "X") == "log"
    assert recognise(np.array([1.0, 2.5]), "X") == "log"
    # log2 of a million is 19.93: the largest logarithm there is in practice
    assert recognise(np.array([0.5, 20.0]), "X") == "log"
    with pytest.raises(DataError, match="X go up to 21 .*neither counts nor"):
        recognise(np.array([0.5, 20.6]), "X")
    with pytest.raises(DataError, match="layers .*infinite"):
        recognise(np.array([0.5, -np.inf]), "layers")


def test_values_are_read_to_the_end():
    """The pieces of a large matrix: the last value decides."""
    many = np.ones((1 << 22) + 5, dtype=np.float32)
    assert recognise(many, "X") == "counts"
    many[-1] = 1.5
    assert recognise(many, "X") == "log"
    many[0] = 30.0
    with pytest.raises(DataError, match="neither"):
        recognise(many, "X")


def test_the_callers_matrix_is_left_alone():
    zeros = sp.csr_matrix((np.array([1.0, 0.0, 2.0]), [0, 1, 2], [0, 2, 3]), shape=(2, 3))
    out = as_csr(zeros)
    assert out.nnz == 2 and zeros.nnz == 3 and zeros.data.tolist() == [1, 0, 2]
    full = sp.csr_matrix(COUNTS)
    assert as_csr(full) is full or np.shares_memory(
        as_csr(full).data, full.data
    )  # no needless copy
    np.testing.assert_array_equal(as_csr(COUNTS).toarray(), COUNTS)
    before = full.copy()
    normalise(full)
    assert (full != before).nnz == 0


def test_what_the_caller_says_goes():
    with pytest.raises(DataError, match=r"X holds negative values \(-2\)"):
        as_source(np.array([[1.0, -2.0]]), "X", "counts")
    said = as_source(np.array([[1.0, 3.0]]), "X", "log")
    assert said.totals is None
    forced = as_source(np.array([[0.5, 1.5]]), "X", "counts")
    np.testing.assert_allclose(forced.logs().toarray(), np.log1p([[2500, 7500]]))
    assert as_source(np.array([[1.0, 3.0]]), "X").totals.tolist() == [4.0]
    assert as_source(np.array([[1e6 + 0.5, 3.0]]), "X", "log").totals is None
