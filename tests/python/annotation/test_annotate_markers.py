"""Annotation from marker genes alone: scores, coherence and support computed by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from scipy.special import softmax

from scmamba.annotation import _markers as markers
from scmamba.annotation._markers import (
    annotate_by_markers,
    classify_by_markers,
    coherence,
    confident_cells,
    correlations,
    extend_short_panels,
    marker_scores,
    unsupported_cells,
)
from scmamba.annotation.options import AnnotateOptions
from scmamba.datasets.marker_panels import brain_markers, read_marker_panel
from scmamba.utils.errors import DataError


def test_the_panel_has_the_eight_types_of_the_paper():
    panel, additional = brain_markers(), brain_markers(more=True)
    assert (
        len(panel) == 8
        and set(additional) <= set(panel)
        and all(len(genes) >= 3 for genes in panel.values())
    )
    assert (
        "SLC17A7" in panel["Excitatory neuron"]
        and "GAD1" in panel["Inhibitory neuron"]
        and panel != additional
    )
    assert (markers.FEW, markers.NEIGHBORS) == (4, 15)


def test_scores_are_mean_shares_of_the_strongest_cells():
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.gamma(1.0, 2.0, (60, 7)) * (rng.random((60, 7)) < 0.5))
    x = x.tolil()
    x[0, 0] = 90.0
    columns = [np.array([0, 2, 3]), np.array([5])]
    dense = x.toarray()
    top = np.maximum(np.quantile(dense, 0.98, axis=0), 1.0)
    share = np.minimum(dense / top, 1.5)
    assert share[0, 0] == 1.5
    found = marker_scores(sparse.csr_matrix(x), columns)
    np.testing.assert_allclose(
        found, np.column_stack([share[:, [0, 2, 3]].mean(axis=1), share[:, 5]])
    )
    near = np.argsort(rng.random((60, 60)), axis=1)[:, :9]
    weights = coherence([share[:, [0, 2, 3]], share[:, [5]]], near)
    found = marker_scores(sparse.csr_matrix(x), columns, near)
    np.testing.assert_allclose(found[:, 0], share[:, [0, 2, 3]] @ weights[0] / weights[0].sum())
    assert weights[1].tolist() == [1.0]


def test_genes_are_weighted_by_correlation_with_their_own_panel():
    rng = np.random.default_rng(1)
    values = [rng.random((80, 3)), rng.random((80, 2)), rng.random((80, 4))]
    near = rng.integers(0, 80, (80, 5))
    smooth = [np.stack([v[row].mean(axis=0) for row in near]) for v in values]
    for t, weights in enumerate(coherence(values, near)):
        for g in range(values[t].shape[1]):
            rest = np.delete(smooth[t], g, axis=1).sum(axis=1)
            own = np.corrcoef(smooth[t][:, g], rest)[0, 1]
            rival = max(
                np.corrcoef(smooth[t][:, g], smooth[u].sum(axis=1))[0, 1]
                for u in range(3)
                if u != t
            )
            assert weights[g] == pytest.approx(np.clip(0.5 + own - rival, 0.05, 1.0))
    assert correlations(np.ones((9, 1)), rng.random((9, 2))).tolist() == [[0, 0]]


def test_cells_are_clear_by_level_and_by_margin():
    score = np.array(
        [[0.50, 0.30], [0.50, 0.36], [0.24, 0.01], [0.26, 0.01], [0.60, 0.20], [0.60, 0.10]]
    )
    around = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1.0]])
    # Margin above .15 if the neighbors agree, above .45 if they do not; and at least a quarter of the score of the strongest cells.
    assert confident_cells(score, around).tolist() == [0, -1, -1, 0, -1, 0]
    assert confident_cells(score[:, ::-1], around[:, ::-1]).tolist() == [1, -1, -1, 1, -1, 1]


def test_support_is_four_tenths_of_the_clear_cells():
    around = np.array(
        [[1.0, 0.1], [0.8, 0.2], [0.35, 0.1], [0.35, 0.24], [0.30, 0.24], [0.38, 0.30]]
    )
    seeds = np.array([0, 0, -1, -1, -1, -1])
    # The median of the clear cells is 0.9: a cell has no support below 0.36 and below one and a half times the rival's score.
    assert unsupported_cells(around, seeds, np.zeros(6, int)).tolist() == [
        False,
        False,
        False,
        True,
        True,
        False,
    ]
    assert not unsupported_cells(
        around, seeds, np.ones(6, int)
    ).any()  # no clear cell of that type for comparison


def test_short_panels_are_completed_only_if_most_panels_are_long():
    four, two = np.arange(4), np.array([10, 11])
    additional = {"b": np.array([11, 12]), "c": np.array([], int)}
    columns = {"a": four, "b": two, "c": two}
    assert extend_short_panels(columns, additional) == [] and columns["b"].tolist() == [
        10,
        11,
    ]  # one of three is too few
    columns = {"a": four, "b": two}
    assert (
        extend_short_panels(columns, additional) == ["b"]
        and columns["b"].tolist() == [10, 11, 12]
        and columns["a"].tolist() == [0, 1, 2, 3]
    )
    columns = {"a": four, "c": two}
    assert extend_short_panels(columns, additional) == []


def kinds(n: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    rng = np.random.default_rng(3)
    codes = np.arange(n) % 3
    rates = np.full((3, 60), 1.0)
    for k in range(3):
        rates[k, 4 * k : 4 * k + 4] = 6.0
        rates[k, 20 + 10 * k : 30 + 10 * k] = 3.0
    counts = rng.poisson(rates[codes]).astype(float)
    return sparse.csr_matrix(np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))), codes


def test_few_cells_are_annotated_by_their_scores_alone():
    x, codes = kinds(59)
    columns = [np.arange(4 * k, 4 * k + 4) for k in range(3)]
    space = x.toarray()[:, :12]
    p, is_novel, curve, clear = classify_by_markers(x, columns, space, list("abc"), 0)
    unit = space / np.linalg.norm(space, axis=1, keepdims=True)
    near = np.argsort(((unit[:, None] - unit[None]) ** 2).sum(-1), axis=1, kind="stable")[:, :15]
    score = marker_scores(x, columns, near)
    np.testing.assert_allclose(p, softmax(8 * score, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(is_novel, score.max(axis=1) < 0.1)
    assert (
        curve.shape == (0, 3)
        and clear == (confident_cells(score, score[near].mean(axis=1)) >= 0).sum()
    )


def test_the_classifier_is_trained_on_clear_cells():
    from scmamba.annotation.ensemble import fit_ensemble

    x, codes = kinds(90)
    columns = [np.arange(4 * k, 4 * k + 4) for k in range(3)]
    space = x.toarray()
    p, is_novel, curve, clear = classify_by_markers(x, columns, space, ["c", "b", "a"], 2)
    assert np.mean(p.argmax(axis=1) == codes) > 0.95 and clear >= 30 and curve.shape[1] == 3
    unit = space / np.linalg.norm(space, axis=1, keepdims=True)
    near = np.argsort(((unit[:, None] - unit[None]) ** 2).sum(-1), axis=1, kind="stable")[:, :15]
    score = marker_scores(x, columns, near)
    around = score[near].mean(axis=1)
    seeds = confident_cells(score, around)
    sure = np.flatnonzero(seeds >= 0)
    fitted = fit_ensemble(
        x[sure],
        np.array(["c", "b", "a"])[seeds[sure]],
        np.full(len(sure), ""),
        seed=2,
        verbose=False,
    )
    own = fitted.probabilities(x)[:, [fitted.names.index(n) for n in "cba"]]
    np.testing.assert_allclose(p, 0.5 * own + 0.5 * own[near].mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(is_novel, unsupported_cells(around, seeds, p.argmax(axis=1)))
    np.testing.assert_array_equal(curve, fitted.curve)


def test_panels_of_the_user_and_default_panels():
    x, codes = kinds(45)
    counts = np.rint(np.expm1(x.toarray()) / 50).astype(np.float32)
    counts[3] = 0
    data = ad.AnnData(sparse.csr_matrix(counts[:, :12]))
    names = [
        "SLC17A7",
        "SATB2",
        "NRGN",
        "CAMK2A",
        "GAD1",
        "GAD2",
        "SST",
        "VIP",
        "MBP",
        "PLP1",
        "MOG",
        "MOBP",
    ]
    data.var_names = names
    panel = {"Exc": names[:4], "Inh": names[4:8], "One": ["MBP", "NOGENE"], "Missing": ["NOGENE"]}
    found = annotate_by_markers(data, panel, None, AnnotateOptions(), False)
    assert found.levels == {"type": ["Exc", "Inh", "One"]} and found.threshold == 0.5
    about = found.provenance
    assert (
        about["not_measured"] == ["Missing"]
        and about["genes_per_type"] == {"Exc": 4, "Inh": 4, "One": 1}
        and about["completed"] == []
    )
    assert found.is_novel[3] and found.labels()[3] == "Unassigned"
    # With the default panels one gene alone is not enough for a call unless additional markers are used.
    default = annotate_by_markers(data, panel, {}, AnnotateOptions(), False)
    assert default.levels == {"type": ["Exc", "Inh"]}
    helped = annotate_by_markers(data, panel, {"One": ["PLP1", "MOG"]}, AnnotateOptions(), False)
    assert (
        helped.provenance["completed"] == ["One"]
        and helped.provenance["genes_per_type"]["One"] == 3
    )
    with pytest.raises(DataError, match="Genes of 1 of the 2 panels"):
        annotate_by_markers(data, {"a": ["MBP"], "b": ["NOGENE"]}, None, AnnotateOptions(), False)


def test_panels_are_read_from_every_container(tmp_path):
    import pandas as pd

    expected = {"Neuron": ["RBFOX3", "SNAP25"], "T cell, CD8": ["CD8A"]}
    texts = {
        "panel.tsv": "type\tgenes\nNeuron\tRBFOX3, SNAP25,\n# comment\n\nT cell, CD8\tCD8A\n",
        "long.tsv": "cell_type\tgene\nNeuron\tRBFOX3\nNeuron\tSNAP25\nNeuron\tRBFOX3\nT cell, CD8\tCD8A\n",
        "wide.txt": "Neuron\tRBFOX3\tSNAP25\nT cell, CD8\tCD8A\n",
        "semicolons.csv": "Neuron;RBFOX3;SNAP25\nT cell, CD8;CD8A\n",
        "sets.gmt": "Neuron\tfrom somewhere\tRBFOX3\tSNAP25\nT cell, CD8\t-\tCD8A\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        assert read_marker_panel(tmp_path / name) == expected, name
        assert read_marker_panel(str(tmp_path / name)) == expected, name
    (tmp_path / "commas.csv").write_text("type,gene\nNeuron,RBFOX3\nNeuron,SNAP25\n")
    assert read_marker_panel(tmp_path / "commas.csv") == {"Neuron": ["RBFOX3", "SNAP25"]}
    table = pd.DataFrame(
        {"t": ["Neuron", "T cell, CD8", "Neuron"], "g": ["RBFOX3", "CD8A", "SNAP25"], "w": 1}
    )
    assert read_marker_panel(table) == expected
    assert read_marker_panel({"Neuron": ("RBFOX3", "SNAP25"), "T cell, CD8": "CD8A"}) == expected
    assert read_marker_panel("panel") == brain_markers()


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ('type,gene\r\nNeuron,RBFOX3\r\nNeuron,SNAP25\r\n"T cell, CD8",CD8A\r\n', "utf-8-sig"),
        ("type;genes\r\nNeuron;RBFOX3,SNAP25\r\nT cell, CD8;CD8A\r\n", "utf-8-sig"),
        ('Neuron,RBFOX3;SNAP25\n"T cell, CD8",CD8A\n', "utf-8"),
        ("type\tgenes\r\nNeuron\tRBFOX3,SNAP25\r\nT cell, CD8\tCD8A\r\n", "utf-16"),
        ('# from a paper\ncell\tmarkers\nNeuron\t"RBFOX3, SNAP25"\nT cell, CD8\tCD8A\n', "utf-8"),
    ],
    ids=["Excel CSV", "European Excel", "commas, then semicolons", "Excel Unicode text", "comment"],
)
def test_panels_as_spreadsheets_save_them(tmp_path, text, encoding):
    (tmp_path / "panel.txt").write_bytes(text.encode(encoding))
    expected = {"Neuron": ["RBFOX3", "SNAP25"], "T cell, CD8": ["CD8A"]}
    assert read_marker_panel(tmp_path / "panel.txt") == expected


def test_missing_types_are_not_guessed(tmp_path):
    """Merged cells of a spreadsheet leave types empty; a workbook or text in another encoding is not a table of text."""
    import pandas as pd

    (tmp_path / "merged.tsv").write_text("Neuron\tRBFOX3\n\tSNAP25\n")
    with pytest.raises(DataError, match="no cell type beside SNAP25"):
        read_marker_panel(tmp_path / "merged.tsv")
    with pytest.raises(DataError, match="no cell type in 1 rows"):
        read_marker_panel(pd.DataFrame({"type": ["a", np.nan], "gene": ["X", "Y"]}))
    table = pd.DataFrame({"type": ["a", "a"], "gene": ["X", np.nan]})
    assert read_marker_panel(table) == {"a": ["X"]}
    (tmp_path / "panel.xlsx").write_bytes(b"PK\x03\x04rest")
    with pytest.raises(DataError, match="workbook of a spreadsheet"):
        read_marker_panel(tmp_path / "panel.xlsx")
    (tmp_path / "latin.tsv").write_bytes("M\u00fcller glia\tRLBP1\n".encode("latin-1"))
    assert read_marker_panel(tmp_path / "latin.tsv") == {"M\u00fcller glia": ["RLBP1"]}


def test_an_unreadable_panel_is_refused(tmp_path):
    import pandas as pd

    import scmamba

    with pytest.raises(DataError, match=r"no file .*panels\.tsv"):
        scmamba.annotate(ad.AnnData(np.ones((3, 2))), markers="panels.tsv", verbose=False)
    (tmp_path / "empty.tsv").write_text("type\tgenes\n")
    for wrong in (tmp_path / "empty.tsv", {}, {"a": []}):
        with pytest.raises(DataError, match="no gene"):
            read_marker_panel(wrong)
    (tmp_path / "bad.tsv").write_text("A\tX\nB X\n")
    with pytest.raises(DataError, match="Line 2 of .*bad.tsv has no tab"):
        read_marker_panel(tmp_path / "bad.tsv")
    with pytest.raises(DataError, match="one column"):
        read_marker_panel(pd.DataFrame({"type": ["a"]}))
