"""Many files of cells as one collection: one vocabulary, one set of column names, read shuffled in constant memory.

Each file keeps its own genes; they are mapped to the vocabulary while rows are read. Nothing is copied or concatenated, so fifteen
files of an atlas are used as they lie.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from ..genes import MIN_COVERAGE, GeneMatch, Vocabulary, match_genes
from ..utils.atomic import atomic_path
from ..utils.deprecation import renamed_parameters
from ..utils.errors import DataError
from ..utils.progress import progress, say
from .cell_batch import CellBatch
from .loader import PrefetchLoader
from .preprocess import MIN_TOTAL
from .sampler import EpochSampler, shuffle_window
from .selection import gene_rows
from .storage import (
    MemoryStore,
    Store,
    cache_folder,
    fingerprint,
    name_apart,
    only_one,
    open_store,
    stem,
)
from .values import ValueScale, detect_value_scale, log1p_cp10k

if TYPE_CHECKING:
    from anndata import AnnData

#: Where the four things every study names differently are usually found.
USUAL_COLUMNS: dict[str, tuple[str, ...]] = {
    "donor": ("donor", "donor_id", "individual", "patient", "patient_id", "subject", "sample"),
    "study": ("study", "dataset", "project"),
    "disease": ("disease", "diagnosis", "condition"),
    "label": ("label", "cell_type", "celltype", "cluster"),
}
#: Labels of droplets that are not one known cell (paper: not used in pre-training).
NOT_CELLS = (
    "doublet",
    "doublets",
    "unidentified",
    "unknown",
    "unassigned",
    "ambiguous",
    "mixed",
    "low quality",
)
#: Training cells of imputation have more counts than this (paper, Methods).
IMPUTE_TOTAL = 4000
#: Donors with fewer cells are omitted (paper, Methods).
MIN_DONOR_CELLS = 200
_SAMPLE_BLOCKS = 8


class CellFile:
    """One file of a collection, its genes matched."""

    def __init__(self, store: Store, match: GeneMatch, values: ValueScale) -> None:
        self.store, self.match, self.values = store, match, values
        self.slot = match.positions.astype(np.int32)
        self.genes = np.unique(match.positions[match.matched])
        self._in_order = bool((np.diff(match.positions[match.matched]) > 0).all())

    def __len__(self) -> int:
        return self.store.shape[0]

    def linear(self, start: int, stop: int) -> sparse.csr_matrix:
        """(r, L) float64 CSR: counts of consecutive rows over the vocabulary."""
        from .csr_remap import remap_columns

        rows, width = self.store.read(start, stop), len(self.match.vocabulary)
        data = self.values.linear(rows.data)
        in_order = self._in_order and bool(rows.has_canonical_format)
        return sparse.csr_matrix(
            remap_columns(data, rows.indices, rows.indptr, self.slot, width, in_order),
            shape=(stop - start, width),
        )


class Collection:
    """Cells of many files, as a model reads them.

    Parameters
    ----------
    sources
        Files (see :func:`scmamba.data.storage.open_store`) or AnnData objects of raw counts.
    vocabulary
        Genes in the model's order; the published 19,306 if not given.
    donor_key, study_key, condition_key, label_key
        Column of ``obs`` with each, or several names of which the first that exists is used; by default the common ones. Without
        a study column every file is a study. Cells without a donor count as one donor of their file.
    layer
        Matrix to read; ``X`` if not given.
    cache
        Folder for converted files and for the summary of each file (totals, detected genes).
    force
        Accept few genes (see :meth:`scmamba.genes.GeneMatch.check`).
    min_coverage
        Minimum share of the vocabulary that a file must have measured.
    verbose
        Print messages and progress.

    Attributes
    ----------
    cells
        (n,) increasing numbers of the cells in the files taken together; filters and splits make them fewer.

    Raises
    ------
    DataError, GeneError
        Files, values or genes cannot be used; checked before a matrix is read.

    Examples
    --------
    >>> from scmamba.data import Collection
    >>> from scmamba.datasets import brain_cohort
    >>> cells = Collection([brain_cohort(60, n_donors=4, seed=0)], verbose=False)
    >>> len(cells), len(cells.donors())
    (60, 4)
    >>> table = cells.split(validation=0.25, test=0.0)
    >>> sorted(table["split"].unique())
    ['train', 'validation']
    """

    @renamed_parameters(
        donor="donor_key", study="study_key", disease="condition_key", label="label_key"
    )
    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str] | AnnData],
        *,
        vocabulary: Vocabulary | None = None,
        donor_key: str | Sequence[str] | None = None,
        study_key: str | Sequence[str] | None = None,
        condition_key: str | Sequence[str] | None = None,
        label_key: str | Sequence[str] | None = None,
        layer: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        force: bool = False,
        min_coverage: float = MIN_COVERAGE,
        verbose: bool = True,
    ) -> None:
        if isinstance(sources, (str, os.PathLike)) or not len(sources):
            raise DataError("A collection is made of a list of at least one file.")
        self.vocabulary = vocabulary or Vocabulary.published()
        folder = Path(cache) if cache is not None else cache_folder()
        self.members: list[CellFile] = []
        stores = [open_store(s, layer=layer, cache=folder, verbose=verbose) for s in sources]
        name_apart(stores)
        for store in stores:
            match = _match(store, self.vocabulary)
            if (is_gene := gene_rows(store.var, store.name)) is not None:
                match.ignore(~is_gene)
            try:
                match.check(force=force, min_coverage=min_coverage)
                self.members.append(CellFile(store, match, _look(store, force)))
            except ValueError as error:
                raise type(error)(f"{store.name}: {error}") from error
        self.offsets = np.concatenate([[0], np.cumsum([len(m) for m in self.members])]).astype(
            np.int64
        )
        self.cells = np.arange(self.offsets[-1], dtype=np.int64)
        asked = {
            "donor": donor_key,
            "study": study_key,
            "disease": condition_key,
            "label": label_key,
        }
        self._columns = pd.DataFrame(
            {name: _column(self.members, name, wanted) for name, wanted in asked.items()}
        )
        self._cache, self._verbose = folder, verbose
        self._known: list[FileSummary] | None = None

    def __len__(self) -> int:
        return len(self.cells)

    def __repr__(self) -> str:
        donors, files = len(self.donors()), len(self.members)
        return f"Collection of {len(self):,} cells, {donors:,} donors, {files} files, {len(self.vocabulary):,} genes"

    # ------------------------------------------------------------------------------------------------ what is in it

    @property
    def files(self) -> list[str]:
        """Names of the files."""
        return [m.store.name for m in self.members]

    def file_of(self, cells: np.ndarray) -> np.ndarray:
        """Files that hold some cells.

        Parameters
        ----------
        cells
            Numbers of cells (see ``cells``).

        Returns
        -------
        Number of the file of each.
        """
        return np.searchsorted(self.offsets, cells, side="right") - 1

    @property
    def obs(self) -> pd.DataFrame:
        """(n rows) ``file study donor disease label total genes``; total and genes (detected) are over the vocabulary."""
        files = pd.Categorical.from_codes(self.file_of(self.cells), categories=pd.Index(self.files))
        frame = self._columns.iloc[self.cells].reset_index(drop=True)
        frame.insert(0, "file", files)
        return frame.assign(total=self.totals, genes=self.lengths)

    def column(self, name: str) -> pd.Categorical:
        """A column of the metadata.

        Parameters
        ----------
        name
            ``"donor"``, ``"study"``, ``"disease"`` or ``"label"``.

        Returns
        -------
        (n,) categories.
        """
        return self._columns[name].iloc[self.cells].array

    def donors(self) -> np.ndarray:
        """Distinct donors, as ``study/donor``: two studies may use one name."""
        return np.unique(self.donor_keys().categories.to_numpy())

    def donor_keys(self) -> pd.Categorical:
        """(n,) ``study/donor`` of each cell."""
        study, donor = self.column("study"), self.column("donor")
        code = study.codes.astype(np.int64) * len(donor.categories) + donor.codes
        present, inverse = np.unique(code, return_inverse=True)
        names = [
            f"{study.categories[c // len(donor.categories)]}/{donor.categories[c % len(donor.categories)]}"
            for c in present
        ]
        return pd.Categorical.from_codes(inverse, categories=pd.Index(names))

    @property
    def totals(self) -> np.ndarray:
        """(n,) counts over the vocabulary's genes."""
        return np.concatenate([f.totals for f in self._facts()])[self.cells]

    @property
    def lengths(self) -> np.ndarray:
        """(n,) detected genes of the vocabulary."""
        return np.concatenate([f.lengths for f in self._facts()])[self.cells]

    def detected(self) -> np.ndarray:
        """(L,) cells of all files in which each gene was seen; not affected by filters."""
        counts: np.ndarray = np.sum([f.detected for f in self._facts()], axis=0)
        return counts

    def gene_sums(self) -> np.ndarray:
        """(files, L) counts of each gene; not affected by filters."""
        return np.stack([f.sums for f in self._facts()])

    def _facts(self) -> list[FileSummary]:
        """Totals and detected genes of every file, from one pass; kept in the cache folder."""
        if self._known is None:
            digest = str(hash_of(self.vocabulary))
            total = sum(len(m) for m in self.members)
            known = [read_summary(self._facts_path(m, digest), len(m)) for m in self.members]
            missing = sum(len(m) for m, f in zip(self.members, known) if f is None)
            with progress(
                "Looking through the files", missing, self._verbose and total > 20_000, unit="cells"
            ) as advance:
                for i, member in enumerate(self.members):
                    path = self._facts_path(member, digest)
                    with nullcontext() if path is None or known[i] is not None else only_one(path):
                        found = known[i] or read_summary(path, len(member))
                        if found is None:
                            found = summarize_file(member, advance)
                            write_summary(path, found)
                        known[i] = found
            self._known = known  # type: ignore[assignment]
        return self._known  # type: ignore[return-value]

    def _facts_path(self, member: CellFile, digest: str) -> Path | None:
        path: Path | None = getattr(member.store, "path", None)
        layer: str | None = getattr(member.store, "layer", None)
        return (
            None
            if path is None
            else self._cache
            / f"{stem(path)}-{fingerprint(path, digest, layer or '', 'genes only')}.npz"
        )

    # ---------------------------------------------------------------------------------------------------- fewer cells

    def take(self, keep: np.ndarray) -> Collection:
        """Select cells.

        Parameters
        ----------
        keep
            Mask over this collection, or positions in it.

        Returns
        -------
        A collection of those cells, in the order of the files.
        """
        import copy

        other = copy.copy(self)
        other.cells = np.sort(self.cells[keep])
        return other

    def filter(
        self,
        *,
        min_total: float = MIN_TOTAL,
        min_donor_cells: int = MIN_DONOR_CELLS,
        exclude: Sequence[str] = NOT_CELLS,
        above: float | None = None,
    ) -> Collection:
        """Apply the paper's filters, in the order of the parameters.

        Parameters
        ----------
        min_total
            Minimum total counts of a cell.
        min_donor_cells
            Minimum number of remaining cells of a donor.
        exclude
            Labels of droplets that are no cells, in any case; applied after ``min_total``.
        above
            Keep cells with more counts than this, after all other filters (imputation: 4,000; see :data:`IMPUTE_TOTAL`).

        Returns
        -------
        A collection of the cells that pass.

        Raises
        ------
        DataError
            No cell passes; the message counts what each filter removed.
        """
        totals = self.totals
        keep = totals >= min_total
        taken = {f"fewer than {min_total:,.0f} counts": int((~keep).sum())}
        labels = self.column("label")
        unwanted = labels.categories.str.strip().str.lower().isin([e.lower() for e in exclude])
        bad = keep & np.append(unwanted, False)[labels.codes]
        taken["doublets and unidentified"] = int(bad.sum())
        keep &= ~bad
        if min_donor_cells > 1 and (self.column("donor") != "").any():
            codes = self.donor_keys().codes
            few = keep & (
                np.bincount(codes[keep], minlength=codes.max() + 1)[codes] < min_donor_cells
            )
            taken[f"donors with fewer than {min_donor_cells} cells"] = int(few.sum())
            keep &= ~few
        if above is not None:
            shallow = keep & (totals <= above)
            taken[f"at most {above:,.0f} counts"] = int(shallow.sum())
            keep &= ~shallow
        words = "; ".join(f"{what}: {number:,}" for what, number in taken.items() if number)
        if not keep.any():
            raise DataError(f"No cell is left of {len(self):,} ({words}); nothing to train on.")
        say(
            f"{int(keep.sum()):,} of {len(self):,} cells are used"
            + (f" (omitted: {words})" if words else ""),
            self._verbose,
        )
        return self.take(keep)

    def select(self, table: pd.DataFrame | str | os.PathLike[str], part: str) -> Collection:
        """Select the cells of the donors in one part of a split.

        Parameters
        ----------
        table
            Table of :meth:`split`, or the path of one.
        part
            ``"train"``, ``"validation"`` or ``"test"``.

        Returns
        -------
        A collection of those cells.

        Raises
        ------
        DataError
            The table lacks a donor of this collection, or has none in ``part``.
        """
        frame = read_splits(table) if isinstance(table, (str, os.PathLike)) else table
        where = dict(zip(frame["study"] + "/" + frame["donor"], frame["split"]))
        keys = self.donor_keys()
        unknown = [name for name in keys.categories if name not in where]
        if unknown:
            raise DataError(
                f"The table of splits does not name the donors {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}."
            )
        chosen = np.array([where[name] == part for name in keys.categories])
        keep = chosen[keys.codes]
        if not keep.any():
            raise DataError(
                f"The table of splits puts no donor of this collection in '{part}'; it has {sorted(set(where.values()))}."
            )
        return self.take(keep)

    def split(self, *, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> pd.DataFrame:
        """Divide donors, never cells.

        Donors of each study and disease are divided in the same proportions; every part with a share above 0 gets at least one donor.
        Cells of unknown donors are for training. Save the table with :func:`write_splits` and pass it to :meth:`select`.

        Parameters
        ----------
        validation
            Share of the donors for validation.
        test
            Share of the donors for the test.
        seed
            Seed of the division.

        Returns
        -------
        A table with the columns ``study donor disease cells split``.

        Raises
        ------
        DataError
            There are too few donors.
        """
        keys = self.donor_keys()
        first = np.unique(keys.codes, return_index=True)[1]
        table = pd.DataFrame(
            {
                "study": np.asarray(self.column("study"))[first].astype(str),
                "donor": np.asarray(self.column("donor"))[first].astype(str),
                "disease": np.asarray(self.column("disease"))[first].astype(str),
                "cells": np.bincount(keys.codes),
            }
        )
        shares = {"validation": validation, "test": test}
        parts = [name for name, share in shares.items() if share > 0]
        known = table["donor"] != ""
        if known.sum() < 1 + len(parts):
            raise DataError(
                f"There are {known.sum()} named donors; {1 + len(parts)} parts cannot be made of them. Name the donor column (donor=...)."
            )
        rng = np.random.default_rng(seed)
        # A random order that goes round the studies and diseases: any stretch of it holds all of them in proportion.
        table["rank"] = table.groupby(["study", "disease"])["cells"].transform(
            lambda c: (rng.permutation(len(c)) + rng.random()) / len(c)
        )
        order = np.argsort(table["rank"].to_numpy(), kind="stable")
        order = order[known.to_numpy()[order]]
        table["split"] = "train"
        start = 0
        for i, name in enumerate(parts):
            number = max(
                1, min(round(shares[name] * len(order)), len(order) - start - (len(parts) - i))
            )
            table.loc[order[start : start + number], "split"] = name
            start += number
        return table.drop(columns="rank")

    # ---------------------------------------------------------------------------------------------------- reading

    def read(self, cells: np.ndarray) -> CellBatch:
        """Read cells by number; neighboring rows are read together.

        Parameters
        ----------
        cells
            Numbers of cells (see ``cells``), in any order.

        Returns
        -------
        The cells, in that order.
        """
        wanted, back = np.unique(np.asarray(cells, dtype=np.int64), return_inverse=True)
        block = self.read_sorted(wanted)
        return block if np.array_equal(wanted, cells) else block.take(back)

    def read_sorted(self, wanted: np.ndarray) -> CellBatch:
        """Read cells by increasing numbers.

        Parameters
        ----------
        wanted
            Increasing numbers of cells.

        Returns
        -------
        The cells.
        """
        files = self.file_of(wanted)
        values, totals = [], []
        for f in np.unique(files):
            rows = wanted[files == f] - self.offsets[f]
            for start, stop, at in _runs(rows):
                counts = self.members[f].linear(start, stop)
                if len(at) < stop - start:
                    counts = counts[at]
                total = np.asarray(counts.sum(axis=1)).ravel()
                values.append(log1p_cp10k(counts, total))
                totals.append(total)
        return CellBatch(
            _stack(values, len(self.vocabulary)),
            np.concatenate(totals) if totals else np.empty(0),
            wanted,
            files,
        )

    def order(
        self, *, seed: int = 0, block: int = 64, span: int | None = None, group: int = 0
    ) -> EpochSampler:
        """Order in which epochs visit the cells (see :class:`scmamba.data.sampler.EpochSampler`).

        Parameters
        ----------
        seed
            Seed of the order.
        block
            Contiguous cells that are read together.
        span
            Cells that are shuffled together; by memory if not given.
        group
            Number of cells of similar length that are put together in batches; 0 for none.

        Returns
        -------
        The sampler.
        """
        span = span or shuffle_window(len(self), float(self.lengths.mean()))
        return EpochSampler(
            len(self),
            block=block,
            span=span,
            seed=seed,
            group=group,
            lengths=self.lengths if group else None,
        )

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        worker: int = 0,
        workers: int = 1,
        block: int = 64,
        span: int | None = None,
    ) -> Iterator[CellBatch]:
        """One epoch of shuffled batches, in constant memory.

        Contiguous blocks of cells are read at random offsets, about ``span`` cells are kept at a time and shuffled. Every cell is read
        once, but for a remainder of less than a block. The order depends on ``seed`` and ``epoch`` alone.

        Parameters
        ----------
        batch_size
            Cells per batch.
        seed
            Seed of the order.
        epoch
            Number of the epoch; each has another order.
        rank, world
            Number of this process, and how many processes share the epoch.
        worker, workers
            Number of this worker of the process, and how many it has.
        block
            Contiguous cells that are read together.
        span
            Cells that are shuffled together; by memory if not given.

        Yields
        ------
        Batches of cells.
        """
        order = self.order(seed=seed, block=block, span=span)
        loader = PrefetchLoader(self, order, shard=rank * workers + worker, shards=world * workers)
        yield from loader.epoch(epoch, batch_size)


def hash_of(vocabulary: Vocabulary) -> str:
    """A digest of the genes and their order."""
    import hashlib

    return hashlib.sha256("\n".join(vocabulary.ensembl_ids).encode()).hexdigest()[:16]


def write_splits(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Save a table of :meth:`Collection.split` as TSV."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, lineterminator="\n")


def read_splits(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what :func:`write_splits` saved.

    Raises
    ------
    DataError
        No such file, or columns missing.
    """
    if not Path(path).is_file():
        raise DataError(f"There is no table of splits {path}.")
    table = pd.read_csv(
        path, sep="\t", dtype={"study": str, "donor": str, "split": str}, keep_default_na=False
    )
    if missing := {"study", "donor", "split"} - set(table):
        raise DataError(
            f"{path} has no column {', '.join(sorted(missing))}; a table of splits has study, donor and split."
        )
    return table


# ------------------------------------------------------------------------------------------------------------ one file


@dataclass
class FileSummary:
    """Per cell the total and the detected genes; per gene the cells it is seen in and the sum of its counts."""

    totals: np.ndarray
    lengths: np.ndarray
    detected: np.ndarray
    sums: np.ndarray


def summarize_file(member: CellFile, advance: Callable[[int], None]) -> FileSummary:
    """Totals and detected genes of every cell, and in how many cells each gene is seen."""
    n, genes = len(member), len(member.match.vocabulary)
    facts = FileSummary(
        np.zeros(n), np.zeros(n, np.int32), np.zeros(genes, np.int64), np.zeros(genes)
    )
    for start, stop in member.store.blocks():
        counts = member.linear(start, stop)
        if len(counts.data) and (not np.isfinite(counts.data).all() or counts.data.min() < 0):
            raise DataError(
                f"{member.store.name} holds negative or missing values in rows {start} to {stop}. Raw counts are expected."
            )
        facts.totals[start:stop] = np.asarray(counts.sum(axis=1)).ravel()
        facts.lengths[start:stop] = np.diff(counts.indptr)
        facts.detected += np.bincount(counts.indices, minlength=genes)
        facts.sums += np.bincount(counts.indices, weights=counts.data, minlength=genes)
        advance(stop - start)
    return facts


def read_summary(path: Path | None, n: int) -> FileSummary | None:
    if path is None or not path.is_file():
        return None
    try:
        with np.load(path) as stored:
            facts = FileSummary(
                *(stored[name] for name in ("totals", "lengths", "detected", "sums"))
            )
    except Exception:  # a damaged cache is made again
        return None
    return facts if len(facts.totals) == n else None


def write_summary(path: Path | None, facts: FileSummary) -> None:
    if path is not None:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **facts.__dict__)


class _Sample:
    """A few blocks of a file as one matrix, to detect the scale of its values."""

    def __init__(self, store: Store) -> None:
        n = store.shape[0]
        size = max(1, min(64, n // _SAMPLE_BLOCKS))
        starts = np.unique(np.linspace(0, n - size, _SAMPLE_BLOCKS).astype(int))
        self.rows = sparse.vstack([store.read(s, min(s + size, n)) for s in starts], format="csr")
        self.shape = self.rows.shape

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        return self.rows[rows]


def _look(store: Store, force: bool) -> ValueScale:
    if 0 in store.shape:
        raise DataError(f"it is empty: {store.shape[0]} cells x {store.shape[1]} genes.")
    return detect_value_scale(_Sample(store), force=force, **store.recorded())


def _match(store: Store, vocabulary: Vocabulary) -> GeneMatch:
    """By whichever names of the file match best, as :func:`scmamba.genes.match_adata` does."""
    from ..genes import NAME_COLUMNS

    best = match_genes(store.var.index.astype(str).tolist(), vocabulary)
    for column in NAME_COLUMNS:
        if column in store.var:
            other = match_genes(
                store.var[column].astype(str).tolist(), vocabulary, source=f"var['{column}']"
            )
            if len(other.matched) > len(best.matched):
                best = other
    return best


def _column(
    members: Sequence[CellFile], name: str, wanted: str | Sequence[str] | Mapping[str, str] | None
) -> pd.Categorical:
    """One column over all files; '' where a file has none (its own name, for the study)."""
    names = (
        USUAL_COLUMNS[name]
        if wanted is None
        else (wanted,)
        if isinstance(wanted, str)
        else tuple(wanted)
    )
    codes: list[np.ndarray] = []
    categories: dict[str, int] = {}
    found_any = False
    for member in members:
        text = next(
            (column for column in map(member.store.column, names) if column is not None), None
        )
        found_any = found_any or text is not None
        if text is None:
            text = np.full(len(member), member.store.name if name == "study" else "", dtype=object)
        values, inverse = np.unique(text, return_inverse=True)
        lookup = np.array([categories.setdefault(str(v), len(categories)) for v in values])
        codes.append(lookup[inverse].astype(np.int32))
    if wanted is not None and not found_any:
        raise DataError(f"No file has a column {' or '.join(names)} in obs (option {name}).")
    return pd.Categorical.from_codes(np.concatenate(codes), categories=pd.Index(list(categories)))


def _runs(rows: np.ndarray, gap: int = 32) -> Iterator[tuple[int, int, np.ndarray]]:
    """Cut increasing rows into stretches worth one reading each: first, end, and which rows of the stretch are wanted."""
    for piece in np.split(rows, np.flatnonzero(np.diff(rows) > gap) + 1):
        yield int(piece[0]), int(piece[-1]) + 1, piece - piece[0]


def _stack(blocks: list[sparse.csr_matrix], width: int) -> sparse.csr_matrix:
    return (
        sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
        if blocks
        else sparse.csr_matrix((0, width), dtype=np.float32)
    )


__all__ = [
    "CellBatch",
    "Collection",
    "IMPUTE_TOTAL",
    "MIN_DONOR_CELLS",
    "NOT_CELLS",
    "MemoryStore",
    "read_splits",
    "write_splits",
]
