"""GEO's files as cells: 10x triplets, 10x HDF5 of raw droplets, and one huge table."""

from __future__ import annotations

import argparse
import gzip
import io
import re
import shutil
import tarfile
import tempfile
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from scmamba.utils.errors import ScMambaError
from scmamba.utils.progress import progress, say

from .download import addresses
from .studies import LEAST_GENES, MOST_CELLS, Study, keep, made, place, read_json


def read(study: Study, options: argparse.Namespace) -> None:
    """All samples of a study as ``cells.h5ad``.

    ``X`` int32 CSR counts; ``obs`` donor, disease, sample, accession (GSM), barcode; ``var`` ensembl_id, symbol.
    """
    folder = place(study, options)
    raw, target = folder / "raw", folder / "cells.h5ad"
    names = list(addresses(study, options.base_url))
    if missing := [name for name in names if not (raw / name).is_file()]:
        raise ScMambaError(
            f"{study.name}: {', '.join(missing)} is not in {raw}. Run the step 'download' first."
        )
    noted = read_json(raw / "downloads.json")
    how = {
        "files": {n: noted.get(n, {}).get("sha256") for n in names},
        "expected_cells": options.expected_cells,
        "min_total": options.min_total,
    }
    if made(target, how):
        say(f"{study.name}: {target.name} is there", True)
        return
    cells = (
        read_midbrain(study, raw)
        if study.name == "Smajic"
        else read_archive(study, raw / study.files[0], options)
    )
    keep(cells, target, how, "gzip")
    donors = cells.obs.groupby("disease", observed=True)["donor"].nunique()
    words = ", ".join(f"{number} {name}" for name, number in donors.items())
    say(
        f"{study.name}: {cells.n_obs:,} cells of {cells.obs['sample'].nunique()} samples, {cells.n_vars:,} genes; donors: {words}",
        True,
    )


@dataclass
class Sample:
    """A sample in a GEO archive: its name without GSM number, that number, and its files by their content."""

    name: str
    accession: str
    files: dict[str, tarfile.TarInfo]


_TRIPLET = re.compile(
    r"(?P<sample>.+?)[._-](?P<part>barcodes|features|genes|matrix)\.(?:tsv|mtx)(?:\.gz)?", re.I
)
_HDF5 = re.compile(
    r"(?P<sample>.+?)(?:[._-](?P<part>raw|filtered))?(?:[._-](?:gene|feature)_bc_matri(?:x|ces))?(?:[._-]h5)?\.h5",
    re.I,
)


def find_samples(members: Iterable[tarfile.TarInfo]) -> tuple[list[Sample], list[str]]:
    """Samples, and names of files that are not part of one: 10x triplets and HDF5 files are, whatever the rest of the name is."""
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
    """Sample name -> donor, diagnosis ('' if it is not in the name).

    Raises
    ------
    ScMambaError
        No name, or names of an unknown form; they are listed.
    """
    names = list(names)
    found = {name: re.fullmatch(study.pattern, name, re.I) for name in names}
    if not names:
        raise ScMambaError(
            f"{study.name} ({study.accession}): there is no sample. Names like {study.example} are expected."
        )
    if strange := [name for name, match in found.items() if match is None]:
        raise ScMambaError(
            f"{study.name} ({study.accession}): {len(strange)} of {len(names)} samples have names of an unknown form: "
            f"{', '.join(strange)}. Names like {study.example} are expected; if GEO has renamed its files, change the pattern of "
            f"{study.name} in benchmarks/geo_tables/studies.py."
        )
    return {
        n: (m["donor"].upper(), study.groups.get(m.groupdict().get("group", "").upper(), ""))
        for n, m in found.items()
        if m
    }


def read_archive(study: Study, archive: Path, options: argparse.Namespace) -> ad.AnnData:
    """The samples of a ``_RAW.tar``, one at a time."""
    with tarfile.open(archive) as tar:
        samples, others = find_samples(tar.getmembers())
        if not samples:
            listed = ", ".join(others[:10]) or "nothing"
            raise ScMambaError(
                f"{archive.name} holds no 10x file (barcodes, features, matrix, or .h5); it holds {listed}."
            )
        if others:
            say(
                f"{archive.name}: {len(others)} other files are passed over: {', '.join(others[:10])}",
                True,
            )
        people = identify(study, [sample.name for sample in samples])
        if len(people) < len(samples):
            twice = sorted({s.name for s in samples if [t.name for t in samples].count(s.name) > 1})
            raise ScMambaError(
                f"{archive.name}: {', '.join(twice)} stands more than once; it must be one sample."
            )
        stages = braak_stages(archive.parent, study) if study.braak else {}
        parts = []
        with progress(f"Reading {study.name}", len(samples), unit="samples") as advance:
            for sample in samples:
                donor, disease = people[sample.name]
                cells = read_sample(study, tar, sample, archive.parent, options)
                disease = (
                    disease or stages.get(sample.accession) or stages.get(sample.name) or "unknown"
                )
                cells.obs = cells.obs.assign(
                    donor=donor, disease=disease, sample=sample.name, accession=sample.accession
                )
                cells.obs_names = [f"{sample.name}_{barcode}" for barcode in cells.obs["barcode"]]
                parts.append(cells)
                advance(1)
    return join(parts)


def read_sample(
    study: Study, tar: tarfile.TarFile, sample: Sample, work: Path, options: argparse.Namespace
) -> ad.AnnData:
    """One sample: counts, ``obs`` barcode, ``var`` ensembl_id and symbol."""
    from scmamba.data.storage import open_store

    triplet = {"barcodes", "features", "matrix"}
    ways = [({"h5 filtered"}, False), (triplet, False), ({"h5"}, False), ({"h5 raw"}, True)]
    there = set(sample.files)
    wanted, raw = next(((way, raw) for way, raw in ways if way <= there), (set(), False))
    if not wanted:
        missing = ", ".join(sorted(triplet - there))
        raise ScMambaError(
            f"{study.name}: the sample {sample.name} lacks its file of {missing}; the archive has {', '.join(there)}."
        )
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for part in wanted:
            member = sample.files[part]
            end = ".gz" if member.name.endswith(".gz") else ""
            name = (
                "sample.h5"
                if part.startswith("h5")
                else f"{part}.{'mtx' if part == 'matrix' else 'tsv'}{end}"
            )
            with tar.extractfile(member) as source, open(Path(folder) / name, "wb") as copy:  # type: ignore[union-attr]
                shutil.copyfileobj(source, copy)
        path = Path(folder) if wanted == triplet else Path(folder) / "sample.h5"
        try:
            store = open_store(path, cache=Path(folder) / "converted", verbose=False)
            barcodes = _barcodes(store)
        except (ScMambaError, OSError, EOFError, KeyError, zlib.error) as error:
            raise ScMambaError(
                f"{study.name}: the sample {sample.name} cannot be read: {error}"
            ) from error
        droplets = study.droplets or raw or len(barcodes) > MOST_CELLS
        kept = _called(store, sample, options) if droplets else np.ones(len(barcodes), dtype=bool)
        blocks = [
            whole_numbers(store.read(a, b)[np.flatnonzero(kept[a:b])], sample.name)
            for a, b in store.blocks()
        ]
        store.close()
    obs = pd.DataFrame({"barcode": barcodes[kept]}, index=barcodes[kept].astype(str))
    return ad.AnnData(
        sparse.csr_matrix(sparse.vstack(blocks, format="csr")),
        obs=obs,
        var=gene_table(store.var.index, store.var["symbol"]),
    )


def _barcodes(store: Any) -> np.ndarray:
    from scmamba.data.h5ad_files import open_backed
    from scmamba.data.storage import TenxStore

    if isinstance(store, TenxStore):
        with h5py.File(store.path) as file:
            return np.array([b.decode() for b in file[store.group]["barcodes"][:]], dtype=object)
    return open_backed(store.path).obs_names.to_numpy(dtype=object)


def _called(store: Any, sample: Sample, options: argparse.Namespace) -> np.ndarray:
    """(n,) which droplets are cells."""
    totals, genes = np.zeros(store.shape[0]), np.zeros(store.shape[0], dtype=np.int64)
    for start, stop in store.blocks():
        rows = store.read(start, stop)
        totals[start:stop], genes[start:stop] = (
            np.asarray(rows.sum(axis=1)).ravel(),
            np.diff(rows.indptr),
        )
    kept, least = call_cells(totals, genes, options.expected_cells, options.min_total)
    say(
        f"{sample.name}: {kept.sum():,} of {len(kept):,} droplets are cells (at least {least:,.0f} counts, {LEAST_GENES} genes)",
        True,
    )
    if not kept.any():
        raise ScMambaError(
            f"{sample.name}: no droplet has {least:,.0f} counts and {LEAST_GENES} genes. Give a lower --min-total."
        )
    return kept


def call_cells(
    totals: np.ndarray, genes: np.ndarray, expected: int, min_total: float | None
) -> tuple[np.ndarray, float]:
    """Which droplets are cells, and the smallest total counts of a cell.

    Cell Ranger 2's rule (the software of Leng's files): a tenth of the 99th percentile of the ``expected`` largest totals; ``min_total``
    in its place if given. And at least 200 detected genes. Simple, and blind to small nuclei among rich ambient RNA.
    """
    least = (
        min_total
        if min_total is not None
        else float(np.percentile(np.sort(totals)[::-1][:expected], 99) / 10)
    )
    return (totals >= least) & (genes >= LEAST_GENES), least


def whole_numbers(counts: sparse.csr_matrix, what: str) -> sparse.csr_matrix:
    """Counts as int32.

    Raises
    ------
    ScMambaError
        Values that are no counts.
    """
    data = counts.data
    if len(data) and (
        not np.isfinite(data).all() or data.min() < 0 or (data != np.rint(data)).any()
    ):
        raise ScMambaError(
            f"{what}: the matrix holds values that are no counts (negative, missing or fractions). Raw counts are needed."
        )
    counts = sparse.csr_matrix(counts, dtype=np.int32)
    counts.eliminate_zeros()
    return counts


def gene_table(names: Iterable[Any], symbols: Iterable[Any] | None = None) -> pd.DataFrame:
    """``ensembl_id`` and ``symbol`` of genes given by either; the other is looked up in the package's table (GRCh38)."""
    from scmamba.genes import annotation

    known = annotation()
    given = pd.Series([str(name) for name in names])
    is_id = given.str.fullmatch(r"ENSG\d+(\.\d+)?(_\w+)?")
    bare = given.str.replace(r"\.\d+", "", regex=True)
    looked = bare.map(dict(zip(known.ensembl_id, known.symbol))).fillna("")
    by_symbol = dict(zip(known.symbol[::-1], known.ensembl_id[::-1]))
    ids = bare.where(is_id, given.map(by_symbol).fillna(""))
    shown = looked.where(is_id, given) if symbols is None else pd.Series([str(s) for s in symbols])
    table = pd.DataFrame(
        {"ensembl_id": ids.to_numpy(dtype=object), "symbol": shown.to_numpy(dtype=object)}
    )
    table.index = pd.Index(np.where(ids != "", ids, given).astype(object))
    if not table.index.is_unique:
        table.index = ad.utils.make_index_unique(table.index)
    return table


def join(parts: list[ad.AnnData]) -> ad.AnnData:
    """Samples concatenated; the genes are the union."""
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
    """GSM number and title of each sample -> ``Braak 0`` and so on, from the series matrix; a message if it has none."""
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
        say(
            f"{study.name}: the series matrix names no Braak stage for some samples; it has {', '.join(keys) or 'no other fields'}",
            True,
        )
    return stages


def series_matrix(path: Path) -> list[dict[str, str]]:
    """One row per sample: ``accession``, ``title`` and its characteristics (``key: value``)."""
    content = path.read_bytes()
    lines = (
        (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        .decode("utf-8", "replace")
        .splitlines()
    )
    rows = [
        [cell.strip().strip('"') for cell in line.split("\t")]
        for line in lines
        if line.startswith("!Sample_")
    ]
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
    """Smajic's three files: a dense table of genes x cells, read row by row, and the descriptions of its rows and columns."""
    umi, genes_file, cell_file = (raw / name for name in study.files)
    about, genes = _table(cell_file), _table(genes_file)
    if missing := {"barcode", "patient"} - set(about):
        raise ScMambaError(
            f"{cell_file.name} has no column {', '.join(sorted(missing))}; it has {', '.join(about)}."
        )
    column = next(
        (name for name in ("gene", "genes", "ensembl_id", "symbol") if name in genes),
        genes.columns[0],
    )
    if "row" in genes:  # the order of the table's rows, whatever the order of this file
        genes = genes.sort_values("row", key=lambda order: order.astype(int), kind="stable")
    with tarfile.open(
        umi
    ) as tar:  # only the first file: the search for others would unpack everything
        member = next(
            (m for m in tar if m.isfile() and not m.name.rsplit("/", 1)[-1].startswith(".")), None
        )
        if member is None:
            raise ScMambaError(f"{umi.name} holds no file.")
        file: Any = tar.extractfile(member)
        file = gzip.GzipFile(fileobj=file) if member.name.endswith(".gz") else file
        names, rows, counts = dense_table(file, set(about["barcode"]), umi.name)
    if rows is None and counts.shape[0] != len(genes):
        raise ScMambaError(
            f"{umi.name} has {counts.shape[0]:,} rows and {genes_file.name} {len(genes):,} genes; they do not fit."
        )
    people = identify(study, about["patient"].unique())
    about = about.assign(plain=about["barcode"].map(_r_name)).set_index("barcode", drop=False)
    if not about.index.is_unique:
        raise ScMambaError(f"{cell_file.name}: barcodes stand more than once.")
    if not set(names) <= set(about.index):
        about = about.set_index("plain", drop=False)  # R writes AAAC.1 for AAAC-1
    if strangers := [name for name in names if name not in about.index]:
        raise ScMambaError(
            f"{umi.name}: {len(strangers):,} of {len(names):,} cells are not in {cell_file.name}: {strangers[0]}, ..."
        )
    about = about.loc[names]
    donors = [people[patient][0] for patient in about["patient"]]
    obs = pd.DataFrame(
        {
            "barcode": about["barcode"].to_numpy(),
            "donor": donors,
            "disease": [people[p][1] for p in about["patient"]],
            "sample": donors,
            "accession": "",
        },
        index=pd.Index(about["barcode"].to_numpy(dtype=object)),
    )
    if "cell_ontology" in about:
        obs["cell_ontology"] = about["cell_ontology"].to_numpy()
    return join(
        [
            ad.AnnData(
                sparse.csr_matrix(counts.T),
                obs=obs,
                var=gene_table(genes[column] if rows is None else rows),
            )
        ]
    )


def _table(archive: Path) -> pd.DataFrame:
    """The single table in an archive, as text."""
    with tarfile.open(archive) as tar:
        inside = [
            m
            for m in tar.getmembers()
            if m.isfile() and not m.name.rsplit("/", 1)[-1].startswith(".")
        ]
        if len(inside) != 1:
            listed = ", ".join(m.name for m in inside[:5])
            raise ScMambaError(
                f"{archive.name} holds {len(inside)} files ({listed}); one table is expected."
            )
        content = tar.extractfile(inside[0]).read()  # type: ignore[union-attr]
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return pd.read_csv(io.BytesIO(content), sep="\t", dtype=str, keep_default_na=False)


def _r_name(name: str) -> str:
    plain = re.sub(r"[^0-9A-Za-z_.]", ".", name)
    return f"X{plain}" if plain[:1].isdigit() else plain


def dense_table(
    file: Any, cells: set[str], what: str
) -> tuple[list[str], list[str] | None, sparse.csr_matrix]:
    """Names of columns, names of rows (``None`` if the table has none) and int32 CSR of a table of counts.

    One row is in memory at a time. ``cells`` distinguishes a header's first word from the name of a cell: a table may have row names, with or
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
        if (
            len(row) != len(names)
            or not np.isfinite(row).all()
            or (row != np.rint(row)).any()
            or (row < 0).any()
        ):
            raise ScMambaError(
                f"{what}: line {number + 2} does not hold {len(names):,} counts, one a cell; is the file damaged?"
            )
        at = np.flatnonzero(row)
        indices.append(at.astype(np.int32))
        values.append(row[at].astype(np.int32))
        ends.append(ends[-1] + len(at))
    if len(ends) == 1:
        raise ScMambaError(f"{what}: the table has no rows.")
    parts = np.concatenate(values), np.concatenate(indices), np.array(ends)
    return (
        names,
        rows if named else None,
        sparse.csr_matrix(parts, shape=(len(ends) - 1, len(names))),
    )


def _numbers(line: str) -> np.ndarray:
    """The numbers of a line; fewer than it has words, or none, if a word is not a number."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # older NumPy warns and stops there, newer raises
        try:
            return np.fromstring(line, dtype=np.float64, sep="\t")
        except ValueError:
            return np.empty(0)


def _words(line: str) -> list[str]:
    return [word.strip('"') for word in line.rstrip("\r\n").split("\t")]
