"""References and tables of markers as people have them: read as they are meant, or refused in one sentence before the work."""

from __future__ import annotations

import contextlib
import gzip
import json
import warnings

import numpy as np
import pandas as pd
import pytest

import scmamba
from scmamba.datasets import brain_cohort
from scmamba.datasets.marker_panels import read_marker_panel
from scmamba.utils.errors import DataError, ScMambaError

CELLS = brain_cohort(100, n_genes=1500, n_donors=2, seed=3)
PANEL = {
    "Astro": ["AQP4", "GFAP", "SLC1A2"],
    "Oligo": ["MBP", "PLP1", "MOBP"],
    "Micro": ["CSF1R", "P2RY12", "C3"],
    "Exc": ["SLC17A7", "SATB2", "NRGN"],
}
PAIRS = [(name, gene) for name, genes in PANEL.items() for gene in genes]


def annotate(**options):
    options = {"cache": False, "verbose": False, "copy": True} | options
    return scmamba.annotate(CELLS.copy(), **options)


SEURAT = '"","p_val","avg_log2FC","pct.1","pct.2","p_val_adj","cluster","gene"\n' + "".join(
    f'"{gene}",0,1.5,0.5,0.1,0,"{name}","{gene}"\n' for name, gene in PAIRS
)
#: Files that all hold the panel.
FILES = {
    "seurat.csv": SEURAT,
    "gene_first.csv": "gene,cell_type\n" + "".join(f"{g},{n}\n" for n, g in PAIRS),
    "more_columns.tsv": "cluster\tlogFC\tgene\n" + "".join(f"{n}\t1\t{g}\n" for n, g in PAIRS),
    "crlf.tsv": "".join(f"{n}\t{g}\r\n" for n, g in PAIRS),
    "mac.tsv": "".join(f"{n}\t{g}\r" for n, g in PAIRS),
    "panel.json": json.dumps(PANEL),
    "panel.gmt": "".join(f"{n}\turl\t" + "\t".join(g) + "\n" for n, g in PANEL.items()),
}


@pytest.mark.parametrize("name", FILES)
def test_tables_of_markers_of_any_program(name, tmp_path):
    (tmp_path / name).write_text(FILES[name], newline="")
    assert read_marker_panel(tmp_path / name) == PANEL


@pytest.mark.parametrize(
    "given",
    [
        {name: ", ".join(genes) for name, genes in PANEL.items()},
        {name: pd.Series([*genes, np.nan, None]) for name, genes in PANEL.items()},
        pd.DataFrame([(g, n) for n, g in PAIRS], columns=["gene", "cluster"]),
        pd.DataFrame(PAIRS, columns=["type", "gene"]).astype("category"),
    ],
    ids=["text", "missing genes", "gene first", "categories"],
)
def test_mappings_and_tables_of_markers(given):
    assert read_marker_panel(given) == PANEL


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pd.DataFrame([(g, n) for n, g in PAIRS]), "genes where cell types are expected"),
        (pd.DataFrame({n: pd.Series(g) for n, g in PANEL.items()}), r"genes where .*\(AQP4"),
        ({n: g for g, n in PAIRS}, None),
        (["AQP4", "GFAP"], "markers is list"),
        (PANEL | {"Unassigned": ["PVALB"]}, "'Unassigned', which is what cells without a type"),
        (PANEL | {"unknown": ["PVALB"]}, "'unknown', which is what"),
        (PANEL | {"Many": 3}, "3 for 'Many'"),
    ],
)
def test_markers_that_are_something_else(given, words):
    if words is None:  # one gene of each type, as text: a valid panel
        assert list(read_marker_panel({n: g for n, g in PAIRS})) == list(PANEL)
        return
    with pytest.raises(ScMambaError, match=words):
        annotate(markers=given)


def test_types_called_like_their_genes_are_types():
    """As in the Allen Institute's taxonomy: PVALB, SST, VIP."""
    panel = {"SST": ["SST", "NPY"], "GFAP": ["GFAP", "AQP4"], "MBP": ["MBP", "PLP1"]}
    found = annotate(markers=panel, return_result=True)
    assert list(found.levels["type"]) == ["GFAP", "MBP", "SST"]


def test_files_of_markers_that_are_no_text(tmp_path):
    packed = tmp_path / "m.tsv.gz"
    packed.write_bytes(gzip.compress(b"A\tGFAP\n"))
    CELLS[:5].copy().write_h5ad(tmp_path / "m.h5ad")
    (tmp_path / "m.json").write_text('["GFAP"]')
    (tmp_path / "bad.json").write_text("{")
    for path, words in (
        (packed, "is no text"),
        (tmp_path / "m.h5ad", "is no text"),
        (tmp_path, "is a folder"),
        (tmp_path / "m.json", "holds a list"),
        (tmp_path / "bad.json", "no valid JSON"),
    ):
        with pytest.raises(DataError, match=words):
            read_marker_panel(path)


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Names of the models that were loaded: none, where the input is refused."""
    calls: list[str] = []
    monkeypatch.setattr(
        "scmamba.annotation._annotate.load_model", lambda *a, **k: calls.append("x")
    )
    return calls


def twice(column: str):
    known = CELLS.copy()
    known.obs = pd.concat([known.obs, known.obs[[column]]], axis=1)
    return known


@pytest.mark.parametrize(
    ("reference", "options", "words"),
    [
        (
            "human_brain",
            {},
            "no reference of that name comes with the package; there is human-brain",
        ),
        ("Human-Brain", {"label_key": "cell_type"}, "There is no file Human-Brain"),
        (5, {"label_key": "cell_type"}, "found int"),
        (CELLS.to_df(), {"label_key": "cell_type"}, "found DataFrame"),
        (CELLS, {"label_key": "celltype"}, "no column 'celltype'"),
        (CELLS, {"label_key": ["cell_type", "cell_type"]}, "'cell_type' twice"),
        (CELLS, {"label_key": "cell_type", "donor_key": "Donor"}, "no column 'Donor'.*donors"),
        (
            CELLS[CELLS.obs["cell_type"] == "Astrocyte"],
            {"label_key": "cell_type"},
            "one cell type, 'Astrocyte'.*at least two",
        ),
        (CELLS[:1], {"label_key": "cell_type"}, "one cell type"),
        (twice("cell_type"), {"label_key": "cell_type"}, "2 columns named 'cell_type'"),
        (twice("donor"), {"label_key": "cell_type"}, "2 columns named 'donor'"),
    ],
)
def test_references_are_checked_before_a_model_is_loaded(reference, options, words, loaded):
    with pytest.raises(DataError, match=words):
        annotate(reference=reference, **options)
    assert not loaded


def test_a_reference_too_small_to_notice_other_types_is_named(loaded):
    for cells, warned in ((CELLS[:59], True), (CELLS[:60], False)):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            with contextlib.suppress(Exception):  # there is no model
                annotate(reference=cells, label_key="cell_type")
        assert any("59 labeled cells" in str(one.message) for one in shown) == warned
    assert len(loaded) == 2


def test_a_cache_that_is_a_file_is_refused_before_the_fit(tmp_path, loaded):
    (tmp_path / "file").write_text("x")
    for cache, words in (
        (tmp_path / "file", "a file"),
        (tmp_path / "file" / "c", "cannot be made"),
    ):
        with pytest.raises(DataError, match=words):
            annotate(reference=CELLS, label_key="cell_type", cache=cache)
    assert not loaded


@pytest.mark.parametrize("change", [str.lower, str.upper, "{} ".format])
def test_labels_that_differ_in_spaces_or_case_are_named(change, loaded):
    known = CELLS.copy()
    names = known.obs["cell_type"].astype(str)
    known.obs["cell_type"] = [change(n) if i % 2 else n for i, n in enumerate(names)]
    with (
        pytest.warns(UserWarning, match="more like these.*differ only in spaces or case"),
        pytest.raises(AttributeError),  # the model that is not loaded here
    ):
        annotate(reference=known, label_key="cell_type")
