"""The robustness analysis: against a direct computation, and its guarantees (resume, cluster, nulls)."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats
from typer import Typer
from typer.testing import CliRunner

from scmamba.cli import deg as commands
from scmamba.deg import RobustnessResult, compare, find_markers, robustness
from scmamba.deg.figures import stars
from scmamba.deg.result import inflation
from scmamba.deg.runs import run_task
from scmamba.deg.subsample import cell_subsample
from scmamba.utils.errors import DataError

QUICK = {
    "ratios": (0.3, 0.6),
    "permutations": 3,
    "null_permutations": 4,
    "min_degs": 2,
    "verbose": False,
}


@pytest.fixture(scope="module")
def cohort() -> ad.AnnData:
    """600 cells, 8 donors (4 v 4), two types; the "imputed" layer smooths each donor's cells together."""
    rng = np.random.default_rng(0)
    n, genes = 600, 150
    donor = rng.integers(0, 8, n)
    obs = pd.DataFrame(
        {
            "donor": [f"d{d}" for d in donor],
            "disease": np.where(donor < 4, "AD", "Control"),
            "type": np.where(rng.random(n) < 0.7, "MG", "AC"),
        },
        index=[f"c{i}" for i in range(n)],
    )
    mean = np.full((n, genes), 1.0) * np.exp(rng.normal(0, 0.15, (8, genes)))[donor]
    mean[donor < 4, :30] *= 2.5
    mean[donor < 4, 30:50] /= 2.5
    counts = rng.negative_binomial(3, 3 / (3 + mean))
    logs = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    smooth = np.stack([logs[donor == d].mean(axis=0) for d in range(8)])[donor]
    adata = ad.AnnData(
        sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)])
    )
    adata.layers["scmamba"] = sp.csr_matrix(np.where(counts > 0, logs, smooth).astype(np.float32))
    return adata


@pytest.fixture(scope="module")
def result(cohort) -> RobustnessResult:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return robustness(cohort, "disease", "donor", "type", donors="2v2", **QUICK)


def _called(table: pd.DataFrame, way: int) -> set[str]:
    return set(table.index[(table["p_val_adj"] < 0.05) & (way * table["avg_log2FC"] > 0.25)])


def test_a_run_is_find_markers_on_its_cells(cohort, result):
    """Repeat subsamples and donor runs from their seeds with find_markers, one by one."""
    cells = cohort[cohort.obs["type"] == "MG"]
    group = (cells.obs["disease"] == "Control").to_numpy().astype(int)
    picked = result.runs.query("kind == 'cells' and cell_type == 'MG' and run == 1")
    assert len(picked) == 2 * 2 * 2
    for row in picked.itertuples():
        layer = None if row.layer == "counts" else row.layer
        member = cell_subsample(group, row.ratio, row.seed).any(axis=1)
        way = 1 if row.direction == "up" else -1
        full = _called(find_markers(cells, "disease", "AD", "Control", layer=layer), way)
        part = _called(find_markers(cells[member], "disease", "AD", "Control", layer=layer), way)
        assert (row.n_full, row.n_called, row.n_common) == (len(full), len(part), len(full & part))
        assert row.overlap == pytest.approx(len(full & part) / len(full))
    donors = result.runs.query(
        "kind == 'donors' and cell_type == 'AC' and run == 5 and direction == 'up'"
    )
    for row in donors.itertuples():
        layer = None if row.layer == "counts" else row.layer
        names = row.donors.replace(" v ", "+").split("+")
        some = cohort[(cohort.obs["type"] == "AC") & cohort.obs["donor"].isin(names)]
        assert row.n_called == len(
            _called(find_markers(some, "disease", "AD", "Control", layer=layer), 1)
        )


def test_tables(result):
    runs = result.runs
    assert set(runs["kind"]) == {"cells", "donors"}
    assert (
        runs.query("kind == 'donors'").groupby(["cell_type", "layer", "direction"]).size() == 36
    ).all()
    # all layers use the same cells
    seeds = runs.pivot_table("seed", ["kind", "cell_type", "ratio", "run", "direction"], "layer")
    assert (seeds["counts"] == seeds["scmamba"]).all()
    for measure in ("overlap", "overlap_matched", "precision"):
        assert runs[measure].dropna().between(0, 1).all() and runs[measure].notna().any()
    matched = result.full.groupby(["cell_type", "direction"])["n_degs"].min()
    for row in runs.itertuples():
        assert row.n_matched == matched[row.cell_type, row.direction]
    test = (
        result.tests()
        .query("kind == 'cells' and cell_type == 'MG' and ratio == 0.6 and direction == 'up'")
        .iloc[0]
    )
    part = runs.query(
        "kind == 'cells' and cell_type == 'MG' and ratio == 0.6 and direction == 'up'"
    )
    wide = part.pivot(index="run", columns="layer", values="overlap")
    if wide["scmamba"].sub(wide["counts"]).nunique() > 1:
        assert test["p_val"] == pytest.approx(
            stats.ttest_rel(wide["scmamba"], wide["counts"]).pvalue
        )
    assert result.settings["scales"] == {"counts": "counts", "scmamba": "log"}
    tidy = result.to_table()
    assert {"overlap", "precision", "rate_nominal"} <= set(tidy["measure"])
    assert stars(0.04) == "*" and stars(0.0001) == "***" and stars(np.nan) == ""


def test_nulls_and_the_warning(cohort, result):
    table = result.false_positives().set_index(["kind", "cell_type", "layer"])
    # Shuffled labels on raw counts are calibrated; smoothing within donors makes split donors differ.
    assert table.loc[("null_cells", "MG", "counts"), "rate_nominal"] < 0.1
    assert table.loc[("null_donors", "MG", "scmamba"), "rate_nominal"] > 0.15
    assert table.loc[("null_donors", "MG", "counts"), "pseudobulk_rate"] < 0.12
    assert any(
        w.startswith("MG: scmamba inflates significance. Between random halves")
        for w in result.warnings
    )
    assert "WARNING" in repr(result)
    with pytest.warns(UserWarning, match="inflates significance"):
        robustness(cohort, "disease", "donor", "type", cell_types=["MG"], donors=None, **QUICK)
    assert inflation(result.nulls[result.nulls["layer"] == "counts"], ["counts", "scmamba"]) == []


def test_figures_and_saving(result, tmp_path):
    figures = result.figures()
    assert set(figures) == {
        "overlap_heatmap",
        "ratios_AC",
        "ratios_MG",
        "donor_boxes",
        "false_positives",
    }
    result.save(tmp_path / "out")
    again = RobustnessResult.load(tmp_path / "out")
    pd.testing.assert_frame_equal(again.tests(), result.tests())
    assert again.warnings == result.warnings
    assert (tmp_path / "out" / "overlap_heatmap.png").stat().st_size > 5000
    with pytest.raises(DataError, match="no robustness result"):
        RobustnessResult.load(tmp_path)


def _same(a: RobustnessResult, b: RobustnessResult) -> None:
    pd.testing.assert_frame_equal(a.runs.fillna(-1), b.runs.fillna(-1), check_dtype=False)
    pd.testing.assert_frame_equal(a.nulls.fillna(-1), b.nulls.fillna(-1), check_dtype=False)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_resume_after_a_stop(cohort, result, tmp_path, monkeypatch):

    module = sys.modules["scmamba.deg.robustness_analysis"]
    calls = {"n": 0}

    def failing(*args):
        calls["n"] += 1
        if calls["n"] > 5:
            raise KeyboardInterrupt
        return run_task(*args)

    options = {"donors": "2v2", "resume": tmp_path / "kept", **QUICK}
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_task", failing)
        with pytest.raises(KeyboardInterrupt):
            robustness(cohort, "disease", "donor", "type", **options)
    stored = set((tmp_path / "kept").glob("*.csv"))
    assert 0 < len(stored) < 28
    before = {p: p.stat().st_mtime_ns for p in stored}
    _same(robustness(cohort, "disease", "donor", "type", **options), result)
    assert {p: p.stat().st_mtime_ns for p in stored} == before
    with pytest.raises(DataError, match=r"another analysis \(seed changed\)"):
        robustness(cohort, "disease", "donor", "type", seed=9, **options)
    other = cohort.copy()
    other.X = other.X * 2
    with pytest.raises(DataError, match=r"another analysis \(the data changed\)"):
        robustness(other, "disease", "donor", "type", **options)


@pytest.mark.filterwarnings("ignore")
def test_on_a_dask_cluster(cohort, result):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        parallel = robustness(cohort, "disease", "donor", "type", donors="2v2", **QUICK)
    _same(parallel, result)


# Not an optional dependency of this package, and too large for every test machine: only if ray is installed.
if importlib.util.find_spec("ray"):

    @pytest.mark.filterwarnings("ignore")
    def test_on_ray(cohort, result):
        import ray
        from ray.util.joblib import register_ray

        register_ray()
        ray.init(num_cpus=2, include_dashboard=False)
        try:
            with joblib.parallel_config(backend="ray"):
                parallel = robustness(cohort, "disease", "donor", "type", donors="2v2", **QUICK)
        finally:
            ray.shutdown()
        _same(parallel, result)


def test_too_few_degs_give_missing_values(cohort):
    few = [np.flatnonzero(cohort.obs["disease"] == g)[:8] for g in ("AD", "Control")]
    options = {
        "ratios": (0.1, 0.5),
        "permutations": 2,
        "null_permutations": 0,
        "layers": ("counts",),
    }
    out = robustness(cohort[np.concatenate(few)], "disease", "donor", verbose=False, **options)
    tenth = out.runs.query("ratio == 0.1")
    assert tenth["overlap"].isna().all() and tenth["note"].str.contains("fewer than 3").all()
    assert out.runs["overlap"].isna().all()  # too few DEGs in the full data
    assert any("no donor combinations" in n for n in out.notes)
    assert out.false_positives().empty


def test_messages(cohort):
    def call(*args, **options):
        return robustness(cohort, *args, **({"verbose": False} | options))

    with pytest.raises(DataError, match="no column 'sick'"):
        call("sick", "donor")
    with pytest.raises(DataError, match="no column 'patient'"):
        call("disease", "patient")
    with pytest.raises(DataError, match="no layer 'magic'"):
        call("disease", "donor", layers=("counts", "magic"))
    with pytest.raises(DataError, match="'3 against 3' cannot be read"):
        call("disease", "donor", donors="3 against 3")
    with pytest.raises(DataError, match="shares of the cells.*found 50"):
        call("disease", "donor", ratios=(50,))
    with pytest.raises(DataError, match="Neither or both of 'AC' and 'MG' mean control"):
        call("type", "donor")
    with pytest.raises(DataError, match="no cells of type 'EX'"):
        call("disease", "donor", "type", cell_types=["EX"])
    with pytest.raises(DataError, match="no cells of 'Sick'"):
        call("disease", "donor", group1="Sick")
    holes = cohort.copy()
    holes.obs["donor"] = holes.obs["donor"].where(holes.obs["donor"] != "d3")
    with pytest.raises(DataError, match="'donor' is missing for"):
        robustness(holes, "disease", "donor", verbose=False)
    scaled = cohort.copy()
    scaled.layers["scmamba"] = scaled.layers["scmamba"].toarray() - 1
    with pytest.raises(DataError, match="holds (negative|scaled)"):
        robustness(scaled, "disease", "donor", verbose=False)


def test_order_of_cells_does_not_matter(cohort):
    """Unsorted donors, and donors with cells of several types, are distinguished by name."""
    options = {"layers": ("counts",), "donors": "2v2", "permutations": 0, "verbose": False}
    shuffled = cohort[np.random.default_rng(3).permutation(cohort.n_obs)]
    a = robustness(cohort, "disease", "donor", "type", **options)
    b = robustness(shuffled, "disease", "donor", "type", **options)
    pd.testing.assert_frame_equal(a.full, b.full)
    same = ["n_called", "n_common", "donors", "n_cells1"]
    pd.testing.assert_frame_equal(a.runs[same], b.runs[same])


def test_commands(cohort, tmp_path):
    app = Typer()
    commands.register(app)
    cohort.copy().write_h5ad(tmp_path / "in.h5ad")
    run = CliRunner()
    out = tmp_path / "deg.csv"
    base = [
        "find-markers",
        str(tmp_path / "in.h5ad"),
        "--groupby",
        "disease",
        "--group1",
        "AD",
        "-o",
        str(out),
    ]
    done = run.invoke(app, base)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out, index_col=0)
    np.testing.assert_allclose(
        table["p_val"], find_markers(cohort, "disease", "AD")["p_val"], rtol=1e-12
    )
    assert (
        run.invoke(
            app, [*base, "--overwrite", "--test", "pseudobulk", "--donor", "donor"]
        ).exit_code
        == 0
    )
    failed = run.invoke(app, [*base, "--overwrite", "--test", "pseudobulk"])
    assert failed.exit_code == 1 and "--donor-key" in str(failed.exception)
    folder = tmp_path / "rob"
    words = f"robustness {tmp_path / 'in.h5ad'} --groupby disease --donor donor --cell-type type --ratios 0.5 "
    words += f"--permutations 2 --null-permutations 2 --donors none -o {folder}"
    done = run.invoke(app, words.split())
    assert done.exit_code == 0, done.output
    assert json.loads((folder / "settings.json").read_text())["settings"]["permutations"] == 2


def test_the_test_between_donors_is_chosen(cohort):
    quick = QUICK | {"ratios": (0.6,), "permutations": 2, "null_permutations": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = robustness(
            cohort, "disease", "donor", "type", cell_types=["MG"], donors="3v3",
            donor_test="likelihood_ratio", **quick,
        )  # fmt: skip
    assert found.settings["donor_test"] == "likelihood_ratio"
    assert any(n.startswith("scmamba: no test between donors") for n in found.notes)
    table = found.per_donor()
    mine = table[table["layer"] == "counts"]
    assert mine["pseudobulk_overlap"].notna().all() and (mine["pseudobulk_degs"] > 4).all()
    other = table[table["layer"] == "scmamba"]
    assert len(other) and other[["pseudobulk_degs", "pseudobulk_overlap"]].isna().all(axis=None)
    microglia = cohort[cohort.obs["type"] == "MG"]
    genes = compare(microglia, "disease", "donor", verbose=False).genes("all cells")
    full = found.full.query("layer == 'counts'").set_index("direction")["pseudobulk_degs"]
    assert full["up"] == (genes["log2FC"] > 0.25).sum()
    rates = found.false_positives().query("kind == 'null_donors'").set_index("layer")
    assert rates["pseudobulk_rate"].notna().tolist() == [True, False]
    axes = found.figures()["overlap_heatmap"].axes
    assert axes[0].get_xticklabels()[-1].get_text() == "per donor, likelihood ratio"
    with pytest.raises(DataError, match="the first layer, 'scmamba', holds logarithms"):
        robustness(cohort, "disease", "donor", layers=["scmamba"], donor_test="wald", verbose=False)
