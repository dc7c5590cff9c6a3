"""The plain form byte by byte: writing, reading, and every declared property that is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scmamba.serve import results
from scmamba.utils.errors import DataError
from scmamba.wire import scmb as wire
from scmamba.wire import tables

ONES = (
    struct.pack("<4i", 0, 1, 1, 3)
    + struct.pack("<3i", 1, 0, 1)
    + struct.pack("<3d", 5.0, 0.25, -2.0)
)


def array(name: str, kind: str, *shape: object) -> dict[str, object]:
    return {"name": name, "kind": kind, "shape": list(shape)}


#: Two genes x three cells: cell a has 5 of G2, cell b nothing, cell c 0.25 of G1 and -2 of G2.
MATRIX = [array("p", "int32", 4), array("i", "int32", 3), array("x", "float64", 3)]
GOOD = {"genes": ["G1", "G2"], "cells": ["a", "b", "c"], "arrays": MATRIX}


def file(
    folder: Path,
    header: object,
    body: bytes = ONES,
    length: int | None = None,
    magic: bytes = b"SCMB1\n",
) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "a.scmb"
    path.write_bytes(
        magic + struct.pack("<Q", len(text) if length is None else length) + text + body
    )
    return path


def test_reading_a_file_made_by_hand(tmp_path):
    path = file(tmp_path, GOOD)
    assert wire.read_shape(path) == (2, 3)
    adata = wire.to_adata(path)
    assert (
        adata.X.toarray().tolist() == [[0, 5], [0, 0], [0.25, -2]] and adata.X.dtype == np.float64
    )
    assert adata.obs_names.tolist() == ["a", "b", "c"] and adata.var_names.tolist() == ["G1", "G2"]
    header, arrays = wire.read(path)
    assert header == GOOD and {n: (a.dtype.str, a.tolist()) for n, a in arrays.items()} == {
        "p": ("<i4", [0, 1, 1, 3]),
        "i": ("<i4", [1, 0, 1]),
        "x": ("<f8", [5.0, 0.25, -2.0]),
    }


def test_writing_byte_by_byte(tmp_path):
    arrays = {
        "m": np.array([[1, 2, 3], [4, 5, 6]], np.int64),
        "f": np.array([0.5, np.nan], np.float32),
        "b": np.array([True, False]),
        "u": np.array([200], np.uint8),
    }
    wire.write(tmp_path / "a", {"task": "é"}, arrays)
    raw = (tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", raw[6:14])
    assert raw[:6] == b"SCMB1\n" and json.loads(raw[14 : 14 + length]) == {
        "task": "é",
        "arrays": [
            array("m", "int32", 2, 3),
            array("f", "float64", 2),
            array("b", "int32", 2),
            array("u", "int32", 1),
        ],
    }
    # R is column-major: the matrix is sent as 1, 4, 2, 5, 3, 6.
    assert raw[14 + length :] == struct.pack(
        "<6i2d2ii", 1, 4, 2, 5, 3, 6, 0.5, float("nan"), 1, 0, 200
    )
    again = wire.read(tmp_path / "a")[1]
    assert again["m"].tolist() == [[1, 2, 3], [4, 5, 6]] and again["b"].tolist() == [1, 0]


def test_columns_and_a_second_matrix(tmp_path):
    header = {
        "genes": ["G1", "G2"],
        "cells": ["a", "b", "c"],
        "obs": {"donor": ["x", None, "y"], "age": [1, 2.5, None]},
        "levels": {"type": ["N", "A"]},
        "flags": ["odd"],
        "arrays": [
            *MATRIX,
            array("layer/x", "float64", 1),
            array("layer/i", "int32", 1),
            array("layer/p", "int32", 4),
            array("obs/odd", "int32", 3),
            array("obs/type", "int32", 3),
            array("obs/depth", "float64", 3),
        ],
    }
    body = (
        ONES
        + struct.pack("<di4i", 7.0, 1, 0, 0, 1, 1)
        + struct.pack("<3i3i3d", 1, 0, 1, 1, -1, 0, 0.1, 2.0, -3.0)
    )
    adata = wire.to_adata(file(tmp_path, header, body))
    assert adata.layers["scmamba"].toarray().tolist() == [[0, 0], [0, 7], [0, 0]]
    obs = adata.obs
    assert list(obs) == ["donor", "age", "odd", "type", "depth"] and obs["odd"].dtype == bool
    assert obs["odd"].tolist() == [True, False, True]
    assert obs["type"].astype(object).where(obs["type"].notna(), None).tolist() == ["A", None, "N"]
    assert obs["type"].cat.categories.tolist() == ["N", "A"] and obs["depth"].tolist() == [
        0.1,
        2.0,
        -3.0,
    ]
    assert (
        obs["donor"].tolist()[::2] == ["x", "y"]
        and pd.isna(obs["donor"].iloc[1])
        and obs["age"].tolist()[:2] == [1, 2.5]
    )
    assert "scmamba" not in wire.to_adata(file(tmp_path, GOOD)).layers


X1 = [array("p", "int32", 4), array("i", "int32", 3), array("x", "float64", 3)]
REFUSED = {
    "another magic": (GOOD, ONES, {"magic": b"SCMB2\n"}, "plain form"),
    "a header longer than the file": (GOOD, ONES, {"length": 10_000}, "longer than the file"),
    "no JSON": (b"{", ONES, {}, "cannot be read"),
    "a kind nobody knows": (
        GOOD | {"arrays": [array("p", "int64", 4)]},
        ONES,
        {},
        "cannot be read",
    ),
    "five dimensions": (
        GOOD | {"arrays": [*X1, array("y", "int32", 0, 1, 1, 1, 1)]},
        ONES,
        {},
        "beyond any file",
    ),
    "a negative size": (
        GOOD | {"arrays": [*X1, array("y", "int32", -1, 0)]},
        ONES,
        {},
        "beyond any file",
    ),
    "a size of 2^48": (
        GOOD | {"arrays": [*X1, array("y", "int32", 0, 1 << 48)]},
        ONES,
        {},
        "beyond any file",
    ),
    "an array twice": (GOOD | {"arrays": [*X1, X1[0]]}, ONES + bytes(16), {}, "twice"),
    "a byte more": (GOOD, ONES + b"\0", {}, "promises"),
    "a byte less": (GOOD, ONES[:-1], {}, "promises"),
    "no values": (GOOD | {"arrays": X1[:2]}, ONES[:28], {}, "no matrix"),
    "pointers of too few cells": (GOOD | {"cells": ["a", "b"]}, ONES, {}, "column-compressed"),
    "pointers of too many cells": (
        GOOD | {"cells": ["a", "b", "c", "d"]},
        ONES,
        {},
        "column-compressed",
    ),
    "indices that are numbers of any kind": (
        GOOD | {"arrays": [X1[0], array("i", "float64", 3), X1[2]]},
        ONES + bytes(12),
        {},
        "whole",
    ),
    "pointers that are numbers of any kind": (
        GOOD | {"arrays": [array("p", "float64", 4), *X1[1:]]},
        ONES + bytes(16),
        {},
        "whole",
    ),
    "fewer values than indices": (
        GOOD | {"arrays": [*X1[:2], array("x", "float64", 2)]},
        ONES[:-8],
        {},
        "column-compressed",
    ),
    "values of two dimensions": (
        GOOD | {"arrays": [X1[0], array("i", "int32", 3, 1), array("x", "float64", 3, 1)]},
        ONES,
        {},
        "compressed",
    ),
    "half a second matrix": (
        GOOD | {"arrays": [*X1, array("layer/x", "float64", 0)]},
        ONES,
        {},
        "not whole",
    ),
    "genes that are no list": (GOOD | {"genes": "G1"}, ONES, {}, "names no genes"),
    "cells that are no list": (GOOD | {"cells": None}, ONES, {}, "names no genes"),
    "a gene that is a number": (GOOD | {"genes": ["G1", 2]}, ONES, {}, "text"),
    "a cell with a zero character": (GOOD | {"cells": ["a", "b", "c\0"]}, ONES, {}, "text"),
    "a lone surrogate": (GOOD | {"genes": ["G1", "\udfff"]}, ONES, {}, "text"),
    "a column of text too long": (GOOD | {"obs": {"d": ["a"] * 4}}, ONES, {}, "length"),
    "a column of two kinds": (GOOD | {"obs": {"d": ["a", 1, None]}}, ONES, {}, "neither"),
    "a number no double holds": (GOOD | {"obs": {"d": [1, 2, 1 << 53]}}, ONES, {}, "neither"),
    "a column without a name": (GOOD | {"obs": {"": ["a"] * 3}}, ONES, {}, "cannot be called"),
    "a column that is a path": (GOOD | {"obs": {"a/b": ["a"] * 3}}, ONES, {}, "cannot be called"),
    "a column named as the index": (
        GOOD | {"obs": {"_index": ["a"] * 3}},
        ONES,
        {},
        "cannot be called",
    ),
    "a typed column of another length": (
        GOOD | {"arrays": [*X1, array("obs/d", "int32", 2)]},
        ONES + bytes(8),
        {},
        "length",
    ),
    "a column twice": (
        GOOD | {"obs": {"d": ["a"] * 3}, "arrays": [*X1, array("obs/d", "int32", 3)]},
        ONES + bytes(12),
        {},
        "twice",
    ),
    "a level twice": (
        GOOD | {"levels": {"d": ["a", "a"]}, "arrays": [*X1, array("obs/d", "int32", 3)]},
        ONES + bytes(12),
        {},
        "levels",
    ),
    "codes that are no whole numbers": (
        GOOD | {"levels": {"d": ["a"]}, "arrays": [*X1, array("obs/d", "float64", 3)]},
        ONES + bytes(24),
        {},
        "levels",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_invalid_properties_are_refused_before_the_data_are_read(tmp_path, kind):
    header, body, more, words = REFUSED[kind]
    with pytest.raises(DataError, match=words):
        wire.read_shape(file(tmp_path, header, body, **more))


def test_properties_at_their_limit_are_accepted(tmp_path):
    header = GOOD | {
        "obs": {"d": [(1 << 53) - 1, -3, None]},
        "arrays": [*X1, array("y", "int32", 0, (1 << 48) - 1, 1, 1)],
    }
    assert wire.read_shape(file(tmp_path, header)) == (2, 3)
    assert wire.read_shape(file(tmp_path, GOOD | {"genes": ["é", "G\n2"]})) == (2, 3)


@pytest.mark.parametrize(
    ("p", "i", "words"),
    [
        ((1, 1, 1, 3), (1, 0, 1), "damaged"),
        ((0, 2, 1, 3), (1, 0, 1), "damaged"),
        ((0, 1, 1, 2), (1, 0, 1), "damaged"),
        ((0, 1, 1, 4), (1, 0, 1), "damaged"),
        ((0, 1, 1, 3), (1, 0, 2), "outside"),
        ((0, 1, 1, 3), (-1, 0, 1), "outside"),
    ],
)
def test_indices_out_of_range_are_refused(tmp_path, p, i, words):
    with pytest.raises(DataError, match=words):
        wire.to_adata(file(tmp_path, GOOD, struct.pack("<4i3i", *p, *i) + ONES[28:]))


@pytest.mark.parametrize(
    ("codes", "fine"), [((-1, 0, 1), True), ((-2, 0, 1), False), ((0, 0, 2), False)]
)
def test_codes_refer_to_levels(tmp_path, codes, fine):
    header = GOOD | {"levels": {"d": ["a", "b"]}, "arrays": [*X1, array("obs/d", "int32", 3)]}
    path = file(tmp_path, header, ONES + struct.pack("<3i", *codes))
    if fine:
        assert wire.to_adata(path).obs["d"].cat.codes.tolist() == list(codes)
    else:
        with pytest.raises(DataError, match="outside its levels"):
            wire.to_adata(path)


# -- results -------------------------------------------------------------------------------------------


def test_tables_are_unchanged_after_the_transfer(tmp_path):
    import anndata

    names = pd.Categorical(["x", None, "z"])
    numbers = pd.DataFrame(
        {"p": [1 / 3, np.nan, 1e-300], "n": [1, 2, 3], "sure": [True, False, True], "name": names},
        index=["G1", "G2", "G3"],
    )
    empty = pd.DataFrame({"a": np.array([], float), "b": np.array([], object)})
    about = {"notes": ["one", "two"], "settings": {"seed": 3}}
    results.write_result(
        tables.Tables({"markers": numbers, "runs": empty}, about), "markers", tmp_path
    )
    got = tables.read_tables(tmp_path / "result.scmb")
    assert got.about == about and list(got.frames) == ["markers", "runs"]
    expected = numbers.assign(n=numbers["n"].astype(float))
    pd.testing.assert_frame_equal(
        got.frames["markers"].astype({"name": object}),
        expected.astype({"name": object}),
        check_exact=True,
    )
    assert got.frames["markers"]["sure"].dtype == bool and got.frames["runs"].shape == (0, 2)
    header, arrays = wire.read(tmp_path / "result.scmb")
    assert header["task"] == "markers" and set(arrays) == {
        "markers/p",
        "markers/n",
        "markers/sure",
        "runs/a",
    }
    assert (
        header["tables"]["markers"]["rows"] == ["G1", "G2", "G3"]
        and header["tables"]["runs"]["rows"] is None
    )
    assert [c["kind"] for c in header["tables"]["markers"]["columns"]] == [
        "number",
        "number",
        "flag",
        "text",
    ]
    assert header["tables"]["markers"]["columns"][3]["values"] == ["x", None, "z"]
    kept = anndata.read_h5ad(tmp_path / "result.h5ad").uns["scmamba"]["markers"]
    assert kept["markers"]["p"].tolist()[0] == 1 / 3 and json.loads(kept["settings"]) == {"seed": 3}


def test_rows_without_names_have_none_afterwards(tmp_path):
    frame = pd.DataFrame({"p": [0.5, 0.25]})
    results.write_result(tables.Tables({"t": frame}), "markers", tmp_path)
    got = tables.read_tables(tmp_path / "result.scmb").frames["t"]
    assert got.index.tolist() == [0, 1] and got["p"].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("task", ["impute", "embed", "doublets"])
def test_only_additions_of_a_task_are_in_the_plain_form(tmp_path, task):
    import anndata
    from scipy import sparse

    adata = anndata.AnnData(
        sparse.csr_matrix(np.eye(3, 4)), obs=pd.DataFrame(index=["a", "b", "c"])
    )
    adata.layers["scmamba"] = sparse.csr_matrix(
        np.array([[0, 0.5, 0, 2], [0, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    )
    adata.obsm["X_scmamba"] = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    adata.obs["scmamba_type"] = pd.Categorical(["N", None, "A"])
    adata.obs["scmamba_score"], adata.obs["scmamba_low"], adata.obs["donor"] = (
        [0.5, np.nan, 1.0],
        [True, False, True],
        ["x"] * 3,
    )
    adata.uns["scmamba"] = {
        task: {"seed": np.int64(3), "rate": np.float64(0.5), "list": np.array([1, 2])}
    }
    results.write_result(adata, task, tmp_path)
    header, arrays = wire.read(tmp_path / "result.scmb")
    assert (header["task"], header["genes"], header["cells"]) == (task, 4, ["a", "b", "c"])
    assert header["obs"] == {
        "scmamba_type": ["N", None, "A"],
        "scmamba_score": [0.5, None, 1.0],
        "scmamba_low": [True, False, True],
    }
    assert header["provenance"] == {"seed": 3, "rate": 0.5, "list": [1, 2]}
    if task == "impute":
        assert {n: a.tolist() for n, a in arrays.items()} == {
            "x": [0.5, 2.0, 1.0],
            "i": [1, 3, 0],
            "p": [0, 2, 2, 3],
        }
    elif task == "embed":
        assert (
            arrays["embedding"].tolist() == [[1, 2], [3, 4], [5, 6]]
            and arrays["embedding"].dtype == np.float64
        )
    else:
        assert arrays == {}
    assert anndata.read_h5ad(tmp_path / "result.h5ad").obs["donor"].tolist() == ["x"] * 3


def test_a_model_is_packed_with_its_card(tmp_path):
    from conftest import small_model

    from scmamba.model import load_model
    from scmamba.model.hub import unpack_model

    model = small_model("expressed", n_genes=50)
    results.write_result((model, "# mine\n\nhow it came to be"), "finetune", tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["result.zip"]
    back = load_model(unpack_model(tmp_path / "result.zip", tmp_path / "back"), device="cpu")
    assert (tmp_path / "back" / "model_card.md").read_text() == "# mine\n\nhow it came to be"
    for name, value in model.network.state_dict().items():
        np.testing.assert_array_equal(back.network.state_dict()[name], value)


def test_missing_numbers_of_a_header_are_null(tmp_path):
    """Browsers and R refuse a text with NaN, which Python's json writes."""
    header = {
        "ambient": {"share": [np.float64("nan"), 0.25], "low": float("inf")},
        "kept": (1, "NaN"),
    }
    wire.write(tmp_path / "file.scmb", header, {})
    raw = (tmp_path / "file.scmb").read_bytes()[14:]

    def refused(name):
        raise AssertionError(f"{name} is not JSON")

    read_back = json.loads(raw, parse_constant=refused)
    assert read_back["ambient"] == {"share": [None, 0.25], "low": None}
    assert read_back["kept"] == [1, "NaN"]
