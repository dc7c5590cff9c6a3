"""Hierarchical gamma-Poisson rates against closed forms, quadrature and the same sums written out cell by cell."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, sparse, stats

from scmamba.neighbors import hierarchical
from scmamba.neighbors.batch_balanced import BatchBalancedKNN
from scmamba.neighbors.hierarchical import HierarchicalRates, RatePosterior, gene_dispersion
from scmamba.utils.errors import DataError


def sums(x: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(x.sum(axis=1)).ravel()


def types(sizes: tuple[int, ...], seed: int = 0, genes: int = 200) -> tuple:
    """Counts of cell types with thirty markers each, and the types."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(sizes)), sizes)
    rate = np.tile(rng.gamma(2.0, 1.0, genes), (len(sizes), 1))
    for t in range(len(sizes)):
        rate[t, 30 * t : 30 * t + 30] *= 12
    depth = rng.uniform(0.6, 1.6, (len(label), 1))
    return sparse.csr_matrix(rng.poisson(rate[label] * depth).astype(float)), label


def test_constants():
    assert hierarchical.LEVELS == (30, 100, 300) and hierarchical.MUTUAL_SHARE == 0.35


def test_the_dispersion_is_estimated_by_moments_and_shrunk_if_counts_are_few():
    rng = np.random.default_rng(0)
    size = np.array([0.5, 2.0, 10.0])
    mean = np.array([4.0, 4.0, 4.0])
    counts = stats.nbinom.rvs(size, size / (size + mean), size=(30_000, 3), random_state=1)
    found = gene_dispersion(counts, np.broadcast_to(mean, counts.shape))
    np.testing.assert_allclose(found, 1 / size, rtol=0.1)
    few = rng.poisson(3.0, (2, 4)).astype(float)
    expected = np.full((2, 4), 3.0)
    pairs, square = (few * (few - 1)).sum(axis=0), np.full(4, 18.0)
    average = 1 + max(pairs.sum() / square.sum() - 1, 0.01)
    shrunk = np.clip((pairs + 5 * average) / (square + 5) - 1, 0.01, 30)
    np.testing.assert_allclose(gene_dispersion(few, expected), shrunk, rtol=1e-6)


def test_the_posterior_is_bayes_rule():
    """Mean and standard deviation of the rate by quadrature: gamma prior, Poisson count."""
    dispersion, rate, depth, count = 0.6, 0.01, 300.0, 5
    alpha = 1 / dispersion
    found = RatePosterior(np.array([[count + alpha]]), np.array([[depth + alpha / rate]]))
    prior = stats.gamma(alpha, scale=rate / alpha)

    def moment(k: int) -> float:
        return integrate.quad(
            lambda r: r**k * prior.pdf(r) * stats.poisson.pmf(count, depth * r),
            0,
            0.3,
            points=[0.02],
        )[0]

    weight = [moment(k) for k in range(3)]
    mean = weight[1] / weight[0]
    assert found.mean[0, 0] == pytest.approx(mean, rel=1e-6)
    assert found.sd[0, 0] == pytest.approx(np.sqrt(weight[2] / weight[0] - mean**2), rel=1e-5)


def test_square_root_distances_are_hellinger_distances():
    counts, _ = types((20, 20))
    pool = BatchBalancedKNN(counts, sums(counts), components=39, space="sqrt")
    shares = np.sqrt(counts.toarray() / sums(counts)[:, None])
    np.testing.assert_allclose(
        ((pool.scores[:5, None] - pool.scores[None]) ** 2).sum(axis=2),
        ((shares[:5, None] - shares[None]) ** 2).sum(axis=2),
        atol=0.02,
    )
    np.testing.assert_allclose(
        pool.project(counts[:3], sums(counts)[:3]), pool.scores[:3], atol=1e-8
    )


def test_mutual_neighbors_by_brute_force():
    counts, _ = types((40, 12))
    pool = BatchBalancedKNN(counts, sums(counts), components=5, space="sqrt")
    everyone = np.arange(52)
    near, masks = pool.query_mutual(pool.scores, (4, 10), everyone)
    assert near.shape == (52, 10)
    apart = ((pool.scores[:, None] - pool.scores[None]) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    rank = apart.argsort(axis=1).argsort(axis=1)
    for level, mask in zip((4, 10), masks):
        for cell in everyone:
            assert near[cell].tolist() == np.argsort(apart[cell])[:10].tolist()
            assert mask[cell].tolist() == [rank[m, cell] < level for m in near[cell]]


def excess_by_likelihood(counts: np.ndarray, expected: np.ndarray, usual: np.ndarray) -> np.ndarray:
    likelihood = [
        stats.nbinom.logpmf(counts, 1 / (usual + e), 1 / (1 + (usual + e) * expected)).sum(axis=1)
        for e in hierarchical.EXCESS
    ]
    return np.array(hierarchical.EXCESS)[np.argmax(likelihood, axis=0)]


def mixture_by_hand(
    counts: np.ndarray, depth: np.ndarray, rate: np.ndarray, usual: np.ndarray
) -> np.ndarray:
    """Five steps of EM for the weights of the dispersions, then the mean of the gamma posteriors, cell by cell."""
    out = np.empty(counts.shape)
    sizes = [1 / (usual + e) for e in hierarchical.COMPONENTS_EXCESS]
    for cell, x in enumerate(counts):
        mean = rate[cell] * depth[cell]
        density = np.array([stats.nbinom.pmf(x, s, s / (s + mean)) for s in sizes])
        weight = np.full(len(sizes), 1 / len(sizes))
        for _ in range(5):
            joint = weight[:, None] * density
            weight = np.maximum((joint / joint.sum(axis=0)).mean(axis=1), 1e-3)
        joint = weight[:, None] * density
        posterior = [(x + s) / (depth[cell] + s / rate[cell]) for s in sizes]
        out[cell] = (joint * posterior).sum(axis=0) / joint.sum(axis=0)
    return out


def test_the_excess_dispersion_is_that_of_the_highest_likelihood():
    rng = np.random.default_rng(0)
    usual, expected = rng.uniform(0.1, 0.5, 3000), rng.uniform(0, 30, (5, 3000))
    true = np.array([0.0, 0.0, 0.4, 1.5, 6.0])
    size = 1 / (usual + true[:, None])
    counts = rng.poisson(rng.gamma(size, expected / size))
    found = hierarchical.excess_dispersion(counts, expected, usual)
    assert found.tolist() == true.tolist()
    assert found.tolist() == excess_by_likelihood(counts, expected, usual).tolist()
    empty = np.zeros((1, 3000))
    assert hierarchical.excess_dispersion(empty, empty, usual).tolist() == [0.0]


def test_a_rare_type_is_not_shrunk_to_the_genes_of_all_others(monkeypatch):
    """Seven cells without a third of the genes that all other cells express evenly."""
    rng = np.random.default_rng(2)
    label = np.repeat([0, 1], [300, 7])
    rate = np.tile(rng.gamma(2.0, 1.0, 300), (2, 1))
    rate[1, :100], rate[1, 200:] = 0, 3 * rate[1, 200:]
    counts = sparse.csr_matrix(rng.poisson(rate[label]).astype(float))
    rare = np.flatnonzero(label)

    def absent() -> float:
        fitted = HierarchicalRates.fit(counts, sums(counts))
        found = fitted.posterior(counts[rare], sums(counts)[rare], rare).mean
        return float(found[:, :100].sum() / found.sum())

    with_mixture = absent()
    monkeypatch.setattr(hierarchical, "COMPONENTS_EXCESS", (0.0,))
    assert with_mixture < 0.5 * absent()


def test_rates_are_shrunk_level_by_level(monkeypatch):
    monkeypatch.setattr(hierarchical, "LEVELS", (4, 10, 25))
    counts, _ = types((40, 12))
    totals = sums(counts)
    fitted = HierarchicalRates.fit(counts, totals, seed=2)
    dense, everyone = counts.toarray(), np.arange(52)
    near, mutual = fitted.pool.query_mutual(fitted.pool.scores, (4, 10, 25), everyone)
    average = (dense.sum(axis=0) + 0.5) / (dense.sum(axis=0) + 0.5).sum()
    np.testing.assert_allclose(fitted.average, average, rtol=1e-6)
    members: list[list[set[int]]] = []
    for cell in everyone:
        own, widen = [], True
        for level, k in enumerate((4, 10, 25)):
            new = {m for m, yes in zip(near[cell, :k], mutual[level][cell, :k]) if yes}
            own.append((new | own[-1] if widen else own[-1]) if own else new)
            widen = widen and len(own[-1]) >= 0.35 * k
        members.append(own)
    rate = np.tile(average, (52, 1))
    for level in (2, 1, 0):
        pooled = np.array([dense[sorted(own[level])].sum(axis=0) for own in members])
        depth = np.array([totals[sorted(own[level])].sum() for own in members])[:, None]
        usual = gene_dispersion(pooled, rate * depth)
        np.testing.assert_allclose(fitted.dispersions[level], usual, rtol=1e-3)
        rate = mixture_by_hand(pooled, depth, rate, usual)
    usual = gene_dispersion(dense, rate * totals[:, None])
    posterior = fitted.posterior(counts[5:9], totals[5:9], everyone[5:9])
    excess = excess_by_likelihood(dense[5:9], rate[5:9] * totals[5:9, None], usual)
    np.testing.assert_array_equal(posterior.excess, excess)
    alpha = 1 / (usual + excess[:, None])
    expected = (dense[5:9] + alpha) / (totals[5:9, None] + alpha / rate[5:9])
    np.testing.assert_allclose(posterior.mean, expected, rtol=2e-3)
    np.testing.assert_allclose(
        fitted.neighborhood_rate(counts[5:9], totals[5:9], everyone[5:9]), rate[5:9], rtol=2e-3
    )


def test_a_prior_replaces_the_average(monkeypatch):
    monkeypatch.setattr(hierarchical, "EXCESS", (0.0,))  # of a cell, by all of its genes
    monkeypatch.setattr(hierarchical, "COMPONENTS_EXCESS", (0.0,))  # their weights as well
    counts, _ = types((60, 60))
    totals = sums(counts)
    fitted = HierarchicalRates.fit(counts, totals)
    rows = np.arange(20)
    prior = np.tile(fitted.average, (20, 1))
    same = fitted.posterior(counts[:20], totals[:20], rows, prior=prior)
    np.testing.assert_array_equal(same.mean, fitted.posterior(counts[:20], totals[:20], rows).mean)
    prior[:, 0] *= 50
    raised = fitted.posterior(counts[:20], totals[:20], rows, prior=prior).mean
    assert (raised[:, 0] > same.mean[:, 0]).all()
    np.testing.assert_array_equal(raised[:, 1:], same.mean[:, 1:])
    assert (fitted.refit(rows, prior=prior).dispersions != fitted.dispersions).any()


def test_neighbors_of_a_rare_type_are_of_that_type():
    """Seven cells among four hundred: even the widest neighborhood does not reach the other types."""
    counts, label = types((200, 200, 7), seed=3)
    fitted = HierarchicalRates.fit(counts, sums(counts))
    rare = np.flatnonzero(label == 2)
    near, mutual = fitted.pool.query_mutual(fitted.pool.scores[rare], hierarchical.LEVELS, rare)
    assert (label[near[mutual[0]]] == 2).mean() > 0.9 and mutual[0].sum(axis=1).min() >= 5
    rate = fitted.posterior(counts[rare], sums(counts)[rare], rare).mean
    dense = counts.toarray()
    truth = dense[rare].sum(axis=0) / dense[rare].sum()
    others = dense[label < 2].sum(axis=0) / dense[label < 2].sum()
    foreign, own = slice(0, 60), slice(60, 90)
    assert rate[:, foreign].mean() < truth[foreign].mean() + 0.1 * others[foreign].mean()
    assert rate[:, own].mean() > 0.9 * truth[own].mean()


def test_neighborhoods_include_all_batches_with_the_type():
    counts, label = types((80, 80, 30), seed=4)
    rng = np.random.default_rng(0)
    batch = np.where(label == 2, 0, rng.integers(0, 2, len(label)))
    shifted = counts.toarray()
    shifted[batch == 1, 90:] = rng.poisson(1.6 * shifted[batch == 1, 90:])
    data = sparse.csr_matrix(shifted)
    everyone = np.arange(len(label))
    pool = BatchBalancedKNN(data, sums(data), components=5, batch=batch, space="sqrt")
    near, mutual = pool.query_mutual(pool.scores, (20,), everyone, batch)
    shared, chosen = label < 2, mutual[0]
    other = batch[near] != batch[:, None]
    assert 0.2 < other[shared][chosen[shared]].mean() < 0.8
    assert other[~shared][chosen[~shared]].mean() < 0.1
    fitted = HierarchicalRates.fit(data, sums(data), batch=batch)
    found = fitted.posterior(data[:5], sums(data)[:5], everyone[:5], batch[:5]).mean
    assert np.isfinite(found).all() and (found > 0).all()


def test_cells_without_neighbors_are_refused():
    counts, _ = types((10,))
    with pytest.raises(DataError, match="1 cells"):
        HierarchicalRates.fit(counts[:1], sums(counts)[:1])
    with pytest.raises(DataError, match="2 of them without counts"):
        HierarchicalRates.fit(counts, np.r_[0.0, 0.0, sums(counts)[2:]])
