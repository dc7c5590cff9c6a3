"""Which zeros are imputed, with which values, and when the network is used."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import small_model, with_rate_head
from scipy import sparse, special, stats

import scmamba
from scmamba.evaluation import foreign_gene_scores, split_counts
from scmamba.imputation import rate_fit
from scmamba.imputation.base_predictors import GeneMap
from scmamba.imputation.ensemble_imputer import EXPRESSED_RATE
from scmamba.model import Model
from scmamba.neighbors.hierarchical import HierarchicalRates
from scmamba.utils.errors import DataError, OptionError

QUIET = dict(verbose=False, force=True, adapt_steps=0)
GENES = 120


@pytest.fixture(scope="module")
def model() -> Model:
    small = small_model("expressed", n_genes=GENES)
    return with_rate_head(small, seed=1)


@pytest.fixture(scope="module")
def cells(model) -> ad.AnnData:
    """Types of 120, 80 and 10 cells with 20 markers each, shallow; the last cell has no counts."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], [120, 80, 10])
    rate = np.tile(rng.gamma(1.0, 0.6, GENES), (3, 1))
    for t in range(3):
        rate[:, 20 * t : 20 * t + 20] = 0.01
        rate[t, 20 * t : 20 * t + 20] = 3
    counts = rng.poisson(rate[label] * rng.uniform(0.4, 1.6, (210, 1))).astype(np.float32)
    counts[209] = 0
    obs = pd.DataFrame({"type": label.astype(str), "lib": np.tile(["a", "b"], 105)})
    obs.index = [f"c{i}" for i in range(210)]
    data = ad.AnnData(sparse.csr_matrix(counts), obs=obs)
    data.var_names = list(model.genes.ensembl_ids)
    return data


@pytest.fixture(scope="module")
def fitted(cells) -> tuple[HierarchicalRates, np.ndarray, np.ndarray]:
    """The rates of the cells with counts, their rows and totals."""
    total = cells.X.sum(axis=1).A1.astype(float)
    rows = np.flatnonzero(total > 0)
    return HierarchicalRates.fit(cells.X[rows].astype(float), total[rows]), rows, total


def layer(cells: ad.AnnData, model: Model, **options) -> np.ndarray:
    result = scmamba.impute(cells.copy(), model=model, **{**QUIET, **options})
    return result.layers["scmamba"].toarray().astype(float)


def test_a_zero_is_imputed_if_its_gamma_posterior_exceeds_the_limit(cells, model, fitted):
    rates, rows, total = fitted
    some = rows[::7]
    posterior = rates.posterior(cells.X[some].astype(float), total[some], np.arange(209)[::7])
    found, zero = layer(cells, model, max_filled=1)[some], cells.X[some].toarray() == 0
    least = np.maximum(0.5 * rates.average, EXPRESSED_RATE)
    assert pytest.approx(np.expm1(0.2) / 1e4) == EXPRESSED_RATE
    probability = stats.gamma.sf(least, posterior.shape, scale=1 / posterior.inverse_scale)
    value = np.log1p(1e4 * posterior.mean)
    clear = np.abs(probability - 0.95) > 1e-4
    expected = np.where((probability >= 0.95) & (value >= 0.2), value, 0)
    np.testing.assert_allclose(found[zero & clear], expected[zero & clear], rtol=1e-4)
    assert 0.02 < (found[zero] > 0).mean() < 0.9
    every = layer(cells, model, min_probability=0, max_filled=1)[some]
    np.testing.assert_allclose(every[zero], np.where(value >= 0.2, value, 0)[zero], rtol=1e-4)


def test_max_filled_keeps_the_most_probable_zeros_of_each_cell(cells, model, fitted):
    rates, rows, total = fitted
    every = layer(cells, model, min_probability=0, max_filled=1)
    capped = layer(cells, model, min_probability=0, max_filled=0.1)
    zero = cells.X.toarray() == 0
    number = ((every > 0) & zero).sum(axis=1)
    most = 12  # a tenth of 120 genes
    assert (number > most).sum() > 50, "the limit matters in many cells"
    np.testing.assert_array_equal(((capped > 0) & zero).sum(axis=1), np.minimum(number, most))
    kept = capped > 0
    np.testing.assert_array_equal(capped[kept], every[kept])
    posterior = rates.posterior(cells.X[rows].astype(float), total[rows], np.arange(209))
    least = np.maximum(0.5 * rates.average, EXPRESSED_RATE)
    probability = stats.gamma.sf(least, posterior.shape, scale=1 / posterior.inverse_scale)
    for own, p in zip(rows, probability):
        candidate, chosen = zero[own] & (every[own] > 0), zero[own] & kept[own]
        if (candidate & ~chosen).any():
            assert p[chosen].min() >= p[candidate & ~chosen].max() - 1e-5
    np.testing.assert_array_equal(layer(cells, model, max_filled=0)[zero], 0)
    with pytest.raises(OptionError, match="max_filled"):
        layer(cells, model, max_filled=1.5)


def test_the_sum_of_imputed_zeros_is_reported_for_each_cell(cells, model):
    result = scmamba.impute(cells.copy(), model=model, **QUIET)
    counts = cells.X.toarray().astype(float)
    values = np.expm1(result.layers["scmamba"].toarray().astype(float))
    added = np.where(counts == 0, values, 0).sum(axis=1) / 1e4  # observed values: 10,000 per cell
    np.testing.assert_allclose(result.obs["scmamba_added"], added, rtol=1e-4, atol=2e-6)
    assert added[:209].max() > 0.02 and result.obs["scmamba_added"].iloc[209] == 0
    rates = scmamba.impute(cells.copy(), model=model, values="posterior", **QUIET)
    assert "scmamba_added" not in rates.obs


def test_observed_values_and_cells_without_counts_stay(cells, model):
    found = layer(cells, model)
    counts = cells.X.toarray().astype(float)
    total = counts.sum(axis=1, keepdims=True)
    exact = np.log1p(1e4 * counts / np.maximum(total, 1))
    np.testing.assert_allclose(found[counts > 0], exact[counts > 0], rtol=1e-6)
    assert not found[209].any()
    assert not layer(cells, model, values="posterior")[209].any()


def test_a_rare_type_has_few_foreign_genes(cells, model):
    data = cells[:209].copy()
    values = {
        "default": layer(data, model),
        "every zero": layer(data, model, min_probability=0, max_filled=1),
    }
    table = foreign_gene_scores(data, values, "type").set_index("values")
    assert table.loc["default", "cells"] == 9 and table.loc["default", "foreign_genes"] >= 30
    raw = max(table.loc["raw", "foreign_share"], 1e-3)
    assert table.loc["default", "foreign_share"] <= 2 * raw
    assert table.loc["every zero", "foreign_share"] > table.loc["default", "foreign_share"]
    assert table.loc["default", "marker_share"] > 0.8 * table.loc["raw", "marker_share"]


def test_posterior_values_sum_to_ten_thousand(cells, model, fitted):
    rates, rows, total = fitted
    options = {"values": "posterior", "min_probability": 0} | QUIET
    result = scmamba.impute(cells.copy(), model=model, **options)
    values = result.layers["scmamba"].toarray().astype(float)
    np.testing.assert_allclose(np.expm1(values[rows]).sum(axis=1), 1e4, rtol=1e-4)
    posterior = rates.posterior(cells.X[rows].astype(float), total[rows], np.arange(209)).mean
    exact = 1e4 * posterior / posterior.sum(axis=1, keepdims=True)
    large = exact > 1
    np.testing.assert_allclose(np.expm1(values[rows])[large], exact[large], rtol=0.01)
    default = layer(cells, model, values="posterior")  # every gene differs from 0: no measure
    assert abs(stats.spearmanr((default[rows] > 0.2).sum(axis=1), total[rows]).statistic) < 0.35
    counts = layer(cells, model, values="posterior", to_counts=True)  # improbable genes 0
    np.testing.assert_allclose(counts.sum(axis=1), total, rtol=1e-4)
    assert result.uns["scmamba"]["impute"]["params"]["min_value"] == 0.01


def test_standard_deviations_are_those_of_the_posterior(cells, model, fitted):
    """Of every stored value, against draws from the gamma posterior of its rate."""
    rates, rows, total = fitted
    some = rows[::23]
    found = rates.posterior(cells.X[some].astype(float), total[some], np.arange(209)[::23])
    draws = np.random.default_rng(0).gamma(
        found.shape, 1 / found.inverse_scale, (4000, *found.shape.shape)
    )
    posterior = {"values": "posterior", "min_probability": 0}
    for options in ({}, posterior, {"to_counts": True}, posterior | {"to_counts": True}):
        result = scmamba.impute(cells.copy(), model=model, sd=True, **options, **QUIET)
        values, sd = result.layers["scmamba"], result.layers["scmamba_sd"]
        assert (values.indptr == sd.indptr).all() and (values.indices == sd.indices).all()
        assert result.uns["scmamba"]["impute"]["params"]["sd"] and sd.data.min() > 0
        scale = np.full(len(some), 1e4)
        if "to_counts" in options:
            scale = total[some]
        if (
            "values" in options
        ):  # every cell with the same sum: the rates of all genes sum to 1 only nearly
            scale = scale / found.mean.sum(axis=1)
        expected = draws * scale[:, None]
        expected = (expected if "to_counts" in options else np.log1p(expected)).std(axis=0)
        kept = values[some].toarray() > 0
        assert kept.mean() > 0.1
        np.testing.assert_allclose(sd[some].toarray()[kept], expected[kept], rtol=0.15)
        ratio = sd[some].toarray()[kept] / expected[kept]
        assert abs(np.median(ratio) - 1) < 0.01


def test_intervals_cover_the_counts_of_a_second_part(cells, model):
    """Rates fitted to one part of the counts: intervals of the other part at their nominal level."""
    rng = np.random.default_rng(0)
    varied = rng.poisson(cells.X[:209].toarray() * rng.gamma(1.0, 1.0, (209, GENES)))
    first, second = split_counts(sparse.csr_matrix(varied, dtype=float), 0.7, seed=3)
    part = cells[:209].copy()
    part.X = first.astype(np.float32)
    part = scmamba.impute(
        part,
        model=model,
        values="posterior",
        min_probability=0,
        sd=True,
        to_counts=True,
        **QUIET,
    )
    mean, sd = (part.layers[n].toarray().astype(float) * 3 / 7 for n in ("scmamba", "scmamba_sd"))
    counts = second.toarray()
    filled = mean > 0
    # A Poisson count with a gamma mean: negative binomial.
    size = (mean[filled] / sd[filled]) ** 2
    law = stats.nbinom(size, size / (size + mean[filled]))
    low, high = law.ppf(0.05), law.ppf(0.95)
    nominal = (law.cdf(high) - law.cdf(low - 1)).mean()  # counts are whole, so it exceeds 90%
    covered = ((counts[filled] >= low) & (counts[filled] <= high)).mean()
    assert covered == pytest.approx(nominal, abs=0.015)
    # Squared errors have the variance of the law, which exceeds Poisson's.
    error = (counts[filled] - mean[filled]) ** 2
    spread = error.sum() / (mean[filled] + sd[filled] ** 2).sum()
    assert spread == pytest.approx(1, abs=0.1) and error.sum() > 1.1 * mean[filled].sum()


def test_an_earlier_layer_of_standard_deviations_is_removed_or_refused(cells, model, tmp_path):
    data = scmamba.impute(cells.copy(), model=model, sd=True, **QUIET)
    data.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(DataError, match="standard deviations"):
        scmamba.impute(data.copy(), model=model, layer="scmamba_sd", **QUIET)
    again = scmamba.impute(data.copy(), model=model, **QUIET)
    assert "scmamba_sd" not in again.layers and "scmamba" in again.layers
    path = tmp_path / "b.h5ad"
    scmamba.impute_file(tmp_path / "a.h5ad", path, model=model, **QUIET)
    assert "scmamba_sd" not in ad.read_h5ad(path).layers
    scmamba.impute_file(tmp_path / "a.h5ad", path, model=model, sd=True, overwrite=True, **QUIET)
    written = ad.read_h5ad(path)
    for name in ("scmamba", "scmamba_sd"):
        assert (written.layers[name] != data.layers[name]).nnz == 0
    again.layers["scmamba_sd"] = again.X
    kept = scmamba.impute(again.copy(), model=model, **QUIET)
    assert (kept.layers["scmamba_sd"] != again.X).nnz == 0, "not ours"
    with pytest.raises(DataError, match="scmamba_sd.*exists already"):
        scmamba.impute(again, model=model, sd=True, **QUIET)


def test_posterior_values_of_improbable_genes_are_zero(cells, model, fitted):
    """Probability of the rate at half of the average or more, by scipy; the others keep the same ratios."""
    rates, rows, total = fitted
    posterior = rates.posterior(cells.X[rows].astype(float), total[rows], np.arange(209))
    every = layer(cells, model, values="posterior", min_probability=0, min_value=0)[rows]
    found = layer(cells, model, values="posterior", min_value=0)[rows]
    least = np.maximum(0.5 * rates.average, EXPRESSED_RATE)
    probability = stats.gamma.sf(least, posterior.shape, scale=1 / posterior.inverse_scale)
    zero = cells.X[rows].toarray() == 0
    clear = np.abs(probability - 0.5) > 1e-4
    dropped = zero & (probability < 0.5)
    assert (every > 0).all() and 0.1 < dropped.mean() < 0.9
    np.testing.assert_array_equal((found == 0)[clear], dropped[clear])
    np.testing.assert_allclose(np.expm1(found).sum(axis=1), 1e4, rtol=1e-4)
    ratio = np.where(found > 0, np.expm1(found) / np.expm1(every), np.nan)
    np.testing.assert_allclose(np.nanmax(ratio, axis=1), np.nanmin(ratio, axis=1), rtol=1e-3)
    table = foreign_gene_scores(
        cells[rows].copy(), {"every": every, "found": found}, "type"
    ).set_index("values")
    assert table.loc["found", "foreign_share"] < 0.6 * table.loc["every", "foreign_share"]


def test_the_network_is_used_only_if_it_lowers_the_deviance_by_the_margin(
    cells, model, monkeypatch
):
    counts, total = cells.X[:209].astype(float), cells.X[:209].sum(axis=1).A1.astype(float)
    genes = GeneMap(sparse.identity(GENES, format="csr"), np.arange(GENES), np.arange(GENES))
    monkeypatch.setattr(rate_fit, "TEST_CELLS", 209)  # all of them
    untrained = rate_fit.fit_rates(model, counts, total, genes, adapt_steps=0, verbose=False)
    assert untrained.report["network"] == "skipped" and not untrained.use_network
    assert untrained.report["deviance_neighbors"] < untrained.report["deviance_average"]
    # The average rates of the first parts, against the second parts, by hand.
    first, second = (part.toarray() for part in split_counts(sparse.csr_matrix(counts), seed=0))
    rate = HierarchicalRates.fit(sparse.csr_matrix(first), first.sum(axis=1), seed=0).average
    expected = first.sum(axis=1, keepdims=True) * rate * (second.sum() / first.sum())
    by_hand = 2 * (special.xlogy(second, second / expected) - second + expected).sum(axis=1)
    assert untrained.report["deviance_average"] == pytest.approx(by_hand.mean(), rel=1e-9)
    # A network that separates the types: the rates of the type whose markers the cell expresses.
    label = cells.obs["type"][:209].astype(int).to_numpy()
    truth = np.stack([counts[label == t].sum(axis=0).A1 + 0.1 for t in range(3)])
    truth /= truth.sum(axis=1, keepdims=True)

    def knowing(network, part, totals):
        own = np.stack([part[:, 20 * t : 20 * t + 20].sum(axis=1).A1 for t in range(3)], axis=1)
        return truth[own.argmax(axis=1)]

    monkeypatch.setattr(rate_fit, "network_rates", knowing)
    report = rate_fit.judge_network(
        model, counts, total, genes, None, adapt_steps=0, seed=0, verbose=False
    )[1]
    gain = 1 - report["deviance_network"] / report["deviance_neighbors"]
    assert gain > 0.005
    for margin, used in ((gain - 1e-6, True), (gain + 1e-6, False)):
        monkeypatch.setattr(rate_fit, "NETWORK_MARGIN", margin)
        found = rate_fit.fit_rates(model, counts, total, genes, adapt_steps=0, verbose=False)
        assert found.use_network is used and found.report["network"] == (
            "used" if used else "skipped"
        )
        posterior = found.posterior(counts[:4], total[:4], np.arange(4))
        prior = knowing(None, counts[:4], total[:4]) if used else None
        expected = found.rates.posterior(counts[:4], total[:4], np.arange(4), None, prior)
        np.testing.assert_array_equal(posterior.mean, expected.mean)


def test_adaptation_requires_a_network_close_to_the_margin(cells, model, monkeypatch):
    calls = []
    monkeypatch.setattr(rate_fit, "adapt_rates", lambda *a, **k: calls.append(k["steps"]))
    counts, total = cells.X[:209].astype(float), cells.X[:209].sum(axis=1).A1.astype(float)
    genes = GeneMap(sparse.identity(GENES, format="csr"), np.arange(GENES), np.arange(GENES))
    rate_fit.fit_rates(model, counts, total, genes, adapt_steps=30, verbose=False)
    assert calls == []


def test_deep_cells_give_a_message(cells, model, capsys):
    deep = cells[:209].copy()
    deep.X = deep.X * 3000
    scmamba.impute(deep, model=model, **(QUIET | {"verbose": True}))
    printed = capsys.readouterr().err
    assert "full-length protocols" in printed
    assert printed.index("full-length") < printed.index("Deviance of split counts"), (
        "before the wait"
    )
    deep.layers.clear()
    scmamba.impute(deep, model=model, values="posterior", **(QUIET | {"verbose": True}))
    assert "full-length protocols" not in capsys.readouterr().err


def test_contradictory_options(cells, model):
    with pytest.raises(OptionError, match="needs method='ensemble'"):
        scmamba.impute(cells.copy(), model=model, method="masked", values="posterior", **QUIET)
    with pytest.raises(OptionError, match="sd=True needs method='ensemble'"):
        scmamba.impute(cells.copy(), model=model, method="masked", sd=True, **QUIET)
    for probability in (-0.1, 1.1):
        with pytest.raises(OptionError, match="min_probability"):
            scmamba.impute(cells.copy(), model=model, min_probability=probability, **QUIET)
    with pytest.raises(OptionError, match="'zeros', 'posterior'"):
        scmamba.impute(cells.copy(), model=model, values="all", **QUIET)


def test_few_cells_are_imputed_by_the_network_and_the_report_names_it(cells, model):
    counts, total = cells.X[:5].astype(float), cells.X[:5].sum(axis=1).A1.astype(float)
    genes = GeneMap(sparse.identity(GENES, format="csr"), np.arange(GENES), np.arange(GENES))
    found = rate_fit.fit_rates(model, counts, total, genes, adapt_steps=30, verbose=False)
    assert found.use_network and found.rates is None and found.report["network"] == "used"
    assert found.report["adapt"] == {"used": False, "reason": "fewer than 30 cells"}
