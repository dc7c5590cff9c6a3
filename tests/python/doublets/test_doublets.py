"""Doublets: the simulation against sums by hand, the statistics against other implementations, and data at the limits of the method."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import small_model
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, silhouette_score

import scmamba
from scmamba.data.doublet_simulation import simulate_doublets
from scmamba.datasets import brain_cohort
from scmamba.doublets import features
from scmamba.doublets._find import logistic
from scmamba.utils.errors import DataError, ScMambaError

QUIET = dict(verbose=False)


@pytest.fixture(scope="module")
def droplets() -> ad.AnnData:
    """Four hundred simulated nuclei of two donors, and 40 heterotypic doublets."""
    cells = brain_cohort(480, n_donors=2, n_genes=3000, donor_effect=0.2, seed=3)
    rng = np.random.default_rng(0)
    donor = cells.obs["donor"].to_numpy()
    pairs = []
    rows = rng.permutation(cells.n_obs)
    free = list(rows)
    while len(pairs) < 40:
        a = free.pop()
        b = next(
            r
            for r in free
            if donor[r] == donor[a] and cells.obs.cell_type.iloc[r] != cells.obs.cell_type.iloc[a]
        )
        free.remove(b)
        pairs.append((a, b))
    a, b = np.array(pairs).T
    x = sparse.csr_matrix(cells.X)
    counts = sparse.vstack([x[np.sort(free)], x[a] + x[b]], format="csr")
    obs = pd.DataFrame(
        {
            "donor": np.r_[donor[np.sort(free)], donor[a]].astype(str),
            "kind": np.r_[
                cells.obs.cell_type.to_numpy()[np.sort(free)], cells.obs.cell_type.to_numpy()[a]
            ].astype(str),
            "truth": np.r_[np.zeros(len(free), bool), np.ones(40, bool)],
        }
    )
    obs.index = [f"d{i}" for i in range(len(obs))]
    return ad.AnnData(counts, obs=obs, var=cells.var)


def test_simulated_doublets_are_sums_of_their_parents():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.0, (60, 30)))
    sample, cluster = np.repeat([0, 1], 30), np.tile([0, 1, 2], 20)
    for recipe in ("sum", "mean", "mixed"):
        made = simulate_doublets(counts, sample, 200, cluster=cluster, recipe=recipe, seed=1)
        first, second = made.parents.T
        assert (
            len(made) == 200
            and (sample[first] == sample[second]).all()
            and (made.sample == sample[first]).all()
        )
        assert (cluster[first] != cluster[second]).all()
        both = (counts[first] + counts[second]).toarray()
        share = made.counts.toarray() / np.where(both, both, 1)
        if recipe == "mixed":
            assert share.max() <= 1 and 0.65 < made.counts.sum() / both.sum() < 0.85
        else:
            np.testing.assert_array_equal(
                made.counts.toarray(), both * (0.5 if recipe == "mean" else 1)
            )
    again = simulate_doublets(counts, sample, 200, cluster=cluster, seed=1)
    assert (
        again.parents == simulate_doublets(counts, sample, 200, cluster=cluster, seed=1).parents
    ).all()


def test_single_and_excluded_cells_give_no_doublets():
    counts = sparse.csr_matrix(np.ones((5, 4)))
    assert len(simulate_doublets(counts, np.arange(5), 20)) == 0
    made = simulate_doublets(counts, np.zeros(5, int), 50, weight=np.array([1, 1, 1, 0, 0.0]))
    assert made.parents.max() == 2 and len(made) == 50
    with pytest.raises(ScMambaError, match="recipe"):
        simulate_doublets(counts, np.zeros(5, int), 5, recipe="product")


def test_logistic_and_silhouette_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 4))
    y = rng.random(300) < 1 / (1 + np.exp(-x[:, 0] + 0.5))
    other = LogisticRegression(C=1 / 5, tol=1e-10, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(logistic(x, y), np.r_[other.intercept_, other.coef_[0]], atol=1e-4)
    code = (x[:, 0] > 0) + 2 * (x[:, 1] > 0.3)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    assert features.silhouette(distance, code) == pytest.approx(
        silhouette_score(x, code), abs=1e-10
    )


def test_doublets_are_called_reproducibly_with_their_types(droplets):
    before = droplets.copy()
    result = scmamba.find_doublets(
        droplets, sample_key="donor", label_key="kind", expected_rate=0.09, copy=True, **QUIET
    )
    assert list(droplets.obs.columns) == list(before.obs.columns) and "scmamba" not in droplets.uns
    score, truth = result.obs["scmamba_doublet_score"], droplets.obs["truth"]
    assert score.between(0, 1).all() and average_precision_score(truth, score) > 0.7
    called = result.obs["scmamba_doublet"]
    assert (called & truth).sum() >= 0.6 * called.sum()
    parents = result.obs["scmamba_doublet_parents"].astype(str)
    assert (parents[~called] == "").all() and parents[called].str.contains(" \\+ ").all()
    own = [
        kind in names
        for kind, names in zip(droplets.obs["kind"][called & truth], parents[called & truth])
    ]
    assert np.mean(own) > 0.7  # one of the reported parent types is the true first one
    again = scmamba.find_doublets(
        droplets, sample_key="donor", label_key="kind", expected_rate=0.09, copy=True, **QUIET
    )
    pd.testing.assert_frame_equal(result.obs, again.obs)
    other = scmamba.find_doublets(
        droplets, sample_key="donor", expected_rate=0.09, seed=5, copy=True, **QUIET
    ).obs["scmamba_doublet"]
    assert (other & called).sum() / (other | called).sum() > 0.5


def test_the_pre_trained_network_finds_doublets(droplets, monkeypatch):
    from scmamba.doublets import network as _doublet_network

    monkeypatch.setattr(_doublet_network, "STEPS", (40, 40))
    few = droplets[np.r_[:120, 400:440], :1500].copy()  # all the true doublets, but fewer cells
    options = dict(sample_key="donor", method="network", rounds=2, copy=True, **QUIET)
    result = scmamba.find_doublets(few, model="brain-mini", **options)
    assert (
        few.obs["truth"].mean() <= 0.25
        and average_precision_score(few.obs["truth"], result.obs["scmamba_doublet_score"]) > 0.6
    )


def test_the_network_is_reproducible_and_is_combined_with_the_fast_method(droplets, monkeypatch):
    from scmamba.doublets import network as _doublet_network

    monkeypatch.setattr(_doublet_network, "STEPS", (3, 3))
    few = droplets[np.r_[:60, 400:440], :600].copy()
    options = dict(model=small_model("expressed"), rounds=2, copy=True, **QUIET)
    fast, alone, again, both = (
        scmamba.find_doublets(few, method=m, **options).obs["scmamba_doublet_score"].to_numpy(float)
        for m in ("fast", "network", "network", "both")
    )
    np.testing.assert_allclose(alone, again, atol=1e-6)
    # Combined log odds, except for the rate that each method assumes for the whole sample: the mean of both.
    gaps = np.log(both / (1 - both)) - (np.log(fast / (1 - fast)) + np.log(alone / (1 - alone))) / 2
    np.testing.assert_allclose(gaps, np.median(gaps), atol=0.02)
    assert np.abs(np.log(fast / (1 - fast)) - np.log(alone / (1 - alone))).std() > 0.1


def test_rates_are_kept_per_sample(droplets):
    fixed = scmamba.find_doublets(
        droplets, sample_key="donor", identification_rate=0.2, copy=True, **QUIET
    )
    for _, part in fixed.obs.groupby("donor"):
        assert part["scmamba_doublet"].sum() == round(0.2 * len(part))
    names = droplets.obs["donor"].unique()
    rates = {names[0]: 0.1, names[1]: 0.0}
    given = scmamba.find_doublets(
        droplets, sample_key="donor", expected_rate=rates, copy=True, **QUIET
    )
    assert given.obs.groupby("donor")["scmamba_doublet"].sum()[names[1]] == 0
    assert list(given.uns["scmamba"]["doublets"]["summary"]["samples"]["rate"]) == [0.1, 0.0]
    with pytest.raises(ScMambaError, match="no entry"):
        scmamba.find_doublets(droplets, sample_key="donor", expected_rate={"x": 0.1}, **QUIET)
    with pytest.raises(ScMambaError, match="8% is 0.08"):
        scmamba.find_doublets(droplets, expected_rate=8, **QUIET)
    for wrong in ({names[0]: [0.1]}, "0.1", True, float("nan"), {names[0]: None, names[1]: "x"}):
        with pytest.raises(ScMambaError, match="a share of the droplets"):
            scmamba.find_doublets(droplets, sample_key="donor", expected_rate=wrong, **QUIET)


def test_old_option_names_warn_and_give_the_same_result(droplets):
    few = droplets[:120].copy()
    options = dict(rounds=2, expected_rate=0.1, copy=True, **QUIET)
    new = scmamba.find_doublets(
        few, sample_key="donor", label_key="kind", doublet_simulation="sum", **options
    )
    with pytest.warns(DeprecationWarning) as caught:
        old = scmamba.detect_doublets(few, sample="donor", labels="kind", recipe="sum", **options)
    pd.testing.assert_frame_equal(old.obs, new.obs)
    warnings_text = " ".join(str(w.message) for w in caught)
    for name in ("find_doublets()", "sample_key", "label_key", "doublet_simulation"):
        assert name in warnings_text
    record = new.uns["scmamba"]["doublets"]
    assert set(record) == {"version", "params", "summary"}
    assert record["params"]["doublet_simulation"] == "sum"


def test_other_columns_of_the_object_stay(droplets):
    few = droplets[:60].copy()
    few.obs["scmamba_doublet"] = "mine"
    with pytest.raises(DataError, match=r"obs\['scmamba_doublet'\] exists already"):
        scmamba.find_doublets(few, rounds=1, **QUIET)
    scmamba.find_doublets(few, rounds=1, overwrite=True, **QUIET)
    assert few.obs["scmamba_doublet"].dtype == bool
    scmamba.find_doublets(few, rounds=1, **QUIET)  # scMamba's own columns are replaced


def test_the_result_can_be_written_and_read(droplets, tmp_path):
    result = scmamba.find_doublets(droplets[:150].copy(), sample_key="donor", **QUIET)
    result.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obs["scmamba_doublet"], result.obs["scmamba_doublet"])
    assert back.uns["scmamba"]["doublets"]["summary"]["samples"]["cells"].sum() == 150


def test_edge_cases_work_or_give_the_reason(droplets):
    small = droplets[:80].copy()
    small.obs["donor"] = pd.Categorical(
        ["one"] * 78 + [None, "alone"]
    )  # NA, and a donor with one cell
    small.X = sparse.diags((np.arange(80) != 3).astype(float)) @ small.X
    result = scmamba.find_doublets(small, sample_key="donor", **QUIET)
    assert (
        np.isnan(result.obs["scmamba_doublet_score"].iloc[3])
        and not result.obs["scmamba_doublet"].iloc[3]
    )
    assert result.obs["scmamba_doublet_score"].notna().sum() == 79
    with pytest.raises(DataError, match="at least 30"):
        scmamba.find_doublets(droplets[:20].copy(), **QUIET)
    logs = droplets[:50].copy()
    logs.X = features.log_values(logs.X, 1e4)
    with pytest.raises(DataError, match="raw counts"):
        scmamba.find_doublets(logs, **QUIET)
    with pytest.raises(DataError, match="no column"):
        scmamba.find_doublets(droplets, sample_key="library", **QUIET)
    with pytest.raises(DataError, match="No sample has two"):
        alone = droplets[:40].copy()
        alone.obs["own"] = alone.obs_names
        scmamba.find_doublets(alone, sample_key="own", **QUIET)


def test_a_hundred_samples_of_twenty_cells_of_one_type_and_three_hundred_genes():
    cells = brain_cohort(2000, n_donors=4, n_genes=300, cell_types=["Microglia"], seed=2)
    cells.obs["library"] = np.repeat([f"s{i}" for i in range(100)], 20)
    result = scmamba.find_doublets(
        cells, sample_key="library", rounds=1, identification_rate=0.1, **QUIET
    )
    assert (result.obs.groupby("library")["scmamba_doublet"].sum() == 2).all()


def test_command_line(droplets, tmp_path):
    from typer.testing import CliRunner

    from scmamba.cli.main import app

    droplets[:120].copy().write_h5ad(tmp_path / "in.h5ad")
    call = [
        "doublets",
        str(tmp_path / "in.h5ad"),
        "-o",
        str(tmp_path / "out.h5ad"),
        "--sample",
        "donor",
        "--expected-rate",
        "0.1",
        "-q",
        "--table",
        str(tmp_path / "t.csv"),
    ]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "t.csv", index_col=0, keep_default_na=False)
    assert (
        table["scmamba_doublet"].sum()
        == ad.read_h5ad(tmp_path / "out.h5ad").obs["scmamba_doublet"].sum()
        > 0
    )
    assert CliRunner().invoke(app, call).exit_code == 1


def test_metrics_agree_with_scikit_learn():
    from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

    from scmamba.evaluation.doublets import doublet_scores, identification_curve, jaccard

    rng = np.random.default_rng(0)
    truth = rng.random(500) < 0.15
    score = np.round(rng.normal(truth, 1), 1)  # with ties
    found = doublet_scores(truth, score, score > 0.8)
    assert found["AUPRC"] == pytest.approx(average_precision_score(truth, score))
    assert found["AUROC"] == pytest.approx(roc_auc_score(truth, score))
    for name, other in (("precision", precision_score), ("recall", recall_score), ("F1", f1_score)):
        assert found[name] == pytest.approx(other(truth, score > 0.8))
    assert found["TNR"] == pytest.approx(recall_score(~truth, score <= 0.8))
    curve = identification_curve(truth, score)
    assert list(curve["rate"]) == [0.1, 0.2, 0.3, 0.4] and curve["recall"].is_monotonic_increasing
    assert curve["precision"].iloc[1] * 100 == pytest.approx(curve["recall"].iloc[1] * truth.sum())
    assert jaccard([truth, truth, ~truth]).tolist() == [1, 0, 0]
    assert np.isnan(doublet_scores(np.zeros(5, bool), np.arange(5.0))["AUPRC"])
    with pytest.raises(DataError, match="scores came"):
        doublet_scores(truth, score[:10])


def test_hardly_any_calls_without_doublets():
    cells = brain_cohort(300, n_donors=2, n_genes=1000, seed=4)
    found = scmamba.find_doublets(cells, rounds=1, copy=True, **QUIET)
    assert (
        found.obs["scmamba_doublet"].mean() < 0.05
    )  # not more than expected by chance among 300 droplets
    none = scmamba.find_doublets(cells, rounds=1, expected_rate=0.0, copy=True, **QUIET)
    assert (
        not none.obs["scmamba_doublet"].any() and (none.obs["scmamba_doublet_parents"] == "").all()
    )
    assert none.obs["scmamba_doublet_score"].max() < 0.5


def test_a_donor_with_one_cell_is_scored_and_called_by_its_own_rate(droplets):
    cells = droplets[:120].copy()
    cells.obs["donor"] = pd.Categorical(["many"] * 119 + ["alone"])
    found = scmamba.find_doublets(
        cells,
        sample_key="donor",
        rounds=1,
        expected_rate={"many": 0.1, "alone": 0.1},
        copy=True,
        **QUIET,
    )
    table = pd.DataFrame(found.uns["scmamba"]["doublets"]["summary"]["samples"]).set_index("sample")
    assert table["called"].to_dict() == {"many": 12, "alone": 0} and np.isfinite(
        found.obs["scmamba_doublet_score"].iloc[-1]
    )
    assert table.loc["alone", "detectable"] == 0  # no other cell to form a doublet with


def test_identical_cells_work():
    counts = np.tile(np.arange(1, 41.0), (40, 1))
    found = scmamba.find_doublets(
        ad.AnnData(sparse.csr_matrix(counts)), rounds=1, expected_rate=0.1, **QUIET
    )
    assert (
        found.obs["scmamba_doublet"].sum() == 4
        and found.obs["scmamba_doublet_score"].nunique() <= 5
    )


# ---------------------------------------------------------------- types of the brain


@pytest.fixture(scope="module")
def brain_droplets() -> ad.AnnData:
    """Simulated nuclei of the brain, and 40 doublets of two types thinned to the depth of one of their nuclei."""
    from benchmarks.doublets import with_doublets

    cells = brain_cohort(600, n_donors=2, n_genes=4000, seed=5)
    return with_doublets(cells, "donor", 1, share=0.08, two_types=True, matched=True)


def test_doublets_of_two_brain_types_are_found_without_depth_and_named(brain_droplets):
    made = brain_droplets
    total = np.asarray(made.X.sum(axis=1)).ravel()
    truth = made.obs["truth"].to_numpy()
    assert truth.sum() >= 40 and not made.obs["homotypic"].any()
    assert average_precision_score(truth, total) < 0.2  # depth shows nothing
    found = scmamba.find_doublets(made, sample_key="sample", expected_rate=0.08, copy=True, **QUIET)
    assert average_precision_score(truth, found.obs["scmamba_doublet_score"]) > 0.7
    called = found.obs["scmamba_doublet"].to_numpy() & truth
    parents = found.obs["scmamba_doublet_parents"].astype(str)[called].str.split(" \\+ ")
    named = set(parents.explode())
    assert named <= set(scmamba.references()["type"]) and len(named) >= 4
    true = made.obs["types"][called].str.split(" \\+ ")
    first = [{t[:5].lower() for t in pair} for pair in parents]
    assert np.mean([{t[:5].lower() for t in pair} == f for pair, f in zip(true, first)]) > 0.6
    assert found.uns["scmamba"]["doublets"]["summary"]["parents_from"] == "human-brain"


def test_the_brain_reference_helps(brain_droplets, monkeypatch):
    from scmamba.doublets import _find

    made = brain_droplets[
        brain_droplets.obs["sample"] == brain_droplets.obs["sample"].iloc[0]
    ].copy()
    scores = []
    for used in (True, False):
        if not used:
            monkeypatch.setattr(_find.BrainClusters, "find", classmethod(lambda *_: None))
        found = scmamba.find_doublets(made, rounds=2, copy=True, **QUIET)
        scores.append(
            average_precision_score(made.obs["truth"], found.obs["scmamba_doublet_score"])
        )
        parents = found.obs["scmamba_doublet_parents"].astype(str)
        assert parents.str.contains("^(?:c[0-9]+)? ?\\+? ?(?:c[0-9]+)?$").all() != used
    assert scores[0] > scores[1]


def test_blood_cells_are_named_by_clusters(pbmc):
    blood = ad.read_h5ad(pbmc)
    found = scmamba.find_doublets(blood, rounds=1, expected_rate=0.1, **QUIET)
    parents = found.obs["scmamba_doublet_parents"].astype(str)
    assert parents[found.obs["scmamba_doublet"]].str.fullmatch(r"(c\d+|\?) \+ (c\d+|\?)").all()
    assert found.uns["scmamba"]["doublets"]["summary"]["parents_from"] == "clusters"


def test_mean_and_sum_are_the_same_input_after_normalization(droplets):
    counts = sparse.csr_matrix(droplets.X, dtype=float)
    made = [
        simulate_doublets(counts, np.zeros(len(droplets), int), 20, recipe=recipe, seed=3)
        for recipe in ("mean", "sum")
    ]
    mean, total = (features.log_values(m.counts, 1e4).toarray() for m in made)
    np.testing.assert_allclose(mean, total)


def test_profiles_are_shrunk_towards_the_expected_ones():
    counts = sparse.csr_matrix(np.array([[8.0, 2, 0], [6, 4, 0], [0, 5, 5], [0, 4, 6]]))
    expected = np.array([[0.7, 0.2, 0.1], [0.1, 0.4, 0.5]])
    mixed = features.Mixtures(
        counts, np.array([0, 0, 1, 1]), suspected=0.0, rounds=1, expected=expected
    )
    mixed.keep[:], mixed.cluster = True, np.array([0, 0, 1, 1])
    profile = mixed.profiles(np.ones(4, bool))
    pooled = np.array([[14.0, 6, 0], [0, 9, 11]])
    np.testing.assert_allclose(profile, (pooled + 1000 * expected) / 1020)
