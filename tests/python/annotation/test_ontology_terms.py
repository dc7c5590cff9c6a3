"""Cell Ontology ids of the calls, and objects that hold an AnnData."""

from __future__ import annotations

import numpy as np
import pytest

import scmamba
from scmamba.annotation import ontology_terms
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import DataError, OptionError

#: Written down from the Cell Ontology's own pages, not from our table.
EXPECTED = {
    "Astrocyte": "CL:0000127",
    "Microglia": "CL:0000129",
    "Oligodendrocyte": "CL:0000128",
    "OPC": "CL:0002453",
    "Endothelial": "CL:0000115",
    "Pericyte": "CL:0000669",
    "Excitatory neuron": "CL:0000679",
    "Inhibitory neuron": "CL:0000617",
    "Dopaminergic neuron": "CL:0000700",
}


@pytest.fixture(scope="module")
def cells():
    return scmamba.annotate(brain_cohort(200, n_donors=2, n_genes=2000, seed=1), verbose=False)


def test_ids_of_the_calls(cells):
    cells = cells.copy()
    ontology_terms(cells, overwrite=True)
    ids = cells.obs["cell_type_ontology_term_id"].astype(str)
    called = cells.obs["scmamba_type"].astype(str)
    assert len(set(called)) > 5
    for name, own in ids.groupby(called):
        assert set(own) == {"unknown" if name == "Unassigned" else EXPECTED[name]}, name
    by_type = ontology_terms(cells, "scmamba_type", overwrite=True)
    assert (by_type.obs["cell_type_ontology_term_id"].astype(str) == ids).mean() > 0.95


def test_own_types_need_ids_and_missing_ones_are_unknown(cells):
    own = cells[:4].copy()
    own.obs = own.obs[[]]
    own.obs["mine"] = ["T cell", "Microglia", None, "Unassigned"]
    with pytest.raises(DataError, match="known for T cell .*terms="):
        ontology_terms(own, "mine")
    assert "cell_type_ontology_term_id" not in own.obs
    ontology_terms(own, "mine", terms={"T cell": "CL:0000084"})
    written = own.obs["cell_type_ontology_term_id"].astype(str).tolist()
    assert written == ["CL:0000084", "CL:0000129", "unknown", "unknown"]
    with pytest.raises(DataError, match="exists already"):
        ontology_terms(own, "mine")
    with pytest.raises(OptionError, match="'T cell: CL:84'"):
        ontology_terms(own, "mine", terms={"T cell": "CL:84"}, overwrite=True)


def test_data_without_calls_are_named():
    plain = brain_cohort(20, n_donors=2, n_genes=300, seed=1)
    with pytest.raises(DataError, match=r"scmamba.annotate\(adata\) writes it"):
        ontology_terms(plain)
    with pytest.raises(DataError, match="no column 'typo'"):
        ontology_terms(plain, "typo")


def test_a_modality_of_mudata_is_annotated_in_place_and_the_whole_is_refused():
    mudata = pytest.importorskip("mudata")
    cells = brain_cohort(150, n_donors=2, n_genes=2000, seed=4)
    other = cells[:, :5].copy()
    other.var_names = [f"protein{i}" for i in range(5)]
    both = mudata.MuData({"rna": cells, "protein": other})
    with pytest.raises(DataError, match=r"found a MuData.*mdata\['rna'\]; there are: rna, protein"):
        scmamba.annotate(both)
    alone = scmamba.annotate(cells.copy(), verbose=False)
    scmamba.annotate(both["rna"], verbose=False)
    both.update()
    assert np.array_equal(
        both["rna"].obs["scmamba_type"].astype(str), alone.obs["scmamba_type"].astype(str)
    )
    scmamba.embed(both["rna"], verbose=False)
    assert both["rna"].obsm["X_scmamba"].shape == (150, 64)


def test_a_table_of_spatial_data_is_named():
    class SpatialData:
        def __init__(self, tables):
            self.tables = tables

    spots = SpatialData({"table": brain_cohort(20, n_donors=2, n_genes=300, seed=1)})
    with pytest.raises(DataError, match=r"found a SpatialData.*sdata.tables\['table'\]"):
        scmamba.embed(spots)
