"""Count splitting against the expected distributions, and the deviance against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import mean_poisson_deviance

from scmamba.data.count_splitting import poisson_deviance, split_counts
from scmamba.utils.errors import DataError, OptionError


def test_parts_sum_to_the_counts_and_are_reproducible():
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (50, 30)))
    train, test = split_counts(counts, 0.7, seed=3)
    np.testing.assert_array_equal((train + test).toarray(), counts.toarray())
    assert train.data.min() > 0 and test.data.min() > 0
    assert (split_counts(counts, 0.7, seed=3)[0] != train).nnz == 0
    assert (split_counts(counts, 0.7, seed=4)[0] != train).nnz > 0


def test_parts_of_poisson_counts_are_independent_poisson_counts():
    counts = sparse.csr_matrix(np.random.default_rng(1).poisson(5.0, (20_000, 1)))
    train, test = (part.toarray().ravel() for part in split_counts(counts, 0.8))
    assert train.mean() == pytest.approx(4, rel=0.02) and train.var() == pytest.approx(4, rel=0.05)
    assert test.mean() == pytest.approx(1, rel=0.03) and test.var() == pytest.approx(1, rel=0.05)
    assert abs(stats.pearsonr(train, test).statistic) < 0.03


def test_parts_of_negative_binomial_counts_are_independent_only_if_the_dispersion_is_given():
    """Variance mean + 0.5 mean^2: each part has dispersion 0.5 / its share."""
    mean, dispersion, size = 6.0, 0.5, 2.0
    counts = stats.nbinom.rvs(size, size / (size + mean), size=(40_000, 1), random_state=2)
    parts = split_counts(sparse.csr_matrix(counts), 0.8, dispersion=dispersion)
    train, test = (part.toarray().ravel() for part in parts)
    assert abs(stats.pearsonr(train, test).statistic) < 0.03
    own = 0.8 * mean
    assert train.mean() == pytest.approx(own, rel=0.02)
    assert train.var() == pytest.approx(own + dispersion / 0.8 * own**2, rel=0.06)
    wrong = split_counts(sparse.csr_matrix(counts), 0.8)
    together = stats.pearsonr(*(part.toarray().ravel() for part in wrong)).statistic
    assert together > 0.3, "binomial thinning of over-dispersed counts leaves them correlated"


def test_the_deviance_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    counts, expected = rng.poisson(1.0, (6, 40)), rng.gamma(1.0, 1.0, (6, 40)) + 0.01
    found = poisson_deviance(sparse.csr_matrix(counts), expected)
    exact = [40 * mean_poisson_deviance(y, mu) for y, mu in zip(counts, expected)]
    np.testing.assert_allclose(found, exact, rtol=1e-10)


def test_invalid_values_are_refused():
    counts = sparse.csr_matrix([[1.0, 2.0]])
    for share in (0.0, 1.0):
        with pytest.raises(OptionError, match="between 0 and 1"):
            split_counts(counts, share)
    for bad in (0.5, -1.0):
        with pytest.raises(DataError, match="Only raw counts"):
            split_counts(sparse.csr_matrix([[bad, 2.0]]))


def test_duplicate_entries_are_one_count_and_empty_last_cells_are_kept():
    twice = sparse.csr_matrix(([3.0, 4.0], [0, 0], [0, 2]), shape=(1, 2))
    train, test = split_counts(twice, 0.5, seed=1)
    assert (train + test).toarray().tolist() == [[7.0, 0.0]]
    # One draw from seven counts, not one from three and one from four.
    alone = split_counts(sparse.csr_matrix([[7.0, 0.0]]), 0.5, seed=1)[0]
    assert train.toarray().tolist() == alone.toarray().tolist()
    found = poisson_deviance(sparse.csr_matrix([[1.0], [0.0]]), np.array([[1.0], [0.5]]))
    np.testing.assert_allclose(found, [0, 1])


def test_without_dispersion_each_count_is_split_by_its_own_binomial():
    counts = sparse.csr_matrix(np.random.default_rng(5).poisson(3.0, (20, 10)))
    drawn = np.random.default_rng(7).binomial(counts.data, 0.6)
    for none in (0.0, np.zeros(10)):
        train = split_counts(counts, 0.6, dispersion=none, seed=7)[0]
        np.testing.assert_array_equal(train.toarray()[counts.toarray() > 0], drawn)
