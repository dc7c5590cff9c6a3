"""zlm and find_markers against the output of MAST 1.32.0 and of Seurat 4.3.0 and 5.1.0."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from reference_numbers import MastSet, Reference

from scmamba.deg import find_markers, zlm
from scmamba.deg.hurdle import ZlmFit
from scmamba.deg.markers import markers_of, rules_for
from scmamba.deg.twogroup import group_sums, hurdle_test
from scmamba.deg.values import Source

TERMS = {"group": "groupB", "interaction": "groupB:age"}
# Zero residual variance without a prior: MAST's own values are rounding errors (README of the reference).
NOISE = ["e025", "e026", "e027", "e040"]


def _runs(reference: Reference) -> list[tuple[pd.Series, MastSet]]:
    table = reference.runs.table("hyperparameters")
    return [(row, reference.mast(row["dataset"])) for _, row in table.iterrows()]


def _data(data: MastSet) -> tuple[sp.csr_matrix, pd.DataFrame, pd.Index]:
    return data.values, data.table("cells"), pd.Index(data.table("genes").iloc[:, 0])


def _fit(row: pd.Series, data: MastSet, *, own_prior: bool) -> ZlmFit:
    values, cells, genes = _data(data)
    prior = None if own_prior else (row["priorVar"], row["priorDOF"])
    return zlm(
        values,
        row["formula"],
        cells,
        method=row["method"],
        ebayes=bool(row["ebayes"]),
        genes=genes,
        prior=prior,
    )


def _lrt_tables(row: pd.Series, data: MastSet) -> list[tuple[str, pd.DataFrame]]:
    head = f"mast_{row['config']}_lrt_"
    return [
        (name[len(head) :], data.table(name).set_index("gene")) for name in data.names(f"{head}*")
    ]


def _off(got: pd.Series, truth: pd.Series) -> float:
    """Largest difference, relative above 1; missing values must be missing in both."""
    a, b = got.astype(float), truth.astype(float)
    assert (a.isna() == b.isna()).all(), truth.name
    return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())


def test_every_lrt_table_given_masts_prior(reference):
    tables = 0
    for row, data in _runs(reference):
        fit = _fit(row, data, own_prior=False)
        skip = NOISE if row["dataset"] == "simE_edge" and not row["ebayes"] else []
        for test, truth in _lrt_tables(row, data):
            tables += 1
            truth = truth.drop(skip, errors="ignore")
            got = fit.lrt(TERMS.get(test, test)).loc[truth.index]
            where = f"{row['dataset']} {row['config']} {test}"
            for part in "CDH":
                assert (got[f"df_{part}"] == truth[f"df_{part}"]).all(), where
                assert np.abs(got[f"lambda_{part}"] - truth[f"lambda_{part}"]).max() < 1e-9, where
            sure = truth["lambda_H"] > 1e-8  # below, p is 1 up to the square root of rounding
            assert (np.abs(got["p_H"] / truth["p_H"] - 1)[sure]).max() < 1e-8, where
            assert np.abs(got["p_H"] - truth["p_H"])[~sure].max() < 1e-6 or sure.all(), where
            for column in ("converged0_C", "converged0_D"):
                assert (got[column] == truth[column]).all(), where
            for column in ("dfresid0_C", "dfresid0_D", "deviance0_D", "loglik1_D", "loglik0_D"):
                assert _off(got[column], truth[column]) < 1e-8, where
            for column in [
                c for c in truth if c.startswith(("coef", "ci_", "logFC", "varLog", "z_"))
            ]:
                # Where the plain GLM separates, limits are +-1e5 and carry the rounding of a singular matrix.
                assert _off(got[column], truth[column]) < (
                    1e-5 if row["method"] == "glm" else 1e-8
                ), (
                    where,
                    column,
                )
    names = {row["dataset"] for row, _ in _runs(reference)}
    assert tables == sum(len(reference.mast(name).names("mast_*_lrt_*")) for name in names) == 40


def test_every_fit_table(reference):
    for row, data in _runs(reference):
        truth = data.table(f"mast_{row['config']}_fit").set_index("gene")
        got = _fit(row, data, own_prior=False).fit_table()
        skip = (
            [*NOISE, "e037", "e038", "e039"]
            if row["dataset"] == "simE_edge" and not row["ebayes"]
            else []
        )
        for column in got:
            a, b = (
                got[column].drop(skip, errors="ignore"),
                truth[column].drop(skip, errors="ignore"),
            )
            if b.dtype == bool:
                assert (a == b).all(), (row["dataset"], row["config"], column)
            else:
                assert _off(a, b) < (1e-5 if row["method"] == "glm" else 1e-9), (
                    row["dataset"],
                    row["config"],
                    column,
                )


def test_own_prior_is_close_to_masts(reference):
    for row, data in _runs(reference):
        if not row["ebayes"]:
            continue
        fit = _fit(row, data, own_prior=True)
        assert fit.prior.n_genes == row["n_genes_used"]
        assert fit.prior.variance == pytest.approx(row["priorVar"], rel=1e-4)
        for test, truth in _lrt_tables(row, data):
            off = np.abs(fit.lrt(TERMS.get(test, test)).loc[truth.index, "p_H"] / truth["p_H"] - 1)
            sure = truth["lambda_H"] > 1e-8
            assert off[sure].max() < 5e-3 and off[sure].median() < 1e-5


def _call(name: str, folder: str) -> dict:
    options: dict = {"seurat": name[1], "only_pos": "onlypos" in name}
    if name.endswith("025"):
        options["logfc_threshold"] = 0.25
    if "nofilter" in name:
        options |= {"min_pct": 0, "logfc_threshold": 0}
    if "nonormcommand" in name:
        options["fold_change"] = "log"
    if "latent" in name:
        options["covariates"] = ["cdr"] if "pbmc" in folder else ["cngeneson", "batch"]
    return options


def test_every_seurat_table(reference):
    runs = reference.runs.table("seurat_runs")
    assert (
        len(runs)
        == sum(len(reference.mast(name).names("seurat_*")) for name in set(runs["dataset"]))
        == 31
    )
    for _, run in runs.iterrows():
        data = reference.mast(run["dataset"])
        values, cells, genes = _data(data)
        adata = ad.AnnData(values, obs=cells.set_index("cell"), var=pd.DataFrame(index=genes))
        got = find_markers(adata, "group", "B", "A", **_call(run["call"], run["dataset"]))
        truth = data.table(f"seurat_{run['call']}").set_index("gene")
        where = f"{run['dataset']} {run['call']}"
        assert set(got.index) == set(truth.index), where
        mine = got.loc[truth.index]
        assert np.abs(mine["avg_log2FC"] - truth["avg_log2FC"]).max() < 1e-12, where
        assert (mine[["pct.1", "pct.2"]] == truth[["pct.1", "pct.2"]]).all(axis=None), where
        sure = truth["p_val"] < 0.9999
        for column in ("p_val", "p_val_adj"):
            assert np.abs(mine[column] / truth[column] - 1)[sure].max() < 1e-8, where
        assert (np.minimum(1, mine["p_val"] * run["genes_in_object"]) == mine["p_val_adj"]).all()
        # Seurat's order, up to p-values that differ by rounding only
        assert (
            np.diff(truth.loc[got.index, "p_val"]) >= -1e-6 * got["p_val"].to_numpy()[1:] - 1e-15
        ).all(), where


def test_sums_give_the_same_test_as_the_model(reference):
    """The closed form from sums against the general fit on the same genes, without going through R."""
    values, cells, genes = _data(reference.mast("simE_edge"))
    fit = zlm(values, "~ group", cells, genes=genes)
    truth = fit.lrt("groupB")
    (a, b), centre = group_sums(values, (cells["group"] == "B").to_numpy().astype(int), 2)
    test = hurdle_test(a, b, fit.prior, centre)
    assert (test.df == truth["df_H"]).all()
    regular = ~np.isin(genes, [*NOISE, "e030"])
    assert np.abs(test.statistic - truth["lambda_H"])[regular].max() < 1e-9
    np.testing.assert_allclose(np.exp(test.log_p), test.p, rtol=1e-10)


def test_latent_factor_equals_the_model_written_out(reference):
    values, cells, genes = _data(reference.mast("simD_covariates"))
    group = np.where(cells["group"] == "B", 0, 1)
    got = markers_of(
        Source(values, None), genes, group, rules_for("5", 0, 0), "MAST", cells, ["batch"]
    )
    data = cells.assign(group=pd.Categorical(cells["group"], ["B", "A"]))
    truth = zlm(values, "~ group + batch", data, genes=genes).lrt("groupA")["p_H"]
    np.testing.assert_allclose(got["p_val"], truth.loc[got.index], rtol=1e-9)
