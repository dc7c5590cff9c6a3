"""The four studies as the paper and the published code describe them, and the stored results of the steps."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from scmamba.utils.atomic import atomic_path

BASE_URL = "https://ftp.ncbi.nlm.nih.gov/geo/series"
STEPS = ("download", "read", "prepare", "train", "analyze", "report", "all")
LEVELS = ("celltype", "subtype", "subcluster")
TASKS = (*LEVELS, "doublets", "imputation")
#: What is measured beside the tasks (analyze.py).
ANALYSES = ("detectors", "zeros", "cells", "genes", "degs")
PARTS = ("train", "validation", "test")
#: Types in the published order (``celltype.json``), and what is excluded from annotation (``celltype_dataset.py``; ours, and theirs).
TYPES = (
    "Astrocyte",
    "Microglia",
    "Oligodendrocyte",
    "OPC",
    "Excitatory",
    "Inhibitory",
    "Endothelial",
    "Pericyte",
)
NOT_CELLS = ("Doublet", "Unidentified")
LEFT_OUT = (
    *NOT_CELLS,
    "Double_negative_Neuron",
    "Double_positive_Neuron",
    "GNLY_CD44_myeloid_sub1",
    "Myeloid, not microglia",
)
#: Names of ``scmamba.prepare`` -> names of the published code.
PREPARED = {
    "Excitatory neuron": "Excitatory",
    "Inhibitory neuron": "Inhibitory",
    "Neuron, both kinds": "Double_positive_Neuron",
    "Neuron, neither kind": "Double_negative_Neuron",
}
#: Raw droplets: the number of genes in a cell (paper's filter of cells); the number of cells that Cell Ranger 2 expects by default.
LEAST_GENES, EXPECTED_CELLS = 200, 3000
#: Fewer cells than this are not scored (``nonzero_imputation``).
LEAST_TEST_CELLS = 50
#: Files with more columns have empty droplets, whatever their name: no sample has that many cells.
MOST_CELLS = 100_000


@dataclass(frozen=True)
class Study:
    """A study of the paper.

    Attributes
    ----------
    code
        Its name in the published code.
    files
        Under ``suppl/`` of its GEO series.
    pattern, groups, example
        A sample's name without its GSM number: ``donor`` and, if it is in the name, ``group``; the group's diagnosis; how names look.
    test
        Samples of the test set (published code).
    f1
        Published F1 macro of the three levels (paper; spec "Published results").
    cells
        Published numbers of training cells by task; of doublets, with the simulated ones.
    whole
        Types without subtypes (``subtype_dataset.py``).
    braak
        The diagnosis is the Braak stage, in the series matrix.
    droplets
        The files hold empty droplets, too.
    """

    name: str
    code: str
    accession: str
    files: tuple[str, ...]
    pattern: str
    groups: dict[str, str]
    example: str
    test: tuple[str, ...]
    f1: tuple[float, float, float]
    cells: dict[str, int]
    whole: tuple[str, ...] = ("OPC", "Pericyte")
    braak: bool = False
    droplets: bool = False


def _cells(*numbers: int) -> dict[str, int]:
    return dict(zip(TASKS, numbers))


_MIDBRAIN = "GSE157783_IPDCO_hg_midbrain"
STUDIES = {
    study.name: study
    for study in (
        Study(
            "Lau",
            "Lau_2020_PNAS",
            "GSE157827",
            ("GSE157827_RAW.tar",),
            r"(?P<donor>(?P<group>AD|NC)\d+)",
            {"AD": "AD", "NC": "Control"},
            "AD1, NC3",
            ("AD5", "AD21", "NC3", "NC18"),
            (0.9983, 0.6916, 0.5575),
            _cells(87_779, 86_665, 86_665, 98_074, 35_656),
        ),
        Study(
            "Leng",
            "Leng_2021_Nat_Neurosci",
            "GSE147528",
            ("GSE147528_RAW.tar",),
            r"(?:EC|SFG)(?P<donor>\d+)",
            {},
            "EC1, SFG10",
            ("SFG5", "EC1", "EC7", "EC8"),
            (0.9947, 0.6503, 0.5203),
            _cells(37_299, 36_796, 36_796, 42_836, 10_885),
            whole=("OPC", "Endothelial", "Pericyte"),
            braak=True,
            droplets=True,
        ),
        Study(
            "Smajic",
            "Smajic_2022_brain",
            "GSE157783",
            tuple(f"{_MIDBRAIN}_{part}.tar.gz" for part in ("UMI", "genes", "cell")),
            r"I?(?P<donor>(?P<group>C|PD)\d+)",
            {"C": "Control", "PD": "PD"},
            "C1, PD3, IPD3",
            ("C4", "PD3"),
            (0.9742, 0.3807, 0.3739),
            _cells(25_704, 25_541, 25_541, 31_457, 19_766),
        ),
        Study(
            "Zhu",
            "Zhu_2022_bioRxiv",
            "GSE202210",
            ("GSE202210_RAW.tar",),
            r"(?P<donor>[A-Z]*\d+(?P<group>HC|PD))(?:[_.-].+)?",
            {"HC": "Control", "PD": "PD"},
            "HSDG10HC, HSDG199PD",
            ("HSDG10HC", "HSDG199PD"),
            (0.9940, 0.6889, 0.5667),
            _cells(50_157, 49_456, 49_456, 55_834, 33_548),
        ),
    )
}


def place(study: Study, options: argparse.Namespace) -> Path:
    """The study's folder, made if absent."""
    folder = options.work / study.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The content of a file by :func:`write_json`; empty if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def made(target: Path, how: dict[str, Any]) -> bool:
    """Whether ``target`` exists and was made with these settings."""
    return target.exists() and read_json(note_of(target)) == how


def keep(cells: ad.AnnData, target: Path, how: dict[str, Any], compression: Any = None) -> None:
    """Write cells, then their settings."""
    note_of(target).unlink(missing_ok=True)
    with atomic_path(target) as temporary:
        cells.write_h5ad(temporary, compression=compression)
    write_json(note_of(target), how)


def note_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def obs_of(path: Path) -> pd.DataFrame:
    """The table of cells of an h5ad file."""
    backed = ad.read_h5ad(path, backed="r")
    backed.file.close()
    return backed.obs


def sha256_of(path: Path) -> str:
    """Hex digits of a file's SHA-256."""
    import pooch

    return pooch.file_hash(str(path), "sha256")
