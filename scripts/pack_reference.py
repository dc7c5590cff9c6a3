"""Build ``tests/data/reference`` from a folder of outputs of the published code, of MAST and of Seurat.

    python scripts/pack_reference.py REFERENCE_FOLDER DATA_FOLDER

REFERENCE_FOLDER holds ``mast/`` (csv tables and Matrix Market files of real runs) and ``official/`` (checkpoints, vocabulary and
outputs of the published code); DATA_FOLDER holds the public data sets that a slice, sums or gene names are taken from. Nothing is
rounded: every number is restored bit for bit, or this script fails.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.io as sio
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "python"))

from reference_numbers import (
    FIRST_DRAW,
    FOLDER,
    TABLE,
    MastSet,
    Reference,
    drawn_table,
    write_pack,
    write_pbmc,
)

FOR_R = (
    "lognorm.mtx.gz",
    "cells.csv.gz",
    "genes.csv.gz",
    "seurat_v4_default.csv.gz",
    "seurat_v5_default.csv.gz",
)


def read_csv(path: Path) -> pd.DataFrame:
    """A table with all digits of the file."""
    return pd.read_csv(path, float_precision="round_trip")


def columns(table: str, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns as arrays; integers in the smallest type, text as fixed-width characters."""
    arrays = {}
    for name in frame:
        values = frame[name].to_numpy()
        if values.dtype.kind == "i":
            values = values.astype(
                np.min_scalar_type(values.max(initial=0))
                if values.min(initial=0) >= 0
                else np.int64
            )
        elif values.dtype == object:
            values = frame[name].fillna("").astype(str).to_numpy().astype("U")
        arrays[f"{table}/{name}"] = values
    return arrays


def pack_mast(source: Path) -> None:
    """One pack per data set given to MAST and Seurat, and the few files the R tests read."""
    runs = {n: read_csv(source / f"{n}.csv") for n in ("hyperparameters", "seurat_runs")}
    write_pack(
        FOLDER / "mast_runs.npz.xz",
        {k: a for name, frame in runs.items() for k, a in columns(name, frame).items()},
    )
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        arrays: dict[str, np.ndarray] = {}
        for path in sorted(folder.glob("*.csv.gz")):
            arrays |= columns(path.name[: -len(".csv.gz")], read_csv(path))
        from_counts = (folder / "counts.mtx.gz").exists()
        matrix = sio.mmread(folder / ("counts.mtx.gz" if from_counts else "lognorm.mtx.gz")).tocoo()
        kind = np.min_scalar_type(matrix.data.max()) if from_counts else np.float64
        arrays |= {
            "matrix/gene": matrix.row.astype(np.uint16),
            "matrix/cell": matrix.col.astype(np.uint16),
            "matrix/value": matrix.data.astype(kind),
        }
        write_pack(FOLDER / f"mast_{folder.name}.npz.xz", arrays)
        check_mast(folder)
    for_r = ROOT / "tests" / "testthat" / "reference"
    for_r.mkdir(exist_ok=True)
    for name in FOR_R:
        shutil.copyfile(source / "real_pbmc_small" / name, for_r / name)


def check_mast(folder: Path) -> None:
    """Fail unless every column, and the input of MAST, is restored."""
    again = MastSet(folder.name)
    for path in sorted(folder.glob("*.csv.gz")):
        whole = read_csv(path)
        table = again.table(path.name[: -len(".csv.gz")])
        for column in whole:
            theirs = whole[column].fillna("") if whole[column].dtype == object else whole[column]
            assert np.array_equal(
                table[column], theirs, equal_nan=whole[column].dtype.kind == "f"
            ), (path, column)
    if (folder / "lognorm.mtx.gz").exists():
        seen = sio.mmread(folder / "lognorm.mtx.gz").T.tocsr()
        assert abs(again.values - seen).max() < 1e-15 * seen.max() * 8, folder


def pack_published(source: Path) -> None:
    """The published code: its checkpoints, vocabulary, labels and outputs."""
    arrays = {f"expected/{n}": a for n, a in np.load(source / "expected.npz").items()}
    for name, first in FIRST_DRAW.items():
        stored = torch.load(source / f"{name}.ckpt", map_location="cpu", weights_only=True)
        assert list(stored) == ["state_dict"]
        for key, tensor in stored["state_dict"].items():
            arrays[f"{name}/{key}"] = tensor.numpy()
        table = arrays[f"{name}/{TABLE}"]
        correction = table.view(np.int32) - drawn_table(first, table.shape).view(np.int32)
        assert np.abs(correction).max() < 10
        arrays[f"{name}/{TABLE}"] = correction.astype(np.int8)
    for file in sorted(source.glob("*.json")):
        if file.name != "config.json":
            arrays[f"text/{file.name}"] = np.array(file.read_text())
    lines = (source / "vocab.txt").read_text().split()
    special = [line for line in lines if line.startswith("[")]
    numbers = np.array([int(line[len("ensg") :]) for line in lines[len(special) :]])
    arrays |= {
        "vocabulary/special": np.array(" ".join(special)),
        "vocabulary/steps": np.diff(numbers, prepend=0),
    }
    write_pack(FOLDER / "published_code.npz.xz", arrays)
    with tempfile.TemporaryDirectory() as scratch:
        again = Reference(Path(scratch)).official
        for file in (
            "vocab.txt",
            *(f.name for f in source.glob("*.json") if f.name != "config.json"),
        ):
            assert (again / file).read_text().split() == (source / file).read_text().split(), file
        for name in FIRST_DRAW:
            mine, theirs = (
                torch.load(f / f"{name}.ckpt", weights_only=True)["state_dict"]
                for f in (again, source)
            )
            assert list(mine) == list(theirs) and all(
                torch.equal(mine[k], theirs[k]) for k in mine
            ), name
        mine, theirs = np.load(again / "expected.npz"), np.load(source / "expected.npz")
        assert all(
            np.array_equal(mine[k], theirs[k]) and mine[k].dtype == theirs[k].dtype for k in theirs
        )


def pack_genes(data: Path) -> None:
    """Gene names of Ensembl, and per gene the total counts of three types of nuclei."""
    vocabulary = read_csv(data / "scmamba_vocab_19306.csv")[["ensembl_id", "symbol"]]
    mouse = ad.read_h5ad(data / "marques2016_mouse_oligo_lineage_8691genes.h5ad", backed="r").var
    orthologs = pd.DataFrame(
        {
            "mouse": mouse.index.astype(str),
            "human_ensembl_id": mouse["human_ensembl_id"].astype(str),
        }
    )
    for name in ("ensembl_id", "human_symbol", "ortholog_one2one"):
        if name in mouse:
            orthologs[name] = (
                mouse[name].to_numpy()
                if mouse[name].dtype == bool
                else mouse[name].astype(str).to_numpy()
            )
    nuclei = ad.read_h5ad(data / "velmeshev2019_pfc_3types.h5ad")
    totals = pd.DataFrame({"gene": nuclei.var_names.astype(str)})
    for name in ("astrocyte", "microglia", "endothelial"):
        totals[name] = np.asarray(nuclei[nuclei.obs["cell_type"] == name].X.sum(axis=0)).ravel()
    tables = {"vocabulary": vocabulary, "orthologs": orthologs, "type_totals": totals}
    arrays = [columns(name, frame.reset_index(drop=True)) for name, frame in tables.items()]
    write_pack(FOLDER / "genes.npz.xz", {k: a for part in arrays for k, a in part.items()})


def pack_pbmc(data: Path) -> None:
    """300 of the 2,700 cells of PBMC 3k, drawn with a seed."""
    whole = ad.read_h5ad(data / "pbmc3k_10x.h5ad")
    chosen = np.sort(np.random.default_rng(0).choice(whole.n_obs, 300, replace=False))
    cells = whole[chosen].copy()
    matrix = cells.X.tocsr()
    matrix.sort_indices()
    arrays = {
        "matrix/genes_of_cell": np.diff(matrix.indptr).astype(np.uint16),
        "matrix/gene": matrix.indices.astype(np.uint16),
        "matrix/count": matrix.data.astype(np.min_scalar_type(matrix.data.max())),
        "cells/cell": cells.obs_names.to_numpy().astype("U"),
        "cells/cell_type": cells.obs["cell_type"].astype(str).to_numpy().astype("U"),
        "genes/symbol": cells.var_names.to_numpy().astype("U"),
        "genes/ensembl_id": cells.var["ensembl_id"].astype(str).to_numpy().astype("U"),
    }
    write_pack(FOLDER / "pbmc3k_300_cells.npz.xz", arrays)
    with tempfile.TemporaryDirectory() as scratch:
        again = ad.read_h5ad(write_pbmc(Path(scratch)))
        assert (again.X != cells.X).nnz == 0 and (
            again.obs["cell_type"] == cells.obs["cell_type"].astype(str)
        ).all()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    reference, data = map(Path, sys.argv[1:])
    FOLDER.mkdir(parents=True, exist_ok=True)
    pack_published(reference / "official")
    pack_genes(data)
    pack_pbmc(data)
    pack_mast(reference / "mast")
    for file in sorted(FOLDER.iterdir()):
        print(f"{file.stat().st_size:>9,}  {file.name}")
