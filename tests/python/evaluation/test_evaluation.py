"""Numbers of the imputation tables against the published page of figures, and each piece against a plain
formula.
"""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats as st
from scipy import sparse

from scmamba.datasets import brain_cohort
from scmamba.evaluation import nonzero_imputation, score
from scmamba.evaluation.imputation import truncated_deviance
from scmamba.neighbors.knn import nearest_neighbors
from scmamba.neighbors.rates import knn_rates, truncated_mean
from scmamba.neighbors.svd import principal_components
from scmamba.utils.errors import DataError


@pytest.fixture(scope="module")
def cohort():
    return brain_cohort(500, n_genes=1500, seed=7)


def test_the_truncated_mean_is_that_of_the_poisson():
    counts = np.arange(1, 200)
    for mu in (1e-6, 0.1, 1.0, 7.0, 40.0):
        p = st.poisson.pmf(counts, mu)
        assert truncated_mean(mu) == pytest.approx((counts * p).sum() / p.sum(), rel=1e-6)


def test_deviance_is_twice_the_missing_log_likelihood():
    def loss(mu, y):
        return -(y * np.log(mu) - mu - np.log(-np.expm1(-mu)))

    for y, mu in ((1, 0.3), (2, 0.3), (5, 2.0), (40, 55.0)):
        best = scipy.optimize.minimize_scalar(
            loss, bounds=(1e-8, 500), args=(y,), method="bounded", options={"xatol": 1e-9}
        )
        expected = 2 * (loss(mu, y) - best.fun)
        assert truncated_deviance(np.array([y]), truncated_mean(np.array([mu])))[
            0
        ] == pytest.approx(expected, abs=1e-4)


def test_components_are_those_of_the_exact_decomposition(cohort):
    x = sparse.csr_matrix(cohort.X, dtype=float)
    x.data = np.log1p(x.data)
    scores, basis = principal_components(x, 20, passes=8)
    exact = np.linalg.svd(x.toarray(), compute_uv=False)[:20]
    np.testing.assert_allclose(np.linalg.norm(scores, axis=0)[:8], exact[:8], rtol=1e-3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(20), atol=1e-8)
    assert np.linalg.norm(x @ basis - scores) / np.linalg.norm(scores) < 0.05


def test_nearest_neighbors_are_the_nearest_cells():
    rng = np.random.default_rng(0)
    query, pool = rng.standard_normal((70, 5)), rng.standard_normal((120, 5))
    brute = np.argsort(((query[:, None] - pool[None]) ** 2).sum(-1), axis=1)[:, :7]
    np.testing.assert_array_equal(nearest_neighbors(query, pool, 7, block=16), brute)
    assert (nearest_neighbors(pool, pool, 3)[:, 0] == np.arange(120)).all()


def test_rates_follow_the_formula(cohort):
    counts = sparse.csr_matrix(cohort.X, dtype=float)
    totals = np.asarray(counts.sum(axis=1)).ravel() * 1.2
    rates = knn_rates(counts, totals, k=10)
    dense = counts.toarray()
    for cell in (0, 33, 499):
        mine = rates.neighbors[cell]
        expected = (dense[mine].sum(0) + 5000 * dense.sum(0) / dense.sum()) / (
            dense[mine].sum() + 5000
        )
        np.testing.assert_allclose(rates.rate(np.array([cell]))[0], expected, rtol=1e-10)
        mean = truncated_mean(expected * totals[cell])
        np.testing.assert_allclose(
            rates.log_values(np.array([cell]))[0], np.log1p(1e4 / totals[cell] * mean)
        )
    rows, columns = np.array([400, 3, 3, 270]), np.array([5, 900, 2, 44])
    np.testing.assert_allclose(
        rates.rate_at(rows, columns),
        [rates.rate(np.array([r]))[0, c] for r, c in zip(rows, columns)],
    )


def test_only_reference_cells_are_neighbors(cohort):
    counts = sparse.csr_matrix(cohort.X, dtype=float)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    rates = knn_rates(counts[:50], totals[:50], k=5, reference=counts[50:])
    assert rates.neighbors.shape == (50, 5) and rates.neighbors.max() < 450
    np.testing.assert_allclose(
        rates.gene_rate, np.asarray(counts[50:].sum(0)).ravel() / counts[50:].sum()
    )
    with pytest.raises(DataError, match="genes"):
        knn_rates(counts[:50], totals[:50], reference=counts[50:, :10])


def test_scores_follow_their_definitions():
    rng = np.random.default_rng(1)
    totals, counts = rng.integers(1000, 5000, 600).astype(float), rng.integers(1, 9, 600)
    gene = np.repeat(np.arange(6), 100)
    truth = np.log1p(1e4 / totals * counts)
    depth = np.log1p(1e4 / totals)
    mine = truth + rng.normal(0, 0.3, 600)
    found = score(mine, counts, totals, gene, depth)
    assert found["mse"] == pytest.approx(np.mean((mine - truth) ** 2))
    assert found["pearson"] == pytest.approx(st.pearsonr(mine, truth)[0])
    within = [st.pearsonr(mine[gene == g], truth[gene == g])[0] for g in range(6)]
    assert found["pearson_within_gene"] == pytest.approx(np.mean(within))

    def free(v, g):
        return v[gene == g] - np.polyval(
            np.polyfit(depth[gene == g], v[gene == g], 1), depth[gene == g]
        )

    partial = [st.pearsonr(free(mine, g), free(truth, g))[0] for g in range(6)]
    assert found["pearson_beyond_depth"] == pytest.approx(np.mean(partial))
    assert score(depth * 2 + 1, counts, totals, gene, depth)["pearson_beyond_depth"] == 0
    assert score(truth, counts, totals, gene, depth)["deviance"] < 0.01 < found["deviance"]


def test_the_table_has_the_published_values(shared):
    """evaluation.md, kang2018_ifnb, cells with 2,000 UMIs: MSE / pooled r / within-gene r to 0.003."""
    import anndata as ad

    page = {
        "one": (0.733, 0.243, 0.511),
        "gene_mean": (0.217, 0.792, 0),
        "neighbor_mean": (0.179, 0.832, 0.268),
        "gene_rate": (0.204, 0.812, 0.512),
        "neighbor_rate": (0.149, 0.865, 0.577),
    }
    data = ad.read_h5ad(shared / "data" / "kang2018_ifnb_8donors_2cond.h5ad")
    table = nonzero_imputation(data, predictors=list(page), verbose=False)
    for name, expected in page.items():
        np.testing.assert_allclose(table.loc[name].iloc[:3], expected, atol=0.003, err_msg=name)
    assert table.loc["gene_rate", "pearson_beyond_depth"] == 0
    best = table.loc["neighbor_rate"]
    assert (
        best["deviance"] == table["deviance"].min()
        and best["pearson_beyond_depth"] == table["pearson_beyond_depth"].max()
    )


def test_masked_counts_do_not_reach_the_predictor(cohort):
    """A predictor gets no masked count, and every count is predicted once."""
    seen = np.zeros(cohort.shape, dtype=int)

    def spy(hidden):
        assert not np.asarray(hidden.visible[hidden.rows, hidden.columns]).any()
        assert (hidden.visible.data > 0).all() and (np.diff(hidden.rows) >= 0).all()
        seen[hidden.rows, hidden.columns] += 1
        return np.ones(len(hidden.rows))

    nonzero_imputation(
        cohort, predictors={"spy": spy, "one": None}, min_total=0, min_cells=0, verbose=False
    )
    np.testing.assert_array_equal(seen, (cohort.X.toarray() > 0).astype(int))


def test_same_seed_same_table(cohort):
    tables = [
        nonzero_imputation(
            cohort, predictors=["neighbor_rate"], min_total=500, seed=4, verbose=False
        )
        for _ in range(2)
    ]
    assert tables[0].equals(tables[1])


def test_a_model_reads_its_own_gene_order_and_scale(cohort, monkeypatch):
    """A model that returns its input scores 0 on the genes of its list, whatever their order and totals."""
    from scmamba.genes import Vocabulary
    from scmamba.model import Model
    from scmamba.nn import ModelConfig
    from scmamba.nn.scmamba import ScMamba

    ids = cohort.var["ensembl_id"].to_numpy()[::-1][:1200]
    network = ScMamba(ModelConfig(d_model=8, n_layer=1, n_genes=1200))
    model = Model(network, Vocabulary.from_ids(list(ids)))
    masks = []

    def same(x, mask=None, **_):
        import torch

        masks.append(int(mask.sum()))
        assert (torch.as_tensor(x)[mask] > 0).all()  # only expressed values are masked
        return torch.as_tensor(x)

    monkeypatch.setattr(model, "reconstruct", same)
    table = nonzero_imputation(
        cohort, {"same": model}, predictors=["gene_rate"], min_total=500, verbose=False
    )
    row = table.loc["same"]
    assert 0 < row["covered"] < 1
    assert sum(masks) == round(row["covered"] * table.attrs["values"])
    # The remaining error is that of gene_rate on the genes outside the model's list.
    assert row["mse"] < (1 - row["covered"]) * 0.5
    known = cohort[:, cohort.var["ensembl_id"].isin(ids)].copy()
    exact = nonzero_imputation(
        known, {"same": model}, predictors=["gene_rate"], min_total=500, verbose=False
    )
    assert exact.loc["same", "covered"] == 1 and exact.loc["same", "mse"] < 1e-9
    monkeypatch.undo()
    real = nonzero_imputation(cohort, model, predictors=["gene_rate"], min_total=800, verbose=False)
    assert np.isfinite(real.loc["scmamba"]).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_total": 1e6}, "cells have at least"),
        ({"predictors": ["tarot"]}, "choose among"),
        ({"groups": 1}, "groups"),
    ],
)
def test_invalid_data_are_refused(cohort, change, words):
    with pytest.raises(DataError, match=words):
        nonzero_imputation(cohort, verbose=False, **change)


def test_logs_are_refused(cohort):
    logs = cohort.copy()
    logs.X = logs.X.astype(float)
    logs.X.data = np.log1p(
        logs.X.data * np.repeat(1e4 / np.asarray(logs.X.sum(1)).ravel(), np.diff(logs.X.indptr))
    )
    with pytest.raises(DataError, match="Raw counts"):
        nonzero_imputation(logs, verbose=False)
