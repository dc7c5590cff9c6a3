"""Levels of an annotation, accuracy against coverage, standard deviations and Fig. 7: the numbers behind the pictures."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scmamba
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import DataError, OptionError

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def annotated() -> ad.AnnData:
    adata = brain_cohort(240, n_donors=2, n_genes=2000, seed=3)
    adata.obsm["X_umap"] = np.random.default_rng(0).random((240, 2))
    return scmamba.annotate(adata, verbose=False)


def test_every_level_of_the_brain_is_drawn_with_its_probability(annotated):
    annotated = annotated.copy()
    axes = scmamba.pl.annotation(annotated, "all")
    titles = [axis.get_title() for axis in axes]
    assert titles[0] == "cell type: class" and titles[2] == "cell type"
    assert titles[1::2] == [f"probability of the {n}" for n in ("class", "type", "subtype")]
    for axis, level in zip(axes[1::2], ("class_", "", "subtype_")):
        column = annotated.obs[f"scmamba_{level}probability"]
        np.testing.assert_allclose(axis.collections[0].get_array(), column)
    for axis, level in zip(axes[::2], ("class", "type", "subtype")):
        shown = {text.get_text() for text in axis.get_legend().get_texts()}
        assert shown == set(annotated.obs[f"scmamba_{level}"].astype(str))
        colors = annotated.uns[f"scmamba_{level}_colors"]
        assert len(colors) == len(annotated.obs[f"scmamba_{level}"].cat.categories)
    assert len({axis.get_position().y0 for axis in axes[::2]}) == 3, "one row each"
    (one,) = scmamba.pl.annotation(annotated, "subtype", confidence=False)
    assert one.get_title() == "cell type: subtype"


def test_levels_of_a_labeled_reference_and_levels_that_are_absent(annotated):
    known, query = annotated[:160].copy(), annotated[160:].copy()
    for cells in (known, query):
        del cells.uns["scmamba"]
        cells.obs = cells.obs[["cell_type"]]
    neurons = ["Excitatory", "Inhibitory"]
    known.obs["class"] = np.where(known.obs["cell_type"].isin(neurons), "neuron", "other")
    keys = ["class", "cell_type"]
    scmamba.annotate(query, reference=known, label_key=keys, cache=False, verbose=False)
    assert [a.get_title() for a in scmamba.pl.annotation(query, "all")][::2] == [
        "cell type: class",
        "cell type: cell_type",
    ]
    # Without a level the finest one.
    (finest,) = scmamba.pl.annotation(query, confidence=False)
    assert finest.get_title() == "cell type: cell_type"
    with pytest.raises(DataError, match="no level 'subtype'; it has class, cell_type"):
        scmamba.pl.annotation(query, "subtype")
    with pytest.raises(DataError, match=r"scmamba.annotate\(adata\) writes it"):
        scmamba.pl.annotation(known, "all")


def test_coverage_ranks_assigned_cells_and_counts_the_others():
    adata = ad.AnnData(np.ones((5, 2), np.float32))
    adata.obs["scmamba_type"] = ["A", "B", "A", "Unassigned", "A"]
    adata.obs["scmamba_probability"] = [0.9, 0.8, 0.7, 0.99, 0.7]
    adata.obs["known"] = pd.Categorical(["A", "B", "B", "A", None])
    axis = scmamba.pl.coverage(adata, "known")
    x, y = axis.lines[0].get_data()
    # four cells have a known type; the most probable call is Unassigned, which is never right or wrong
    np.testing.assert_allclose(x, [25, 50, 75])
    np.testing.assert_allclose(y, [100, 100, 200 / 3])
    assert axis.get_title() == "75% of the cells assigned, 67% of these right"
    adata.obs["scmamba_probability"] = 0.5
    x, y = scmamba.pl.coverage(adata, "known").lines[0].get_data()
    np.testing.assert_allclose([*x, *y], [75, 200 / 3])  # ties are one point
    with pytest.raises(DataError, match="needs truth_key="):
        scmamba.pl.coverage(adata)
    adata.obs["none"] = None
    with pytest.raises(DataError, match="no known type"):
        scmamba.pl.coverage(adata, "none")
    table = pd.DataFrame({"threshold": [0, 0.9], "coverage": [1, 0.5], "accuracy": [0.8, 1]})
    drawn = scmamba.pl.coverage(table)
    assert drawn.get_title() == "100% of the cells assigned, 80% of these right"
    with pytest.raises(DataError, match="expected coverage and accuracy"):
        scmamba.pl.coverage(table[["threshold"]])


def test_the_third_map_of_an_imputation_shows_the_standard_deviations(annotated):
    adata = annotated.copy()
    adata.layers["scmamba"] = adata.X
    gene = adata.var_names[3]
    sd = np.random.default_rng(1).random(adata.shape)
    adata.layers["scmamba_sd"] = sd
    axes = scmamba.pl.imputation(adata, gene, sd_layer="scmamba_sd")
    np.testing.assert_allclose(axes[2].collections[0].get_array(), sd[:, 3])
    assert f"up to {sd[:, 3].max():.2f}" in axes[2].get_title()
    with pytest.raises(DataError, match="sd=True"):
        scmamba.pl.imputation(adata, gene, sd_layer="other")


@pytest.fixture(scope="module")
def robust():
    adata = brain_cohort(1600, n_donors=8, n_genes=400, effect=4.0, de_fraction=0.2, seed=1)
    totals = np.asarray(adata.X.sum(axis=1))
    adata.layers["log"] = adata.X.multiply(1e4 / totals).tocsr().log1p()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scmamba.robustness(
            adata,
            "disease",
            "donor",
            "cell_type",
            cell_types=["Excitatory", "Oligodendrocyte"],
            layers=("counts", "log"),
            ratios=[0.5, 0.75],
            permutations=4,
            max_combinations=3,
            null_permutations=3,
            min_degs=1,
            verbose=False,
        )


def test_figure_7a_shows_the_mean_overlaps(robust):
    axes = scmamba.pl.robustness(robust, "a", ratio=0.75)
    runs = robust.runs[(robust.runs["kind"] == "cells") & (robust.runs["ratio"] == 0.75)]
    for axis, direction in zip(axes, ("up", "down")):
        own = runs[runs["direction"] == direction]
        mean = own.groupby(["cell_type", "layer"])["overlap"].mean().unstack()
        mean = mean.loc[["Excitatory", "Oligodendrocyte"], ["counts", "log"]]
        shown = axis.images[0].get_array()
        # The last column is the test between donors.
        assert shown.shape == (2, 3)
        np.testing.assert_allclose(shown[:, :2], mean)
    with pytest.raises(OptionError, match=r"ratio=0.6; there are 0.5, 0.75"):
        scmamba.pl.robustness(robust, "a", ratio=0.6)


def test_figure_7b_and_7c_show_the_runs(robust):
    up, _ = scmamba.pl.robustness(robust, "b", cell_type="Excitatory", measure="precision")
    runs = robust.runs[(robust.runs["kind"] == "cells") & (robust.runs["direction"] == "up")]
    mean = runs[runs["cell_type"] == "Excitatory"].groupby(["layer", "ratio"])["precision"].mean()
    heights = [bar.get_height() for bar in up.patches]
    np.testing.assert_allclose(heights, mean.loc[["counts", "log"]])
    up, _ = scmamba.pl.robustness(robust, "c")
    donors = robust.runs[(robust.runs["kind"] == "donors") & (robust.runs["direction"] == "up")]
    medians = donors.groupby(["layer", "cell_type"])["overlap"].median().dropna()
    assert len(set(medians)) > 1
    lines = [
        line for line in up.lines if line.get_color() == "black" and len(line.get_ydata()) == 2
    ]
    drawn = {round(float(line.get_ydata()[0]), 6) for line in lines}
    assert set(medians.round(6)) <= drawn
    with pytest.raises(DataError, match="cell_type=None was not analyzed"):
        scmamba.pl.robustness(robust, "b")


def test_false_positives_stand_beside_the_figure(robust):
    axes = scmamba.pl.robustness(robust, "false_positives")
    table = robust.false_positives().set_index(["kind", "layer", "cell_type"])["rate_nominal"]
    for axis, kind in zip(axes, ("null_cells", "null_donors")):
        heights = [bar.get_height() for bar in axis.patches]
        expected = [
            table[kind, layer, name]
            for layer in ("counts", "log")
            for name in ("Excitatory", "Oligodendrocyte")
        ]
        np.testing.assert_allclose(heights, expected)


def test_panels_without_runs_name_the_option(robust):
    empty = type(robust)(
        robust.runs[robust.runs["kind"] == "cells"],
        robust.nulls.iloc[:0],
        robust.full,
        robust.settings,
    )
    with pytest.raises(DataError, match="donor_key="):
        scmamba.pl.robustness(empty, "c")
    with pytest.raises(DataError, match="null_permutations="):
        scmamba.pl.robustness(empty, "false_positives")
    with pytest.raises(OptionError, match="panel='d'"):
        scmamba.pl.robustness(robust, "d")


def test_one_layer_alone_can_be_drawn():
    adata = brain_cohort(400, n_donors=4, n_genes=300, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = scmamba.robustness(
            adata,
            "disease",
            "donor",
            layers=["counts"],
            donors="2v2",
            ratios=[0.5],
            permutations=2,
            null_permutations=0,
            min_degs=1,
            verbose=False,
        )
    for panel in ("a", "b", "c"):
        scmamba.pl.robustness(result, panel)[0].figure.canvas.draw()


def test_a_volcano_of_compare_names_its_genes():
    table = pd.DataFrame(
        {
            "gene": ["GFAP", "ACTB"],
            "log2FC": [2.0, 0.1],
            "p_val": [1e-9, 0.5],
            "p_val_adj": [1e-6, 1.0],
        },
        index=[17, 4],
    )
    axis = scmamba.pl.volcano(table)
    assert [text.get_text() for text in axis.texts] == ["GFAP"]
    assert axis.get_title() == "1 of 2 genes: adjusted p < 0.05, |log2FC| at least 0.25"


def test_figures_stay_open_only_where_something_shows_them():
    import matplotlib.pyplot as plt

    plt.close("all")
    table = pd.DataFrame({"coverage": [1.0], "accuracy": [0.8]})
    scmamba.pl.coverage(table)
    assert plt.get_fignums() == [], "with agg nothing collects"
    before = plt.get_backend()
    try:
        plt.switch_backend("svg")  # any backend but agg, like that of a notebook
        figure = scmamba.pl.coverage(table).figure
        assert plt.get_fignums() == [figure.number]
    finally:
        plt.close("all")
        plt.switch_backend(before)


def test_no_type_has_the_grey_of_unassigned_cells():
    from matplotlib.colors import to_rgb

    adata = ad.AnnData(np.ones((40, 2), np.float32))
    adata.obs["scmamba_type"] = pd.Categorical([f"t{i:02d}" for i in range(39)] + ["Unassigned"])
    adata.obsm["X_umap"] = np.random.default_rng(0).random((40, 2))
    scmamba.pl.annotation(adata, confidence=False)
    # Categories are sorted: capitals come first.
    unassigned, *types = (np.array(to_rgb(c)) for c in adata.uns["scmamba_type_colors"])
    assert np.ptp(unassigned) == 0
    assert min(np.ptp(color) for color in types) > 0.1
