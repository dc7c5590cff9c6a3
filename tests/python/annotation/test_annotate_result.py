"""Results of annotation, from tables that are small enough to check by hand."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import small_model
from scipy import sparse
from sklearn.metrics import precision_recall_fscore_support

from scmamba.annotation import annotate
from scmamba.annotation._reference import (
    label_table,
    log_probabilities,
    parent_codes,
    readable,
    roll_up,
)
from scmamba.annotation.expression import all_human_genes, shared_values
from scmamba.annotation.result import UNASSIGNED, Annotation, own_components, report_counts
from scmamba.data.provenance import flag_low_depth, refuse_existing
from scmamba.model import Model
from scmamba.model.inference import dense_input, input_positions
from scmamba.utils.compiled_code import import_umap
from scmamba.utils.errors import DataError, ScMambaError
from scmamba.utils.memory import available_memory


@pytest.fixture
def answer() -> Annotation:
    """Five cells; two types of neurons and glia, and the coarser level."""
    fine = np.array(
        [[0.5, 0.3, 0.2], [0.25, 0.3, 0.45], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05], [0.34, 0.33, 0.33]]
    )
    coarse = np.column_stack([fine[:, 2], fine[:, 0] + fine[:, 1]])
    parents = {"kind": [1, 1, 0]}
    curve = np.array([[0.0, 1.0, 0.8], [0.5, 0.7, 0.95]])
    return Annotation(
        pd.Index([f"c{i}" for i in range(5)]),
        {"class": ["glia", "neuron"], "kind": ["exc", "inh", "glia"]},
        {"class": coarse, "kind": fine},
        0.4,
        curve,
        np.array([False] * 3 + [True, False]),
        {"mode": "reference", "parents": parents},
        np.arange(10.0).reshape(5, 2),
    )


def test_classes_by_threshold_and_by_the_coarser_class(answer):
    assert answer.labels("class").tolist() == ["neuron", "neuron", "glia", UNASSIGNED, "neuron"]
    # Subtypes are limited to those of the called class: the second cell is most likely glia but a neuron at the coarser level, and its probability of .3 for that is below the threshold.
    assert answer.labels().tolist() == ["exc", UNASSIGNED, "glia", UNASSIGNED, UNASSIGNED]
    answer.threshold = 0.3
    assert answer.labels("kind").tolist() == ["exc", "inh", "glia", UNASSIGNED, "exc"]
    answer.threshold = 0.5  # a cell at the threshold is kept
    assert answer.labels().tolist()[0] == "exc"


def test_the_table_has_the_three_most_likely_types(answer):
    table = answer.to_table()
    assert list(table.columns) == [
        f"scmamba_{n}_{level}"
        for level in ("class", "kind")
        for n in ("type", "probability", "alternatives")
    ]
    assert table["scmamba_probability_kind"].tolist() == pytest.approx([0.5, 0.3, 0.8, 0.9, 0.34])
    assert table["scmamba_alternatives_kind"].tolist()[1] == "glia 0.45; inh 0.30; exc 0.25"
    assert table["scmamba_alternatives_kind"].tolist()[4] == "exc 0.34; inh 0.33; glia 0.33"
    assert list(table["scmamba_type_kind"].cat.categories) == [
        "exc",
        "inh",
        "glia",
        UNASSIGNED,
    ] and list(table.index) == [f"c{i}" for i in range(5)]
    one = Annotation(
        answer.cells,
        {"type": list("abcd")},
        {"type": np.tile([0.1, 0.4, 0.3, 0.2], (5, 1))},
        0.2,
        np.empty((0, 3)),
        answer.is_novel,
    )
    assert (
        one.to_table()["scmamba_alternatives"].iloc[0] == "b 0.40; c 0.30; d 0.20"
        and "scmamba_type" in one.to_table()
    )
    data = ad.AnnData(
        np.ones((5, 2), np.float32),
        obs=pd.DataFrame(index=answer.cells),
        uns={"scmamba": {"impute": {"a": 1}}},
    )
    assert answer.to_adata(data) is data
    assert (
        data.uns["scmamba"]["impute"] == {"a": 1}
        and data.uns["scmamba"]["annotate"]["summary"]["mode"] == "reference"
    )
    assert (
        "parents" not in data.uns["scmamba"]["annotate"]["summary"]
        and "version" in data.uns["scmamba"]["annotate"]
    )
    pd.testing.assert_frame_equal(data.obs[list(table)], table, check_dtype=False)


def test_unassigned_cells_count_as_missed(answer):
    truth = ["exc", "inh", "glia", "exc", "inh"]
    called = answer.labels().astype(str)
    expected = precision_recall_fscore_support(
        truth, called, labels=["exc", "glia", "inh"], zero_division=0
    )
    np.testing.assert_allclose(answer.report(truth).to_numpy().T, expected)
    assert answer.report(truth).columns.tolist() == ["precision", "recall", "f1", "cells"]
    table = answer.confusion(truth)
    assert table.loc["inh", UNASSIGNED] == 2 and table.loc["exc"].to_dict() == {
        UNASSIGNED: 1,
        "exc": 1,
        "glia": 0,
    }
    assert answer.confusion(["neuron"] * 5, "class").loc["neuron", "glia"] == 1


def test_coverage_of_these_cells_or_of_the_reference_donors(answer):
    np.testing.assert_array_equal(answer.coverage().to_numpy(), answer.coverage_curve)
    curve = answer.coverage(["exc", "inh", "exc", "exc", "inh"])
    top, right = np.array([0.5, 0.3, 0.8, 0.9, 0.34]), np.array([1, 1, 0, 1, 0], bool)
    assert len(curve) == 91 and list(curve.columns) == ["threshold", "coverage", "accuracy"]
    for _, (threshold, share, accuracy) in curve.iterrows():
        kept = top >= threshold
        assert share == kept.mean() and accuracy == pytest.approx(right[kept].mean())


def test_figures_show_the_calls(answer):
    figures = answer.to_plots(["exc", "inh", "glia", "exc", "inh"])
    assert set(figures) == {"probability", "map", "coverage", "confusion"}
    axis = figures["probability"].axes[0]
    assert sum(p.get_height() for p in axis.patches) == 5 and axis.lines[0].get_xdata()[0] == 0.4
    called, true = figures["map"].axes
    assert (
        called.get_title() == "called"
        and true.get_title() == "true"
        and called.get_xlabel() == "component 1"
    )
    spots = {s.get_label(): s.get_offsets() for s in called.collections}
    assert (
        len(spots[UNASSIGNED]) == 3
        and spots["exc"].tolist() == [[0, 1]]
        and spots["glia"].tolist() == [[4, 5]]
    )
    lines = figures["coverage"].axes[0].lines
    np.testing.assert_allclose(lines[0].get_xydata(), [[100, 80], [70, 95]])
    np.testing.assert_allclose(lines[1].get_xydata(), [[70, 95]])  # nearest to the threshold
    texts = {(t.get_position()): t.get_text() for t in figures["confusion"].axes[0].texts}
    assert sorted(texts.values()) == ["1", "1", "1", "2"]
    answer.coverage_curve = np.empty((0, 3))
    assert set(answer.to_plots()) == {"probability", "map"}
    assert answer.umap()[1] == "component" and answer.umap()[0].tolist() == answer.pcs.tolist()
    answer.pcs = np.ones((5, 1))
    assert answer.umap()[0].tolist() == [[1, 0]] * 5


def test_the_summary_counts_calls_per_type(answer, capsys):
    report_counts(answer, True)
    assert f"{UNASSIGNED} 3, exc 1, glia 1" in capsys.readouterr().err


def test_number_of_components_is_limited_by_the_data():
    rng = np.random.default_rng(0)
    x = sparse.csr_matrix(rng.poisson(1.0, (50, 40)).astype(float))
    assert own_components(x, 0).shape == (50, 30) and own_components(x[:4], 0).shape == (4, 3)
    assert own_components(x[:1], 0).tolist() == [[0.0]] and own_components(
        sparse.csr_matrix(x.shape), 0
    ).shape == (50, 1)
    exact = np.linalg.svd(x.toarray(), compute_uv=False)[:5]
    np.testing.assert_allclose(
        np.linalg.norm(own_components(x, 0), axis=0)[:3], exact[:3], rtol=0.02
    )


# ---------------------------------------------------------------- levels


def labelled() -> ad.AnnData:
    obs = pd.DataFrame(
        {"class": ["n", "n", "g", None, "g"], "kind": pd.Categorical(["e", "i", "o", "e", None])},
        index=list("abcde"),
    )
    return ad.AnnData(np.ones((5, 1), np.float32), obs=obs)


def test_levels_nest():
    table, parents = label_table(labelled(), ["class", "kind"])
    assert (
        parents == {"kind": {"e": "n", "i": "n", "o": "g"}}
        and table["kind"].isna().sum() == 1
        and table["class"].isna().sum() == 1
    )
    assert label_table(labelled(), ["kind"])[1] == {}
    wrong = labelled()
    wrong.obs.loc["d", "class"] = "g"
    with pytest.raises(DataError, match="'e' of 'kind'"):
        label_table(wrong, ["class", "kind"])
    with pytest.raises(DataError, match="no column 'x'; it has class, kind"):
        label_table(labelled(), ["x"])


def test_coarse_probabilities_are_sums():
    p = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    parents = {
        "mid": {"N": "cell", "G": "cell", "V": "vessel"},
        "fine": {"e": "N", "i": "N", "o": "G", "v": "V"},
    }
    found, classes = roll_up(p, ["e", "i", "o", "v"], ["top", "mid", "fine"], parents)
    assert (
        list(found) == ["top", "mid", "fine"]
        and classes["mid"] == ["G", "N", "V"]
        and classes["top"] == ["cell", "vessel"]
    )
    np.testing.assert_allclose(found["mid"], [[0.3, 0.3, 0.4], [0.2, 0.7, 0.1]])
    np.testing.assert_allclose(found["top"], [[0.6, 0.4], [0.9, 0.1]])
    assert parent_codes(classes, ["top", "mid", "fine"], parents) == {
        "mid": [0, 0, 1],
        "fine": [1, 1, 0, 2],
    }
    random = np.random.default_rng(0).dirichlet(np.full(33, 0.1), 500)
    assert (random.sum(axis=1) > 1).any()  # by rounding
    names = [f"t{i}" for i in range(33)]
    together = roll_up(random, names, ["top", "fine"], {"fine": dict.fromkeys(names, "cell")})[0]
    assert together["top"].max() == 1
    one = roll_up(p, ["e", "i", "o", "v"], ["fine"], {})
    assert list(one[0]) == ["type"] and parent_codes(one[1], ["fine"], {}) == {}


# ---------------------------------------------------------------- values


def test_values_are_normalized_over_the_shared_genes():
    from scmamba.data import read_cells

    human = all_human_genes()
    assert len(human) > 40_000 and len(set(human.ensembl_ids)) == len(human)
    counts = np.random.default_rng(0).poisson(2.0, (7, 30)).astype(np.float32)
    data = ad.AnnData(sparse.csr_matrix(counts))
    data.var_names = [human.ensembl_ids[i] for i in range(29, -1, -1)]
    cells = read_cells(data, human, force=True, min_coverage=0.0)
    genes, rows = np.array([3, 8, 20]), np.array([6, 0])
    own = counts[:, ::-1][rows][:, genes].astype(float)
    expected = np.log1p(1e4 * own / own.sum(axis=1, keepdims=True))
    np.testing.assert_allclose(shared_values(cells, genes, rows).toarray(), expected, rtol=1e-5)


@pytest.mark.parametrize("reads", ["expressed", "all"])
def test_the_network_reads_its_genes_in_its_order(reads):
    model = small_model(reads, n_classes=3, n_genes=40)
    rng = np.random.default_rng(0)
    genes = np.array([7, -1, 30, 2])
    x = sparse.csr_matrix(rng.uniform(0.5, 3, (5, 4)) * (rng.random((5, 4)) < 0.7))
    whole = np.zeros((5, 40), np.float32)
    whole[:, [7, 30, 2]] = x[:, [0, 2, 3]].toarray()
    logits = model.classify(whole).double().numpy()
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(log_probabilities(model, x, genes), expected, atol=1e-4)
    columns, place = readable(x, genes)
    assert place.tolist() == [2, 7, 30] and (columns != x[:, [3, 0, 2]]).nnz == 0


def test_input_of_the_network_and_depths(cohort, capsys):
    from scmamba.data import read_cells

    for reads in ("all", "expressed"):
        model = small_model(reads)
        cells = read_cells(cohort, model.genes)
        where, genes = input_positions(model, cells)
        x, totals = dense_input(model, cells, cells.linear(slice(2, 6)))
        values, expected = cells.to_model(cells.linear(slice(2, 6)))
        np.testing.assert_array_equal(totals, expected)
        if reads == "all":
            assert genes is None and x.shape == (4, 19306) and np.array_equal(where, cells.genes)
        else:
            assert (
                genes.tolist() == cells.genes.tolist()
                and x.shape == (4, len(cells.genes))
                and where.tolist() == list(range(len(where)))
            )
        np.testing.assert_array_equal(x[:, where], values.toarray())
        assert x.sum() == pytest.approx(values.sum(), rel=1e-5)
    data = ad.AnnData(np.ones((3, 1), np.float32))
    flag_low_depth(data, cells, np.array([199.0, 200.0, 5.0]), True)
    assert (
        data.obs["scmamba_low_depth"].tolist() == [True, False, True]
        and "2 cells have fewer than 200" in capsys.readouterr().err
    )


def test_other_columns_of_the_user_stay(cohort):
    data = ad.AnnData(np.ones((2, 1), np.float32), layers={"scmamba": np.ones((2, 1))})
    with pytest.raises(DataError, match="pass overwrite=True"):
        refuse_existing(data, "impute", layers=["scmamba"])
    refuse_existing(data, "impute", obsm=["scmamba"])
    refuse_existing(data, "impute", layers=["scmamba"], overwrite=True)
    data.uns["scmamba"] = {"embed": {}}
    with pytest.raises(DataError, match="pass overwrite=True"):
        refuse_existing(data, "impute", layers=["scmamba"])
    data.uns["scmamba"]["impute"] = {}
    refuse_existing(data, "impute", layers=["scmamba"])
    import psutil

    assert available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_classifier_probabilities_are_softmax_at_its_temperature(cohort):
    model = small_model("expressed", n_classes=3)
    found = annotate(cohort, model=model, verbose=False, return_result=True)
    from scmamba.data import read_cells

    cells = read_cells(cohort, model.genes)
    x, _ = dense_input(model, cells, cells.linear(slice(0, 40)))
    logits = model.classify(x, genes=input_positions(model, cells)[1]).double().numpy()

    def softmax(t: float) -> np.ndarray:
        return np.exp(logits / t) / np.exp(logits / t).sum(axis=1, keepdims=True)

    np.testing.assert_allclose(found.probabilities["type"], softmax(1.0), rtol=1e-4)
    assert (
        found.threshold == 0.5
        and found.coverage_curve.shape == (0, 3)
        and found.levels == {"type": ["type 0", "type 1", "type 2"]}
    )
    assert (
        "not calibrated" in found.provenance["note"]
        and not found.is_novel.any()
        and found.pcs.shape == (40, 30)
    )
    model.calibration = {
        "temperature": 2.5,
        "cells": 9,
        "curve": [[0.0, 1.0, 0.9], [0.4, 0.8, 0.96], [0.6, 0.5, 0.99]],
    }
    cool = annotate(cohort, model=model, verbose=False, return_result=True)
    np.testing.assert_allclose(cool.probabilities["type"], softmax(2.5), rtol=1e-4)
    assert (
        cool.threshold == 0.4
        and annotate(
            cohort, model=model, error_rate=0.02, verbose=False, return_result=True
        ).threshold
        == 0.6
    )
    empty = cohort[:3].copy()
    empty.X = sparse.csr_matrix(sparse.diags([1.0, 0.0, 1.0]) @ empty.X)
    assert annotate(empty, model=model, verbose=False, return_result=True).is_novel.tolist() == [
        False,
        True,
        False,
    ]


def test_the_coverage_figure_has_the_curve_of_these_cells_if_the_truth_is_given(answer):
    truth = ["exc", "inh", "glia", "glia", "exc"]
    alone, both = (answer.to_plots(t)["coverage"].axes[0] for t in (None, truth))
    assert [t.get_text() for t in alone.get_legend().get_texts()] == [
        "held-out donors of the reference"
    ]
    assert len(both.get_legend().get_texts()) == 2


def test_the_map_is_the_umap_of_fifteen_neighbors():
    rng = np.random.default_rng(0)
    pcs = rng.normal(size=(40, 6))
    flat, method = own_map(pcs, seed=3)
    expected = (
        import_umap()
        .UMAP(n_neighbors=15, metric="cosine", random_state=3, n_jobs=1)
        .fit_transform(pcs)
    )
    assert method == "UMAP"
    np.testing.assert_array_equal(flat, expected)


def own_map(pcs: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    n = len(pcs)
    result = Annotation(
        pd.Index([f"c{i}" for i in range(n)]),
        {"type": ["a", "b"]},
        {"type": np.full((n, 2), 0.5)},
        0.4,
        np.zeros((0, 3)),
        np.zeros(n, dtype=bool),
        {"mode": "markers", "parents": {}},
        pcs,
    )
    return result.umap(seed)


def test_a_model_with_classes_but_no_class_names_cannot_annotate(cohort):
    named = small_model("expressed", n_classes=2)
    nameless = Model(named.network, named.genes, None)
    for model in (nameless, small_model("expressed")):
        with pytest.raises(ScMambaError, match="does not classify"):
            annotate(cohort.copy(), model=model, markers=None, verbose=False)
