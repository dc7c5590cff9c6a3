"""Each step of the simulated cohort against its documented formula."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scmamba.datasets import CELL_TYPES, _cohort, brain_cohort
from scmamba.genes import Vocabulary
from scmamba.utils.errors import DataError


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_the_table_has_the_published_genes():
    table, header = _cohort.cohort_parameters()
    assert (
        len(table) == 10_000
        and list(CELL_TYPES) == [c for c in table.columns if c in CELL_TYPES]
        and len(CELL_TYPES) == 8
    )
    published = Vocabulary.published()
    symbol = dict(zip(published.ensembl_ids, published.symbols))
    assert [symbol[e] for e in table["ensembl_id"]] == table["symbol"].tolist()
    assert (
        abs(sum(header["proportions"].values()) - 1) < 0.02 and 0 <= header["zero_inflation"] < 0.01
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_donors": 1}, "2 donors"),
        ({"n_cells": 7}, "less than n_donors = 8"),
        ({"n_cells": 5_000_001}, "5,000,000"),
        ({"n_genes": 199}, "200"),
        ({"n_genes": 10_001}, "10,000"),
        ({"disease_fraction": -0.01}, "between 0 and 1"),
        ({"disease_fraction": 1.01}, "between 0 and 1"),
        ({"de_fraction": -0.01}, "0.5"),
        ({"de_fraction": 0.51}, "0.5"),
        ({"cell_types": []}, "choose among"),
        ({"n_cells": True}, "whole"),
        ({"n_genes": 300.0}, "whole"),
    ],
)
def test_sizes_at_their_limits(changes, words):
    good = dict(
        n_cells=8,
        n_donors=8,
        n_genes=200,
        disease_fraction=0,
        cell_types=None,
        de_fraction=0.5,
        available=10_000,
    )
    assert _cohort._validated(**good) == list(CELL_TYPES)
    assert _cohort._validated(
        **good | dict(n_genes=10_000, disease_fraction=1, de_fraction=0, n_cells=5_000_000)
    ) == list(CELL_TYPES)
    with pytest.raises(DataError, match=words):
        _cohort._validated(**good | changes)


def test_types_are_in_their_fixed_order():
    good = dict(
        n_cells=8, n_donors=2, n_genes=None, disease_fraction=0, de_fraction=0, available=10_000
    )
    assert _cohort._validated(cell_types=["OPC", "Astrocyte", "OPC"], **good) == [
        "Astrocyte",
        "OPC",
    ]
    assert _cohort._validated(cell_types="Pericyte", **good) == ["Pericyte"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"effect": -0.1},
        {"effect": 100},
        {"donor_effect": -0.1},
        {"donor_effect": 100},
        {"dropout": -0.1},
    ],
)
def test_factors_out_of_range_are_refused(arguments):
    with pytest.raises(DataError, match="must lie between"):
        brain_cohort(10, n_genes=200, **arguments)


def test_the_most_expressed_genes_are_kept_in_order():
    table, _ = _cohort.cohort_parameters()
    kept = _cohort._subset(table, 300)
    highest = table[list(CELL_TYPES)].max(axis=1)
    first = highest.sort_values(ascending=False, kind="stable").index[:300]
    assert kept["symbol"].tolist() == table["symbol"][sorted(first)].tolist()
    assert kept.index.tolist() == list(range(300))
    assert _cohort._subset(table, None) is table


def test_donors_have_sex_batch_and_disease(rng):
    design = _cohort._design(rng, 20_000, 10, 0.4, ["a", "b"], {"a": 3.0, "b": 1.0, "c": 9.0}, "AD")
    assert design.donors["disease"].tolist() == ["Control"] * 6 + ["AD"] * 4
    assert design.donors["sex"].tolist() == list("FMFMFM") + list("FMFM")
    assert (
        design.donors["batch"].tolist()
        == ["batch1"] * 2 + ["batch2"] * 2 + ["batch1"] * 4 + ["batch2"] * 2
    )
    assert design.donors["age"].between(65, 95).all()
    numbers = np.bincount(design.donor, minlength=10)
    assert numbers.sum() == 20_000 and (np.diff(design.donor) >= 0).all()
    # Dirichlet(10, ...) shares of ten donors: variance 0.1 x 0.9 / 101 each; within donors Dirichlet(30 x share).
    seeds = [np.random.default_rng(k) for k in range(60)]
    shares = (
        np.array(
            [
                np.bincount(_cohort._design(r, 5000, 10, 0.5, ["a"], {"a": 1.0}, "AD").donor)
                for r in seeds
            ]
        )
        / 5000
    )
    assert 0.7 < shares.var() / (0.1 * 0.9 / 101) < 1.4 and shares.min() > 0
    of_a = [(design.cell_type[design.donor == d] == 0).mean() for d in range(10)]
    many = [
        np.mean(
            _cohort._design(r, 4000, 8, 0.5, ["a", "b"], {"a": 3.0, "b": 1.0}, "AD").cell_type == 0
        )
        for r in seeds
    ]
    assert abs(np.mean(many) - 0.75) < 0.02 and 0.02 < np.std(of_a) < 0.2


def test_every_donor_has_a_cell(rng):
    for n in (5, 6):
        design = _cohort._design(rng, n, 5, 0.5, ["a"], {"a": 1.0}, "AD")
        assert np.bincount(design.donor, minlength=5).min() == 1 and len(design.cell_type) == n


def test_true_effects(rng):
    profile = np.full((3, 40_000), 1.0)
    profile[:, :10_000] = 0.5e-4 - 1e-9  # just below half a count per 10,000
    profile[:, 10_000:20_000] = 0.5e-4  # from half a count on, genes may change
    quantiles = np.linspace(1.0, 2.0, 10)
    change = _cohort._fold_changes(rng, profile, 0.4, quantiles)
    assert not change[:, :10_000].any()
    assert abs((change[:, 10_000:20_000] != 0).mean() - (0.12 + 0.88 * 0.28)) < 0.02
    high = change[:, 10_000:]
    moved = high != 0
    common = (high[0] == high[1]) & (high[1] == high[2]) & moved[0]
    # Common: 0.4 x 0.3; own: 0.4 x 0.7 of what is not common.
    assert abs(common.mean() - 0.12) < 0.01 and abs(moved.mean() - (0.12 + 0.88 * 0.28)) < 0.01
    sizes = np.abs(high[moved])
    assert sizes.min() >= 1 and sizes.max() <= 2 and abs(np.mean(high[moved] > 0) - 0.5) < 0.02
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert (
            abs(
                np.quantile(sizes, level) - np.interp(level, np.linspace(0.05, 0.95, 10), quantiles)
            )
            < 0.02
        )
    assert not _cohort._fold_changes(rng, profile, 0.0, quantiles).any()


def test_donor_effects_have_mean_one_and_the_stated_correlation(rng):
    donors = pd.DataFrame({"batch": ["batch1", "batch1", "batch2", "batch2"]})
    table = pd.DataFrame({"donor_sd": np.full(60_000, 0.4)})
    header = {"donor_shared_by_types": 0.6, "donor_shared_by_batch": 0.25}
    effect = _cohort._donor_multipliers(rng, donors, table, ["a", "b"], 0.5, header)
    assert effect.shape == (4, 2, 60_000) and abs(effect.mean() - 1) < 0.005
    log = (np.log(effect) + 0.2**2 / 2) / 0.2  # factor 0.5 x sd 0.4
    assert abs(log.std() - 1) < 0.01
    r = lambda one, other: np.corrcoef(log[one], log[other])[0, 1]  # noqa: E731
    assert abs(r((0, 0), (0, 1)) - 0.6) < 0.02  # two types of a donor
    assert (
        abs(r((0, 0), (1, 0)) - 0.25) < 0.02 and abs(r((0, 0), (1, 1)) - 0.25) < 0.02
    )  # two donors of a batch
    assert abs(r((0, 0), (2, 0))) < 0.02  # of different batches
    none = _cohort._donor_multipliers(rng, donors, table, ["a"], 0.0, header)
    assert (none == 1).all()


def test_expected_expression_of_a_cell():
    donors = pd.DataFrame({"disease": ["Control", "AD", "AD"], "sex": ["F", "F", "M"]})
    table = pd.DataFrame({"symbol": ["A", "XIST"]})
    multiplier = np.arange(1.0, 13).reshape(3, 2, 2)
    profile, change = np.array([[0.1, 0.2], [0.3, 0.4]]), np.array([[1.0, 0.0], [-1.0, 2.0]])
    rate = _cohort._group_rates(profile, change, multiplier, donors, table)
    for d in range(3):
        for t in range(2):
            sick = 2 ** change[t] if d else np.ones(2)
            sex = np.array([1.0, 2.0 if d < 2 else 0.0])  # the table has the mean of both sexes
            np.testing.assert_allclose(rate[d, t], profile[t] * multiplier[d, t] * sick * sex)


def test_library_sizes_by_type(rng):
    size = np.log(
        _cohort._libraries(
            rng, np.repeat([0, 1], 20_000), ["a", "b"], {"a": [7.0, 0.5], "b": [8.0, 0.1]}
        )
    )
    first, second = size[:20_000], size[20_000:]
    np.testing.assert_allclose(
        [first.mean(), first.std(), second.mean(), second.std()], [7, 0.5, 8, 0.1], atol=0.02
    )


@pytest.mark.parametrize("lost", [0.0, 0.3])
def test_counts_are_negative_binomial(rng, lost):
    n = 30_000
    design = _cohort._Design(pd.DataFrame(), np.repeat([0, 1], n // 2), np.zeros(n, int))
    rate, library, dispersion = (
        np.array([[[0.2, 2.0, 0.0]], [[0.4, 8.0, 1.0]]]),
        np.full(n, 1.5),
        np.array([0.5, 2.0, 1.0]),
    )
    counts = _cohort._counts(rng, rate, design, library, dispersion, lost).toarray()
    assert counts.dtype == np.int32 and not counts[: n // 2, 2].any()
    for d in (0, 1):
        for g in range(3):
            if (mean := 1.5 * rate[d, 0, g]) == 0:
                continue
            size = 1 / dispersion[g]
            expected = stats.nbinom(size, size / (size + mean)).pmf(np.arange(6)) * (1 - lost)
            expected[0] += lost
            seen = counts[d * n // 2 : (d + 1) * n // 2, g]
            found = np.array([(seen == k).mean() for k in range(6)])
            np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.25 / (n / 2)))


def test_metadata_of_cells_and_genes():
    adata = brain_cohort(
        120,
        n_donors=4,
        n_genes=400,
        disease_fraction=0.25,
        effect=1.5,
        donor_effect=0.5,
        dropout=0.1,
        keep_rates=True,
        cell_types=["Microglia", "Astrocyte"],
        seed=5,
    )
    dense = adata.X.toarray()
    obs = adata.obs
    assert obs["donor"].cat.categories.tolist() == ["D01", "D02", "D03", "D04"]
    assert obs["disease"].cat.categories.tolist() == ["Control", "AD"]
    assert set(obs["donor"][obs["disease"] == "AD"]) == {"D04"} and obs[
        "cell_type"
    ].cat.categories.tolist() == ["Astrocyte", "Microglia"]
    assert (
        obs["n_umi"].tolist() == dense.sum(axis=1).tolist()
        and obs["n_genes"].tolist() == (dense > 0).sum(axis=1).tolist()
    )
    mt = adata.var_names.str.startswith("MT-")
    np.testing.assert_allclose(
        obs["percent_mt"], 100 * dense[:, mt].sum(axis=1) / dense.sum(axis=1)
    )
    assert (
        obs["percent_mt"].max() > 0
        and adata.obs_names[0] == "D01_000000"
        and adata.obs_names[-1] == "D04_000119"
    )
    table, _ = _cohort.cohort_parameters()
    whole = table.set_index("symbol").loc[adata.var_names]
    np.testing.assert_allclose(adata.varm["profile"], whole[["Astrocyte", "Microglia"]])
    assert adata.varm["true_log2fc"].columns.tolist() == ["Astrocyte", "Microglia"] and adata.var[
        "dispersion"
    ].equals(whole["dispersion"])
    parameters = {
        k: adata.uns["cohort"][k]
        for k in ("simulated", "seed", "n_donors", "effect", "donor_effect", "dropout")
    }
    assert parameters == dict(
        simulated=True, seed=5, n_donors=4, effect=1.5, donor_effect=0.5, dropout=0.1
    )
    assert (
        abs(dense.sum() / adata.layers["rate"].sum() - 1) < 0.1
    )  # expected counts minus those lost to zero inflation
    same = brain_cohort(
        120,
        n_donors=4,
        n_genes=300,
        disease_fraction=0.25,
        cell_types=["Microglia", "Astrocyte"],
        seed=5,
    )
    assert same.obs[["cell_type", "donor", "age"]].equals(
        obs[["cell_type", "donor", "age"]]
    )  # the donors do not depend on the genes
