"""Cell types from a labeled reference."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import softmax

from .._version import __version__
from ..data import CellReader
from ..data.storage import cache_folder
from ..model import Model, load_model, save_checkpoint
from ..training.calibration import fit_calibration
from ..utils.atomic import atomic_path
from ..utils.columns import as_text, require_column, warn_similar
from ..utils.errors import DataError, ScMambaError
from ..utils.expected_time import report_expected
from ..utils.progress import say
from .across_studies import StudyShift
from .base_classifiers import BASE_CLASSIFIERS
from .ensemble import MIN_CELLS_PER_GENE, CellTypeEnsemble, donor_folds, fit_ensemble
from .expression import all_human_genes, read_human_cells, shared_values
from .novelty import FEWEST
from .options import AnnotateOptions
from .result import Annotation, own_components

if TYPE_CHECKING:
    from anndata import AnnData

#: Version of what is cached of a reference: fits of an older one are not read.
REFERENCE_FORMAT = 5
#: Fewer genes in the vocabulary of the network, and it is not fine-tuned.
MIN_NETWORK_GENES = 50
#: Labels that mean that a cell has none, in lower case; annotate's own output is a valid reference.
UNLABELLED = frozenset(
    {"", "nan", "na", "n/a", "<na>", "none", "unknown", "unassigned", "unlabelled", "unlabeled"}
)


class ReferenceAnnotator:
    """Cell types from labeled cells: ``fit`` reads the reference, ``predict`` names the cells of a query.

    What is learned depends on the genes that reference and query share, so base classifiers and network are fitted in
    :meth:`predict`, or read from the cache if this reference was fitted before.

    Parameters
    ----------
    options
        Options of :func:`scmamba.annotate`; ``label_key`` must be set.
    model
        The pre-trained network to fine-tune.
    verbose
        Print what is done.

    Attributes
    ----------
    levels
        Columns of the labels, coarse to fine.
    rows
        Positions of the labeled cells in the reference.
    """

    def __init__(self, options: AnnotateOptions, model: Model, verbose: bool = True) -> None:
        key = options.label_key
        self.levels = [key] if isinstance(key, str) else list(key or ())
        self.options, self.model, self.verbose = options, model, verbose

    def fit(self, reference: AnnData) -> ReferenceAnnotator:
        """Read labels, donors and counts of the reference.

        Raises
        ------
        DataError
            A column or layer does not exist, labels do not nest, or no cell has a label.
        """
        options, finest = self.options, self.levels[-1]
        self.table, self.parents = label_table(reference, self.levels)
        report_unlabelled(reference, finest, self.verbose)
        self.rows = np.flatnonzero(self.table[finest].notna().to_numpy())
        if len(self.rows) == 0:
            raise DataError(f"The column '{finest}' of the reference holds no label.")
        self.cells = read_human_cells(
            reference, options.reference_layer or options.layer, options.gene_column, options.force
        )
        donors = options.donor_key
        self.donors = (
            as_text(reference.obs[donors])[self.rows]
            if donors is not None and donors in reference.obs
            else np.full(len(self.rows), "")
        )
        return self

    def predict(self, adata: AnnData) -> Annotation:
        """Name the cells of ``adata``.

        Raises
        ------
        DataError
            Reference and query share fewer than 300 genes (50 with ``force``).
        """
        options = self.options
        query = read_human_cells(adata, options.layer, options.gene_column, options.force)
        training = self._training_cells(query)
        ensemble, classifier = training.fit(options.cache, self.verbose)
        values = shared_values(query, training.genes[:, 0], np.arange(len(query)))
        logits = None
        if classifier is not None and ensemble.network_share > 0:
            logits = log_probabilities(classifier, values, training.genes[:, 1])
        p = ensemble.probabilities(values, logits)
        is_novel = ensemble.is_novel(values, p, training.x, options.seed)
        is_novel |= np.diff(values.indptr) == 0
        pcs = own_components(values, options.seed)
        shift = StudyShift.of(values, pcs, p, ensemble.profiles, ensemble.usual, options.seed)
        absent, doubtful = shift.is_absent(), shift.is_doubtful(options.error_rate)
        report_shift(shift, absent, doubtful, options, self.verbose)
        if options.across_studies:
            is_novel |= absent | doubtful
        probabilities, classes = roll_up(p, ensemble.names, self.levels, self.parents)
        threshold = ensemble.threshold(options.error_rate)
        provenance = {
            "mode": "reference",
            "values": query.values.sentence,
            "reference_values": self.cells.values.sentence,
            "genes": len(training.genes),
            "reference_cells": len(self.rows),
            "error_rate": options.error_rate,
            "seed": options.seed,
            "classes": len(ensemble.names),
            "model": self.model.config.name,
            "parents": parent_codes(classes, self.levels, self.parents),
            "threshold": threshold,
            "study_shift": shift.size,
            "not_fitting": int(absent.sum()),
            "doubtful": int(doubtful.sum()),
            **ensemble.report,
        }
        return Annotation(
            adata.obs_names,
            classes,
            probabilities,
            threshold,
            ensemble.curve,
            is_novel,
            provenance,
            pcs,
        )

    def _training_cells(self, query: CellReader) -> ReferenceCells:
        """The labeled cells on the genes that both sides measured."""
        shared = np.intersect1d(self.cells.genes, query.genes)
        least = 50 if self.options.force else 300
        if len(shared) < least:
            forced = ", or pass force=True" if len(shared) >= 50 else ""
            raise DataError(
                f"Reference and query share {len(shared)} genes (reference {len(self.cells.genes)}, query {len(query.genes)}); "
                f"at least {least} are needed to separate cell types. Check species and gene names{forced}."
            )
        say(
            f"{len(shared):,} genes are in both; {len(self.rows):,} labeled reference cells",
            self.verbose,
        )
        x = shared_values(self.cells, shared, self.rows)
        fewest = min(MIN_CELLS_PER_GENE, max(1, len(self.rows) // 20))
        keep = np.bincount(x.indices, minlength=x.shape[1]) >= fewest
        shared, x = shared[keep], x[:, keep]
        names = self.table[self.levels[-1]].astype(str).to_numpy()[self.rows]
        human = all_human_genes()
        place = {gene: i for i, gene in enumerate(self.model.genes.ensembl_ids)}
        inside = np.array([place.get(human[i], -1) for i in shared], dtype=np.int64)
        steps = self.options.finetune_steps
        if steps and (inside >= 0).sum() < MIN_NETWORK_GENES:
            say(
                f"the model '{self.model.config.name}' reads {int((inside >= 0).sum())} of these genes "
                f"({MIN_NETWORK_GENES} needed): skipping the network",
                self.verbose,
            )
            steps = 0
        genes = np.column_stack([shared, inside])
        return ReferenceCells(self.model, x, genes, names, self.donors, steps, self.options.seed)


def report_shift(
    shift: StudyShift,
    absent: np.ndarray,
    doubtful: np.ndarray,
    options: AnnotateOptions,
    verbose: bool,
) -> None:
    """Print how many calls do not fit because query and reference differ, and what becomes of them."""
    if not shift.is_shifted:
        return
    numbers = f"{absent.sum():,} cells whose cluster does not fit its type and {(doubtful & ~absent).sum():,} of uncertain type"
    what = (
        f"{numbers} are Unassigned"
        if options.across_studies
        else f"more than {options.error_rate:.0%} of the calls may be wrong; across_studies=True leaves {numbers} Unassigned"
    )
    say(f"the cells differ from the reference as cells of different studies do: {what}", verbose)


def is_unlabelled(labels: pd.Series) -> pd.Series:
    """(n,) bool: missing values, and words that mean that a cell has no label (:data:`UNLABELLED`)."""
    return labels.isna() | labels.astype(str).str.strip().str.casefold().isin(UNLABELLED)


def report_unlabelled(reference: AnnData, column: str, verbose: bool) -> None:
    """Print how many reference cells have no label, and the values found instead."""
    labels = reference.obs[column]
    absent = labels[is_unlabelled(labels)].astype(object)
    if len(absent):
        words = absent.where(absent.notna(), "missing").astype(str).value_counts()
        found = ", ".join(f"{word!r} {number}" for word, number in words.items())
        say(f"{len(absent)} reference cells have no label and are not used ({found})", verbose)


def check_reference(known: AnnData, options: AnnotateOptions) -> None:
    """Check the columns of the reference and the folder of the cache before anything is read or fitted.

    Raises
    ------
    DataError
        There is no such column of labels or donors, or several; all labels are the same; or ``cache`` is a file.
    """
    key = options.label_key
    levels = [key] if isinstance(key, str) else list(key or ())
    _require_levels(known, levels)
    _require_types(known.obs[levels[-1]])
    donor = options.donor_key
    if donor is not None and (donor in known.obs or donor != AnnotateOptions().donor_key):
        require_column(known.obs, donor, "of the reference, with the donors")
    if isinstance(options.cache, (str, PathLike)):
        folder = Path(options.cache)
        if folder.exists() and not folder.is_dir():
            raise DataError(f"cache is {folder}, a file; give a folder, or cache=False.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"The cache {folder} cannot be made ({error.strerror}). Give another folder, or cache=False."
            ) from error


def _require_levels(known: AnnData, levels: list[str]) -> None:
    """Refuse label columns that do not exist, or are named twice."""
    for number, column in enumerate(levels):
        if column not in known.obs:
            raise DataError(
                f"The reference has no column '{column}'; it has {', '.join(map(str, known.obs.columns))}."
            )
        labels = require_column(known.obs, column)
        if column in levels[:number]:
            raise DataError(f"label_key names the column '{column}' twice. Name each level once.")
        warn_similar(labels.dropna().unique(), column)


def _require_types(labels: pd.Series) -> None:
    """Refuse one cell type, and warn of a reference too small to notice cells of other types."""
    types = labels[~is_unlabelled(labels)].astype(str)
    if types.nunique() == 1:
        raise DataError(
            f"The column '{labels.name}' of the reference has one cell type, '{types.iloc[0]}', so every cell would get "
            "it. Use a reference with at least two cell types, or marker genes (markers=)."
        )
    if 0 < len(types) < FEWEST:
        warnings.warn(
            f"The reference has {len(types)} labeled cells. With fewer than {FEWEST}, cells of types that it lacks get one "
            "of its types instead of 'Unassigned'. Use a larger reference.",
            stacklevel=4,
        )


def label_table(
    known: AnnData, levels: list[str]
) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """The label columns, and for every level below the first the parent of each class.

    Raises
    ------
    DataError
        A missing column, or a class with two parents.
    """
    _require_levels(known, levels)
    table = known.obs[levels].copy()
    for column in levels:
        table[column] = table[column].astype(object).where(~is_unlabelled(table[column]), None)
    parents: dict[str, dict[str, str]] = {}
    for coarse, fine in zip(levels, levels[1:]):
        pairs = table[[fine, coarse]].dropna().astype(str).drop_duplicates()
        double = pairs[fine][pairs[fine].duplicated()].unique()
        if len(double):
            raise DataError(
                f"'{double[0]}' of '{fine}' belongs to more than one class of '{coarse}'. Levels must nest; give one column, "
                "or rename the classes."
            )
        parents[fine] = dict(zip(pairs[fine], pairs[coarse]))
    return table, parents


def roll_up(
    p: np.ndarray, names: list[str], levels: list[str], parents: dict[str, dict[str, str]]
) -> tuple[dict, dict]:
    """Probabilities of coarse classes are sums of their fine ones."""
    probabilities, classes = {levels[-1]: p}, {levels[-1]: names}
    for coarse, fine in reversed(list(zip(levels, levels[1:]))):
        above = [parents[fine].get(name, name) for name in classes[fine]]
        found = sorted(set(above))
        gather = np.array([[a == name for name in found] for a in above], dtype=float)
        # The sum of rounded numbers may exceed 1.
        probabilities[coarse], classes[coarse] = np.minimum(probabilities[fine] @ gather, 1), found
    order = ["type"] if len(levels) == 1 else levels
    return {o: probabilities[k] for o, k in zip(order, levels)}, {
        o: classes[k] for o, k in zip(order, levels)
    }


def parent_codes(
    classes: dict[str, list[str]], levels: list[str], parents: dict[str, dict[str, str]]
) -> dict[str, list[int]]:
    """Level -> for each of its classes the position of its parent."""
    if len(levels) == 1:
        return {}
    return {
        fine: [classes[coarse].index(parents[fine].get(n, n)) for n in classes[fine]]
        for coarse, fine in zip(levels, levels[1:])
    }


@dataclass
class ReferenceCells:
    """Labeled cells and everything that a fit to them depends on.

    Attributes
    ----------
    model
        The pre-trained network.
    x
        (n, g) log1p(CP10k).
    genes
        (g, 2) position of each gene in the annotation, and in the vocabulary of the model (-1: not in it).
    names, groups
        (n,) class and donor of each cell.
    steps
        Steps of fine-tuning; 0: without the network.
    seed
        Seed of folds, components and fine-tuning.
    """

    model: Model
    x: sparse.csr_matrix
    genes: np.ndarray
    names: np.ndarray
    groups: np.ndarray
    steps: int
    seed: int

    def fit(
        self, cache: bool | str | PathLike[str], verbose: bool
    ) -> tuple[CellTypeEnsemble, Model | None]:
        """The ensemble and the fine-tuned network; from the cache if these cells were fitted before."""
        folder = (
            Path(cache) if isinstance(cache, (str, PathLike)) else cache_folder() / "references"
        )
        path = folder / self.fingerprint()
        if cache is not False and (kept := self._read(path, verbose)) is not None:
            return kept
        if self.steps and self.model.device.type == "cpu":
            shorter = "finetune_steps=0 omits the network"
            factor = self.steps / 400  # as measured
            report_expected("annotate network", 0, shorter, factor=factor, verbose=verbose)
        elif not self.steps:
            shorter = "fewer labeled cells are faster"
            report_expected("annotate reference", len(self.names), shorter, verbose=verbose)
        classifier, scores = self.fit_network(verbose) if self.steps else (None, None)
        ensemble = fit_ensemble(
            self.x, self.names, self.groups, network=scores, seed=self.seed, verbose=verbose
        )
        if cache is not False:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.mkdir()
                ensemble.write(temporary / "ensemble.npz")
                if classifier is not None:
                    card = (
                        "Fine-tuned on a reference by scmamba.annotate; kept for the next query.\n"
                    )
                    save_checkpoint(classifier, temporary / "network", card=card)
        return ensemble, classifier

    def _read(self, path: Path, verbose: bool) -> tuple[CellTypeEnsemble, Model | None] | None:
        if not path.is_dir():
            return None
        try:
            kept = (
                CellTypeEnsemble.read(path / "ensemble.npz"),
                load_model(path / "network", device=self.model.device) if self.steps else None,
            )
        except (ScMambaError, OSError, ValueError, KeyError):
            # A damaged cache is no reason to stop.
            say("the cached fit of this reference cannot be read; fitting again", verbose)
            shutil.rmtree(path, ignore_errors=True)
            return None
        say("using the cached fit of this reference", verbose)
        return kept

    def fingerprint(self) -> str:
        """Name of the fit in the cache, from everything it depends on."""
        about = [
            __version__,
            BASE_CLASSIFIERS,
            REFERENCE_FORMAT,
            self.model.config.name,
            self.steps,
            self.seed,
            list(self.names),
            list(self.groups),
        ]
        digest = hashlib.sha256(json.dumps(about).encode())
        for part in (self.x.data, self.x.indices, self.x.indptr, self.genes):
            digest.update(np.ascontiguousarray(part).tobytes())
        digest.update(self.model.gene_embedding().numpy().tobytes())
        return digest.hexdigest()[:24]

    def fit_network(self, verbose: bool) -> tuple[Model, tuple[np.ndarray, np.ndarray]]:
        """Fine-tune on two thirds of the donors; returns the network, and its scores for the cells of the held-out third."""
        from ..training.batches import CellSource, SequenceConfig
        from ..training.dataloaders import InMemorySource
        from ..training.finetune_classifier import LabelledCells, classification, linear_probe_init
        from ..training.trainer import TrainerConfig, fit

        classes, codes = np.unique(self.names, return_inverse=True)
        inside = self.genes[:, 1]
        held = donor_folds(self.groups, codes, 3, self.seed) == 0
        train = np.flatnonzero(~held & (np.diff(self.x.indptr) > 0))
        values, positions = readable(self.x[train], inside)
        donors, totals = np.full(len(train), ""), np.full(len(train), 1e4)
        source = CellSource(
            "reference", sparse.csr_matrix(values, dtype=np.float32), positions, donors, totals
        )
        own = codes[train]
        sizes = np.bincount(own, minlength=len(classes))
        feed = InMemorySource([source])
        labelled = LabelledCells(
            feed, lambda part: own[part.rows], list(classes), sizes, feed.sample
        )
        tuned = linear_probe_init(
            self.model, labelled, name="reference", seed=self.seed, balance=0.5, verbose=verbose
        )
        loop = TrainerConfig(steps=self.steps, batch_size=16, lr=1e-3, warmup=0.1, seed=self.seed)
        sequence = SequenceConfig(mask_nonzero=0.0, mask_zero=0.0, genes_per_step=1536)
        step = classification(labelled, sequence, loop, balance=0.5)
        fit(tuned.network, step, loop, description="Fine-tuning on the reference", verbose=verbose)
        rows = np.flatnonzero(held)
        scores = log_probabilities(tuned, self.x[rows], inside)
        tuned.calibration = fit_calibration(scores, codes[rows])
        return tuned, (rows, scores)


def readable(x: sparse.csr_matrix, genes: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The columns in the vocabulary of the network, in its order, and their positions there."""
    columns = np.flatnonzero(genes >= 0)
    columns = columns[np.argsort(genes[columns], kind="stable")]
    return sparse.csr_matrix(x[:, columns]), genes[columns]


def log_probabilities(classifier: Model, x: sparse.csr_matrix, genes: np.ndarray) -> np.ndarray:
    """(n, classes) of the network, for (n, g) log1p(CP10k) of ``genes`` (input_positions in its vocabulary, -1: not in it)."""
    import torch

    x, genes = readable(x, genes)
    out = np.empty((x.shape[0], classifier.config.n_classes))
    which = torch.as_tensor(genes)
    for start in range(0, x.shape[0], 256):
        block = x[start : start + 256].toarray().astype(np.float32)
        if classifier.config.reads == "all":
            whole = np.zeros((len(block), len(classifier.genes)), dtype=np.float32)
            whole[:, genes] = block
            logits = classifier.classify(whole)
        else:
            logits = classifier.classify(block, genes=which)
        out[start : start + 256] = np.log(softmax(logits.double().numpy(), axis=1) + 1e-12)
    return out
