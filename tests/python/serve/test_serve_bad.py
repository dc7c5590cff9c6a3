"""Accidental and malicious requests: each is refused with a sentence, and the server continues.

``UPLOADS`` are refused with a 4xx before they become jobs, ``JOBS`` are accepted and fail with their sentence because only reading the
whole file reveals what is wrong, ``REQUESTS`` and ``LINES`` are refused as requests.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import sparse

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import Server

from scmamba.client.client import Client
from scmamba.datasets import brain_cohort
from scmamba.serve.tokens import Tokens
from scmamba.utils.errors import ScMambaError

FREE = {"adapt_steps": 0, "force": True}


@pytest.fixture(scope="module")
def nuclei() -> ad.AnnData:
    return brain_cohort(20, n_donors=2, seed=5)[:, :3000].copy()


@pytest.fixture(scope="module")
def good(nuclei, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "cells.h5ad"
    nuclei.write_h5ad(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    data = tmp_path_factory.mktemp("bad")
    kept = Tokens(data)
    return data, {"ann": kept.add("ann", 1), "bob": kept.add("bob", 1), "old": kept.add("old", -1)}


@pytest.fixture(scope="module")
def server(tokens):
    running = Server(
        tokens[0],
        "--tokens",
        "none",
        "--patience",
        "1.5",
        "--max-upload",
        "0.004",
        "--max-cells",
        "1000",
        "--requests-per-minute",
        "100000",
    )
    yield running
    running.kill()


# -- files refused before they become jobs -----------------------------------------------------------------------------------------------


def hdf5(make: Callable[[h5py.File], object]) -> Callable[[bytes, Path], bytes]:
    """A function that writes an HDF5 file, from one that fills it."""

    def body(good: bytes, folder: Path) -> bytes:
        path = folder / "bad.h5"
        with h5py.File(path, "w") as file:
            make(file)
        return path.read_bytes()

    return body


def tables(f: h5py.File, n: int = 3, m: int = 4) -> None:
    for name, size in (("obs", n), ("var", m)):
        group = f.create_group(name)
        group.attrs["_index"] = "_index"
        group["_index"] = np.array([f"{name}{i}" for i in range(size)], dtype="S8")


def frame(f: h5py.File, n: int = 3, m: int = 4) -> None:
    f["X"] = np.ones((n, m), dtype="f4")
    tables(f, n, m)


def framed(more: Callable[[h5py.File], object]) -> Callable[[bytes, Path], bytes]:
    """A valid small file with additional content."""
    return hdf5(lambda f: (frame(f), more(f)))


def compressed(
    shape=(3, 4), indptr=4, indices=5, data=5, kind="csr_matrix", index_type="i4"
) -> Callable[[bytes, Path], bytes]:
    """A file whose X is a sparse matrix with these declared properties."""

    def make(f: h5py.File) -> None:
        x = f.create_group("X")
        x.attrs["shape"], x.attrs["encoding-type"] = shape, kind
        x["indptr"] = np.minimum(np.arange(indptr), min(data, 1)).astype("i4")
        x["indices"], x["data"] = np.zeros(indices, index_type), np.ones(data, "f4")
        tables(f)

    return hdf5(make)


def cut(share: float) -> Callable[[bytes, Path], bytes]:
    return lambda good, folder: good[: int(len(good) * share)]


def plain(body: bytes | None = None, **changes: object) -> Callable[[bytes, Path], bytes]:
    """A file in the plain form, two genes x one cell, with parts of its header replaced."""
    arrays = [
        {"name": "p", "kind": "int32", "shape": [2]},
        {"name": "i", "kind": "int32", "shape": [1]},
        {"name": "x", "kind": "float64", "shape": [1]},
    ]
    header = {"genes": ["APOE", "GFAP"], "cells": ["a"], "arrays": arrays} | changes
    text = json.dumps(header).encode()
    values = (
        np.array([0, 1, 0], "<i4").tobytes() + np.array([1.0], "<f8").tobytes()
        if body is None
        else body
    )
    return lambda good, folder: b"SCMB1\n" + len(text).to_bytes(8, "little") + text + values


def sent(body: bytes) -> Callable[[bytes, Path], bytes]:
    return lambda good, folder: body


def one_string_a_million_times(f: h5py.File) -> None:
    strings = f.create_dataset("uns", (4000,), dtype=h5py.string_dtype())
    strings[:] = ["a" * 100_000] + ["b"] * 3999


def shared_strings(good: bytes, folder: Path) -> bytes:
    """Every entry of an array of strings refers to the same long one."""
    path = folder / "shared.h5"
    with h5py.File(path, "w") as file:
        frame(file)
        one_string_a_million_times(file)
        at = file["uns"].id.get_offset()
    body = bytearray(path.read_bytes())
    body[at : at + 16 * 4000] = bytes(body[at : at + 16]) * 4000
    return bytes(body)


def deep(f: h5py.File) -> None:
    for _ in range(200):
        f = f.create_group("g")


def bomb(f: h5py.File) -> None:
    f.create_dataset(
        "bomb", shape=(10**6, 10**6), dtype="f8", chunks=(1000, 1000), compression="gzip"
    )


def virtual(f: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(10,), dtype="u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "secret", shape=(10,))
    f.create_virtual_dataset("secret", layout)


def replace(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(f: h5py.File) -> None:
        del f[name]
        f[name] = value

    return change


def tenx(f: h5py.File, shape=(4, 3), barcodes=3) -> None:
    group = f.create_group("matrix")
    group["shape"], group["barcodes"] = (
        np.array(shape),
        np.array([f"b{i}" for i in range(barcodes)], "S"),
    )
    group["indptr"], group["indices"], group["data"] = (
        np.zeros(4, "i4"),
        np.zeros(0, "i4"),
        np.zeros(0, "i4"),
    )


ARRAY = {"name": "p", "kind": "int32", "shape": [2]}
UPLOADS: dict[str, Callable[[bytes, Path], bytes]] = {
    "nothing": sent(b""),
    "text": sent(b"gene,cell1\nAPOE,3\n"),
    "a pickle": sent(b"\x80\x04\x95\x00\x00"),
    "a zip bomb": sent(b"PK\x03\x04" + bytes(1000)),
    "gzip": sent(b"\x1f\x8b\x08" + bytes(50)),
    "an R object": sent(b"RDX3\nX\n" + bytes(50)),
    "a program": sent(b"\x7fELF" + bytes(100)),
    "zeros": sent(bytes(4096)),
    "hdf5: signature alone": sent(b"\x89HDF\r\n\x1a\n"),
    "hdf5: cut at a tenth": cut(0.1),
    "hdf5: cut in the middle": cut(0.5),
    "hdf5: cut at the end": cut(0.98),
    "hdf5: head overwritten": lambda good, folder: good[:8] + bytes(2000) + good[2008:],
    "hdf5: without X": hdf5(tables),
    "hdf5: without obs": hdf5(lambda f: f.create_dataset("X", data=np.ones((2, 2)))),
    "hdf5: X of one dimension": hdf5(lambda f: (f.create_dataset("X", data=np.ones(5)), tables(f))),
    "hdf5: X of text": hdf5(
        lambda f: (f.create_dataset("X", data=np.full((3, 4), b"a")), tables(f))
    ),
    "hdf5: X of complex numbers": hdf5(
        lambda f: (f.create_dataset("X", data=np.ones((3, 4), "c16")), tables(f))
    ),
    "hdf5: X of pickled objects": hdf5(
        lambda f: (
            f.create_dataset("X", data=np.full((3, 4), b"\x80\x04.").astype("V3")),
            tables(f),
        )
    ),
    "hdf5: X of records": hdf5(
        lambda f: (f.create_dataset("X", data=np.ones((3, 4), [("a", "f4")])), tables(f))
    ),
    "hdf5: X is an attribute's worth of nothing": hdf5(
        lambda f: (f.create_dataset("X", data=h5py.Empty("f4")), tables(f))
    ),
    "hdf5: no cells": hdf5(lambda f: frame(f, 0, 4)),
    "hdf5: no genes": hdf5(lambda f: frame(f, 3, 0)),
    "hdf5: more cells than the server takes": hdf5(lambda f: frame(f, 1001, 4)),
    "hdf5: more genes than the server takes": hdf5(
        lambda f: (f.create_dataset("X", (2, 100_001), dtype="u1"), tables(f, 2, 0))
    ),
    "hdf5: fewer cell names than cells": hdf5(
        lambda f: (f.create_dataset("X", data=np.ones((4, 4))), tables(f))
    ),
    "hdf5: more gene names than genes": hdf5(
        lambda f: (f.create_dataset("X", data=np.ones((3, 3))), tables(f))
    ),
    "hdf5: cells without names": framed(lambda f: f.__delitem__("obs/_index")),
    "hdf5: names that are not UTF-8": framed(
        replace("var/_index", np.array([b"\xff\xfe", b"b", b"c", b"d"]))
    ),
    "hdf5: names with a zero character": framed(
        replace("var/_index", np.array([b"a\0b", b"b", b"c", b"d"]))
    ),
    "hdf5: link to another file": framed(
        lambda f: f.__setitem__("layers", h5py.ExternalLink("/etc/passwd", "/"))
    ),
    "hdf5: link to another file, deep within": framed(
        lambda f: f.create_group("a/b").__setitem__("c", h5py.ExternalLink("x.h5", "/"))
    ),
    "hdf5: soft link": framed(lambda f: f.__setitem__("raw", h5py.SoftLink("/X"))),
    "hdf5: soft link to itself": framed(lambda f: f.__setitem__("raw", h5py.SoftLink("/raw"))),
    "hdf5: array kept in another file": framed(
        lambda f: f.create_dataset("s", (10,), "u1", external=[("/etc/passwd", 0, 10)])
    ),
    "hdf5: array made of another file's": framed(virtual),
    "hdf5: claims eight terabytes": framed(bomb),
    "hdf5: claims one chunk of two gigabytes": framed(
        lambda f: f.create_dataset("b", (10,), "f8", chunks=(2**28,), maxshape=(None,))
    ),
    "hdf5: one long string claimed thousands of times": shared_strings,
    "hdf5: packed by a filter of its own": framed(
        lambda f: f.create_dataset(
            "b", (10,), "f8", chunks=(10,), compression=32123, allow_unknown_filter=True
        )
    ),
    "hdf5: groups 200 deep": framed(deep),
    "hdf5: a group within itself": framed(
        lambda f: f.create_group("uns").__setitem__("uns", f["uns"])
    ),
    "hdf5: thousands of objects": framed(
        lambda f: [f.create_group(f"g{i}") for i in range(10_001)]
    ),
    "sparse: claims a billion cells": compressed(shape=(10**9, 4)),
    "sparse: claims a billion genes": compressed(shape=(3, 10**9)),
    "sparse: claims less than nothing": compressed(shape=(-3, 4)),
    "sparse: claims half a cell": compressed(shape=(3.5, 4.0)),
    "sparse: claims NaN cells": compressed(shape=(float("nan"), 4.0)),
    "sparse: a shape of three": compressed(shape=(3, 4, 5)),
    "sparse: a shape of text": compressed(shape="3x4"),
    "sparse: more rows than its pointers": compressed(indptr=3),
    "sparse: columns declared as rows": compressed(kind="csc_matrix"),
    "sparse: fewer values than indices": compressed(data=3),
    "sparse: indices that are no whole numbers": compressed(index_type="f4"),
    "10x: without a shape": hdf5(lambda f: f.create_group("matrix")),
    "10x: more barcodes than cells": hdf5(lambda f: tenx(f, barcodes=5)),
    "10x: a billion cells": hdf5(lambda f: tenx(f, shape=(4, 10**9))),
    "plain: signature alone": sent(b"SCMB1\n"),
    "plain: a header longer than the file": sent(
        b"SCMB1\n" + (1 << 40).to_bytes(8, "little") + b"{}"
    ),
    "plain: a header that is no JSON": sent(b"SCMB1\n" + (4).to_bytes(8, "little") + b"abcd"),
    "plain: a header that is a list": sent(b"SCMB1\n" + (2).to_bytes(8, "little") + b"[]"),
    "plain: a header nested 40,000 deep": sent(
        b"SCMB1\n" + (40000).to_bytes(8, "little") + b"[" * 40000
    ),
    "plain: a billion cells": plain(arrays=[{**ARRAY, "shape": [10**9]}]),
    "plain: infinitely many": plain(arrays=[{**ARRAY, "shape": [float("inf")]}]),
    "plain: more than any computer holds": plain(
        arrays=[{**ARRAY, "shape": [0, 10**30]}], body=b""
    ),
    "plain: fewer than none": plain(arrays=[{**ARRAY, "shape": [-2]}]),
    "plain: arrays of objects": plain(arrays=[{**ARRAY, "kind": "object"}]),
    "plain: an array twice": plain(arrays=[ARRAY, ARRAY], body=bytes(16)),
    "plain: no matrix": plain(arrays=[ARRAY], body=bytes(8)),
    "plain: one byte missing": plain(body=bytes(19)),
    "plain: one byte more": plain(body=bytes(21)),
    "plain: no genes named": plain(genes=None),
    "plain: names that are numbers": plain(genes=[1, 2]),
    "plain: names with a zero character": plain(genes=["a\0", "b"]),
    "plain: names no file can hold": plain(cells=["\ud800"]),
    "plain: more cells than columns": plain(cells=["a", "b"]),
    "plain: no cells": plain(cells=[]),
    "plain: a column of another length": plain(obs={"donor": ["a", "b"]}),
    "plain: a column with a path for a name": plain(obs={"../../tokens": ["a"]}),
    "plain: a column of lists": plain(obs={"donor": [[1]]}),
    "plain: a column of NaN": plain(obs={"depth": [float("nan")]}),
    "plain: a table that is none": plain(obs=[1]),
}


@pytest.mark.parametrize("kind", UPLOADS)
def test_bad_uploads_are_refused_and_removed(server, good, tmp_path, kind):
    before = sorted((server.data / "uploads").glob("*"))
    status, text = server.post("/v2/models/brain-mini/impute", UPLOADS[kind](good, tmp_path))
    assert status in (400, 413, 422), text
    detail = json.loads(text)["detail"]
    assert len(detail) > 20 and "Traceback" not in detail and str(server.data) not in detail
    assert sorted((server.data / "uploads").glob("*")) == before and lives(server)


def lives(server: Server) -> bool:
    return urllib.request.urlopen(server.url + "/v2/health/ready", timeout=30).status == 200


# -- files whose jobs fail with a message ------------------------------------------------------------------------------------------------


def with_values(change: Callable[[ad.AnnData], object]) -> Callable[[ad.AnnData, Path], Path]:
    def write(nuclei: ad.AnnData, folder: Path) -> Path:
        adata = nuclei.copy()
        adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
        change(adata)
        adata.write_h5ad(folder / "cells.h5ad")
        return folder / "cells.h5ad"

    return write


def in_file(change: Callable[[h5py.File], object]) -> Callable[[ad.AnnData, Path], Path]:
    def write(nuclei: ad.AnnData, folder: Path) -> Path:
        path = with_values(lambda a: None)(nuclei, folder)
        with h5py.File(path, "r+") as file:
            change(file)
        return path

    return write


def strangers(adata: ad.AnnData) -> None:
    adata.var_names = [f"nothing{i}" for i in range(adata.n_vars)]
    adata.var = adata.var[[]]


def damaged_within(nuclei: ad.AnnData, folder: Path) -> Path:
    """One compressed block of the values is overwritten: the declared properties of the file still hold."""
    path = folder / "cells.h5ad"
    x = np.tile(sparse.csr_matrix(nuclei.X).toarray(), (6, 1)).astype(
        "f4"
    )  # more than is read before the upload becomes a job
    ad.AnnData(x, var=nuclei.var[[]]).write_h5ad(path, compression="gzip")
    with h5py.File(path, "r") as file:
        block = file["X"].id.get_chunk_info(0)
    body = bytearray(path.read_bytes())
    body[block.byte_offset + 10 : block.byte_offset + block.size] = b"\xa5" * (block.size - 10)
    path.write_bytes(body)
    return path


def plain_file(**arrays: list[float]) -> Callable[[ad.AnnData, Path], Path]:
    def write(nuclei: ad.AnnData, folder: Path) -> Path:
        from scmamba.wire import scmb as wire

        kept = {"p": np.array([0, 1, 2], "i4"), "i": np.array([0, 1], "i4"), "x": np.ones(2)}
        kept |= {k: np.array(v, kept[k].dtype) for k, v in arrays.items()}
        wire.write(folder / "cells.scmb", {"genes": ["APOE", "GFAP"], "cells": ["a", "b"]}, kept)
        return folder / "cells.scmb"

    return write


#: Fault -> the file and words of the message.
JOBS: dict[str, tuple[Callable[[ad.AnnData, Path], Path], str]] = {
    "no genes in common": (with_values(strangers), "gene"),
    "negative values": (with_values(lambda a: a.X.data.__imul__(-1)), "negative|centered"),
    "NaN": (with_values(lambda a: a.X.data.__setitem__(0, np.nan)), "(?i)nan|missing"),
    "infinite values": (with_values(lambda a: a.X.data.__setitem__(0, np.inf)), "(?i)inf|NaN"),
    "indices beyond the genes": (
        in_file(lambda f: f["X/indices"].__setitem__(0, 2**31 - 1)),
        "contradicts itself",
    ),
    "indices below nothing": (
        in_file(lambda f: f["X/indices"].__setitem__(0, -5)),
        "contradicts itself",
    ),
    "pointers beyond the values": (
        in_file(lambda f: f["X/indptr"].__setitem__(-1, 2**31 - 1)),
        "contradicts itself|cannot be read",
    ),
    "pointers that go back": (
        in_file(lambda f: f["X/indptr"].__setitem__(5, 0)),
        "contradicts itself|cannot be read",
    ),
    "an encoding nobody knows": (
        in_file(lambda f: f["X"].attrs.__setitem__("encoding-type", "pickle")),
        "cannot be read",
    ),
    "a damaged block": (damaged_within, "cannot be read"),
    "plain: indices beyond the genes": (plain_file(i=[0, 7]), "points outside"),
    "plain: pointers that go back": (plain_file(p=[0, 5, 2]), "damaged"),
    "plain: pointers beyond the values": (plain_file(p=[0, 1, 9]), "damaged"),
}


@pytest.mark.parametrize("kind", JOBS)
def test_faults_found_only_while_reading_fail_with_a_message(server, nuclei, tmp_path, kind):
    make, sentence = JOBS[kind]
    client = Client(server.url)
    job = client.submit("impute", make(nuclei, tmp_path), **FREE)
    with pytest.raises(ScMambaError, match=sentence) as failed:
        client.wait(job, verbose=False)
    assert "inside the server" not in str(failed.value) and str(server.data) not in str(
        failed.value
    )
    assert client.state(job)["attempts"] == 1 and lives(server)


# -- requests ----------------------------------------------------------------------------------------------------------------------------

IMPUTE = "/v2/models/brain-mini/impute"


def options(value: object, task: str = "impute") -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"/v2/models/brain-mini/{task}?" + urllib.parse.urlencode({"options": text})


#: Fault -> method, path, headers, status.
REQUESTS: dict[str, tuple[str, str, dict[str, str], int]] = {
    "unknown model": ("POST", "/v2/models/none/impute", {}, 404),
    "a path for a model": ("POST", "/v2/models/..%2f..%2fetc/impute", {}, 404),
    "a model name of 5,000 letters": ("POST", f"/v2/models/{'m' * 5000}/impute", {}, 404),
    "unknown task": ("POST", "/v2/models/brain-mini/destroy", {}, 404),
    "unknown path": ("GET", "/v2/nothing", {}, 404),
    "path out of the page's folder": ("GET", "/..%2f..%2fetc/passwd", {}, 404),
    "unknown method": ("BREW", IMPUTE, {}, 405),
    "wrong method": ("PUT", IMPUTE, {}, 405),
    "options: no JSON": ("POST", options("{"), {}, 422),
    "options: a list": ("POST", options([]), {}, 422),
    "options: nested 10,000 deep": ("POST", options("[" * 10_000), {}, 422),
    "options: a number of 5,000 digits": ("POST", options('{"seed": ' + "9" * 5000 + "}"), {}, 422),
    "options: unknown": ("POST", options({"path": "/etc/passwd"}), {}, 422),
    "options: the model as a path": ("POST", options({"model": "/etc/passwd"}), {}, 422),
    "options: unknown, of letters no file can hold": ("POST", options('{"\\ud800": 1}'), {}, 422),
    "options: text for a number": ("POST", options({"passes": "ten"}), {}, 422),
    "options: true for a number": ("POST", options({"passes": True}), {}, 422),
    "options: beyond all numbers": ("POST", options({"min_value": 1e300}), {}, 422),
    "options: NaN": ("POST", options('{"min_value": NaN}'), {}, 422),
    "options: a negative seed": ("POST", options({"seed": -1}), {}, 422),
    "options: no pass": ("POST", options({"passes": 0}), {}, 422),
    "options: a million passes": ("POST", options({"passes": 10**6}), {}, 422),
    "options: batches of none": ("POST", options({"batch_size": 0}), {}, 422),
    "options: a rate above one": ("POST", options({"expected_rate": 5}, "doublets"), {}, 422),
    "options: markers that are numbers": (
        "POST",
        options({"markers": {"Neuron": [1]}}, "annotate"),
        {},
        422,
    ),
    "options: labels that are numbers": ("POST", options({"labels": [1]}, "annotate"), {}, 422),
    "options: a path for a reference": (
        "POST",
        options({"reference": "../../etc/passwd"}, "annotate"),
        {},
        422,
    ),
    "options: another task's": ("POST", options({"reference": "x"}, "embed"), {}, 422),
    "a form": ("POST", IMPUTE, {"Content-Type": "multipart/form-data; boundary=x"}, 415),
    "packed on the way": ("POST", IMPUTE, {"Content-Encoding": "gzip"}, 415),
    "a name that can be guessed": ("POST", IMPUTE, {"Idempotency-Key": "1"}, 422),
    "unknown token": ("POST", IMPUTE, {"Authorization": "Bearer wrong"}, 401),
    "expired token": ("POST", IMPUTE, {"Authorization": "Bearer {old}"}, 401),
    "a password for a token": ("POST", IMPUTE, {"Authorization": "Basic YTpi"}, 401),
    "a token of nothing": ("POST", IMPUTE, {"Authorization": "Bearer"}, 401),
    "another's job": ("GET", "/v2/jobs/{job}", {"Authorization": "Bearer {bob}"}, 404),
    "another's result": ("GET", "/v2/jobs/{job}/result", {"Authorization": "Bearer {bob}"}, 404),
    "another's progress": ("GET", "/v2/jobs/{job}/events", {"Authorization": "Bearer {bob}"}, 404),
    "another's job, to be deleted": (
        "DELETE",
        "/v2/jobs/{job}",
        {"Authorization": "Bearer {bob}"},
        404,
    ),
    "another's job by nobody": ("GET", "/v2/jobs/{job}", {}, 404),
    "unknown job": ("GET", "/v2/jobs/nothing-like-it", {}, 404),
    "a path for a job": ("GET", "/v2/jobs/..%2f..%2fqueue.sqlite/result", {}, 404),
    "a job's name of zero characters": ("GET", "/v2/jobs/%00%00%00%00%00%00%00%00", {}, 404),
    "a job's name of bytes that are no text": ("GET", "/v2/jobs/%ff%fe%fd%fc%fb%fa%f9%f8", {}, 404),
    "a result in a form nobody knows": (
        "GET",
        "/v2/jobs/{job}/result?format=../h5ad",
        {"Authorization": "Bearer {ann}"},
        422,
    ),
    "unknown reference": ("DELETE", "/v2/references/0123456789abcdef", {}, 404),
    "parts: of unknown length": ("POST", "/v2/uploads", {}, 400),
    "parts: of negative length": ("POST", "/v2/uploads", {"Upload-Length": "-5"}, 400),
    "parts: longer than the server takes": (
        "POST",
        "/v2/uploads",
        {"Upload-Length": str(10**12)},
        413,
    ),
    "parts: unknown": ("HEAD", "/v2/uploads/0123456789abcdef", {}, 404),
    "parts: a path for a name": (
        "PATCH",
        "/v2/uploads/..%2f..%2ftokens.json",
        {"Content-Type": "application/offset+octet-stream"},
        404,
    ),
    "parts: another's": (
        "PATCH",
        "/v2/uploads/{part}",
        {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"},
        404,
    ),
    "parts: from the wrong place": (
        "PATCH",
        "/v2/uploads/{part}",
        {
            "Authorization": "Bearer {ann}",
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": "7",
        },
        409,
    ),
    "parts: of another type": (
        "PATCH",
        "/v2/uploads/{part}",
        {"Authorization": "Bearer {ann}", "Upload-Offset": "0"},
        415,
    ),
    "parts: more than promised": (
        "PATCH",
        "/v2/uploads/{part}",
        {
            "Authorization": "Bearer {ann}",
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": "0",
        },
        413,
    ),
    "parts: a job before they are whole": (
        "POST",
        IMPUTE + "?upload={part}",
        {"Authorization": "Bearer {ann}"},
        409,
    ),
    "parts: a job of another's": (
        "POST",
        IMPUTE + "?upload={part}",
        {"Authorization": "Bearer {bob}"},
        404,
    ),
}


@pytest.fixture(scope="module")
def names(server, tokens, nuclei, tmp_path_factory) -> dict[str, str]:
    """Names in requests: tokens, and a job and an unfinished upload of ann."""
    path = tmp_path_factory.mktemp("names") / "cells.h5ad"
    nuclei.write_h5ad(path)
    status, headers = ask(
        server,
        "POST",
        "/v2/uploads",
        {"Upload-Length": "10", "Authorization": f"Bearer {tokens[1]['ann']}"},
        b"",
    )
    assert status == 201
    return {
        **tokens[1],
        "job": Client(server.url, tokens[1]["ann"]).submit("embed", path),
        "part": headers["Location"].rsplit("/", 1)[1],
    }


def ask(
    server: Server, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, dict[str, str]]:
    headers = {"Content-Type": "application/octet-stream"} | headers
    request = urllib.request.Request(server.url + path, data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, {k.title(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {"body": error.read().decode()}


@pytest.mark.parametrize("kind", REQUESTS)
def test_bad_requests_are_refused(server, good, names, kind):
    method, path, headers, expected = REQUESTS[kind]
    for name, value in names.items():
        path = path.replace("{" + name + "}", value)
        headers = {k: v.replace("{" + name + "}", value) for k, v in headers.items()}
    status, answer = ask(
        server, method, path, headers, good if method in ("POST", "PATCH") else b""
    )
    assert status == expected, answer
    assert method == "HEAD" or json.loads(answer["body"])["detail"]
    assert lives(server)


# -- raw connections ---------------------------------------------------------------------------------------------------------------------


def line(server: Server, *parts: bytes, pause: float = 0.0, close: bool = False) -> bytes:
    """Send bytes unchanged, with pauses; returns the response."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as out,
        contextlib.suppress(ConnectionError),
    ):
        for part in parts:
            out.sendall(part)
            time.sleep(pause)
        return b"" if close else out.recv(4096)
    return b""


HEAD = f"POST {IMPUTE} HTTP/1.1\r\nHost: localhost\r\n".encode()
#: Fault -> bytes that are sent and the status of the response.
LINES: dict[str, tuple[bytes, int]] = {
    "larger than the server takes": (HEAD + b"Content-Length: 1000000000000\r\n\r\n", 413),
    "larger than the server takes, in pieces": (
        HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + (b"10000\r\n" + bytes(65536) + b"\r\n") * 80
        + b"0\r\n\r\n",
        413,
    ),
    "a length below nothing": (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "a length of letters": (HEAD + b"Content-Length: many\r\n\r\n", 400),
    "a length of 40 digits": (HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400),
    "pieces of no size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n", 400),
    "a way to send nobody knows": (HEAD + b"Transfer-Encoding: tar\r\n\r\nabc", 400),
    "a header of a megabyte": (HEAD + b"X-Long: " + b"a" * (1 << 20) + b"\r\n\r\n", 400),
    "an address of a megabyte": (
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        400,
    ),
    "thousands of headers": (
        HEAD + b"".join(b"X-%d: a\r\n" % i for i in range(20_000)) + b"\r\n",
        400,
    ),
    "a header that is none": (HEAD + b"nothing\r\n\r\n", 400),
    "no host": (b"GET /v2/models HTTP/1.1\r\n\r\n", 400),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n", 400),
    "HTTP of no version": (b"GET / HTTP/x\r\nHost: localhost\r\n\r\n", 400),
    "a slow upload": (HEAD + b"Content-Length: 100\r\n\r\nabc", 408),
}


@pytest.mark.parametrize("kind", LINES)
def test_malformed_requests_are_refused(server, kind):
    body, expected = LINES[kind]
    answer = line(server, body)
    if (
        answer
    ):  # if the server refuses while much is still being sent, the connection may break first
        assert int(answer.split()[1]) == expected, answer
    else:
        assert len(body) > 65536
    assert lives(server)


def test_an_upload_that_is_too_slow_is_refused(server):
    answer = line(server, HEAD + b"Content-Length: 1000\r\n\r\n", *[b"a"] * 12, pause=0.3)
    assert answer.split()[1] == b"408"


def test_a_cancelled_upload_is_removed(server):
    before = sorted((server.data / "uploads").glob("*"))
    line(server, HEAD + b"Content-Length: 100000\r\n\r\n" + bytes(5000), close=True)
    for _ in range(50):
        if sorted((server.data / "uploads").glob("*")) == before:
            break
        time.sleep(0.1)
    assert sorted((server.data / "uploads").glob("*")) == before and lives(server)


def test_a_broken_upload_is_continued(server, nuclei, good, tokens, tmp_path):
    mine = {"Authorization": f"Bearer {tokens[1]['ann']}"}
    status, headers = ask(
        server, "POST", "/v2/uploads", {**mine, "Upload-Length": str(len(good))}, b""
    )
    assert status == 201 and headers["Tus-Resumable"] == "1.0.0"
    where, half = headers["Location"], len(good) // 2
    head = f"PATCH {where} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {mine['Authorization']}\r\nUpload-Offset: 0\r\n"
    head += f"Content-Type: application/offset+octet-stream\r\nContent-Length: {len(good)}\r\n\r\n"
    line(server, head.encode() + good[:half], close=True)
    # A new request stops the old connection, so wait until some bytes have arrived.
    for _ in range(100):
        if any(
            f.stat().st_size for f in (server.data / "parts").glob(f"*/{where.rsplit('/', 1)[1]}")
        ):
            break
        time.sleep(0.1)
    status, headers = ask(server, "HEAD", where, mine, b"")
    came = int(headers["Upload-Offset"])
    assert status == 200 and 0 < came <= half and headers["Upload-Length"] == str(len(good))
    on = {**mine, "Upload-Offset": str(came), "Content-Type": "application/offset+octet-stream"}
    status, headers = ask(server, "PATCH", where, on, good[came:])
    assert status == 204 and headers["Upload-Offset"] == str(len(good))
    status, headers = ask(server, "POST", IMPUTE + f"?upload={where.rsplit('/', 1)[1]}", mine, b"")
    assert status == 202 and ask(server, "HEAD", where, mine, b"")[0] == 404
    folder = server.data / "uploads"
    assert any(f.read_bytes() == good for f in folder.iterdir())


def test_the_client_continues_after_a_broken_connection(server, good, tmp_path, monkeypatch):
    """A real connection, cut three times after two thirds of a part."""
    from scmamba.client import upload as _resume

    path = tmp_path / "cells.h5ad"
    path.write_bytes(good)
    part = len(good) // 3
    monkeypatch.setattr("scmamba.client.client.WHOLE", 1000)
    monkeypatch.setattr(_resume, "_PART", part)
    tool = Path(__file__).parents[2] / "testthat" / "breaking_line.py"
    port = server.url.rsplit(":", 1)[1]
    with subprocess.Popen(
        [sys.executable, tool, port, str(part * 2 // 3), "3"], stdout=subprocess.PIPE, text=True
    ) as line:
        try:
            client = Client(f"http://127.0.0.1:{int(line.stdout.readline())}")
            job = client.submit("embed", path, force=True)
            assert [line.stdout.readline() for _ in range(3)] == [
                "broken 1\n",
                "broken 2\n",
                "broken 3\n",
            ]
            assert any(f.read_bytes() == good for f in (server.data / "uploads").iterdir())
            assert client.state(job)["state"] in ("queued", "running", "done")
            client.cancel(job)
        finally:
            line.kill()


def test_the_openapi_schema_leads_to_no_5xx(server):
    """A short run of schemathesis; benchmarks/serve_fuzz.py has the long one."""
    import shutil

    tool = Path(sys.executable).parent / "schemathesis"
    if not tool.is_file() and not (tool := Path(shutil.which("schemathesis") or "")).is_file():
        pytest.skip("schemathesis is not installed")
    command = [
        tool,
        "run",
        server.url + "/openapi.json",
        "--checks",
        "not_a_server_error",
        "--max-examples",
        "2",
        "--seed",
        "1",
        "--no-color",
        "--phases",
        "coverage,fuzzing",
        "--request-timeout",
        "100",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout[-3000:]
    assert lives(server)
