"""Zipped 10x folders: read like the folder by scanpy, refused if damaged, and processed by the server."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scanpy
from scipy import io as mtx
from scipy import sparse

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import scmamba
from scmamba.client.client import Client
from scmamba.datasets import brain_cohort
from scmamba.serve import read_10x as tenx
from scmamba.serve.validation import look
from scmamba.utils.errors import DataError, ScMambaError

ROOM = 1 << 30


def parts(adata, kinds=None, compressed=True) -> dict[str, bytes]:
    matrix = io.BytesIO()
    mtx.mmwrite(
        matrix, sparse.coo_matrix(sparse.csr_matrix(adata.X).T.astype(np.int64)), field="integer"
    )
    kinds = kinds or ["Gene Expression"] * adata.n_vars
    features = "".join(
        f"ENSG{k:011d}\t{name}\t{kind}\n"
        for k, (name, kind) in enumerate(zip(adata.var_names, kinds, strict=True))
    )
    barcodes = "".join(f"{name}\n" for name in adata.obs_names)
    made = {
        "matrix.mtx": matrix.getvalue(),
        "features.tsv": features.encode(),
        "barcodes.tsv": barcodes.encode(),
    }
    return (
        {f"{name}.gz": gzip.compress(value) for name, value in made.items()} if compressed else made
    )


def zipped(path: Path, files: dict[str, bytes | None], folder: str = "sample/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in files.items():
            if value is not None:
                archive.writestr(folder + name, value)
    return path


@pytest.fixture(scope="module")
def nuclei():
    return brain_cohort(40, n_donors=2, seed=5)[:, :3000].copy()


@pytest.mark.parametrize("compressed", [True, False])
def test_the_result_equals_scanpys(nuclei, tmp_path, compressed):
    kinds = ["Gene Expression"] * 2990 + ["Antibody Capture"] * 10
    files = parts(nuclei, kinds)
    for name, value in files.items():
        (tmp_path / name).write_bytes(value)
    expected = scanpy.read_10x_mtx(tmp_path)
    path = zipped(tmp_path / "a.zip", parts(nuclei, kinds, compressed))
    assert look(path, 10**6, 10**6) == {"kind": "mtx", "cells": nuclei.n_obs, "genes": 3000}
    found = tenx.to_adata(path, ROOM)
    assert (
        found.var_names.tolist() == expected.var_names.tolist()
        and found.obs_names.tolist() == expected.obs_names.tolist()
    )
    assert found.var["gene_ids"].tolist() == expected.var["gene_ids"].tolist()
    assert (sparse.csr_matrix(found.X) != sparse.csr_matrix(expected.X)).nnz == 0


def test_the_server_accepts_it(server, nuclei, tmp_path):
    path = zipped(tmp_path / "a.zip", parts(nuclei), folder="")
    far = Client(server.url).embed(path, force=True, verbose=False)
    near = scmamba.embed(tenx.to_adata(path, ROOM), force=True, verbose=False)
    np.testing.assert_array_equal(far.obsm["X_scmamba"], near.obsm["X_scmamba"])
    bad = zipped(
        tmp_path / "bad.zip", {**parts(nuclei), "barcodes.tsv.gz": gzip.compress(b"one\n")}
    )
    with pytest.raises(ScMambaError, match=r"422.*barcodes has 1 lines"):
        Client(server.url).submit("embed", bad)


HEAD = b"%%MatrixMarket matrix coordinate integer general\n%comment\n"


def with_matrix(text: bytes):
    return lambda good: {**good, "matrix.mtx.gz": gzip.compress(text)}


DAMAGED = {
    "no matrix": (lambda good: {**good, "matrix.mtx.gz": None}, "one matrix.mtx"),
    "two matrices": (lambda good: {**good, "other/matrix.mtx": b""}, "it holds 2"),
    "no barcodes": (lambda good: {**good, "barcodes.tsv.gz": None}, "barcodes"),
    "a dense matrix": (
        with_matrix(b"%%MatrixMarket matrix array real general\n2 2\n"),
        "no Matrix Market",
    ),
    "complex numbers": (
        with_matrix(b"%%MatrixMarket matrix coordinate complex general\n1 1 1\n1 1 1 1\n"),
        "no Matrix Market",
    ),
    "sizes that are words": (
        with_matrix(HEAD + b"many cells here\n"),
        "no line with the numbers of genes",
    ),
    "negative sizes": (
        with_matrix(HEAD + b"3000 -40 1\n1 1 1\n"),
        "no line with the numbers of genes",
    ),
    "comments only": (with_matrix(HEAD + b"%\n" * 100), "no line with the numbers of genes"),
    "a megabyte of comment": (
        with_matrix(HEAD + b"%" * (3 << 20)),
        "no line with the numbers of genes",
    ),
    "a billion values promised": (
        with_matrix(HEAD + b"3000 40 1000000000\n1 1 1\n"),
        "promises 1,000,000,000",
    ),
    "a billion cells promised": (with_matrix(HEAD + b"3000 1000000000 1\n1 1 1\n"), "do not fit"),
    "a name too few": (
        lambda good: {**good, "features.tsv.gz": gzip.compress(b"a\tb\n")},
        "features has 1",
    ),
    "names that are no text": (
        lambda good: {**good, "barcodes.tsv.gz": gzip.compress(b"\xff\xfe\n" * 40)},
        "UTF-8",
    ),
    "names with zero characters": (
        lambda good: {**good, "barcodes.tsv.gz": gzip.compress(b"a\0\n" * 40)},
        "zero character",
    ),
    "cut off inside": (
        lambda good: {**good, "matrix.mtx.gz": good["matrix.mtx.gz"][:-40]},
        "cut off|damaged",
    ),
    "no gzip": (lambda good: {**good, "matrix.mtx.gz": b"not gzip at all"}, "cannot be read"),
    "hundreds of files": (lambda good: {**good, **{f"{k}.txt": b"" for k in range(300)}}, "three"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_folders_are_refused(nuclei, tmp_path, kind):
    change, words = DAMAGED[kind]
    path = zipped(tmp_path / "a.zip", change(parts(nuclei)))
    with pytest.raises(DataError, match=words):
        look(path, 10**12, 10**6)


def test_bombs_and_cut_archives_are_refused(nuclei, tmp_path):
    bomb = zipped(
        tmp_path / "bomb.zip",
        with_matrix(HEAD + b"3000 40 3\n" + b"1 1 1\n" * (40 << 20))(parts(nuclei)),
    )
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="unpacks to more"):
        look(bomb, 10**6, 10**6)
    good = zipped(tmp_path / "a.zip", parts(nuclei)).read_bytes()
    for share in (0.3, 0.9):
        (tmp_path / "cut.zip").write_bytes(good[: int(share * len(good))])
        with pytest.raises(DataError, match="cannot be read"):
            look(tmp_path / "cut.zip", 10**6, 10**6)


def test_invalid_values_are_refused_when_they_are_read(nuclei, tmp_path):
    for body in (b"1 1 1\n2 2\n3 3 3\n", b"9999 1 1\n1 1 1\n1 2 1\n", b"a b c\n1 1 1\n1 2 1\n"):
        path = zipped(tmp_path / "a.zip", with_matrix(HEAD + b"3000 40 3\n" + body)(parts(nuclei)))
        with pytest.raises(DataError):
            tenx.to_adata(path, ROOM)
