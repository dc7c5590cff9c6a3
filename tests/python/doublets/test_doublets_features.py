"""The features for doublet detection, each by brute force on a few dozen droplets."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import adjusted_rand_score, silhouette_score

from scmamba.doublets import features, mixture_likelihood
from scmamba.doublets.features import (
    Clusters,
    Coexpression,
    Evidence,
    Mixtures,
    _best_mixtures,
    _others,
    gather,
    kmeans,
    log_values,
    median_total,
    silhouette,
    silhouette_k,
    variable_genes,
    without_mixtures,
)
from scmamba.doublets.mixture_likelihood import mixture_ratios, ordered_pairs


def kinds(
    n: int, k: int = 3, genes: int = 60, seed: int = 0
) -> tuple[sparse.csr_matrix, np.ndarray]:
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.4, 3.0, (k, genes))
    code = np.arange(n) % k
    return sparse.csr_matrix(rng.poisson(rates[code]).astype(float)), code


def test_constants():
    assert (features.COMPONENTS, features.CURVED, features.REACHES, features.SHARES) == (
        30,
        15,
        (10, 25, 50, 100),
        (0.05, 0.2, 0.5),
    )
    assert features.DEPTH == ("counts", "genes", "counts_beside", "genes_beside")
    assert (features._GENES, features._PAIRED, features._SHRINK, features._FOLDS) == (
        2000,
        500,
        200.0,
        5,
    )
    assert (features._EXPLAINED, features._DEEPER, features._SMALL) == (0.55, 1.2, 0.1)


def test_values_and_genes_by_hand():
    counts = sparse.csr_matrix(np.array([[1.0, 3, 0], [0, 0, 0], [5, 5, 0]]))
    np.testing.assert_allclose(
        log_values(counts, 8.0).toarray(), np.log1p([[2, 6, 0], [0, 0, 0], [4, 4, 0]])
    )
    assert median_total(counts) == 4 and counts[0, 0] == 1
    x = (
        np.random.default_rng(0).normal(size=(30, 9))
        * np.arange(1, 10)[[3, 1, 7, 0, 8, 2, 5, 4, 6]]
        + 50
    )
    np.testing.assert_array_equal(
        variable_genes(sparse.csr_matrix(x), 4), np.sort(np.argsort(-x.var(axis=0))[:4])
    )


def test_separated_clusters_are_recovered():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2, 3], [40, 30, 20, 10])
    points = 9 * np.eye(5)[truth] + rng.normal(size=(100, 5))
    for seed in range(5):
        code = kmeans(points, 4, seed=seed)
        assert adjusted_rand_score(truth, code) == 1
    # k-means has converged if every point is with its nearest mean
    code = kmeans(rng.normal(size=(80, 3)), 5, seed=1)
    assert set(code) == set(range(5))
    points3 = np.random.default_rng(2).normal(size=(80, 3))
    code = kmeans(points3, 6, seed=1)
    centre = np.stack([points3[code == c].mean(axis=0) for c in np.unique(code)])
    np.testing.assert_array_equal(((points3[:, None] - centre) ** 2).sum(-1).argmin(axis=1), code)

    assert kmeans(points[:3], 8).tolist() in (
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    )
    assert kmeans(np.zeros((9, 2)), 3).tolist() == [0] * 9
    assert adjusted_rand_score(silhouette_k(points, range(2, 8), seed=0), truth) == 1
    assert (silhouette_k(points[:2], range(3, 5)) == 0).all()


def test_silhouettes_are_scikit_learns():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(50, 3))
    for code in (
        rng.integers(0, 4, 50),
        rng.integers(0, 2, 50),
        np.r_[[7], rng.integers(0, 2, 49)],
    ):  # one cluster has a single cell
        distance = np.linalg.norm(x[:, None] - x[None], axis=2)
        assert silhouette(distance, code) == pytest.approx(silhouette_score(x, code))
    assert silhouette(distance, np.zeros(50, int)) == -1


def test_the_best_mixtures_by_search():
    rng = np.random.default_rng(2)
    profile = rng.dirichlet(np.ones(20), 5)
    pooled = rng.poisson(200 * profile).astype(float)
    best, pair = _best_mixtures(pooled, profile)
    for c in range(5):
        found = {
            (a, b, s): pooled[c] @ np.log(s * profile[a] + (1 - s) * profile[b])
            for a, b in combinations(range(5), 2)
            if c not in (a, b)
            for s in (0.2, 0.35, 0.5, 0.65, 0.8)
        }
        top = max(found, key=lambda key: found[key])
        assert best[c] == pytest.approx(found[top]) and tuple(pair[c]) == top[:2]


def mixed_clusters(share: float, deeper: float, small: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Three types of a hundred cells, and ``small`` doublets of two types each, ``deeper`` times as deep."""
    rng = np.random.default_rng(3)
    rates = rng.gamma(0.4, 4.0, (3, 80))
    own = rng.poisson(rates[np.repeat([0, 1, 2], 100)])
    both = rng.poisson(deeper * (share * rates[0] + (1 - share) * rates[1]) * np.ones((small, 1)))
    return sparse.csr_matrix(np.vstack([own, both]).astype(float)), np.r_[
        np.repeat([0, 1, 2], 100), np.full(small, 3)
    ]


def test_clusters_of_doublets_are_excluded():
    counts, code = mixed_clusters(0.5, 2.0, 25)
    found = without_mixtures(counts, code)
    assert (
        set(found) == {0, 1, 2} and (found[:300] == code[:300]).all() and set(found[300:]) <= {0, 1}
    )
    many, codes = mixed_clusters(0.5, 2.0, 40)
    np.testing.assert_array_equal(
        without_mixtures(many, codes), codes
    )  # 40 of 340 are too many to be excluded
    shallow, code = mixed_clusters(0.5, 1.0, 25)
    np.testing.assert_array_equal(
        without_mixtures(shallow, code), code
    )  # not deeper than its parents
    three = code < 3
    np.testing.assert_array_equal(without_mixtures(shallow[three], code[three]), code[three])


def test_two_representations_of_the_cells():
    counts, code = kinds(240, 4)
    found = Clusters.find(counts, seed=0)
    assert adjusted_rand_score(found.coarse, code) > 0.9
    assert (
        3 <= len(set(found.coarse)) <= 12 and len(set(found.fine)) <= 4
    )  # a hundredth of the cells, at least four
    again = Clusters.find(counts, seed=0)
    np.testing.assert_array_equal(again.fine, found.fine)
    big, _ = kinds(900, 4)
    assert 5 <= len(set(Clusters.find(big, seed=0).fine)) <= 9


def test_ratios_by_search():
    rng = np.random.default_rng(4)
    profiles = rng.dirichlet(np.full(25, 0.5), 4) + 1e-4
    counts = sparse.csr_matrix(rng.poisson(1.0, (12, 25)).astype(float))
    ratio, pair, best = mixture_ratios(counts, profiles, (0.05, 0.2, 0.5))
    for i, row in enumerate(counts.toarray()):
        single = row @ np.log(profiles).T
        assert best[i] == single.argmax()
        top = {}
        for j, share in enumerate((0.05, 0.2, 0.5)):
            values = {
                (a, b): row @ np.log(share * profiles[a] + (1 - share) * profiles[b]) - single.max()
                for a in range(4)
                for b in range(4)
                if a != b
            }
            assert ratio[i, j] == pytest.approx(max(values.values()))
            top |= {(v, b, a): 0 for (a, b), v in values.items()}
        value, greater, lesser = max(top)
        assert sorted(pair[i]) == sorted((greater, lesser)) and value == pytest.approx(
            ratio[i].max()
        )
    alone = mixture_ratios(counts, profiles[:1], (0.05, 0.2))
    assert not alone[0].any() and not alone[2].any()
    assert list(ordered_pairs(3, 0.5)) == [(0, 1), (0, 2), (1, 2)]
    assert list(ordered_pairs(3, 0.2)) == [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]


@pytest.mark.parametrize("threads", [1, 2])
def test_ratios_in_blocks_are_those_of_float64_column_by_column(threads, monkeypatch):
    """Deep cells: the rounding error of float32 sums alone would exceed the differences between mixtures."""
    rng = np.random.default_rng(7)
    base = rng.dirichlet(np.full(900, 0.3))
    profiles = np.stack([0.9 * base + 0.1 * rng.dirichlet(np.full(900, 0.3)) for _ in range(11)])
    profiles = (profiles + 1e-6) / (profiles + 1e-6).sum(axis=1, keepdims=True)
    mixed = (profiles[rng.integers(0, 11, 300)] + profiles[rng.integers(0, 11, 300)]) / 2
    counts = sparse.csr_matrix(rng.poisson(20000 * mixed).astype(float))
    shares = (0.05, 0.2, 0.5)
    monkeypatch.setattr(mixture_likelihood, "threads_for", lambda steps: threads)
    ratio, pair, single = mixture_ratios(counts, profiles, shares)
    alone = counts @ np.log(profiles).T
    np.testing.assert_array_equal(single, alone.argmax(axis=1))
    by_pair = {
        (j, a, b): counts @ np.log(share * profiles[a] + (1 - share) * profiles[b])
        for j, share in enumerate(shares)
        for a, b in ordered_pairs(11, share)
    }
    keys, values = list(by_pair), np.stack(list(by_pair.values()))
    for j in range(3):
        plain = values[[k[0] == j for k in keys]].max(axis=0) - alone.max(axis=1)
        np.testing.assert_allclose(ratio[:, j], plain, atol=5e-5, rtol=1e-6)
    # The pair is the best one, or an equally good one.
    reported = [by_pair[(ratio[i].argmax(), *pair[i, ::-1])][i] for i in range(300)]
    np.testing.assert_allclose(reported, values.max(axis=0), rtol=0, atol=1e-4)


def test_profiles_exclude_the_fold_and_suspected_doublets():
    counts, code = kinds(100)
    found = Mixtures(counts, code, suspected=0.1, rounds=2, seed=5)
    average = np.asarray(counts.sum(axis=0)).ravel() + 0.5
    average /= average.sum()
    fold = np.random.default_rng(5).integers(0, 5, 100)

    def profiles(cluster: np.ndarray, use: np.ndarray) -> np.ndarray:
        sums = np.stack(
            [np.asarray(counts[use & (cluster == c)].sum(axis=0)).ravel() for c in range(3)]
        )
        return (sums + 200 * average) / (sums.sum(axis=1, keepdims=True) + 200)

    keep, cluster = np.ones(100, bool), code
    for shares in ((0.1,), (0.05, 0.2, 0.5)):
        ratio, moved, pair = np.zeros((100, len(shares))), cluster.copy(), np.zeros((100, 2), int)
        for k in range(5):
            here = fold == k
            ratio[here], pair[here], moved[here] = mixture_ratios(
                counts[here], profiles(cluster, keep & ~here), shares
            )
        cluster = moved
        keep = ratio[:, 0] <= np.quantile(ratio[:, 0], 0.9)
    np.testing.assert_allclose(found.ratio, ratio)
    np.testing.assert_array_equal(found.pair, pair)
    np.testing.assert_array_equal(found.cluster, cluster)
    assert (~found.keep).sum() == 10
    other, _ = kinds(9, seed=8)
    np.testing.assert_allclose(
        found.of(other), mixture_ratios(other, profiles(cluster, keep), (0.05, 0.2, 0.5))[0]
    )
    assert Mixtures(counts, code, suspected=0.1, seed=5).ratio.shape == (100, 3)


def test_coexpression_is_the_score_of_cxds():
    """Bais and Kostka: minus the log probability of that many cells with exactly one of two genes, summed over the pairs in a cell."""
    rng = np.random.default_rng(6)
    counts = rng.poisson(rng.uniform(0.05, 2, 14), (80, 14)).astype(float)
    counts[:40, 0], counts[40:, 0], counts[:40, 1], counts[40:, 1] = 2, 0, 0, 3
    counts[5, 1] = 1
    found = Coexpression(sparse.csr_matrix(counts), genes=10)
    p = (counts > 0).mean(axis=0)
    chosen = np.sort(np.argsort(-p * (1 - p), kind="stable")[:10])
    np.testing.assert_array_equal(found.columns, chosen)
    seen = counts[:, chosen] > 0
    p = seen.mean(axis=0)
    score = np.zeros(80)
    for a, b in combinations(range(10), 2):
        chance = p[a] * (1 - p[b]) + p[b] * (1 - p[a])
        z = ((seen[:, a] != seen[:, b]).sum() - 80 * chance) / np.sqrt(80 * chance * (1 - chance))
        score += np.where(seen[:, a] & seen[:, b], -stats.norm.logsf(z) if z > 0 else 0, 0)
    np.testing.assert_allclose(found.score(sparse.csr_matrix(counts)), score, rtol=1e-4)
    assert found.score(sparse.csr_matrix(counts)).argmax() == 5


def test_neighbors_exclude_the_cell_itself():
    points = np.random.default_rng(7).normal(size=(25, 3))
    distance = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(_others(points, 6), np.argsort(distance, axis=1)[:, :6])
    same = _others(np.zeros((9, 2)), 4)
    assert same.shape == (9, 4)


def test_all_features_by_brute_force(monkeypatch):
    monkeypatch.setattr(features, "REACHES", (3, 6))
    counts, code = kinds(60)
    made = sparse.csr_matrix(counts[:20] + counts[20:40])
    mixtures = {"fine": Mixtures(counts, code, suspected=0.1)}
    together = Coexpression(counts)
    found = gather(counts, made, mixtures, together, seed=1)
    table, both = found.table, np.vstack([counts.toarray(), made.toarray()])
    assert found.simulated.tolist() == [False] * 60 + [True] * 20
    np.testing.assert_allclose(table["counts"], np.log1p(both.sum(axis=1)))
    np.testing.assert_allclose(table["genes"], np.log1p((both > 0).sum(axis=1)))
    np.testing.assert_allclose(table["together"], np.log1p(together.score(sparse.csr_matrix(both))))
    scores = found.scores
    values = log_values(
        sparse.csr_matrix(both), np.median(np.asarray(counts.sum(axis=1)))
    ).toarray()
    assert scores.shape == (80, 30)
    exact = np.linalg.svd(values, compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0)[:3], exact[:3], rtol=0.02)
    distance = ((scores[:, None] - scores[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :6]
    for k in (3, 6):
        share = found.simulated[near[:, :k]].mean(axis=1)
        np.testing.assert_allclose(table[f"neighbours{k}"], np.log((share + 0.02) / (1.02 - share)))
    for name in ("counts", "genes"):
        np.testing.assert_allclose(
            table[f"{name}_beside"], table[name] - table[name].to_numpy()[near].mean(axis=1)
        )
    ratio = np.vstack([mixtures["fine"].ratio, mixtures["fine"].of(made)])
    for j, share in enumerate((5, 20, 50)):
        np.testing.assert_allclose(table[f"fine{share}"], np.arcsinh(ratio[:, j]))
    np.testing.assert_array_equal(
        table[[f"component{j + 1}" for j in range(10)]].to_numpy(), scores[:, :10]
    )
    assert len(table.columns) == 2 + 2 + 2 + 1 + 3 + 10


def test_the_quadratic_features_are_squares_and_products():
    scores = np.random.default_rng(0).normal(size=(40, 20)) * 3 + 1
    found = Evidence(None, np.zeros(40, bool), scores).curved()
    z = (scores[:, :15] - scores[:, :15].mean(axis=0)) / scores[:, :15].std(axis=0)
    expected = [z[:, a] * z[:, b] for a in range(15) for b in range(a, 15)]
    np.testing.assert_allclose(found, np.column_stack([z, *expected]))


@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.65, 0.8])
def test_a_mixture_is_fitted_with_its_own_share(share):
    profile = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]])
    mixed = share * profile[0] + (1 - share) * profile[1]
    best, pair = _best_mixtures(np.vstack([profile[:2], 1000 * mixed]), np.vstack([profile]))
    assert best[2] == pytest.approx(1000 * mixed @ np.log(mixed), rel=1e-12)
    assert pair[2].tolist() == [0, 1]
