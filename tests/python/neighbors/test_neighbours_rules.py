"""Neighbors and their pooled rates, against the same sums written out cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from scmamba.neighbors.batch_balanced import BatchBalancedKNN
from scmamba.neighbors.knn import nearest_neighbors
from scmamba.neighbors.rates import knn_rates, truncated_mean
from scmamba.neighbors.svd import principal_components
from scmamba.utils.errors import DataError


def counts_of(cells: int, genes: int, seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(
        rng.poisson(rng.gamma(1.0, 1.0, genes) * rng.uniform(0.5, 2, (cells, 1))).astype(float)
    )


def sums(x: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(x.sum(axis=1)).ravel()


def logs(counts: sparse.csr_matrix, totals: np.ndarray) -> np.ndarray:
    return np.log1p(counts.toarray() / totals[:, None] * 1e4)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None] - b[None]) ** 2).sum(axis=-1)


# --- single pieces ------------------------------------------------------------------------------


def test_the_mean_of_a_nonzero_count():
    mu = np.array([0.5, 3.0, 1e-12, 0.0, -1.0, 800.0])
    expected = [0.5 / (1 - np.exp(-0.5)), 3 / (1 - np.exp(-3.0)), 1, 1, 1, 800]
    np.testing.assert_allclose(truncated_mean(mu), expected, rtol=1e-8)


def test_components_of_a_small_matrix_are_exact():
    """As many random directions as there are dimensions: the projections lose no information."""
    x = counts_of(30, 12)
    left, size, right = np.linalg.svd(x.toarray(), full_matrices=False)
    scores, basis = principal_components(x, 5)
    assert scores.shape == (30, 5) and basis.shape == (12, 5)
    sign = np.sign((basis * right[:5].T).sum(axis=0))
    np.testing.assert_allclose(basis * sign, right[:5].T, atol=1e-8)
    np.testing.assert_allclose(scores * sign, left[:, :5] * size[:5], atol=1e-8)
    np.testing.assert_allclose(scores, x @ basis, atol=1e-8)
    assert principal_components(x, 50)[0].shape == (30, 11), "one fewer than there are genes"
    assert principal_components(x[:4], 50)[0].shape == (4, 3)
    with pytest.raises(DataError, match="1 cells x 12 genes are too few"):
        principal_components(x[:1], 3)


def test_components_depend_only_on_the_seed():
    x = counts_of(60, 200)
    first, again, other = (principal_components(x, 4, seed=s, passes=1)[0] for s in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(
        principal_components(x, 4)[0], principal_components(x, 4, seed=0, passes=4)[0]
    )


def test_more_passes_are_more_accurate():
    """For a flat spectrum four passes find a component that one pass misses."""
    x = sparse.csr_matrix(np.random.default_rng(0).standard_normal((150, 400)))
    exact = np.linalg.svd(x.toarray(), compute_uv=False)[:3].sum()
    found = [
        np.linalg.norm(principal_components(x, 3, passes=p)[0], axis=0).sum() / exact
        for p in (1, 4)
    ]
    assert found[0] < 0.95 * found[1] < found[1] <= 1, found


def test_neighbors_are_sorted_by_distance():
    pool = np.array([[0.0], [4.0], [1.0], [1.2], [9.5]])
    assert nearest_neighbors(np.array([[0.9], [8.0]]), pool, 3).tolist() == [[2, 3, 0], [4, 1, 3]]
    assert nearest_neighbors(np.array([[5.0]]), pool, 99).tolist() == [[1, 3, 2, 4, 0]]
    rng = np.random.default_rng(1)
    query, many = rng.standard_normal((1030, 3)), rng.standard_normal((40, 3))
    brute = np.argsort(distances(query, many), axis=1)[:, :4]
    np.testing.assert_array_equal(nearest_neighbors(query, many, 4), brute)
    np.testing.assert_array_equal(nearest_neighbors(query, many, 4, block=1), brute)


# --- rates ---------------------------------------------------------------------------------------


def test_rates_of_neighbors_with_masked_counts_in_the_totals():
    counts = counts_of(300, 40)
    totals = sums(counts) * np.random.default_rng(2).uniform(1, 1.5, 300)
    found = knn_rates(counts, totals, 7, shrink=90.0, components=3, seed=4)
    dense = counts.toarray()
    scores = principal_components(sparse.csr_matrix(logs(counts, totals)), 3, seed=4)[0]
    near = np.argsort(distances(scores, scores), axis=1)[:, :7]
    np.testing.assert_array_equal(found.neighbors, near)
    assert (found.neighbors[:, 0] == np.arange(300)).all(), "a cell is its own first neighbour"
    overall = dense.sum(axis=0) / dense.sum()
    expected = (dense[near].sum(axis=1) + 90 * overall) / (
        dense.sum(axis=1)[near].sum(axis=1) + 90
    )[:, None]
    np.testing.assert_allclose(found.gene_rate, overall, rtol=1e-12)
    np.testing.assert_allclose(found.rate(slice(0, 300)), expected, rtol=1e-10)
    some = np.array([299, 5, 5, 256])
    np.testing.assert_allclose(found.rate(some), expected[some], rtol=1e-10)
    mean = truncated_mean(expected * totals[:, None])
    np.testing.assert_allclose(
        found.log_values(some), np.log1p(1e4 * mean / totals[:, None])[some], rtol=1e-10
    )
    rows, columns = np.array([299, 0, 255, 256, 0, 257]), np.array([1, 39, 7, 8, 0, 3])
    np.testing.assert_allclose(found.rate_at(rows, columns), expected[rows, columns], rtol=1e-10)


def test_default_numbers_of_neighbors_counts_and_components():
    counts = counts_of(80, 70)
    totals = sums(counts)
    found = knn_rates(counts, totals)
    own = knn_rates(counts, totals, 30, shrink=5000.0, components=50, seed=0)
    assert found.neighbors.shape == (80, 30) and found.shrink == 5000.0
    np.testing.assert_array_equal(found.neighbors, own.neighbors)
    np.testing.assert_array_equal(found.totals, totals)
    fewer = knn_rates(counts, totals, components=20)
    assert (fewer.neighbors != found.neighbors).any()


@pytest.mark.parametrize("given", [True, False])
def test_only_reference_cells_are_neighbors(given):
    counts, reference = counts_of(20, 30), counts_of(60, 30, seed=5)
    totals = sums(counts) * 1.3
    depths = sums(reference) * (1.2 if given else 1.0)
    options = {"reference_totals": depths} if given else {}
    found = knn_rates(counts, totals, 5, components=4, shrink=10.0, reference=reference, **options)
    scores, basis = principal_components(sparse.csr_matrix(logs(reference, depths)), 4)
    near = np.argsort(distances(logs(counts, totals) @ basis, scores), axis=1)[:, :5]
    np.testing.assert_array_equal(found.neighbors, near)
    dense = reference.toarray()
    overall = dense.sum(axis=0) / dense.sum()
    expected = (dense[near].sum(axis=1) + 10 * overall) / (
        dense.sum(axis=1)[near].sum(axis=1) + 10
    )[:, None]
    np.testing.assert_allclose(found.rate(slice(0, 20)), expected, rtol=1e-10)
    np.testing.assert_array_equal(found.totals, totals)


def test_cells_without_counts_and_wrong_lengths_are_refused():
    counts = counts_of(20, 30)
    totals = sums(counts)
    with pytest.raises(DataError, match="19 totals came with 20 cells"):
        knn_rates(counts, totals[:19])
    totals[3:5] = 0
    with pytest.raises(DataError, match="2 cells have no counts"):
        knn_rates(counts, totals)
    with pytest.raises(DataError, match="reference has 29 genes and the cells have 30"):
        knn_rates(counts, sums(counts), reference=counts[:, :29])


# --- pools
# -------------------------------------------------------------------------------------------


def test_a_pool_keeps_means_components_and_counts():
    counts = counts_of(50, 25)
    totals = sums(counts) * 1.1
    pool = BatchBalancedKNN(counts, totals, components=6, seed=3)
    values = logs(counts, totals)
    scores, basis = principal_components(sparse.csr_matrix(values), 6, seed=3)
    np.testing.assert_allclose(pool.mean_value, values.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(pool.scores, scores, atol=1e-8)
    np.testing.assert_array_equal(pool.seen, sums(counts))
    others = counts_of(4, 25, seed=9)
    np.testing.assert_allclose(
        pool.project(others, np.full(4, 77.0)), logs(others, np.full(4, 77.0)) @ basis, atol=1e-8
    )
    for rank in (2, 6, 99):
        np.testing.assert_allclose(
            pool.reconstruct_from_pcs(scores[:3], rank),
            scores[:3, :rank] @ basis[:, :rank].T,
            atol=1e-4,
        )
    assert pool.reconstruct_from_pcs(scores[:3], 2).dtype == np.float32
    default = BatchBalancedKNN(counts_of(80, 70), sums(counts_of(80, 70)))
    assert default.scores.shape == (80, 50)


def test_nearest_members_exclude_the_cell_itself():
    counts = counts_of(50, 25)
    pool = BatchBalancedKNN(counts, sums(counts), components=6)
    apart = distances(pool.scores, pool.scores)
    own = np.where(np.arange(50) % 2 == 0, np.arange(50), -1)
    found = pool.query(pool.scores, 4, own)
    for cell in range(50):
        order = [c for c in np.argsort(apart[cell]) if c != own[cell]]
        assert found[cell].tolist() == order[:4]
    assert pool.query(pool.scores[:3], 4).tolist() == np.argsort(apart, axis=1)[:3, :4].tolist()
    assert pool.query(pool.scores, 400, np.arange(50)).shape == (50, 49)


def in_turn(scores, batches, member_of, k, own, batch) -> list[int]:
    """The rule of ``BatchBalancedKNN.nearest`` with batches, one cell at a time, over all members."""
    count = batches.max() + 1
    apart = distances(scores, scores)

    def among(cell_distance, members):
        return sorted(members, key=lambda m: (cell_distance[m], m))

    here = distances(member_of[None], scores)[0]
    home = [m for m in among(here, np.flatnonzero(batches == batch)) if m != own]
    turns: list[tuple[float, float, int]] = [
        (i + 1, here[m], m) for i, m in enumerate(home[: k + 1])
    ]
    near = set(home[:10])
    for b in range(count):
        if b == batch:
            continue
        rank = 0
        for m in among(here, np.flatnonzero(batches == b)):
            knows = among(apart[m], np.flatnonzero(batches == batch))[:10]
            if near & set(knows):
                rank += 1
                turns.append((rank, here[m], m))
    turns += [(1e9, here[m], m) for m in among(here, range(len(scores)))[: k + 1] if m != own]
    answer: list[int] = []
    for _, _, m in sorted(turns):
        if m not in answer:
            answer.append(m)
    return answer[:k]


def test_balanced_neighbors_follow_the_rule_cell_by_cell():
    rng = np.random.default_rng(6)
    batches = np.repeat(
        [0, 1, 2, 3, 4], [40, 30, 18, 6, 1]
    )  # two smaller than the number of neighbors
    kind = rng.integers(0, 3, 95)
    kind[(batches == 2) & (kind == 2)] = 0  # the third batch lacks a cell type
    rates = np.ones((3, 60))
    for j in range(3):
        rates[j, 20 * j : 20 * j + 20] = 5
    counts = sparse.csr_matrix(
        rng.poisson(rates[kind] * np.array([1.0, 1.3, 0.8, 1.1, 0.9])[batches][:, None]).astype(
            float
        )
    )
    pool = BatchBalancedKNN(counts, sums(counts), components=4, batch=batches)
    everyone = np.arange(95)
    # As many neighbors as the batch has: the rule over all members.
    found = pool.query(pool.scores, 12, everyone, batches)
    for cell in everyone:
        expected = in_turn(pool.scores, batches, pool.scores[cell], 12, cell, batches[cell])
        assert found[cell].tolist() == expected, cell
    assert len(set(batches[found[0]])) >= 3
    strangers = pool.query(pool.scores[:3], 5, everyone[:3], np.array([-1, 5, 9]))
    apart = distances(pool.scores, pool.scores)
    np.fill_diagonal(apart, np.inf)
    assert strangers.tolist() == np.argsort(apart, axis=1)[:3, :5].tolist()


def test_pooled_rates_are_shrunk_less_with_more_neighbors():
    counts = counts_of(30, 20)
    pool = BatchBalancedKNN(counts, sums(counts), components=4)
    nearest = pool.query(pool.scores, 6, np.arange(30))
    average = np.linspace(0.01, 0.09, 20)
    steps = [(2, 10.0), (2, 50.0), (5, 0.0), (99, 7.0)]
    dense = counts.toarray()
    for (k, shrink), rate in zip(steps, pool.rates(nearest, steps, average), strict=True):
        chosen = nearest[:, :k]
        total = dense.sum(axis=1)[chosen].sum(axis=1) + shrink
        expected = (dense[chosen].sum(axis=1) + shrink * average) / total[:, None]
        np.testing.assert_allclose(rate, expected, rtol=2e-6)
        assert rate.dtype == np.float32
