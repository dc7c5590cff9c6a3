"""Meta-analysis against statsmodels, gene sets against limma's cameraPR."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.meta_analysis import combine_effects

from scmamba.datasets import brain_cohort
from scmamba.deg import compare, gene_set_test, meta_analysis, read_gmt, replication
from scmamba.deg.gene_sets import FAMILIES, SHIPPED, shipped_sets
from scmamba.utils.errors import DataError, OptionError


@pytest.fixture()
def studies() -> dict[str, pd.DataFrame]:
    """Four studies of 40 genes; genes 0-9 differ, 10-14 differ between the studies; study D lacks genes 0-4."""
    rng = np.random.default_rng(0)
    truth = np.r_[np.full(10, 1.0), np.zeros(30)]
    out = {}
    for i, name in enumerate("ABCD"):
        se = rng.uniform(0.1, 0.5, 40)
        change = truth + rng.normal(0, 1, 40) * se
        change[10:15] += (-1) ** i * 2
        table = pd.DataFrame({"gene": [f"g{j}" for j in range(40)], "log2FC": change, "lfc_se": se})
        table["p_val"] = np.exp(-((change / se) ** 2) / 2)
        table["p_val_adj"] = np.minimum(table["p_val"] * 3, 1)
        out[name] = table.iloc[5:] if name == "D" else table
    return out


def test_the_numbers_of_statsmodels(studies):
    found = meta_analysis(studies)
    assert len(found) == 40 and found.loc["g0", "studies"] == 3
    by = [t.set_index("gene") for t in studies.values()]
    for gene in found.index:
        used = [t.loc[gene] for t in by if gene in t.index]
        b, se = (np.array([t[c] for t in used]) for c in ("log2FC", "lfc_se"))
        truth = combine_effects(b, se**2, method_re="dl", use_t=True)
        row = found.loc[gene]
        assert row["log2FC_fixed"] == pytest.approx(truth.mean_effect_fe, rel=1e-10)
        assert row["se_fixed"] == pytest.approx(truth.sd_eff_w_fe, rel=1e-10)
        assert row["tau2"] == pytest.approx(max(truth.tau2, 0), abs=1e-10)
        assert row["Q"] == pytest.approx(truth.q, rel=1e-10)
        assert row["I2"] == pytest.approx(max(truth.i2, 0), abs=1e-10)
        if truth.tau2 <= 0:  # statsmodels continues with a negative variance; here it is zero
            assert row["log2FC_random"] == pytest.approx(row["log2FC_fixed"], rel=1e-10)
            assert row["se_random"] == pytest.approx(row["se_fixed"], rel=1e-10)
            continue
        assert row["log2FC_random"] == pytest.approx(truth.mean_effect_re, rel=1e-10)
        # Hartung-Knapp, but never narrower than the interval without the correction
        expected = max(truth.sd_eff_w_re_hksj, truth.sd_eff_w_re)
        assert row["se_random"] == pytest.approx(expected, rel=1e-10)
        low, high = row["log2FC_random"] - row["ci_low"], row["ci_high"] - row["log2FC_random"]
        assert low == pytest.approx(high) and low > 2 * row["se_random"]


def test_replicated_genes_are_found(studies):
    found = meta_analysis(studies)
    assert (found.loc[[f"g{i}" for i in range(5, 10)], "p_fixed_adj"] < 0.05).all()
    odd = found.loc[[f"g{i}" for i in range(10, 15)]]
    assert (odd["p_heterogeneity"] < 1e-4).all() and (odd["p_random"] > 0.05).all()
    assert (odd["I2"] > 0.8).all() and (odd["same_direction"] < odd["studies"]).all()
    assert len(meta_analysis(studies, min_studies=4)) == 35


def test_replication_counts_genes(studies):
    table = replication(studies)
    assert len(table) == 12
    row = table[(table["study"] == "A") & (table["other"] == "D")].iloc[0]
    a, d = (studies[n].set_index("gene") for n in "AD")
    called = [g for g in a.index if a.loc[g, "p_val_adj"] < 0.05 and g in d.index]
    same = [g for g in called if a.loc[g, "log2FC"] * d.loc[g, "log2FC"] > 0]
    assert row["called"] == len(called) > len(same) == row["same_direction"]
    assert row["replicated"] == sum(d.loc[g, "p_val"] < 0.05 for g in same)
    assert row["called_in_both"] == sum(d.loc[g, "p_val_adj"] < 0.05 for g in same)


def test_studies_that_cannot_be_combined(studies):
    with pytest.raises(DataError, match="two studies or more; 1"):
        meta_analysis({"A": studies["A"]})
    with pytest.raises(DataError, match="'B' has no column 'lfc_se'"):
        meta_analysis(studies | {"B": studies["B"].drop(columns="lfc_se")})
    with pytest.raises(DataError, match="'B' has the gene 'g0' in two rows"):
        meta_analysis(studies | {"B": pd.concat([studies["B"], studies["B"].head(1)])})
    other = studies["B"].assign(gene=lambda t: "x" + t["gene"])
    with pytest.raises(DataError, match="No gene was tested in enough"):
        meta_analysis({"A": studies["A"], "B": other})


# Printed by limma 3.54.1's cameraPR (R 4.2.2) for these statistics, sets 1-8, 20-40 and 55-60.
Z = [
    *(0.1591, 2.3844, -0.2555, 1.0701, 2.7114, 0.3971, 0.5278, 0.3646, -0.2858, 0.1381, 1.2276),
    *(-0.8018, -1.0804, -0.1575, -1.0718, -0.139, -0.5973, -2.184, 0.2408, -0.2594, 0.9005, 0.9419),
    *(1.468, 0.7068, 0.819, -0.2935, 1.4186, 1.4988, -0.6571, -0.8528, 0.3159, 1.1097, 2.2155),
    *(1.2171, 1.4792, 0.9516, -1.0095, -2.0005, -1.7622, -0.1426, 1.5501, -0.8024, -0.0746, 1.8957),
    *(-0.4566, 0.5622, -0.887, -0.4602, -0.7243, -0.0692, 1.4632, 0.1877, 1.022, -0.5918, -0.1122),
    *(-0.925, 0.7533, -0.1126, -0.0641, 0.2333),
]
CAMERA = {
    0.01: {"a": 0.0474529810037538, "b": 0.4032295626904221, "c": 0.5423546317809701},
    0.1: {"a": 0.105271423627805, "b": 0.557345621902444, "c": 0.604841301930492},
}


@pytest.mark.parametrize("correlation", CAMERA)
def test_camera(correlation, tmp_path):
    genes = [f"g{i}" for i in range(1, 61)]
    sets = {"a": genes[:8], "b": genes[19:40], "c": genes[54:60], "few": genes[:3]}
    found = gene_set_test(pd.Series(Z, genes), sets, correlation=correlation)
    assert found["p_val"].to_dict() == pytest.approx(CAMERA[correlation], rel=1e-9)
    assert found["direction"].to_dict() == {"a": "up", "b": "up", "c": "down"}
    file = tmp_path / "sets.gmt"
    file.write_text("".join(f"{n}\tabout\t" + "\t".join(g) + "\n" for n, g in sets.items()))
    assert read_gmt(file) == sets
    pd.testing.assert_frame_equal(
        gene_set_test(pd.Series(Z, genes), file, correlation=correlation), found
    )


def test_formats_of_gene_tables_and_invalid_ones(tmp_path):
    rng = np.random.default_rng(1)
    z = rng.normal(size=300)
    z[:30] -= 1.5
    from scipy.stats import norm

    table = pd.DataFrame(
        {"gene": [f"g{i}" for i in range(300)], "log2FC": z / 3, "p_val": 2 * norm.sf(np.abs(z))}
    )
    sets = {"down": table["gene"][:30], "rest": table["gene"][100:150]}
    found = gene_set_test(table, sets)
    truth = gene_set_test(pd.Series(z, table["gene"]), sets)
    np.testing.assert_allclose(found["t"], truth["t"], rtol=1e-9)
    assert found.index[0] == "down" and found["direction"].iloc[0] == "down"
    with pytest.raises(DataError, match="'g0' is in two rows"):
        gene_set_test(pd.concat([table, table]), sets)
    with pytest.raises(DataError, match="None of the 1 sets has 5"):
        gene_set_test(table, {"mouse": ["Apoe", "Clu"]})
    with pytest.raises(DataError, match="no column 'p_val'"):
        gene_set_test(table.drop(columns="p_val"), sets)
    with pytest.raises(OptionError, match="correlation is 1"):
        gene_set_test(table, sets, correlation=1)
    with pytest.raises(DataError, match="no file"):
        gene_set_test(table, "sets.gmt")
    (tmp_path / "bad.gmt").write_text("set\tonly\n")
    with pytest.raises(DataError, match="Line 1 of"):
        read_gmt(tmp_path / "bad.gmt")


def test_genes_may_be_the_index(studies):
    by_index = {name: table.set_index("gene") for name, table in studies.items()}
    pd.testing.assert_frame_equal(meta_analysis(by_index), meta_analysis(studies))


def test_shipped_sets_find_what_was_put_in():
    cohort = brain_cohort(
        n_cells=3000,
        n_donors=20,
        n_genes=1500,
        cell_types=["Oligodendrocyte"],
        disease="AD",
        seed=3,
    )
    table = compare(cohort, "disease", "donor", verbose=False).table
    found = gene_set_test(table, "alzheimer")
    assert found.loc["AD up, Oligodendrocyte", ["direction"]].item() == "up"
    assert found.loc["AD down, Oligodendrocyte", ["direction"]].item() == "down"
    assert set(found.index[:2]) == {"AD up, Oligodendrocyte", "AD down, Oligodendrocyte"}


def test_families_are_matched_by_symbol():
    symbols = [
        "HSPA1A",
        "HSPD1",
        "RPL7",
        "RPS27L",
        "RPLP0",
        "MT-ND1",
        "MT1X",
        "MTOR",
        "C3",
        "CLU",
        "H2AC6",
        "UTY",
    ]
    found = shipped_sets("families", symbols)
    assert set(found) == set(FAMILIES)
    assert found["heat shock proteins"] == ["HSPA1A", "HSPD1"]
    assert found["mitochondrial genome"] == ["MT-ND1"] and found["metallothioneins"] == ["MT1X"]
    assert found["cytosolic ribosome"] == ["RPL7", "RPS27L", "RPLP0"]
    assert found["complement"] == ["C3", "CLU"] and found["Y chromosome"] == ["UTY"]
    markers = shipped_sets("cell-types", [])
    assert "MBP" in markers["Oligodendrocyte"] and len(markers) == 8
    assert all(sum(map(len, shipped_sets(n, symbols).values())) > 8 for n in SHIPPED)
    with pytest.raises(OptionError, match="'alzheimer'"):
        gene_set_test(pd.Series(Z, [f"g{i}" for i in range(len(Z))]), "hallmark")
