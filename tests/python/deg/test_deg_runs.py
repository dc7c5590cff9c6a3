"""One run of the robustness analysis: which cells are compared, which genes are called, which are shared; all by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

from scmamba.data.values import log1p_cp10k
from scmamba.deg import compare, find_markers
from scmamba.deg.between_donors import moderated_t
from scmamba.deg.markers import Screen, rules_for
from scmamba.deg.runs import (
    BULK_CELLS,
    Criteria,
    Outcome,
    Ranking,
    _null_columns,
    _outcome,
    _overlap_columns,
    _with_bulk,
    full_test,
    make_block,
    run_task,
)
from scmamba.deg.subsample import Task, cell_subsample, null_cells
from scmamba.deg.twogroup import HurdleTest, Sums

RULES = rules_for("5")
CRITERIA = Criteria(RULES, 0.05, 0.25, "bonferroni", 2, 1000)


def _ranking(text: str, n: int) -> Ranking:
    return Ranking(np.array([int(c) for c in text], dtype=np.int64), n)


def _result(up: str, n: int, note: str = "", down: str = "", m: int = 0) -> Outcome:
    return Outcome(20, 3, _ranking(up, n), _ranking(down, m), note)


def test_shares_by_hand():
    """full: 1 2 3 4 called; the first layer's: 1 2 7; the run calls 2 5 1 7, then 3."""
    run, full, truth = _result("25173", 4), _result("123498", 4), _result("1279", 3)
    got = _overlap_columns("up", run, full, truth, 3, CRITERIA)
    assert got == {
        "n_full": 4,
        "n_called": 4,
        "n_common": 2,  # 2 and 1
        "overlap": 2 / 4,
        "precision": 2 / 4,
        "precision_reference": 3 / 4,  # 2, 1, 7
        "n_matched": 3,
        "overlap_matched": 2 / 3,  # 2 5 1 against 1 2 3
    }
    got = _overlap_columns("up", _result("8", 1), full, truth, 3, CRITERIA)
    assert (got["n_common"], got["overlap"], got["precision"], got["overlap_matched"]) == (
        0,
        0,
        0,
        0,
    )
    got = _overlap_columns("up", _result("412", 1), _result("12345", 5), truth, 2, CRITERIA)
    assert got["overlap"] == 1 / 5 and got["precision"] == 1 and got["precision_reference"] == 0
    assert got["overlap_matched"] == 1 / 2  # 4 1 against 1 2: called or not
    down = _overlap_columns(
        "down", _result("1", 1, down="56", m=2), _result("", 0, down="67", m=2), truth, 2, CRITERIA
    )
    assert down["overlap"] == 0.5 and np.isnan(down["precision_reference"])


def test_shares_are_missing_if_there_are_too_few_genes():
    many = _result("1234", 4)
    for few, column in (
        ("full", "overlap"),
        ("truth", "precision_reference"),
        ("run", "precision"),
    ):
        sets = {
            "run": many,
            "full": many,
            "truth": many,
            few: _result("1234", 0 if few == "run" else 1),
        }
        got = _overlap_columns("up", sets["run"], sets["full"], sets["truth"], 3, CRITERIA)
        assert np.isnan(got[column]), few
        others = {"overlap", "precision", "precision_reference"} - {column}
        if few == "full":
            others.remove("precision")
            assert np.isnan(got["precision"])
        if few == "run":
            others.remove("precision_reference")
            assert got["overlap"] == 0
        assert all(not np.isnan(got[c]) for c in others), few
        assert got["overlap_matched"] == 1.0
    two = _result("12", 2)  # exactly min_degs is enough
    got = _overlap_columns("up", two, two, two, 2, CRITERIA)
    assert got["overlap"] == got["precision_reference"] == got["overlap_matched"] == 1
    assert np.isnan(_overlap_columns("up", many, many, many, 1, CRITERIA)["overlap_matched"])
    broken = _overlap_columns("up", _result("", 0, "2 and 9 cells"), many, many, 3, CRITERIA)
    for column in ("overlap", "precision", "precision_reference", "overlap_matched"):
        assert np.isnan(broken[column])


def test_calls_and_their_order():
    """Bonferroni over all genes or BH over the tested ones; strict limits; by p, then by fold change."""
    passed = np.array([4, 6, 7, 9, 11, 12, 13])
    change = np.zeros(20)
    change[passed] = [1.0, 0.25, 3.0, -2.0, 0.4, -0.25, -0.26]
    p = np.array([1e-6, 1e-9, 1e-6, 1e-5, 0.04, 1e-12, 4.9e-5])
    test = HurdleTest(p, p, p, np.log(p), p, p)
    screen = Screen(change, change, change, passed)
    out = _outcome(screen, test, CRITERIA)
    assert out.n_tested == 7 and out.n_nominal == 7
    # 0.25 is not beyond 0.25; of equal p the larger change is first; 0.04 x 1,000 is not significant
    assert out.up.genes.tolist() == [7, 4, 11] and out.up.n_called == 2
    assert out.down.genes.tolist() == [9, 13] and out.down.n_called == 2
    assert (
        _outcome(screen, test, CRITERIA._replace(n_features=1021)).down.n_called == 1
    )  # 4.9e-5 x 1,021
    fdr = _outcome(screen, test, CRITERIA._replace(adjust="bh"))
    assert fdr.up.n_called == 3 and fdr.down.n_called == 2
    assert _outcome(screen, test, CRITERIA._replace(alpha=0.005)).down.n_called == 0
    assert _outcome(screen, test, CRITERIA._replace(adjust="bh", alpha=0.03)).up.n_called == 2
    wide = _outcome(screen, test, CRITERIA._replace(min_log2fc=0.0))
    assert wide.up.genes.tolist() == [6, 7, 4, 11] and wide.down.genes.tolist() == [12, 9, 13]
    half = HurdleTest(p, p, np.where(p < 1e-7, 0.05, p), np.log(p), p, p)
    assert _outcome(screen, half, CRITERIA).n_nominal == 5  # below 0.05, not at it


def test_false_positives_of_a_null_run():
    out = Outcome(50, 4, _ranking("12", 2), _ranking("345", 3), "", 40, 2, 1, 3)
    assert _null_columns(out) == {
        "n_nominal": 4,
        "n_called": 5,
        "rate_nominal": 4 / 50,
        "pseudobulk_rate": 2 / 40,
        "pseudobulk_called": 4,
    }
    alone = _null_columns(out._replace(bulk_tested=-1, note="no"))
    assert np.isnan(
        [alone["rate_nominal"], alone["pseudobulk_rate"], alone["pseudobulk_called"]]
    ).all()
    assert np.isnan(_null_columns(out._replace(n_tested=0))["rate_nominal"])
    assert np.isnan(_null_columns(out._replace(bulk_tested=0))["pseudobulk_rate"])


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """140 cells, donors a-d of AD and e-h of Control, h with 5 cells; 40 genes of logarithms."""
    rng = np.random.default_rng(8)
    donor = np.repeat(list("abcdefgh"), [20, 20, 20, 15, 20, 20, 20, 5])
    sick = np.isin(donor, list("abcd"))
    values = rng.gamma(4, 0.4, (140, 40)) + 0.8 * sick[:, None] * (np.arange(40) < 8)
    values += 0.8 * (~sick)[:, None] * (np.arange(40) > 33)
    values *= rng.random((140, 40)) < 0.7
    obs = pd.DataFrame(
        {"donor": donor, "state": np.where(sick, "AD", "Control")},
        index=[f"c{i}" for i in range(140)],
    )
    order = rng.permutation(140)
    return ad.AnnData(
        sp.csr_matrix(values[order]),
        obs=obs.iloc[order],
        var=pd.DataFrame(index=[f"{i}" for i in range(40)]),
        uns={"log1p": {}},
    )


@pytest.fixture(scope="module")
def block(cells):
    return make_block(cells.X.tocsc(), cells.obs, "state", ("AD", "Control"), "donor", 10)


FEW = CRITERIA._replace(n_features=40)


def test_block(cells, block):
    sick = (cells.obs["state"] == "AD").to_numpy()
    np.testing.assert_array_equal(block.group, 1 - sick)
    assert block.samples == tuple(zip([0, 0, 0, 0, 1, 1, 1], "abcdefg", strict=True))
    donor = cells.obs["donor"].to_numpy()
    np.testing.assert_array_equal(block.strata, ["abcdefgh".index(d) for d in donor])
    np.testing.assert_array_equal(
        block.sample, [-1 if d == "h" else "abcdefgh".index(d) for d in donor]
    )
    dense = cells.X.toarray()
    np.testing.assert_allclose(block.centre, dense.sum(axis=0) / (dense > 0).sum(axis=0))
    exactly = make_block(cells.X.tocsc(), cells.obs, "state", ("AD", "Control"), "donor", 15)
    assert (0, "d") in exactly.samples and len(exactly.samples) == 7
    none = make_block(cells.X.tocsc(), cells.obs, "state", ("AD", "Control"), None, 10)
    assert none.samples == () and (none.sample == -1).all()
    np.testing.assert_array_equal(none.strata, none.group)


def _table(cells, mask, flip=None):
    part = cells[mask].copy()
    part.obs["side"] = "1" if flip is None else np.where(flip[mask], "1", "2")
    column = "state" if flip is None else "side"
    first = ("AD", "Control") if flip is None else ("1", "2")
    return find_markers(part, column, *first)


def _called(table, way):
    return set(table.index[(table["p_val_adj"] < 0.05) & (way * table["avg_log2FC"] > 0.25)])


def test_full_data(cells, block):
    out = full_test(block, FEW)
    table = _table(cells, np.ones(140, dtype=bool))
    assert (
        out.n_tested == len(table)
        and out.n_nominal == (table["p_val"] < 0.05).sum()
        and out.note == ""
    )
    for ranking, way in ((out.up, 1), (out.down, -1)):
        names = [str(g) for g in ranking.genes[: ranking.n_called]]
        assert set(names) == _called(table, way) and len(names) > 2
        assert table.loc[names, "p_val"].is_monotonic_increasing
    # per donor: log2 of (mean of 10,000 x 100 + 2), a t-test of 4 donors against 3
    lin = pd.DataFrame(np.expm1(cells.X.toarray())).groupby(cells.obs["donor"].to_numpy()).mean()
    levels = np.log2(lin.drop("h") * 100 + 2).to_numpy().T
    x = np.column_stack([np.ones(7), [1, 1, 1, 1, 0, 0, 0]]).astype(float)
    truth = moderated_t(levels, x, 1)
    sig = truth["p_val_adj"] < 0.05
    assert out.bulk_tested == 40 and out.bulk_nominal == (truth["p_val"] < 0.05).sum()
    assert out.bulk_up == (sig & (truth["log2FC"] > 0.25)).sum() > 1
    assert out.bulk_down == (sig & (truth["log2FC"] < -0.25)).sum() > 1


def test_runs_of_cells_and_of_null_cells(cells, block):
    """Every row of a task against find_markers on the cells that its seed draws."""
    full = full_test(block, FEW)
    matched = {"up": 6, "down": 4}
    rows = run_task(
        Task("cells", "MG", "counts", 0.5, 7, (11, 12), None), block, full, full, matched, FEW
    )
    assert rows["run"].tolist() == [7, 7, 8, 8] and rows["seed"].tolist() == [11, 11, 12, 12]
    assert rows["direction"].tolist() == ["up", "down"] * 2 and (rows["donors"] == "").all()
    assert (
        (rows["kind"] == "cells").all()
        and (rows["cell_type"] == "MG").all()
        and (rows["ratio"] == 0.5).all()
    )
    assert rows["n_matched"].tolist() == [6, 4, 6, 4] and (rows["layer"] == "counts").all()
    for row in rows.itertuples():
        member = cell_subsample(block.group, 0.5, row.seed)
        assert (row.n_cells1, row.n_cells2) == (38, 32) == tuple(member.sum(axis=0))  # 37.5 to even
        table = _table(cells, member.any(axis=1))
        called = _called(table, 1 if row.direction == "up" else -1)
        way = full.up if row.direction == "up" else full.down
        assert row.n_called == len(called) and row.n_tested == len(table)
        assert row.n_common == len(called & {str(g) for g in way.genes[: way.n_called]})
    null = run_task(
        Task("null_cells", "MG", "counts", 1.0, 0, (3,), None), block, full, full, matched, FEW
    ).iloc[0]
    member = null_cells(block.strata, 3)
    table = _table(cells, np.ones(140, dtype=bool), member[:, 0] == 1)
    assert null["direction"] == "both" and null["n_nominal"] == (table["p_val"] < 0.05).sum()
    assert null["rate_nominal"] == (table["p_val"] < 0.05).mean() and null["n_tested"] == len(table)
    assert null["n_called"] == len(_called(table, 1)) + len(_called(table, -1))
    assert null["n_cells1"] == member[:, 0].sum() and np.isnan(null["pseudobulk_rate"])


def test_runs_of_donors_and_of_split_donors(cells, block):
    full = full_test(block, FEW)
    donor = cells.obs["donor"].to_numpy()
    weights = np.array([[1, 0, 1, 0, 0, 1, 1], [0, 1, 0, 1, 1, 1, 0]], dtype=np.uint8)
    task = Task("donors", "MG", "counts", 1.0, 0, (5, 5), weights)
    rows = run_task(task, block, full, full, {"up": 5, "down": 5}, FEW)
    assert rows["donors"].tolist() == ["a+c v f+g"] * 2 + ["b+d v e+f"] * 2
    for row, names in zip(rows.iloc[::2].itertuples(), ("acfg", "bdef"), strict=True):
        table = _table(cells, np.isin(donor, list(names)))
        assert row.n_called == len(_called(table, 1)) and row.n_tested == len(table)
        assert (row.n_cells1, row.n_cells2) == ((40, 40) if names == "acfg" else (35, 40))
    # The controls e f g h with at least 5 cells, split in two: e+h against f+g
    block = make_block(cells.X.tocsc(), cells.obs, "state", ("AD", "Control"), "donor", 5)
    task = Task(
        "null_donors", "MG", "counts", 1.0, 0, (5,), np.array([[1, 0, 0, 1]], dtype=np.uint8)
    )
    row = run_task(task, block, full, full, {"up": 5, "down": 5}, FEW).iloc[0]
    assert row["donors"] == "e+h v f+g" and (row["n_cells1"], row["n_cells2"]) == (25, 40)
    table = _table(cells, np.isin(donor, list("efgh")), np.isin(donor, list("eh")))
    assert row["n_nominal"] == (table["p_val"] < 0.05).sum() and row["n_tested"] == len(table)
    lin = pd.DataFrame(np.expm1(cells.X.toarray())).groupby(donor).mean().loc[list("efgh")]
    x = np.column_stack([np.ones(4), [1, 0, 0, 1]]).astype(float)
    truth = moderated_t(np.log2(lin * 100 + 2).to_numpy().T, x, 1)
    assert row["pseudobulk_rate"] == pytest.approx((truth["p_val"] < 0.05).mean())
    called = (truth["p_val_adj"] < 0.05) & (truth["log2FC"].abs() > 0.25)
    assert row["pseudobulk_called"] == called.sum()


def _per_donor(cells, keep):
    """Genes (up, down) that the moderated t-test calls between the donors' means over some cells."""
    donor, x = cells.obs["donor"].to_numpy()[keep], np.expm1(cells.X.toarray()[keep])
    means = pd.DataFrame(x).groupby(donor).mean().drop("h", errors="ignore")
    seen = np.flatnonzero((x[donor != "h"] > 0).sum(axis=0) >= BULK_CELLS)
    first = means.index.isin(list("abcd")).astype(float)
    design = np.column_stack([np.ones(len(means)), first])
    table = moderated_t(np.log2(means[seen] * 100 + 2).to_numpy().T, design, 1)
    sig = (table["p_val_adj"] < 0.05).to_numpy()
    change = table["log2FC"].to_numpy()
    return set(seen[sig & (change > 0.25)]), set(seen[sig & (change < -0.25)])


def test_the_test_between_donors_of_every_run(cells, block):
    full = full_test(block, FEW)
    whole = _per_donor(cells, np.ones(140, dtype=bool))
    assert min(map(len, whole)) > 1
    weights = np.array([[1, 0, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 1, 0]], dtype=np.uint8)
    tasks = [
        Task("cells", "MG", "counts", 0.5, 0, (11, 12), None),
        Task("donors", "MG", "counts", 1.0, 0, (5, 5), weights),
    ]
    donor, again = cells.obs["donor"].to_numpy(), 0
    for task in tasks:
        rows = run_task(task, block, full, full, {"up": 5, "down": 5}, FEW)
        for row in rows.itertuples():
            if task.weights is None:
                keep = cell_subsample(block.group, 0.5, row.seed).any(axis=1)
            else:
                chosen = [n for n, w in zip("abcdefg", weights[row.run]) if w]
                keep = np.isin(donor, chosen)
            at = ("up", "down").index(row.direction)
            called = _per_donor(cells, keep)[at]
            assert row.pseudobulk_called == len(called) and row.pseudobulk_full == len(whole[at])
            assert row.pseudobulk_overlap == len(called & whole[at]) / len(whole[at])
            again += len(called & whole[at])
    assert again > 4


def test_too_few_cells_in_a_run(cells, block):
    full = full_test(block, FEW)
    task = Task("cells", "MG", "counts", 0.03, 0, (1,), None)
    row = run_task(task, block, full, full, {"up": 5, "down": 5}, FEW).iloc[0]
    assert (
        row["note"] == "2 and 2 cells: fewer than 3"
        and row["n_tested"] == 0
        and np.isnan(row["overlap"])
    )
    task = task._replace(ratio=0.04)
    row = run_task(task, block, full, full, {"up": 5, "down": 5}, FEW).iloc[0]
    assert row["note"] == "" and (row["n_cells1"], row["n_cells2"]) == (3, 3)


def _parts(levels: np.ndarray, expressed: float = 30.0) -> list[Sums]:
    """Samples of ten cells whose log2 levels are given (genes x samples)."""
    linear = (2**levels - 2) / 100 * 10
    zero = np.zeros(len(levels))
    return [Sums(10, zero + expressed, zero, zero, column) for column in linear.T]


def test_donor_tests_within_and_between():
    rng = np.random.default_rng(4)
    levels = 8 + rng.normal(size=(12, 6)) * 0.3 + 2 * np.arange(6) % 3
    levels[:4, :3] += 2
    levels[4:6, :3] -= 2
    none = Outcome(0, 0, _ranking("", 0), _ranking("", 0))
    label = np.array([0, 0, 0, 1, 1, 1])
    paired = _with_bulk(none, _parts(levels), label, list("xyzxyz"), FEW)
    fixed = np.column_stack([np.ones(6), 1 - label, np.tile([0, 1, 0], 2), np.tile([0, 0, 1], 2)])
    truth = moderated_t(levels, fixed.astype(float), 1)
    assert paired.bulk_tested == 12 and paired.bulk_nominal == (truth["p_val"] < 0.05).sum()
    sig = multipletests(truth["p_val"], method="fdr_bh")[1] < 0.05
    assert paired.bulk_up == (sig & (truth["log2FC"] > 0.25)).sum() == 4
    assert paired.bulk_down == (sig & (truth["log2FC"] < -0.25)).sum() == 2
    far = _with_bulk(none, _parts(levels), label, list("xyzxyz"), FEW._replace(min_log2fc=1.9))
    assert far.bulk_up == (sig & (truth["log2FC"] > 1.9)).sum() < 4
    assert far.bulk_down == (sig & (truth["log2FC"] < -1.9)).sum() < 3
    strict = _with_bulk(none, _parts(levels), label, list("xyzxyz"), FEW._replace(alpha=1e-9))
    assert strict.bulk_up == strict.bulk_down == 0 and strict.bulk_nominal == paired.bulk_nominal
    apart = _with_bulk(none, _parts(levels), label, list("uvwxyz"), FEW)
    two = np.column_stack([np.ones(6), 1 - label]).astype(float)
    assert (
        apart.bulk_nominal
        == (moderated_t(levels, two, 1)["p_val"] < 0.05).sum()
        < paired.bulk_nominal
    )
    # plain t-tests as a check of the design itself
    plain = moderated_t(levels, fixed.astype(float), 1, moderate=False)
    np.testing.assert_allclose(
        plain["p_val"], stats.ttest_rel(levels[:, :3], levels[:, 3:], axis=1).pvalue
    )
    assert plain["log2FC"].iloc[0] == pytest.approx(sm.OLS(levels[0], fixed).fit().params[1])
    # one donor on a side: no test; fewer than ten expressing cells in total: not tested
    assert _with_bulk(none, _parts(levels[:, :4]), label[[0, 1, 2, 3]], list("uvwx"), FEW) is none
    assert BULK_CELLS == 10
    rare = _parts(levels, 10 / 6)
    rare = [p._replace(expressed=np.where(np.arange(12) < 5, 9.9 / 6, 10 / 6 + 1e-9)) for p in rare]
    assert _with_bulk(none, rare, label, list("uvwxyz"), FEW).bulk_tested == 7
    single = levels.copy()
    single[0, 1:] = 1.0  # log2(2): no expression there
    assert _with_bulk(none, _parts(single), label, list("uvwxyz"), FEW).bulk_tested == 11
    pair = _with_bulk(
        none, _parts(levels[:, [0, 1, 3, 4]]), np.array([0, 0, 1, 1]), list("xyxy"), FEW
    )
    assert pair.bulk_tested == 12  # two pairs leave one degree of freedom


@pytest.fixture(scope="module")
def counted() -> ad.AnnData:
    """400 cells of counts, donors a-d of AD and e-h of Control; the first genes differ."""
    rng = np.random.default_rng(2)
    donor = np.repeat(list("abcdefgh"), 50)
    sick = np.isin(donor, list("abcd"))
    level = rng.gamma(2, 0.6, 120) * np.exp(rng.normal(0, 0.2, (8, 120)))[np.arange(400) // 50]
    level *= np.where(sick[:, None] & (np.arange(120) < 12), 2.5, 1)
    level *= np.where(~sick[:, None] & (np.arange(120) > 107), 2.5, 1)
    obs = pd.DataFrame({"donor": donor, "state": np.where(sick, "AD", "Control")})
    obs.index = [f"c{i}" for i in range(400)]
    names = pd.DataFrame(index=[f"{i}" for i in range(120)])
    return ad.AnnData(sp.csr_matrix(rng.poisson(level).astype(np.float32)), obs=obs, var=names)


@pytest.mark.parametrize("test", ["likelihood_ratio", "quasi_likelihood", "wald"])
def test_counts_of_donors_are_tested_as_by_compare(counted, test):
    """Every run between donors is :func:`compare` on the cells of that run."""
    logs = log1p_cp10k(counted.X, np.asarray(counted.X.sum(axis=1)).ravel())
    block = make_block(
        logs.tocsc(), counted.obs, "state", ("AD", "Control"), "donor", 10, counted.X
    )
    few = FEW._replace(n_features=120, donor_test=test, min_degs=1)
    full = full_test(block, few)

    def called(keep: np.ndarray) -> list[set[str]]:
        table = compare(
            counted[keep], "state", "donor", test=test, min_cells=1, verbose=False
        ).table
        sig = (table["p_val_adj"] < 0.05).to_numpy()
        ways = [sig & (w * table["log2FC"].to_numpy() > 0.25) for w in (1, -1)]
        return [set(table["gene"][way]) for way in ways]

    whole = called(np.ones(400, dtype=bool))
    assert min(map(len, whole)) > 4 and full.bulk_tested > 100
    assert (full.bulk_up, full.bulk_down) == tuple(map(len, whole))
    donor = counted.obs["donor"].to_numpy()
    weights = np.array([[1, 0, 1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1, 0, 1]], dtype=np.uint8)
    for task in (
        Task("cells", "MG", "counts", 0.5, 0, (11,), None),
        Task("donors", "MG", "counts", 1.0, 0, (5, 5), weights),
    ):
        rows = run_task(task, block, full, full, {"up": 5, "down": 5}, few)
        for row in rows.itertuples():
            if task.weights is None:
                keep = cell_subsample(block.group, 0.5, row.seed).any(axis=1)
            else:
                keep = np.isin(donor, [n for n, w in zip("abcdefgh", weights[row.run]) if w])
            at = ("up", "down").index(row.direction)
            mine = called(keep)[at]
            assert row.pseudobulk_called == len(mine) and row.pseudobulk_full == len(whole[at])
            assert row.pseudobulk_overlap == len(mine & whole[at]) / len(whole[at])
    split = np.array([[1, 0, 0, 1]], dtype=np.uint8)
    task = Task("null_donors", "MG", "counts", 1.0, 0, (5,), split)
    row = run_task(task, block, full, full, {"up": 5, "down": 5}, few).iloc[0]
    part = counted[np.isin(donor, list("efgh"))].copy()
    part.obs["side"] = np.where(part.obs["donor"].isin(["e", "h"]), "x", "y")
    table = compare(part, "side", "donor", test=test, group1="x", group2="y", verbose=False).table
    assert row["pseudobulk_rate"] == pytest.approx((table["p_val"] < 0.05).mean())
    bare = make_block(logs.tocsc(), counted.obs, "state", ("AD", "Control"), "donor", 10)
    assert full_test(bare, few).bulk_tested == -1
