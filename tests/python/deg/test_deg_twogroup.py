"""Two groups from sums over cells: the same numbers as the model on the cells."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from mast_by_hand import hurdle, shared_variance
from scipy import stats

from scmamba.deg.prior import Prior
from scmamba.deg.twogroup import (
    Sums,
    centres,
    combine_sums,
    discrete_tests,
    group_sums,
    hurdle_test,
    log_tail,
    noise_floor,
    shared_prior,
    subset_sums,
)


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(2)
    out = rng.gamma(4, 0.4, (50, 15)) + 0.5 * (np.arange(50) % 3 == 1)[:, None] * (
        np.arange(15) < 5
    )
    return out * (rng.random(out.shape) < np.linspace(0.25, 1, 15))


GROUP = np.arange(50) % 3  # 0, 1, and 2: not used
LABEL = np.where(GROUP == 2, -1, GROUP)


def _expected(dense, centre):
    on = dense > 0
    return (
        on.sum(axis=0),
        np.where(on, dense - centre, 0).sum(axis=0),
        np.where(on, (dense - centre) ** 2, 0).sum(axis=0),
        np.expm1(dense).sum(axis=0),
    )


def test_sums_of_groups(values):
    sums, centre = group_sums(sp.csr_matrix(values), LABEL, 2)
    np.testing.assert_allclose(centre, values.sum(axis=0) / (values > 0).sum(axis=0))
    for k in (0, 1):
        assert sums[k].n == (k == GROUP).sum()
        for got, truth in zip(sums[k][1:], _expected(values[k == GROUP], centre), strict=True):
            np.testing.assert_allclose(got, truth, rtol=1e-10, atol=1e-10)
    assert len(sums) == 2


def test_sums_of_counts_are_those_of_their_logs(values):
    counts = np.round(values * 4)
    totals = counts.sum(axis=1) + 5.0  # some genes were removed
    logs = np.log1p(counts / totals[:, None] * 1e4)
    (a, b), centre = group_sums(sp.csr_matrix(counts), LABEL, 2, totals=totals)
    np.testing.assert_allclose(centre, logs.sum(axis=0) / (logs > 0).sum(axis=0))
    for k, sums in enumerate((a, b)):
        for got, truth in zip(sums[1:], _expected(logs[k == GROUP], centre), strict=True):
            np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-9)


def test_centers_of_many_cells_come_from_every_nth_row():
    data = np.zeros((30, 3))
    data[::10, 0] = [1.0, 2.0, 6.0]
    data[1::10, 0] = 100.0
    data[:, 1] = np.arange(30) + 1
    matrix = sp.csr_matrix(data)
    np.testing.assert_allclose(centres(matrix, cells=3), [3.0, 11.0, 0.0])
    whole = [(9 + 300) / 6, 15.5, 0.0]
    np.testing.assert_allclose(centres(matrix), whole)
    totals = np.linspace(40, 200, 30)
    logs = np.log1p(data[::10] / totals[::10, None] * 1e4)
    np.testing.assert_allclose(
        centres(matrix, totals, 3)[:2], [logs[:, 0].mean(), logs[:, 1].mean()]
    )


def test_sums_of_subsets_and_unions(values):
    centre = np.linspace(0, 2, 15)
    rng = np.random.default_rng(0)
    member = (rng.random((50, 4)) < 0.5).astype(np.uint8)
    parts = subset_sums(sp.csc_matrix(values), centre, member)
    for s, got in enumerate(parts):
        dense = values[member[:, s] == 1]
        assert got.n == len(dense)
        for a, b in zip(got[1:], _expected(dense, centre), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    weights = np.array([[1, 0, 0, 1], [0, 1, 1, 1]])
    for w, got in zip(weights, combine_sums(parts, weights), strict=True):
        assert got.n == sum(p.n for p, on in zip(parts, w, strict=True) if on)
        for field in range(1, 5):
            truth = sum(p[field] for p, on in zip(parts, w, strict=True) if on)
            np.testing.assert_allclose(got[field], truth, rtol=1e-12)
    both = parts[0].plus(parts[1])
    assert both.n == parts[0].n + parts[1].n
    np.testing.assert_allclose(both.linear, parts[0].linear + parts[1].linear)
    assert both.take(np.array([3, 1])).squares.tolist() == both.squares[[3, 1]].tolist()
    assert both.take(np.array([3])).n == both.n


@pytest.mark.parametrize("prior", [Prior(0.4, 3.0), Prior(1.0, 0.0)])
def test_hurdle_test_is_the_model_on_the_cells(values, prior):
    (a, b), centre = group_sums(sp.csr_matrix(values), LABEL, 2)
    test = hurdle_test(a, b, prior, centre)
    used = GROUP < 2
    x = np.column_stack([np.ones(used.sum()), GROUP[used] == 1]).astype(float)
    for g in range(15):
        c, d, df, p = hurdle(x, x[:, :1], values[used, g], prior.variance, prior.dof)
        assert test.continuous[g] == pytest.approx(c, rel=1e-8, abs=1e-9)
        assert test.discrete[g] == pytest.approx(d, rel=1e-8, abs=1e-9)
        assert test.statistic[g] == pytest.approx(c + d, abs=1e-8) and test.df[g] == df == 2
        assert test.p[g] == pytest.approx(p, rel=1e-7)
        assert test.log_p[g] == pytest.approx(np.log(p), rel=1e-7)
    given = hurdle_test(a, b, prior, centre, discrete_tests([(b, a), (a, b)])[1])
    np.testing.assert_array_equal(given.statistic, test.statistic)
    assert discrete_tests([]) == []


def test_prior_from_sums(values):
    (a, b), centre = group_sums(sp.csr_matrix(values), LABEL, 2)
    v, d = shared_variance(values[GROUP < 2])
    found = shared_prior(a.plus(b), centre)
    assert found.variance == pytest.approx(v, rel=1e-3) and found.dof == pytest.approx(d, rel=1e-2)


def _sums(*columns: list[float]) -> Sums:
    """Ten cells; the values of every gene's expressing cells."""
    parts = [np.array(c, dtype=float) for c in columns]
    return Sums(
        10,
        np.array([len(p) for p in parts], dtype=float),
        np.array([p.sum() for p in parts]),
        np.array([(p**2).sum() for p in parts]),
        np.array([np.expm1(p).sum() for p in parts]),
    )


def test_which_parts_can_be_tested():
    """Continuous: cells of both groups and more than three; discrete: any cell (MAST's rules)."""
    first = _sums([], [1, 2, 4, 3], [1], [1, 2], [1, 2], [3], [1, 1])
    second = _sums([], [], [2], [3], [3, 5], [1, 2, 4], [1, 1])
    test = hurdle_test(first, second, Prior(0.5, 2.0), np.zeros(7))
    assert test.df.tolist() == [0, 1, 1, 1, 2, 2, 2]
    assert test.continuous[:4].tolist() == [0, 0, 0, 0] and (test.continuous[4:6] > 0).all()
    # 1, 2 against 3, 5: rss 8.75 in all, 2.5 within; n log of the shrunken ratio
    assert test.continuous[4] == pytest.approx(4 * np.log((8.75 + 1) / (2.5 + 1)))
    assert test.p[0] == 1 and test.log_p[0] == 0 and test.statistic[0] == 0
    assert test.continuous[6] == 0  # zero variance: only that of the prior, in both models
    none = hurdle_test(first, second, Prior(1.0, 0.0), np.zeros(7))
    assert none.continuous[6] == 0 and np.isfinite(none.statistic).all()


def test_equal_values_have_no_variance():
    """Rounding errors of the sums are not variance: 1e-26 of the raw squares, or eps of the summed ones."""
    pooled = Sums(
        10,
        np.array([4.0, 4.0, 9.0]),
        np.array([0.0, 0.4, 0.0]),
        np.array([0.0, 0.04, 2.0]),
        np.zeros(3),
    )
    centre = np.array([3.0, 2.0, 0.0])
    raw = [36.0, 0.04 + 2 * 2 * 0.4 + 4 * 4.0, 2.0]  # sums of squares of the values themselves
    eps = 2.0**-52
    expected = [1e-26 * raw[0], max(1e-26 * raw[1], eps * 4 * 0.04), eps * 9 * 2.0]
    np.testing.assert_allclose(noise_floor(pooled, centre), expected, rtol=1e-12)
    values = np.tile([[1.1, 0.3]], (40, 1))
    values[:, 1] += np.arange(40) / 7
    (a, b), centre = group_sums(sp.csr_matrix(values), np.arange(40) % 2, 2)
    a = a._replace(total=a.total + 1e-9 * np.array([1.0, 0.0]))
    test = hurdle_test(a, b, Prior(1.0, 0.0), centre)
    assert test.continuous[0] == 0 and test.df.tolist() == [2, 2]
    assert shared_prior(a.plus(b), centre).n_genes == 1


def test_logarithm_of_the_tail_probability():
    x = np.array([0.0, 0.5, 3.0, 50.0, 900.0, -1.0])
    for df in (1, 2):
        np.testing.assert_allclose(
            log_tail(x, np.full(6, df)),
            stats.chi2.logsf(np.maximum(x, 0), df),
            rtol=1e-9,
            atol=1e-12,
        )
    assert log_tail(np.array([1e5]), np.array([2]))[0] == -5e4
    assert log_tail(np.array([1e5]), np.array([1]))[0] == pytest.approx(
        -5e4 - np.log(1e5 * np.pi / 2) / 2, rel=1e-9
    )
    assert (log_tail(x, np.zeros(6, int)) == 0).all()
