"""Cell types from a labelled reference."""

from __future__ import annotations

import hashlib
import json
import shutil
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import softmax

from .._version import __version__
from ..data import read_cells
from ..data.storage import cache_folder
from ..model import Model, load_model, save_checkpoint
from ..training.calibration import fit_calibration
from ..utils.atomic import atomic_path
from ..utils.errors import DataError, ScMambaError
from ..utils.progress import say
from .base_classifiers import BASE_CLASSIFIERS
from .ensemble import CellTypeEnsemble, donor_folds, fit_ensemble
from .expression import all_human_genes, shared_values
from .result import Annotation, own_components, report_counts

if TYPE_CHECKING:
    from anndata import AnnData

#: Fine-tuning of the network on a reference, in steps of 16 cells.
NETWORK_STEPS = 400
#: Counts the ways in which references were learnt: what was kept of an older one is not read.
REFERENCE_FORMAT = 2


def from_reference(
    adata: AnnData,
    known: AnnData,
    levels: list[str],
    model: Any,
    donor: str | None,
    layer: str | None,
    gene_column: str | None,
    network: bool | int,
    error_rate: float,
    device: str | None,
    cache: Any,
    seed: int,
    force: bool,
    verbose: bool,
) -> Annotation:
    opened = load_model(model, device=device)
    table, parents = label_table(known, levels)
    rows = np.flatnonzero(table[levels[-1]].notna().to_numpy())
    if len(rows) < len(known):
        say(f"{len(known) - len(rows)} reference cells without a label are left out", verbose)
    if len(rows) == 0:
        raise DataError(f"The column '{levels[-1]}' of the reference holds no label.")
    reads = dict(force=True, min_coverage=0.0)
    # The simple views know no vocabulary: a model of the brain lacks genes that tell blood cells apart.
    human = all_human_genes()
    theirs = read_cells(known, human, layer=layer, gene_column=gene_column, **reads)  # type: ignore[arg-type]
    ours = read_cells(adata, human, layer=layer, gene_column=gene_column, **reads)  # type: ignore[arg-type]
    shared = np.intersect1d(theirs.genes, ours.genes)
    if len(shared) < (50 if force else 300):
        raise DataError(
            f"Reference and query share {len(shared)} genes (reference {len(theirs.genes)}, query {len(ours.genes)}); "
            "at least 300 are needed for types to be told apart. Check species and gene names, or pass force=True."
        )
    say(f"{len(shared):,} genes are in both; {len(rows):,} labelled reference cells", verbose)
    x = shared_values(theirs, shared, rows)
    keep = np.bincount(x.indices, minlength=x.shape[1]) >= min(5, max(1, len(rows) // 20))
    shared, x = shared[keep], x[:, keep]
    names = table[levels[-1]].astype(str).to_numpy()[rows]
    has_donor = donor is not None and donor in known.obs
    groups = known.obs[donor].astype(str).to_numpy()[rows] if has_donor else np.full(len(rows), "")
    steps = (
        0
        if network is False or len(np.unique(names)) < 2
        else NETWORK_STEPS
        if network is True
        else int(network)
    )
    place = {gene: i for i, gene in enumerate(opened.genes.ensembl_ids)}
    inside = np.array([place.get(human[i], -1) for i in shared], dtype=np.int64)
    if steps and (inside >= 0).sum() < 50:
        say(
            f"the model '{opened.config.name}' reads {int((inside >= 0).sum())} of these genes; the network is left out",
            verbose,
        )
        steps = 0
    typist, classifier = _learnt(
        opened, x, np.column_stack([shared, inside]), names, groups, steps, seed, cache, verbose
    )
    values = shared_values(ours, shared, np.arange(len(ours)))
    logits = None
    if classifier is not None and typist.network_share > 0:
        logits = log_probabilities(classifier, values, inside)
    p = typist.probabilities(values, logits)
    is_novel = typist.is_novel(values, p, x, seed) | (np.diff(values.indptr) == 0)
    probabilities, classes = roll_up(p, typist.names, levels, parents)
    provenance = {
        "way": "reference",
        "genes": len(shared),
        "reference_cells": len(rows),
        "error_rate": error_rate,
        "seed": seed,
        "classes": len(typist.names),
        "model": opened.config.name,
        "parents": parent_codes(classes, levels, parents),
        "threshold": typist.threshold(error_rate),
        **typist.report,
    }
    answer = Annotation(
        adata.obs_names,
        classes,
        probabilities,
        typist.threshold(error_rate),
        typist.curve,
        is_novel,
        provenance,
        own_components(values, seed),
    )
    report_counts(answer, verbose)
    return answer


def label_table(
    known: AnnData, levels: list[str]
) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """The label columns, and for every level below the first the parent of each class.

    Raises
    ------
    DataError
        A missing column, or a class with two parents.
    """
    for column in levels:
        if column not in known.obs:
            raise DataError(
                f"The reference has no column '{column}'; it has {', '.join(map(str, known.obs.columns))}."
            )
    table = known.obs[levels].copy()
    for column in levels:
        table[column] = table[column].astype(object).where(table[column].notna(), None)
    parents: dict[str, dict[str, str]] = {}
    for coarse, fine in zip(levels, levels[1:]):
        pairs = table[[fine, coarse]].dropna().astype(str).drop_duplicates()
        double = pairs[fine][pairs[fine].duplicated()].unique()
        if len(double):
            raise DataError(
                f"'{double[0]}' of '{fine}' stands below more than one class of '{coarse}'. Levels must nest; give one column, "
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
        probabilities[coarse], classes[coarse] = probabilities[fine] @ gather, found
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


def _learnt(
    model: Model,
    x: sparse.csr_matrix,
    genes: np.ndarray,
    names: np.ndarray,
    groups: np.ndarray,
    steps: int,
    seed: int,
    cache: Any,
    verbose: bool,
) -> tuple[CellTypeEnsemble, Model | None]:
    """From the cache if this reference was learnt before, else learnt now and kept; ``genes`` (g, 2): which, and where in the model."""
    key = _fingerprint(model, x, genes, names, groups, steps, seed)
    folder = Path(cache) if isinstance(cache, (str, PathLike)) else cache_folder() / "references"
    path = folder / key
    if cache is not False and path.is_dir():
        try:
            kept = (
                CellTypeEnsemble.read(path / "typist.npz"),
                load_model(path / "network", device=model.device) if steps else None,
            )
            say("this reference was learnt before; what was kept is used", verbose)
            return kept
        except (
            ScMambaError,
            OSError,
            ValueError,
            KeyError,
        ):  # a damaged cache is no reason to stop
            say("what was kept of this reference cannot be read; it is learnt again", verbose)
            shutil.rmtree(path, ignore_errors=True)
    classifier, shown = None, None
    if steps:
        classifier, shown = _network_view(
            model, x, genes[:, 1], names, groups, steps, seed, verbose
        )
    typist = fit_ensemble(x, names, groups, network=shown, seed=seed, verbose=verbose)
    if cache is not False:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.mkdir()
            typist.write(temporary / "typist.npz")
            if classifier is not None:
                card = "Fine-tuned on a reference by scmamba.annotate; kept for the next query.\n"
                save_checkpoint(classifier, temporary / "network", card=card)
    return typist, classifier


def _fingerprint(
    model: Model,
    x: sparse.csr_matrix,
    genes: np.ndarray,
    names: np.ndarray,
    groups: np.ndarray,
    steps: int,
    seed: int,
) -> str:
    about = [
        __version__,
        BASE_CLASSIFIERS,
        REFERENCE_FORMAT,
        model.config.name,
        steps,
        seed,
        list(names),
        list(groups),
    ]
    digest = hashlib.sha256(json.dumps(about).encode())
    for part in (x.data, x.indices, x.indptr, genes):
        digest.update(np.ascontiguousarray(part).tobytes())
    digest.update(model.gene_embedding().numpy().tobytes())
    return digest.hexdigest()[:24]


def _network_view(
    model: Model,
    x: sparse.csr_matrix,
    genes: np.ndarray,
    names: np.ndarray,
    groups: np.ndarray,
    steps: int,
    seed: int,
    verbose: bool,
) -> tuple[Model, tuple[np.ndarray, np.ndarray]]:
    """Fine-tune on two thirds of the donors; its answers for the others say what share it deserves."""
    from ..training.batches import CellSource, SequenceConfig
    from ..training.dataloaders import InMemorySource
    from ..training.finetune_classifier import LabelledCells, classification, linear_probe_init
    from ..training.trainer import TrainerConfig, fit

    classes, codes = np.unique(names, return_inverse=True)
    held = donor_folds(groups, codes, 3, seed) == 0
    train = np.flatnonzero(~held & (np.diff(x.indptr) > 0))
    seen, positions_seen = readable(x[train], genes)
    nobody, totals = np.full(len(train), ""), np.full(len(train), 1e4)
    source = CellSource(
        "reference", sparse.csr_matrix(seen, dtype=np.float32), positions_seen, nobody, totals
    )
    own = codes[train]
    sizes = np.bincount(own, minlength=len(classes))
    feed = InMemorySource([source])
    labelled = LabelledCells(feed, lambda part: own[part.rows], list(classes), sizes, feed.sample)
    tuned = linear_probe_init(
        model, labelled, name="reference", seed=seed, balance=0.5, verbose=verbose
    )
    loop = TrainerConfig(steps=steps, batch_size=16, lr=1e-3, warmup=0.1, seed=seed)
    sequence = SequenceConfig(mask_nonzero=0.0, mask_zero=0.0, genes_per_step=1536)
    step = classification(labelled, sequence, loop, balance=0.5)
    fit(tuned.network, step, loop, description="Fine-tuning on the reference", verbose=verbose)
    rows = np.flatnonzero(held)
    shown = log_probabilities(tuned, x[rows], genes)
    tuned.calibration = fit_calibration(shown, codes[rows])
    return tuned, (rows, shown)


def readable(x: sparse.csr_matrix, genes: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The columns the network knows, in the order of its vocabulary, and their input_positions there."""
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
