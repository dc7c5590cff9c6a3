"""Imputation: what the model expects where nothing was counted (paper, "Imputation"; spec "Fine-tuning").

The zeros of a cell are divided into interleaved groups; each pass hides one group and keeps the model's predictions for it.
Observed values are never changed, negative predictions become 0.

A model with a rate head can do better than that: it reads a cell once, says how frequent every gene is in it, and is combined with what
the cell's neighbours show (:mod:`scmamba.imputation.rate_ensemble`). Such models do so unless the published method is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy import sparse

from ..data import interleaved_groups, read_cells
from ..data.preprocess import CellReader
from ..data.provenance import KEY, flag_low_depth, refuse_foreign, write_provenance
from ..data.values import SCALE
from ..genes import MIN_COVERAGE
from ..model import Model, load_model
from ..model.inference import dense_input, input_positions
from ..utils.errors import DataError, ScMambaError
from ..utils.memory import available_memory
from ..utils.progress import progress, say
from .rate_ensemble import MAX_POOL, GeneMap, RateEnsemble, fit_rate_ensemble, given_zero

if TYPE_CHECKING:
    from anndata import AnnData

#: More are hardly donors or libraries: a column of barcodes was named.
MAX_BATCHES = 500
#: Runs a function, or gets its result from the process that runs it.
RunOnce = Callable[[Callable[[], Any]], Any]


def impute(
    adata: AnnData,
    *,
    model: str | PathLike[str] | Model | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    method: Literal["rates", "published"] | None = None,
    batch: str | None = None,
    adapt: bool | int = True,
    passes: int = 10,
    min_value: float | None = None,
    to_counts: bool = False,
    batch_size: int | None = None,
    device: str | None = None,
    backend: str | None = None,
    seed: int = 0,
    force: bool = False,
    copy: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Fill the zeros of single-nucleus counts with what the model expects.

    Parameters
    ----------
    adata
        CellReader x genes, raw counts (preferred) or log-normalised values; in memory or backed.
    model
        Name, checkpoint or open model; default ``brain-mini``.
    layer
        Which matrix to read; default ``X``.
    method
        ``"rates"`` (default where the model has a rate head, as ``brain-mini`` does): expected frequencies given the whole cell and its
        neighbours, the cell's depth taken out, all genes of the data. ``"published"``: the paper's masked prediction of log values, genes
        of the model only.
    batch
        Column of ``obs`` with the donor or library, for ``"rates"``: neighbours then come from all of them in turn, as far as they hold
        cells of the same kind, so that types stand out and donors do not. For clustering and pictures of many donors. What differs
        between donors, or conditions, is evened out with it: leave it out where that is the question.
    adapt
        First adapt a copy of the model to these cells (self-supervised, about a minute on a CPU). The adapted copy is used only if
        it predicts hidden values of cells left out of the adaptation better. An integer sets the number of steps.
    passes
        For ``"published"``: groups the zeros are divided into; 10 as in the paper. Time is proportional to it.
    min_value
        Predictions below it (log1p CP10k) stay 0. Default 0.2 with ``"rates"``, two counts in 100,000; 0 with ``"published"``, where
        the result then holds a value for most genes of most cells.
    to_counts
        Write expected counts (expm1(x) / 1e4 * the cell's total) instead of log1p(CP10k).
    seed
        Seeds the adaptation; the rest draws nothing.
    force
        Go on although few of the model's genes were measured.

    Returns
    -------
    The same object (a copy with ``copy=True``), with ``layers["scmamba"]`` (CSR float32: observed values as log1p of CP10k over all
    genes of the data, imputed ones on the same scale), ``obs["scmamba_low_depth"]`` and ``uns["scmamba"]["impute"]``. Nothing is
    written before all cells are done.

    Raises
    ------
    ScMambaError
        Data, genes or checkpoint that do not fit; a result larger than the memory (use :func:`impute_file`).
    """
    plan = _prepare(
        adata,
        model,
        layer,
        gene_column,
        method,
        batch,
        adapt,
        passes,
        min_value,
        to_counts,
        batch_size,
        device,
        backend,
        seed,
        force,
        verbose,
    )
    refuse_foreign(adata, "layers", KEY, "impute")
    blocks, totals = [], []
    for block, block_totals in plan.run():
        blocks.append(block)
        totals.append(block_totals)
        if len(blocks) == 1:
            plan.check_memory(block)
    result = sparse.vstack(blocks, format="csr")
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    adata.layers[KEY] = result
    flag_low_depth(adata, plan.cells, np.concatenate(totals), verbose)
    density = result.nnz / max(np.prod(result.shape), 1)
    write_provenance(
        adata, "impute", plan.model.config.name, plan.cells, density=float(density), **plan.settings
    )
    say(
        f"layers['{KEY}'] holds values for {100 * density:.0f}% of all entries (before: {100 * plan.density_before:.0f}%)",
        verbose,
    )
    return adata


def impute_file(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Impute an ``.h5ad`` file into a new one, row block by row block.

    The input is opened backed and the result streamed to disk, so neither is ever held whole. ``target`` appears only when it is
    complete. ``options`` are those of :func:`impute`.

    Raises
    ------
    ScMambaError
        As :func:`impute`; the input is not an h5ad file; the target exists and ``overwrite`` is not set; the disk is full.
    """
    from ..data.h5ad_stream import write_with_layer

    source, target = Path(source), Path(target)
    adata, plan = open_file(source, target, overwrite, options)
    totals: list[np.ndarray] = []

    def blocks() -> Iterator[sparse.csr_matrix]:
        for block, block_totals in plan.run():
            totals.append(block_totals)
            yield block

    write_with_layer(
        source,
        target,
        adata,
        KEY,
        blocks(),
        lambda result, stored: plan.annotate(result, np.concatenate(totals), stored),
    )


def open_file(
    source: Path,
    target: Path,
    overwrite: bool,
    options: dict[str, Any],
    once: RunOnce | None = None,
) -> tuple[AnnData, Imputer]:
    """The file, backed, and the plan of imputing it; see :func:`impute_file` and, for ``once``, :func:`_prepare`."""
    from ..data.h5ad_files import open_backed

    if target.exists() and not overwrite:
        raise ScMambaError(
            f"{target} exists already. Choose another name, or pass overwrite=True (command line: --overwrite)."
        )
    adata = open_backed(source)
    defaults: dict[str, Any] = dict(
        model=None,
        layer=None,
        gene_column=None,
        method=None,
        batch=None,
        adapt=True,
        passes=10,
        min_value=None,
        to_counts=False,
        batch_size=None,
        device=None,
        backend=None,
        seed=0,
        force=False,
        verbose=True,
    )
    if unknown := set(options) - set(defaults):
        raise TypeError(f"impute_file() has no option {', '.join(sorted(unknown))}")
    chosen = {**defaults, **options}
    refuse_foreign(adata, "layers", KEY, "impute")
    return adata, _prepare(adata, **chosen, once=once)


class Imputer:
    """Everything decided before the first cell is imputed."""

    def __init__(
        self,
        model: Model,
        cells: CellReader,
        answer: BlockPredictor,
        min_value: float,
        to_counts: bool,
        size: int,
        verbose: bool,
    ) -> None:
        self.model, self.cells, self.answer, self.verbose = model, cells, answer, verbose
        self.min_value, self.to_counts, self.size = min_value, to_counts, size
        self.settings: dict[str, Any] = {}
        self._observed = 0

    @property
    def density_before(self) -> float:
        """Share of entries that were not zero, of the cells seen so far."""
        return self._observed / max(len(self.cells) * self.cells.adata.n_vars, 1)

    def run(
        self, only: Sequence[slice] | None = None
    ) -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
        """Yield (r, n_vars) imputed blocks and the (r,) totals of their cells, in order; ``only`` some of the blocks of rows."""
        wanted = list(self.cells.blocks(self.size)) if only is None else only
        with progress(
            "Imputing cells", sum(rows.stop - rows.start for rows in wanted), self.verbose
        ) as advance:
            for rows in wanted:
                linear = self.cells.linear(rows)
                self._observed += linear.nnz
                yield (
                    self._on_scale_of_data(linear, self.answer(rows, linear)),
                    np.asarray(linear.sum(axis=1)).ravel(),
                )
                advance(rows.stop - rows.start)

    def annotate(self, result: AnnData, totals: np.ndarray, stored: int) -> None:
        """Note in ``obs`` and ``uns`` what was done: ``totals`` (n,) of the cells, ``stored`` values of the layer."""
        flag_low_depth(result, self.cells, totals, self.verbose)
        density = stored / max(len(self.cells) * self.cells.adata.n_vars, 1)
        write_provenance(
            result, "impute", self.model.config.name, self.cells, density=density, **self.settings
        )

    def _on_scale_of_data(
        self, linear: sparse.csr_matrix, expected: sparse.csr_matrix
    ) -> sparse.csr_matrix:
        """Put expected values beside the observed ones, both on the user's scale, so that observed entries stay exactly what
        NormalizeData gives. ``expected`` (r, n_vars) in the units of ``linear``, nothing where something was observed.
        """
        factor, observed = self._scales(linear)
        expected.data *= np.repeat(factor, np.diff(expected.indptr))
        if not self.to_counts:
            expected.data = np.log1p(expected.data)
        if self.min_value > 0:
            expected.data[expected.data < self.min_value] = 0
            expected.eliminate_zeros()
        result = (observed + expected.astype(np.float32)).tocsr()
        result.sort_indices()
        return result

    def _scales(self, linear: sparse.csr_matrix) -> tuple[np.ndarray, sparse.csr_matrix]:
        """(r,) factor from linear units to the output's, and the observed entries in the output's units."""
        observed = linear.copy()
        if self.to_counts:
            return np.ones(linear.shape[0]), observed.astype(np.float32)
        factor = np.ones(linear.shape[0])
        if self.cells.values.kind != "log1p":  # logs came on a scale of their own, which is kept
            totals = np.asarray(linear.sum(axis=1)).ravel()
            factor = np.divide(SCALE, totals, out=np.zeros(len(totals)), where=totals > 0)
        observed.data = np.log1p(observed.data * np.repeat(factor, np.diff(observed.indptr)))
        return factor, observed.astype(np.float32)

    def check_memory(self, block: sparse.csr_matrix) -> None:
        """Refuse, after the first block, a result that will not fit in memory (twice, while blocks are joined)."""
        needed = 2 * (block.data.nbytes + block.indices.nbytes) / block.shape[0] * len(self.cells)
        if needed > 0.8 * available_memory():
            raise DataError(
                f"The imputed matrix needs about {needed / 1e9:.0f} GB while it is made, and {available_memory() / 1e9:.0f} GB are free. "
                "Impute file to file with 'scmamba impute in.h5ad -o out.h5ad', set min_value=0.1 to keep fewer values, "
                "or impute fewer cells."
            )


#: Answers a block: its rows and (r, n_vars) linear values -> what is expected in its zeros, in the same units.
BlockPredictor = Callable[[slice, sparse.csr_matrix], sparse.csr_matrix]


def masked_predictor(
    model: Model, cells: CellReader, passes: int, batch_size: int | None
) -> BlockPredictor:
    """The published inference on the genes the model knows; a gene's further rows keep what was observed."""
    where, genes = input_positions(model, cells)

    def answer(rows: slice, linear: sparse.csr_matrix) -> sparse.csr_matrix:
        x, totals = dense_input(model, cells, linear)
        predicted = predict_zeros(model, x, genes, passes, batch_size)[:, where]
        # The user's normalisation divides by the total over all genes of the data, the model's over its own genes.
        filled = sparse.csr_matrix(
            np.expm1(predicted.astype(np.float64)) * (totals / SCALE)[:, None]
        )
        return sparse.csr_matrix(
            (filled.data, cells.columns[filled.indices], filled.indptr), shape=linear.shape
        )

    return answer


def ensemble_predictor(
    combination: RateEnsemble,
    cells: CellReader,
    members: np.ndarray,
    batch: np.ndarray | None = None,
) -> BlockPredictor:
    """Frequencies expected by the network and the neighbours together, given that nothing was found.

    ``members`` are the pool's rows, ``batch`` (n,) the codes of the cells' batches, if these are to be evened out.
    """
    own = np.full(len(cells), -1)
    own[members] = np.arange(len(members))

    def answer(rows: slice, linear: sparse.csr_matrix) -> sparse.csr_matrix:
        counts, totals = cells.counts(rows)
        rate = given_zero(
            combination.expect(
                counts, totals, own[rows], None if batch is None else batch[rows]
            ).rate,
            totals,
        )
        rate *= np.asarray(linear.sum(axis=1)).ravel()[:, None]
        at = linear.nonzero()
        rate[at] = 0
        return sparse.csr_matrix(rate, dtype=np.float64)

    return answer


def predict_zeros(
    model: Model,
    x: np.ndarray,
    genes: torch.Tensor | None,
    passes: int,
    batch_size: int | None = None,
) -> np.ndarray:
    """The published inference: hide one interleaved group of zeros per pass, keep its predictions, negatives become 0.

    ``x`` (r, l) log1p CP10k. Returns (r, l): predictions where ``x`` is zero, 0 where it is not.
    """
    group = interleaved_groups(x == 0, passes)
    predicted = np.zeros_like(x)
    values = torch.from_numpy(x)
    for k in range(passes):
        mask = group == k
        if mask.any():
            answer = (
                model.reconstruct(
                    values, torch.from_numpy(mask), genes=genes, batch_size=batch_size
                )
                .float()
                .numpy()
            )
            predicted[mask] = answer[mask]
    # A cell without a single count has no profile to impute from.
    predicted[~(x != 0).any(axis=1)] = 0
    return np.maximum(predicted, 0, out=predicted)


def _prepare(
    adata: AnnData,
    model: Any,
    layer: str | None,
    gene_column: str | None,
    method: str | None,
    batch: str | None,
    adapt: bool | int,
    passes: int,
    min_value: float | None,
    to_counts: bool,
    batch_size: int | None,
    device: str | None,
    backend: str | None,
    seed: int,
    force: bool,
    verbose: bool,
    once: RunOnce | None = None,
) -> Imputer:
    """Check everything that can be checked before long work, and adapt the model if asked.

    ``once`` is given what is learnt as a function and returns its result: several processes learn in one of them.
    """
    once = once or (lambda learn: learn())
    if int(passes) < 1:
        raise ScMambaError(f"passes is {passes}; it must be at least 1.")
    if min_value is not None and min_value < 0:
        raise ScMambaError(f"min_value is {min_value}; it must be 0 or more.")
    opened = load_model(model, device=device, backend=backend)
    method = _method(method, opened)
    codes = batch_codes(adata, batch, method)
    cells = read_cells(
        adata,
        opened.genes,
        layer=layer,
        gene_column=gene_column,
        force=force,
        min_coverage=MIN_COVERAGE,
    )
    if to_counts and cells.values.kind == "log1p":
        raise DataError(
            "Counts cannot be given back: the data are log-normalised and the cells' totals are lost. Give raw counts."
        )
    say(cells.values.sentence, verbose)
    say(cells.match.summary(), verbose)
    least = (
        float(min_value)
        if min_value is not None
        else 0.2
        if method == "rates" and not to_counts
        else 0.0
    )
    settings: dict[str, Any] = {
        "method": method,
        "min_value": least,
        "to_counts": bool(to_counts),
        "seed": int(seed),
        "scale": "expected counts" if to_counts else "log1p(CP10k)",
    }
    if method == "rates":
        members = _members(cells, seed)
        counts, totals = cells.counts(members)
        full = totals > 0
        given = (opened, counts[full], totals[full], GeneMap.of(cells))
        pooled = None if codes is None else codes[members[full]]
        combination = once(
            lambda: fit_rate_ensemble(*given, batch=pooled, adapt=adapt, seed=seed, verbose=verbose)
        )
        opened, answer = (
            combination.sources.model,
            ensemble_predictor(combination, cells, members[full], codes),
        )
        settings |= combination.report | ({"batch": batch} if batch else {})
    else:
        settings["passes"] = int(passes)
        if adapt:
            from .adaptation import adapt as run

            start = opened
            opened, report = once(
                lambda: run(
                    start,
                    cells,
                    steps=None if adapt is True else int(adapt),
                    seed=seed,
                    verbose=verbose,
                )
            )
            settings["adapt"] = report
        answer = masked_predictor(opened, cells, int(passes), batch_size)
    plan = Imputer(opened, cells, answer, least, to_counts, batch_size or 64, verbose)
    plan.settings = settings
    return plan


def _method(method: str | None, model: Model) -> str:
    chosen = method or ("rates" if model.config.rates else "published")
    if chosen not in ("rates", "published"):
        raise ScMambaError(f"method is '{method}'; it must be 'rates' or 'published'.")
    if chosen == "rates" and not model.config.rates:
        raise ScMambaError(
            f"The model '{model.config.name}' has no rate head; use method='published', or another model."
        )
    if chosen == "published" and not model.config.reconstructs:
        raise ScMambaError(
            f"The model '{model.config.name}' classifies cells; imputation needs one with a reconstruction head."
        )
    return chosen


def batch_codes(adata: AnnData, batch: str | None, method: str) -> np.ndarray | None:
    """(n,) code of each cell's batch; nothing if none is named, or all cells are of one.

    Raises
    ------
    ScMambaError
        No such column, cells without a batch, or the published method, which reads one cell at a time.
    """
    if batch is None:
        return None
    if method != "rates":
        raise ScMambaError(
            "batch= evens out the neighbours of method='rates'; the published method reads each cell alone. Leave one out."
        )
    if batch not in adata.obs:
        raise DataError(
            f"There is no column '{batch}' in obs; it has {', '.join(map(str, adata.obs.columns)) or 'none'}."
        )
    column = adata.obs[batch]
    if column.isna().any():
        raise DataError(
            f"{int(column.isna().sum())} cells have no value in obs['{batch}']; fill them in, or leave those cells out."
        )
    names, codes = np.unique(column.astype(str).to_numpy(), return_inverse=True)
    if len(names) > MAX_BATCHES:
        raise DataError(
            f"obs['{batch}'] has {len(names)} different values; at most {MAX_BATCHES} batches can be evened out. Name the column of the "
            "donor, the library or the study."
        )
    return codes if len(names) > 1 else None


def _members(cells: CellReader, seed: int) -> np.ndarray:
    """Rows whose cells are learnt from and looked among for neighbours: all of them, or a random sample of large data."""
    if len(cells) <= MAX_POOL:
        return np.arange(len(cells))
    return np.sort(np.random.default_rng(seed).choice(len(cells), MAX_POOL, replace=False))
