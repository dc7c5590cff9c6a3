"""Naming cell types three ways, and the data that make such tools stumble."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from conftest import small_model
from typer.testing import CliRunner

import scmamba
from scmamba._errors import DataError, ScMambaError
from scmamba.cli import app
from scmamba.datasets import brain_cohort
from scmamba.tasks.annotate import UNASSIGNED, brain_markers
from scmamba.training.typing import coverage_curve, fit_temperature, folds, softmax

QUIET = {"verbose": False, "cache": False, "network": False}


@pytest.fixture(scope="module")
def nuclei() -> ad.AnnData:
    """Simulated nuclei of six donors."""
    return brain_cohort(420, n_donors=6, n_genes=3000, seed=3)


@pytest.fixture(scope="module")
def reference(nuclei) -> ad.AnnData:
    return nuclei[nuclei.obs["donor"] != "D06"].copy()


@pytest.fixture(scope="module")
def query(nuclei) -> ad.AnnData:
    return nuclei[nuclei.obs["donor"] == "D06"].copy()


@pytest.fixture(scope="module")
def found(reference, query):
    return scmamba.annotate(query, reference=reference, labels="cell_type", **QUIET)


def test_a_donor_left_out_is_named_from_the_others(found, query):
    truth = query.obs["cell_type"].astype(str).to_numpy()
    p = found.probabilities["type"]
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert np.mean(np.array(found.levels["type"])[p.argmax(axis=1)] == truth) > 0.9
    calls = found.labels().astype(str)
    kept = calls != UNASSIGNED
    assert np.mean(calls[kept] == truth[kept]) >= 0.95


def test_results_go_beside_the_data_and_can_be_saved(found, query, tmp_path):
    before = query.X.copy()
    found.to_adata(query)
    query.write_h5ad(tmp_path / "q.h5ad")
    again = ad.read_h5ad(tmp_path / "q.h5ad")
    assert {"scmamba_type", "scmamba_probability", "scmamba_alternatives"} <= set(again.obs)
    assert again.uns["scmamba"]["annotate"]["way"] == "reference"
    assert (abs(query.X - before)).sum() == 0
    table = found.to_table()
    assert table["scmamba_alternatives"].str.count(";").eq(2).all()
    report = found.report(query.obs["cell_type"].astype(str))
    assert report["cells"].sum() == query.n_obs
    assert {"probability", "confusion"} <= set(found.to_plots(query.obs["cell_type"].astype(str)))


def test_the_curve_rises_and_the_threshold_keeps_the_stated_error(found):
    curve = found.curve
    assert (np.diff(curve[:, 1]) <= 1e-12).all()
    chosen = curve[curve[:, 0] == found.threshold]
    assert len(chosen) == 1 and 1 - chosen[0, 2] <= 0.05


def test_levels_roll_up(reference, query):
    coarse = {"Excitatory": "neuron", "Inhibitory": "neuron"}
    known = reference.copy()
    known.obs["class"] = known.obs["cell_type"].astype(str).map(lambda t: coarse.get(t, "glia and vessels"))
    found = scmamba.annotate(query, reference=known, labels=["class", "cell_type"], **QUIET)
    fine, above = found.labels("cell_type").astype(str), found.labels("class").astype(str)
    both = (fine != UNASSIGNED) & (above != UNASSIGNED)
    assert both.any()
    assert all(coarse.get(f, "glia and vessels") == a for f, a in zip(fine[both], above[both]))
    neurons = [found.levels["cell_type"].index(t) for t in coarse]
    np.testing.assert_allclose(found.probabilities["class"][:, found.levels["class"].index("neuron")],
                               found.probabilities["cell_type"][:, neurons].sum(axis=1))  # fmt: skip
    known.obs["class"] = np.where(np.arange(known.n_obs) % 2, "a", "b")
    with pytest.raises(DataError, match="more than one class"):
        scmamba.annotate(query, reference=known, labels=["class", "cell_type"], **QUIET)


def test_a_type_the_reference_lacks_is_mostly_not_named(reference, query):
    known = reference[reference.obs["cell_type"] != "Microglia"].copy()
    calls = scmamba.annotate(query, reference=known, labels="cell_type", **QUIET).labels().astype(str)
    new = (query.obs["cell_type"] == "Microglia").to_numpy()
    assert np.mean(calls[new] == UNASSIGNED) > 0.5 > np.mean(calls[~new] == UNASSIGNED)


def test_the_network_takes_part_the_same_way_every_time_and_is_kept(reference, query, tmp_path, capsys):
    options = {"reference": reference, "labels": "cell_type", "model": small_model("expressed"), "network": 3, "cache": tmp_path}
    first = scmamba.annotate(query, **options)
    assert "learnt before" not in capsys.readouterr().err
    again = scmamba.annotate(query, **options)
    assert "learnt before" in capsys.readouterr().err
    np.testing.assert_allclose(first.probabilities["type"], again.probabilities["type"], atol=1e-6)
    fresh = scmamba.annotate(query, **{**options, "cache": False})
    np.testing.assert_allclose(first.probabilities["type"], fresh.probabilities["type"], atol=1e-6)
    kept = next(tmp_path.glob("*/network"))
    alone = scmamba.annotate(query, model=kept, force=True, verbose=False)
    assert alone.levels["type"] == first.levels["type"]
    next(tmp_path.glob("*/typist.npz")).write_bytes(b"damaged")
    scmamba.annotate(query, **options)
    assert "learnt again" in capsys.readouterr().err


def test_markers_alone(query):
    calls = scmamba.annotate(brain_cohort(300, n_donors=3, seed=5), verbose=False)
    assert set(calls.levels["type"]) <= set(brain_markers())
    panel = {"one": ["SLC17A7"], "two": ["GAD1", "GAD2"]}
    assert scmamba.annotate(query, markers=panel, force=True, verbose=False).levels["type"] == ["one", "two"]
    with pytest.raises(DataError, match="at least two types"):
        scmamba.annotate(query, markers={"one": ["SLC17A7"], "two": ["NOGENE"]}, verbose=False)


def test_markers_find_the_types_of_real_nuclei(shared):
    brain = ad.read_h5ad(shared / "data" / "velmeshev2019_pfc_3types.h5ad")[::8].copy()
    calls = scmamba.annotate(brain, verbose=False).labels().astype(str)
    named = calls != UNASSIGNED
    assert named.mean() > 0.5
    assert np.mean(np.char.lower(calls[named]) == brain.obs["cell_type"].astype(str).to_numpy()[named]) > 0.85


def test_one_class_one_cell_and_missing_labels(reference, query):
    known = reference.copy()
    known.obs["one"] = "cell"
    assert set(scmamba.annotate(query, reference=known, labels="one", **QUIET).labels()) <= {"cell", UNASSIGNED}
    labels = known.obs["cell_type"].astype(object).copy()
    labels.iloc[:30] = None
    labels.iloc[31] = "a single cell"
    known.obs["gaps"] = labels
    found = scmamba.annotate(query, reference=known, labels="gaps", **QUIET)
    assert "a single cell" in found.levels["type"] and found.provenance["reference_cells"] == known.n_obs - 30
    known.obs["none"] = None
    with pytest.raises(DataError, match="no label"):
        scmamba.annotate(query, reference=known, labels="none", **QUIET)


def test_few_genes_in_common(reference, query):
    with pytest.raises(DataError, match="share .* at least 300"):
        scmamba.annotate(query[:, :200].copy(), reference=reference, labels="cell_type", **QUIET)
    enough = np.flatnonzero(np.asarray(query.X.sum(axis=0)).ravel() > 10)[:400]
    found = scmamba.annotate(query[:, enough].copy(), reference=reference, labels="cell_type", **QUIET)
    assert len(found.labels()) == query.n_obs


def test_many_small_donors_a_donor_of_one_cell_and_a_single_query_cell(reference, query):
    known = reference.copy()
    known.obs["donor"] = [f"d{i // 4}" for i in range(known.n_obs)]
    known.obs.iloc[0, known.obs.columns.get_loc("donor")] = "alone"
    found = scmamba.annotate(query[:1].copy(), reference=known, labels="cell_type", **QUIET)
    assert found.labels().shape == (1,)
    found = scmamba.annotate(query, reference=known, labels="cell_type", donor=None, **QUIET)
    assert len(found.curve)


def test_requests_that_cannot_be_met(reference, query):
    with pytest.raises(DataError, match="no column 'nothing'"):
        scmamba.annotate(query, reference=reference, labels="nothing", **QUIET)
    with pytest.raises(ScMambaError, match="labels="):
        scmamba.annotate(query, reference=reference, **QUIET)
    with pytest.raises(ScMambaError, match="does not classify"):
        scmamba.annotate(query, model=small_model(), force=True, verbose=False)
    with pytest.raises(ScMambaError, match="between 0 and 1"):
        scmamba.annotate(query, error_rate=5, verbose=False)


def test_temperature_folds_and_curve():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 4000)
    logits = rng.normal(size=(4000, 4))
    logits[np.arange(4000), codes] += 1.0
    # The right posterior of unit normals shifted by one is softmax of the values themselves: temperature one, three if they are tripled.
    assert fit_temperature(logits, codes) == pytest.approx(1.0, abs=0.08)
    assert fit_temperature(3 * logits, codes) == pytest.approx(3.0, abs=0.25)
    fold = folds(np.repeat([f"d{i}" for i in range(6)], 10), np.zeros(60, dtype=int), 3, 0)
    assert all(len(np.unique(fold[i : i + 10])) == 1 for i in range(0, 60, 10)) and set(fold) == {0, 1, 2}
    curve = coverage_curve(softmax(logits), codes)
    assert curve[0, 1] == 1 and curve[-1, 2] > curve[0, 2]


def test_command_line(reference, query, tmp_path):
    reference.write_h5ad(tmp_path / "reference.h5ad")
    query.write_h5ad(tmp_path / "query.h5ad")
    out = tmp_path / "out.h5ad"
    command = ["annotate", str(tmp_path / "query.h5ad"), "-o", str(out), "-q"]
    options = ["--reference", str(tmp_path / "reference.h5ad"), "--labels", "cell_type", "--no-network", "--no-cache",
               "--truth", "cell_type", "--table", str(tmp_path / "t.csv"), "--plots", str(tmp_path / "plots")]  # fmt: skip
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    assert "scmamba_type" in ad.read_h5ad(out).obs and "Microglia" in result.output
    assert (tmp_path / "plots" / "confusion.png").is_file() and (tmp_path / "t.csv").is_file()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and "exists already" in again.output
    (tmp_path / "panel.tsv").write_text("type\tgenes\none\tSLC17A7,SATB2\ntwo\tGAD1, GAD2\n")
    result = CliRunner().invoke(app, [*command, "--overwrite", "--markers", str(tmp_path / "panel.tsv")])
    assert result.exit_code == 0, result.output
    (tmp_path / "panel.tsv").write_text("no tab here\n")
    result = CliRunner().invoke(app, [*command, "--overwrite", "--markers", str(tmp_path / "panel.tsv")])
    assert result.exit_code == 1 and "has no tab" in result.output


def test_columns_the_network_knows_come_in_its_order():
    from scipy import sparse

    from scmamba.tasks.annotate import readable

    x, genes = readable(sparse.csr_matrix(np.array([[1.0, 2, 3, 4]])), np.array([7, -1, 2, 5]))
    assert x.toarray().tolist() == [[3.0, 4.0, 1.0]] and genes.tolist() == [2, 5, 7]


def test_surprise_is_the_cross_entropy_per_count():
    from scipy import sparse

    from scmamba.training.views import surprise

    profiles = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    x = sparse.csr_matrix(np.log1p([[2.0, 1, 1], [2.0, 1, 1]]))
    expected = [-(2 * np.log(0.5) + 2 * np.log(0.25)) / 4, -(3 * np.log(0.1) + np.log(0.8)) / 4]
    np.testing.assert_allclose(surprise(x, profiles, np.array([0, 1])), expected)


def test_rare_classes_are_helped_only_where_it_helps():
    from scmamba.training.typing import choose_evening

    prior = np.log([0.9, 0.1])
    codes = np.array([0] * 9 + [1])
    # The rare cell loses by less than half of the difference of the priors.
    logits = np.vstack([np.tile([3.0, 0.0], (9, 1)), [[0.5, 0.0]]])
    assert (logits - choose_evening(logits, codes, prior)).argmax(axis=1)[-1] == 1
    assert not choose_evening(np.tile([3.0, 0.0], (10, 1)) * np.where(codes, -1, 1)[:, None], codes, prior).any()
