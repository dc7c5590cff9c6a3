"""Folders of results: files of other programs stay, earlier results are replaced on request."""

from __future__ import annotations

import json

import pytest

from scmamba.utils.errors import DataError
from scmamba.utils.result_folder import MANIFEST, refuse_existing_folder, result_folder


def _write(target, names, overwrite=False):
    with result_folder(target, overwrite) as path:
        for name in names:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text("new " + name)


def _found(folder):
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.is_file() and p.name != MANIFEST
    )


def test_a_new_folder_and_an_empty_one(tmp_path):
    (tmp_path / "b").mkdir()
    for name in "ab":
        _write(tmp_path / name, ["x.csv", "sub/y.csv"])
        assert _found(tmp_path / name) == ["sub/y.csv", "x.csv"]
        assert json.loads((tmp_path / name / MANIFEST).read_text()) == {
            "files": ["sub/y.csv", "x.csv"]
        }


def test_nothing_is_overwritten_by_default(tmp_path):
    (tmp_path / "thesis.docx").write_text("three years")
    with pytest.raises(DataError, match="not empty.*--overwrite"):
        _write(tmp_path, ["x.csv"])
    with pytest.raises(DataError, match="is a file"):
        refuse_existing_folder(tmp_path / "thesis.docx", overwrite=True)
    assert _found(tmp_path) == ["thesis.docx"]


def test_overwriting_replaces_own_files_only(tmp_path):
    target = tmp_path / "out"
    _write(target, ["x.csv", "old.csv"])
    (target / "thesis.docx").write_text("three years")
    (target / "x.csv").write_text("edited")
    _write(target, ["x.csv", "z.csv"], overwrite=True)
    assert _found(target) == ["thesis.docx", "x.csv", "z.csv"]
    assert (target / "x.csv").read_text() == "new x.csv"
    (target / "own.csv").write_text("mine")
    with pytest.raises(DataError, match="own.csv exists already and was not written by scMamba"):
        _write(target, ["own.csv", "x.csv"], overwrite=True)
    assert _found(target) == ["own.csv", "thesis.docx", "x.csv", "z.csv"]
    assert (target / "own.csv").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]  # no temporary folders


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    target, other = tmp_path / "out", tmp_path / "data.h5ad"
    other.write_text("cells")
    _write(target, ["x.csv"])
    (target / MANIFEST).write_text(json.dumps({"files": ["../data.h5ad", str(other), "x.csv"]}))
    _write(target, ["y.csv"], overwrite=True)
    assert other.read_text() == "cells" and _found(target) == ["y.csv"]
    (target / MANIFEST).write_text("{")
    _write(target, ["z.csv"], overwrite=True)
    assert _found(target) == ["y.csv", "z.csv"]


def test_a_failure_keeps_the_earlier_results(tmp_path):
    target = tmp_path / "out"
    _write(target, ["x.csv"])
    (target / "x.csv").write_text("before")
    with pytest.raises(KeyError), result_folder(target, overwrite=True) as path:
        (path / "x.csv").write_text("half")
        raise KeyError
    assert (target / "x.csv").read_text() == "before"


def test_overwriting_is_named_in_the_error(tmp_path):
    _write(tmp_path / "a", ["one.csv"])
    with pytest.raises(DataError, match="overwrite"), result_folder(tmp_path / "a"):
        pass
