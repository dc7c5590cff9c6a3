"""Tasks with tables of results, and fine-tuning, through a real server: equal to the direct calls."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import scmamba
from scmamba.client.client import Client
from scmamba.datasets import brain_cohort
from scmamba.deg import find_markers, robustness
from scmamba.training import finetune_on
from scmamba.utils.errors import ScMambaError
from scmamba.wire import scmb as wire


@pytest.fixture(scope="module")
def nuclei() -> ad.AnnData:
    adata = brain_cohort(300, n_donors=6, seed=4)[:, :800].copy()
    adata.layers["scmamba"] = adata.X.copy()
    adata.layers["scmamba"].data = np.log1p(adata.layers["scmamba"].data + 0.3)
    return adata


def test_markers_equal_the_direct_call(server, nuclei):
    for options in (
        {},
        {"covariates": ["sex", "n_umi"], "only_pos": True},
        {"test": "wilcox", "seurat": "4", "group2": ["Control"]},
    ):
        far = Client(server.url).find_markers(nuclei, "disease", "AD", verbose=False, **options)
        near = find_markers(nuclei, "disease", "AD", **options)
        assert len(near) > 10
        pd.testing.assert_frame_equal(far, near, check_exact=True, check_names=False)


def test_robustness_equals_the_direct_call(server, nuclei):
    options = {
        "ratios": [0.4],
        "permutations": 3,
        "donors": "2v2",
        "null_permutations": 2,
        "min_degs": 1,
        "seed": 3,
    }
    far = Client(server.url).robustness(nuclei, "disease", "donor", verbose=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        near = robustness(nuclei, "disease", "donor", n_jobs=1, verbose=False, **options)
    assert dict(far.settings) == dict(near.settings) and list(far.notes) == list(near.notes)
    for name in ("runs", "nulls", "full"):
        pd.testing.assert_frame_equal(
            getattr(far, name), getattr(near, name), check_exact=True, check_dtype=False
        )
    pd.testing.assert_frame_equal(
        far.summary(), near.summary(), check_exact=True, check_dtype=False
    )


def test_a_fine_tuned_model_is_returned(server, nuclei, tmp_path):
    folder = Client(server.url).finetune(
        nuclei, tmp_path / "tuned", steps=2, name="mine", force=True, verbose=False
    )
    near, card = finetune_on(nuclei, steps=2, name="mine", force=True, verbose=False)
    far = scmamba.load_model(folder)
    weights = near.network.state_dict()
    # Sums of another number of threads differ in their last digits, and Adam gives a gradient near 0 a whole step.
    apart = [(weights[n] - v).abs().flatten() for n, v in far.network.state_dict().items()]
    assert (torch.cat(apart) > 1e-6).float().mean() < 0.01
    assert (folder / "model_card.md").read_text() == card and "300 cells" in card
    with pytest.raises(ScMambaError, match="exists already"):
        Client(server.url).finetune(nuclei, folder)


def test_forms_and_pictures_of_these_tasks(server, nuclei, tmp_path):
    client = Client(server.url)
    job = client.submit("markers", nuclei, groupby="disease", group1="AD")
    client.wait(job, verbose=False)
    table = ad.read_h5ad(client.fetch(job, tmp_path / "result.h5ad")).uns["scmamba"]["markers"][
        "markers"
    ]
    pd.testing.assert_frame_equal(table, find_markers(nuclei, "disease", "AD"), check_names=False)
    for path, status in (("picture", 409), ("result?format=zip", 422)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/v2/jobs/{job}/{path}")
        assert refused.value.code == status
    with pytest.raises(ScMambaError, match="nobody"):
        client.find_markers(nuclei, "disease", "nobody", verbose=False)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("markers", {"group1": "AD"}, "groupby"),
        ("markers", {"groupby": "disease", "group1": [1]}, "names"),
        ("robustness", {"groupby": "disease", "ratios": [0.5, 2]}, "shares"),
        ("robustness", {"groupby": "disease", "ratios": ["a"]}, "shares"),
        ("robustness", {"groupby": "disease", "resume": "/tmp"}, "resume"),
        ("robustness", {"groupby": "disease", "permutations": 10**6}, "permutations"),
        ("finetune", {"steps": 0}, "steps"),
    ],
)
def test_invalid_options_are_refused(server, nuclei, task, options, words):
    with pytest.raises(ScMambaError, match=f"422.*{words}"):
        Client(server.url).submit(task, nuclei[:5].copy(), **options)


def plain_file(path, **changes):
    """Three cells, two genes, a second matrix and one column of each type."""
    matrix = sparse.csc_matrix(np.array([[1.0, 0, 2], [0, 3, 0]]))
    parts = {"p": matrix.indptr, "i": matrix.indices, "x": matrix.data}
    arrays = {
        **parts,
        **{f"layer/{k}": v * 2 if k == "x" else v for k, v in parts.items()},
        "obs/depth": np.array([1 / 3, np.nan, 2.0]),
        "obs/odd": np.array([1, 0, 1], np.int32),
        "obs/group": np.array([1, -1, 0], np.int32),
    }
    header = {
        "genes": ["APOE", "GFAP"],
        "cells": ["a", "b", "c"],
        "obs": {"donor": ["x", None, "y"]},
        "levels": {"group": ["second", "first"]},
        "flags": ["odd"],
    }
    for name, value in changes.items():
        (arrays if name in arrays else header)[name] = value
    wire.write(path, header, {name: value for name, value in arrays.items() if value is not None})
    return path


def test_columns_and_a_second_matrix_in_the_plain_form(tmp_path):
    assert wire.read_shape(plain_file(tmp_path / "a.scmb")) == (2, 3)
    adata = wire.to_adata(tmp_path / "a.scmb")
    assert adata.obs["depth"].tolist()[::2] == [1 / 3, 2.0] and np.isnan(adata.obs["depth"].iloc[1])
    assert adata.obs["odd"].tolist() == [True, False, True] and adata.obs["odd"].dtype == bool
    assert adata.obs["group"].cat.categories.tolist() == ["second", "first"]
    assert (
        adata.obs["group"].astype(object).tolist()[::2] == ["first", "second"]
        and adata.obs["group"].isna().tolist()[1]
    )
    np.testing.assert_array_equal(adata.layers["scmamba"].toarray(), 2 * adata.X.toarray())


@pytest.mark.parametrize(
    "changes",
    [
        {"layer/x": None},
        {"layer/p": np.array([0, 1], np.int32)},
        {"layer/i": np.array([0, 1], np.int32)},
        {"obs/depth": np.ones(2)},
        {"levels": {"group": ["a", "a"]}},
        {"levels": {"group": 3}},
        {"levels": [1]},
        {"flags": 1},
        {"levels": {"depth": ["a"]}},
        {"obs": {"depth": ["a", "b", "c"]}},
        {"levels": {"group": ["a\x00"]}},
    ],
)
def test_damaged_columns_are_refused_before_they_are_read(tmp_path, changes):
    with pytest.raises(ScMambaError):
        wire.read_shape(plain_file(tmp_path / "a.scmb", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"layer/i": np.array([0, 9, 0], np.int32)},
        {"obs/group": np.array([0, 2, 0], np.int32)},
        {"obs/group": np.array([0, -2, 0], np.int32)},
    ],
)
def test_damaged_values_are_refused_when_they_are_read(tmp_path, changes):
    with pytest.raises(ScMambaError):
        wire.to_adata(plain_file(tmp_path / "a.scmb", **changes))


def test_the_server_lists_its_tasks(server):
    tasks = json.loads(urllib.request.urlopen(server.url + "/v2/models").read())["tasks"]
    assert {"markers", "robustness", "finetune"} <= set(tasks) and "resume" not in tasks[
        "robustness"
    ]
