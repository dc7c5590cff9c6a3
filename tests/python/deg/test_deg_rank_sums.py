"""The rank-sum test of sparse values gives the p of SciPy's test of the dense ones."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import mannwhitneyu

from scmamba.deg.wilcoxon import rank_sum_p


@pytest.mark.parametrize("negative", [False, True])
def test_p_is_that_of_dense_values(negative):
    rng = np.random.default_rng(0)
    values = rng.poisson(0.8, (90, 30)) + rng.poisson(0.6, (90, 30)) * (np.arange(30) % 3 == 0)
    values = values.astype(float) - negative * rng.integers(0, 2, values.shape)
    values[:, 4], values[:, 5] = 0, 2  # equal in all cells
    first, second = values[:35], values[35:]
    found = rank_sum_p(sparse.csr_matrix(first), sparse.csr_matrix(second))
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = mannwhitneyu(first, second, method="asymptotic", axis=0).pvalue
    assert (found[[4, 5]] == 1).all()
    keep = np.delete(np.arange(30), [4, 5])
    np.testing.assert_allclose(found[keep], expected[keep], rtol=1e-9)


def test_missing_values_do_not_hang():
    values = np.array([[1.0, np.nan], [np.nan, 2.0], [0.0, 1.0], [3.0, np.nan]])
    assert rank_sum_p(sparse.csr_matrix(values[:2]), sparse.csr_matrix(values[2:])).shape == (2,)
