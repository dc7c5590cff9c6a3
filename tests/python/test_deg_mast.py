"""zlm and find_markers against the output of MAST 1.32.0 and of Seurat 4.3.0 and 5.1.0."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.io as sio
import scipy.sparse as sp

from scmamba.deg import find_markers, zlm
from scmamba.deg.markers import markers_of, rules_for
from scmamba.deg.twogroup import group_sums, hurdle_test
from scmamba.deg.values import Source
from scmamba.deg.zlm import ZlmFit

TERMS = {"group": "groupB", "interaction": "groupB:age"}
# Zero residual variance without a prior: MAST's own values are rounding there (README of the reference).
NOISE = ["e025", "e026", "e027", "e040"]


def _csv(path: Path, **options) -> pd.DataFrame:
    return pd.read_csv(path, float_precision="round_trip", **options)


@cache
def _data(folder: Path) -> tuple[sp.csr_matrix, pd.DataFrame, pd.Index]:
    cells, genes = _csv(folder / "cells.csv.gz"), _csv(folder / "genes.csv.gz").iloc[:, 0].astype(str)
    if (folder / "lognorm.mtx.gz").exists():
        values = sp.csr_matrix(sio.mmread(folder / "lognorm.mtx.gz")).T.tocsr()
    else:
        counts = sp.csr_matrix(sio.mmread(folder / "counts.mtx.gz")).T.tocsr().astype(float)
        totals = np.asarray(counts.sum(axis=1)).ravel()
        values = sp.csr_matrix(sp.diags(1 / totals) @ counts * 1e4).log1p()
    return values, cells, pd.Index(genes)


def _runs(shared: Path) -> list[tuple[pd.Series, Path]]:
    table = _csv(shared / "reference" / "mast" / "hyperparameters.csv")
    return [(row, shared / "reference" / "mast" / row["dataset"]) for _, row in table.iterrows()]


def _fit(row: pd.Series, folder: Path, *, own_prior: bool) -> ZlmFit:
    values, cells, genes = _data(folder)
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


def _lrt_files(row: pd.Series, folder: Path) -> list[tuple[str, Path]]:
    head = f"mast_{row['config']}_lrt_"
    return [(p.name[len(head) : -len(".csv.gz")], p) for p in sorted(folder.glob(f"{head}*.csv.gz"))]


def _off(got: pd.Series, truth: pd.Series) -> float:
    """Largest difference, relative above 1; missing values must be missing in both."""
    a, b = got.astype(float), truth.astype(float)
    assert (a.isna() == b.isna()).all(), truth.name
    return float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())


def test_every_lrt_file_given_masts_prior(shared):
    files = 0
    for row, folder in _runs(shared):
        fit = _fit(row, folder, own_prior=False)
        skip = NOISE if row["dataset"] == "simE_edge" and not row["ebayes"] else []
        for test, path in _lrt_files(row, folder):
            files += 1
            truth = _csv(path, index_col=0).drop(skip, errors="ignore")
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
            for column in [c for c in truth if c.startswith(("coef", "ci_", "logFC", "varLog", "z_"))]:
                # Where the plain GLM separates, limits are +-1e5 and carry the rounding of a singular matrix.
                assert _off(got[column], truth[column]) < (1e-5 if row["method"] == "glm" else 1e-8), (
                    where,
                    column,
                )
    assert files == len(list((shared / "reference" / "mast").glob("*/mast_*_lrt_*.csv.gz")))


def test_every_fit_file(shared):
    for row, folder in _runs(shared):
        truth = _csv(folder / f"mast_{row['config']}_fit.csv.gz", index_col=0)
        got = _fit(row, folder, own_prior=False).fit_table()
        skip = [*NOISE, "e037", "e038", "e039"] if row["dataset"] == "simE_edge" and not row["ebayes"] else []
        for column in got:
            a, b = got[column].drop(skip, errors="ignore"), truth[column].drop(skip, errors="ignore")
            if b.dtype == bool:
                assert (a == b).all(), (row["dataset"], row["config"], column)
            else:
                assert _off(a, b) < (1e-5 if row["method"] == "glm" else 1e-9), (
                    row["dataset"],
                    row["config"],
                    column,
                )


def test_own_prior(shared):
    for row, folder in _runs(shared):
        if not row["ebayes"]:
            continue
        fit = _fit(row, folder, own_prior=True)
        assert fit.prior.n_genes == row["n_genes_used"]
        assert fit.prior.variance == pytest.approx(row["priorVar"], rel=1e-4)
        for test, path in _lrt_files(row, folder):
            truth = _csv(path, index_col=0)
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
        options["latent_vars"] = ["cdr"] if "pbmc" in folder else ["cngeneson", "batch"]
    return options


def test_every_seurat_file(shared):
    root = shared / "reference" / "mast"
    runs = _csv(root / "seurat_runs.csv")
    assert len(runs) == len(list(root.glob("*/seurat_*.csv.gz")))
    for _, run in runs.iterrows():
        values, cells, genes = _data(root / run["dataset"])
        adata = ad.AnnData(values, obs=cells.set_index("cell"), var=pd.DataFrame(index=genes))
        got = find_markers(adata, "group", "B", "A", **_call(run["call"], run["dataset"]))
        truth = _csv(root / run["dataset"] / f"seurat_{run['call']}.csv.gz").set_index("gene")
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


def test_sums_give_the_same_test_as_the_model(shared):
    """The closed form from sums against the general fit on the same genes, without going through R."""
    values, cells, genes = _data(shared / "reference" / "mast" / "simE_edge")
    fit = zlm(values, "~ group", cells, genes=genes)
    truth = fit.lrt("groupB")
    (a, b), centre = group_sums(values, (cells["group"] == "B").to_numpy().astype(int), 2)
    test = hurdle_test(a, b, fit.prior, centre)
    assert (test.df == truth["df_H"]).all()
    regular = ~np.isin(genes, [*NOISE, "e030"])
    assert np.abs(test.statistic - truth["lambda_H"])[regular].max() < 1e-9
    np.testing.assert_allclose(np.exp(test.log_p), test.p, rtol=1e-10)


def test_latent_factor_equals_the_model_written_out(shared):
    values, cells, genes = _data(shared / "reference" / "mast" / "simD_covariates")
    group = np.where(cells["group"] == "B", 0, 1)
    got = markers_of(Source(values, None), genes, group, rules_for("5", 0, 0), "MAST", cells, ["batch"])
    data = cells.assign(group=pd.Categorical(cells["group"], ["B", "A"]))
    truth = zlm(values, "~ group + batch", data, genes=genes).lrt("groupA")["p_H"]
    np.testing.assert_allclose(got["p_val"], truth.loc[got.index], rtol=1e-9)
