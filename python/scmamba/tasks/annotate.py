"""Cell types: from a labelled reference, from a checkpoint with labels, or from marker genes alone (paper, "Cell type annotation")."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from .. import __version__
from .._errors import DataError, ScMambaError
from .._files import atomic_path
from .._progress import say
from ..data import Cells, read_cells
from ..data.files import open_backed
from ..data.preprocess import log1p_cp10k
from ..data.stores import cache_folder
from ..genes import Vocabulary, annotation
from ..model import Model, load_model, save_checkpoint
from ..training.typing import Typist, learn_types, softmax
from ._common import KEY, dense_input, positions

if TYPE_CHECKING:
    from anndata import AnnData

#: What a cell is called whose type is not certain enough.
UNASSIGNED = "Unassigned"
#: A cell further from, or more surprising than, all but this share of the cells of its class is like nothing in the reference.
_STRANGE = 0.01
#: Fine-tuning of the network on a reference, in steps of 16 cells.
NETWORK_STEPS = 400


@dataclass
class Annotation:
    """What the cells are.

    Attributes
    ----------
    cells
        (n,) names.
    levels
        Level -> its classes, coarse to fine; one level is called ``type``.
    probabilities
        Level -> (n, classes) calibrated.
    threshold
        Cells whose best class is less probable are :data:`UNASSIGNED`.
    curve
        (points, 3) threshold, share of cells kept, accuracy, on donors left out; empty where there was no reference.
    strange
        (n,) True: as far from the reference as hardly any of its own cells.
    """

    cells: pd.Index
    levels: dict[str, list[str]]
    probabilities: dict[str, np.ndarray]
    threshold: float
    curve: np.ndarray
    strange: np.ndarray
    provenance: dict[str, Any] = field(default_factory=dict)

    def labels(self, level: str | None = None) -> np.ndarray:
        """(n,) class or ``Unassigned``; of a fine level only what belongs to the coarse class given."""
        names = list(self.levels)
        level = level or names[-1]
        best = self._consistent(level)
        p = self.probabilities[level]
        found = np.array(self.levels[level], dtype=object)[best]
        unsure = (p[np.arange(len(p)), best] < self.threshold) | self.strange
        return np.where(unsure, UNASSIGNED, found)

    def _consistent(self, level: str) -> np.ndarray:
        names = list(self.levels)
        p = self.probabilities[level]
        if level == names[0]:
            return p.argmax(axis=1)
        above = names[names.index(level) - 1]
        parent = np.array(self.provenance["parents"][level])
        return np.where(parent[None, :] == self._consistent(above)[:, None], p, -1.0).argmax(axis=1)

    def to_table(self) -> pd.DataFrame:
        """One row per cell: class, probability and the three likeliest classes of every level."""
        out: dict[str, Any] = {}
        for level in self.levels:
            p, names = self.probabilities[level], np.array(self.levels[level], dtype=object)
            suffix = "" if level == "type" else f"_{level}"
            order = np.argsort(-p, axis=1, kind="stable")[:, :3]
            out[f"{KEY}_type{suffix}"] = pd.Categorical(self.labels(level), categories=[*names, UNASSIGNED])
            out[f"{KEY}_probability{suffix}"] = p[np.arange(len(p)), self._consistent(level)]
            out[f"{KEY}_alternatives{suffix}"] = [
                "; ".join(f"{names[j]} {p[i, j]:.2f}" for j in order[i]) for i in range(len(p))
            ]
        return pd.DataFrame(out, index=self.cells)

    def to_adata(self, adata: AnnData) -> AnnData:
        """Write the table into ``obs`` and provenance into ``uns["scmamba"]["annotate"]``."""
        table = self.to_table()
        for column in table:
            adata.obs[column] = table[column].to_numpy() if table[column].dtype == object else table[column].array
        notes = dict(adata.uns.get(KEY, {}))
        notes["annotate"] = {k: v for k, v in self.provenance.items() if k != "parents"} | {"version": __version__}
        adata.uns[KEY] = notes
        return adata

    def report(self, truth: Sequence[str], level: str | None = None) -> pd.DataFrame:
        """Precision, recall, F1 and cells per class against known types; unassigned cells count as missed."""
        from sklearn.metrics import precision_recall_fscore_support

        known = np.asarray(truth, dtype=str)
        names = sorted(set(known))
        p, r, f, n = precision_recall_fscore_support(known, self.labels(level).astype(str), labels=names, zero_division=0)
        return pd.DataFrame({"precision": p, "recall": r, "f1": f, "cells": n}, index=pd.Index(names, name="type"))

    def to_plots(self, truth: Sequence[str] | None = None) -> dict[str, Any]:
        """Figures: probabilities of the cells, coverage against accuracy, and the confusion with ``truth`` if it is given."""
        import matplotlib.pyplot as plt

        figures = {}
        figure, axis = plt.subplots(figsize=(5, 3.5))
        axis.hist(self.probabilities[list(self.levels)[-1]].max(axis=1), bins=40)
        axis.axvline(self.threshold, color="black", lw=1)
        axis.set(xlabel="probability of the best class", ylabel="cells")
        figures["probability"] = figure
        if len(self.curve):
            figure, axis = plt.subplots(figsize=(5, 3.5))
            axis.plot(100 * self.curve[:, 1], 100 * self.curve[:, 2])
            axis.set(xlabel="cells assigned, %", ylabel="of these right, % (donors left out)")
            figures["coverage"] = figure
        if truth is not None:
            table = pd.crosstab(np.asarray(truth, dtype=str), self.labels().astype(str), normalize="index")
            figure, axis = plt.subplots(figsize=(1.5 + 0.4 * table.shape[1], 1.5 + 0.35 * table.shape[0]))
            axis.imshow(table.to_numpy(), vmin=0, vmax=1, cmap="viridis")
            axis.set_xticks(range(table.shape[1]), table.columns, rotation=90)
            axis.set_yticks(range(table.shape[0]), table.index)
            axis.set(xlabel="called", ylabel="true")
            figures["confusion"] = figure
        for figure in figures.values():
            plt.close(figure)
        return figures


def brain_markers() -> dict[str, list[str]]:
    """The default panel: eight major brain types and genes each expresses (paper, marker genes; common knowledge of the field)."""
    text = (resources.files("scmamba") / "resources" / "brain_markers.tsv").read_text()
    rows = [line.split("\t") for line in text.splitlines()[1:] if line]
    return {name: genes.split(",") for name, genes in rows}


def annotate(
    adata: AnnData,
    *,
    reference: str | PathLike[str] | AnnData | None = None,
    labels: str | Sequence[str] | None = None,
    model: str | PathLike[str] | Model | None = None,
    markers: Mapping[str, Sequence[str]] | str | None = None,
    donor: str | None = "donor",
    layer: str | None = None,
    gene_column: str | None = None,
    network: bool | int = True,
    error_rate: float = 0.05,
    device: str | None = None,
    cache: bool | str | PathLike[str] = True,
    seed: int = 0,
    force: bool = False,
    verbose: bool = True,
) -> Annotation:
    """Say what type each cell is.

    Three ways: ``reference=`` another object with ``labels=`` (a column of its ``obs``, or several from coarse to fine);
    ``model=`` a checkpoint that classifies; or neither, then ``markers=`` (a mapping of types to genes; default the panel of
    :func:`brain_markers`).

    Parameters
    ----------
    donor
        Column of the reference with donors; probabilities are calibrated on donors left out (on cells left out where there are none).
    network
        With a reference: fine-tune the network (``model``, default ``brain-mini``) as well and give it the share that helps on
        donors left out; an integer sets the steps, ``False`` leaves it out and is much quicker.
    error_rate
        ``Unassigned`` are the cells below the probability above which at most this share was wrong on donors left out.
    cache
        Keep what was learnt from a reference, by its content, so that the next query is quick; a folder, or ``False``.

    Returns
    -------
    :class:`Annotation`; ``annotate(...).to_adata(adata)`` writes it into the object.

    Raises
    ------
    ScMambaError
        Columns that do not exist, labels that contradict each other, no genes in common, a model that does not classify.
    """
    if not 0 < error_rate < 1:
        raise ScMambaError(f"error_rate is {error_rate}; it must lie between 0 and 1, such as 0.05.")
    if reference is not None:
        known = open_backed(Path(reference)) if isinstance(reference, (str, PathLike)) else reference
        if labels is None:
            raise ScMambaError("Which column of the reference holds the types? Name it with labels=...")
        levels = [labels] if isinstance(labels, str) else list(labels)
        return _from_reference(
            adata, known, levels, model, donor, layer, gene_column, network, error_rate, device, cache, seed, force, verbose
        )
    if model is not None and markers is None:
        return _from_model(adata, load_model(model, device=device), layer, gene_column, force, verbose)
    panel = brain_markers() if markers is None or isinstance(markers, str) else {k: list(v) for k, v in markers.items()}
    return _from_markers(adata, panel, layer, gene_column, error_rate, seed, verbose)


# ---------------------------------------------------------------- from a reference


def _from_reference(adata: AnnData, known: AnnData, levels: list[str], model: Any, donor: str | None, layer: str | None,
                    gene_column: str | None, network: bool | int, error_rate: float, device: str | None, cache: Any, seed: int,
                    force: bool, verbose: bool) -> Annotation:  # fmt: skip
    opened = load_model(model, device=device)
    table, parents = label_table(known, levels)
    rows = np.flatnonzero(table[levels[-1]].notna().to_numpy())
    if len(rows) < len(known):
        say(f"{len(known) - len(rows)} reference cells without a label are left out", verbose)
    if len(rows) == 0:
        raise DataError(f"The column '{levels[-1]}' of the reference holds no label.")
    reads = dict(force=True, min_coverage=0.0)
    # The linear views know no vocabulary: a model of the brain lacks genes that tell blood cells apart.
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
    steps = 0 if network is False or len(np.unique(names)) < 2 else NETWORK_STEPS if network is True else int(network)
    place = {gene: i for i, gene in enumerate(opened.genes.ensembl_ids)}
    inside = np.array([place.get(human[i], -1) for i in shared], dtype=np.int64)
    if steps and (inside >= 0).sum() < 50:
        say(f"the model '{opened.config.name}' reads {int((inside >= 0).sum())} of these genes; the network is left out", verbose)
        steps = 0
    typist, classifier = _learnt(opened, x, np.column_stack([shared, inside]), names, groups, steps, seed, cache, verbose)
    values = shared_values(ours, shared, np.arange(len(ours)))
    logits = None
    if classifier is not None and typist.network_share > 0:
        logits = log_probabilities(classifier, values, inside)
    p = typist.probabilities(values, logits)
    best = p.argmax(axis=1)
    strange = typist.strangeness(values, best) < _STRANGE
    strange |= np.diff(values.indptr) == 0
    probabilities, classes = roll_up(p, typist.names, levels, parents)
    provenance = {"way": "reference", "genes": len(shared), "reference_cells": len(rows), "error_rate": error_rate, "seed": seed,
                  "classes": len(typist.names), "model": opened.config.name, "parents": parent_codes(classes, levels, parents),
                  "threshold": typist.threshold(error_rate), **typist.report}  # fmt: skip
    answer = Annotation(adata.obs_names, classes, probabilities, typist.threshold(error_rate), typist.curve, strange, provenance)
    _tell(answer, verbose)
    return answer


def label_table(known: AnnData, levels: list[str]) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    """The label columns, and for every level below the first the parent of each class.

    Raises
    ------
    DataError
        A missing column, or a class with two parents.
    """
    for column in levels:
        if column not in known.obs:
            raise DataError(f"The reference has no column '{column}'; it has {', '.join(map(str, known.obs.columns))}.")
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


def roll_up(p: np.ndarray, names: list[str], levels: list[str], parents: dict[str, dict[str, str]]) -> tuple[dict, dict]:
    """Probabilities of coarse classes are sums of their fine ones."""
    probabilities, classes = {levels[-1]: p}, {levels[-1]: names}
    for coarse, fine in reversed(list(zip(levels, levels[1:]))):
        above = [parents[fine].get(name, name) for name in classes[fine]]
        found = sorted(set(above))
        gather = np.array([[a == name for name in found] for a in above], dtype=float)
        probabilities[coarse], classes[coarse] = probabilities[fine] @ gather, found
    order = ["type"] if len(levels) == 1 else levels
    return {o: probabilities[k] for o, k in zip(order, levels)}, {o: classes[k] for o, k in zip(order, levels)}


def parent_codes(classes: dict[str, list[str]], levels: list[str], parents: dict[str, dict[str, str]]) -> dict[str, list[int]]:
    """Level -> for each of its classes the position of its parent."""
    if len(levels) == 1:
        return {}
    return {fine: [classes[coarse].index(parents[fine].get(n, n)) for n in classes[fine]] for coarse, fine in zip(levels, levels[1:])}


def all_human_genes() -> Vocabulary:
    """Every gene of the annotation, in and out of the models' vocabularies."""
    table = annotation().drop_duplicates("ensembl_id")
    return Vocabulary(tuple(table["ensembl_id"]), tuple(table["symbol"]))


def shared_values(cells: Cells, genes: np.ndarray, rows: np.ndarray) -> sparse.csr_matrix:
    """(r, g) log1p(CP10k) over the genes both sides measured: normalised over these, so that depth means the same on both sides."""
    where = np.searchsorted(cells.genes, genes)
    blocks = []
    for start in range(0, len(rows), 2000):
        values, _ = cells.to_model(cells.linear(rows[start : start + 2000]))
        values = sparse.csr_matrix(values[:, where], dtype=np.float64)
        values.data = np.expm1(values.data)
        blocks.append(log1p_cp10k(values, np.asarray(values.sum(axis=1)).ravel()))
    return sparse.csr_matrix(sparse.vstack(blocks, format="csr"), dtype=np.float64)


def _learnt(model: Model, x: sparse.csr_matrix, genes: np.ndarray, names: np.ndarray, groups: np.ndarray, steps: int, seed: int,
            cache: Any, verbose: bool) -> tuple[Typist, Model | None]:  # fmt: skip
    """From the cache if this reference was learnt before, else learnt now and kept; ``genes`` (g, 2): which, and where in the model."""
    key = _fingerprint(model, x, genes, names, groups, steps, seed)
    folder = Path(cache) if isinstance(cache, (str, PathLike)) else cache_folder() / "references"
    path = folder / key
    if cache is not False and path.is_dir():
        try:
            kept = Typist.read(path / "typist.npz"), load_model(path / "network", device=model.device) if steps else None
            say("this reference was learnt before; what was kept is used", verbose)
            return kept
        except (ScMambaError, OSError, ValueError, KeyError):  # a damaged cache is no reason to stop
            say("what was kept of this reference cannot be read; it is learnt again", verbose)
            shutil.rmtree(path, ignore_errors=True)
    classifier, shown = None, None
    if steps:
        classifier, shown = _network_view(model, x, genes[:, 1], names, groups, steps, seed, verbose)
    typist = learn_types(x, names, groups, network=shown, seed=seed, verbose=verbose)
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
    model: Model, x: sparse.csr_matrix, genes: np.ndarray, names: np.ndarray, groups: np.ndarray, steps: int, seed: int
) -> str:
    digest = hashlib.sha256(json.dumps([__version__, model.config.name, steps, seed, list(names), list(groups)]).encode())
    for part in (x.data, x.indices, x.indptr, genes):
        digest.update(np.ascontiguousarray(part).tobytes())
    digest.update(model.gene_embedding().numpy().tobytes())
    return digest.hexdigest()[:24]


def _network_view(model: Model, x: sparse.csr_matrix, genes: np.ndarray, names: np.ndarray, groups: np.ndarray, steps: int, seed: int,
                  verbose: bool) -> tuple[Model, tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Fine-tune on two thirds of the donors; its answers for the others say what share it deserves."""
    from ..training.classes import Labelled, classification, fresh_classifier
    from ..training.feeds import SourceFeed
    from ..training.loop import LoopConfig, fit
    from ..training.sequences import SequenceConfig, Source
    from ..training.typing import folds

    classes, codes = np.unique(names, return_inverse=True)
    held = folds(groups, codes, 3, seed) == 0
    train = np.flatnonzero(~held & (np.diff(x.indptr) > 0))
    seen, positions_seen = readable(x[train], genes)
    nobody, totals = np.full(len(train), ""), np.full(len(train), 1e4)
    source = Source("reference", sparse.csr_matrix(seen, dtype=np.float32), positions_seen, nobody, totals)
    own = codes[train]
    sizes = np.bincount(own, minlength=len(classes))
    labelled = Labelled(SourceFeed([source]), lambda part: own[part.rows], list(classes), sizes, lambda number: [])
    tuned = fresh_classifier(model, list(classes), name="reference", seed=seed)
    loop = LoopConfig(steps=steps, batch_size=16, lr=1e-3, warmup=0.1, seed=seed)
    sequence = SequenceConfig(mask_nonzero=0.0, mask_zero=0.0, genes_per_step=1536)
    step = classification(labelled, sequence, loop, balance=0.5)
    fit(tuned.network, step, loop, description="Fine-tuning on the reference", verbose=verbose)
    rows = np.flatnonzero(held)
    return tuned, (rows, log_probabilities(tuned, x[rows], genes))


def readable(x: sparse.csr_matrix, genes: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The columns the network knows, in the order of its vocabulary, and their positions there."""
    columns = np.flatnonzero(genes >= 0)
    columns = columns[np.argsort(genes[columns], kind="stable")]
    return sparse.csr_matrix(x[:, columns]), genes[columns]


def log_probabilities(classifier: Model, x: sparse.csr_matrix, genes: np.ndarray) -> np.ndarray:
    """(n, classes) of the network, for (n, g) log1p(CP10k) of ``genes`` (positions in its vocabulary, -1: not in it)."""
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
        out[start : start + 256] = np.log(softmax(logits.double().numpy()) + 1e-12)
    return out


# ---------------------------------------------------------------- from a model


def _from_model(adata: AnnData, model: Model, layer: str | None, gene_column: str | None, force: bool, verbose: bool) -> Annotation:
    if not model.config.n_classes or not model.labels:
        raise ScMambaError(
            f"The model '{model.config.name}' does not classify. Give a labelled reference (reference=, labels=), markers=, or fine-tune "
            "a classifier with 'scmamba finetune --task annotate'."
        )
    cells = read_cells(adata, model.genes, layer=layer, gene_column=gene_column, force=force)
    say(cells.match.summary(), verbose)
    _, genes = positions(model, cells)
    p = np.empty((len(cells), model.config.n_classes))
    for rows in cells.blocks(256):
        x, _ = dense_input(model, cells, cells.linear(rows))
        p[rows] = softmax(model.classify(x, genes=genes).double().numpy())
    provenance = {"way": "model", "model": model.config.name, "threshold": 0.5, "note": "probabilities are the network's, not calibrated"}
    nothing, known = np.empty((0, 3)), np.zeros(len(p), dtype=bool)
    answer = Annotation(adata.obs_names, {"type": list(model.labels)}, {"type": p}, 0.5, nothing, known, provenance)
    _tell(answer, verbose)
    return answer


# ---------------------------------------------------------------- from markers


def _from_markers(adata: AnnData, panel: dict[str, list[str]], layer: str | None, gene_column: str | None, error_rate: float, seed: int,
                  verbose: bool) -> Annotation:  # fmt: skip
    """Cells that clearly express one panel teach a classifier the rest; neighbours smooth what is left."""
    from ..genes import match_genes

    vocabulary = Vocabulary.published()
    cells = read_cells(adata, vocabulary, layer=layer, gene_column=gene_column, force=True, min_coverage=0.0)
    x = shared_values(cells, cells.genes, np.arange(len(cells)))
    columns = {}
    for name, genes in panel.items():
        found = match_genes(list(genes), vocabulary).positions
        here = np.flatnonzero(np.isin(cells.genes, found[found >= 0]))
        if len(here):
            columns[name] = here
    missing = sorted(set(panel) - set(columns))
    if len(columns) < 2:
        raise DataError(
            f"Genes of {len(columns)} of the {len(panel)} panels were measured; at least two types must be told apart. "
            "Check the gene names, or give markers= for your tissue."
        )
    if missing:
        say(f"no gene of the panel was measured for {', '.join(missing)}: these types cannot be found", verbose)
    names = sorted(columns)
    score = marker_scores(x, [columns[n] for n in names])
    seeds = clear_cells(score)
    say(f"{int((seeds >= 0).sum())} of {len(seeds)} cells clearly express one panel", verbose)
    present = np.unique(seeds[seeds >= 0])
    if len(present) < 2 or len(x.indptr) < 60:
        p = softmax(8 * score)
        curve = np.empty((0, 3))
        strange = score.max(axis=1) < 0.1
    else:
        sure = np.flatnonzero(seeds >= 0)
        typist = learn_types(x[sure], np.array(names)[seeds[sure]], np.full(len(sure), ""), seed=seed, verbose=False)
        p = np.zeros((len(seeds), len(names)))
        p[:, [names.index(n) for n in typist.names]] = typist.probabilities(x)
        p = smooth_over_neighbours(p, x, seed)
        curve = typist.curve
        strange = without_support(score, seeds, p.argmax(axis=1), x, seed)
    threshold = 0.5
    provenance = {"way": "markers", "types": names, "not_measured": missing, "clear_cells": int((seeds >= 0).sum()), "threshold": threshold,
                  "note": "probabilities are calibrated on cells that express one panel, not on known types"}  # fmt: skip
    answer = Annotation(adata.obs_names, {"type": names}, {"type": p}, threshold, curve, strange | (np.diff(x.indptr) == 0), provenance)
    _tell(answer, verbose)
    return answer


def marker_scores(x: sparse.csr_matrix, columns: list[np.ndarray]) -> np.ndarray:
    """(n, types) mean of each panel's genes, each as a share of what its strongest cells show.

    Not centred: where most cells are of one type, being average means being of it.
    """
    scores = []
    for own in columns:
        values = x[:, own].toarray()
        full = np.maximum(np.quantile(values, 0.98, axis=0), 1.0)
        scores.append(np.minimum(values / full, 1.5).mean(axis=1))
    return np.column_stack(scores)


def clear_cells(score: np.ndarray, margin: float = 0.15) -> np.ndarray:
    """(n,) the type whose panel a cell expresses, and well above any other's; -1 where none stands out."""
    order = np.sort(score, axis=1)
    clear = (order[:, -1] > 0.25) & (order[:, -1] - order[:, -2] > margin)
    return np.where(clear, score.argmax(axis=1), -1)


def without_support(score: np.ndarray, seeds: np.ndarray, called: np.ndarray, x: sparse.csr_matrix, seed: int) -> np.ndarray:
    """(n,) True: a cell and its neighbours express the panel of its call less than 0.4 times as much as the clear cells do."""
    around = smooth_over_neighbours(score, x, seed)
    out = np.zeros(len(called), dtype=bool)
    for c in np.unique(called):
        if (seeds == c).any():
            own = called == c
            out[own] = around[own, c] < 0.4 * np.median(around[seeds == c, c])
    return out


def smooth_over_neighbours(p: np.ndarray, x: sparse.csr_matrix, seed: int, k: int = 15) -> np.ndarray:
    """Half a cell's own probabilities, half the mean of its nearest neighbours'."""
    from ..data.neighbours import nearest_cells, principal_components

    scores, _ = principal_components(x, min(30, min(x.shape) - 1), seed=seed)
    nearest = nearest_cells(scores, scores, min(k, len(scores)))
    return 0.5 * p + 0.5 * p[nearest].mean(axis=1)


def _tell(answer: Annotation, verbose: bool) -> None:
    names, numbers = np.unique(answer.labels().astype(str), return_counts=True)
    order = np.argsort(-numbers)
    say(", ".join(f"{names[i]} {numbers[i]}" for i in order[:12]), verbose)
