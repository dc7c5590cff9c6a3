"""What the page chooses from and colors by: columns of an upload, columns and genes of a map; and the demo nuclei."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import App

from scmamba.serve import map_values
from scmamba.serve.columns import LEVELS, read_columns
from scmamba.wire import scmb


@pytest.fixture
def cells() -> ad.AnnData:
    draw = np.random.default_rng(0)
    counts = draw.poisson(0.6, (30, 7)).astype("float32")
    counts[:, 0] += 1  # no cell is empty
    obs = pd.DataFrame(
        {
            "kind": pd.Categorical(["b", "a", None] * 10, categories=["b", "a", "unused"]),
            "text": ["x", "y", "x"] * 10,
            "flag": [True, False, True] * 10,
            "age": np.arange(30) / 3,
            "many": [f"value {i}" for i in range(30)],
        },
        index=[f"cell{i}" for i in range(30)],
    )
    genes = pd.DataFrame(index=["AQP4", "MALAT1", "Gad1", "gad1", "SYT1", "C9orf72", "MT-CO1"])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=genes)


def test_columns_and_their_values(cells, tmp_path, monkeypatch):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr("scmamba.serve.columns.LEVELS", 29)
    found = {c["name"]: c["levels"] for c in read_columns(tmp_path / "cells.h5ad")}
    assert list(found) == list(cells.obs.columns)
    assert found == {
        "kind": ["a", "b", "unused"],
        "text": ["x", "y"],
        "flag": ["False", "True"],
        "age": [],
        "many": [],  # too many to choose from
    }
    assert LEVELS == 100


def test_columns_of_the_plain_form_and_of_other_files(tmp_path):
    arrays = {
        "p": np.array([0, 1, 1], np.int32),
        "i": np.array([0], np.int32),
        "x": np.array([1.0]),
        "obs/age": np.array([1.0, 2.0]),
        "obs/type": np.array([1, 0], np.int32),
    }
    header = {
        "genes": ["A"],
        "cells": ["c1", "c2"],
        "obs": {"donor": ["d2", "d1"]},
        "levels": {"type": ["t", "s"]},
    }
    scmb.write(tmp_path / "plain", header, arrays)
    assert read_columns(tmp_path / "plain") == [
        {"name": "donor", "levels": ["d1", "d2"]},
        {"name": "type", "levels": ["s", "t"]},
        {"name": "age", "levels": []},
    ]
    (tmp_path / "zip").write_bytes(b"PK\x03\x04")
    assert read_columns(tmp_path / "zip") == []


def test_columns_by_which_a_map_is_colored(cells, monkeypatch):
    monkeypatch.setattr(map_values, "LEVELS", 29)
    found = map_values.column_values(cells)
    assert set(found) == {"kind", "text", "flag", "age"}
    assert found["kind"] == {"levels": ["a", "b"], "codes": [1, 0, -1] * 10}
    assert found["flag"] == {"levels": ["False", "True"], "codes": [1, 0, 1] * 10}
    np.testing.assert_allclose(found["age"]["numbers"], cells.obs["age"], rtol=1e-8)
    cells.obs["age"] = [np.nan, np.inf, *range(28)]
    assert map_values.column_values(cells)["age"]["numbers"][:3] == [None, None, 0.0]


def test_values_of_a_gene_measured_and_imputed(cells, tmp_path):
    layer = np.random.default_rng(1).random((30, 7)).astype("float32")
    cells.layers["scmamba"] = sparse.csr_matrix(layer)
    map_values.write_genes(cells, tmp_path)
    counts = cells.X.toarray()
    measured = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    for k, name in enumerate(cells.var_names):
        found = map_values.gene_values(tmp_path, name)
        assert found["gene"] == name  # Gad1 and gad1 are two
        np.testing.assert_allclose(found["measured"], measured[:, k], atol=1e-4)
        np.testing.assert_allclose(found["imputed"], layer[:, k], atol=1e-4)
    assert map_values.gene_values(tmp_path, "malat1")["gene"] == "MALAT1"
    assert map_values.gene_values(tmp_path, "MT-CO2") == ["MT-CO1"]
    assert map_values.gene_values(tmp_path, "XIST") == []


@pytest.fixture
def app(tmp_path):
    running = App(tmp_path)
    yield running
    running.stop()


def test_columns_and_genes_over_http(app, cells):
    cells.write_h5ad(app.data / "cells.h5ad")
    file = (app.data / "cells.h5ad").read_bytes()
    place = app.ask("POST", "/v2/uploads", upload_length=str(len(file))).headers["location"]
    early = app.ask("GET", place + "/columns")
    assert early.status == 409 and f"0 of {len(file)} bytes" in early.detail
    sent = {"upload_offset": "0", "content_type": "application/offset+octet-stream"}
    assert app.ask("PATCH", place, file, **sent).status == 204
    found = app.ask("GET", place + "/columns").json
    assert (found["cells"], found["genes"]) == (30, 7)
    assert [c["name"] for c in found["columns"]] == list(cells.obs.columns)
    name = place.rpartition("/")[2]
    job = app.ask("POST", f"/v2/models/brain-mini/embed?upload={name}", b"").json["id"]
    assert app.ask("GET", f"/v2/jobs/{job}/genes/AQP4").status == 409  # not done yet
    app.end(job, h5ad=b"")
    map_values.write_genes(cells, app.data / "jobs" / job / "result")
    answer = app.ask("GET", f"/v2/jobs/{job}/genes/aqp4").json
    assert answer["gene"] == "AQP4" and len(answer["measured"]) == 30 and "imputed" not in answer
    unknown = app.ask("GET", f"/v2/jobs/{job}/genes/MT-CO2")
    assert unknown.status == 404 and "similar names: MT-CO1" in unknown.detail


def test_a_damaged_upload_has_no_columns(app):
    place = app.ask("POST", "/v2/uploads", upload_length="9").headers["location"]
    sent = {"upload_offset": "0", "content_type": "application/offset+octet-stream"}
    assert app.ask("PATCH", place, b"not cells", **sent).status == 204
    refused = app.ask("GET", place + "/columns")
    assert refused.status == 422 and "neither an .h5ad" in refused.detail


def test_the_demo_nuclei_are_simulated_once(app):
    first = app.ask("GET", "/v2/demo")
    assert first.status == 200 and first.body[:4] == b"\x89HDF"
    (app.data / "demo.h5ad").write_bytes(b"kept")
    assert app.ask("GET", "/v2/demo").body == b"kept"


def test_options_of_a_job_are_shown(app, cells):
    cells.write_h5ad(app.data / "cells.h5ad")
    wanted = {"sample_key": "text", "seed": 3}
    text = json.dumps(wanted).replace('"', "%22").replace(" ", "")
    place = f"/v2/models/brain-mini/doublets?options={text}"
    job = app.ask("POST", place, (app.data / "cells.h5ad").read_bytes()).json["id"]
    assert app.ask("GET", f"/v2/jobs/{job}").json["options"] == wanted


def test_long_names_of_genes_are_cut_for_the_map(cells, tmp_path):
    """The server reads all names at once: a file may hold a hundred thousand of a megabyte."""
    cells.var_names = ["G" * 1000 + str(k) for k in range(cells.n_vars - 1)] + ["GAD1"]
    map_values.write_genes(cells, tmp_path)
    names = json.loads((tmp_path / "genes.json").read_text())["genes"]
    assert max(map(len, names)) == 60
    assert map_values.gene_values(tmp_path, "g" * 1000)["gene"] == "G" * 60
    assert map_values.gene_values(tmp_path, "gad1")["gene"] == "GAD1"
