"""The reports of doublets, masked counts and clusters from the command line: numbers against scikit-learn's or a hand count."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    f1_score,
    normalized_mutual_info_score,
    roc_auc_score,
)
from typer.testing import CliRunner

from scmamba.cli.main import app
from scmamba.datasets import brain_cohort
from scmamba.evaluation.of_object import annotation_of
from scmamba.evaluation.reports import doublet_report
from scmamba.utils.errors import DataError, ScMambaError


def run(*arguments: object):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    adata = brain_cohort(160, n_donors=4, seed=4)[:, ::5].copy()
    rng = np.random.default_rng(0)
    two = rng.random(adata.n_obs) < 0.2
    adata.obs["kind"] = np.where(two, "doublet", "singlet")
    adata.obs["good"], adata.obs["bad"] = two + rng.normal(0, 0.6, len(two)), rng.random(len(two))
    adata.obs["called"] = adata.obs["good"] > 0.5
    return adata


def test_doublets_are_scored_as_by_scikit_learn(cells, tmp_path):
    cells.copy().write_h5ad(tmp_path / "cells.h5ad")
    result = run(
        "doublets",
        tmp_path / "cells.h5ad",
        "--truth",
        "kind",
        "--score",
        "good",
        "--score",
        "bad",
        "--called",
        "called",
        "-o",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "summary.tsv", sep="\t", index_col=0)
    truth = (cells.obs["kind"] == "doublet").to_numpy()
    for name in ("good", "bad"):
        assert table.loc[name, "AUPRC"] == pytest.approx(
            average_precision_score(truth, cells.obs[name])
        )
        assert table.loc[name, "AUROC"] == pytest.approx(roc_auc_score(truth, cells.obs[name]))
    assert table.loc["good", "F1"] == pytest.approx(f1_score(truth, cells.obs["called"]))
    rates = pd.read_csv(tmp_path / "out" / "identification_rates.tsv", sep="\t")
    top = cells.obs["good"].rank(ascending=False) <= round(0.2 * cells.n_obs)
    found = rates.query("detector == 'good' and rate == 0.2")["recall"].item()
    assert found == pytest.approx(truth[top].sum() / truth.sum())
    text = (tmp_path / "out" / "report.md").read_text()
    assert (
        f"{truth.sum()} of 160 droplets" in text
        and (tmp_path / "out" / "curves.png").stat().st_size > 5000
    )


def test_bad_tables_are_refused_before_anything_is_written(cells, tmp_path):
    cells = cells.copy()
    cells.obs["same"] = "singlet"
    cells.obs["words"] = "perhaps"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for arguments, expected in (
        (("doublets", "--truth", "same", "--score", "good"), "both kinds are needed"),
        (("doublets", "--truth", "words", "--score", "good"), "'perhaps'"),
        (("doublets", "--truth", "kind", "--score", "words"), "no numbers"),
        (("doublets", "--truth", "kind"), "no column 'scmamba_doublet_score'"),
        (("clusters", "--truth", "cell_type"), "no layer 'scmamba'"),
    ):
        result = run(arguments[0], tmp_path / "cells.h5ad", *arguments[1:], "-o", tmp_path / "out")
        assert result.exit_code != 0 and isinstance(result.exception, (ScMambaError, SystemExit))
        assert expected in str(result.exception) + result.output and not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="All 3 droplets are doublets"):
        doublet_report(np.ones(3, bool), {"a": np.arange(3.0)})


@pytest.mark.slow
def test_masked_counts_are_scored_next_to_simple_predictors(cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    result = run(
        "imputation",
        tmp_path / "cells.h5ad",
        "--predictor",
        "one",
        "--predictor",
        "gene_rate",
        "--min-total",
        100,
        "--cells",
        60,
        "-o",
        tmp_path / "out",
        "--quiet",
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "summary.tsv", sep="\t", index_col=0)
    assert {"one", "gene_rate"} <= set(table.index) and any(
        "brain-mini" in name for name in table.index
    )
    assert table.loc["gene_rate", "mse"] < table.loc["one", "mse"]
    x = sparse.csr_matrix(cells.X)[
        np.sort(np.random.default_rng(0).choice(cells.n_obs, 60, replace=False))
    ].toarray()
    x = x[x.sum(axis=1) >= 100]
    factor = 1e4 / x.sum(axis=1, keepdims=True)
    shown = (x > 0) & ((x > 0).sum(axis=0) >= 10)
    assert table.loc["one", "mse"] == pytest.approx(
        ((np.log1p(factor) - np.log1p(factor * x)) ** 2)[shown].mean()
    )
    assert "single transcript" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_clusters_are_compared_with_types_and_donors(tmp_path):
    pytest.importorskip("igraph")
    adata = brain_cohort(300, n_donors=4, seed=4)[:, ::10].copy()
    adata = adata[
        adata.obs["cell_type"].map(adata.obs["cell_type"].value_counts()).astype(int) > 30
    ].copy()  # more than the number of neighbors
    code = adata.obs["cell_type"].astype("category").cat.codes.to_numpy()
    adata.layers["by_type"] = np.eye(code.max() + 1)[code][
        :, np.arange(adata.n_vars) % (code.max() + 1)
    ]  # the types themselves
    adata.write_h5ad(tmp_path / "cells.h5ad")
    result = run(
        "clusters",
        tmp_path / "cells.h5ad",
        "--truth",
        "cell_type",
        "--donor",
        "donor",
        "--layer",
        "by_type",
        "-o",
        tmp_path / "out",
    )
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "summary.tsv", sep="\t", index_col=0)
    assert (
        table.loc["by_type", "NMI"] == pytest.approx(1)
        and table.loc["by_type", "ARI"] == pytest.approx(1)
        and table.loc["counts", "NMI"] < 1
    )
    expected = (
        normalized_mutual_info_score(adata.obs["donor"], code),
        adjusted_rand_score(adata.obs["donor"], code),
    )
    assert (table.loc["by_type", "NMI_donor"], table.loc["by_type", "ARI_donor"]) == pytest.approx(
        expected
    )


def test_probabilities_above_one_by_rounding_are_scored():
    table = pd.DataFrame({"known": list("aabb"), "called": list("abbb")})
    table["sure"] = np.array([1 + 2e-16, 0.4, 1.0000001, 0.9])
    rounded = annotation_of(table, "known", ["called"], "sure")
    table["sure"] = [1, 0.4, 1, 0.9]
    exact = annotation_of(table, "known", ["called"], "sure")
    pd.testing.assert_frame_equal(rounded.curve, exact.curve)
    for wrong in (1.01, -0.01, np.nan):
        table["sure"] = [1, 0.4, 1, wrong]
        with pytest.raises(ScMambaError, match="no probability"):
            annotation_of(table, "known", ["called"], "sure")
