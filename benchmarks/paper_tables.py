"""The paper's tables from its public studies: fetched from GEO, read, labelled, fine-tuned on, judged on samples left out.

    python benchmarks/paper_tables.py all --work FOLDER [--study Lau Leng Smajic Zhu] [--model NAME_OR_FOLDER] [--recipe paper|small]
    python benchmarks/paper_tables.py download|read|prepare|train|report --work FOLDER ...

Every step goes on where it stopped, and says which step to run first if something is missing. In FOLDER/STUDY: ``raw/`` (GEO's files and
their SHA-256), ``cells.h5ad`` (counts, donor, disease, sample), ``prepare/`` and ``labelled.h5ad``, ``splits.json``, ``TASK/`` (checkpoint,
loss, result); in FOLDER the tables, ``paper_tables.md`` and ``paper_tables.tsv``. Options must be the same for every step.

What the published code (github.com/okt0711/scMamba, commit 4c21f54) holds and what it does not: it names the types, the test samples
(``results/calculate_*.py``) and the numbers of training cells (``configs/dataset/*.yaml``). It has neither the label of each cell nor
the division of the other samples. Whoever has these from the authors gives ``--labels`` (TSV: study, id, celltype, subtype, subcluster)
and ``--splits`` (JSON: study -> train, validation, test -> samples or donors). Without them cells are labelled by ``scmamba.prepare``
(cell types only), the published samples are the test set, and the others are divided once by seed, donors kept whole.

Leng's files on GEO are all droplets, empty ones too: see ``call_cells``. The authors' own filtered objects (Synapse syn21788402) are
better, if at hand: they can be put through ``scmamba finetune`` as they are.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from scmamba._errors import ScMambaError
from scmamba._files import atomic_path
from scmamba._progress import progress, say

BASE_URL = "https://ftp.ncbi.nlm.nih.gov/geo/series"
STEPS = ("download", "read", "prepare", "train", "report", "all")
LEVELS = ("celltype", "subtype", "subcluster")
TASKS = (*LEVELS, "doublets", "imputation")
PARTS = ("train", "validation", "test")
#: Types in the published order (``celltype.json``), and what is left out of annotation (``celltype_dataset.py``; ours, and theirs).
TYPES = ("Astrocyte", "Microglia", "Oligodendrocyte", "OPC", "Excitatory", "Inhibitory", "Endothelial", "Pericyte")
NOT_CELLS = ("Doublet", "Unidentified")
LEFT_OUT = (*NOT_CELLS, "Double_negative_Neuron", "Double_positive_Neuron", "GNLY_CD44_myeloid_sub1", "Myeloid, not microglia")
#: Names of ``scmamba.prepare`` -> names of the published code.
PREPARED = {"Excitatory neuron": "Excitatory", "Inhibitory neuron": "Inhibitory", "Neuron, both kinds": "Double_positive_Neuron",
            "Neuron, neither kind": "Double_negative_Neuron"}  # fmt: skip
#: Raw droplets: a cell shows so many genes (paper's filter of cells); Cell Ranger 2 expects so many cells unless told.
LEAST_GENES, EXPECTED_CELLS = 200, 3000
#: Fewer cells than this are not scored (``nonzero_imputation``).
LEAST_TEST_CELLS = 50
#: Files with more columns hold empty droplets, whatever they are called: no sample has so many cells.
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
        A sample's name without its GSM number: ``donor`` and, where the name tells, ``group``; the group's diagnosis; how names look.
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
        Study("Lau", "Lau_2020_PNAS", "GSE157827", ("GSE157827_RAW.tar",), r"(?P<donor>(?P<group>AD|NC)\d+)",
              {"AD": "AD", "NC": "Control"}, "AD1, NC3", ("AD5", "AD21", "NC3", "NC18"),
              (0.9983, 0.6916, 0.5575), _cells(87_779, 86_665, 86_665, 98_074, 35_656)),
        Study("Leng", "Leng_2021_Nat_Neurosci", "GSE147528", ("GSE147528_RAW.tar",), r"(?:EC|SFG)(?P<donor>\d+)",
              {}, "EC1, SFG10", ("SFG5", "EC1", "EC7", "EC8"),
              (0.9947, 0.6503, 0.5203), _cells(37_299, 36_796, 36_796, 42_836, 10_885),
              whole=("OPC", "Endothelial", "Pericyte"), braak=True, droplets=True),
        Study("Smajic", "Smajic_2022_brain", "GSE157783", tuple(f"{_MIDBRAIN}_{part}.tar.gz" for part in ("UMI", "genes", "cell")),
              r"I?(?P<donor>(?P<group>C|PD)\d+)", {"C": "Control", "PD": "PD"}, "C1, PD3, IPD3", ("C4", "PD3"),
              (0.9742, 0.3807, 0.3739), _cells(25_704, 25_541, 25_541, 31_457, 19_766)),
        Study("Zhu", "Zhu_2022_bioRxiv", "GSE202210", ("GSE202210_RAW.tar",), r"(?P<donor>[A-Z]*\d+(?P<group>HC|PD))(?:[_.-].+)?",
              {"HC": "Control", "PD": "PD"}, "HSDG10HC, HSDG199PD", ("HSDG10HC", "HSDG199PD"),
              (0.9940, 0.6889, 0.5667), _cells(50_157, 49_456, 49_456, 55_834, 33_548)),
    )
}  # fmt: skip


def place(study: Study, options: argparse.Namespace) -> Path:
    """The study's folder, made if absent."""
    folder = options.work / study.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """What :func:`write_json` wrote; empty where there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """As JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def made(target: Path, how: dict[str, Any]) -> bool:
    """Whether ``target`` is there and was made in this way."""
    return target.exists() and read_json(_note(target)) == how


def keep(cells: ad.AnnData, target: Path, how: dict[str, Any], compression: Any = None) -> None:
    """Write cells, then how they were made."""
    _note(target).unlink(missing_ok=True)
    with atomic_path(target) as temporary:
        cells.write_h5ad(temporary, compression=compression)
    write_json(_note(target), how)


def _note(target: Path) -> Path:
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


# ------------------------------------------------------------------------------------------------------------ download


def download(study: Study, options: argparse.Namespace) -> None:
    """GEO's files into ``raw/``; what is there is compared with the SHA-256 noted when it was fetched."""
    folder = place(study, options) / "raw"
    folder.mkdir(exist_ok=True)
    for name, url in addresses(study, options.base_url).items():
        obtain(url, folder / name)


def addresses(study: Study, base: str) -> dict[str, str]:
    """File name -> address."""
    series = f"{base.rstrip('/')}/{study.accession[:-3]}nnn/{study.accession}"
    found = {name: f"{series}/suppl/{name}" for name in study.files}
    if study.braak:
        name = f"{study.accession}_series_matrix.txt.gz"
        found[name] = f"{series}/matrix/{name}"
    return found


def obtain(url: str, target: Path) -> None:
    """Fetch a file unless it is there, whole and unchanged.

    Raises
    ------
    ScMambaError
        It cannot be fetched, or is another file than the one noted.
    """
    notes = target.parent / "downloads.json"
    known = read_json(notes).get(target.name)
    problem: str | None = "is not there"
    if target.is_file():
        if known is None:  # put there by hand, or the run ended before it was noted
            problem = damage(target)
        elif target.stat().st_size < known["bytes"]:
            problem = f"is cut off ({target.stat().st_size:,} of {known['bytes']:,} bytes)"
        elif sha256_of(target) == known["sha256"]:
            return
        else:
            raise ScMambaError(
                f"{target} is not the file that was fetched (its SHA-256 differs from {notes.name}). Delete it to fetch it again, or "
                f"delete its entry in {notes.name} if you put this file there on purpose."
            )
    if problem is not None:
        say(f"{target.name} {problem}; fetching it", True)
        _fetch(url, target, known)
    write_json(notes, {**read_json(notes), target.name: {"url": url, "bytes": target.stat().st_size, "sha256": sha256_of(target)}})


def _fetch(url: str, target: Path, known: dict[str, Any] | None, attempts: int = 3) -> None:
    import logging

    import pooch
    import requests

    pooch.get_logger().setLevel(logging.ERROR)
    by_hand = f"See {url.rsplit('/', 1)[0]}/ for what there is; a file put by hand into {target.parent} is used."
    if os.environ.get("SCMAMBA_OFFLINE", "0") not in ("", "0"):
        raise ScMambaError(f"{target.name} is not (whole) in {target.parent} and SCMAMBA_OFFLINE is set. {by_hand}")
    target.unlink(missing_ok=True)  # pooch keeps what is there
    known_hash = None if known is None else f"sha256:{known['sha256']}"
    problem: Any = None
    for attempt in range(attempts):
        time.sleep(attempt)
        try:
            loader = pooch.HTTPDownloader(progressbar=_Bar(target.name), timeout=60)
            pooch.retrieve(url, known_hash=known_hash, fname=target.name, path=target.parent, downloader=loader)
        except ValueError as error:  # what pooch raises when the checksum differs; some errors of requests are ValueErrors, too
            if isinstance(error, requests.RequestException):
                raise ScMambaError(f"{url} cannot be fetched: {error}.") from error
            raise ScMambaError(
                f"{url} gives another file than the one fetched before ({known_hash}). If GEO has replaced it, delete "
                f"{target.parent / 'downloads.json'} and everything made from the old one. Nothing was kept."
            ) from error
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else 500
            problem = f"the server answered {code}"
            if code < 500:
                break
        except requests.RequestException as error:
            problem = f"{type(error).__name__}: {error}"
        except OSError as error:
            raise ScMambaError(f"{target.name} cannot be written to {target.parent}: {error.strerror}.") from error
        else:
            problem = damage(target)
            if problem is None:
                return
            target.unlink()
        say(f"{target.name}: {problem}", True)
    raise ScMambaError(f"{url} cannot be fetched ({problem}). {by_hand}")


class _Bar:
    """What pooch tells while it fetches: a line every half gigabyte."""

    def __init__(self, name: str) -> None:
        self.name, self.total, self.done, self.told = name, 0, 0, 0.0

    def update(self, size: int) -> None:
        """``size`` bytes more."""
        self.done += size
        if self.done - self.told >= 5e8:
            self.told = self.done
            say(f"{self.name}: {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB", True)

    def reset(self) -> None:
        """At the end pooch fills the bar once more."""
        self.told = float("inf")

    def close(self) -> None:
        """Nothing is open."""


def damage(path: Path) -> str | None:
    """What is wrong with a downloaded file, judged by its contents; ``None`` if it is whole."""
    with open(path, "rb") as file:
        head = file.read(512)
    try:
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                while packed.read(1 << 22):
                    pass
        elif tarfile.is_tarfile(path):
            with tarfile.open(path, "r:") as tar:
                end = max((m.offset_data + (m.size + 511) // 512 * 512 for m in tar), default=0)
            if path.stat().st_size < end + 512:
                return "is a tar archive that is cut off"
        elif not head.startswith(b"!"):  # a series matrix that the server has unpacked
            return "is neither a tar archive nor gzip; is it a page with an error?"
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"is damaged or cut off ({error})"
    return None


# ---------------------------------------------------------------------------------------------------------------- read


def read(study: Study, options: argparse.Namespace) -> None:
    """All samples of a study as ``cells.h5ad``.

    ``X`` int32 CSR counts; ``obs`` donor, disease, sample, accession (GSM), barcode; ``var`` ensembl_id, symbol.
    """
    folder = place(study, options)
    raw, target = folder / "raw", folder / "cells.h5ad"
    names = list(addresses(study, options.base_url))
    if missing := [name for name in names if not (raw / name).is_file()]:
        raise ScMambaError(f"{study.name}: {', '.join(missing)} is not in {raw}. Run the step 'download' first.")
    noted = read_json(raw / "downloads.json")
    how = {"files": {n: noted.get(n, {}).get("sha256") for n in names}, "expected_cells": options.expected_cells,
           "min_total": options.min_total}  # fmt: skip
    if made(target, how):
        say(f"{study.name}: {target.name} is there", True)
        return
    cells = read_midbrain(study, raw) if study.name == "Smajic" else read_archive(study, raw / study.files[0], options)
    keep(cells, target, how, "gzip")
    donors = cells.obs.groupby("disease", observed=True)["donor"].nunique()
    words = ", ".join(f"{number} {name}" for name, number in donors.items())
    say(f"{study.name}: {cells.n_obs:,} cells of {cells.obs['sample'].nunique()} samples, {cells.n_vars:,} genes; donors: {words}", True)


@dataclass
class Sample:
    """A sample in a GEO archive: its name without GSM number, that number, and its files by what they hold."""

    name: str
    accession: str
    files: dict[str, tarfile.TarInfo]


_TRIPLET = re.compile(r"(?P<sample>.+?)[._-](?P<part>barcodes|features|genes|matrix)\.(?:tsv|mtx)(?:\.gz)?", re.I)
_HDF5 = re.compile(r"(?P<sample>.+?)(?:[._-](?P<part>raw|filtered))?(?:[._-](?:gene|feature)_bc_matri(?:x|ces))?(?:[._-]h5)?\.h5", re.I)


def find_samples(members: Iterable[tarfile.TarInfo]) -> tuple[list[Sample], list[str]]:
    """Samples, and names of files that are not part of one: 10x triplets and HDF5 files are, whatever stands before and between."""
    samples: dict[str, Sample] = {}
    others = []
    for member in members:
        name = member.name.rsplit("/", 1)[-1]
        if not member.isfile() or name.startswith("."):
            continue
        found, kind = _TRIPLET.fullmatch(name), ""
        if found is None:
            found, kind = _HDF5.fullmatch(name), "h5"
        if found is None:
            others.append(name)
            continue
        gsm, own = re.fullmatch(r"(?:(GSM\d+)[_-])?(.+)", found["sample"]).groups()  # type: ignore[union-attr]
        part = (found["part"] or "").lower()
        part = f"h5 {part}".strip() if kind else "features" if part == "genes" else part
        samples.setdefault(found["sample"], Sample(own, gsm or "", {})).files[part] = member
    return list(samples.values()), others


def identify(study: Study, names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Sample name -> donor, diagnosis ('' where names do not tell it).

    Raises
    ------
    ScMambaError
        No name, or names of an unknown form; they are listed.
    """
    names = list(names)
    found = {name: re.fullmatch(study.pattern, name, re.I) for name in names}
    if not names:
        raise ScMambaError(f"{study.name} ({study.accession}): there is no sample. Names like {study.example} are expected.")
    if strange := [name for name, match in found.items() if match is None]:
        raise ScMambaError(
            f"{study.name} ({study.accession}): {len(strange)} of {len(names)} samples have names of an unknown form: "
            f"{', '.join(strange)}. Names like {study.example} are expected; if GEO has renamed its files, change the pattern of "
            f"{study.name} in {Path(__file__).name}."
        )
    return {n: (m["donor"].upper(), study.groups.get(m.groupdict().get("group", "").upper(), "")) for n, m in found.items() if m}


def read_archive(study: Study, archive: Path, options: argparse.Namespace) -> ad.AnnData:
    """The samples of a ``_RAW.tar``, one at a time."""
    with tarfile.open(archive) as tar:
        samples, others = find_samples(tar.getmembers())
        if not samples:
            listed = ", ".join(others[:10]) or "nothing"
            raise ScMambaError(f"{archive.name} holds no 10x file (barcodes, features, matrix, or .h5); it holds {listed}.")
        if others:
            say(f"{archive.name}: {len(others)} other files are passed over: {', '.join(others[:10])}", True)
        people = identify(study, [sample.name for sample in samples])
        if len(people) < len(samples):
            twice = sorted({s.name for s in samples if [t.name for t in samples].count(s.name) > 1})
            raise ScMambaError(f"{archive.name}: {', '.join(twice)} stands more than once; it must be one sample.")
        stages = braak_stages(archive.parent, study) if study.braak else {}
        parts = []
        with progress(f"Reading {study.name}", len(samples), unit="samples") as advance:
            for sample in samples:
                donor, disease = people[sample.name]
                cells = read_sample(study, tar, sample, archive.parent, options)
                disease = disease or stages.get(sample.accession) or stages.get(sample.name) or "unknown"
                cells.obs = cells.obs.assign(donor=donor, disease=disease, sample=sample.name, accession=sample.accession)
                cells.obs_names = [f"{sample.name}_{barcode}" for barcode in cells.obs["barcode"]]
                parts.append(cells)
                advance(1)
    return join(parts)


def read_sample(study: Study, tar: tarfile.TarFile, sample: Sample, work: Path, options: argparse.Namespace) -> ad.AnnData:
    """One sample: counts, ``obs`` barcode, ``var`` ensembl_id and symbol."""
    from scmamba.data.stores import open_store

    triplet = {"barcodes", "features", "matrix"}
    ways = [({"h5 filtered"}, False), (triplet, False), ({"h5"}, False), ({"h5 raw"}, True)]
    there = set(sample.files)
    wanted, raw = next(((way, raw) for way, raw in ways if way <= there), (set(), False))
    if not wanted:
        missing = ", ".join(sorted(triplet - there))
        raise ScMambaError(f"{study.name}: the sample {sample.name} lacks its file of {missing}; the archive has {', '.join(there)}.")
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for part in wanted:
            member = sample.files[part]
            end = ".gz" if member.name.endswith(".gz") else ""
            name = "sample.h5" if part.startswith("h5") else f"{part}.{'mtx' if part == 'matrix' else 'tsv'}{end}"
            with tar.extractfile(member) as source, open(Path(folder) / name, "wb") as copy:  # type: ignore[union-attr]
                shutil.copyfileobj(source, copy)
        path = Path(folder) if wanted == triplet else Path(folder) / "sample.h5"
        try:
            store = open_store(path, cache=Path(folder) / "converted", verbose=False)
            barcodes = _barcodes(store)
        except (ScMambaError, OSError, EOFError, KeyError, zlib.error) as error:
            raise ScMambaError(f"{study.name}: the sample {sample.name} cannot be read: {error}") from error
        droplets = study.droplets or raw or len(barcodes) > MOST_CELLS
        kept = _called(store, sample, options) if droplets else np.ones(len(barcodes), dtype=bool)
        blocks = [whole_numbers(store.read(a, b)[np.flatnonzero(kept[a:b])], sample.name) for a, b in store.blocks()]
        store.close()
    obs = pd.DataFrame({"barcode": barcodes[kept]}, index=barcodes[kept].astype(str))
    return ad.AnnData(sparse.csr_matrix(sparse.vstack(blocks, format="csr")), obs=obs, var=gene_table(store.var.index, store.var["symbol"]))


def _barcodes(store: Any) -> np.ndarray:
    from scmamba.data.files import open_backed
    from scmamba.data.stores import TenxStore

    if isinstance(store, TenxStore):
        with h5py.File(store.path) as file:
            return np.array([b.decode() for b in file[store.group]["barcodes"][:]], dtype=object)
    return open_backed(store.path).obs_names.to_numpy(dtype=object)


def _called(store: Any, sample: Sample, options: argparse.Namespace) -> np.ndarray:
    """(n,) which droplets are cells."""
    totals, genes = np.zeros(store.shape[0]), np.zeros(store.shape[0], dtype=np.int64)
    for start, stop in store.blocks():
        rows = store.read(start, stop)
        totals[start:stop], genes[start:stop] = np.asarray(rows.sum(axis=1)).ravel(), np.diff(rows.indptr)
    kept, least = call_cells(totals, genes, options.expected_cells, options.min_total)
    say(f"{sample.name}: {kept.sum():,} of {len(kept):,} droplets are cells (at least {least:,.0f} counts, {LEAST_GENES} genes)", True)
    if not kept.any():
        raise ScMambaError(f"{sample.name}: no droplet has {least:,.0f} counts and {LEAST_GENES} genes. Give a lower --min-total.")
    return kept


def call_cells(totals: np.ndarray, genes: np.ndarray, expected: int, min_total: float | None) -> tuple[np.ndarray, float]:
    """Which droplets are cells, and the least total counts of one.

    Cell Ranger 2's rule (the software of Leng's files): a tenth of the 99th percentile of the ``expected`` largest totals; ``min_total``
    in its place if given. And at least 200 detected genes. Simple, and blind to small nuclei among rich ambient RNA.
    """
    least = min_total if min_total is not None else float(np.percentile(np.sort(totals)[::-1][:expected], 99) / 10)
    return (totals >= least) & (genes >= LEAST_GENES), least


def whole_numbers(counts: sparse.csr_matrix, what: str) -> sparse.csr_matrix:
    """Counts as int32.

    Raises
    ------
    ScMambaError
        Values that are no counts.
    """
    data = counts.data
    if len(data) and (not np.isfinite(data).all() or data.min() < 0 or (data != np.rint(data)).any()):
        raise ScMambaError(f"{what}: the matrix holds values that are no counts (negative, missing or fractions). Raw counts are needed.")
    counts = sparse.csr_matrix(counts, dtype=np.int32)
    counts.eliminate_zeros()
    return counts


def gene_table(names: Iterable[Any], symbols: Iterable[Any] | None = None) -> pd.DataFrame:
    """``ensembl_id`` and ``symbol`` of genes given by either; what is not given is looked up in the package's table (GRCh38)."""
    from scmamba.genes import annotation

    known = annotation()
    given = pd.Series([str(name) for name in names])
    is_id = given.str.fullmatch(r"ENSG\d+(\.\d+)?(_\w+)?")
    bare = given.str.replace(r"\.\d+", "", regex=True)
    looked = bare.map(dict(zip(known.ensembl_id, known.symbol))).fillna("")
    by_symbol = dict(zip(known.symbol[::-1], known.ensembl_id[::-1]))
    ids = bare.where(is_id, given.map(by_symbol).fillna(""))
    shown = looked.where(is_id, given) if symbols is None else pd.Series([str(s) for s in symbols])
    table = pd.DataFrame({"ensembl_id": ids.to_numpy(dtype=object), "symbol": shown.to_numpy(dtype=object)})
    table.index = pd.Index(np.where(ids != "", ids, given).astype(object))
    if not table.index.is_unique:
        table.index = ad.utils.make_index_unique(table.index)
    return table


def join(parts: list[ad.AnnData]) -> ad.AnnData:
    """Samples one below the other; the genes are the union."""
    if sum(part.n_obs for part in parts) == 0:
        raise ScMambaError("There is no cell in any sample.")
    cells = ad.concat(parts, join="outer", fill_value=0)
    var = pd.concat([part.var for part in parts])
    cells.var = var[~var.index.duplicated()].loc[cells.var_names]
    cells.X = sparse.csr_matrix(cells.X, dtype=np.int32)
    if not cells.obs_names.is_unique:
        raise ScMambaError("Barcodes stand more than once within a sample.")
    return cells


def braak_stages(folder: Path, study: Study) -> dict[str, str]:
    """GSM number and title of each sample -> ``Braak 0`` and so on, from the series matrix; a message where it says nothing."""
    samples = series_matrix(folder / f"{study.accession}_series_matrix.txt.gz")
    stages = {}
    for sample in samples:
        text = "; ".join(f"{key}: {value}" for key, value in sample.items()).replace("_", " ")
        stage = re.search(r"(?i:braak)[^0-9;]*?\b(VI|IV|V|I{1,3}|[0-6])\b", text)
        if stage:
            number = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6}.get(stage[1], stage[1])
            stages[sample["accession"]] = stages[sample["title"]] = f"Braak {number}"
    if len(stages) < len(samples):
        keys = sorted({key for sample in samples for key in sample} - {"accession", "title"})
        say(f"{study.name}: the series matrix names no Braak stage for some samples; it tells {', '.join(keys) or 'nothing'}", True)
    return stages


def series_matrix(path: Path) -> list[dict[str, str]]:
    """One row a sample: ``accession``, ``title`` and its characteristics (``key: value``)."""
    content = path.read_bytes()
    lines = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8", "replace").splitlines()
    rows = [[cell.strip().strip('"') for cell in line.split("\t")] for line in lines if line.startswith("!Sample_")]
    names = {"!Sample_title": "title", "!Sample_geo_accession": "accession"}
    width = max((len(row) - 1 for row in rows if row[0] in names), default=0)
    samples: list[dict[str, str]] = [{"title": "", "accession": ""} for _ in range(width)]
    for row in rows:
        for sample, cell in zip(samples, row[1:]):
            if row[0] in names:
                sample[names[row[0]]] = cell
            elif row[0].startswith("!Sample_characteristics") and ":" in cell:
                key, value = cell.split(":", 1)
                sample[key.strip()] = value.strip()
    if not samples:
        raise ScMambaError(f"{path.name} names no sample; it is not a GEO series matrix.")
    return samples


def read_midbrain(study: Study, raw: Path) -> ad.AnnData:
    """Smajic's three files: a dense table of genes x cells, read row by row, and what its rows and columns are."""
    umi, genes_file, cell_file = (raw / name for name in study.files)
    about, genes = _table(cell_file), _table(genes_file)
    if missing := {"barcode", "patient"} - set(about):
        raise ScMambaError(f"{cell_file.name} has no column {', '.join(sorted(missing))}; it has {', '.join(about)}.")
    column = next((name for name in ("gene", "genes", "ensembl_id", "symbol") if name in genes), genes.columns[0])
    if "row" in genes:  # the order of the table's rows, whatever the order of this file
        genes = genes.sort_values("row", key=lambda order: order.astype(int), kind="stable")
    with tarfile.open(umi) as tar:  # the first file only: looking for more would unpack everything
        member = next((m for m in tar if m.isfile() and not m.name.rsplit("/", 1)[-1].startswith(".")), None)
        if member is None:
            raise ScMambaError(f"{umi.name} holds no file.")
        file: Any = tar.extractfile(member)
        file = gzip.GzipFile(fileobj=file) if member.name.endswith(".gz") else file
        names, rows, counts = dense_table(file, set(about["barcode"]), umi.name)
    if rows is None and counts.shape[0] != len(genes):
        raise ScMambaError(f"{umi.name} has {counts.shape[0]:,} rows and {genes_file.name} {len(genes):,} genes; they do not fit.")
    people = identify(study, about["patient"].unique())
    about = about.assign(plain=about["barcode"].map(_r_name)).set_index("barcode", drop=False)
    if not about.index.is_unique:
        raise ScMambaError(f"{cell_file.name}: barcodes stand more than once.")
    if not set(names) <= set(about.index):
        about = about.set_index("plain", drop=False)  # R writes AAAC.1 for AAAC-1
    if strangers := [name for name in names if name not in about.index]:
        raise ScMambaError(f"{umi.name}: {len(strangers):,} of {len(names):,} cells are not in {cell_file.name}: {strangers[0]}, ...")
    about = about.loc[names]
    donors = [people[patient][0] for patient in about["patient"]]
    obs = pd.DataFrame({"barcode": about["barcode"].to_numpy(), "donor": donors, "disease": [people[p][1] for p in about["patient"]],
                        "sample": donors, "accession": ""}, index=pd.Index(about["barcode"].to_numpy(dtype=object)))  # fmt: skip
    if "cell_ontology" in about:
        obs["cell_ontology"] = about["cell_ontology"].to_numpy()
    return join([ad.AnnData(sparse.csr_matrix(counts.T), obs=obs, var=gene_table(genes[column] if rows is None else rows))])


def _table(archive: Path) -> pd.DataFrame:
    """The one table in an archive, as text."""
    with tarfile.open(archive) as tar:
        inside = [m for m in tar.getmembers() if m.isfile() and not m.name.rsplit("/", 1)[-1].startswith(".")]
        if len(inside) != 1:
            listed = ", ".join(m.name for m in inside[:5])
            raise ScMambaError(f"{archive.name} holds {len(inside)} files ({listed}); one table is expected.")
        content = tar.extractfile(inside[0]).read()  # type: ignore[union-attr]
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return pd.read_csv(io.BytesIO(content), sep="\t", dtype=str, keep_default_na=False)


def _r_name(name: str) -> str:
    plain = re.sub(r"[^0-9A-Za-z_.]", ".", name)
    return f"X{plain}" if plain[:1].isdigit() else plain


def dense_table(file: Any, cells: set[str], what: str) -> tuple[list[str], list[str] | None, sparse.csr_matrix]:
    """Names of columns, names of rows (``None`` if the table has none) and int32 CSR of a table of counts.

    One row is in memory at a time. ``cells`` tells a header's first word from the name of a cell: a table may have row names, with or
    without a word above them.
    """
    text = io.TextIOWrapper(file, encoding="utf-8")
    header = _words(text.readline())
    known = cells | {_r_name(cell) for cell in cells}
    named = header[0] not in known and bool(set(header[1:]) & known)
    names, rows = header[1:] if named else header, []
    indices, values, ends = [], [], [0]
    for number, line in enumerate(text):
        if number == 0 and not named and len(_words(line)) == len(header) + 1:
            named = True
        if named:
            first, _, line = line.partition("\t")
            rows.append(first.strip('"'))
        row = _numbers(line)
        if len(row) != len(names) or not np.isfinite(row).all() or (row != np.rint(row)).any() or (row < 0).any():
            raise ScMambaError(f"{what}: line {number + 2} does not hold {len(names):,} counts, one a cell; is the file damaged?")
        at = np.flatnonzero(row)
        indices.append(at.astype(np.int32))
        values.append(row[at].astype(np.int32))
        ends.append(ends[-1] + len(at))
    if len(ends) == 1:
        raise ScMambaError(f"{what}: the table has no rows.")
    parts = np.concatenate(values), np.concatenate(indices), np.array(ends)
    return names, rows if named else None, sparse.csr_matrix(parts, shape=(len(ends) - 1, len(names)))


def _numbers(line: str) -> np.ndarray:
    """The numbers of a line; fewer than it has words, or none, if one is no number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # older NumPy warns and stops there, newer raises
        try:
            return np.fromstring(line, dtype=np.float64, sep="\t")
        except ValueError:
            return np.empty(0)


def _words(line: str) -> list[str]:
    return [word.strip('"') for word in line.rstrip("\r\n").split("\t")]


# ------------------------------------------------------------------------------------------------------------- prepare


def prepare(study: Study, options: argparse.Namespace) -> None:
    """Cells with their types as ``labelled.h5ad``: the authors' labels if given, else those of ``scmamba.prepare``.

    ``obs`` study, donor, sample, disease, ``celltype`` (as published, left-overs with their names) and for each level ``label_LEVEL``, ''
    where a cell has none.
    """
    folder = place(study, options)
    source, target = folder / "cells.h5ad", folder / "labelled.h5ad"
    if not source.is_file():
        raise ScMambaError(f"{study.name}: there is no {source}. Run the step 'read' first.")
    how = {"cells": read_json(_note(source)), "labels": labels_of(options), "min_donor_cells": options.min_donor_cells}
    if made(target, how):
        say(f"{study.name}: {target.name} is there", True)
        return
    cells = by_table(study, ad.read_h5ad(source), options.labels) if options.labels else by_markers(source, folder / "prepare", how)
    cells.obs["study"] = study.name
    for column in ("study", "donor", "sample", "disease", "celltype", *(f"label_{level}" for level in LEVELS)):
        cells.obs[column] = pd.Categorical(cells.obs[column].astype(str))
    keep(cells, target, how)
    numbers = cells.obs["celltype"].value_counts()
    say(f"{study.name}: {cells.n_obs:,} cells: " + ", ".join(f"{name} {number:,}" for name, number in numbers.items()), True)


def labels_of(options: argparse.Namespace) -> str:
    """Where labels come from, in words that change with the file."""
    if options.labels is None:
        return "scmamba.prepare"
    if not options.labels.is_file():
        raise ScMambaError(f"There is no file of labels {options.labels}.")
    return f"{options.labels.name} (SHA-256 {sha256_of(options.labels)[:16]})"


def by_markers(source: Path, folder: Path, how: dict[str, Any]) -> ad.AnnData:
    """Cell types by the paper's procedure, begun again only if cells or settings are others than last time; no subtypes."""
    import scmamba

    folder.mkdir(exist_ok=True)
    fresh = read_json(folder / "how.json") != how
    write_json(folder / "how.json", how)
    config = scmamba.PrepareConfig(min_cells_per_donor=how["min_donor_cells"])
    # The published code calls every sample a donor; of Leng's, two are of one person.
    prepared = scmamba.prepare(source, folder=folder, donor="sample", config=config, overwrite=fresh)
    people = obs_of(source)["donor"]
    obs = prepared.obs[["sample", "disease"]].assign(
        donor=people.loc[prepared.obs_names].astype(str).to_numpy(),
        celltype=prepared.obs["scmamba_type"].astype(str).replace(PREPARED).to_numpy(),
    )
    obs = obs.assign(label_celltype=obs["celltype"].where(obs["celltype"].isin(TYPES), ""), label_subtype="", label_subcluster="")
    return ad.AnnData(prepared.X, obs=obs, var=prepared.var[["symbol"]])


def by_table(study: Study, cells: ad.AnnData, file: Path) -> ad.AnnData:
    """Cell types, subtypes and subclusters of a table of labels; cells that are not in it are Unidentified (published code).

    Raises
    ------
    ScMambaError
        Columns are missing, no cell of the study is in the table, or types are unknown.
    """
    table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
    if missing := {"study", "id", "celltype"} - set(table):
        raise ScMambaError(f"{file.name} has no column {', '.join(sorted(missing))}; it has {', '.join(table)}.")
    own = table[table["study"].str.lower().isin(_names(study))].drop_duplicates("id").set_index("id")
    if not len(own):
        listed = ", ".join(table["study"].unique())
        raise ScMambaError(f"{file.name} has no cell of {study.name} (or {study.code}); its studies are {listed}.")
    ids = matching_ids(cells.obs, own.index, f"{file.name}, {study.name}")
    if strange := sorted(set(own["celltype"]) - {*TYPES, *LEFT_OUT, ""}):
        raise ScMambaError(f"{file.name}: unknown cell types {', '.join(strange)}. Known are {', '.join((*TYPES, *LEFT_OUT))}.")
    found = own.reindex(ids)
    obs = cells.obs[["donor", "sample", "disease"]].assign(celltype=found["celltype"].fillna("Unidentified").to_numpy())
    obs["celltype"] = obs["celltype"].replace("", "Unidentified")
    fine = {level: found[level].fillna("").to_numpy(dtype=str) if level in found else np.full(len(found), "") for level in LEVELS[1:]}
    obs["label_celltype"] = obs["celltype"].where(obs["celltype"].isin(TYPES), "")
    for level, names in fine.items():
        undivided = obs["celltype"].isin(study.whole).to_numpy() & bool((names != "").any())
        absent = np.isin(names, ("", "doublet", "Unidentified")) | np.isin(fine["subtype"], ("", "doublet", "Unidentified"))
        divided = np.where(absent, "", obs["celltype"].to_numpy(dtype=str) + "_" + names)
        obs[f"label_{level}"] = np.where(undivided, obs["celltype"], np.where(obs["label_celltype"] != "", divided, ""))
    deep = np.diff(sparse.csr_matrix(cells.X).indptr) >= LEAST_GENES
    return ad.AnnData(cells.X[deep], obs=obs[deep], var=cells.var)


def _names(study: Study) -> set[str]:
    return {study.name.lower(), study.code.lower(), study.accession.lower()}


def matching_ids(obs: pd.DataFrame, ids: pd.Index, what: str) -> pd.Index:
    """(n,) the cells' names in whichever form the table uses, as nobody has published one.

    Raises
    ------
    ScMambaError
        No form matches a single cell.
    """
    sample, barcode = (obs[c].astype(str).to_numpy(dtype=object) for c in ("sample", "barcode"))
    full = np.where(obs["accession"].astype(str) == "", sample, obs["accession"].astype(str).to_numpy(dtype=object) + "_" + sample)
    bare = np.array([b.split("-")[0] for b in barcode], dtype=object)
    forms = [obs.index.to_numpy(dtype=object), barcode, bare]
    forms += [a + "_" + b for who in (sample, full) for word in (barcode, bare) for a, b in ((who, word), (word, who))]
    usable = [form for form in map(pd.Index, forms) if form.is_unique]
    best = max(usable, key=lambda form: int(form.isin(ids).sum()))
    number = int(best.isin(ids).sum())
    if not number:
        raise ScMambaError(
            f"{what}: none of its {len(ids):,} ids is a cell here. Its first is '{ids[0]}'; the cells are called '{obs.index[0]}'."
        )
    say(f"{what}: {number:,} of {len(obs):,} cells are in it, {len(ids) - number:,} of its ids are not here", True)
    return best


# --------------------------------------------------------------------------------------------------------------- split


def splits(study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """The samples of train, validation and test, made once and kept in ``splits.json``.

    Raises
    ------
    ScMambaError
        The file names donors that do not exist, or a sample twice; another division is kept already.
    """
    target = place(study, options) / "splits.json"
    obs = obs_of(place(study, options) / "labelled.h5ad")
    if options.splits is not None:
        parts = given_splits(study, options.splits, obs)
        how = f"given ({options.splits.name})"
    elif options.test_samples == "published":
        parts = {"test": samples_of(study, study.test, obs, "the published test set")}
        how = f"published test samples, the others divided with seed {options.seed}"
    else:
        parts, how = {}, f"divided with seed {options.seed}"
    if target.is_file():
        kept = read_json(target)
        if kept["how"] != how or (options.splits is not None and any(kept[part] != parts[part] for part in PARTS)):
            raise ScMambaError(f"{target} holds another division ({kept['how']}; now: {how}). Delete it, or choose another --work.")
        return kept
    if options.splits is None:
        parts = _divide(study, options, parts.get("test", []))
    absent = set(obs["sample"].astype(str)) - {name for part in PARTS for name in parts[part]}
    if absent:
        say(f"{study.name}: {len(absent)} samples are in no part and not used: {', '.join(sorted(absent))}", True)
    write_json(target, {"how": how, **parts})
    return read_json(target)


def given_splits(study: Study, file: Path, obs: pd.DataFrame) -> dict[str, list[str]]:
    """What the authors' file says of a study; ``val`` is validation."""
    if not file.is_file():
        raise ScMambaError(f"There is no file of splits {file}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        own = next((value for key, value in content.items() if key.lower() in _names(study)), None)
        if own is None:
            raise ScMambaError(f"{file.name} does not divide {study.name}; it divides {', '.join(content)}.")
        own = {{"val": "validation", "valid": "validation"}.get(key, key): value for key, value in own.items()}
        parts = {part: samples_of(study, own.get(part, []), obs, f"{file.name}, {part}") for part in PARTS}
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        form = '{"Lau": {"train": [...], "validation": [...], "test": [...]}}'
        raise ScMambaError(f"{file.name} must be JSON of the form {form} ({error}).") from error
    for part in ("train", "test"):
        if not parts[part]:
            raise ScMambaError(f"{file.name} puts no donor of {study.name} in '{part}'.")
    several = [name for name in sum(parts.values(), []) if sum(parts.values(), []).count(name) > 1]
    if several:
        raise ScMambaError(f"{file.name}: {', '.join(sorted(set(several)))} of {study.name} stands in more than one part.")
    return parts


def samples_of(study: Study, names: Iterable[str], obs: pd.DataFrame, what: str) -> list[str]:
    """Samples named by themselves (a GSM number before them does not matter) or by their donor.

    Raises
    ------
    ScMambaError
        There is no such sample or donor.
    """
    people = obs[["sample", "donor"]].astype(str).drop_duplicates()
    found: list[str] = []
    unknown = []
    for name in names:
        plain = re.sub(r"^GSM\d+[_-]", "", str(name)).upper()
        own = people["sample"][people["sample"].str.upper() == plain]
        own = own if len(own) else people["sample"][people["donor"].str.upper() == plain]
        found += list(own)
        unknown += [] if len(own) else [str(name)]
    if unknown:
        raise ScMambaError(
            f"{what}: {study.name} has no donor or sample {', '.join(unknown)} with cells left; it has "
            f"{', '.join(sorted(people['sample']))}. --test-samples seed draws the test set from those."
        )
    return list(dict.fromkeys(found))


def _divide(study: Study, options: argparse.Namespace, test: list[str]) -> dict[str, list[str]]:
    """Donors divided by seed: a tenth for validation and, where none is given, a fifth for the test (as published)."""
    cells = collection(study, options, None, "donor")
    obs = obs_of(place(study, options) / "labelled.h5ad")[["sample", "donor"]].astype(str)
    rest = cells.take(~obs["sample"].isin(test).to_numpy())
    where = rest.split(validation=0.1, test=0 if test else 0.2, seed=options.seed).set_index("donor")["split"]
    people = obs.drop_duplicates().sort_values("sample")
    part = np.where(people["sample"].isin(test), "test", people["donor"].map(where))
    return {name: list(people["sample"][part == name]) for name in PARTS}


def collection(study: Study, options: argparse.Namespace, vocabulary: Any, donor: str, label: str = "celltype") -> Any:
    """The labelled cells as the package's training reads them."""
    from scmamba.data import Collection

    folder = place(study, options)
    return Collection([folder / "labelled.h5ad"], vocabulary=vocabulary, donor=donor, study="study", disease="disease", label=label,
                      cache=folder / "cache", verbose=False)  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- train


def train(study: Study, options: argparse.Namespace) -> None:
    """Fine-tune for each task and judge it on the test samples; a task that is done is not done again."""
    labelled = place(study, options) / "labelled.h5ad"
    note = read_json(_note(labelled))
    if not labelled.is_file() or not note:
        raise ScMambaError(f"{study.name}: there is no {labelled}. Run the step 'prepare' first.")
    if note["labels"] != labels_of(options):
        raise ScMambaError(f"{labelled} has labels of {note['labels']}, not of {labels_of(options)}. Run 'prepare' with these first.")
    parts = splits(study, options)
    for task in options.task:
        if task in LEVELS and not has_labels(labelled, task):
            say(f"{study.name}: there are no labels for {task}; it is left out", True)
            continue
        how = {"labelled": hashlib.sha256(json.dumps(note).encode()).hexdigest()[:16], "splits": parts, "model": identity(options.model),
               "recipe": options.recipe, "steps": options.steps, "seed": options.seed,
               "min_donor_cells": options.min_donor_cells}  # fmt: skip
        if task == "imputation":
            how["imputation_cells"] = options.imputation_cells
        folder = place(study, options) / task
        begun = any((folder / name).exists() for name in ("training", "model", "result.json"))
        kept = read_json(folder / "how.json") if begun else {}
        if other := [key for key in how if kept and kept.get(key) != how[key]]:
            raise ScMambaError(f"{folder} holds a run with other settings ({', '.join(other)}). Delete it, or choose another --work.")
        folder.mkdir(exist_ok=True)
        write_json(folder / "how.json", how)
        if (folder / "result.json").is_file():
            say(f"{study.name}, {task}: done already", True)
            continue
        say(f"{study.name}, {task}", True)
        result = run_task(study, task, parts, folder, options)
        write_json(folder / "result.json", {**result, "labels": note["labels"], "splits": parts["how"], "model": identity(options.model),
                                            "recipe": options.recipe, "steps": options.steps, "seed": options.seed})  # fmt: skip


def identity(model: str) -> str:
    """A model's name; of a folder or file, with something that changes with the weights."""
    weights = next((p for p in (Path(model) / "model.safetensors", Path(model)) if p.is_file()), None)
    return model if weights is None else f"{model} (SHA-256 {sha256_of(weights)[:16]})"


def has_labels(labelled: Path, level: str) -> bool:
    """Whether some cell has a label of the level."""
    return bool((obs_of(labelled)[f"label_{level}"].astype(str) != "").any())


def run_task(study: Study, task: str, parts: dict[str, Any], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune and judge: numbers of cells, scores, and what they were measured with."""
    import scmamba
    from scmamba.model import load_model, save_checkpoint
    from scmamba.training.classes import MAX_SINGLETS
    from scmamba.training.engine import number_of_processes, training_device
    from scmamba.training.settings import read_settings

    verb = {"doublets": "doublets", "imputation": "impute"}.get(task, "annotate")
    # The published subtypes and subclusters have ten epochs (configs/experiment), everything else five.
    epochs = 10.0 if task in LEVELS[1:] and options.recipe == "paper" and not options.steps else None
    given = {"steps": options.steps, "epochs": epochs, "seed": options.seed, "min_donor_cells": options.min_donor_cells}
    settings, _ = read_settings(verb, options.recipe, None, given)
    start, started = load_model(options.model), time.perf_counter()
    cells = task_cells(study, task, parts, start.genes, settings, options)
    if task == "imputation" and min(len(cells["test"]), options.imputation_cells) < LEAST_TEST_CELLS:
        raise ScMambaError(
            f"{study.name}: imputation is judged on at least {LEAST_TEST_CELLS} test cells; {len(cells['test'])} pass the recipe's filters "
            f"(more than {settings.above:g} counts), and --imputation-cells is {options.imputation_cells}. Leave it out with --task."
        )
    if (folder / "model" / "config.json").is_file():
        tuned = load_model(folder / "model")
    else:
        loop = settings.loop(len(cells["train"]), number_of_processes(), training_device().type == "cuda")
        tuned = fine_tune(verb, start, cells, settings, loop, folder)
        save_checkpoint(tuned, folder / "model", card=f"# {study.name}, {task}\n\nFine-tuned by `benchmarks/paper_tables.py` from "
                        f"{options.model}, recipe {options.recipe}. Training samples: {', '.join(parts['train'])}.\n\n"
                        f"```yaml\n{settings.text()}```\n")  # fmt: skip
    judge = {"doublets": judge_doublets, "imputation": judge_imputation}.get(task, judge_types)
    scores = judge(tuned, cells["test"], settings, study, options)
    people = obs_of(place(study, options) / "labelled.h5ad")[["sample", "donor"]].astype(str).drop_duplicates()
    people = people.set_index("sample")["donor"]
    shared = sorted(set(people.loc[parts["test"]]) & set(people.loc[parts["train"]]))
    numbers = {f"{part}_cells": len(cells[part]) if part in cells else 0 for part in PARTS}
    if task == "doublets":
        numbers["train_cells"] = min(numbers["train_cells"], MAX_SINGLETS)
    return {"task": task, **numbers, "scores": scores, "shared_donors": shared, "device": str(tuned.device), "version": scmamba.__version__,
            "seconds": round(time.perf_counter() - started)}  # fmt: skip


def task_cells(
    study: Study, task: str, parts: dict[str, Any], vocabulary: Any, settings: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """The cells of each part that the task is about: labelled ones, or all but doublets and unidentified ones; the recipe's filters."""
    level = f"label_{task}" if task in LEVELS else "celltype"
    cells = collection(study, options, vocabulary, "sample", level)
    exclude = ("",) if task in LEVELS else NOT_CELLS
    limits = {"min_total": settings.min_total, "min_donor_cells": settings.min_donor_cells, "above": settings.above or None}
    cells = cells.filter(**limits, exclude=exclude)
    names = cells.column("donor")
    names = np.asarray(names.categories)[names.codes].astype(str)
    found = {part: np.isin(names, parts[part]) for part in PARTS}
    for part in ("train", "test"):
        if not found[part].any():
            raise ScMambaError(
                f"{study.name}, {task}: no cell of the samples for {part} ({', '.join(parts[part])}) passes the recipe's filters: "
                f"{settings.min_total:g} counts{f', more than {settings.above:g}' if settings.above else ''}, "
                f"{settings.min_donor_cells} cells a sample."
            )
    return {part: cells.take(mask) for part, mask in found.items() if mask.any()}


def fine_tune(verb: str, start: Any, cells: dict[str, Any], settings: Any, loop: Any, folder: Path) -> Any:
    """The package's own training, with the state in ``folder`` so that a stopped run goes on."""
    from scmamba.training import finetune
    from scmamba.training.classes import finetune_classes

    held_out, work, name = cells.get("validation"), folder / "training", f"{folder.parent.name}-{folder.name}"
    if verb == "impute":
        return finetune(cells["train"], model=start, task=verb, loop=loop, sequence=settings.sequence(),
                        held_out=() if held_out is None else held_out, folder=work, name=name, seed=settings.seed)  # fmt: skip
    return finetune_classes(verb, cells["train"], model=start, loop=loop, sequence=settings.sequence(), held_out=held_out,
                            balance=settings.balance, recipe=settings.doublet_recipe, fraction=settings.doublet_fraction, folder=work,
                            name=name)  # fmt: skip


def judge_types(tuned: Any, cells: Any, settings: Any, study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """F1 macro, micro and weighted over all test cells; a type that training never saw counts as missed."""
    from scmamba.evaluation.annotation import annotation_scores, per_class

    logits = np.concatenate(list(all_logits(tuned, cells)))
    called = np.array(tuned.labels, dtype=object)[logits.argmax(axis=1)].astype(str)
    truth = np.asarray(cells.column("label")).astype(str)
    scores = annotation_scores(truth, called)
    classes = per_class(truth, called)["f1"]
    return {**{key: scores[key] for key in ("macro", "micro", "weighted")}, "classes": {name: float(f1) for name, f1 in classes.items()}}


def all_logits(tuned: Any, cells: Any, block: int = 512) -> Iterator[np.ndarray]:
    """(r, classes) logits, block by block, in the order of the cells (of one file)."""
    from scmamba.training.classes import sample_logits
    from scmamba.training.feeds import CollectionFeed

    feed = CollectionFeed(cells, seed=0, similar=False)
    tuned.network.eval()
    with progress("Judging", len(cells), unit="cells") as advance:
        for first in range(0, len(cells), block):
            part = cells.read_sorted(cells.cells[first : first + block])
            yield sample_logits(tuned.network, list(feed.parts(part))).numpy()
            advance(len(part))


def judge_doublets(tuned: Any, cells: Any, settings: Any, study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """Single test cells against doublets simulated from them as in training; called is what the network finds likelier (published code)."""
    from scmamba.evaluation.doublets import doublet_scores
    from scmamba.training.classes import label_doublets, sample_logits

    made_of = label_doublets(cells, seed=options.seed + 1, fraction=settings.doublet_fraction, recipe=settings.doublet_recipe)
    parts = made_of.sample(sys.maxsize)
    truth = np.concatenate([made_of.codes(part) for part in parts]) == 1
    tuned.network.eval()
    logits = sample_logits(tuned.network, parts).double().numpy()
    score = logits[:, tuned.labels.index("doublet")] - logits[:, tuned.labels.index("singlet")]
    return doublet_scores(truth, score, called=score > 0)


def judge_imputation(tuned: Any, cells: Any, settings: Any, study: Study, options: argparse.Namespace) -> dict[str, Any]:
    """Squared error and Pearson's r on log1p(CP10k) of hidden non-zero values, in five groups, beside two simple predictors."""
    from scmamba.evaluation import nonzero_imputation

    chosen = cells.cells
    if len(chosen) > options.imputation_cells:
        chosen = np.sort(np.random.default_rng(options.seed).choice(chosen, options.imputation_cells, replace=False))
    test = ad.read_h5ad(place(study, options) / "labelled.h5ad", backed="r")[chosen].to_memory()
    table = nonzero_imputation(test, {"fine-tuned": tuned}, predictors=["gene_rate", "neighbour_rate"], min_total=0, seed=options.seed)
    rows = {name: {key: float(row[key]) for key in ("mse", "pearson", "deviance")} for name, row in table.iterrows()}
    return {"rows": rows, "cells": table.attrs["cells"], "values": table.attrs["values"]}


# -------------------------------------------------------------------------------------------------------------- report


def report(options: argparse.Namespace) -> str:
    """The tables of whatever is done, beside the published numbers; as Markdown and TSV."""
    results: Results = {name: {} for name in STUDIES}
    for name in STUDIES:
        for task in TASKS:
            if found := read_json(options.work / name / task / "result.json"):
                results[name][task] = found
    if not any(results.values()):
        raise ScMambaError(f"There is no result in {options.work}. Run the step 'train' first.")
    text = "\n\n".join([
        "# The paper's tables, from GEO",
        "Made by `benchmarks/paper_tables.py`. 'Published' is the paper's scMamba; its numbers of training cells are those of its code. "
        "A dash: not measured here, or not published in the code or copied here from the paper.",
        *_deviations(results),
        "## Cell types (F1 on the test samples)", type_table(results),
        "## Doublets (simulated, on the test samples)", doublet_table(results),
        "## Imputation of non-zero values (test samples)", imputation_table(results),
        "## How", *_how(results),
    ]) + "\n"  # fmt: skip
    table = long_table(results).to_csv(sep="\t", index=False, lineterminator="\n")
    for name, content in (("paper_tables.md", text), ("paper_tables.tsv", table)):
        with atomic_path(options.work / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    say(f"{options.work / 'paper_tables.md'} and .tsv", True)
    return text


Results = dict[str, dict[str, dict[str, Any]]]


def type_table(results: Results) -> str:
    """Markdown: a row for each study and level."""
    rows = []
    for name, study in STUDIES.items():
        for level, published in zip(LEVELS, study.f1):
            own = results[name].get(level)
            scores = [own["scores"][key] for key in ("macro", "micro", "weighted")] if own else [None] * 3
            rows.append([name, level, published, *scores, study.cells[level], *(_cells_of(own))])
    head = ["study", "level", "F1 macro, published", "F1 macro, here", "F1 micro, here", "F1 weighted, here",
            "training cells, published", "training cells, here", "test cells, here"]  # fmt: skip
    return markdown(head, rows)


def doublet_table(results: Results) -> str:
    """Markdown: a row for each study."""
    keys, rows = ("precision", "recall", "AUROC", "AUPRC", "prevalence"), []
    for name, study in STUDIES.items():
        own = results[name].get("doublets")
        rows.append([name, *([own["scores"][key] for key in keys] if own else [None] * 5), study.cells["doublets"], *_cells_of(own)])
    head = ["study", *keys, "training cells with doublets, published", "without, here", "test cells without, here"]
    return markdown(head, rows)


def imputation_table(results: Results) -> str:
    """Markdown: a row for each study and predictor."""
    rows: list[list[Any]] = []
    for name, study in STUDIES.items():
        own = results[name].get("imputation")
        scored = own["scores"]["rows"] if own else {"fine-tuned": {"mse": None, "pearson": None}}
        rows += [[name, row, value["mse"], value["pearson"], study.cells["imputation"], *_cells_of(own)] for row, value in scored.items()]
    return markdown(["study", "predictor", "MSE", "Pearson r", "training cells, published", "here", "test cells, here"], rows)


def _cells_of(own: dict[str, Any] | None) -> list[int | None]:
    if own is None:
        return [None, None]
    return [own["train_cells"], own["scores"].get("cells", own["test_cells"])]


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table; fractions with four digits, thousands apart, a dash for nothing."""

    def shown(value: Any) -> str:
        if isinstance(value, float):
            return "undefined" if np.isnan(value) else f"{value:.4f}"
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else value

    lines = [head, ["---"] * len(head), *([shown(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _deviations(results: Results) -> list[str]:
    """What makes the numbers here other than the paper's, said before any number."""
    done = [own for tasks in results.values() for own in tasks.values()]
    lines = []
    if any(own["steps"] for own in done):
        steps = ", ".join(str(number) for number in sorted({own["steps"] for own in done if own["steps"]}))
        lines.append(f"**A trial: models were trained for {steps} steps only. Their scores say nothing about the method.**")
    if any(own["recipe"] != "paper" for own in done):
        lines.append("**Some models were not trained by the paper's recipe (see below).**")
    if any(own["labels"] == "scmamba.prepare" for own in done):
        lines.append("The paper's label of each cell is not published. Labels of `scmamba.prepare` stand in for them: the paper's "
                     "procedure, with our own clusters, named by marker genes; cell types only.")  # fmt: skip
    if any(own["splits"].startswith(("published", "divided")) for own in done):
        lines.append("The paper's division of samples is not published except for the test samples. Where it was not given, the other "
                     "samples were divided by seed (`splits.json` in each study's folder).")  # fmt: skip
    for name, tasks in results.items():
        if shared := next((own["shared_donors"] for own in tasks.values() if own["shared_donors"]), None):
            lines.append(f"{name}: the donors {', '.join(shared)} are in the test set with one sample and in training with another, so "
                         "these scores are not of unseen donors. `--test-samples seed` keeps donors whole.")  # fmt: skip
    if "imputation" in {own["task"] for own in done}:
        lines.append("Imputation is judged on the number of test cells shown. The paper's method is the masked prediction of the network "
                     "as it is: the row 'fine-tuned', or for a model with a rate head 'fine-tuned (masked, not adapted)', whose row "
                     "'fine-tuned' is what `scmamba impute` answers.")  # fmt: skip
    if "doublets" in {own["task"] for own in done}:
        lines.append("Doublets are simulated from at most 50,000 training cells; the paper has no such limit.")
    return lines


def _how(results: Results) -> list[str]:
    head = ["study", "task", "labels", "splits", "model", "recipe", "steps", "seed", "device", "seconds", "version"]
    rows = [
        [name, task, *(own[key] for key in head[2:6]), own["steps"] or "recipe's", str(own["seed"]), *(own[key] for key in head[8:])]
        for name, tasks in results.items()
        for task, own in tasks.items()
    ]
    return [markdown(head, rows)]


def long_table(results: Results) -> pd.DataFrame:
    """One number a row: study, task, row, metric, published, here, and what it was measured with."""
    rows, noted = [], ("train_cells", "test_cells", "labels", "splits", "model", "recipe", "steps", "seed")
    for name, study in STUDIES.items():
        for task in TASKS:
            own = results[name].get(task, {})
            scores = own.get("scores", {})
            if task == "imputation":
                numbers = {(row, key): value for row, values in scores.get("rows", {}).items() for key, value in values.items()}
            else:
                numbers = {("", key): value for key, value in scores.items() if key != "classes"}
                numbers |= {(row, "F1"): value for row, value in scores.get("classes", {}).items()}
            if task in LEVELS and not numbers:
                numbers = {("", "macro"): None}
            for (row, key), value in numbers.items():
                published = study.f1[LEVELS.index(task)] if task in LEVELS and key == "macro" else None
                rows.append({"study": name, "task": task, "row": row, "metric": key, "published": published, "here": value,
                             "train_cells_published": study.cells[task], **{column: own.get(column) for column in noted}})  # fmt: skip
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------------------- main


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument("--study", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--task", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--base-url", default=BASE_URL, help="GEO's series folder, or a mirror of it")
    parser.add_argument("--expected-cells", type=int, default=EXPECTED_CELLS, help="raw droplets: cells expected in a sample")
    parser.add_argument("--min-total", type=float, help="raw droplets: least counts of a cell, in place of Cell Ranger's rule")
    parser.add_argument("--min-donor-cells", type=int, default=200, help="samples with fewer cells are left out (paper: 200)")
    parser.add_argument("--labels", type=Path, help="TSV: study, id, celltype, subtype, subcluster")
    parser.add_argument("--splits", type=Path, help="JSON: study -> train, validation, test -> samples or donors")
    parser.add_argument("--test-samples", choices=["published", "seed"], default="published", help="without --splits: the test set")
    parser.add_argument("--model", default="brain-mini", help="name, checkpoint folder or published .ckpt to fine-tune")
    parser.add_argument("--recipe", choices=["paper", "small"], default="paper")
    parser.add_argument("--steps", type=int, help="optimiser steps in place of the recipe's epochs: for a trial")
    parser.add_argument("--imputation-cells", type=int, default=2000, help="at most so many test cells for imputation")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Carry out one step, or all; 1 and a sentence where that is not possible."""
    options = parse(arguments)
    steps = {"download": download, "read": read, "prepare": prepare, "train": train}
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        # Study by study, so that the first is done before the last is fetched.
        for name in options.study if options.step != "report" else ():
            for step in steps if options.step == "all" else (options.step,):
                steps[step](STUDIES[name], options)
        if options.step in ("report", "all"):
            print(report(options))
    except ScMambaError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
