"""Annotation by reference, by markers and by a classifier, and data that are difficult for such tools."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from conftest import small_model
from scipy import sparse
from scipy.special import softmax
from typer.testing import CliRunner

import scmamba
from scmamba.annotation.ensemble import donor_folds
from scmamba.annotation.result import UNASSIGNED
from scmamba.cli.main import app
from scmamba.datasets import brain_cohort
from scmamba.datasets.marker_panels import brain_markers
from scmamba.training.calibration import coverage_curve, fit_temperature
from scmamba.utils.errors import DataError, ScMambaError

QUIET = {"verbose": False, "cache": False, "finetune_steps": 0, "return_result": True}


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
    return scmamba.annotate(query, reference=reference, label_key="cell_type", **QUIET)


def test_held_out_donors_are_annotated_from_the_other_donors(found, query):
    truth = query.obs["cell_type"].astype(str).to_numpy()
    p = found.probabilities["type"]
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert np.mean(np.array(found.levels["type"])[p.argmax(axis=1)] == truth) > 0.9
    calls = found.labels().astype(str)
    kept = calls != UNASSIGNED
    assert np.mean(calls[kept] == truth[kept]) >= 0.95


def test_results_are_stored_in_the_object_and_can_be_saved(found, query, tmp_path):
    query = query.copy()
    before = query.X.copy()
    assert found.to_adata(query) is query
    query.write_h5ad(tmp_path / "q.h5ad")
    again = ad.read_h5ad(tmp_path / "q.h5ad")
    assert {"scmamba_type", "scmamba_probability", "scmamba_alternatives"} <= set(again.obs)
    assert again.uns["scmamba"]["annotate"]["summary"]["mode"] == "reference"
    assert (abs(query.X - before)).sum() == 0
    table = found.to_table()
    assert table["scmamba_alternatives"].str.count(";").eq(2).all()
    report = found.report(query.obs["cell_type"].astype(str))
    assert report["cells"].sum() == query.n_obs
    truth = query.obs["cell_type"].astype(str)
    assert set(found.to_plots(truth)) == {"probability", "map", "coverage", "confusion"}
    assert set(found.to_plots()) == {"probability", "map", "coverage"}
    table = found.confusion(truth)
    assert table.to_numpy().sum() == query.n_obs and list(table.index) == sorted(set(truth))
    curve = found.coverage(truth)
    best = np.array(found.levels["type"])[found.probabilities["type"].argmax(axis=1)]
    assert curve["coverage"].iloc[0] == 1 and curve["accuracy"].iloc[0] == pytest.approx(
        np.mean(best == truth.to_numpy())
    )
    assert len(found.coverage()) == len(found.coverage_curve)


def test_the_curve_rises_and_the_threshold_keeps_the_stated_error(found):
    curve = found.coverage_curve
    assert (np.diff(curve[:, 1]) <= 1e-12).all()
    chosen = curve[curve[:, 0] == found.threshold]
    assert len(chosen) == 1 and 1 - chosen[0, 2] <= 0.05


def test_levels_roll_up(reference, query):
    coarse = {"Excitatory": "neuron", "Inhibitory": "neuron"}
    known = reference.copy()
    known.obs["class"] = (
        known.obs["cell_type"].astype(str).map(lambda t: coarse.get(t, "glia and vessels"))
    )
    found = scmamba.annotate(query, reference=known, label_key=["class", "cell_type"], **QUIET)
    fine, above = found.labels("cell_type").astype(str), found.labels("class").astype(str)
    both = (fine != UNASSIGNED) & (above != UNASSIGNED)
    assert both.any()
    assert all(coarse.get(f, "glia and vessels") == a for f, a in zip(fine[both], above[both]))
    neurons = [found.levels["cell_type"].index(t) for t in coarse]
    np.testing.assert_allclose(
        found.probabilities["class"][:, found.levels["class"].index("neuron")],
        found.probabilities["cell_type"][:, neurons].sum(axis=1),
    )
    known.obs["class"] = np.where(np.arange(known.n_obs) % 2, "a", "b")
    with pytest.raises(DataError, match="more than one class"):
        scmamba.annotate(query, reference=known, label_key=["class", "cell_type"], **QUIET)


def test_a_type_missing_from_the_reference_is_mostly_unassigned(reference, query):
    known = reference[reference.obs["cell_type"] != "Microglia"].copy()
    calls = (
        scmamba.annotate(query, reference=known, label_key="cell_type", **QUIET)
        .labels()
        .astype(str)
    )
    new = (query.obs["cell_type"] == "Microglia").to_numpy()
    assert np.mean(calls[new] == UNASSIGNED) > 0.5 > np.mean(calls[~new] == UNASSIGNED)


def test_the_network_is_reproducible_and_cached(reference, query, tmp_path, capsys):
    options = {
        "reference": reference,
        "label_key": "cell_type",
        "model": small_model("expressed"),
        "finetune_steps": 3,
        "return_result": True,
        "cache": tmp_path,
    }
    first = scmamba.annotate(query, **options)
    assert "using the cached fit" not in capsys.readouterr().err
    again = scmamba.annotate(query, **options)
    assert "using the cached fit" in capsys.readouterr().err
    np.testing.assert_allclose(first.probabilities["type"], again.probabilities["type"], atol=1e-6)
    fresh = scmamba.annotate(query, **{**options, "cache": False})
    np.testing.assert_allclose(first.probabilities["type"], fresh.probabilities["type"], atol=1e-6)
    kept = next(tmp_path.glob("*/network"))
    alone = scmamba.annotate(query, model=kept, force=True, verbose=False, return_result=True)
    assert alone.levels["type"] == first.levels["type"]
    next(tmp_path.glob("*/ensemble.npz")).write_bytes(b"damaged")
    scmamba.annotate(query, **options)
    assert "fitting again" in capsys.readouterr().err


def test_markers_alone(query):
    calls = scmamba.annotate(
        brain_cohort(300, n_donors=3, seed=5), markers="panel", verbose=False, return_result=True
    )
    assert set(calls.levels["type"]) <= set(brain_markers())
    panel = {"one": ["SLC17A7"], "two": ["GAD1", "GAD2"]}
    assert scmamba.annotate(
        query, markers=panel, force=True, verbose=False, return_result=True
    ).levels["type"] == [
        "one",
        "two",
    ]
    with pytest.raises(DataError, match="at least two types"):
        scmamba.annotate(
            query,
            markers={"one": ["SLC17A7"], "two": ["NOGENE"]},
            verbose=False,
            return_result=True,
        )


def test_markers_find_the_types_of_real_blood_cells(pbmc):
    """Against the clusters of the well-known PBMC 3k tutorial, which come from all genes and not from these markers."""
    blood = ad.read_h5ad(pbmc)
    panel = {
        "T": ["CD3D", "CD3E", "IL7R", "LDHB"],
        "B": ["CD79A", "MS4A1", "CD79B"],
        "NK": ["GNLY", "NKG7", "PRF1", "FGFBP2"],
        "Mono": ["LYZ", "S100A8", "S100A9", "CST3", "FCER1G"],
    }
    calls = (
        scmamba.annotate(blood, markers=panel, force=True, verbose=False, return_result=True)
        .labels()
        .astype(str)
    )
    truth = (
        blood.obs["cell_type"]
        .astype(str)
        .replace(
            {
                "CD4 T cells": "T",
                "CD8 T cells": "T",
                "B cells": "B",
                "NK cells": "NK",
                "CD14+ Monocytes": "Mono",
                "FCGR3A+ Monocytes": "Mono",
            }
        )
        .to_numpy()
    )
    judged = np.isin(truth, list(panel))
    named = judged & (calls != UNASSIGNED)
    assert named.sum() > 0.6 * judged.sum()
    assert np.mean(calls[named] == truth[named]) > 0.9


def test_markers_find_the_types_of_real_nuclei(shared):
    brain = ad.read_h5ad(shared / "data" / "velmeshev2019_pfc_3types.h5ad")[::8].copy()
    calls = (
        scmamba.annotate(brain, markers="panel", verbose=False, return_result=True)
        .labels()
        .astype(str)
    )
    named = calls != UNASSIGNED
    assert named.mean() > 0.5
    assert (
        np.mean(np.char.lower(calls[named]) == brain.obs["cell_type"].astype(str).to_numpy()[named])
        > 0.85
    )


def test_one_class_one_cell_and_missing_labels(reference, query):
    known = reference.copy()
    known.obs["one"] = "cell"  # nearly all cells of other types would get it, too
    with pytest.raises(DataError, match="one cell type, 'cell'"):
        scmamba.annotate(query, reference=known, label_key="one", **QUIET)
    labels = known.obs["cell_type"].astype(object).copy()
    labels.iloc[:30] = None
    labels.iloc[31] = "a single cell"
    known.obs["gaps"] = labels
    found = scmamba.annotate(query, reference=known, label_key="gaps", **QUIET)
    assert (
        "a single cell" in found.levels["type"]
        and found.provenance["reference_cells"] == known.n_obs - 30
    )
    known.obs["none"] = None
    with pytest.raises(DataError, match="no label"):
        scmamba.annotate(query, reference=known, label_key="none", **QUIET)


def test_labels_that_mean_missing(reference, query, capsys):
    """The calls of annotate, with its Unassigned cells, are a valid reference."""
    known = reference.copy()
    labels = known.obs["cell_type"].astype(object).copy()
    labels.iloc[:8] = ["Unassigned", "", "nan", " unknown ", None, np.nan, "NA", "Unassigned"]
    known.obs["call"] = labels
    found = scmamba.annotate(query, reference=known, label_key="call", **{**QUIET, "verbose": True})
    assert found.provenance["reference_cells"] == known.n_obs - 8
    assert found.levels["type"] == sorted(set(reference.obs["cell_type"].astype(str)))
    warnings_text = capsys.readouterr().err
    assert (
        "8 reference cells have no label and are not used" in warnings_text
        and "'Unassigned' 2" in warnings_text
    )


def test_the_reference_has_its_own_layer(reference, query):
    known, own = reference.copy(), query.copy()
    known.layers["counts"] = known.X.copy()
    known.X = -known.X  # not a scale that can be read
    plain = scmamba.annotate(query, reference=reference, label_key="cell_type", **QUIET)
    found = scmamba.annotate(
        own, reference=known, label_key="cell_type", reference_layer="counts", **QUIET
    )
    np.testing.assert_array_equal(found.probabilities["type"], plain.probabilities["type"])
    with pytest.raises(DataError, match="counts"):
        scmamba.annotate(
            own, reference=reference, label_key="cell_type", reference_layer="counts", **QUIET
        )


def test_the_object_is_returned_and_other_columns_stay(query):
    options = dict(markers="panel", verbose=False)
    given = query.copy()
    done = scmamba.annotate(given, **options)
    assert done is given and "scmamba_type" in given.obs
    record = given.uns["scmamba"]["annotate"]
    assert set(record) == {"version", "params", "summary"} and record["params"]["seed"] == 0
    assert scmamba.annotate(given, **options) is given  # scMamba's own columns are replaced
    other = scmamba.annotate(query, copy=True, **options)
    assert other is not query and "scmamba_type" not in query.obs
    foreign = query.copy()
    foreign.obs["scmamba_probability"] = "mine"
    with pytest.raises(DataError, match=r"obs\['scmamba_probability'\] exists already"):
        scmamba.annotate(foreign, **options)
    assert (foreign.obs["scmamba_probability"] == "mine").all()
    scmamba.annotate(foreign, overwrite=True, **options)
    assert foreign.obs["scmamba_probability"].dtype == float


def test_old_names_warn_and_give_the_same_result(reference, query):
    new = scmamba.annotate(query, reference=reference, label_key="cell_type", **QUIET)
    with pytest.warns(DeprecationWarning) as caught:
        old = scmamba.annotate(
            query,
            reference=reference,
            labels="cell_type",
            donor="donor",
            network=False,
            cache=False,
            verbose=False,
            return_result=True,
        )
        np.testing.assert_array_equal(old.curve, new.coverage_curve)
        np.testing.assert_array_equal(old.space, new.pcs)
        np.testing.assert_array_equal(old.strange, new.is_novel)
        np.testing.assert_array_equal(old.plane()[0], new.umap()[0])
    np.testing.assert_array_equal(old.probabilities["type"], new.probabilities["type"])
    warnings_text = " ".join(str(w.message) for w in caught)
    for name in (
        "label_key",
        "donor_key",
        "finetune_steps",
        "coverage_curve",
        "pcs",
        "is_novel",
        "umap",
    ):
        assert name in warnings_text


def test_too_few_shared_genes_are_refused(reference, query):
    with pytest.raises(DataError, match="share .* at least 300"):
        scmamba.annotate(query[:, :200].copy(), reference=reference, label_key="cell_type", **QUIET)
    enough = np.flatnonzero(np.asarray(query.X.sum(axis=0)).ravel() > 10)[:400]
    found = scmamba.annotate(
        query[:, enough].copy(), reference=reference, label_key="cell_type", **QUIET
    )
    assert len(found.labels()) == query.n_obs


def test_many_small_donors_a_donor_of_one_cell_and_a_single_query_cell(reference, query):
    known = reference.copy()
    known.obs["donor"] = [f"d{i // 4}" for i in range(known.n_obs)]
    known.obs.iloc[0, known.obs.columns.get_loc("donor")] = "alone"
    found = scmamba.annotate(query[:1].copy(), reference=known, label_key="cell_type", **QUIET)
    assert found.labels().shape == (1,)
    found = scmamba.annotate(query, reference=known, label_key="cell_type", donor_key=None, **QUIET)
    assert len(found.coverage_curve)


def test_invalid_requests_are_refused(reference, query):
    with pytest.raises(DataError, match="no column 'nothing'"):
        scmamba.annotate(query, reference=reference, label_key="nothing", **QUIET)
    with pytest.raises(ScMambaError, match="label_key="):
        scmamba.annotate(query, reference=reference, **QUIET)
    with pytest.raises(ScMambaError, match="does not classify"):
        scmamba.annotate(query, model=small_model(), force=True, verbose=False, return_result=True)
    with pytest.raises(ScMambaError, match="between 0 and 1"):
        scmamba.annotate(query, error_rate=5, verbose=False, return_result=True)


def test_temperature_folds_and_curve():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 4000)
    logits = rng.normal(size=(4000, 4))
    logits[np.arange(4000), codes] += 1.0
    # For unit normals with means one apart, the exact posterior is the softmax of the values: temperature one, or three if they are tripled.
    assert fit_temperature(logits, codes) == pytest.approx(1.0, abs=0.08)
    assert fit_temperature(3 * logits, codes) == pytest.approx(3.0, abs=0.25)
    fold = donor_folds(np.repeat([f"d{i}" for i in range(6)], 10), np.zeros(60, dtype=int), 3, 0)
    assert all(len(np.unique(fold[i : i + 10])) == 1 for i in range(0, 60, 10)) and set(fold) == {
        0,
        1,
        2,
    }
    curve = coverage_curve(softmax(logits, axis=1), codes)
    assert curve[0, 1] == 1 and curve[-1, 2] > curve[0, 2]


def test_command_line(reference, query, tmp_path):
    reference.write_h5ad(tmp_path / "reference.h5ad")
    query.write_h5ad(tmp_path / "query.h5ad")
    out = tmp_path / "out.h5ad"
    command = ["annotate", str(tmp_path / "query.h5ad"), "-o", str(out), "-q"]
    options = [
        "--reference",
        str(tmp_path / "reference.h5ad"),
        "--label-key",
        "cell_type",
        "--finetune-steps",
        "0",
        "--no-cache",
        "--truth",
        "cell_type",
        "--table",
        str(tmp_path / "t.csv"),
        "--plots",
        str(tmp_path / "plots"),
    ]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    assert "scmamba_type" in ad.read_h5ad(out).obs and "Microglia" in result.output
    assert (tmp_path / "plots" / "confusion.png").is_file() and (tmp_path / "t.csv").is_file()
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and "exists already" in again.output
    (tmp_path / "panel.tsv").write_text("type\tgenes\none\tSLC17A7,SATB2\ntwo\tGAD1, GAD2\n")
    result = CliRunner().invoke(
        app, [*command, "--overwrite", "--markers", str(tmp_path / "panel.tsv")]
    )
    assert result.exit_code == 0, result.output
    (tmp_path / "panel.tsv").write_text("no tab here\n")
    result = CliRunner().invoke(
        app, [*command, "--overwrite", "--markers", str(tmp_path / "panel.tsv")]
    )
    assert result.exit_code == 1 and "has no tab" in result.output


def test_genes_of_the_network_are_in_its_order():
    from scipy import sparse

    from scmamba.annotation._reference import readable

    x, genes = readable(sparse.csr_matrix(np.array([[1.0, 2, 3, 4]])), np.array([7, -1, 2, 5]))
    assert x.toarray().tolist() == [[3.0, 4.0, 1.0]] and genes.tolist() == [2, 5, 7]


def test_profiles_give_the_cross_entropy_per_count():
    from scipy import sparse

    from scmamba.annotation.base_classifiers import COUNTS, profile_logits

    profiles = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    x = sparse.csr_matrix(np.log1p([[2.0, 1, 1], [2.0, 1, 1]]))
    expected = [-(2 * np.log(0.5) + 2 * np.log(0.25)) / 4, -(3 * np.log(0.1) + np.log(0.8)) / 4]
    np.testing.assert_allclose(-profile_logits(x, profiles) / COUNTS, [expected, expected])
    assert (
        profile_logits(x, profiles, np.array([True, False]))[0, 0]
        < profile_logits(x, profiles)[0, 1]
    )


def test_the_prior_is_corrected_only_if_it_helps_rare_classes():
    from scmamba.annotation.ensemble import fit_prior_correction

    prior = np.log([0.9, 0.1])
    codes = np.array([0] * 9 + [1])
    # The rare cell is misclassified by less than half of the difference of the log priors.
    logits = np.vstack([np.tile([3.0, 0.0], (9, 1)), [[0.5, 0.0]]])
    assert (logits - fit_prior_correction(logits, codes, prior)).argmax(axis=1)[-1] == 1
    assert not fit_prior_correction(
        np.tile([3.0, 0.0], (10, 1)) * np.where(codes, -1, 1)[:, None], codes, prior
    ).any()


def test_a_hundred_samples_of_twenty_cells():
    known = brain_cohort(2000, n_donors=4, n_genes=500, seed=8)
    known.obs["donor"] = [f"s{i % 100}" for i in range(known.n_obs)]
    query = brain_cohort(2000, n_donors=4, n_genes=500, seed=8)[::5].copy()
    found = scmamba.annotate(query, reference=known, label_key="cell_type", **QUIET)
    best = np.array(found.levels["type"])[found.probabilities["type"].argmax(axis=1)]
    assert np.mean(best == query.obs["cell_type"].astype(str).to_numpy()) > 0.9


def test_a_query_with_just_enough_shared_genes(reference, query):
    common = np.argsort(-np.asarray(query.X.sum(axis=0)).ravel())[:300]
    found = scmamba.annotate(
        query[:, common].copy(), reference=reference, label_key="cell_type", **QUIET
    )
    assert found.provenance["genes"] == 300 and np.isfinite(found.probabilities["type"]).all()


def test_a_classifier_keeps_its_calibration(query, tmp_path):
    from scmamba.model import load_model, save_checkpoint
    from scmamba.training.calibration import fit_calibration
    from scmamba.training.finetune_classifier import init_classifier

    model = init_classifier(small_model("expressed"), ["a", "b"])
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, 500)
    logits = 6 * rng.normal(size=(500, 2))
    logits[np.arange(500), codes] += 6
    model.calibration = fit_calibration(logits, codes)
    raw = scmamba.annotate(
        query,
        model=init_classifier(small_model("expressed"), ["a", "b"]),
        force=True,
        verbose=False,
        return_result=True,
    )
    save_checkpoint(model, tmp_path / "m")
    assert load_model(tmp_path / "m").calibration == model.calibration
    found = scmamba.annotate(
        query, model=tmp_path / "m", force=True, error_rate=0.1, verbose=False, return_result=True
    )
    # Dividing the log odds by the temperature reverses the factor of six (unit normals with means one apart).
    odds, plain = (np.diff(np.log(a.probabilities["type"]), axis=1) for a in (found, raw))
    np.testing.assert_allclose(odds, plain / model.calibration["temperature"], atol=1e-4)
    assert model.calibration["temperature"] == pytest.approx(6, rel=0.3)
    kept = found.coverage_curve[found.coverage_curve[:, 0] == found.threshold][0]
    assert 1 - kept[2] <= 0.1 and "calibrated on 500" in found.provenance["note"]


def test_panels_with_few_measured_markers_are_completed(query):
    from scmamba.datasets.marker_panels import brain_markers

    panel = {g for genes in brain_markers().values() for g in genes}
    assert not panel & {g for genes in brain_markers(more=True).values() for g in genes}
    symbols = (
        query.var["symbol"].astype(str)
        if "symbol" in query.var
        else query.var_names.astype(str).to_series()
    )
    poor = query[:, ~np.isin(symbols, brain_markers()["Microglia"][1:])].copy()
    found = scmamba.annotate(poor, markers="panel", verbose=False, return_result=True)
    more = np.isin(brain_markers(more=True)["Microglia"], symbols).sum()
    assert found.provenance["genes_per_type"].get("Microglia", 0) <= 1 + more
    assert ("Microglia" in found.provenance["completed"]) == (more > 0)


def test_a_marker_correlated_with_another_type_has_less_weight():
    from scmamba.annotation._markers import coherence, correlations

    rng = np.random.default_rng(0)
    kind = np.repeat([0, 1], 100)
    one, two = (
        np.column_stack([(kind == c) + 0.3 * rng.random(200) for _ in range(3)]) for c in (0, 1)
    )
    one[:, 2] = (kind == 1) + 0.3 * rng.random(200)
    weights = coherence([one, two], np.arange(200)[:, None])
    assert weights[0][2] < 0.2 < 0.5 < weights[0][:2].min() and weights[1].min() > 0.5
    a, b = rng.normal(size=(2, 50, 2))
    np.testing.assert_allclose(correlations(a, b), np.corrcoef(a.T, b.T)[:2, 2:])


def test_base_classifiers_that_increase_the_loss_are_dropped():
    from scmamba.annotation.base_classifiers import BASE_CLASSIFIERS
    from scmamba.annotation.ensemble import OutOfFoldScores, fit_weights

    rng = np.random.default_rng(1)
    codes = np.r_[rng.integers(0, 2, 600), np.full(5, 2)]
    right = 4.0 * np.eye(3)[codes] + rng.normal(size=(605, 3))
    noise = 4.0 * np.eye(3)[rng.integers(0, 3, 605)]
    right[codes == 2, 2] = -9  # no base classifier finds the rare class, the profiles do
    logits = {kind: right if kind == "components" else noise for kind in BASE_CLASSIFIERS}
    held, weights, temperatures, rare = fit_weights(
        OutOfFoldScores(logits | {"profile": 6.0 * np.eye(3)[codes]}, np.zeros((605, 3))), codes, 3
    )
    assert weights == {"components": pytest.approx(1.0)} and set(temperatures) == {
        "components",
        "profile",
    }
    assert rare.tolist() == [False, False, True]
    assert (held[codes == 2].argmax(axis=1) == 2).all()


def test_cells_of_an_unknown_type_are_novel():
    from scmamba.annotation.novelty import NoveltyDetector, novelty_scores, unit

    rng = np.random.default_rng(2)
    centres = 5 * np.eye(8)[:4]

    def draw(kinds: np.ndarray) -> np.ndarray:
        return unit(centres[kinds] + rng.normal(scale=0.5, size=(len(kinds), 8)))

    codes = rng.integers(0, 3, 600)
    space, fold = draw(codes), np.arange(600) % 3
    calm = np.zeros((600, 3))
    detector = NoveltyDetector.of(space, codes, calm, fold, 0)
    kinds = np.r_[rng.integers(0, 3, 150), np.full(40, 3)]
    here = draw(kinds)
    shown = novelty_scores(here, space, np.zeros((190, 3)), detector.pool, 0)
    is_novel = detector.is_novel(shown, np.where(kinds == 3, 0, kinds))
    assert is_novel[kinds == 3].mean() > 0.9 and is_novel[kinds < 3].mean() < 0.12
    # A shift of technology: all cells are far from the reference, and only outliers among cells with the same call are flagged.
    away = shown + [3.0, 0, 0, 0, 0]
    assert detector.is_domain_shifted(away) and not detector.is_domain_shifted(shown)
    assert detector.is_novel(away, np.where(kinds == 3, 0, kinds))[kinds < 3].mean() < 0.2
    few = NoveltyDetector.of(space[:30], codes[:30], calm[:30], fold[:30], 0)
    assert not few.is_novel(shown, kinds % 3).any()


def counts_of_types(rng: np.random.Generator, kinds: np.ndarray) -> sparse.csr_matrix:
    """log1p(CP10k) of 400 genes. Types 0 and 1 differ in many genes, 2 is 1 plus four genes, 3 lacks a third of the markers of 0."""
    rates = np.full((4, 400), 2.0)
    rates[0, :60] = rates[3, :40] = 6.0
    rates[1:3, 60:120] = 6.0
    rates[:, 396:] = 0.05
    rates[2, 396:] = 3.0
    counts = sparse.csr_matrix(rng.poisson(rates[kinds]).astype(np.float64))
    counts.data *= np.repeat(1e4 / np.asarray(counts.sum(axis=1)).ravel(), np.diff(counts.indptr))
    return sparse.csr_matrix(counts.log1p())


def test_marker_sums_find_a_rare_type_with_few_markers():
    from scmamba.annotation.base_classifiers import fit_base_classifier, marker_features

    rng = np.random.default_rng(3)
    codes, kinds = np.r_[np.repeat([0, 1], 300), np.full(8, 2)], np.repeat([0, 1, 2], 100)
    x, query = counts_of_types(rng, codes), counts_of_types(rng, kinds)
    view = fit_base_classifier(x, codes, 4, "markers", 0)  # the fourth class has no cells
    assert np.mean(view.logits(query).argmax(axis=1) == kinds) > 0.95
    assert {396, 397, 398, 399} == set(
        np.argsort(-view.basis[:, 4 + 2])[:4]
    )  # relative to its nearest class
    shown = marker_features(view, query)
    assert shown.shape == (300, 4) and (shown[:, 3] == 0).all()
    # Type 2 expresses the markers of type 1, of which it is a subtype, and four more.
    assert all(
        shown[kinds == c, c].mean() > shown[kinds == other, c].mean() + 1
        for c, other in ((0, 1), (0, 2), (1, 0), (2, 0), (2, 1))
    )
    for few in (1, 2):
        alone = fit_base_classifier(x[codes < few], codes[codes < few], few, "markers", 0)
        assert np.mean(alone.logits(query[kinds < few]).argmax(axis=1) == kinds[kinds < few]) > 0.99


def test_a_cell_without_the_markers_of_its_class_is_novel():
    from scmamba.annotation.ensemble import fit_ensemble

    rng = np.random.default_rng(4)
    codes, kinds = np.repeat([0, 1], 300), np.r_[np.repeat([0, 1], 80), np.full(40, 3)]
    x, query = counts_of_types(rng, codes), counts_of_types(rng, kinds)
    fitted = fit_ensemble(
        x, codes.astype(str), np.array([f"d{i % 6}" for i in range(600)]), verbose=False
    )
    p = fitted.probabilities(query)
    assert (p[kinds == 3, 0] > 0.9).all()  # a confident wrong call
    is_novel = fitted.is_novel(query, p, x, 0)
    assert is_novel[kinds == 3].mean() > 0.9 and is_novel[kinds < 3].mean() < 0.15


def test_a_few_cells_with_foreign_genes_are_novel_although_none_of_their_type_is_near():
    from scmamba.annotation.ensemble import fit_ensemble

    rng = np.random.default_rng(7)
    codes, kinds = np.repeat([0, 1], 300), np.repeat([0, 1, 2], [150, 150, 3])
    x, query = counts_of_types(rng, codes), counts_of_types(rng, kinds)
    # In three cells two fifths of the counts are of one gene that the reference hardly expresses, like hemoglobin in erythrocytes.
    linear = np.expm1(query.toarray())
    linear[kinds == 2] *= 0.6
    linear[kinds == 2, 399] += 4000
    query = sparse.csr_matrix(np.log1p(linear))
    fitted = fit_ensemble(
        x, codes.astype(str), np.array([f"d{i % 6}" for i in range(600)]), verbose=False
    )
    is_novel = fitted.is_novel(query, fitted.probabilities(query), x, 0)
    assert is_novel[kinds == 2].all()
    # Their nearest neighbors are not flagged.
    assert is_novel[kinds < 2].mean() < 0.05
