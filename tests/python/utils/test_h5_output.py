"""HDF5 files on a disk that is full: one error, the file closed, and a process that goes on."""

from __future__ import annotations

import errno
import subprocess
import sys

import h5py
import numpy as np
import pytest
from scipy import sparse

from scmamba.datasets import brain_cohort
from scmamba.utils import h5_output
from scmamba.utils.h5_output import OutputFile, write_anndata

VALUES = np.random.default_rng(0).integers(0, 1 << 60, 300_000)


class FullDisk:
    """A file that takes so many bytes."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        if self._room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = self._file.write(data[: self._room])
        self._room -= done
        return done


@pytest.fixture()
def full(monkeypatch):
    """Limits the bytes that output files take from now on."""

    def limit(room: int) -> None:
        class Disk(h5_output._Disk):
            def __init__(self, path, *, new):
                super().__init__(path, new=new)
                self._file = FullDisk(self._file, room)

        monkeypatch.setattr(h5_output, "_Disk", Disk)

    return limit


def content(path) -> dict[str, tuple]:
    """Attributes, values and compression of everything in a file."""
    found = {}

    def visit(name, item):
        array = isinstance(item, h5py.Dataset)
        attributes = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
        found[name] = attributes, item[()] if array else None, item.compression if array else None

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return found


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_an_object_is_the_one_that_anndata_writes(tmp_path, compression, raw):
    cells = brain_cohort(60, n_donors=3, n_genes=400, seed=0)
    cells.layers["log"] = sparse.csr_matrix(np.log1p(cells.X.toarray()))
    cells.obsm["X_pca"] = np.random.default_rng(0).normal(size=(60, 5))
    cells.obs["sample"] = ["a", None, *"b" * 58]
    cells.var["symbol"] = [None, *"x" * 399]
    if raw:
        cells.raw = cells.copy()
    write_anndata(cells.copy(), tmp_path / "ours.h5ad", compression=compression)
    cells.copy().write_h5ad(tmp_path / "theirs.h5ad", compression=compression)
    ours, theirs = (content(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    assert list(ours) == list(theirs) and ("raw/X/data" in ours) == raw
    for name, (attributes, value, packed) in ours.items():
        assert attributes == theirs[name][0] and packed == theirs[name][2], name
        np.testing.assert_array_equal(value, theirs[name][1])
    assert ours["layers/log/data"][2] == compression


def test_a_file_is_changed_in_place(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["old"], file["removed"] = VALUES, [1]
    with OutputFile(tmp_path / "x.h5", "r+") as file:
        del file["removed"]
        file["new"] = VALUES[::-1]
        file.check()
        np.testing.assert_array_equal(file["old"][100:200], VALUES[100:200])
    with h5py.File(tmp_path / "x.h5") as file:
        assert sorted(file) == ["new", "old"]
        np.testing.assert_array_equal(file["old"][:], VALUES)
        np.testing.assert_array_equal(file["new"][:], VALUES[::-1])


@pytest.mark.parametrize("room", [0, 1, 100, 4096, 50_000, 2_000_000])
def test_the_first_failed_write_is_the_error_of_closing(tmp_path, full, room):
    full(room)
    with (
        pytest.raises(OSError, match="No space left") as error,
        OutputFile(tmp_path / "x.h5") as file,
    ):
        file["values"] = VALUES
        for i in range(50):
            file[f"group {i}/{i}"] = np.arange(i)
        file.flush()
        np.testing.assert_array_equal(
            file["group 7/7"][:], np.arange(7)
        )  # the library reads its own
        with pytest.raises(OSError):
            file.check()
    assert error.value.errno == errno.ENOSPC
    assert not file.id.valid


def test_the_error_of_the_disk_replaces_those_that_follow_from_it(tmp_path, full):
    full(5000)
    with (
        pytest.raises(OSError, match="No space left") as error,
        OutputFile(tmp_path / "x.h5") as file,
    ):
        file["values"] = VALUES
        file.flush()
        raise ValueError("a table could not be read again")
    assert isinstance(error.value.__context__, ValueError)


def test_memory_for_lost_writes_is_limited(tmp_path, full, monkeypatch):
    full(0)
    monkeypatch.setattr(h5_output, "_KEPT_BYTES", 100_000)
    file = OutputFile(tmp_path / "x.h5")
    for i in range(20):
        file.create_dataset(f"{i}", data=VALUES, chunks=(1000,))
        assert sum(map(len, file._disk._lost.values())) == file._disk._kept <= 100_000
    with pytest.raises(OSError, match="No space left"):
        file.close()


def test_a_process_goes_on_after_a_full_disk(tmp_path):
    """By a limit of the system; h5py's own files end such a process with a segmentation fault."""
    code = """
import os, resource, sys
import anndata as ad, numpy as np
from scmamba.data.h5ad_files import write_h5ad
from scmamba.data.h5ad_writer import H5adWriter
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import ScMambaError
cells = brain_cohort(60, n_donors=3, n_genes=1500, seed=0)
n = len(cells.obs_names)
def by_blocks(path):
    writer = H5adWriter(path, list(cells.var_names), list(cells.obs_names))
    x = cells.X.tocsr()
    try:
        for i in range(n):
            row = x[i]
            writer.append(row.data, row.indices, row.indptr)
        writer.finish()
    finally:
        writer.close()
for turn in range(8):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, -1))
    for write in (lambda path: write_h5ad(cells, path, verbose=False), by_blocks):
        try:
            write("full.h5ad")
            print("not refused")
        except (ScMambaError, OSError):
            pass
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    for write in (lambda path: write_h5ad(cells, path, verbose=False), by_blocks, cells.write_h5ad):
        write("x.h5ad")
        assert (ad.read_h5ad("x.h5ad").X != cells.X).nnz == 0
print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and done.stdout.split() == ["went", "on"], done.stdout + done.stderr
