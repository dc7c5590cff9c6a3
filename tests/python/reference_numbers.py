"""Reads and writes the reference numbers of ``tests/data/reference`` (sources in the README there).

A pack is an ``.npz`` archive inside xz. Floating-point columns are stored as planes of bytes (all first bytes, then all
second bytes, ...): exponents and signs then lie together and compress; every number comes back bit for bit.
"""

from __future__ import annotations

import io
import json
import lzma
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

FOLDER = Path(__file__).resolve().parents[1] / "data" / "reference"
TABLE = "model.backbone.gene_id_embedding.weight"
#: Where the gene embedding of each published checkpoint starts in the draws of the seed its config.json names.
SEED, FIRST_DRAW = 7, {"pretrain": 1_981_761, "celltype": 4_696_173}
F = np.float32


def write_pack(path: Path, arrays: dict[str, np.ndarray]) -> None:
    stored = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            planes = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize).T
            stored[f"{name}|{array.dtype.str}|{json.dumps(array.shape)}"] = np.ascontiguousarray(
                planes
            )
        else:
            stored[name] = array
    buffer = io.BytesIO()
    np.savez(buffer, **stored)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def read_pack(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes())), allow_pickle=False) as stored:
        for name in stored.files:
            array = stored[name]
            if "|" in name:
                name, dtype, shape = name.split("|")
                array = np.ascontiguousarray(array.T).view(dtype).reshape(json.loads(shape))
            arrays[name] = array
    return arrays


def frame(columns: dict[str, np.ndarray]) -> pd.DataFrame:
    """Text as Python strings and integers as int64, as if read from a csv file."""
    kinds = {"U": object, "u": np.int64}
    return pd.DataFrame(
        {
            name: array.astype(kinds.get(array.dtype.kind, array.dtype))
            for name, array in columns.items()
        }
    )


def drawn_table(first: int, shape: tuple[int, int]) -> np.ndarray:
    """0.3 x the standard normal numbers that torch's generator gives from the ``first`` draw on, to the last bit or four.

    torch fills blocks of 16 by Box and Muller: eight radii from the first eight uniform numbers, eight angles from the rest.
    numpy's Mersenne Twister promises the same stream in every release; torch's own numbers may differ by release and processor.
    """
    size = shape[0] * shape[1]
    draws = np.random.RandomState(SEED).randint(0, 2**32, size=first + size, dtype=np.uint32)[
        first:
    ]
    uniform = ((draws & 0xFFFFFF).astype(F) * F(2**-24)).reshape(-1, 16)
    logs = np.log((F(1) - uniform[:, :8]).astype(np.float64)).astype(F)
    radius, angle = np.sqrt(F(-2) * logs), (F(2) * F(np.pi) * uniform[:, 8:]).astype(np.float64)
    parts = radius * np.cos(angle).astype(F), radius * np.sin(angle).astype(F)
    return (np.concatenate(parts, axis=1) * F(0.3)).reshape(shape)


class MastSet:
    """One data set given to MAST and Seurat: the input, and every table that they returned."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._arrays = read_pack(FOLDER / f"mast_{name}.npz.xz")

    def names(self, pattern: str = "*") -> list[str]:
        return sorted({n.split("/")[0] for n in self._arrays if fnmatch(n.split("/")[0], pattern)})

    def table(self, name: str) -> pd.DataFrame:
        columns = {n.split("/")[1]: a for n, a in self._arrays.items() if n.split("/")[0] == name}
        return frame(columns)

    @cached_property
    def values(self) -> sp.csr_matrix:
        """Cells x genes, the input of MAST: stored values, or log1p(1e4 x count / total of the cell)."""
        matrix = self.table("matrix")
        shape = len(self.table("cells")), len(self.table("genes"))
        stored = sp.csr_matrix(
            (matrix["value"].astype(float), (matrix["cell"], matrix["gene"])), shape=shape
        )
        if matrix["value"].dtype.kind == "f":
            return stored
        totals = np.asarray(stored.sum(axis=1)).ravel()
        return sp.csr_matrix(sp.diags(1 / totals) @ stored * 1e4).log1p()


class Reference:
    """All reference numbers; files are restored in ``scratch``, tables and matrices are read once."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._sets: dict[str, MastSet] = {}

    def mast(self, name: str) -> MastSet:
        if name not in self._sets:
            self._sets[name] = MastSet(name)
        return self._sets[name]

    @cached_property
    def runs(self) -> MastSet:
        """Tables ``hyperparameters`` (one row per MAST run) and ``seurat_runs``."""
        return MastSet("runs")

    @cached_property
    def genes(self) -> dict[str, pd.DataFrame]:
        """``vocabulary``, ``orthologs`` and ``type_totals``: gene names of Ensembl, and total counts of real nuclei by type."""
        arrays = read_pack(FOLDER / "genes.npz.xz")
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            table, column = name.split("/")
            found.setdefault(table, {})[column] = array
        return {name: frame(columns) for name, columns in found.items()}

    @cached_property
    def official(self) -> Path:
        """The published checkpoints, their vocabulary and labels, and what the published code returned: real files."""
        folder = self._scratch / "official"
        folder.mkdir()
        arrays = read_pack(FOLDER / "published_code.npz.xz")
        expected = {
            name[len("expected/") :]: a
            for name, a in arrays.items()
            if name.startswith("expected/")
        }
        np.savez(folder / "expected.npz", **expected)
        for name, first in FIRST_DRAW.items():
            state = {
                n.split("/")[1]: torch.from_numpy(a.copy())
                for n, a in arrays.items()
                if n.startswith(f"{name}/")
            }
            correction = state[TABLE].numpy().astype(np.int32)
            table = drawn_table(first, correction.shape).view(np.int32) + correction
            state[TABLE] = torch.from_numpy(table.view(F))
            torch.save({"state_dict": state}, folder / f"{name}.ckpt")
        for name, text in arrays.items():
            if name.startswith("text/"):
                (folder / name[len("text/") :]).write_text(str(text))
        genes = [f"ensg{number:011d}" for number in np.cumsum(arrays["vocabulary/steps"])]
        (folder / "vocab.txt").write_text(
            "\n".join([*str(arrays["vocabulary/special"]).split(), *genes]) + "\n"
        )
        return folder


def write_pbmc(folder: Path) -> Path:
    """An ``.h5ad`` of 300 real cells (PBMC 3k of 10x Genomics): raw counts, Ensembl names, the published clusters."""
    arrays = read_pack(FOLDER / "pbmc3k_300_cells.npz.xz")
    shape = len(arrays["cells/cell"]), len(arrays["genes/symbol"])
    ends = np.append(0, np.cumsum(arrays["matrix/genes_of_cell"]))
    counts = sp.csr_matrix(
        (arrays["matrix/count"].astype(np.int32), arrays["matrix/gene"].astype(np.int32), ends),
        shape=shape,
    )
    cells = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical(arrays["cells/cell_type"])}, index=arrays["cells/cell"]
        ),
        var=pd.DataFrame({"ensembl_id": arrays["genes/ensembl_id"]}, index=arrays["genes/symbol"]),
    )
    path = folder / "pbmc3k_300_cells.h5ad"
    cells.write_h5ad(path, compression="gzip")
    return path
