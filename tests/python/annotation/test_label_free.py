"""Annotation without labels: counts drawn from known rates, real blood, and single steps by hand."""

from __future__ import annotations

from importlib import resources

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scmamba
from scmamba.annotation import _label_free as free
from scmamba.annotation._label_free import LabelFreeModel, tree_probabilities
from scmamba.annotation.brain_reference import BrainReference, load_reference
from scmamba.datasets import brain_reference
from scmamba.datasets.brain_reference import shrink_differences, specific_genes
from scmamba.datasets.marker_panels import brain_markers
from scmamba.genes import annotation
from scmamba.utils.errors import DataError, OptionError

DRAWN = {
    "Excitatory neuron": "L6 CT",
    "Inhibitory neuron": "SST",
    "Astrocyte": "",
    "Oligodendrocyte": "",
    "Microglia": "",
    "Dopaminergic neuron": "",
}


def draw(n: int, seed: int, spread: float = 0.4, depth: float = 1500.0) -> ad.AnnData:
    """Cells of six types in turn, with a log-normal factor for each gene and a tenth of ambient RNA."""
    reference, rng = load_reference(), np.random.default_rng(seed)
    factor = np.exp(rng.normal(0, spread, len(reference.genes)))
    columns = []
    for kind, subtype in DRAWN.items():
        table = reference.table
        own = np.flatnonzero((table["type"] == kind) & (table["subtype"] == subtype))[0]
        columns.append(reference.rates[:, own] * factor)
    rates = np.array([c / c.sum() for c in columns])
    rates = 0.9 * rates + 0.1 * rates.mean(axis=0)
    code = np.arange(n) % len(DRAWN)
    depths = rng.lognormal(np.log(depth), 0.4, n)
    counts = rng.poisson(rates[code] * depths[:, None]).astype(np.float32)
    cells = ad.AnnData(sparse.csr_matrix(counts))
    cells.var_names, cells.obs_names = list(reference.genes), [f"c{i}" for i in range(n)]
    cells.obs["true"] = np.array(list(DRAWN))[code]
    cells.obs["subtype"] = np.array([s or t for t, s in DRAWN.items()])[code]
    cells.uns["log_factor"] = np.log(factor)
    return cells


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return draw(240, 0)


def test_the_shipped_reference_has_the_known_properties_of_the_types():
    reference = load_reference()
    np.testing.assert_allclose(reference.rates.sum(axis=0), 1)
    assert reference.rates.shape == (len(reference.genes), len(reference.table))
    ids = annotation().drop_duplicates("symbol").set_index("symbol")["ensembl_id"]
    means = pd.DataFrame(reference.rates, index=reference.genes).T
    means = means.groupby(reference.table["type"].to_numpy()).mean()
    known = {
        "GAD1": "Inhibitory neuron",
        "SLC17A7": "Excitatory neuron",
        "AQP4": "Astrocyte",
        "MOBP": "Oligodendrocyte",
        "PDGFRA": "OPC",
        "CSF1R": "Microglia",
        "CLDN5": "Endothelial",
        "SLC18A2": "Dopaminergic neuron",
        "SLC17A6": "Midbrain glutamatergic neuron",
    }
    cortical = ["Midbrain GABAergic neuron", "Midbrain glutamatergic neuron", "Dopaminergic neuron"]
    for gene, kind in known.items():
        among = means if kind in cortical else means.drop(index=cortical)
        assert among[ids[gene]].idxmax() == kind, gene
    folder = resources.files("scmamba") / "resources"
    assert len((folder / "human_brain_reference.npz").read_bytes()) < 5 * 2**20


def test_every_column_names_its_studies_and_terms():
    table = scmamba.references()
    assert (table[["class", "type", "studies", "licence"]] != "").all(axis=None)
    assert table["ontology_id"].str.fullmatch(r"CL:\d{7}").all()
    assert not table["studies"].str.contains("Allen").any()
    assert set(table["reference"]) == {"human-brain"}
    with pytest.raises(OptionError, match="no reference 'mouse'"):
        load_reference("mouse")


def test_types_and_subtypes_of_cells_with_batch_factors_and_ambient_rna(cells):
    found = scmamba.annotate(cells, reference="human-brain", return_result=True, verbose=False)
    calls = found.labels().astype(str)
    truth = cells.obs["true"].to_numpy()
    named = calls != "Unassigned"
    assert named.mean() > 0.95 and np.mean(calls[named] == truth[named]) > 0.98
    fine = found.labels("subtype").astype(str)
    named = fine != "Unassigned"
    assert named.mean() > 0.8
    assert np.mean(fine[named] == cells.obs["subtype"].to_numpy()[named]) > 0.95
    assert found.provenance["ambient_share"] in free.AMBIENT
    for level, p in found.probabilities.items():
        np.testing.assert_allclose(p.sum(axis=1), 1, err_msg=level)


def test_factors_of_the_genes_are_estimated(cells):
    reference = load_reference()
    model = LabelFreeModel(reference.rates, reference.table["type"].to_numpy(str))
    nearest = np.array(
        [(i + 6 * np.arange(15)) % 240 for i in range(240)]
    )  # cells of the same type
    model.fit(sparse.csr_matrix(cells.X, dtype=float), nearest)
    seen = np.asarray(cells.X.sum(axis=0)).ravel() > 200
    true = cells.uns["log_factor"][seen]
    learned = model.log_factor[seen]
    assert seen.sum() > 150 and np.corrcoef(true, learned)[0, 1] > 0.8


def test_results_go_to_three_levels_of_columns(cells):
    done = scmamba.annotate(cells.copy(), reference="human-brain", verbose=False)
    assert {
        f"scmamba_{name}"
        for name in (
            *("class", "class_probability", "class_alternatives"),
            *("type", "probability", "alternatives"),
            *("subtype", "subtype_probability", "subtype_alternatives"),
        )
    } <= set(done.obs)
    record = done.uns["scmamba"]["annotate"]
    assert record["summary"]["mode"] == "brain" and record["summary"]["genes"] == done.n_vars
    # Levels that a later result does not have are removed; columns of the user stay.
    done.obs["scmamba_note"] = "mine"
    by_markers = scmamba.annotate(done, markers="panel", verbose=False)
    written = {c for c in by_markers.obs if c.startswith("scmamba_")}
    names = ("type", "probability", "alternatives", "note")
    assert written == {f"scmamba_{name}" for name in names}
    foreign = cells.copy()
    foreign.obs["scmamba_class"] = "mine"
    with pytest.raises(DataError, match="scmamba_class"):
        scmamba.annotate(foreign, reference="human-brain", verbose=False)


def test_types_of_other_regions_are_excluded(cells):
    found = scmamba.annotate(
        cells, reference="human-brain", region="cortex", return_result=True, verbose=False
    )
    assert "Dopaminergic neuron" not in found.levels["type"]
    assert "Hippocampal CA1" not in found.levels["subtype"] and "L6 CT" in found.levels["subtype"]
    with pytest.raises(OptionError, match="region is 'liver'"):
        scmamba.annotate(cells, reference="human-brain", region="liver", verbose=False)


def test_the_reference_is_the_default(cells, capsys):
    named = scmamba.annotate(cells, reference="human-brain", return_result=True)
    assert "by default" not in capsys.readouterr().err
    found = scmamba.annotate(cells, return_result=True)
    assert found.labels().tolist() == named.labels().tolist()
    said = capsys.readouterr().err
    sentence = "15,947 genes of the reference 'human-brain' were measured, which is used by default"
    assert said.count(sentence) == 1 and "marker genes are used" not in said
    cortex = scmamba.annotate(cells, region="cortex", return_result=True, verbose=False)
    assert "Dopaminergic neuron" not in cortex.levels["type"]
    foreign = cells.copy()
    foreign.obs["scmamba_subtype"] = "mine"
    with pytest.raises(DataError, match="scmamba_subtype"):
        scmamba.annotate(foreign, verbose=False)
    scmamba.annotate(foreign, markers="panel", verbose=False)  # writes no such column


def test_marker_genes_are_used_where_few_genes_of_the_reference_were_measured(cells, capsys):
    ids = annotation().drop_duplicates("symbol").set_index("symbol")["ensembl_id"]
    genes = [ids[g] for panel in brain_markers().values() for g in panel if g in ids]
    genes = list(dict.fromkeys(g for g in genes if g in set(cells.var_names)))
    others = [g for g in cells.var_names if g not in set(genes)]
    few = cells[:, [*genes, *others[: 99 - len(genes)]]].copy()
    found = scmamba.annotate(few, region="cortex", return_result=True)
    said = capsys.readouterr().err
    assert found.provenance["mode"] == "markers"
    assert "only 99 genes of the reference 'human-brain' were measured" in said
    assert "marker genes are used (markers='panel'); the region is not considered" in said
    panel = scmamba.annotate(few, markers="panel", return_result=True, verbose=False)
    assert found.labels().tolist() == panel.labels().tolist()
    scmamba.annotate(few, return_result=True)
    assert "region" not in capsys.readouterr().err
    enough = cells[:, [*genes, *others[: 100 - len(genes)]]].copy()
    found = scmamba.annotate(enough, return_result=True, verbose=False)
    assert found.provenance["mode"] == "brain"


def test_rare_types_of_few_cells_are_not_averaged_away():
    """Six cells of a type among a hundred: fewer neighbors than in a large object."""
    cells = draw(120, 3)
    keep = (cells.obs["true"] != "Microglia").to_numpy() | (np.arange(120) < 36)
    few = cells[keep].copy()
    assert (few.obs["true"] == "Microglia").sum() == 6
    named = scmamba.annotate(few, verbose=False).obs
    assert (named["scmamba_type"].astype(str) == named["true"]).mean() > 0.98


@pytest.mark.parametrize("kind", ["Astrocyte", "Oligodendrocyte"])
def test_a_type_that_the_reference_lacks_is_refused(cells, kind):
    reference = load_reference()
    keep = (reference.table["type"] != kind).to_numpy()
    model = LabelFreeModel(
        reference.rates[:, keep] / reference.rates[:, keep].sum(axis=0),
        reference.table["type"].to_numpy(str)[keep],
    )
    nearest = np.array([(i + 6 * np.arange(15)) % 240 for i in range(240)])
    refused = model.fit(sparse.csr_matrix(cells.X, dtype=float), nearest).unsupported()
    absent = (cells.obs["true"] == kind).to_numpy()
    assert refused[absent].mean() >= 0.8 and refused[~absent].mean() < 0.05


def test_real_blood_cells_are_unassigned(pbmc):
    blood = ad.read_h5ad(pbmc)[::4].copy()
    done = scmamba.annotate(blood, reference="human-brain", verbose=False)
    assert (done.obs["scmamba_type"] == "Unassigned").mean() >= 0.95


def test_log_values_and_few_genes_work(cells):
    full = scmamba.annotate(cells.copy(), reference="human-brain", verbose=False)
    logs = cells.copy()
    total = np.asarray(logs.X.sum(axis=1)).ravel()
    logs.X = sparse.csr_matrix(sparse.diags(1e4 / total) @ logs.X)
    logs.X.data = np.log1p(logs.X.data)
    again = scmamba.annotate(logs, reference="human-brain", verbose=False)
    assert (again.obs["scmamba_type"] == full.obs["scmamba_type"]).mean() > 0.97
    means = load_reference().rates
    variable = np.argsort(-(np.log(means + 1e-5)).std(axis=1) * means.max(axis=1), kind="stable")
    few = cells[:, variable[:100]].copy()
    found = scmamba.annotate(few, reference="human-brain", return_result=True, verbose=False)
    best = np.array(found.levels["type"])[found.probabilities["type"].argmax(axis=1)]
    assert np.mean(best == cells.obs["true"].to_numpy()) > 0.9
    with pytest.raises(DataError, match="49 genes of the reference"):
        scmamba.annotate(cells[:, variable[:49]].copy(), reference="human-brain", verbose=False)


def test_a_cell_without_counts_and_a_single_cell(cells):
    empty = cells[:20].copy()
    empty.X = sparse.csr_matrix(sparse.diags((np.arange(20) != 3).astype(np.float32)) @ empty.X)
    done = scmamba.annotate(empty, reference="human-brain", verbose=False)
    assert done.obs["scmamba_type"].iloc[3] == "Unassigned"
    one = scmamba.annotate(cells[:1].copy(), reference="human-brain", verbose=False)
    assert one.obs["scmamba_type"].astype(str).tolist() == ["Excitatory neuron"]


# ---------------------------------------------------------------- by hand


def test_small_differences_between_types_are_ignored():
    rates = np.array([[0.5, 0.1], [0.2, 0.25], [0.3, 0.65]])
    logs = np.log(rates)
    middle = logs.mean(axis=1)
    expected = np.empty((3, 2))
    for g in range(3):
        for c in range(2):
            gap = logs[g, c] - middle[g]
            expected[g, c] = np.exp(middle[g] + np.sign(gap) * max(abs(gap) - 0.3, 0))
    assert expected[1, 0] == pytest.approx(expected[1, 1])  # a ratio of 1.25 is below the limit
    expected /= expected.sum(axis=0)
    np.testing.assert_allclose(shrink_differences(rates, 0.3), expected)
    np.testing.assert_allclose(shrink_differences(rates, 0.0), rates / rates.sum(axis=0))


def test_specific_genes_and_completeness_by_hand(monkeypatch):
    rates = np.array([[0.4, 0.02], [0.3, 0.01], [0.2, 0.2], [0.05, 0.47], [0.05, 0.3]])
    assert specific_genes(rates, 0).tolist() == [0, 1] and specific_genes(rates, 1).tolist() == [
        3,
        4,
    ]
    monkeypatch.setattr(brain_reference, "SPECIFIC_GENES", 1)
    assert specific_genes(rates, 0).tolist() == [0]
    monkeypatch.undo()
    model = LabelFreeModel(rates, np.array(["a", "b"]))
    counts = np.array([[40.0, 0, 20, 5, 35], [20.0, 10, 20, 25, 25]])
    nearest = np.array([[0, 0], [1, 0]])
    found = model.completeness(sparse.csr_matrix(counts), nearest)
    for i, pair in enumerate(nearest):
        pooled = counts[pair].sum(axis=0)
        for code, genes in ((0, [0, 1]), (1, [3, 4])):
            expected = 0.9 * pooled.sum() * rates[genes, code]
            weight = np.minimum(expected, 5)
            share = np.minimum(pooled[genes] / expected, 1)
            assert found[i, code] == pytest.approx((share * weight).sum() / weight.sum())


def test_levels_are_sums_and_nest():
    table = pd.DataFrame(
        {
            "class": ["Neuron", "Neuron", "Neuron", "Glia"],
            "type": ["Inh", "Inh", "Exc", "Astro"],
            "subtype": ["SST", "VIP", "", ""],
        }
    )
    p = np.array([[0.1, 0.2, 0.3, 0.4]])
    reference = BrainReference(np.array(["g"]), np.ones((1, 4)), table)
    classes, probabilities, parents = tree_probabilities(p, reference)
    assert classes == {
        "class": ["Glia", "Neuron"],
        "type": ["Astro", "Exc", "Inh"],
        "subtype": ["Astro", "Exc", "SST", "VIP"],
    }
    np.testing.assert_allclose(probabilities["type"], [[0.4, 0.3, 0.3]])
    np.testing.assert_allclose(probabilities["subtype"], [[0.4, 0.3, 0.1, 0.2]])
    assert parents == {"type": [0, 1, 1], "subtype": [0, 1, 2, 2]}
    shipped = load_reference()
    neuron = (shipped.table["class"] == "Neuron").to_numpy()
    random = np.zeros((500, len(neuron)))
    random[:, neuron] = np.random.default_rng(0).dirichlet(np.full(neuron.sum(), 0.1), 500)
    assert (random.sum(axis=1) > 1).any()  # by rounding
    assert max(values.max() for values in tree_probabilities(random, shipped)[1].values()) <= 1


def test_constants():
    assert free.MIN_DEFAULT_GENES == 100
    assert (free.MIN_GENES, free.NEIGHBORS, brain_reference.STUDY_SPREAD, free.TEMPERATURE) == (
        50,
        15,
        0.5,
        3.0,
    )
    assert (brain_reference.SPECIFIC_GENES, free.MIN_COMPLETENESS, free.AMBIENT) == (
        60,
        0.42,
        (0.0, 0.05, 0.1),
    )
    assert (free.ROUNDS, free.THRESHOLD, free.MAX_DEPTH, free.LOG_DEPTH) == (3, 0.5, 1e4, 2e3)


def test_factors_are_estimated_from_the_cells_of_each_type():
    """One iteration by hand: observed against expected counts of the cells of one type, weighted by the expected counts."""
    rates = np.array([[0.7, 0.1, 0.3], [0.2, 0.3, 0.3], [0.1, 0.6, 0.4]])
    model = LabelFreeModel(rates, np.array(["a", "b", "c"]))
    counts = 100 * np.array([[900.0, 500, 100], [40, 700, 800], [60, 1600, 100]])
    model.average = np.full(3, 1 / 3)
    model.probabilities = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    model.ambient = 0.1
    total, weights = np.zeros(3), np.zeros(3)
    for code, cells in ((0, [0]), (1, [1]), (2, [2])):
        depth = counts[cells].sum()
        expected = depth * (0.9 * model.scored[:, code] + 0.1 / 3)
        weight = expected / (expected + 10)
        total += weight * np.log((counts[cells].sum(axis=0) + 2) / (expected + 2))
        weights += weight
    logs = sparse.csr_matrix(np.log1p(counts))
    model._update(sparse.csr_matrix(counts), logs, np.ones(3, dtype=bool))
    np.testing.assert_allclose(model.log_factor, total / (weights + 1), rtol=1e-10)


def test_cells_that_fit_two_types_are_assigned_to_the_more_common_one():
    """Nine cells in ten are of one type; cells whose genes do not distinguish the types are assigned to it."""
    rates = np.array([[8.0, 1, 5, 5, 5], [1.0, 8, 5, 5, 5]]).T
    rates = rates / rates.sum(axis=0)
    rng = np.random.default_rng(0)
    code = np.r_[np.zeros(180, int), np.ones(20, int)]
    counts = rng.poisson(300 * rates[:, code].T).astype(float)
    between = np.tile([0.0, 0, 60, 60, 60], (10, 1))
    counts = sparse.csr_matrix(np.vstack([counts, between]))
    nearest = np.arange(210)[:, None]
    model = LabelFreeModel(rates, np.array(["many", "few"])).fit(counts, nearest)
    found = model.by_type()[:, list(model.names).index("many")]
    assert (found[:180] > 0.5).all() and (found[180:200] < 0.5).all()
    assert (found[200:] > 0.75).all()
