"""The plan of a robustness analysis: defaults of the paper, groups, cell types, tasks and their store."""

from __future__ import annotations

import inspect
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scmamba.deg import find_markers, pseudobulk, robustness, zlm
from scmamba.deg.options import RATIOS, RobustnessOptions
from scmamba.deg.plan import (
    RUNS_PER_TASK,
    _donor_runs,
    cells_of_types,
    condition_pair,
    missing_donor_runs,
    plan_tasks,
)
from scmamba.deg.robustness_analysis import LayerValues, _check, _full_rows
from scmamba.deg.runs import CellTypeBlock, Outcome, Ranking, make_block
from scmamba.deg.store import TaskStore, fingerprint
from scmamba.deg.subsample import Task, run_seed
from scmamba.utils.errors import DataError, OptionError


def _defaults(function) -> dict:
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.default is not inspect.Parameter.empty}


def test_defaults_of_the_paper():
    """Fig. 7: six shares of the cells, 100 subsamples, 200 combinations of 3 v 3 donors, FDR < 0.05.

    The fold change of 0.25 is FindMarkers' threshold of Seurat 4 (log2), as in the paper's methods.
    """
    assert RATIOS == (0.10, 0.20, 0.35, 0.50, 0.75, 0.90)
    assert _defaults(robustness) == {
        "donor_key": None,
        "label_key": None,
        "group1": None,
        "group2": None,
        "layers": ("counts", "scmamba"),
        "cell_types": None,
        "ratios": RATIOS,
        "permutations": 100,
        "donors": "3v3",
        "max_combinations": 200,
        "null_permutations": 20,
        "alpha": 0.05,
        "min_log2fc": 0.25,
        "donor_test": "moderated_t",
        "adjust": "bonferroni",
        "seurat": "5",
        "min_degs": 10,
        "min_cells": 10,
        "seed": 0,
        "n_jobs": None,
        "resume": None,
        "verbose": True,
    }


def test_defaults_of_the_tests():
    """Seurat 5's MAST; MAST's zlm (bayesglm, ebayes); limma on donors of 10 cells and genes of 10 counts."""
    assert _defaults(find_markers) == {
        "group2": None,
        "covariates": None,
        "test": "MAST",
        "seurat": "5",
        "layer": None,
        "scale": "auto",
        "min_pct": None,
        "logfc_threshold": None,
        "only_pos": False,
        "min_diff_pct": -np.inf,
        "fold_change": "expm1",
        "genes": None,
    }
    assert _defaults(zlm) == {
        "data": None,
        "method": "bayesglm",
        "ebayes": True,
        "layer": None,
        "scale": None,
        "genes": None,
        "prior": None,
    }
    assert _defaults(pseudobulk) == {
        "group2": None,
        "layer": None,
        "scale": "auto",
        "covariates": None,
        "paired": None,
        "moderate": True,
        "min_cells": 10,
        "min_total": 10.0,
    }


def test_invalid_plans_are_refused():
    def check(**options):
        _check(RobustnessOptions(**options))

    check(ratios=(0.5, 1.0), permutations=0, adjust="bh", donors=None)
    for bad in (0, -0.1, 1.01):
        with pytest.raises(DataError, match=f"shares of the cells.*found {bad}"):
            check(ratios=(0.5, bad))
    with pytest.raises(OptionError, match="permutations is -1"):
        check(permutations=-1)
    with pytest.raises(OptionError, match="adjust is 'holm'"):
        check(adjust="holm")
    with pytest.raises(DataError, match="3v3"):
        check(donors="3")


def test_the_control_is_recognized():
    def pair(*values, **groups):
        return condition_pair(pd.DataFrame({"d": values}), "d", groups.get("a"), groups.get("b"))

    for name in (
        "Control",
        "controls",
        "CTRL",
        "ctl",
        "con",
        "Normal",
        "healthy",
        "NC",
        "hc",
        "WT",
        "wildtype",
        "Unstimulated",
        "vehicle",
    ):
        assert pair(name, "aaa") == ("aaa", name) and pair("zzz", name) == ("zzz", name)
    assert pair("AD", "Control", a="Control") == ("Control", "AD")
    assert pair("AD", "PD", b="AD") == ("PD", "AD") and pair("AD", "PD", a="AD") == ("AD", "PD")
    assert pair("AD", "PD", "Control", a="PD", b="AD") == ("PD", "AD")
    for values in (("AD", "PD"), ("Control", "normal"), ("AD", "control group")):
        with pytest.raises(DataError, match="mean control"):
            pair(*values)
    with pytest.raises(DataError, match="has 3 values .*Set group1 and group2"):
        pair("AD", "PD", "Control", a="AD")
    with pytest.raises(DataError, match="Both groups are 'AD'"):
        pair("AD", "PD", a="AD", b="AD")
    with pytest.raises(DataError, match="no cells of 'MS'"):
        pair("AD", "PD", a="MS")


@pytest.fixture()
def obs() -> pd.DataFrame:
    """MG: 4 AD, 3 Control; AC: 3 and 2; one cell without a type, one of another disease."""
    rows = (
        [("AD", "MG")] * 4 + [("Control", "MG")] * 3 + [("AD", "AC")] * 3 + [("Control", "AC")] * 2
    )
    rows += [("AD", None), ("PD", "MG")]
    out = pd.DataFrame(rows, columns=["disease", "type"])
    out["donor"] = [f"d{i % 3}" for i in range(len(out))]
    return out


def test_cells_of_each_type(obs):
    pair = ("AD", "Control")
    plan, notes = cells_of_types(obs, "disease", pair, "donor", "type", None)
    assert list(plan) == ["MG"] and plan["MG"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert notes == ["AC: omitted, 3 AD and 2 Control cells are too few."]
    plan, notes = cells_of_types(obs, "disease", pair, None, None, None)
    assert plan["all cells"].tolist() == list(range(13)) and notes == []
    with pytest.raises(DataError, match="no cells of type 'EX'. There are: AC, MG"):
        cells_of_types(obs, "disease", pair, None, "type", ["MG", "EX"])
    with pytest.raises(DataError, match="No cell type has 3 cells in both"):
        cells_of_types(obs, "disease", pair, None, "type", ["AC"])
    obs.loc[13, "donor"] = None  # of a disease that is not compared
    cells_of_types(obs, "disease", pair, "donor", "type", None)
    obs.loc[[1, 2], "donor"] = None
    with pytest.raises(DataError, match="'donor' is missing for 2 cells"):
        cells_of_types(obs, "disease", pair, "donor", "type", None)


def _block(first: int, second: int) -> CellTypeBlock:
    samples = tuple([(0, f"a{i}") for i in range(first)] + [(1, f"b{i}") for i in range(second)])
    return CellTypeBlock(
        sp.csc_matrix((2, 2)), np.zeros(2), np.array([0, 0, 1]), np.zeros(3), np.zeros(3), samples
    )


SETTINGS: dict = {
    "seed": 3,
    "ratios": [0.2, 0.5],
    "permutations": 30,
    "null_permutations": 26,
    "donors": "3v2",
    "layers": ["x", "y"],
    "max_combinations": 60,
    "donor_key": "donor",
    "group2": "Control",
    "min_cells": 10,
}


def test_tasks():
    assert RUNS_PER_TASK == 25
    tasks = list(plan_tasks("MG", _block(5, 4), RobustnessOptions(**(SETTINGS))))
    assert len(set(tasks)) == len(tasks)
    mine = [t for t in tasks if t.layer == "x"]
    shape = [(t.kind, t.ratio, t.first, len(t.seeds)) for t in mine]
    assert shape == [
        ("cells", 0.2, 0, 25),
        ("cells", 0.2, 25, 5),
        ("cells", 0.5, 0, 25),
        ("cells", 0.5, 25, 5),
        ("null_cells", 1.0, 0, 25),
        ("null_cells", 1.0, 25, 1),
        ("donors", 1.0, 0, 25),
        ("donors", 1.0, 25, 25),
        ("donors", 1.0, 50, 10),
        ("null_donors", 1.0, 0, 3),
    ]
    other = [t for t in tasks if t.layer == "y"]  # every layer uses the same cells
    for a, b in zip(mine, other, strict=True):
        assert a == b._replace(layer="x") and np.array_equal(a.weights, b.weights)
    assert mine[1].seeds == tuple(run_seed(3, "cells", "MG", 0.2, i) for i in range(25, 30))
    seeds = [s for t in mine if t.weights is None for s in t.seeds]
    assert len(set(seeds)) == len(seeds) == 86
    weights = np.vstack([t.weights for t in mine if t.kind == "donors"])
    assert len(np.unique(weights, axis=0)) == 60  # all of 10 x 6
    assert (
        weights[:, :5].sum(axis=1).tolist() == [3] * 60
        and weights[:, 5:].sum(axis=1).tolist() == [2] * 60
    )


def test_possible_donor_runs():
    def kinds(first, second, **changes):
        return {
            k: w.shape
            for k, w in _donor_runs(
                "MG", _block(first, second), RobustnessOptions(**(SETTINGS | changes))
            )
        }

    assert kinds(5, 4) == {"donors": (60, 9), "null_donors": (3, 4)}
    assert kinds(5, 4, max_combinations=17)["donors"] == (17, 9)
    assert kinds(5, 3) == {
        "donors": (30, 8)
    }  # two donors of one condition against one are not compared
    assert kinds(5, 4, donors=None) == {"null_donors": (3, 4)}
    assert kinds(5, 4, null_permutations=0) == {"donors": (60, 9)}
    assert kinds(5, 4, null_permutations=2)["null_donors"] == (2, 4)
    assert missing_donor_runs("MG", _block(3, 4), RobustnessOptions(**(SETTINGS))) == []
    few = missing_donor_runs("MG", _block(2, 3), RobustnessOptions(**(SETTINGS)))
    assert few == [
        "MG: no donor combinations; 2 and 3 donors have 10 cells, 3v2 were requested.",
        "MG: no null of split donors; Control has 3 donors, 4 are needed.",
    ]
    assert len(missing_donor_runs("MG", _block(3, 1), RobustnessOptions(**(SETTINGS)))) == 2
    assert (
        missing_donor_runs(
            "MG", _block(0, 0), RobustnessOptions(**(SETTINGS | {"donor_key": None}))
        )
        == []
    )
    assert (
        missing_donor_runs(
            "MG",
            _block(0, 0),
            RobustnessOptions(**(SETTINGS | {"donors": None, "null_permutations": 0})),
        )
        == []
    )


def test_rows_of_the_full_data():
    ways = Ranking(np.arange(9), 7), Ranking(np.arange(4), 2)
    outcome = Outcome(50, 9, *ways, "", 40, 3, 5, 1)
    up, down = _full_rows("MG", "x", _block(1, 1), outcome)
    shared = {
        "cell_type": "MG",
        "layer": "x",
        "n_cells1": 2,
        "n_cells2": 1,
        "n_tested": 50,
        "pseudobulk_tested": 40,
        "note": "",
    }
    assert up == shared | {"direction": "up", "n_degs": 7, "pseudobulk_degs": 5}
    assert down == shared | {"direction": "down", "n_degs": 2, "pseudobulk_degs": 1}


def test_layers_are_recognized_and_subset():
    counts = np.array([[1, 3, 0], [2, 2, 4], [0, 5, 5]])
    adata = ad.AnnData(sp.csr_matrix(counts))
    adata.layers["scmamba"] = np.array([[0.5, 0, 1], [0, 2, 0.1], [1, 1, 1.5]])
    adata.uns["scmamba"] = {"impute": {"summary": {"scale": "log1p(CP10k)"}}}
    layers = LayerValues(adata, ["counts", "scmamba"])
    assert layers.scales == {"counts": "counts", "scmamba": "log"}
    got = layers.values("counts", np.array([2, 0]))
    assert sp.issparse(got) and got.format == "csc"
    np.testing.assert_allclose(got.toarray(), np.log1p([[0, 5000, 5000], [2500, 7500, 0]]))
    np.testing.assert_array_equal(layers.values("scmamba", np.array([1])).toarray(), [[0, 2, 0.1]])
    for names in ((), ("counts", "counts")):
        with pytest.raises(DataError, match="Name each layer once"):
            LayerValues(adata, names)
    adata.layers["holes"] = np.array([[0.5, np.nan, 1]] * 3)
    with pytest.raises(DataError, match="3 values of .* are NaN"):
        LayerValues(adata, ["holes"])


def test_store_keeps_tables_exactly(tmp_path):
    task = Task("cells", "MG", "x", 0.5, 0, (1, 2), None)
    table = pd.DataFrame({"a": [0.1 + 0.2, np.nan], "note": ["", "2 and 9 cells"], "n": [1, 2]})
    store = TaskStore(tmp_path / "deep" / "kept", {"seed": 1, "ratios": (0.1, 0.2)}, "abc")
    assert store.load(task) is None
    store.save(task, table)
    pd.testing.assert_frame_equal(store.load(task), table)
    for name, value in {
        "kind": "donors",
        "cell_type": "AC",
        "layer": "y",
        "ratio": 0.2,
        "first": 25,
        "seeds": (1, 3),
    }.items():
        assert store.load(task._replace(**{name: value})) is None, name
    again = TaskStore(tmp_path / "deep" / "kept", {"seed": 1, "ratios": [0.1, 0.2]}, "abc")
    assert again.load(task) is not None
    assert json.loads((store.folder / "settings.json").read_text()) == {
        "settings": {"seed": 1, "ratios": [0.1, 0.2]},
        "data": "abc",
    }
    with pytest.raises(DataError, match=r"another analysis \(seed changed\)"):
        TaskStore(store.folder, {"seed": 2, "ratios": [0.1, 0.2]}, "abc")
    with pytest.raises(DataError, match=r"another analysis \(the data changed\)"):
        TaskStore(store.folder, {"seed": 1, "ratios": [0.1, 0.2]}, "abd")
    nowhere = TaskStore(None, {}, "")
    nowhere.save(task, table)
    assert nowhere.load(task) is None


def test_the_fingerprint_depends_on_every_input():
    obs = pd.DataFrame({"d": ["a", "b", "b"], "t": ["x", "x", "y"]})
    dense = np.array([[1.0, 0, 2], [0, 6, 0], [4, 0, 0]])
    base = fingerprint(obs, {"x": sp.csr_matrix(dense)})
    assert len(base) == 16 and base == fingerprint(obs.copy(), {"x": sp.csr_matrix(dense.copy())})
    others = [
        fingerprint(obs.assign(t=["x", "y", "x"]), {"x": sp.csr_matrix(dense)}),
        fingerprint(obs[["d"]], {"x": sp.csr_matrix(dense)}),
        fingerprint(obs, {"x": sp.csr_matrix(dense[[1, 0, 2]])}),
        fingerprint(obs, {"x": sp.csr_matrix(dense[:, [1, 0, 2]])}),
        fingerprint(obs, {"x": sp.csr_matrix(dense), "y": sp.csr_matrix(dense)}),
        fingerprint(obs, {"x": sp.csr_matrix(np.hstack([dense, np.zeros((3, 1))]))}),
    ]
    assert len({base, *others}) == 7


@pytest.fixture(scope="module")
def small() -> ad.AnnData:
    """160 cells, 4 + 4 donors of 20; 30 genes of counts, ten of which differ a lot."""
    rng = np.random.default_rng(0)
    donor = np.arange(160) % 8
    mean = np.full((160, 30), 3.0)
    mean[donor < 4, :6] *= 4
    mean[donor >= 4, 6:10] *= 4
    obs = pd.DataFrame(
        {"donor": [f"d{d}" for d in donor], "disease": np.where(donor < 4, "AD", "Control")}
    )
    adata = ad.AnnData(
        sp.csr_matrix(rng.poisson(mean)), obs=obs.set_index(np.arange(160).astype(str))
    )
    logs = np.log1p(adata.X.toarray() / adata.X.sum(axis=1) * 1e4)
    adata.layers["half"] = sp.csr_matrix(np.where(np.arange(30) < 3, 1.0, logs))  # three DEGs fewer
    return adata


@pytest.mark.filterwarnings("ignore")
def test_complete_analysis(small):
    """Settings, matched numbers and the reference of the first layer are used in the runs."""
    result = robustness(
        small,
        "disease",
        "donor",
        layers=("counts", "half"),
        ratios=(0.5,),
        permutations=2,
        donors="2v3",
        max_combinations=5,
        null_permutations=2,
        min_degs=2,
        seed=4,
        verbose=False,
    )
    degs = result.full.set_index(["layer", "direction"])["n_degs"]
    assert degs["counts", "up"] == 6 and degs["half", "up"] == 3 and degs["counts", "down"] >= 4
    runs = result.runs
    assert (runs.query("direction == 'up'")["n_matched"] == 3).all()
    assert (runs.query("layer == 'half' and direction == 'up'")["n_full"] == 3).all()
    assert runs.groupby(["kind", "layer", "direction"]).size().to_dict() == {
        (k, lay, w): n
        for k, n in (("cells", 2), ("donors", 5))
        for lay in ("counts", "half")
        for w in ("up", "down")
    }
    assert runs["seed"].tolist()[0] == run_seed(4, "cells", "all cells", 0.5, 0)
    half = runs.query("layer == 'half' and direction == 'up'")
    called = half["n_called"] > 0  # DEGs of the halved layer are also DEGs of the counts
    assert (half.loc[called, "precision_reference"] == 1).all() and called.any()
    first = runs.query(
        "layer == 'counts' and direction == 'up'"
    )  # its own full data are the reference
    np.testing.assert_array_equal(first["precision_reference"], first["precision"])
    assert (first["n_called"] > 3).any()
    assert (result.nulls.groupby(["kind", "layer"]).size() == 2).all() and len(result.nulls) == 8
    assert (result.nulls.query("kind == 'null_cells'")["rate_nominal"] < 0.35).all()
    assert result.settings["scales"] == {"counts": "counts", "half": "log"}
    for name, value in {
        "n_cells": 160,
        "n_genes": 30,
        "alpha": 0.05,
        "min_log2fc": 0.25,
        "donors": "2v3",
    }.items():
        assert result.settings[name] == value
    none = robustness(
        small,
        "disease",
        layers=("counts",),
        ratios=(0.5,),
        permutations=1,
        min_log2fc=9.0,
        null_permutations=0,
        verbose=False,
    )
    assert (none.full["n_degs"] == 0).all() and none.notes == () and none.nulls.empty
    block = make_block(
        small.X.tocsc().astype(float), small.obs, "disease", ("AD", "Control"), "donor", 10
    )
    assert len(block.samples) == 8
