"""The inspection of an upload before it becomes a job, and its limits; zipped 10x folders; names in messages."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from serving import plain_bytes

from scmamba.serve import read_10x as tenx
from scmamba.serve import validation as check
from scmamba.utils.errors import DataError

HEAD = "%%MatrixMarket matrix coordinate integer general\n"


def h5ad(folder: Path, matrix=None, **more) -> Path:
    matrix = sparse.csr_matrix(np.arange(12.0).reshape(3, 4)) if matrix is None else matrix
    ad.AnnData(matrix, **more).write_h5ad(folder / "a.h5ad")
    return folder / "a.h5ad"


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_cells_come_first_in_h5ad_files(tmp_path, make):
    path = h5ad(tmp_path, make(np.ones((3, 4))))
    assert check.look(path, 3, 4) == {"kind": "h5ad", "cells": 3, "genes": 4}
    for most in ((2, 4), (3, 3)):
        with pytest.raises(DataError, match="3 cells x 4 genes"):
            check.look(path, *most)


def test_genes_come_first_in_10x_files(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        group = file.create_group("matrix")
        group["shape"], group["barcodes"] = np.array([4, 3]), np.array(["a", "b", "c"], "S")
        group["indptr"], group["indices"], group["data"] = (
            np.zeros(4, "i4"),
            np.zeros(0, "i4"),
            np.zeros(0, "i4"),
        )
    assert check.look(tmp_path / "a.h5", 3, 4) == {"kind": "10x", "cells": 3, "genes": 4}


def test_the_plain_form_and_invalid_files(tmp_path):
    (tmp_path / "a").write_bytes(plain_bytes(2, 3))
    assert check.look(tmp_path / "a", 2, 3) == {"kind": "scmb", "cells": 2, "genes": 3}
    (tmp_path / "a").write_bytes(plain_bytes(0, 3))
    with pytest.raises(DataError, match="nothing to work on"):
        check.look(tmp_path / "a", 9, 9)
    (tmp_path / "a").write_bytes(b"text")
    with pytest.raises(DataError, match="neither"):
        check.look(tmp_path / "a", 9, 9)


def test_memory_is_limited_to_half_of_the_machines_to_the_byte(tmp_path):
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert check.memory_limit() == total // 2
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["X"] = np.ones((100, 10), "f4")
        file.create_dataset(
            "n", (7,), "f8", chunks=(50,), maxshape=(None,)
        )  # a whole chunk is read
    claims = 4000 + 400
    for most, fine in ((claims, True), (claims - 1, False)):
        with h5py.File(tmp_path / "a.h5") as file:
            walk = check._Walk(10_000, most)
            if fine:
                walk.over(file)
                assert walk.claimed == claims and walk.seen == 2
            else:
                with pytest.raises(DataError, match="4,400 bytes of memory"):
                    walk.over(file)


def test_arrays_declare_at_most_a_thousand_times_the_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("X", (1 << 20, 1001), "u1", chunks=(1 << 10, 11), compression="gzip")
    with h5py.File(tmp_path / "a.h5") as file, pytest.raises(DataError, match="claim"):
        check._Walk(1 << 20, 1 << 40).over(file)
    with h5py.File(tmp_path / "a.h5") as file:
        check._Walk(1_049_625, 1 << 40).over(file)  # a thousandth of the declared size, rounded up


@pytest.mark.parametrize(("depth", "fine"), [(51, True), (52, False)])
def test_groups_of_groups(tmp_path, depth, fine):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("/".join(["g"] * (depth - 1)))
        walk = check._Walk(1 << 20, 1 << 30)
        if fine:
            walk.over(file)
            assert walk.seen == depth - 1
        else:
            with pytest.raises(DataError, match="nested deeper"):
                walk.over(file)


def test_the_number_of_objects_is_limited(tmp_path, monkeypatch):
    assert check._OBJECTS == 10_000
    monkeypatch.setattr(check, "_OBJECTS", 5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for k in range(5):
            file.create_group(f"g{k}")
        check._Walk(1, 1 << 30).over(file)
        file.create_group("g5")
        with pytest.raises(DataError, match="more than 5 objects"):
            check._Walk(1, 1 << 30).over(file)


@pytest.mark.parametrize("text", ["a\0b", b"\xff\xfe"])
def test_strings_that_hdf5_cannot_store(tmp_path, text):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["s"] = np.array([b"fine", text if isinstance(text, bytes) else text.encode()])
        with pytest.raises(DataError, match="UTF-8"):
            check._Walk(1 << 20, 1 << 30).over(file)
    assert check._readable([b"a", "é"]) and not check._readable(["a", "b\0"])


def test_text_and_strings_declare_at_most_the_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("s", data=["abcde"] * 10, dtype=h5py.string_dtype())
        check._Walk(50, 1 << 30).over(file)
        with pytest.raises(DataError, match="more text"):
            check._Walk(49, 1 << 30).over(file)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("s", (65_537,), dtype="S1")
        check._Walk(65_537, 1 << 30).over(file)
        with pytest.raises(DataError, match="more strings"):
            check._Walk(65_536, 1 << 30).over(file)


@pytest.mark.parametrize("part", ["X", "obs", "var"])
def test_hdf5_files_of_other_kinds(tmp_path, part):
    path = h5ad(tmp_path)
    with h5py.File(path, "r+") as file:
        del file[part]
    with pytest.raises(DataError, match=r"is no \.h5ad file: X, obs or var is missing\."):
        check.look(path, 9, 9)


@pytest.mark.parametrize("change", ["obs", "var", "indices", "indptr"])
def test_inconsistent_parts(tmp_path, change):
    path = h5ad(tmp_path)
    with h5py.File(path, "r+") as file:
        name = {
            "obs": "obs/_index",
            "var": "var/_index",
            "indices": "X/indices",
            "indptr": "X/indptr",
        }[change]
        values = file[name][:-1]
        del file[name]
        file[name] = values
    with pytest.raises(DataError):
        check.look(path, 9, 9)


@pytest.mark.parametrize("place", ["X", "raw", "layers", "obsm", "varm", "obsp", "varp"])
def test_sparse_matrices_with_invalid_indices_are_named(place):
    adata = ad.AnnData(sparse.csr_matrix(np.eye(4)))
    check.check_content(adata)
    bad = sparse.csr_matrix(np.eye(4))
    if place == "X":
        adata.X = bad
        bad = adata.X
    elif place == "raw":
        adata.raw = ad.AnnData(bad)
        bad = adata.raw.X
    else:
        getattr(adata, place)["m"] = bad
        bad = getattr(adata, place)["m"]
    bad.indices[0] = 99
    with pytest.raises(DataError, match=place if place in ("X", "raw") else rf"{place}\['m'\]"):
        check.check_content(adata)


def test_names_are_shortened_for_messages():
    assert (
        check.plain("a\tb\x07c\nd") == "a?b?c\nd"
        and check.plain("x" * 99) == "x" * 60
        and check.plain("é" * 9, 3) == "ééé"
    )


def test_the_inspection_runs_confined(tmp_path):
    code = "from scmamba.serve import validation as check; check.limit_resources(); import resource as r\n"
    code += "print(*[r.getrlimit(k) for k in (r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_FSIZE, r.RLIMIT_CORE)])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert result.strip() == f"({2 << 30}, {2 << 30}) (20, 20) (0, 0) (0, 0)"
    command = [sys.executable, "-m", "scmamba.serve.validation", str(h5ad(tmp_path))]
    for limits, answer in (
        (["3", "4", "0"], {"kind": "h5ad", "cells": 3, "genes": 4}),
        (["3", "3", "0"], None),
        (["3", "4", "10"], None),
    ):
        found = json.loads(
            subprocess.run([*command, *limits], capture_output=True, text=True, check=True).stdout
        )
        assert found == answer if answer else list(found) == ["error"]


# -- zipped 10x folders --------------------------------------------------------------------------------


def zipped(
    folder: Path,
    matrix: str = HEAD + "3 2 3\n1 1 5\n3 1 2\n2 2 7\n",
    features: str = "E1\tA\nE2\tB\nE3\tA\n",
    barcodes: str = "c1\nc2\n",
    name: str = "genes.tsv",
    **more: str,
) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for entry, text in {
            "d/matrix.mtx": matrix,
            f"d/{name}": features,
            "d/barcodes.tsv": barcodes,
            **more,
        }.items():
            archive.writestr(entry, text)
    return folder / "a.zip"


def test_a_folder_made_by_hand(tmp_path):
    path = zipped(tmp_path, **{"__MACOSX/d/matrix.mtx": "x", "__MACOSX/d/genes.tsv": "x"})
    assert tenx.look(path, 1 << 30) == {"kind": "mtx", "cells": 2, "genes": 3}
    adata = tenx.to_adata(path, 1 << 30)
    assert adata.X.toarray().tolist() == [[5, 0, 2], [0, 7, 0]] and adata.obs_names.tolist() == [
        "c1",
        "c2",
    ]
    assert adata.var_names.tolist() == ["A", "B", "A-1"] and adata.var["gene_ids"].tolist() == [
        "E1",
        "E2",
        "E3",
    ]


@pytest.mark.parametrize(
    ("features", "names", "cells"),
    [
        ("E1\nE2\nE3\n", ["E1", "E2", "E3"], [[5, 0, 2], [0, 7, 0]]),
        (
            "E1\tA\tGene Expression\r\nE2\tB\tAntibody Capture\r\nE3\tC\tGene Expression\r\n",
            ["A", "C"],
            [[5, 2], [0, 0]],
        ),
        ("E1\tA\tPeaks\nE2\tB\tCustom\nE3\tC\tPeaks", ["A", "B", "C"], [[5, 0, 2], [0, 7, 0]]),
    ],
)
def test_features_with_one_two_or_three_columns(tmp_path, features, names, cells):
    adata = tenx.to_adata(
        zipped(tmp_path, features=features, barcodes="c1\tx\nc2\ty", name="features.tsv"), 1 << 30
    )
    assert (
        adata.var_names.tolist() == names
        and adata.X.toarray().tolist() == cells
        and adata.obs_names.tolist() == ["c1", "c2"]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"matrix": HEAD + "3 2 4\n1 1 5\n3 1 2\n2 2 7\n"}, "promises 4"),
        (
            {"matrix": HEAD + "3 2 7\n" + "1 1 5\n" * 6},
            "promises 7",
        ),  # a line has at least six bytes
        ({"features": "E1\nE2\n"}, "features has 2"),
        ({"barcodes": "c1\nc2\nc3\n"}, "barcodes has 3"),
        ({"d/features.tsv": "x"}, "holds 2"),
        ({"matrix": HEAD + "3 2\n"}, "no line with the numbers of genes"),
        ({"matrix": HEAD.replace("general", "symmetric") + "3 2 3\n"}, "no Matrix Market"),
        ({"name": "other.tsv"}, "holds none"),
        ({"matrix": HEAD.replace("integer", "pattern") + "3 2 3\n"}, "no Matrix Market"),
        ({"barcodes": ""}, "barcodes has 0"),
    ],
)
def test_folders_with_inconsistent_parts(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        tenx.look(zipped(tmp_path, **change), 1 << 30)


def test_matrices_with_comments_and_real_numbers(tmp_path):
    matrix = (
        HEAD.replace("integer", "real").upper().replace("%%MATRIXMARKET", "%%MatrixMarket")
        + "%c\n\n%d\n3 2 1\n1 2 5\n"
    )
    assert tenx.peek(zipped(tmp_path, matrix=matrix), 1 << 30) == (3, 2)


def test_a_part_unpacks_to_at_most_a_thousand_times_the_file(tmp_path):
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(bytes(100_000))
    assert (
        tenx.limit_of(tmp_path / "small", 1 << 40) == 1000 * 65_536
        and tenx.limit_of(tmp_path / "large", 1 << 40) == 10**8
    )
    assert tenx.limit_of(tmp_path / "large", 5) == 5
    path = zipped(tmp_path)
    longest = len(HEAD + "3 2 3\n1 1 5\n3 1 2\n2 2 7\n")
    assert tenx.peek(path, longest) == (3, 2)
    with pytest.raises(DataError, match="unpacks to more"):
        tenx.peek(path, longest - 1)


def test_how_many_bytes_a_value_may_have(tmp_path):
    """From "1 1 1" and the end of the line, to 64 on average and 64 kB beside them."""
    most = 64 * (3 + 1024)
    for values in ("1 1 5\n3 1 2\n2 2 7\n", "1 1 5\n3 1 2\n2 2 7" + "\n" * (most - 17)):
        assert tenx.peek(zipped(tmp_path, HEAD + "3 2 3\n" + values), 1 << 30) == (3, 2)
    for values, words in (
        ("1 1 5\n3 1 2\n2 2 7", "promises 3 values and holds 17 bytes; it is cut off"),
        ("1 1 5\n3 1 2\n2 2 7" + "\n" * (most - 16), "most of them blank"),
    ):
        with pytest.raises(DataError, match=words):
            tenx.peek(zipped(tmp_path, HEAD + "3 2 3\n" + values), 1 << 30)


def test_at_most_a_hundred_files(tmp_path):
    extra = {f"{k}.txt": "" for k in range(97)}
    assert tenx.peek(zipped(tmp_path, **extra), 1 << 30) == (3, 2)
    with pytest.raises(DataError, match="101 files"):
        tenx.peek(zipped(tmp_path, **extra, **{"97.txt": ""}), 1 << 30)


# -- the picture ---------------------------------------------------------------------------------------


def test_a_map_of_few_cells_is_their_first_components(tmp_path):
    from scmamba.serve.cell_map import cell_map

    rng = np.random.default_rng(0)
    basis = rng.normal(size=(15, 4)) * [9, 4, 0.3, 0.1] + 5
    adata = ad.AnnData(
        sparse.csr_matrix((15, 3)),
        obs=pd.DataFrame(index=[str(k) for k in range(15)]),
        obsm={"X_scmamba": basis},
    )
    found = cell_map(adata)
    assert found["method"] == "first components of the model's embedding" and found[
        "cells"
    ] == list(range(15))
    values, vectors = np.linalg.eigh(
        np.cov(basis.T)
    )  # by the covariance, independently of the code's decomposition
    for axis, vector in (
        ("x", vectors[:, values.argmax()]),
        ("y", vectors[:, values.argsort()[-2]]),
    ):
        assert min(found[axis]) == 0 and max(found[axis]) == 1
        assert abs(np.corrcoef(found[axis], (basis - basis.mean(axis=0)) @ vector)[0, 1]) > 0.9999
    assert cell_map(adata[:2].copy())["x"] in ([0.0, 1.0], [1.0, 0.0])


def test_a_map_of_counts_and_of_many_cells(monkeypatch):
    from scmamba.serve import cell_map as picture

    rng = np.random.default_rng(1)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(1.0, (40, 12)).astype(float)))
    monkeypatch.setattr(picture, "MOST", 12)
    found = picture.cell_map(adata)
    assert (
        found["method"] == "first components of 11 components of log1p CP10k"
        and len(found["x"]) == len(found["y"]) == 12
    )
    assert (
        found["cells"] == sorted(set(found["cells"]))
        and max(found["cells"]) > 11
        and found == picture.cell_map(adata)
    )
    assert picture.cell_map(adata, seed=1)["cells"] != found["cells"]


def test_a_map_is_written_next_to_its_result(tmp_path, monkeypatch):
    from scmamba.serve import cell_map as picture

    h5ad(tmp_path, obsm={"X_scmamba": np.array([[0.0, 1], [2, 0], [5, 5]])}).rename(
        tmp_path / "result.h5ad"
    )
    monkeypatch.setattr(sys, "argv", ["picture", str(tmp_path), "unconfined"])
    picture.main()
    assert json.loads((tmp_path / "picture.json").read_text()) == picture.cell_map(
        ad.read_h5ad(tmp_path / "result.h5ad")
    )


def test_the_process_of_a_map_has_a_memory_limit(tmp_path):
    h5ad(tmp_path, obsm={"X_scmamba": np.array([[0.0, 1], [2, 0], [5, 5]])}).rename(
        tmp_path / "result.h5ad"
    )
    command = [sys.executable, "-m", "scmamba.serve.cell_map", str(tmp_path)]
    little = subprocess.run([*command, str(50 << 20)], capture_output=True)
    assert little.returncode != 0 and not (tmp_path / "picture.json").exists()
    enough = subprocess.run([*command, str(4 << 30)], capture_output=True, text=True)
    assert enough.returncode == 0 and (tmp_path / "picture.json").exists(), enough.stderr
