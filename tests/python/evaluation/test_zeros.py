"""Scores of imputed zeros, against the same numbers written out."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import mean_poisson_deviance

from scmamba.evaluation import (
    RATE_METHODS,
    count_splitting,
    depth_scores,
    foreign_gene_scores,
    foreign_genes,
    split_counts,
)
from scmamba.evaluation.imputation.peers import (
    average_rates,
    diffused_values,
    low_rank_values,
    neighbor_rates,
    raw_rates,
    regression_rates,
)
from scmamba.neighbors.svd import principal_components
from scmamba.utils.errors import DataError


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Two types of 80 and 12 cells; genes 0-9 belong to the first, 10-19 to the second."""
    rng = np.random.default_rng(0)
    label = np.repeat(["big", "small"], [80, 12])
    rate = np.full((2, 60), 2.0)
    rate[0, 10:20], rate[1, :10] = 0.1, 0.1
    rate[0, :10], rate[1, 10:20] = 8, 8
    counts = rng.poisson(rate[(label == "small").astype(int)] * rng.uniform(0.5, 2, (92, 1)))
    obs = pd.DataFrame({"type": label}, index=[f"c{i}" for i in range(92)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(float)), obs=obs)


def test_gains_are_those_of_the_deviance(cells):
    seen = []

    def own(part: ad.AnnData) -> np.ndarray:
        seen.append(part)
        counts = part.X.toarray()
        return (counts + 1) / (counts + 1).sum(axis=1, keepdims=True)

    table = count_splitting(
        cells, {"own": own}, label_key="type", min_cells=1, share=0.75, seed=2, verbose=False
    )
    train, test = (part.toarray() for part in split_counts(cells.X, 0.75, seed=2))
    np.testing.assert_array_equal(seen[0].X.toarray(), train)
    depth = train.sum(axis=1, keepdims=True) / 3
    average = (train.sum(axis=0) + 0.5) / (train.sum(axis=0) + 0.5).sum()

    def deviance(rate: np.ndarray) -> np.ndarray:
        return np.array([60 * mean_poisson_deviance(y, mu) for y, mu in zip(test, rate * depth)])

    found, null = deviance(own(seen[0])), deviance(np.tile(average, (92, 1)))
    row = table.loc["own"]
    assert row["deviance"] == pytest.approx(found.mean())
    assert row["gain"] == pytest.approx(1 - found.sum() / null.sum())
    small = cells.obs["type"] == "small"
    assert row["gain: small"] == pytest.approx(1 - found[small].sum() / null[small].sum())


def test_sets_of_genes_are_scored_apart_and_chosen_by_the_first_part(cells):
    chosen = {"some": ["3", "40", "nothing"]}
    options = dict(label_key="type", gene_sets=chosen, min_cells=1, seed=2, verbose=False)
    table = count_splitting(cells, {"raw": raw_rates}, **options)
    train, test = split_counts(cells.X, 0.8, seed=2)
    part = ad.AnnData(train, obs=cells.obs)
    depth = train.sum(axis=1).A1[:, None] / 4
    label = cells.obs["type"].to_numpy()
    of_types = foreign_genes(train, label)
    some = np.isin(np.arange(60), [3, 40])
    masks = {
        "foreign": np.stack([of_types[t][0] for t in label]),
        "own markers": np.stack([of_types[t][1] for t in label]),
        "some": np.tile(some, (92, 1)),
    }
    for name, mask in masks.items():
        each = [
            mask.sum() * mean_poisson_deviance(test.toarray()[mask], (rate(part) * depth)[mask])
            for rate in (raw_rates, average_rates)
        ]
        assert mask.any() and not mask.all()
        assert table.loc["raw", f"genes: {name}"] == pytest.approx(1 - each[0] / each[1])
    assert table.loc["raw", "genes: foreign"] > 0.05 > table.loc["raw", "genes: some"]


def test_the_truth_has_the_largest_gain_and_the_average_none(cells):
    def truth(part: ad.AnnData) -> np.ndarray:
        rate = np.full((2, 60), 2.0)
        rate[0, 10:20], rate[1, :10], rate[0, :10], rate[1, 10:20] = 0.1, 0.1, 8, 8
        rate /= rate.sum(axis=1, keepdims=True)
        return rate[(part.obs["type"] == "small").astype(int)]

    table = count_splitting(cells, {"truth": truth, **RATE_METHODS}, verbose=False)
    assert table["gain"].idxmax() == "truth" and abs(table.loc["gene rate", "gain"]) < 1e-9
    assert 0.05 < table.loc["30 neighbors", "gain"] < table.loc["truth", "gain"]


def test_foreign_genes_and_markers_by_hand(cells):
    found = foreign_genes(cells.X, cells.obs["type"].to_numpy())
    foreign, markers = found["small"]
    assert np.flatnonzero(foreign).tolist() == list(range(10))
    assert np.flatnonzero(markers).tolist() == list(range(10, 20))
    foreign, markers = found["big"]
    assert np.flatnonzero(foreign).tolist() == list(range(10, 20))
    # In a type with few counts an unobserved gene is foreign only if it is frequent in the other types.
    few = sparse.csr_matrix(np.r_[np.full((50, 2), [1000, 5]), [[60, 0]]])
    assert not foreign_genes(few, np.r_[["a"] * 50, ["b"]])["b"][0].any()
    assert foreign_genes(few * 40, np.r_[["a"] * 50, ["b"]])["b"][0].tolist() == [False, True]


def test_scores_of_a_type_by_hand(cells):
    rng = np.random.default_rng(1)
    values = rng.gamma(0.3, 1.0, cells.shape)
    table = foreign_gene_scores(cells, {"mine": sparse.csr_matrix(values)}, "type")
    assert table["type"].tolist() == ["small", "small"], "types of at most 60 cells"
    row = table.set_index("values").loc["mine"]
    own = values[80:]
    linear = np.expm1(own)
    assert row["foreign_share"] == pytest.approx(linear[:, :10].sum() / linear.sum())
    assert row["marker_share"] == pytest.approx(linear[:, 10:20].sum() / linear.sum())
    assert row["foreign_value"] == pytest.approx(own[:, :10].mean())
    assert row["false_positives"] == pytest.approx((own[:, :10] > 0.2).sum(axis=1).mean())
    raw = table.set_index("values").loc["raw"]
    counts = cells.X.toarray()[80:]
    share = (counts / counts.sum(axis=1, keepdims=True))[:, :10].sum() / 12
    assert raw["foreign_share"] == pytest.approx(share) and raw["cells"] == 12
    every = foreign_gene_scores(cells, {}, "type", max_cells=None)
    assert every["type"].tolist() == ["big", "small"]


def test_depth_by_scipy():
    rng = np.random.default_rng(0)
    totals = rng.uniform(500, 5000, 50)
    values = np.log1p(rng.gamma(0.5, 20.0, (50, 100)) * (totals / 1000)[:, None])
    found = depth_scores(values, totals)
    sums = np.expm1(values).sum(axis=1)
    assert found["sum_50"] == pytest.approx(np.median(sums))
    assert found["sum_depth"] == pytest.approx(stats.spearmanr(sums, totals).statistic)
    number = (values > 0.2).sum(axis=1)
    assert found["number_depth"] == pytest.approx(stats.spearmanr(number, totals).statistic)
    left, _, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    most = max(abs(stats.spearmanr(left[:, i], totals).statistic) for i in range(3))
    assert found["component_depth"] == pytest.approx(most, abs=0.02)
    level = np.log1p(np.tile(rng.gamma(1.0, 50.0, 100), (50, 1)))
    assert depth_scores(level, totals)["sum_depth"] == 0


def test_diffusion_is_the_power_of_a_markov_matrix(cells):
    total = cells.X.sum(axis=1).A1[:, None]
    logs = np.log1p(1e4 * cells.X.toarray() / total)
    scores, _ = principal_components(sparse.csr_matrix(logs), 10)
    kernel = np.zeros((92, 92))
    for cell in range(92):
        apart = np.linalg.norm(scores - scores[cell], axis=1)
        near = np.argsort(apart)[:13]  # the cell itself, and three times four neighbors
        kernel[cell, near] = np.exp(-apart[near] / apart[near][4])
    kernel = (kernel + kernel.T) / 2
    markov = kernel / kernel.sum(axis=1, keepdims=True)
    smooth = diffused_values(cells, k=4, steps=2, components=10)
    np.testing.assert_allclose(smooth, markov @ markov @ logs, rtol=1e-6)


def test_regression_is_that_of_scikit_learn(cells):
    """The prior of every gene: Poisson regression on components; then the update by the cell's own count."""
    total = cells.X.sum(axis=1).A1
    logs = cells.X.copy()
    logs.data = np.log1p(1e4 * logs.data / np.repeat(total, np.diff(logs.indptr)))
    scores, _ = principal_components(logs, 3)
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    found = regression_rates(cells, components=3, steps=30)
    counts = cells.X.toarray()
    for gene in (0, 15, 40):
        y = counts[:, gene]
        # Its penalty is of the mean loss per weight, and its offset is a weight of the rates.
        model = PoissonRegressor(alpha=1 / total.sum(), tol=1e-9, max_iter=2000)
        prior = model.fit(scores, y / total, sample_weight=total).predict(scores)
        shape = np.median((found[:, gene] * total - y) / (1 - found[:, gene] / prior))
        expected = (y + shape) / (total + shape / prior)
        np.testing.assert_allclose(found[:, gene], expected, rtol=2e-3)
        assert 0.03 < shape < 110


def test_a_low_rank_keeps_counts_and_zeros(cells):
    """Gene by gene: zero below the magnitude of the most negative reconstructed value, the others scaled to the counts."""
    total = cells.X.sum(axis=1).A1[:, None]
    logs = np.log1p(1e4 * cells.X.toarray() / total)
    left, size, right = np.linalg.svd(logs, full_matrices=False)
    rebuilt = (left[:, :3] * size[:3]) @ right[:3]
    expected = logs.copy()
    for gene in range(60):
        column = np.where(rebuilt[:, gene] > max(-rebuilt[:, gene].min(), 0), rebuilt[:, gene], 0)
        on, seen = column > 0, logs[:, gene] > 0
        if on.any():
            scale = logs[seen, gene].std() / column[on].std()
            scaled = (column[on] - column[on].mean()) * scale + logs[seen, gene].mean()
            column[on] = np.maximum(scaled, 0)
        expected[~seen, gene] = column[~seen]
    found = low_rank_values(cells, rank=3)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert ((found == 0) & (logs == 0)).any() and ((found > 0) & (logs == 0)).any()


def test_invalid_data_are_refused(cells):
    with pytest.raises(DataError, match="no column 'nothing'"):
        count_splitting(cells, {}, label_key="nothing", verbose=False)
    with pytest.raises(DataError, match="shape"):
        count_splitting(cells, {"bad": lambda part: np.ones((2, 2))}, verbose=False)
    with pytest.raises(DataError, match="shape"):
        foreign_gene_scores(cells, {"bad": np.ones((2, 2))}, "type")
    logs = cells.copy()
    total = logs.X.sum(axis=1).A1
    logs.X.data = np.log1p(1e4 * logs.X.data / np.repeat(total, np.diff(logs.X.indptr)))
    with pytest.raises(DataError, match="Raw counts"):
        foreign_gene_scores(logs, {}, "type")


def test_simple_rates_by_hand():
    counts = np.array([[3.0, 1, 0], [0, 2, 6]])
    cells = ad.AnnData(sparse.csr_matrix(counts))
    average = (counts.sum(axis=0) + 0.5) / (counts.sum() + 1.5)
    np.testing.assert_allclose(average_rates(cells), np.tile(average, (2, 1)))
    expected = (counts + 10 * average) / (counts.sum(axis=1, keepdims=True) + 10)
    np.testing.assert_allclose(raw_rates(cells, 10), expected)
    # The two cells are neighbors of each other, so their pools are the same.
    pooled = neighbor_rates(cells, 2, 10)
    np.testing.assert_allclose(pooled[0], pooled[1])
    np.testing.assert_allclose(pooled.sum(axis=1), 1, rtol=1e-6)
