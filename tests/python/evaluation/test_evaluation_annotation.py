"""Metrics of annotation against scikit-learn's and against counts by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from scmamba.evaluation.annotation import (
    annotation_scores,
    calibration_error,
    confusion,
    coverage_accuracy,
    per_class,
)
from scmamba.utils.errors import DataError


@pytest.fixture
def calls() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b", "c"], 300, p=[0.7, 0.25, 0.05])
    called = np.where(
        rng.random(300) < 0.6, truth, rng.choice(["a", "b", "c", "d", "Unassigned"], 300)
    )
    return truth, called


def test_f1_is_scikit_learns(calls):
    truth, called = calls
    scores = annotation_scores(truth, called)
    for average in ("macro", "micro", "weighted"):
        expected = f1_score(
            truth, called, average=average, labels=np.unique(truth), zero_division=0
        )
        assert scores[average] == pytest.approx(expected)
    expected = precision_recall_fscore_support(
        truth, called, labels=np.unique(truth), zero_division=0
    )
    np.testing.assert_allclose(per_class(truth, called).to_numpy().T, expected)


def test_unassigned_cells_are_missed_and_cost_coverage():
    scores = annotation_scores(["a", "a", "b", "b"], ["a", "Unassigned", "b", "a"])
    assert scores["coverage"] == 0.75
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["macro"] == pytest.approx((2 * 1 / (2 + 2) + 2 * 1 / (2 + 1)) / 2)
    assert np.isnan(annotation_scores(["a"], ["Unassigned"])["accuracy"])


def test_classes_that_are_called_but_absent_are_not_in_the_mean():
    assert annotation_scores(["a", "a"], ["a", "z"])["macro"] == pytest.approx(2 / 3)


def test_confusion_counts_every_cell(calls):
    table = confusion(*calls)
    assert table.to_numpy().sum() == 300
    assert list(table.index) == ["a", "b", "c"]
    assert table.loc["a", "a"] == np.sum((calls[0] == "a") & (calls[1] == "a"))


def test_the_most_certain_cells_come_first():
    curve = coverage_accuracy(
        ["a"] * 4, ["a", "a", "b", "b"], np.array([0.9, 0.8, 0.7, 0.6]), coverages=(0.5, 1.0)
    )
    assert curve["accuracy"].tolist() == [1.0, 0.5]
    assert curve["threshold"].tolist() == [0.8, 0.6]


def test_calibration_error_of_correct_and_wrong_probabilities():
    truth, called = ["a"] * 10, ["a"] * 8 + ["b"] * 2
    assert calibration_error(truth, called, np.full(10, 0.8)) == pytest.approx(0)
    assert calibration_error(truth, called, np.full(10, 0.95)) == pytest.approx(0.15)


def test_lengths_must_agree():
    with pytest.raises(DataError, match="1 calls came with 2 cells"):
        per_class(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no cell"):
        per_class([], [])


def test_the_command_writes_a_report(calls, tmp_path):
    import anndata as ad
    import pandas as pd
    from typer.testing import CliRunner

    from scmamba.cli.main import app

    truth, called = calls
    table = pd.DataFrame(
        {
            "known": truth,
            "scmamba_type": called,
            "other": truth,
            "scmamba_probability": np.linspace(0, 1, 300),
        }
    )
    table.loc[0, "known"] = None
    table.index = table.index.astype(str)
    ad.AnnData(np.ones((300, 2), dtype=np.float32), obs=table).write_h5ad(tmp_path / "a.h5ad")
    command = ["evaluate", "annotation", str(tmp_path / "a.h5ad"), "--truth", "known"]
    result = CliRunner().invoke(
        app,
        [*command, "--called", "scmamba_type", "--called", "other", "-o", str(tmp_path / "out")],
    )
    assert result.exit_code == 0, result.output
    summary = pd.read_csv(tmp_path / "out" / "summary.tsv", sep="\t", index_col=0)
    assert summary.loc["scmamba_type", "macro"] == pytest.approx(
        annotation_scores(truth[1:], called[1:])["macro"]
    )
    assert summary.loc["other", "micro"] == 1
    assert {"report.md", "coverage.png", "confusion_1.png", "confusion_2.tsv"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    again = CliRunner().invoke(app, [*command, "-o", str(tmp_path / "out")])
    assert again.exit_code == 1 and "exists already" in again.output
    missing = CliRunner().invoke(
        app, ["evaluate", "annotation", str(tmp_path / "a.h5ad"), "--truth", "nothing"]
    )
    assert missing.exit_code == 1 and "no column 'nothing'" in missing.output
