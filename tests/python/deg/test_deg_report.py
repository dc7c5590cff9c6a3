"""The robustness report: tables, paired tests, false-positive rates and the warning, by hand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from scmamba.deg import RobustnessResult
from scmamba.deg import figures as drawn
from scmamba.deg.result import INFLATION, LOG_P_CAP, MEASURES, _paired, inflation
from scmamba.utils.errors import DataError

SETTINGS = {
    "group1": "AD",
    "group2": "Control",
    "cell_types": ["MG"],
    "layers": ["counts", "scmamba"],
    "donors": "3v3",
}
OVERLAP = {"counts": [0.5, 0.6, 0.4, 0.5], "scmamba": [0.7, 0.6, 0.8, np.nan]}


def _runs() -> pd.DataFrame:
    rows = []
    for layer, values in OVERLAP.items():
        for run, overlap in enumerate(values):
            for way, shift in (("up", 0.0), ("down", 0.1)):
                for kind, ratio in (("cells", 0.2), ("cells", 0.5), ("donors", 1.0)):
                    part = overlap + shift + (0.05 if ratio == 0.5 else 0)
                    rows.append(
                        {
                            "kind": kind,
                            "cell_type": "MG",
                            "layer": layer,
                            "ratio": ratio,
                            "run": run,
                            "seed": run,
                            "donors": "",
                            "n_cells1": 9,
                            "n_cells2": 9,
                            "n_tested": 50,
                            "note": "",
                            "direction": way,
                            "n_full": 20,
                            "n_called": 10 + run,
                            "n_common": 5,
                            "overlap": part,
                            "precision": part / 2,
                            "precision_reference": part / 4,
                            "n_matched": 8,
                            "overlap_matched": 1 - part,
                        }
                    )
    return pd.DataFrame(rows)


def _nulls(
    rates: dict[str, list[float]], called: dict[str, list[int]] | None = None, kind="null_donors"
) -> pd.DataFrame:
    rows = []
    for layer, values in rates.items():
        for run, rate in enumerate(values):
            n = (called or {}).get(layer, [0] * len(values))[run]
            rows.append(
                {
                    "kind": kind,
                    "cell_type": "MG",
                    "layer": layer,
                    "ratio": 1.0,
                    "run": run,
                    "seed": 4,
                    "direction": "both",
                    "n_tested": 100 + run,
                    "n_nominal": int(100 * rate),
                    "n_called": n,
                    "rate_nominal": rate,
                    "pseudobulk_rate": rate / 2,
                    "pseudobulk_called": n // 2,
                }
            )
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def result() -> RobustnessResult:
    nulls = _nulls(
        {"counts": [0.04, 0.06], "scmamba": [0.05, 0.07]}, {"counts": [0, 0], "scmamba": [1, 2]}
    )
    rows = pd.concat([_runs(), nulls], ignore_index=True)
    full = pd.DataFrame({"cell_type": ["MG"], "n_degs": [20]})
    return RobustnessResult.build(rows, full, SETTINGS, ["a note"])


def test_runs_and_nulls_are_separated(result):
    assert len(result.runs) == 48 and len(result.nulls) == 4
    assert "rate_nominal" not in result.runs and "overlap" not in result.nulls
    assert result.runs.index.tolist() == list(range(48)) and result.nulls.index.tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert result.notes == ("a note",) and result.warnings == () and result.settings is SETTINGS
    empty = _runs().drop(columns=["overlap_matched"]).assign(precision=np.nan)
    built = RobustnessResult.build(empty, pd.DataFrame(), SETTINGS, [])
    assert built.nulls.empty and built.false_positives().empty
    assert built.runs["precision"].isna().all() and built.runs["overlap_matched"].isna().all()
    assert (built.to_table()["measure"] != "rate_nominal").all()


def test_summary(result):
    table = result.summary()
    assert len(table) == 2 * 2 * 3
    row = table.query(
        "kind == 'cells' and ratio == 0.5 and direction == 'down' and layer == 'scmamba'"
    ).iloc[0]
    values = np.array([0.7, 0.6, 0.8]) + 0.15
    assert row["overlap_mean"] == pytest.approx(values.mean())
    assert row["overlap_std"] == pytest.approx(values.std(ddof=1)) and row["overlap_count"] == 3
    assert row["precision_reference_mean"] == pytest.approx(values.mean() / 4)
    assert row["overlap_matched_mean"] == pytest.approx(1 - values.mean())
    assert row["precision_mean"] == pytest.approx(values.mean() / 2)
    assert row["n_full"] == 20 and row["n_called"] == 11.5


def test_paired_tests(result):
    table = result.tests()
    assert (
        len(table) == 6
        and (table["layer"] == "scmamba").all()
        and (table["reference"] == "counts").all()
    )
    truth = stats.ttest_rel([0.7, 0.6, 0.8], [0.5, 0.6, 0.4])  # the run without its pair is omitted
    for row in table.itertuples():
        assert row.n == 3 and row.difference == pytest.approx(0.2)
        assert row.t == pytest.approx(truth.statistic) and row.p_val == pytest.approx(truth.pvalue)
        assert row.log10_p == pytest.approx(-np.log10(truth.pvalue))
    np.testing.assert_allclose(result.tests("overlap_matched")["difference"], -0.2)
    np.testing.assert_allclose(result.tests("precision_reference")["difference"], 0.05)
    with pytest.raises(DataError, match="measure='recall'"):
        result.tests("recall")
    assert MEASURES == ("overlap", "overlap_matched", "precision", "precision_reference")


def test_paired_edges():
    """The figure's scale ends at 20: smaller p-values look equal."""
    assert LOG_P_CAP == 20
    same = _paired(np.array([0.1, 0.4]), np.array([0.1, 0.4]))
    assert (same["t"], same["p_val"], same["log10_p"], same["difference"]) == (0, 1, 0, 0)
    shift = _paired(np.array([0.25, 0.5]), np.array([0.5, 0.75]))
    assert (shift["t"], shift["p_val"], shift["log10_p"]) == (-np.inf, 0, 20) and shift[
        "difference"
    ] == -0.25
    up = _paired(np.array([0.5, 0.75]), np.array([0.25, 0.5]))
    assert up["t"] == np.inf
    one = _paired(np.array([0.5]), np.array([0.2]))
    assert (
        one["n"] == 1
        and one["difference"] == pytest.approx(0.3)
        and np.isnan([one["t"], one["p_val"], one["log10_p"]]).all()
    )
    assert np.isnan(_paired(np.array([]), np.array([]))["difference"])
    rng = np.random.default_rng(0)
    far = _paired(rng.normal(1, 1e-3, 100), np.zeros(100))
    assert far["log10_p"] == 20 and 0 < far["p_val"] < 1e-20
    two = _paired(np.array([0.2, 0.3]), np.array([0.1, 0.15]))
    assert two["p_val"] == pytest.approx(stats.ttest_rel([0.2, 0.3], [0.1, 0.15]).pvalue)


def test_false_positive_table(result):
    table = result.false_positives().set_index("layer")
    row = table.loc["scmamba"]
    assert (
        row["kind"] == "null_donors"
        and row["cell_type"] == "MG"
        and row["runs"] == 2
        and row["tested"] == 100.5
    )
    assert (
        row["rate_nominal"] == pytest.approx(0.06)
        and row["mean_called"] == 1.5
        and row["runs_with_calls"] == 1
    )
    assert row["pseudobulk_rate"] == pytest.approx(0.03) and row["pseudobulk_called"] == 0.5
    assert table.loc["counts", "runs_with_calls"] == 0


def test_tidy_tables_have_every_run(result):
    tidy = result.to_table()
    assert len(tidy) == 48 * 5 + 4 * 4
    assert set(tidy["measure"]) == {
        *MEASURES,
        "n_called",
        "rate_nominal",
        "pseudobulk_rate",
        "pseudobulk_called",
    }
    pick = tidy.query(
        "kind == 'cells' and ratio == 0.2 and layer == 'counts' and run == 1 and direction == 'up'"
    )
    assert pick.set_index("measure")["value"].to_dict() == pytest.approx(
        {
            "overlap": 0.6,
            "overlap_matched": 0.4,
            "precision": 0.3,
            "precision_reference": 0.15,
            "n_called": 11,
        }
    )


def test_definition_of_inflation():
    """Half as many false positives again as the raw counts have, and as the nominal 5% (and one call)."""
    assert INFLATION == 1.5
    layers = ["counts", "scmamba"]

    def found(base, other, called=(0, 0)):
        return inflation(
            _nulls(
                {"counts": [base], "scmamba": [other]},
                {"counts": [called[0]], "scmamba": [called[1]]},
            ),
            layers,
        )

    assert found(0.05, 0.075) == [] and len(found(0.05, 0.0751)) == 1
    assert (
        found(0.01, 0.075) == [] and len(found(0.01, 0.0751)) == 1
    )  # 5% is nominal, whatever the rate of the raw counts
    assert found(0.25, 0.375) == []  # exactly that is not above the limit
    assert found(0.10, 0.149) == [] and len(found(0.10, 0.151)) == 1
    assert found(0.05, 0.05, (0, 1)) == [] and len(found(0.05, 0.05, (0, 2))) == 1
    assert found(0.05, 0.05, (4, 6)) == [] and len(found(0.05, 0.05, (4, 7))) == 1
    mean = _nulls(
        {"counts": [0.04, 0.06], "scmamba": [0.02, 0.2]}
    )  # means are compared, not single runs
    assert len(inflation(mean, layers)) == 1
    assert inflation(mean, ["counts"]) == [] and inflation(mean, ["other", "scmamba"]) == []
    assert (
        inflation(pd.DataFrame(), layers) == []
        and inflation(mean.drop(columns="rate_nominal"), layers) == []
    )
    text = found(0.04, 0.25, (1, 7))[0]
    assert text.startswith(
        "MG: scmamba inflates significance. Between random halves of the control donors, 25.0% of"
    )
    assert (
        "(counts: 4.0%) and 7.0 are called per run (counts: 1.0); every one of them is false"
        in text
    )
    cells = inflation(_nulls({"counts": [0.04], "scmamba": [0.25]}, kind="null_cells"), layers)
    assert "Between random halves of every donor's cells, 25.0%" in cells[0]


def test_the_warning_is_given_with_the_result():
    rows = pd.concat([_runs(), _nulls({"counts": [0.05], "scmamba": [0.3]})], ignore_index=True)
    with pytest.warns(UserWarning, match="inflates significance"):
        built = RobustnessResult.build(rows, pd.DataFrame(), SETTINGS, ["few cells"])
    text = repr(built)
    assert "AD v Control, 1 cell type(s), layers counts, scmamba; 48 runs, 2 null runs" in text
    assert "note: few cells" in text and text.count("WARNING:") == 1 == len(built.warnings)
    page = built._repr_html_()
    assert "note: few cells" in page and page.count("<table") == 1
    assert all(f"<th>{column}</th>" in page for column in built.summary().columns)


def test_a_saved_report_is_unchanged_after_reading(result, tmp_path):
    folder = result.save(tmp_path / "out")
    again = RobustnessResult.load(folder)
    for name in ("runs", "nulls", "full"):
        a, b = (
            getattr(result, name).drop(columns=["donors", "note"], errors="ignore"),
            getattr(again, name),
        )
        pd.testing.assert_frame_equal(b[list(a)], a, check_dtype=False)
    assert again.settings == SETTINGS and again.notes == ("a note",) and again.warnings == ()
    card = json.loads((folder / "settings.json").read_text())
    assert card == {"settings": SETTINGS, "notes": ["a note"], "warnings": []}
    names = [
        ".scmamba-files.json",
        "false_positives.csv",
        "full.csv",
        "nulls.csv",
        "runs.csv",
        "settings.json",
        "summary.csv",
        "tests.csv",
    ]
    pictures = ["donor_boxes.png", "false_positives.png", "overlap_heatmap.png", "ratios_MG.png"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(names + pictures)
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "tests.csv"), result.tests(), check_dtype=False
    )
    pd.testing.assert_frame_equal(
        pd.read_csv(folder / "summary.csv"), result.summary(), check_dtype=False
    )
    got = pd.read_csv(folder / "false_positives.csv")
    pd.testing.assert_frame_equal(got, result.false_positives(), check_dtype=False)
    (folder / "nulls.csv").write_text("\n")
    assert RobustnessResult.load(folder).nulls.empty


def _heights(axis):
    return np.array(
        [
            bar.get_height()
            for box in axis.containers
            if hasattr(box, "patches")
            for bar in box.patches
        ]
    )


def test_figures_show_the_tables(result):
    pictures = result.figures()
    assert set(pictures) == {"overlap_heatmap", "ratios_MG", "donor_boxes", "false_positives"}
    up, down = pictures["overlap_heatmap"].axes[:2]  # the ratio closest to one half
    np.testing.assert_allclose(up.images[0].get_array(), [[0.55, 0.75]])
    np.testing.assert_allclose(down.images[0].get_array(), [[0.65, 0.85]])
    assert up.images[0].get_clim() == (0, 1) and up.get_title() == "up-regulated"
    assert [t.get_text() for t in up.texts] == ["0.55", "0.75"]
    assert [t.get_text() for t in up.get_xticklabels()] == ["counts", "scmamba"]
    bars = pictures["ratios_MG"].axes
    np.testing.assert_allclose(
        _heights(bars[0]), [0.5, 0.55, 0.7, 0.75]
    )  # layer by layer, ratio by ratio
    np.testing.assert_allclose(_heights(bars[1]), [0.6, 0.65, 0.8, 0.85])
    assert [t.get_text() for t in bars[0].get_xticklabels()] == ["20%", "50%"]
    boxes = pictures["donor_boxes"].axes[0]
    medians = sorted(
        float(line.get_ydata()[0])
        for line in boxes.lines
        if line.get_color() == "black" and len(line.get_ydata()) == 2
    )
    assert any(np.isclose(medians, 0.5)) and any(np.isclose(medians, 0.7))
    assert boxes.get_ylabel() == "overlap of DEGs, 3v3 donors"
    false = pictures["false_positives"].axes[0]
    np.testing.assert_allclose(_heights(false), [0.05, 0.06])
    marks = [line.get_ydata() for line in false.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(np.ravel(marks), [0.025, 0.03])
    assert any(
        np.allclose(line.get_ydata(), 0.05) and line.get_ls() == "--" for line in false.lines
    )
    assert false.get_title() == "donors of one condition split"


def test_figures_of_incomplete_results(result):
    cells = result.runs.query("kind == 'cells' and ratio == 0.2")
    alone = RobustnessResult(cells, pd.DataFrame(), result.full, SETTINGS)
    assert set(alone.figures()) == {"overlap_heatmap"}
    np.testing.assert_allclose(
        alone.figures()["overlap_heatmap"].axes[0].images[0].get_array(), [[0.5, 0.7]]
    )
    other = drawn.overlap_heatmap(result, ratio=0.5, measure="overlap_matched")
    np.testing.assert_allclose(other.axes[0].images[0].get_array(), [[0.45, 0.25]])
    nulls = RobustnessResult(cells.iloc[:0], result.nulls, result.full, SETTINGS)
    assert set(nulls.figures()) == {"false_positives"}


def test_stars():
    marks = [drawn.stars(p) for p in (0.06, 0.05, 0.049, 0.01, 0.0099, 0.001, 0.00099, np.nan)]
    assert marks == ["", "", "*", "*", "**", "**", "***", ""]


def test_rows_per_donor(result):
    """Means over the runs of both tests, and marks in the figures."""
    assert result.per_donor().empty
    runs = result.runs.assign(
        pseudobulk_full=12,
        pseudobulk_called=9,
        pseudobulk_overlap=np.where(result.runs["direction"] == "up", 0.75, 0.5),
    )
    beside = dataclasses.replace(result, runs=runs)
    table = beside.per_donor()
    assert len(table) == len(result.summary()) and (table["pseudobulk_degs"] == 12).all()
    up = table[table["direction"] == "up"]
    assert (up["pseudobulk_overlap"] == 0.75).all()
    merged = table.merge(result.summary(), on=["kind", "cell_type", "ratio", "direction", "layer"])
    np.testing.assert_allclose(merged["overlap"], merged["overlap_mean"])
    heat = drawn.overlap_heatmap(beside).axes[0]
    assert [t.get_text() for t in heat.get_xticklabels()] == ["counts", "scmamba", "per donor"]
    assert np.asarray(heat.images[0].get_array())[0, -1] == 0.75
    boxes = drawn.donor_boxes(beside).axes
    marks = [line for line in boxes[1].lines if line.get_marker() == "D"]
    assert len(marks) == 2 and all(line.get_ydata()[0] == 0.5 for line in marks)
    assert "pseudobulk_overlap" in set(beside.to_table()["measure"])
