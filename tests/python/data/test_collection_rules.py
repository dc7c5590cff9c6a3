"""Collections at the limits of their filters, columns and splits: small objects, tables by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmamba.data import collection as module
from scmamba.data.collection import Collection, read_splits, write_splits
from scmamba.genes import Vocabulary
from scmamba.utils.errors import DataError, GeneError

GENES = Vocabulary.published().subset(range(8))


def cells_of(counts, name="part", names=None, dtype=np.float64, **obs) -> ad.AnnData:
    counts = np.asarray(counts)
    made = ad.AnnData(
        sparse.csr_matrix(counts, dtype=dtype),
        obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(len(counts))]),
    )
    made.var_names = list(GENES)[: counts.shape[1]] if names is None else names
    made.uns["name"] = name
    return made


def gather(*parts, **options) -> Collection:
    return Collection(
        list(parts),
        vocabulary=GENES,
        cache=options.pop("cache", None),
        verbose=options.pop("verbose", False),
        **options,
    )


# --- reading
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [[0, 1, 3, 6, 7], [6, 0, 7, 3, 1]], ids=["in the vocabulary's order", "in another"]
)
def test_counts_are_assigned_to_their_genes(order):
    """Unknown genes are dropped, rows of one gene are summed, zeros are removed, columns are sorted."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (90, 7))
    names = [GENES[order[0]], "unknown", *[GENES[i] for i in order[1:]], GENES[order[2]]]
    whole = np.zeros((90, 8))
    whole[:, order] = counts[:, [0, 2, 3, 4, 5]]
    whole[:, order[2]] += counts[:, 6]
    sources = cells_of(counts[:40], names=names), cells_of(counts[40:], names=names, name="b")
    found = gather(*sources, force=True)
    wanted = np.array([88, 3, 3, 41, 39, 40, 0, 89])
    block = found.read(wanted)
    totals = whole.sum(axis=1)
    assert (
        block.cells.tolist() == wanted.tolist()
        and block.files.tolist() == [1, 0, 0, 1, 0, 1, 0, 1]
        and len(block) == 8
    )
    assert block.totals.tolist() == totals[wanted].tolist()
    expected = np.log1p(1e4 * whole / np.maximum(totals, 1)[:, None]).astype(np.float32)
    np.testing.assert_array_equal(block.values.toarray(), expected[wanted])
    assert (
        block.values.dtype == np.float32
        and block.values.has_canonical_format
        and (block.values.data > 0).all()
    )
    part = block.take(np.array([1, 0]))
    assert (part.cells.tolist(), part.files.tolist(), part.totals.tolist()) == (
        [3, 88],
        [0, 1],
        totals[[3, 88]].tolist(),
    )
    np.testing.assert_array_equal(found.totals, totals)
    np.testing.assert_array_equal(found.lengths, (whole > 0).sum(axis=1))
    np.testing.assert_array_equal(found.detected(), (whole > 0).sum(axis=0))
    np.testing.assert_array_equal(
        found.gene_sums(), [whole[:40].sum(axis=0), whole[40:].sum(axis=0)]
    )
    assert found.members[0].genes.tolist() == sorted(order)
    assert found.read(np.array([], int)).values.shape == (0, 8)
    few = found.take(np.arange(90) >= 85)
    assert (
        few.cells.tolist() == [85, 86, 87, 88, 89] and few.totals.tolist() == totals[85:].tolist()
    )
    assert found.take(np.array([7, 2])).cells.tolist() == [2, 7] and len(found) == 90
    np.testing.assert_array_equal(few.detected(), found.detected())
    assert found.file_of(np.array([0, 39, 40, 89])).tolist() == [0, 0, 1, 1]


def test_of_equally_good_name_columns_the_first_is_read():
    """As for objects: the index before all columns, then the columns in their fixed order."""
    ids = list(GENES)
    part = cells_of(np.ones((2, 4)), names=[f"7x{i}" for i in range(4)])
    part.var["symbol"], part.var["gene_ids"] = ids[4:], ids[:4]
    (member,) = gather(part).members
    assert member.match.source == "var['gene_ids']" and member.slot.tolist() == [0, 1, 2, 3]
    part.var_names = ids[3:7]
    (member,) = gather(part).members
    assert member.match.source == "var_names" and member.slot.tolist() == [3, 4, 5, 6]
    part.var_names = [*ids[3:6], "7x"]
    assert gather(part).members[0].match.source == "var['gene_ids']"


def test_logs_give_the_same_values_as_their_counts():
    relative = np.array([[1, 3, 7, 0], [1, 4, 24, 20]]) / np.array([[11], [49]])
    logs = gather(cells_of(np.log1p(1e4 * relative)))
    np.testing.assert_allclose(
        logs.read(np.arange(2)).values.toarray()[:, :4], np.log1p(1e4 * relative), rtol=1e-6
    )
    np.testing.assert_allclose(logs.totals, [1e4, 1e4])


def test_bad_values_deep_in_a_file_are_found(tmp_path):
    counts = np.ones((700, 3))
    counts[70] = [5, 0, -2]
    bad = gather(cells_of(counts, name="minus"))
    with pytest.raises(DataError, match="minus holds negative or missing values in rows 0 to 700"):
        _ = bad.totals
    counts[0, 0] = -1
    with pytest.raises(DataError, match=r"minus: X holds negative values \(down to -1\)"):
        gather(cells_of(counts, name="minus"))
    with pytest.raises(DataError, match="nothing: it is empty: 0 cells x 3 genes"):
        gather(cells_of(np.ones((0, 3)), name="nothing"))
    with pytest.raises(GeneError, match="few: The data measure only 12.5%"):
        gather(cells_of(np.ones((2, 1)), name="few"), min_coverage=0.2)
    assert len(gather(cells_of(np.ones((2, 1))), min_coverage=0.2, force=True)) == 2
    for nothing in ([], "a.h5ad"):
        with pytest.raises(DataError, match="list of at least one file"):
            Collection(nothing)


# --- columns
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("donor", "donor donor_id individual patient patient_id subject sample"),
        ("study", "study dataset project"),
        ("disease", "disease diagnosis condition"),
        ("label", "label cell_type celltype cluster"),
    ],
)
def test_columns_are_found_by_their_usual_names(what, names):
    names = names.split()
    for i, name in enumerate(names):
        later = {other: ["x", "y"] for other in names[i + 1 :]}
        found = gather(cells_of(np.ones((2, 3)), **{**later, name: ["a", "b"]}))
        assert list(found.column(what)) == ["a", "b"], name
    named = gather(
        cells_of(np.ones((2, 3)), own=["p", "q"], **{names[0]: ["a", "b"]}), **{what: "own"}
    )
    assert list(named.column(what)) == ["p", "q"]
    in_turn = gather(
        cells_of(np.ones((2, 3)), one=["p", "q"], two=["r", "s"]), **{what: ("zero", "two", "one")}
    )
    assert list(in_turn.column(what)) == ["r", "s"]
    with pytest.raises(DataError, match=f"No file has a column zero or none in obs .option {what}"):
        gather(cells_of(np.ones((2, 3))), **{what: ("zero", "none")})


def test_files_without_a_study_column_use_their_name():
    found = gather(
        cells_of(np.ones((2, 3)), name="one", donor=["d1", None], condition=["AD", "AD"]),
        cells_of(
            np.ones((3, 3)),
            name="two",
            donor=pd.Categorical(["d1", "d2", "d1"]),
            study=["s", "s", "one"],
        ),
        cells_of(np.ones((1, 3)), name="one", cluster=["L2"]),
    )
    assert found.donor_keys().tolist() == [
        "one#1/d1",
        "one#1/",
        "s/d1",
        "s/d2",
        "one/d1",
        "one#2/",
    ]
    assert found.donors().tolist() == ["one#1/", "one#1/d1", "one#2/", "one/d1", "s/d1", "s/d2"]
    obs = found.take(np.array([0, 1, 3, 4, 5])).obs
    assert set(obs.columns) == {"file", "study", "donor", "disease", "label", "total", "genes"}
    assert obs.file.tolist() == [
        "one#1",
        "one#1",
        "two",
        "two",
        "one#2",
    ] and obs.index.tolist() == list(range(5))
    assert obs.study.tolist() == ["one#1", "one#1", "s", "one", "one#2"] and obs.donor.tolist() == [
        "d1",
        "",
        "d2",
        "d1",
        "",
    ]
    assert obs.disease.tolist() == ["AD", "AD", "", "", ""] and obs.label.tolist() == [""] * 4 + [
        "L2"
    ]
    assert obs.total.tolist() == [3] * 5 and obs.genes.tolist() == [3] * 5
    assert found.files == ["one#1", "two", "one#2"]
    assert repr(found) == "Collection of 6 cells, 6 donors, 3 files, 8 genes"


# --- filters
# ------------------------------------------------------------------------------------------------


def test_limits_are_those_of_the_paper():
    assert (module.MIN_TOTAL, module.MIN_DONOR_CELLS, module.IMPUTE_TOTAL) == (200, 200, 4000)
    unknown = ["doublet", "doublets", "unidentified", "unknown", "unassigned", "ambiguous", "mixed"]
    assert (*unknown, "low quality") == module.NOT_CELLS
    donors = np.repeat(["a", "b", "c"], [200, 199, 201])
    counts = np.full((600, 1), 200)
    counts[-1] = 199  # one of c's 201 cells is too shallow: 200 remain
    found = gather(cells_of(counts, donor=donors), min_coverage=0)
    assert found.filter().cells.tolist() == [*range(200), *range(399, 599)]


def test_filters_by_hand(capsys):
    totals = [100, 99, 100, 500, 501, 300, 300, 300, 300, 300]
    labels = ["A", "A", " Doublet ", "B", "B", "UNKNOWN", "A", "A", "Doublet-like", None]
    donors = ["x", "x", "x", "x", "x", "y", "y", "y", "", ""]
    found = gather(
        cells_of(np.array(totals)[:, None], donor=donors, label=labels),
        min_coverage=0,
        verbose=True,
    )
    assert found.filter(min_total=100, min_donor_cells=2).cells.tolist() == [0, 3, 4, 6, 7, 8, 9]
    assert found.filter(min_total=100, min_donor_cells=3).cells.tolist() == [0, 3, 4]
    capsys.readouterr()
    assert found.filter(min_total=100, min_donor_cells=3, above=500).cells.tolist() == [4], (
        "donors are counted before"
    )
    words = capsys.readouterr().err
    assert (
        "1 of 10 cells are used (omitted: fewer than 100 counts: 1; doublets and unidentified: 2; "
        in words
    )
    assert "donors with fewer than 3 cells: 4; at most 500 counts: 2)" in words
    assert found.filter(min_total=0, min_donor_cells=1, exclude=("b",)).cells.tolist() == [
        0,
        1,
        2,
        5,
        6,
        7,
        8,
        9,
    ]
    assert found.filter(min_total=0, min_donor_cells=0, exclude=()).cells.tolist() == list(
        range(10)
    )
    with pytest.raises(DataError, match=r"No cell is left of 10 \(at most 501 counts: 10\)"):
        found.filter(min_total=0, min_donor_cells=0, exclude=(), above=501)
    nobody = gather(cells_of(np.full((3, 1), 300)), min_coverage=0)
    assert len(nobody.filter(min_donor_cells=200)) == 3, "no donors are named: none is small"


# --- splits
# -------------------------------------------------------------------------------------------------


def donors(sizes: dict[tuple[str, str, str], int]) -> Collection:
    rows = [key for key, n in sizes.items() for _ in range(n)]
    study, donor, disease = (list(c) for c in zip(*rows))
    return gather(
        cells_of(np.full((len(rows), 1), 300), study=study, donor=donor, disease=disease),
        min_coverage=0,
    )


def test_donors_are_divided_within_every_study_and_disease():
    sizes = {(s, f"{s}{d}{i}", d): 1 + i % 3 for s in "PQ" for d in ("AD", "no") for i in range(10)}
    found = donors(sizes)
    table = found.split(validation=0.2, test=0.3, seed=1)
    assert (
        list(table.columns) == ["study", "donor", "disease", "cells", "split"] and len(table) == 40
    )
    for row in table.itertuples():
        assert sizes[row.study, row.donor, row.disease] == row.cells
    by_group = table.groupby(["study", "disease", "split"]).size().unstack()
    assert by_group.sum().to_dict() == {"test": 12, "train": 20, "validation": 8}
    assert (by_group["test"].between(2, 4)).all() and (by_group["validation"].between(1, 3)).all()
    same, other = (found.split(validation=0.2, test=0.3, seed=s) for s in (1, 2))
    pd.testing.assert_frame_equal(same, table)
    assert (other["split"] != table["split"]).any()
    defaults = found.split()
    assert defaults["split"].value_counts().to_dict() == {"train": 32, "validation": 4, "test": 4}
    pd.testing.assert_frame_equal(found.split(validation=0.1, test=0.1, seed=0), defaults)
    assert found.split(validation=0, test=0.25)["split"].value_counts().to_dict() == {
        "train": 30,
        "test": 10,
    }
    drawn = sum(
        (found.split(validation=0, test=0.25, seed=s)["split"] == "test").to_numpy()
        for s in range(60)
    )
    assert drawn.min() > 4 and drawn.max() < 28, "every donor may be held out"


def test_every_split_has_a_donor_and_unknown_donors_are_training():
    found = donors({("P", "a", ""): 1, ("P", "b", ""): 2, ("P", "c", ""): 3, ("P", "", ""): 4})
    table = found.split(validation=0.01, test=0.01).set_index("donor")
    assert table.loc["", "split"] == "train" and sorted(table["split"]) == [
        "test",
        "train",
        "train",
        "validation",
    ]
    assert sorted(found.split(validation=0.9, test=0.9)["split"]) == [
        "test",
        "train",
        "train",
        "validation",
    ]
    for parts in ({"validation": 0.9, "test": 0}, {"validation": 0, "test": 0.9}):
        assert (found.split(**parts)["split"] == "train").sum() == 2, "one named donor remains"
    two = donors({("P", "a", ""): 1, ("P", "b", ""): 2, ("P", "", ""): 4})
    assert sorted(two.split(validation=0)["split"]) == ["test", "train", "train"]
    with pytest.raises(DataError, match="There are 2 named donors; 3 parts cannot"):
        two.split()


def test_a_table_of_splits_chooses_cells(tmp_path):
    found = donors({("P", "a", "x"): 2, ("Q", "a", "x"): 3, ("Q", "NA", "y"): 1})
    table = pd.DataFrame(
        {"study": ["Q", "P", "Q"], "donor": ["a", "a", "NA"], "split": ["test", "train", "train"]}
    )
    assert found.select(table, "train").cells.tolist() == [0, 1, 5]
    write_splits(table, tmp_path / "s.tsv")
    assert (
        tmp_path / "s.tsv"
    ).read_text() == "study\tdonor\tsplit\nQ\ta\ttest\nP\ta\ttrain\nQ\tNA\ttrain\n"
    pd.testing.assert_frame_equal(read_splits(tmp_path / "s.tsv"), table)
    assert found.select(tmp_path / "s.tsv", "test").cells.tolist() == [2, 3, 4]
    with pytest.raises(
        DataError,
        match=r"puts no donor of this collection in 'validation'; it has \['test', 'train'\]",
    ):
        found.select(table, "validation")
    with pytest.raises(DataError, match="does not name the donors Q/NA\\."):
        found.select(table[:2], "train")
    (tmp_path / "bad.tsv").write_text("study\tdonors\nP\ta\n")
    with pytest.raises(DataError, match="has no column donor, split"):
        read_splits(tmp_path / "bad.tsv")
    with pytest.raises(DataError, match="no table of splits"):
        read_splits(tmp_path / "absent.tsv")
