"""The record that every verb writes into an object, and the results it must not overwrite."""

import anndata as ad
import numpy as np
import pytest

from scmamba.data.provenance import refuse_existing, write_record
from scmamba.utils.errors import DataError


@pytest.fixture
def adata():
    return ad.AnnData(np.ones((3, 2), dtype=np.float32))


def test_record_has_one_schema(adata):
    write_record(
        adata,
        "impute",
        params={"seed": 0, "layer": None},
        model="brain-mini",
        summary={"density": 0.5},
    )
    write_record(adata, "embed", params={})
    assert set(adata.uns["scmamba"]) == {"impute", "embed"}
    record = adata.uns["scmamba"]["impute"]
    assert record["params"] == {"seed": 0} and record["summary"] == {"density": 0.5}
    assert record["model"] == "brain-mini" and "model" not in adata.uns["scmamba"]["embed"]


def test_record_can_be_written_to_h5ad(adata, tmp_path):
    write_record(
        adata, "impute", params={"seed": 0, "method": "ensemble", "copy": False}, summary={}
    )
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert (
        ad.read_h5ad(tmp_path / "x.h5ad").uns["scmamba"]["impute"]["params"]["method"] == "ensemble"
    )


@pytest.mark.parametrize("slot", ["layers", "obsm", "obs"])
def test_results_of_others_are_refused_and_own_ones_replaced(adata, slot):
    getattr(adata, slot)["scmamba"] = np.ones(3) if slot == "obs" else np.ones((3, 2))
    with pytest.raises(DataError, match=rf"{slot}\['scmamba'\] exists already"):
        refuse_existing(adata, "impute", **{slot: ["scmamba"]})
    refuse_existing(adata, "impute", **{slot: ["scmamba"]}, overwrite=True)
    write_record(adata, "embed", params={})
    with pytest.raises(DataError):
        refuse_existing(adata, "impute", **{slot: ["scmamba"]})
    write_record(adata, "impute", params={})
    refuse_existing(adata, "impute", **{slot: ["scmamba"]})


def test_an_uns_entry_of_another_program_is_refused(adata):
    adata.uns["scmamba"] = "my notes"
    with pytest.raises(DataError, match=r"uns\['scmamba'\]"):
        refuse_existing(adata, "impute", layers=["scmamba"])
    refuse_existing(adata, "impute", layers=["scmamba"], overwrite=True)
    assert "scmamba" not in adata.uns
