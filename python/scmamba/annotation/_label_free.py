"""Cell types without labels and marker genes: the likelihood of a cell's counts under the expected rates of brain cell types.

1. Counts are scored under the rates of each column of the reference (multinomial log likelihood of log1p counts; rates that differ
   less between types than studies differ from each other are set equal).
2. A factor for each gene, between the data and the reference, and the share of ambient RNA are learned by expectation
   maximization from the data themselves. The factor of a gene is averaged over types, so that no type explains it alone.
3. Scores are averaged over the 15 nearest cells, in objects below 300 cells over fewer (a twentieth of the cells, at least 5).
4. A type is excluded where its expected genes are absent: where the neighborhood of a cell shows less than 0.42 of the counts of
   the type's 60 most specific genes, gene by gene. A cell whose types are all excluded, or whose best type is, is ``Unassigned``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from scipy.special import logsumexp, softmax

from ..data import CellReader
from ..data.row_store import BLOCK, Rows, RowStore, collect, is_in_memory, with_values
from ..data.values import log1p_cp10k
from ..datasets.brain_reference import shrink_differences, specific_genes
from ..neighbors.knn import nearest_neighbors
from ..preprocessing.ambient import report_ambient, shares_of_types
from ..utils.errors import DataError
from ..utils.expected_time import report_expected
from ..utils.progress import say
from .brain_reference import LEVELS, BrainReference, load_reference
from .expression import all_human_genes, normalized_block, read_human_cells
from .novelty import unit
from .options import AnnotateOptions
from .result import Annotation, own_components

if TYPE_CHECKING:
    from anndata import AnnData

#: Fewer genes of the reference in the data are refused.
MIN_GENES = 50
#: The reference is the default where at least this many of its genes were measured; with fewer, marker genes are.
MIN_DEFAULT_GENES = 100
#: Cells whose scores are averaged, the cell among them; of few cells a twentieth, so that rare types are not averaged away.
NEIGHBORS, FEWEST_NEIGHBORS = 15, 5
#: Log likelihoods are divided by this: counts of genes are no independent draws.
TEMPERATURE = 3.0
#: Share of the counts of a type's specific genes below which the type is excluded.
MIN_COMPLETENESS = 0.42
#: Shares of ambient RNA that are compared.
AMBIENT = (0.0, 0.05, 0.1)
#: Rounds of expectation maximization.
ROUNDS = 3
#: Cells with a lower probability are Unassigned.
THRESHOLD = 0.5
#: Counts of a cell above which its likelihood does not grow, and counts that a cell of log values is taken to have.
MAX_DEPTH, LOG_DEPTH = 1e4, 2e3
_EXCLUDED = 60.0  # taken off the score of an excluded type
_MIN_COUNTS = 5000.0  # expected counts of a type that learns factors of genes


@dataclass
class LabelFreeModel:
    """Types of cells under a reference; ``fit`` learns the factors of the genes, the ambient share and the calls.

    Parameters
    ----------
    rates
        (g, columns) of the reference on the genes of the data; columns sum to 1.
    types
        (columns,) type of each.

    Attributes
    ----------
    names
        (types,) sorted.
    log_factor
        (g,) of the data against the reference.
    ambient
        Share of ambient RNA.
    probabilities
        (n, columns).
    excluded
        (n, types) bool: expected genes of the type are absent.
    """

    rates: np.ndarray
    types: np.ndarray
    names: np.ndarray = field(init=False)
    log_factor: np.ndarray = field(init=False)
    ambient: float = field(default=0.05, init=False)
    probabilities: np.ndarray = field(init=False)
    excluded: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Index the types."""
        self.names, self.codes = np.unique(self.types, return_inverse=True)
        self.members = np.eye(len(self.names))[self.codes]
        self.scored = shrink_differences(self.rates)
        self.log_factor = np.zeros(len(self.rates))

    def fit(self, counts: Rows, nearest: np.ndarray) -> LabelFreeModel:
        """Learn from (n, g) counts and the (n, k) nearest cells of each."""
        damped = with_values(counts, np.log1p)
        average = np.asarray(counts.sum(axis=0)).ravel() + 0.5
        self.average = average / average.sum()
        self.excluded = self.completeness(counts, nearest) < MIN_COMPLETENESS
        log_prior = np.full(self.rates.shape[1], -np.log(self.rates.shape[1]))
        for round_ in range(ROUNDS + 1):
            scores = (damped @ np.log(self.expected(self.ambient))) / TEMPERATURE
            self.probabilities = self._probabilities(scores, nearest, log_prior)
            if round_ < ROUNDS:
                kept = ~self.unsupported()
                self._update(counts, damped, kept)
                share = self.probabilities[kept if kept.any() else slice(None)].mean(axis=0)
                log_prior = np.log(np.maximum(share, 1e-4))
                log_prior -= logsumexp(log_prior)
        return self

    def _probabilities(
        self, scores: np.ndarray, nearest: np.ndarray, log_prior: np.ndarray
    ) -> np.ndarray:
        """(n, columns) from scores, which are averaged with those of the neighbors, block by block."""
        out = np.empty_like(scores)
        for start in range(0, len(scores), BLOCK):
            rows = slice(start, start + BLOCK)
            both = scores[rows] + scores[nearest[rows]].mean(axis=1)
            both -= _EXCLUDED * self.excluded[rows][:, self.codes]
            out[rows] = softmax(both + log_prior, axis=1)
        return out

    def expected(self, ambient: float) -> np.ndarray:
        """(g, columns) rates expected in these data."""
        rates = self.scored * np.exp(self.log_factor)[:, None]
        return (1 - ambient) * rates / rates.sum(axis=0) + ambient * self.average[:, None]

    def by_type(self) -> np.ndarray:
        """(n, types) probabilities."""
        return self.probabilities @ self.members

    def unsupported(self) -> np.ndarray:
        """(n,) bool: the expected genes of the best type are absent."""
        best = self.by_type().argmax(axis=1)
        return self.excluded[np.arange(len(best)), best]

    def _update(self, counts: Rows, damped: Rows, kept: np.ndarray) -> None:
        """Factors of the genes from the cells that fit their type, then the ambient share."""
        depth = np.asarray(counts.sum(axis=1)).ravel() * kept
        total, weights = np.zeros(len(self.rates)), np.zeros(len(self.rates))
        seen = counts.T @ (self.by_type() * kept[:, None])
        for code in range(len(self.names)):
            own = self.codes == code
            size = depth @ self.probabilities[:, own]
            if size.sum() < _MIN_COUNTS:
                continue
            observed = seen[:, code]
            expected = (1 - self.ambient) * (self.scored[:, own] @ size)
            expected += self.ambient * self.average * size.sum()
            weight = expected / (expected + 10)
            total += weight * np.log((observed + 2) / (expected + 2))
            weights += weight
        self.log_factor = np.clip(total / (weights + 1), -3, 3)
        some = np.arange(0, counts.shape[0], max(1, counts.shape[0] // 300))
        fits = [
            (damped[some] @ np.log(self.expected(a) + 1e-12)).max(axis=1).sum() for a in AMBIENT
        ]
        self.ambient = AMBIENT[int(np.argmax(fits))]

    def completeness(self, counts: Rows, nearest: np.ndarray) -> np.ndarray:
        """(n, types) mean over a type's specific genes of observed by expected counts in the neighborhood, at most 1 each.

        Genes weigh by their expected counts, up to five.
        """
        n, k = nearest.shape
        pool = sparse.csr_matrix(
            (np.ones(n * k), (np.repeat(np.arange(n), k), nearest.ravel())), (n, n)
        )
        depth = pool @ np.asarray(counts.sum(axis=1)).ravel()
        means = self.rates @ self.members / self.members.sum(axis=0)
        out = np.zeros((n, len(self.names)))
        for code in range(len(self.names)):
            genes = specific_genes(means, code)
            own = counts[:, genes]
            for start in range(0, n, BLOCK):
                rows = slice(start, start + BLOCK)
                observed = (pool[rows] @ own).toarray()
                expected = 0.9 * depth[rows, None] * means[genes, code]
                weight = np.minimum(expected, 5.0)
                shares = np.minimum(observed / np.maximum(expected, 1e-9), 1.0)
                weights = np.maximum(weight.sum(axis=1), 1e-9)
                out[rows, code] = (shares * weight).sum(axis=1) / weights
        return out


def measured_genes(cells: CellReader) -> int:
    """Number of genes of the reference ``human-brain`` that were measured in these cells."""
    return int(_places(cells, load_reference())[1].sum())


def annotate_by_brain(
    adata: AnnData,
    name: str,
    options: AnnotateOptions,
    verbose: bool,
    default_cells: CellReader | None = None,
) -> Annotation:
    """Name the cells by a shipped reference, to three levels.

    Parameters
    ----------
    adata
        The cells.
    name
        Name of the reference.
    options
        Options of :func:`scmamba.annotate`.
    verbose
        Print what is done.
    default_cells
        The cells as they were read to choose this reference by default; the message adds that it is the default.

    Raises
    ------
    DataError
        Fewer than 50 genes of the reference were measured.
    """
    reference = load_reference(name).of_region(options.region)
    cells = default_cells
    if cells is None:
        cells = read_human_cells(adata, options.layer, options.gene_column, options.force)
    counts, inside = reference_counts(cells, reference)
    measured = f"{inside.sum():,} genes of the reference '{name}' were measured"
    default = ", which is used by default (markers='panel' uses marker genes)"
    say(measured + default * (default_cells is not None), verbose)
    report_expected("annotate brain", len(cells), verbose=verbose)
    rates = reference.rates[inside]
    pcs = own_components(_logs(counts), options.seed)
    around = min(NEIGHBORS, max(FEWEST_NEIGHBORS, len(cells) // 20))
    nearest = nearest_neighbors(unit(pcs), unit(pcs), around)
    types = reference.table["type"].to_numpy(str)
    model = LabelFreeModel(rates / rates.sum(axis=0), types).fit(counts, nearest)
    classes, probabilities, parents = tree_probabilities(model.probabilities, reference)
    is_novel = model.unsupported() | (np.diff(counts.indptr) == 0)
    provenance: dict[str, Any] = {
        "mode": "brain",
        "values": cells.values.sentence,
        "reference": name,
        "genes": int(inside.sum()),
        "ambient_share": model.ambient,
        "threshold": THRESHOLD,
        "not_supported": int(is_novel.sum()),
        "parents": parents,
        "note": "probabilities are those of a likelihood at a fixed temperature, not calibrated on known types",
    }
    if cells.values.kind == "counts":
        calls = np.where(is_novel, -1, probabilities["type"].argmax(axis=1))
        provenance["ambient"] = shares_of_types(adata, counts, calls, options.donor_key)
        report_ambient(provenance["ambient"], verbose)
    return Annotation(
        adata.obs_names,
        classes,
        probabilities,
        THRESHOLD,
        np.empty((0, 3)),
        is_novel,
        provenance,
        pcs,
    )


def reference_counts(cells: CellReader, reference: BrainReference) -> tuple[Rows, np.ndarray]:
    """(n, genes) counts on the genes that were measured, at most 10,000 a cell, and (g,) which these are.

    Those of a file are in a temporary file.
    """
    positions, inside = _places(cells, reference)
    if inside.sum() < MIN_GENES:
        raise DataError(
            f"{int(inside.sum())} genes of the reference were measured; at least {MIN_GENES} are needed. "
            "Check the gene names (human symbols or Ensembl IDs), or give markers= for your genes."
        )
    wanted = positions[inside]
    order = np.argsort(wanted)
    back = np.empty(len(order), dtype=np.int64)
    back[order] = np.arange(len(order))
    blocks = _count_blocks(cells, wanted[order], back)
    on_disk = not is_in_memory(cells.selected.matrix)
    return collect(blocks, len(order), on_disk=on_disk), inside


def _count_blocks(
    cells: CellReader, genes: np.ndarray, back: np.ndarray
) -> Iterator[sparse.csr_matrix]:
    """Blocks of :func:`reference_counts`; ``genes`` sorted, ``back`` their columns in the order of the reference."""
    for rows in cells.blocks(BLOCK):
        linear = cells.linear(rows)
        values = normalized_block(cells, linear, genes)
        depth = np.full(linear.shape[0], LOG_DEPTH)
        if cells.values.kind != "log1p":
            depth = np.minimum(np.asarray(linear.sum(axis=1)).ravel(), MAX_DEPTH)
        values.data = np.expm1(values.data.astype(np.float64)) / 1e4
        values.data *= np.repeat(depth, np.diff(values.indptr))
        yield sparse.csr_matrix(values[:, back])


def _logs(counts: Rows) -> Rows:
    """log1p(CP10k) of counts."""
    if not isinstance(counts, RowStore):
        return log1p_cp10k(counts, dtype=np.float64)
    blocks = (log1p_cp10k(part, dtype=np.float64) for _, part in counts.blocks())
    return collect(blocks, counts.columns, on_disk=True)


def _places(cells: CellReader, reference: BrainReference) -> tuple[np.ndarray, np.ndarray]:
    """(g,) position of each gene of the reference among all human genes, and whether it was measured."""
    place = {gene: i for i, gene in enumerate(all_human_genes().ensembl_ids)}
    positions = np.array([place.get(gene, -1) for gene in reference.genes])
    return positions, np.isin(positions, cells.genes)


def tree_probabilities(
    p: np.ndarray, reference: BrainReference
) -> tuple[dict[str, list[str]], dict[str, np.ndarray], dict[str, list[int]]]:
    """Classes of each level, (n, classes) probabilities, and the parent of each class.

    A type without subtypes appears among the subtypes under its own name; so do cells of a type that belong to no named subtype.
    """
    table = reference.table
    fine = np.where(table["subtype"] == "", table["type"], table["subtype"])
    keys = {"class": table["class"].to_numpy(), "type": table["type"].to_numpy(), "subtype": fine}
    classes, probabilities, parents = {}, {}, {}
    for level in LEVELS:
        names, codes = np.unique(keys[level].astype(str), return_inverse=True)
        classes[level] = names.tolist()
        # The sum of rounded numbers may exceed 1.
        probabilities[level] = np.minimum(p @ np.eye(len(names))[codes], 1)
    for above, level in zip(LEVELS, LEVELS[1:]):
        first = {name: keys[above][i] for i, name in reversed(list(enumerate(keys[level])))}
        parents[level] = [classes[above].index(first[name]) for name in classes[level]]
    return classes, probabilities, parents
