"""The guard of shared fixtures: a test that writes to one fails, and only that test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from shared_fixtures import fingerprint

TESTS = """
import anndata as ad
import numpy as np
import pytest
from shared_fixtures import pytest_fixture_post_finalizer, pytest_fixture_setup, pytest_runtest_call

@pytest.fixture(scope="module")
def pair():
    return ad.AnnData(np.ones((3, 2), dtype="float32")), "more"

@pytest.fixture(scope="module")
def first(pair):
    return pair[0]

@pytest.fixture()
def fresh():
    return ad.AnnData(np.ones((3, 2), dtype="float32"))

def test_reads(pair):
    assert pair[0].copy().X.sum() == 6

def test_writes(first):
    first.uns["record"] = {"a": 1}

def test_reads_later(pair):
    assert "record" in pair[0].uns

def test_writes_to_its_own(fresh):
    fresh.X[0] = 5
"""


def test_the_test_that_wrote_fails_and_no_other(tmp_path):
    body = TESTS.replace(TESTS.splitlines()[4] + "\n", "")
    (tmp_path / "conftest.py").write_text(TESTS.splitlines()[4] + "\n")
    (tmp_path / "test_made.py").write_text(body)
    here = str(Path(__file__).resolve().parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
        + ["--rootdir", str(tmp_path), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": here},
        capture_output=True,
        text=True,
    )
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    # In CI pytest writes the reason behind the name, elsewhere only if the line is wide enough.
    assert re.search(r"^FAILED .*test_made\.py::test_writes( - |$)", done.stdout, re.MULTILINE)
    assert "uns['record'], uns['record']['a'] of the fixture 'first'" in done.stdout


def cells() -> ad.AnnData:
    obs = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"], "c": pd.Categorical(["u", "v"])})
    obs.index = ["c0", "c1"]
    data = ad.AnnData(sparse.csr_matrix(np.eye(2, 3, dtype="float32")), obs=obs)
    data.layers["counts"] = data.X.copy()
    data.obsm["pca"] = np.zeros((2, 2))
    data.uns["record"] = {"a": 1}
    return data


def test_equal_objects_have_one_fingerprint():
    assert fingerprint(cells()) == fingerprint(cells())


@pytest.mark.parametrize(
    ("part", "change"),
    {
        "X": lambda data: data.X.data.__setitem__(0, 7),
        "layers['counts']": lambda data: data.layers["counts"].data.__setitem__(1, 7),
        "obs['a']": lambda data: data.obs.__setitem__("a", [1.0, 3.0]),
        "obs['b']": lambda data: data.obs.__setitem__("b", ["x", "z"]),
        "obs['c']": lambda data: data.obs.__setitem__("c", pd.Categorical(["v", "u"])),
        "obs['new']": lambda data: data.obs.__setitem__("new", 1),
        "var_names": lambda data: setattr(data, "var_names", ["a", "b", "c"]),
        "obsm['pca']": lambda data: data.obsm["pca"].__setitem__((0, 0), 1),
        "uns['record']['b']": lambda data: data.uns["record"].__setitem__("b", 1),
        "raw": lambda data: setattr(data, "raw", data),
    }.items(),
)
def test_every_change_is_found(part, change):
    data, before = cells(), fingerprint(cells())
    change(data)
    now = fingerprint(data)
    assert {p for p in before | now if before.get(p, "") != now.get(p, "")} == {part}
