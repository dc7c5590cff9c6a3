"""The depth-aware objective and its combination with neighbors, against closed forms and brute force."""

from __future__ import annotations

import sys

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import torch
from conftest import small_model
from scipy import integrate, sparse, stats

import scmamba
from scmamba.data import read_cells
from scmamba.datasets import brain_cohort
from scmamba.evaluation.imputation.gated_ensemble import fit_gated_ensemble
from scmamba.evaluation.imputation.gating import value_if_counted
from scmamba.genes import Vocabulary
from scmamba.imputation.base_predictors import GeneMap
from scmamba.imputation.rate_fit import SPREAD
from scmamba.model import Model
from scmamba.neighbors import RatePosterior
from scmamba.neighbors.batch_balanced import BatchBalancedKNN
from scmamba.nn import ModelConfig, ScMamba
from scmamba.training.batches import read_sources
from scmamba.training.objectives import RateConfig, gene_log_rate, rate_loss, source_log_rate
from scmamba.utils.errors import ScMambaError


def rates_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    vocabulary = Vocabulary.published()
    config = ModelConfig(
        n_genes=len(vocabulary),
        d_model=8,
        n_layer=1,
        d_state=4,
        reads="expressed",
        rates=True,
        name="rates",
    )
    model = Model(ScMamba(config), vocabulary)
    with torch.no_grad():  # like a trained head
        model.network.gene_log_rate[0] -= 1e-4
    return model


@pytest.fixture(scope="module")
def nuclei() -> ad.AnnData:
    return brain_cohort(150, n_donors=3, seed=2)


def test_the_loss_is_the_negative_binomial_likelihood(nuclei):
    model = rates_model()
    source = read_sources([nuclei], model.genes, min_total=1)[0]
    with torch.no_grad():
        model.network.rate_head.weight.zero_()  # then the network predicts the average
    base = torch.from_numpy(source_log_rate(source))
    config = RateConfig(hidden=(1.0, 1.0), spread=0.3)
    rows = np.arange(4)
    loss = rate_loss(model.network, source, base, rows, config, np.random.default_rng(0)).item()
    counts = np.expm1(source.values[rows].toarray()) * source.totals[rows, None] / 1e4
    mu = np.exp(base.numpy())[None, :] * source.totals[rows, None]
    size = 1 / config.spread
    exact = -stats.nbinom.logpmf(np.round(counts), size, size / (size + mu))
    # The constants that the loss omits: log of the binomial coefficient, and y log(spread).
    y = np.round(counts)
    constant = (
        -np.log(stats.nbinom.pmf(y, size, 0.5))
        + (size + y) * np.log(0.5)
        - y * np.log(config.spread)
    )
    assert loss == pytest.approx((exact - constant).sum() / counts.sum(), rel=1e-4)


def test_a_masked_gene_does_not_reach_the_network(nuclei):
    model = rates_model()
    source = read_sources([nuclei], model.genes, min_total=1)[0]
    base = torch.from_numpy(source_log_rate(source)).float()
    seen = []
    original = model.network.log_ratio
    model.network.log_ratio = lambda x, genes, keep, decoded: (
        seen.append((x, genes, keep)),
        original(x, genes, keep, decoded),
    )[1]
    rate_loss(
        model.network,
        source,
        base,
        np.arange(8),
        RateConfig(hidden=(0.5, 0.5)),
        np.random.default_rng(1),
    )
    _, _, keep = seen[0]
    expressed = np.diff(source.values.indptr)[:8]
    assert (keep.sum(dim=1).numpy() < 0.7 * expressed).all() and (
        keep.sum(dim=1).numpy() > 0.3 * expressed
    ).all()


def test_gene_averages_are_shares_and_a_prior_covers_unobserved_genes():
    counts = np.array([90.0, 10.0, 0.0])
    plain = np.exp(gene_log_rate(counts))
    assert (
        plain.sum() == pytest.approx(1)
        and plain[0] == pytest.approx(0.9, rel=1e-2)
        and plain[2] > 0
    )
    prior = np.log([0.2, 0.3, 0.5])
    assert np.exp(gene_log_rate(counts * 0, prior)) == pytest.approx([0.2, 0.3, 0.5])
    assert np.exp(gene_log_rate(counts * 1e9, prior)) == pytest.approx([0.9, 0.1, 0.0], abs=1e-6)


@pytest.mark.parametrize("mu", [0.08, 15.0])
def test_a_zero_is_evidence_by_bayes_rule(mu):
    """Posterior mean of a gamma prior (mean 1, variance SPREAD) after a Poisson count of zero, by quadrature."""
    prior = stats.gamma(1 / SPREAD, scale=SPREAD)
    weight = integrate.quad(lambda t: prior.pdf(t) * np.exp(-t * mu), 0, 20)[0]
    mean = integrate.quad(lambda t: t * prior.pdf(t) * np.exp(-t * mu), 0, 20)[0] / weight
    found = RatePosterior.from_prior(
        sparse.csr_matrix((1, 1)), np.array([5000.0]), np.array([[mu / 5000]]), SPREAD
    )
    assert found.mean[0, 0] == pytest.approx(mu / 5000 * mean, rel=1e-6)


def test_an_observed_value_is_the_truncated_poisson_mean():
    mu = 1.7
    k = np.arange(1, 200)
    mean = (k * stats.poisson.pmf(k, mu)).sum() / (1 - np.exp(-mu))
    assert value_if_counted(np.log(np.array([[mu / 1000]])), np.array([[1000.0]]))[
        0, 0
    ] == pytest.approx(np.log1p(10 * mean), rel=1e-5)


def test_pooled_rates_of_neighbours_by_hand():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.4, (30, 50)).astype(float))
    totals = np.asarray(counts.sum(axis=1)).ravel()
    pool = BatchBalancedKNN(counts, totals, components=5)
    nearest = pool.query(pool.scores, 6, own=np.arange(30))
    distance = ((pool.scores[:, None] - pool.scores[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    assert (np.sort(nearest, axis=1) == np.sort(np.argsort(distance, axis=1)[:, :6], axis=1)).all()
    average = np.full(50, 0.02)
    for (k, shrink), rate in zip(
        [(2, 10.0), (6, 100.0)], pool.rates(nearest, [(2, 10.0), (6, 100.0)], average)
    ):
        for cell in (0, 17):
            members = nearest[cell, :k]
            expected = (counts[members].sum(axis=0).A1 + shrink * average) / (
                totals[members].sum() + shrink
            )
            assert rate[cell] == pytest.approx(expected, rel=1e-5)


def two_batches(only_in_first: int = 40) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Counts of three types in two batches with gene-specific capture rates; the third type is in the first batch only."""
    rng = np.random.default_rng(5)
    kind = np.r_[np.repeat([0, 1], 80), np.full(only_in_first, 2), np.repeat([0, 1], 80)]
    batch = np.r_[np.zeros(160 + only_in_first, int), np.ones(160, int)]
    rates = np.exp(rng.normal(0, 0.3, (3, 300)))
    for k in range(3):
        rates[k, 60 * k : 60 * k + 60] *= 6
    rates = np.stack([rates, rates * np.exp(rng.normal(0, 0.6, 300))])
    return sparse.csr_matrix(rng.poisson(rates[batch, kind]).astype(float)), kind, batch


def test_neighbors_are_balanced_over_the_batches_with_the_cell_type():
    counts, kind, batch = two_batches()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    everyone = np.arange(len(kind))
    plain = BatchBalancedKNN(counts, totals, components=10)
    near = plain.query(plain.scores, 30, own=everyone)
    assert (
        batch[near] == batch[:, None]
    ).mean() > 0.95  # without batches the neighbors of a cell are in its own batch
    pool = BatchBalancedKNN(counts, totals, components=10, batch=batch)
    turns = pool.query(pool.scores, 30, everyone, batch)
    shared = kind < 2
    assert (turns != everyone[:, None]).all() and all(len(set(row)) == 30 for row in turns)
    assert 0.4 < (batch[turns[shared]] == batch[shared, None]).mean() < 0.6
    assert (kind[turns[shared]] == kind[shared, None]).mean() > 0.99
    # The type that is missing in the other batch has no neighbors there.
    assert (kind[turns[~shared]] == 2).mean() > 0.99
    # Cells without a batch, or with one that is not in the pool, have the nearest neighbors of all batches.
    for unknown in (-1, 7):
        nobody = pool.query(pool.scores[:5], 30, everyone[:5], np.full(5, unknown))
        assert (np.sort(nobody, axis=1) == np.sort(near[:5], axis=1)).all()
    assert pool.query(pool.scores[:3], 10_000, everyone[:3], batch[:3]).shape == (3, len(kind) - 1)


def test_donor_effects_are_corrected_only_with_batch_key(nuclei):
    one = nuclei.copy()
    one.obs["library"] = "a"
    options = dict(model=rates_model(), adapt_steps=0, verbose=False)
    plain = scmamba.impute(nuclei.copy(), **options)
    np.testing.assert_array_equal(
        scmamba.impute(one, batch_key="library", **options).layers["scmamba"].data,
        plain.layers["scmamba"].data,
    )
    corrected = scmamba.impute(nuclei.copy(), batch_key="donor", **options)
    assert (
        corrected.uns["scmamba"]["impute"]["params"]["batch_key"] == "donor"
        and "batch_key" not in plain.uns["scmamba"]["impute"]["params"]
    )
    at = nuclei.X.nonzero()
    np.testing.assert_array_equal(
        np.asarray(corrected.layers["scmamba"][at]), np.asarray(plain.layers["scmamba"][at])
    )

    def between_donors(imputed: ad.AnnData) -> float:
        """Variance of the donors' means relative to that of all cells, within the most common type."""
        own = imputed.obs["cell_type"] == imputed.obs["cell_type"].value_counts().index[0]
        filled = imputed.layers["scmamba"][own.to_numpy()].toarray()
        donors = imputed.obs["donor"][own].astype(str).to_numpy()
        means = np.stack([filled[donors == d].mean(axis=0) for d in np.unique(donors)])
        return float(means.var(axis=0).sum() / filled.var(axis=0).sum())

    # Three donors of fifty cells each, and an untrained network that reads each cell alone: a part of the effect remains.
    assert between_donors(corrected) < 0.9 * between_donors(plain)


def test_a_file_is_batch_corrected_like_the_object(nuclei, tmp_path):
    nuclei.write_h5ad(tmp_path / "in.h5ad")
    options = dict(model=rates_model(), batch_key="donor", adapt_steps=0, verbose=False)
    scmamba.impute_file(tmp_path / "in.h5ad", tmp_path / "out.h5ad", **options)
    expected = scmamba.impute(nuclei.copy(), **options).layers["scmamba"]
    np.testing.assert_array_equal(
        ad.read_h5ad(tmp_path / "out.h5ad").layers["scmamba"].toarray(), expected.toarray()
    )


def test_invalid_batches_are_refused(nuclei, monkeypatch):
    data = nuclei.copy()
    data.obs["gaps"] = [None, *data.obs["donor"].astype(str)[1:]]
    data.obs["barcode"] = [f"c{i}" for i in range(data.n_obs)]
    for batch, message in (("nobody", "no column 'nobody'"), ("gaps", "1 cells have no value")):
        with pytest.raises(ScMambaError, match=message):
            scmamba.impute(data, model=rates_model(), batch_key=batch, verbose=False)
    with pytest.raises(ScMambaError, match="each cell alone"):
        scmamba.impute(data, model=rates_model(), method="masked", batch_key="donor", verbose=False)
    monkeypatch.setattr(sys.modules["scmamba.imputation.imputer"], "MAX_BATCHES", 20)
    with pytest.raises(ScMambaError, match="150 different values"):
        scmamba.impute(data, model=rates_model(), batch_key="barcode", verbose=False)
    assert "scmamba" not in data.layers


def test_the_combination_is_better_than_the_gene_average_and_reproducible(nuclei):
    model = rates_model()
    cells = read_cells(nuclei, model.genes)
    counts, totals = cells.counts(np.arange(len(cells)))
    first, second = (
        fit_gated_ensemble(
            model, counts, totals, GeneMap.of(cells), adapt_steps=2, seed=4, verbose=False
        )
        for _ in range(2)
    )
    assert first.report["combined"] < first.report["gene_average"]
    rows = slice(0, 10)
    a, b = (c.expect(counts[rows], totals[rows], np.arange(10)) for c in (first, second))
    np.testing.assert_array_equal(a.rate, b.rate)
    assert np.isfinite(a.rate).all() and (a.rate > 0).all() and (a.rate <= 1).all()


def test_observed_values_stay_and_all_genes_are_imputed(nuclei):
    data = nuclei.copy()
    before = data.X.copy()
    every = {"min_value": 0, "min_probability": 0, "max_filled": 1}
    scmamba.impute(data, model=rates_model(), adapt_steps=2, verbose=False, **every)
    layer = data.layers["scmamba"]
    assert abs(data.X - before).nnz == 0
    assert data.uns["scmamba"]["impute"]["params"]["method"] == "ensemble"
    expected = nuclei.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    at = before.nonzero()
    np.testing.assert_allclose(
        np.asarray(layer[at]).ravel(), np.asarray(expected.X[at]).ravel(), rtol=1e-5
    )
    assert layer.nnz > 0.99 * np.prod(layer.shape)


def test_logs_give_the_same_result_as_their_counts(nuclei):
    """The smallest value of a cell is a count of one, so normalization before loses no information."""
    counts = nuclei.copy()
    logs = nuclei.copy()
    sc.pp.normalize_total(logs, target_sum=1e4)
    sc.pp.log1p(logs)
    a = (
        scmamba.impute(counts, model=rates_model(), adapt_steps=0, verbose=False)
        .layers["scmamba"]
        .toarray()
    )
    b = (
        scmamba.impute(logs, model=rates_model(), adapt_steps=0, verbose=False)
        .layers["scmamba"]
        .toarray()
    )
    np.testing.assert_allclose(a, b, atol=2e-3)


def test_few_cells_are_imputed_by_the_network_alone(nuclei, capsys):
    few = nuclei[:5].copy()
    scmamba.impute(few, model=rates_model(), verbose=True)
    assert "30 needed" in "".join(capsys.readouterr())
    assert few.layers["scmamba"].nnz > few.X.nnz


def test_a_method_the_model_lacks_is_refused(nuclei):
    with pytest.raises(ScMambaError, match="no rate head"):
        scmamba.impute(
            nuclei.copy(), model=small_model("expressed"), method="ensemble", verbose=False
        )
    with pytest.raises(ScMambaError, match="'ensemble', 'masked'"):
        scmamba.impute(nuclei.copy(), model=rates_model(), method="magic", verbose=False)
