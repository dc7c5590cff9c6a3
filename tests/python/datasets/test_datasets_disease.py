"""The semi-synthetic cohort: published changes, donors of real controls, ambient RNA and depth as confounders."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest

from scmamba.datasets import CELL_TYPES, brain_cohort
from scmamba.datasets._disease import disease_parameters
from scmamba.utils.errors import DataError, OptionError

SMALL = {"n_cells": 400, "n_donors": 4, "n_genes": 2000, "seed": 3}


def digest(adata) -> str:
    parts = (adata.X.data.tobytes(), adata.X.indices.tobytes(), adata.obs.to_csv().encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_without_a_disease_the_cohort_is_the_former_one():
    """Recorded before there was ``disease``."""
    assert digest(brain_cohort(300, n_genes=500, seed=3)) == FORMER
    with_one = brain_cohort(300, n_genes=500, disease="AD", seed=3)
    assert digest(with_one) != FORMER


FORMER = "da48404827b3b220a2282a3442cf404b0383aeb6d049c708a8f00b1d189113e5"


def test_changes_of_alzheimers_disease_are_those_of_the_table():
    adata = brain_cohort(**SMALL, disease="AD")
    table, _ = disease_parameters()
    assert adata.obs["disease"].cat.categories.tolist() == ["Control", "AD"]
    truth = adata.varm["true_log2fc"]
    for name in CELL_TYPES:
        if f"AD_{name}" in table:
            published = table.loc[adata.var_names, f"AD_{name}"].fillna(0.0)
            np.testing.assert_allclose(truth[name], published, atol=1e-12)
            assert (truth[name] != 0).sum() > 10
        else:
            assert name in ("Endothelial", "Pericyte") and not truth[name].any()
    half = brain_cohort(**SMALL, disease="AD", effect=0.5).varm["true_log2fc"]
    np.testing.assert_allclose(half, truth / 2)
    assert truth.loc["LINGO1", "Excitatory"] > 0.3  # the paper's most consistent gene


def test_changes_of_parkinsons_disease_have_the_published_numbers_and_sizes():
    adata = brain_cohort(50, n_donors=2, disease="PD", seed=1)
    assert adata.obs["disease"].cat.categories.tolist() == ["Control", "PD"]
    truth, profile = adata.varm["true_log2fc"], adata.varm["profile"]
    for name, known in disease_parameters()[1]["PD"].items():
        expressed = profile[name] >= 0.5
        changed = truth[name][expressed & (truth[name] != 0)]
        assert not truth[name][~expressed].any()
        n = int(expressed.sum())
        error = np.sqrt(known["share"] * (1 - known["share"]) / n)
        assert abs(len(changed) / n - known["share"]) < 4 * error
        assert abs((changed > 0).mean() - known["up"]) < 4 * np.sqrt(0.25 / len(changed))
        assert changed.abs().median() == pytest.approx(np.median(known["quantiles"]), rel=0.35)


def test_own_changes():
    one = pd.DataFrame({"Microglia": [1.5, np.nan], "OPC": [0, -1.0]}, index=["APOE", "MBP"])
    adata = brain_cohort(**SMALL, disease="PD", effects=one)
    truth = adata.varm["true_log2fc"]
    assert truth.loc["APOE", "Microglia"] == 1.5 and truth.loc["MBP", "OPC"] == -1
    assert np.count_nonzero(truth) == 2
    ids = one.rename(index=adata.var["ensembl_id"].to_dict())
    again = brain_cohort(**SMALL, disease="PD", effects=ids)
    pd.testing.assert_frame_equal(again.varm["true_log2fc"], truth)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"disease": "ALS"}, OptionError, "'AD', 'PD'"),
        ({"ambient": 0.95}, OptionError, "ambient is 0.95"),
        ({"ambient_ratio": -1}, OptionError, "from 0 to 10"),
        ({"depth_ratio": 0}, OptionError, "depth_ratio is 0"),
        ({"effects": pd.DataFrame({"OPC": [1.0]}, ["MBP"])}, DataError, "name it with disease="),
        ({"disease": "AD", "effects": [1]}, DataError, "effects is list"),
        ({"disease": "AD", "effects": pd.DataFrame({"Neuron": [1.0]})}, DataError, "Neuron"),
        ({"disease": "AD", "effects": pd.DataFrame({"OPC": ["x"]}, ["MBP"])}, DataError, "not num"),
        ({"disease": "AD", "effects": pd.DataFrame({"OPC": [99.0]}, ["MBP"])}, DataError, "15"),
        ({"disease": "AD", "effects": pd.DataFrame({"OPC": [1.0]}, ["no"])}, DataError, "None of"),
        (
            {"disease": "AD", "effects": pd.DataFrame({"OPC": [1.0, 2]}, ["MBP", "MBP"])},
            DataError,
            "twice.*MBP",
        ),
    ],
)
def test_impossible_diseases_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        brain_cohort(**SMALL, **options)


def test_ambient_rna_is_the_average_of_the_donor():
    """Of a gene that one type alone expresses, other types show the ambient share times the donor's average."""
    plain = brain_cohort(4000, n_donors=4, n_genes=2000, effect=0, seed=2, keep_rates=True)
    mixed = brain_cohort(
        4000, n_donors=4, n_genes=2000, effect=0, seed=2, keep_rates=True, ambient=0.3
    )
    share = mixed.obs.groupby("donor", observed=True)["ambient"].first()
    assert share.between(0.1, 0.7).all() and share.nunique() == 4
    own = np.asarray(plain.layers["rate"])
    sums = own.sum(axis=1)
    lower = np.asarray(mixed.layers["rate"]).sum(axis=1) / sums
    np.testing.assert_allclose(lower, 1 - mixed.obs["ambient"], rtol=1e-4)
    neurons = (mixed.obs["cell_type"] == "Excitatory").to_numpy()
    for donor, part in share.items():
        mine = (mixed.obs["donor"] == donor).to_numpy()
        gene = mixed.var_names.get_loc("PLP1")
        average = own[mine, gene].sum() / sums[mine].sum()
        here = mine & neurons
        seen = mixed.X[here][:, [gene]].sum() / sums[here].sum()
        rate = own[here, gene].sum() / sums[here].sum()
        assert seen == pytest.approx((1 - part) * rate + part * average, rel=0.35)
        assert seen > 2.5 * rate


def test_confounders_affect_patients_only():
    options = {"n_cells": 1500, "n_donors": 6, "n_genes": 2000, "effect": 0, "seed": 4}
    plain = brain_cohort(**options)
    shallow = brain_cohort(**options, depth_ratio=0.5)
    sick = (plain.obs["disease"] == "AD").to_numpy()
    ratio = shallow.obs["n_umi"].to_numpy() / plain.obs["n_umi"].to_numpy()
    assert np.median(ratio[sick]) == pytest.approx(0.5, abs=0.05)
    assert np.median(ratio[~sick]) == pytest.approx(1, abs=0.05)
    dirty = brain_cohort(**options, ambient=0.1, ambient_ratio=4)
    mean = dirty.obs.groupby("disease", observed=True)["ambient"].mean()
    assert mean["AD"] / mean["Control"] == pytest.approx(4, rel=0.5)


def test_donors_vary_as_real_controls_do():
    table, _ = disease_parameters()
    adata = brain_cohort(**SMALL, disease="AD")
    np.testing.assert_allclose(adata.var["donor_sd"], table.loc[adata.var_names, "donor_sd"])
    assert table["donor_sd"].between(0, 1.3).all() and 0.05 < table["donor_sd"].median() < 0.6
