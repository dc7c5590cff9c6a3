"""One file imputed by two real processes under torchrun: the same output as by one process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from scmamba.datasets import brain_cohort
from scmamba.imputation import distributed

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
OPTIONS = ("--adapt-steps", "0", "--force", "--device", "cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shared") / "cells.h5ad"
    cells = brain_cohort(150, n_donors=3, seed=7)[:, ::12].copy()
    cells.write_h5ad(path)
    return path


def scmamba(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = (
        []
        if processes == 1
        else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    )
    command = [sys.executable, *start, "-m", "scmamba", *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def contents(path: Path) -> dict[str, str]:
    """Every dataset and attribute of a file, by a digest of its values."""
    found: dict[str, str] = {}

    def digest(value: object) -> str:
        return hashlib.sha256(
            repr((np.asarray(value).dtype, np.asarray(value).tolist())).encode()
        ).hexdigest()

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found.update(
            {
                f"{name}@{key}": digest(value)
                for key, value in item.attrs.items()
                if not isinstance(value, h5py.Reference)
            }
        )
        if isinstance(item, h5py.Dataset):
            found[name] = digest(item[()])

    with h5py.File(path, "r") as opened:
        opened.visititems(visit)
    return found


@pytest.mark.parametrize(
    ("asked", "gpus", "device"),
    [
        (None, 2, "cuda:1"),
        ("cuda", 2, "cuda:1"),
        ("cuda", 8, "cuda:3"),
        ("cuda:0", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        (None, 0, None),
        ("cpu", 0, "cpu"),
    ],
)
def test_each_process_has_the_gpu_of_its_local_rank(asked, gpus, device, monkeypatch):
    """The fourth process of a machine; the number of GPUs is replaced, because tests run without any."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert distributed._device(asked) == device


@pytest.mark.slow
def test_two_processes_write_the_same_file_as_one(file, tmp_path):
    outputs = []
    for processes in (1, 2):
        outputs.append(tmp_path / f"{processes}.h5ad")
        done = scmamba(
            processes, "impute", str(file), "-o", str(outputs[-1]), *OPTIONS, "--batch-size", "16"
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("layers['scmamba']") == 1  # printed by one of the two
    one, two = map(contents, outputs)
    assert one.keys() == two.keys() and "layers/scmamba/data" in one
    assert [name for name in one if one[name] != two[name]] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1.h5ad",
        "2.h5ad",
    ]  # no partial file remains


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_of_them(file, tmp_path):
    done = scmamba(2, "impute", str(file), "-o", str(tmp_path / "nowhere" / "out.h5ad"), *OPTIONS)
    assert done.returncode != 0
    assert "does not exist. Create it" in done.stderr
    assert list(tmp_path.iterdir()) == []
