"""The simulated cohort keeps the marginals of its fit, and its ground truth can be recovered."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats as st

from scmamba.datasets import CELL_TYPES, brain_cohort
from scmamba.utils.errors import DataError


def digest(adata):
    parts = (adata.X.data.tobytes(), adata.X.indices.tobytes(), adata.obs.to_csv().encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def log_cp10k(adata):
    x = adata.X.astype(float)
    total = np.asarray(x.sum(axis=1)).ravel()
    return np.log1p(x.multiply(1e4 / total[:, None]).toarray())


@pytest.fixture(scope="module")
def cohort():
    return brain_cohort(2000, seed=0)


@pytest.fixture(scope="module")
def plain():
    """No donor effects and no disease: only profile, library size and dispersion remain."""
    return brain_cohort(
        4000, donor_effect=0, effect=0, cell_types=["Oligodendrocyte"], n_genes=2000, seed=1
    )


def test_shape_and_labels(cohort):
    assert (
        cohort.shape == (2000, 10_000)
        and cohort.X.dtype == np.int32
        and cohort.X.has_sorted_indices
    )
    assert list(cohort.obs["cell_type"].cat.categories) == list(CELL_TYPES)
    assert set(cohort.obs["cell_type"]) == set(CELL_TYPES)
    assert (
        cohort.obs["donor"].nunique() == 8
        and cohort.obs_names.is_unique
        and cohort.var_names.is_unique
    )
    assert cohort.obs.groupby("donor", observed=True)["disease"].nunique().max() == 1
    assert set(zip(cohort.obs["disease"], cohort.obs["sex"])) == {
        ("AD", "F"),
        ("AD", "M"),
        ("Control", "F"),
        ("Control", "M"),
    }
    np.testing.assert_array_equal(cohort.obs["n_umi"], np.asarray(cohort.X.sum(axis=1)).ravel())
    assert (
        cohort.var["ensembl_id"].str.fullmatch(r"ENSG\d{11}").all()
        and cohort.var["ensembl_id"].is_unique
    )
    assert cohort.X.data.min() >= 1


def test_genes_are_in_the_published_vocabulary(cohort, reference):
    vocabulary = reference.genes["vocabulary"].set_index("ensembl_id")["symbol"]
    np.testing.assert_array_equal(
        vocabulary[cohort.var["ensembl_id"]].to_numpy(), cohort.var_names.to_numpy()
    )
    assert cohort.n_vars / len(vocabulary) > 0.3


def test_same_seed_same_cohort(cohort):
    assert digest(brain_cohort(300, seed=3)) == digest(brain_cohort(300, seed=3))
    assert digest(brain_cohort(300, seed=3)) != digest(brain_cohort(300, seed=4))


def test_mean_profile_is_that_of_the_table(plain):
    """Each gene's total is within 5 standard errors of the negative binomial's; few are beyond 3."""
    library = plain.X.sum() / (plain.varm["profile"].to_numpy().sum() / 1e4)
    expected = plain.varm["profile"]["Oligodendrocyte"].to_numpy() / 1e4 * library
    found = np.asarray(plain.X.sum(axis=0)).ravel()
    # Var = m + a m^2 E[L^2] / (n E[L]^2); E[L^2]/E[L]^2 = exp(sdlog^2), about 1.41 for this type.
    error = np.sqrt(expected + plain.var["dispersion"] * expected**2 * 1.42 / plain.n_obs)
    z = ((found - expected) / np.maximum(error, 1)).to_numpy()
    z = z[plain.var_names != "XIST"]  # depends on the donor's sex
    assert np.abs(z).max() < 5.5 and np.mean(np.abs(z) > 3) < 0.01


def test_zeros_follow_the_negative_binomial(plain):
    """Against scipy's nbinom with a log-normal library: share of zeros per gene."""
    rng = np.random.default_rng(0)
    library = np.exp(rng.normal(7.4936, 0.5871, 4000))  # the table's header for oligodendrocytes
    rate = plain.varm["profile"]["Oligodendrocyte"].to_numpy() / 1e4
    zeros = 1 - np.asarray((plain.X > 0).mean(axis=0)).ravel()
    for gene in np.argsort(-rate)[5:1500:97]:
        size = 1 / plain.var["dispersion"].iloc[gene]
        mean = library * rate[gene]
        expected = st.nbinom.pmf(0, size, size / (size + mean)).mean()
        assert abs(zeros[gene] - expected) < 0.03


def test_library_sizes(plain):
    total = np.log(plain.obs["n_umi"])
    kept = plain.varm["profile"].to_numpy().sum() / 1e4
    assert abs(total.median() - np.log(kept) - 7.4936) < 0.06
    assert 0.55 < total.std() < 0.7


def test_profiles_are_near_the_real_nuclei(cohort, reference):
    real = reference.genes["type_totals"].set_index("gene")
    real = real[real.index.isin(cohort.var_names)]
    for name in ("Astrocyte", "Microglia", "Endothelial"):
        counts = real[name.lower()].to_numpy()
        simulated = cohort.varm["profile"][name].reindex(real.index)
        r = np.corrcoef(np.log1p(1e4 * counts / counts.sum()), np.log1p(simulated))[0, 1]
        assert r > 0.94  # the profiles are averages over several studies


def test_types_are_separable(cohort):
    """A nearest-profile classifier fitted to donors 1-4 annotates donors 5-8."""
    logs = log_cp10k(cohort)
    train = cohort.obs["donor"].isin(["D01", "D02", "D05", "D06"]).to_numpy()
    types = cohort.obs["cell_type"].to_numpy()
    centres = np.array([logs[train & (types == name)].mean(axis=0) for name in CELL_TYPES])
    use = np.argsort(-centres.var(axis=0))[:500]
    score = np.corrcoef(logs[~train][:, use], centres[:, use])[: (~train).sum(), (~train).sum() :]
    assert (np.array(CELL_TYPES)[score.argmax(axis=1)] == types[~train]).mean() > 0.95


def pseudobulk_t(adata, cell_type):
    mine = adata[adata.obs["cell_type"] == cell_type]
    sums = np.array(
        [
            np.asarray(mine[mine.obs["donor"] == d].X.sum(axis=0)).ravel()
            for d in mine.obs["donor"].cat.categories
        ]
    )
    sick = adata.obs.groupby("donor", observed=True)["disease"].first().eq("AD").to_numpy()
    logs = np.log2((sums + 0.5) / sums.sum(axis=1, keepdims=True) * 1e4)
    return st.ttest_ind(logs[sick], logs[~sick]), logs[sick].mean(axis=0) - logs[~sick].mean(axis=0)


def test_true_genes_are_found_by_donor_tests():
    adata = brain_cohort(6000, n_donors=16, cell_types=["Excitatory"], seed=2)
    test, estimate = pseudobulk_t(adata, "Excitatory")
    truth = adata.varm["true_log2fc"]["Excitatory"].to_numpy()
    high = adata.varm["profile"]["Excitatory"].to_numpy() > 1
    changed = high & (truth != 0)
    assert np.corrcoef(truth[changed], estimate[changed])[0, 1] > 0.8
    rank = st.mannwhitneyu(
        test.pvalue[changed], test.pvalue[high & (truth == 0)], alternative="less"
    )
    assert 1 - rank.statistic / (changed.sum() * (high & (truth == 0)).sum()) > 0.8


def test_cells_of_a_donor_are_not_independent():
    """Without a disease effect a test over cells has too many false positives, a test over donors does not."""
    adata = brain_cohort(3000, effect=0, cell_types=["Excitatory"], n_genes=2000, seed=5)
    assert not adata.varm["true_log2fc"].to_numpy().any()
    high = adata.varm["profile"]["Excitatory"].to_numpy() > 2
    logs = log_cp10k(adata[:, high])
    sick = (adata.obs["disease"] == "AD").to_numpy()
    by_cell = st.ttest_ind(logs[sick], logs[~sick]).pvalue
    by_donor = pseudobulk_t(adata, "Excitatory")[0].pvalue[high]
    assert np.mean(by_cell < 0.05) > 0.12 > 0.09 > np.mean(by_donor < 0.05)


def test_rates_are_the_ground_truth():
    adata = brain_cohort(3000, n_genes=500, keep_rates=True, dropout=0.3, seed=1)
    rate = adata.layers["rate"]
    assert rate.shape == adata.shape and rate.dtype == np.float32
    assert abs(adata.X.sum() / rate.sum() - 1) < 0.05
    full = brain_cohort(400, seed=1)
    assert full[(full.obs["sex"] == "M").to_numpy(), "XIST"].X.sum() == 0 < full[:, "XIST"].X.sum()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n_cells": 3}, "n_donors"),
        ({"n_cells": 100, "n_donors": 1}, "at least 2 donors"),
        ({"n_cells": 10.5}, "whole number"),
        ({"n_cells": 100, "n_genes": 50}, "between 200 and"),
        ({"n_cells": 100, "disease_fraction": 1.5}, "between 0 and 1"),
        ({"n_cells": 100, "cell_types": ["Neuron"]}, "choose among"),
        ({"n_cells": 100, "cell_types": []}, "choose among"),
        ({"n_cells": 100, "dropout": 1.0}, "dropout"),
    ],
)
def test_impossible_sizes_are_refused(arguments, words):
    with pytest.raises(DataError, match=words):
        brain_cohort(**arguments)


def test_command_line_writes_a_complete_file(tmp_path):
    import anndata as ad

    command = [sys.executable, "-m", "scmamba", "cohort"]
    target = tmp_path / "out.h5ad"
    run = subprocess.run(
        [*command, str(target), "--cells", "100", "--seed", "3"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert ad.read_h5ad(target).shape == (100, 10_000)
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5ad"]
    bad = subprocess.run(
        [*command, str(target), "--cells", "1"],
        capture_output=True,
        text=True,
    )
    assert bad.returncode == 1 and "n_donors" in bad.stderr and "Traceback" not in bad.stderr
