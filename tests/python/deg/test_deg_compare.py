"""``compare``: true differences are found and described, impossible comparisons are refused, single influential donors are named."""

from __future__ import annotations

import inspect
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from scmamba import pl
from scmamba.cli import app
from scmamba.deg import compare, pseudobulk
from scmamba.deg.comparison import donors_beyond
from scmamba.deg.comparison_figures import volcano
from scmamba.deg.comparison_result import describe
from scmamba.deg.options import CompareOptions
from scmamba.deg.samples import Samples, sum_cells
from scmamba.utils.errors import DataError, OptionError

GENES = 300


@pytest.fixture(scope="module")
def cohort() -> ad.AnnData:
    """12 donors (6 v 6), 40 cells each, 2 types; genes 0-9 four-fold up in AD microglia; gene 20 high in one donor."""
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(12), 40)
    kind = np.tile(np.r_[np.zeros(28, int), np.ones(12, int)], 12)
    mean = np.exp(rng.normal(0.5, 1, GENES)) * np.exp(rng.normal(0, 0.2, (12, GENES)))[donor]
    mean[:, :10] = 1.0
    mean[np.ix_((donor < 6) & (kind == 0), np.arange(10))] *= 4
    depth = rng.uniform(0.5, 2, donor.size)
    counts = rng.negative_binomial(3, 3 / (3 + mean * depth[:, None]))
    obs = pd.DataFrame(
        {
            "patient": [f"p{d}" for d in donor],
            "diagnosis": np.where(donor < 6, "AD", "Control"),
            "type": np.where(kind == 0, "MG", "AC"),
            "age": np.array([70, 81, 66, 75, 79, 72, 69, 77, 80, 68, 74, 71.0])[donor],
            "batch": np.where(donor < 6, "b1", "b2"),
            "lot": np.where(donor % 2, "x", "y"),
        },
        index=[f"c{i}" for i in range(donor.size)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(GENES)])
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def result(cohort):
    return compare(cohort, "diagnosis", "patient", "type", verbose=False)


def test_a_difference_is_found_in_its_type(result):
    assert set(result.genes("MG")["gene"]) >= {f"g{i}" for i in range(10)}
    assert len(result.genes("MG")) <= 12 and len(result.genes("AC")) <= 1
    table = result.table[result.table["cell_type"] == "MG"].set_index("gene")
    assert table.loc[[f"g{i}" for i in range(10)], "log2FC"].mean() == pytest.approx(2, abs=0.3)
    covered = (table["ci_low"] <= 2) & (table["ci_high"] >= 2)
    assert covered[[f"g{i}" for i in range(10)]].sum() >= 8
    row = result.summary.set_index("cell_type").loc["MG"]
    assert row[["donors1", "donors2", "cells1", "cells2"]].tolist() == [6, 6, 168, 168]
    assert row["up"] + row["down"] == len(result.genes("MG"))


def test_the_settings_are_the_options_the_groups_and_what_was_read(result):
    values = result.settings["values"]
    assert values.startswith("X holds raw counts (integers, largest ")
    given = CompareOptions(condition_key="diagnosis", donor_key="patient", label_key="type")
    expected = {"group1": "AD", "group2": "Control", "values": values}
    assert result.settings == given.params() | expected


@pytest.mark.parametrize(
    "test", ["likelihood_ratio", "quasi_likelihood", "wald", "voom", "moderated_t", "mixed"]
)
def test_every_test_on_one_type(cohort, test):
    microglia = cohort[cohort.obs["type"] == "MG"].copy()
    found = compare(microglia, "diagnosis", "patient", test=test, verbose=False)
    assert found.summary["cell_type"].tolist() == ["all cells"]
    called = set(found.genes("all cells")["gene"])
    assert called >= {f"g{i}" for i in range(10)} and len(called) <= 12
    back = compare(
        microglia, "diagnosis", "patient", group1="Control", group2="AD", test=test, verbose=False
    )
    a, b = (t.table.set_index("gene").sort_index() for t in (found, back))
    np.testing.assert_allclose(a["log2FC"], -b["log2FC"], atol=1e-5)
    np.testing.assert_allclose(a["p_val"], b["p_val"], rtol=1e-4)


@pytest.mark.parametrize("test", ["likelihood_ratio", "quasi_likelihood", "wald", "moderated_t"])
def test_an_interaction_is_the_ratio_of_two_fold_changes(test):
    """24 donors; g0-g4 change four-fold in women only, g5-g9 alike in both."""
    rng = np.random.default_rng(6)
    donor = np.repeat(np.arange(24), 40)
    sick, woman = donor < 12, donor % 2 == 0
    level = np.exp(rng.normal(0.5, 0.7, 200)) * np.exp(rng.normal(0, 0.2, (24, 200)))[donor]
    level[:, :10] = 1.5 * np.exp(rng.normal(0, 0.2, (24, 10)))[donor]
    level[np.ix_(sick & woman, np.arange(5))] *= 4
    level[np.ix_(sick, np.arange(5, 10))] *= 4
    obs = pd.DataFrame(
        {
            "d": [f"p{d}" for d in donor],
            "x": np.where(sick, "AD", "Control"),
            "sex": np.where(woman, "female", "male"),
            "age": 60.0 + 10 * ~woman,
            "site": np.array(list("abc"))[donor % 3],
            "arm": np.where(sick & woman, "y", "z"),
        },
        index=[f"c{i}" for i in range(donor.size)],
    )
    names = pd.DataFrame(index=[f"g{i}" for i in range(200)])
    cells = ad.AnnData(sp.csr_matrix(rng.poisson(level).astype(np.float32)), obs=obs, var=names)
    found = compare(cells, "x", "d", interaction="sex", test=test, verbose=False)
    table = found.table.set_index("gene")
    called = set(found.genes("all cells")["gene"])
    assert called >= {f"g{i}" for i in range(5)} and not called & {f"g{i}" for i in range(5, 10)}
    assert len(called) <= 8
    assert table["log2FC"][[f"g{i}" for i in range(5)]].mean() == pytest.approx(-2, abs=0.35)
    parts = [
        compare(cells[cells.obs["sex"] == s], "x", "d", test=test, verbose=False)
        .table.set_index("gene")["log2FC"]
        for s in ("male", "female")
    ]  # fmt: skip
    difference = (parts[0] - parts[1]).loc[[f"g{i}" for i in range(10)]]
    np.testing.assert_allclose(table["log2FC"][difference.index], difference, atol=0.3)
    assert (
        "donors_higher" not in table and "fold change of AD over Control" in table["sentence"]["g1"]
    )
    assert "times as small with a higher 'sex'" in found.sentence("g1", "all cells")
    # Ten years more are the same as the other sex here, and ten times a year.
    years = compare(cells, "x", "d", interaction="age", test=test, verbose=False)
    years = years.table.set_index("gene")
    np.testing.assert_allclose(years["log2FC"] * 10, table["log2FC"][years.index], atol=0.02)
    np.testing.assert_allclose(years["p_val"], table["p_val"][years.index], rtol=0.02, atol=1e-12)
    with pytest.raises(DataError, match="'site' has 2 coefficients"):
        compare(cells, "x", "d", interaction="site", test=test, verbose=False)
    with pytest.raises(DataError, match="'arm' cannot be tested"):
        compare(cells, "x", "d", interaction="arm", test=test, verbose=False)


def test_a_small_study_predicts_the_power_of_a_large_one():
    """Standard errors of 5 v 5 donors, scaled, against those that 20 v 20 donors have."""
    rng = np.random.default_rng(11)
    donor = np.repeat(np.arange(40), 30)
    level = np.exp(rng.normal(0.8, 0.7, 250)) * np.exp(rng.normal(0, 0.25, (40, 250)))[donor]
    obs = pd.DataFrame({"d": [f"p{d}" for d in donor], "x": np.where(donor % 2, "AD", "Control")})
    obs.index = [f"c{i}" for i in range(donor.size)]
    names = pd.DataFrame(index=[f"g{i}" for i in range(250)])
    cells = ad.AnnData(sp.csr_matrix(rng.poisson(level).astype(np.float32)), obs=obs, var=names)
    whole = compare(cells, "x", "d", verbose=False)
    small = compare(cells[donor < 10], "x", "d", verbose=False)
    real = whole.summary.iloc[0][["log2fc_80_power", "log2fc_80_power_top"]].to_numpy(float)
    for result, n in ((small, 5), (whole, 20)):
        own = result.summary.iloc[0][["log2fc_80_power", "log2fc_80_power_top"]].to_numpy(float)
        curve = result.power_curve("all cells", [n, 20])
        np.testing.assert_allclose(curve.iloc[0, 1:].to_numpy(float), own, rtol=1e-6)
        np.testing.assert_allclose(curve.iloc[1, 1:].to_numpy(float), real, rtol=0.15)
    assert small.power_curve("all cells")["log2fc"].is_monotonic_decreasing
    more = small.power_curve("all cells", [5], power=0.95)["log2fc"].iloc[0]
    assert more > small.power_curve("all cells", [5])["log2fc"].iloc[0]
    for bad in ({"donors": [1, 5]}, {"donors": []}, {"power": 1.0}):
        with pytest.raises(DataError, match="at least 2 donors in each group"):
            small.power_curve("all cells", **bad)
    axis = pl.power(small)
    lines = {line.get_label(): line for line in axis.lines}
    np.testing.assert_allclose(
        lines["all cells"].get_ydata(), 2 ** small.power_curve("all cells")["log2fc"]
    )
    point = next(line for line in axis.lines if line.get_marker() == "o")
    assert point.get_xdata()[0] == pytest.approx(5)
    with pytest.raises(DataError, match="was not compared"):
        pl.power(small, "MG")


def test_adjusted_p_is_never_below_p(cohort):
    """Weights above 1 lower p / weight; where most genes differ the adjustment hardly raises it again."""
    cells = cohort[cohort.obs["type"] == "MG", :60].copy()
    counts = cells.X.toarray()
    own = (cells.obs["diagnosis"] == "AD").to_numpy()
    counts[np.ix_(own, np.arange(30))] *= 6  # of 60 genes, so that TMM has as many on either side
    counts[np.ix_(~own, np.arange(30, 60))] *= 6
    cells.X = sp.csr_matrix(counts)
    table = compare(cells, "diagnosis", "patient", verbose=False).table
    assert (table["weight"] > 1).any() and (table["weight"] < 1).any()
    assert (table["p_val_adj"] >= table["p_val"]).all()
    low = table["p_val"] / table["weight"] * 60 / np.arange(1, 61) < table["p_val"]
    assert low.any()


def test_moderated_t_agrees_with_pseudobulk(cohort):
    """The same test with TMM instead of totals: nearly the same t."""
    microglia = cohort[cohort.obs["type"] == "MG"].copy()
    mine = compare(microglia, "diagnosis", "patient", test="moderated_t", verbose=False)
    other = pseudobulk(microglia, "diagnosis", "patient", "AD", "Control")
    t = mine.table.set_index("gene")["statistic"]
    assert np.corrcoef(t, other["t"].loc[t.index])[0, 1] > 0.98


def test_sentences_and_donors(result, cohort):
    text = result.sentence("g3", "MG")
    assert text.startswith("g3: ") and "-fold higher in AD than in Control (95% interval" in text
    page = result._repr_html_()
    assert "CompareResult: AD v Control" in page and page.count("<tr") == len(result.summary) + 1
    microglia = cohort[(cohort.obs["type"] == "MG").to_numpy()]
    code = pd.Categorical(microglia.obs["patient"]).codes
    sums = sum_cells(sp.csr_matrix(microglia.X), code, 12)
    share = sums[:, 3] / sums.sum(axis=1)
    names = pd.Categorical(microglia.obs["patient"]).categories
    cases = np.isin(names, [f"p{i}" for i in range(6)])
    number = int((share[cases] > np.median(share[~cases])).sum())
    assert f"higher in {number} of 6 AD donors" in text
    called = result.table["p_val_adj"] < 0.05
    assert (result.table["sentence"] != "").eq(called).all()
    with pytest.raises(DataError, match="'nothing' was not tested in MG"):
        result.sentence("nothing", "MG")
    with pytest.raises(DataError, match="'EX' was not compared. Compared: AC, MG"):
        result.genes("EX")
    assert "with 6 and 6 donors" in result.power_statement("AC")
    power = result.summary.set_index("cell_type")["log2fc_80_power"]
    assert power["AC"] > power["MG"] > 0.3  # fewer DEGs with fewer cells


def test_an_influential_donor_is_named(cohort):
    """A gene with 30-fold expression in one patient must not count as a difference between groups, whether it is called or not."""
    cells = cohort[cohort.obs["type"] == "MG"].copy()
    counts = cells.X.toarray()
    rng = np.random.default_rng(3)
    own = (cells.obs["patient"] == "p2").to_numpy()
    for g in (20, 21, 22):
        counts[:, g] = rng.poisson(1.0, cells.n_obs)
        counts[own, g] = rng.poisson(9, own.sum())
    cells.X = sp.csr_matrix(counts)
    found = compare(cells, "diagnosis", "patient", alpha=0.9, verbose=False)
    table = found.genes("all cells").set_index("gene")
    named = [g for g in ("g20", "g21", "g22") if g in table.index]
    assert named and all("p2" in table.loc[g, "driven_by"].split(", ") for g in named)
    assert "Depends on donor" in table.loc[named[0], "sentence"]
    assert (table.loc[[f"g{i}" for i in range(10)], "driven_by"] == "").all()
    assert found.summary["driven_by_one_donor"].iloc[0] == (table["driven_by"] != "").sum()


def test_confounded_batches(cohort, result):
    assert len(result.warnings) == 1 and "obs['batch'] is confounded" in result.warnings[0]
    for covariates in ("batch", ["age", "batch"]):
        with pytest.raises(DataError, match="linear combination of .*'batch'"):
            compare(cohort, "diagnosis", "patient", "type", covariates=covariates, verbose=False)
    with pytest.raises(DataError, match="linear combination of 'batch'"):
        pseudobulk(cohort, "diagnosis", "patient", "AD", covariates="batch")


def test_covariates(cohort):
    found = compare(
        cohort, "diagnosis", "patient", "type", covariates=["age", "lot"], verbose=False
    )
    assert set(found.genes("MG")["gene"]) >= {f"g{i}" for i in range(10)}
    assert {"age", "lot"} <= set(found.samples["MG"].columns)
    with pytest.raises(DataError, match="'size' varies within donor"):
        cells = cohort.copy()
        cells.obs["size"] = np.arange(cells.n_obs) % 5
        compare(cells, "diagnosis", "patient", covariates="size", verbose=False)


def test_paired_design(cohort):
    """Two states of each donor: donor effects cancel."""
    cells = cohort[(cohort.obs["type"] == "MG") & (cohort.obs["diagnosis"] == "AD")].copy()
    state = np.arange(cells.n_obs) % 2
    cells.obs["state"] = np.where(state, "stim", "ctrl")
    rng = np.random.default_rng(0)
    counts = cells.X.toarray()
    counts[state == 1, 15] = rng.poisson(3 * counts[state == 1, 15] + 1)
    cells.X = sp.csr_matrix(counts)
    paired = compare(cells, "state", "patient", verbose=False)
    assert paired.genes("all cells")["gene"].iloc[0] == "g15"
    assert "in 6 of 6 stim donors" in paired.sentence("g15", "all cells")
    free = compare(cells, "state", "patient", paired=False, verbose=False)
    a, b = (x.table.set_index("gene").loc["g15", "df"] for x in (paired, free))
    assert not np.isclose(a, b)


def test_too_few_donors_and_empty_ones(cohort):
    cells = cohort.copy()
    keep = (cells.obs["type"] == "MG") | cells.obs["patient"].isin(["p0", "p6", "p7"])
    found = compare(cells[keep].copy(), "diagnosis", "patient", "type", verbose=False)
    assert found.summary["cell_type"].tolist() == ["MG"]
    assert found.notes == (
        "AC: not tested, 1 AD and 2 Control donors have at least 10 cells; two in each are needed.",
    )
    empty = cohort[cohort.obs["type"] == "MG"].copy()
    values = empty.X.toarray()
    values[(empty.obs["patient"] == "p4").to_numpy()] = 0
    empty.X = sp.csr_matrix(values)
    found = compare(empty, "diagnosis", "patient", verbose=False)
    rest = compare(
        empty[empty.obs["patient"] != "p4"].copy(), "diagnosis", "patient", verbose=False
    )
    pd.testing.assert_frame_equal(found.table, rest.table)
    assert "Donor p4: omitted" in found.notes[0]
    with pytest.raises(DataError, match="No cell type has two donors"):
        compare(cohort, "diagnosis", "patient", "type", min_cells=500, verbose=False)


@pytest.mark.parametrize("test", ["likelihood_ratio", "quasi_likelihood", "moderated_t"])
def test_a_type_with_too_few_donors_for_the_covariates_does_not_end_the_others(cohort, test):
    """Two donors of each group leave no degrees of freedom for two covariates, six of each do."""
    few = cohort[
        (cohort.obs["type"] == "MG") | cohort.obs["patient"].isin(["p0", "p3", "p6", "p9"])
    ]
    found = compare(
        few, "diagnosis", "patient", "type", covariates=["age", "lot"], test=test, verbose=False
    )
    assert found.summary["cell_type"].tolist() == ["MG"]
    (note,) = [note for note in found.notes if note.startswith("AC")]
    assert note.startswith("AC: not tested. 4 samples leave no degrees of freedom")
    with pytest.raises(DataError, match="no degrees of freedom"):
        compare(
            few[few.obs["type"] == "AC"].copy(),
            "diagnosis",
            "patient",
            "type",
            covariates=["age", "lot"],
            test=test,
            verbose=False,
        )
    # A batch that is the group in one type only.
    mixed = cohort.copy()
    mixed.obs["batch"] = np.where(
        cohort.obs["type"] == "AC", cohort.obs["batch"], cohort.obs["lot"]
    )
    part = compare(
        mixed, "diagnosis", "patient", "type", covariates=["batch"], test=test, verbose=False
    )
    assert part.summary["cell_type"].tolist() == ["MG"]
    assert any(n.startswith("AC: not tested. The condition") for n in part.notes)


def test_invalid_comparisons_are_refused(cohort):
    logs = cohort.copy()
    logs.X = sp.csr_matrix(np.log1p(cohort.X.toarray() / 3))
    with pytest.raises(DataError, match=r"compare\(\) needs raw counts"):
        compare(logs, "diagnosis", "patient", verbose=False)
    with pytest.raises(DataError, match="no column 'donor'"):
        compare(cohort, "diagnosis", "donor", verbose=False)
    with pytest.raises(OptionError, match="test is 't'"):
        compare(cohort, "diagnosis", "patient", test="t")


def test_signature_follows_the_options():
    parameters = inspect.signature(compare).parameters
    assert set(CompareOptions.defaults()) == set(parameters) - {"adata", "verbose"}
    for name, value in CompareOptions.defaults().items():
        default = parameters[name].default
        assert default is inspect.Parameter.empty or default == value, name


def test_folder_and_command(cohort, result, tmp_path):
    cohort.copy().write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "out"
    words = f"compare {tmp_path}/in.h5ad --condition-key diagnosis --donor-key patient --label-key type -o {out}"
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    assert "MG: 6 v 6 donors" in done.output and "WARNING: obs['batch']" in done.output
    genes = pd.read_csv(out / "genes.csv", keep_default_na=False, na_values=["NaN"])
    np.testing.assert_allclose(genes["p_val"].astype(float), result.table["p_val"], rtol=1e-6)
    card = json.loads((out / "settings.json").read_text())
    assert card["settings"]["group1"] == "AD" and len(card["power"]) == 2
    for name in ("volcano_MG.png", "heatmap_AC.png", "summary.csv", "samples.csv"):
        assert (out / name).stat().st_size > 100
    again = CliRunner().invoke(app, words.split())
    assert again.exit_code == 1 and "exists already" in again.output
    assert CliRunner().invoke(app, [*words.split(), "--overwrite"]).exit_code == 0


def test_sums_of_logs_are_on_the_scale_of_the_input():
    counts = sp.csr_matrix(np.array([[1.0, 0], [3, 0], [0, 5], [2, 2]]))
    logs = counts.copy()
    logs.data = np.log1p(logs.data)
    code = np.array([0, 0, 1, -1])
    np.testing.assert_allclose(sum_cells(logs, code, 2, logs=True), [[4, 0], [0, 5]])


def test_variation_of_cells_within_donors_reduces_the_certainty(cohort):
    """The same sums, once spread over a donor's cells and once in a single cell: only the cells differ."""
    microglia = cohort[cohort.obs["type"] == "MG"].copy()
    gathered = microglia.copy()
    dense = gathered.X.toarray()
    for donor in set(gathered.obs["patient"]):
        own = np.flatnonzero((gathered.obs["patient"] == donor).to_numpy())
        total = dense[own, :10].sum(axis=0)
        dense[own, :10] = 0
        dense[own[0], :10] = total
    gathered.X = sp.csr_matrix(dense)
    p = {}
    for name, data in (("spread", microglia), ("gathered", gathered)):
        table = compare(data, "diagnosis", "patient", verbose=False).table.set_index("gene")
        p[name] = table.loc[[f"g{i}" for i in range(10)], "p_val"]
        assert (table["statistic"] >= 0).all()  # of the F test
    assert (p["gathered"] > 10 * p["spread"]).all()


def test_results_of_several_types_are_combined_under_one_type_name(result):
    from scmamba.deg import meta_analysis

    found = meta_analysis({"A": result, "B": result}, "MG")
    table = result.table[result.table["cell_type"] == "MG"].set_index("gene")
    np.testing.assert_allclose(found.loc["g0", "log2FC_fixed"], table.loc["g0", "log2FC"])


def test_the_volcano_shows_minus_the_logarithm_of_p(cohort):
    result = compare(cohort, "diagnosis", "patient", "type", verbose=False)
    kind = result.table["cell_type"].iloc[0]
    table = result.table[result.table["cell_type"] == kind]
    axis = volcano(result, kind).axes[0]
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in axis.collections])
    points = np.column_stack([table["log2FC_shrunk"], -np.log10(table["p_val"])])
    keep = np.isfinite(points).all(axis=1)
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    assert len(drawn) == keep.sum()
    np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(points[keep], axis=0))


def test_counts_of_donors_by_hand():
    """Medians of group 2: 2, 7, 0, 1.5; a donor at the median is neither above nor below."""
    levels = np.array(
        [
            [3.0, 4, 0, 2],
            [1.0, 4, 0, 1],
            [4.0, 5, 0, 1.5],
            [2.0, 5, 0, 1],
            [2.0, 9, 0, 2],
        ]
    )
    table = pd.DataFrame({"group": [0, 0, 0, 1, 1], "donor": list("abcde")})
    higher, lower, of = donors_beyond(levels, Samples(table, levels), None)
    assert (higher.tolist(), lower.tolist(), of) == ([2, 0, 0, 1], [1, 3, 0, 1], 3)
    table = pd.DataFrame({"group": [0, 0, 0, 1, 1], "donor": list("abcab")})
    higher, lower, of = donors_beyond(levels, Samples(table, levels), True)
    assert (higher.tolist(), lower.tolist(), of) == ([1, 0, 0, 1], [1, 2, 0, 1], 2)


def test_sentences_verbatim():
    row = pd.Series(
        {
            "gene": "APOE",
            "log2FC": 1.2,
            "log2FC_shrunk": 1.0,
            "ci_low": 0.5,
            "ci_high": 1.5,
            "donors_higher": 9,
            "donors_lower": 1,
            "donors": 11,
            "driven_by": "",
        }
    )
    assert describe(row, "AD", "Control") == (
        "APOE: 2-fold higher in AD than in Control (95% interval 1.4 to 2.8); higher in 9 of 11 AD donors."
    )
    row["log2FC_shrunk"], row["ci_low"], row["ci_high"], row["driven_by"] = -2.0, -3.0, -1.0, "p7"
    assert describe(row, "AD", "Control") == (
        "APOE: 4-fold lower in AD than in Control (95% interval 2 to 8); lower in 1 of 11 AD donors. "
        "Depends on donor p7: without this donor p > 0.05 or the direction changes."
    )
