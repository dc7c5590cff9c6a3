"""The evaluation's numbers against scipy, scikit-learn and sums by hand."""

from __future__ import annotations

import sys
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_model, with_rate_head
from scipy import sparse, stats
from sklearn.metrics import f1_score, precision_score, recall_score, silhouette_score

from scmamba.evaluation import clusters as clusters_module
from scmamba.evaluation import nonzero_imputation, score
from scmamba.evaluation.annotation import annotation_scores, calibration_error, coverage_accuracy
from scmamba.evaluation.annotation_report import annotation_report, markdown
from scmamba.evaluation.clusters import RESOLUTIONS, leading_components, mixing, silhouette
from scmamba.evaluation.doublets import (
    RATES,
    doublet_scores,
    identification_curve,
    jaccard,
    top_share,
)
from scmamba.evaluation.imputation import PREDICTORS, Hidden, metrics, truncated_deviance
from scmamba.evaluation.imputation import gated_ensemble as combine
from scmamba.evaluation.imputation.benchmark import _counts, _groups, _reference_counts
from scmamba.evaluation.imputation.model_rows import model_rows
from scmamba.evaluation.reports import doublet_report, imputation_report
from scmamba.neighbors.hierarchical import HierarchicalRates
from scmamba.utils.errors import DataError


def test_settings_are_those_of_the_paper():
    assert np.round(np.arange(1, 21) / 10, 1).tolist() == list(RESOLUTIONS) and RATES == (
        0.1,
        0.2,
        0.3,
        0.4,
    )
    assert clusters_module._SAMPLE == 4000 and metrics._LEAST_MEAN == 0.01


# ---------------------------------------------------------------- annotation


def test_coverage_and_calibration_by_hand():
    confidence = np.array([0.2, 0.9, 0.6, 0.95, 0.3, 1.0, 0.55, 0.8, 0.1, 0.7])
    right = np.array([0, 1, 1, 1, 0, 1, 0, 1, 0, 1], bool)
    truth, called = np.full(10, "a"), np.where(right, "a", "b")
    curve = coverage_accuracy(truth, called, confidence)
    assert curve["coverage"].tolist() == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
    order = np.argsort(-confidence)
    for _, (share, accuracy, threshold) in curve.iterrows():
        n = round(share * 10)
        assert accuracy == right[order[:n]].mean() and threshold == confidence[order[n - 1]]
    bins = {
        2: [0],
        9: [1, 3, 5],
        6: [2],
        3: [4],
        5: [6],
        8: [7],
        1: [8],
        7: [9],
    }  # bins of a tenth; a probability of one is in the last bin
    gap = sum(
        len(own) / 10 * abs(right[own].mean() - confidence[own].mean()) for own in bins.values()
    )
    assert calibration_error(truth, called, confidence) == pytest.approx(gap)
    assert calibration_error(truth, called, confidence, bins=1) == pytest.approx(
        abs(right.mean() - confidence.mean())
    )
    assert coverage_accuracy(["a"], ["a"], np.array([0.4]), (0.1,)).iloc[0].tolist() == [
        0.1,
        1.0,
        0.4,
    ]


def test_reports_have_each_set_of_calls(tmp_path):
    truth = np.array(list("aaabbc"))
    called = {
        "one": np.array(list("aabbbc")),
        "two": np.array(["a", "Unassigned", "a", "c", "b", "c"]),
    }
    report = annotation_report(truth, called, np.array([0.9, 0.8, 0.4, 0.7, 0.6, 0.5]))
    for name in called:
        assert report.summary.loc[name].to_dict() == pytest.approx(
            annotation_scores(truth, called[name])
        )
    assert report.summary.loc["two", "micro"] == pytest.approx(
        f1_score(truth, called["two"], average="micro", labels=list("abc"))
    )
    pd.testing.assert_frame_equal(
        report.curve,
        coverage_accuracy(truth, called["one"], np.array([0.9, 0.8, 0.4, 0.7, 0.6, 0.5])),
    )
    assert report.calibration_error == calibration_error(
        truth, called["one"], np.array([0.9, 0.8, 0.4, 0.7, 0.6, 0.5])
    )
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert (
        f"Expected calibration error: {report.calibration_error:.4f}." in text and "## two" in text
    )
    kept = pd.read_csv(tmp_path / "confusion_2.tsv", sep="\t", index_col=0)
    assert kept.loc["a", "Unassigned"] == 1 and kept.to_numpy().sum() == 6
    table = pd.DataFrame({"x": [0.123456, 1.0], "n": [3, 4]}, index=pd.Index(["p", "q"], name="k"))
    assert markdown(table).splitlines() == [
        "| k | x | n |",
        "|---|---|---|",
        "| p | 0.1235 | 3 |",
        "| q | 1 | 4 |",
    ]
    assert annotation_report(truth, called).curve is None


# ---------------------------------------------------------------- doublets


def test_doublet_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    truth, value = rng.random(200) < 0.2, np.round(rng.normal(size=200), 1)
    value[:5] = np.nan
    found = doublet_scores(truth, value)  # as many calls as there are doublets
    filled = np.where(np.isnan(value), -99, value)
    calls = np.zeros(200, bool)
    calls[np.argsort(-filled, kind="stable")[: truth.sum()]] = True
    assert found["called"] == truth.mean() == found["prevalence"] and found[
        "precision"
    ] == precision_score(truth, calls)
    assert found["recall"] == recall_score(truth, calls) and found["F1"] == pytest.approx(
        f1_score(truth, calls)
    )
    assert found["TNR"] == recall_score(~truth, ~calls) and not calls[:5].any()
    for rate, row in zip(
        (0.1, 0.25), identification_curve(truth, value, (0.1, 0.25)).to_dict("records")
    ):
        calls = top_share(filled, rate)
        assert (
            calls.sum() == round(200 * rate)
            and row["rate"] == rate
            and row["F1"] == pytest.approx(f1_score(truth, calls))
        )
    assert top_share(np.array([1.0, 2, 2, 0]), 0.5).tolist() == [False, True, True, False]
    assert top_share(np.array([2.0, 2, 2, 0]), 0.5).tolist() == [True, True, False, False]
    nothing = doublet_scores(truth, value, np.zeros(200, bool))
    assert (
        np.isnan(nothing["precision"])
        and nothing["recall"] == 0 == nothing["F1"]
        and nothing["TNR"] == 1
    )
    every = doublet_scores(np.ones(3, bool), np.arange(3.0))
    assert np.isnan(every["TNR"]) and np.isnan(every["AUROC"]) and every["AUPRC"] == 1
    a, b, c = np.array([1, 1, 0, 0], bool), np.array([1, 0, 1, 0], bool), np.zeros(4, bool)
    assert jaccard([a, b, c]).tolist() == pytest.approx([1 / 3, 0, 0]) and jaccard(
        {0: c, 1: c}
    ).tolist() == [1.0]
    report = doublet_report(truth, {"x": value}, {"x": calls})
    assert report.summary.loc["x", "F1"] == pytest.approx(f1_score(truth, calls))
    rates = report.tables["identification_rates"]
    assert rates["rate"].tolist() == pytest.approx([0.05 * i for i in range(1, 11)])
    assert f"{truth.sum()} of 200" in report.notes[0] and f"{truth.mean():.3f}" in report.notes[0]


# ---------------------------------------------------------------- clusters


def test_silhouettes_components_and_mixing(monkeypatch):
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(90, 3)), rng.choice(list("abc"), 90)
    assert silhouette(points, labels) == pytest.approx(silhouette_score(points, labels))
    monkeypatch.setattr(clusters_module, "_SAMPLE", 40)
    part = np.sort(np.random.default_rng(5).choice(90, 40, replace=False))
    assert silhouette(points, labels, seed=5) == pytest.approx(
        silhouette_score(points[part], labels[part])
    )
    x = np.abs(rng.normal(size=(60, 12))) * np.r_[np.full(4, 9.0), np.full(8, 0.1)]
    for values in (x, sparse.csr_matrix(x)):
        found = leading_components(values, 3, genes=4)
        centred = x[:, :4] - x[:, :4].mean(axis=0)
        exact = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(np.abs(found), np.abs(exact[0][:, :3] * exact[1][:3]), atol=1e-6)
    with pytest.raises(DataError, match="NaN or infinite"):
        leading_components(np.where(x > 20, np.nan, x), 3)
    types, donors = np.repeat(["a", "b"], [50, 40]), rng.choice(["x", "y", "z"], 90)
    got = want = 0.0
    for kind in "ab":
        rows = np.flatnonzero(types == kind)
        distance = ((points[rows][:, None] - points[rows][None]) ** 2).sum(-1)
        np.fill_diagonal(distance, np.inf)
        near = np.argsort(distance, axis=1)[:, :9]
        for i, row in enumerate(rows):
            got += np.mean(donors[rows[near[i]]] != donors[row])
            want += (donors[rows] != donors[row]).sum() / (len(rows) - 1)
    assert mixing(points, donors, types, k=9) == pytest.approx(got / want)
    lone = np.where(types == "b", "x", donors)  # a type with one donor has no score
    assert mixing(points, lone, types, k=9) == pytest.approx(
        mixing(points[:50], lone[:50], types[:50], k=9)
    )
    assert np.isnan(mixing(points[:2], donors[:2], types[:2]))


# ---------------------------------------------------------------- masked counts


@pytest.fixture(scope="module")
def counts() -> ad.AnnData:
    rng = np.random.default_rng(2)
    rates = rng.gamma(0.4, 4.0, (2, 70))
    data = ad.AnnData(sparse.csr_matrix(rng.poisson(rates[np.arange(80) % 2]).astype(np.float32)))
    data.var_names = [f"g{i}" for i in range(70)]
    return data


def test_scored_cells_and_genes(counts):
    data = counts.copy()
    total = np.asarray(data.X.sum(axis=1)).ravel()
    least = np.sort(total)[20]
    kept, found, totals = _counts(data, None, least, 10)
    deep = total >= least
    genes = (data.X.toarray()[deep] > 0).sum(axis=0) >= 10
    np.testing.assert_array_equal(found.toarray(), data.X.toarray()[deep][:, genes])
    np.testing.assert_array_equal(totals, total[deep])  # of all genes
    assert kept.shape == found.shape and kept.var_names.tolist() == data.var_names[genes].tolist()
    group = _groups(found, np.repeat(np.arange(found.shape[0]), np.diff(found.indptr)), 5, 3)
    start = np.random.default_rng(3).integers(0, 5, found.shape[0])
    for i in range(found.shape[0]):
        own = group[found.indptr[i] : found.indptr[i + 1]]
        np.testing.assert_array_equal(own, (np.arange(len(own)) + start[i]) % 5)
    fifty = max(t for t in np.unique(total) if (total >= t).sum() >= 50)
    assert _counts(data, None, fifty, 10)[0].n_obs >= 50
    larger = min(t for t in np.unique(total) if t > fifty)
    with pytest.raises(DataError, match=f"{(total >= larger).sum()} of 80 cells"):
        _counts(data, None, larger, 10)
    other = data[:, ::-1][:, :60].copy()
    known, depth = _reference_counts(other, None, data.var_names)
    expected = data.X.toarray().copy()
    expected[:, :10] = 0
    np.testing.assert_array_equal(known.toarray(), expected)
    np.testing.assert_array_equal(depth, np.asarray(other.X.sum(axis=1)).ravel())
    with pytest.raises(DataError, match="Only 49%"):
        _reference_counts(data[:, :34].copy(), None, data.var_names)
    assert _reference_counts(None, None, data.var_names) == (None, None)


@pytest.mark.parametrize("referenced", [False, True])
def test_simple_predictors_by_brute_force(counts, referenced):
    """One group of masked counts at a time, from the visible counts or from the reference alone."""
    seen: dict[str, np.ndarray] = {}
    hidden_ones: list = []

    def spy(hidden):
        hidden_ones.append(hidden)
        return np.zeros(len(hidden.rows))

    reference = counts[40:].copy() if referenced else None
    own = counts[:60].copy()
    nonzero_imputation(
        own,
        predictors={"spy": spy},
        reference=reference,
        min_total=0,
        min_cells=0,
        k=6,
        seed=4,
        verbose=False,
    )
    assert len(hidden_ones) == 5
    hidden = hidden_ones[2]
    for name in (
        "one",
        "gene_mean",
        "neighbor_mean",
        "gene_rate",
        "neighbor_rate",
        "hierarchical_rate",
    ):
        seen[name] = PREDICTORS[name][0](hidden)
    dense, total = (
        own.X.toarray().astype(float),
        np.asarray(own.X.sum(axis=1)).ravel().astype(float),
    )
    visible = hidden.visible.toarray()
    pool = counts.X.toarray()[40:].astype(float) if referenced else visible
    depth = pool.sum(axis=1) if referenced else total
    logs = np.log1p(1e4 * pool / depth[:, None])
    expressed = pool > 0
    usual = np.where(
        expressed.any(axis=0),
        logs.sum(axis=0) / np.maximum(expressed.sum(axis=0), 1),
        logs[expressed].mean(),
    )
    rate = pool.sum(axis=0) / pool.sum()
    near = hidden.neighbors.neighbors
    fitted = HierarchicalRates.fit(*hidden.pool, seed=4)
    whole = fitted.neighborhood_rate(
        hidden.visible, hidden.totals, None if referenced else np.arange(60)
    )
    assert near.shape == (60, 6) and (referenced or (near[:, 0] == np.arange(60)).all())
    for at, (i, j) in enumerate(zip(hidden.rows, hidden.columns)):
        assert dense[i, j] > 0 == visible[i, j]
        assert seen["one"][at] == pytest.approx(np.log1p(1e4 / total[i]))
        assert seen["gene_mean"][at] == pytest.approx(usual[j])
        on = near[i][expressed[near[i], j]]
        assert seen["neighbor_mean"][at] == pytest.approx(
            logs[on, j].mean() if len(on) else usual[j]
        )

        def truncated(share: float, i: int = i) -> float:
            mu = max(share * total[i], 1e-9)
            return np.log1p(1e4 / total[i] * mu / -np.expm1(-mu))

        assert seen["gene_rate"][at] == pytest.approx(truncated(rate[j]))
        local = (pool[near[i], j].sum() + 5000 * rate[j]) / (pool[near[i]].sum() + 5000)
        assert seen["neighbor_rate"][at] == pytest.approx(truncated(local))
        assert seen["hierarchical_rate"][at] == pytest.approx(truncated(whole[i, j]), rel=1e-5)


def test_the_table_is_the_score_of_every_group(counts):
    table = nonzero_imputation(
        counts,
        predictors=["one", "gene_rate"],
        min_total=0,
        min_cells=0,
        groups=4,
        min_values=5,
        seed=1,
        verbose=False,
    )
    matrix = sparse.csr_matrix(counts.X, dtype=float)
    total = np.asarray(matrix.sum(axis=1)).ravel()
    rows = np.repeat(np.arange(80), np.diff(matrix.indptr))
    group = _groups(matrix, rows, 4, 1)
    depth = np.empty(matrix.nnz)
    for g in range(4):
        visible = matrix.copy()
        visible.data[group == g] = 0
        rate = np.asarray(visible.sum(axis=0)).ravel() / visible.sum()
        mu = np.maximum(rate[matrix.indices] * total[rows], 1e-9)[group == g]
        depth[group == g] = np.log1p(1e4 / total[rows[group == g]] * mu / -np.expm1(-mu))
    one = np.log1p(1e4 / total[rows])
    for name, predicted in (("one", one), ("gene_rate", depth)):
        expected = score(
            predicted, matrix.data, total[rows], matrix.indices.astype(int) * 4 + group, depth, 5
        )
        assert table.loc[name].drop("covered").to_dict() == pytest.approx(expected, nan_ok=True)
    assert (
        table.attrs["cells"] == 80
        and table.attrs["values"] == matrix.nnz
        and table.attrs["ones"] == np.mean(matrix.data == 1)
    )
    assert "ones" in table.attrs and "zero-truncated" in table.attrs["descriptions"]["gene_rate"]
    notes = imputation_report(table).notes
    assert (
        f"{matrix.nnz:,} counted values" in notes[0]
        and f"{100 * table.attrs['ones']:.0f}% of them" in notes[0]
    )
    with pytest.raises(DataError, match="at least 2"):
        nonzero_imputation(counts, groups=1)


def test_the_deviance_of_small_means_is_finite():
    least = 0.01 / -np.expm1(-0.01)
    mu = np.array([0.01, 2.0])
    logs = np.array([np.log(m) * y - m - np.log(-np.expm1(-m)) for m, y in zip(mu, (2, 2))])
    found = truncated_deviance(np.array([2, 2]), np.array([1.0, 2.0 / -np.expm1(-2.0)]))
    assert found[0] - found[1] == pytest.approx(2 * (logs[1] - logs[0])) and least < 1.006
    assert truncated_deviance(np.array([1.0]), np.array([1.0]))[0] == pytest.approx(0.01, abs=2e-4)
    few = score(
        np.ones(6), np.arange(1, 7), np.full(6, 1e3), np.array([0, 0, 0, 1, 1, 1]), np.ones(6), 3
    )
    assert few["pearson"] == 0 == few["pearson_within_gene"]
    assert np.isnan(
        score(np.arange(6.0), np.arange(1, 7), np.full(6, 1e3), np.arange(6), np.ones(6), 2)[
            "pearson_within_gene"
        ]
    )
    rng = np.random.default_rng(0)
    y, p, gene = rng.integers(1, 9, 60), rng.normal(size=60), np.repeat([0, 1, 2], [30, 20, 10])
    total = rng.uniform(500, 900, 60)
    truth = np.log1p(1e4 / total * y)
    expected = np.mean([stats.pearsonr(p[gene == g], truth[gene == g])[0] for g in (0, 1)])
    assert score(p, y, total, gene, np.ones(60), 20)["pearson_within_gene"] == pytest.approx(
        expected
    )


def test_rows_of_a_model(counts):
    model = small_model("expressed", n_genes=70)
    data = counts.copy()
    data.var_names = list(model.genes.ensembl_ids)
    table = nonzero_imputation(
        data, {"mine": model}, predictors=["gene_rate"], min_total=0, min_cells=0, verbose=False
    )
    assert table.index.tolist() == ["gene_rate", "mine"] and table.loc["mine", "covered"] == 1
    rows = model_rows({"a": model}, data, None, 7)
    assert list(rows) == ["a"] and rows["a"].batch_size == 7


def test_the_prediction_of_impute_is_scored_next_to_the_network_alone(counts, monkeypatch):
    """For a model with a rate head: the combination fitted to visible counts, and its network alone."""
    monkeypatch.setattr(combine, "MIN_CELLS", 50)
    monkeypatch.setattr(sys.modules["scmamba.imputation.adaptation"], "MIN_CELLS", 50)
    monkeypatch.setattr(sys.modules["scmamba.evaluation.imputation.model_rows"], "ADAPT_STEPS", 2)
    monkeypatch.setattr(
        combine, "fit_gating", lambda table, seed: combine.GatingNetwork(table.features.shape[1])
    )
    small = small_model("expressed", n_genes=60)
    model = with_rate_head(small)
    data = counts.copy()
    data.var_names = [*model.genes.ensembl_ids, *(f"other{i}" for i in range(10))]
    kept, matrix, totals = _counts(data, None, 0, 0)
    rows = model_rows({"m": model}, kept, None, None)
    assert list(rows) == ["m", "m (network alone)", "m (masked, not adapted)"]
    assert rows["m"].covered(matrix) == 1 and rows["m (network alone)"].covered(
        matrix
    ) == pytest.approx(np.mean(matrix.indices < 60))
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    group = _groups(matrix, row, 5, 2)
    here = group == 1
    visible = matrix.copy()
    visible.data[here] = 0
    visible.eliminate_zeros()
    hidden = Hidden(
        visible,
        totals,
        row[here],
        matrix.indices[here].astype(np.int64),
        None,
        None,
        kept.var_names,
        5,
        3,
    )
    fitted = combine.fit_gated_ensemble(
        model, visible, totals, rows["m"].map, adapt_steps=2, seed=3, verbose=False
    )
    fallback = np.arange(here.sum(), dtype=float)
    whole = fitted.expect(visible, totals, np.arange(len(totals))).value
    found = rows["m"].predict(hidden, matrix, here, fallback)
    np.testing.assert_allclose(found, whole[hidden.rows, hidden.columns], rtol=1e-5)
    alone = combine.value_if_counted(
        fitted.sources.network(visible, totals) + fitted.sources.base, totals[:, None]
    )
    found = rows["m (network alone)"].predict(hidden, matrix, here, fallback)
    known = hidden.columns < 60
    np.testing.assert_allclose(found[known], alone[hidden.rows, hidden.columns][known], rtol=1e-5)
    np.testing.assert_array_equal(found[~known], fallback[~known])
    # Cells of a reference are used for fitting too, but they are not scored.
    both = replace(hidden, reference=visible[:30], reference_totals=totals[:30])
    assert rows["m"].fit(both).sources.pool.counts.shape[0] == len(totals) + 30
    # The masked network: masked values are hidden, the others are input.
    masked = rows["m (masked, not adapted)"].predict(hidden, matrix, here, fallback)
    values, own = rows["m"].cells.to_model(matrix)
    flags = np.zeros(matrix.shape, bool)
    flags[hidden.rows, hidden.columns] = True
    answer = (
        model.reconstruct(values.toarray(), flags[:, :60], genes=torch.arange(60))
        .numpy()
        .astype(float)
    )
    counted = np.maximum(np.expm1(answer) * own[:, None] / 1e4, 0)
    expected = np.log1p(1e4 / totals[:, None] * counted)
    at = hidden.rows[known], hidden.columns[known]
    np.testing.assert_allclose(masked[known], expected[at], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(masked[~known], fallback[~known])
