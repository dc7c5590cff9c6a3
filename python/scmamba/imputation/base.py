"""What both ways of imputing share: fit to some cells, then predict blocks of them on the scale of the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from ..data.preprocess import CellReader
from ..data.provenance import KEY, SD_KEY, flag_low_depth, read_summary, write_record
from ..data.values import SCALE
from ..model import Model
from ..utils.errors import DataError
from ..utils.memory import available_memory
from ..utils.progress import progress, say
from .options import ImputeOptions

if TYPE_CHECKING:
    from anndata import AnnData

#: Column of ``obs``: what the imputed zeros add to the sum of a cell, as a share of its observed sum.
ADDED = f"{KEY}_added"
_BLOCK = 64  # cells whose dense values (block x genes) are held at a time


@dataclass(frozen=True)
class ImputedBlock:
    """Some cells, imputed.

    Attributes
    ----------
    values
        (r, n_vars) observed and imputed values, on the scale of the result.
    totals
        (r,) totals of the cells.
    sd
        (r, n_vars) standard deviations of the stored values, where they were requested.
    added
        (r,) what the imputed zeros add to the sum of the cell's values before the logarithm, as a share of its observed
        sum; ``None`` where observed values were replaced as well.
    """

    values: sparse.csr_matrix
    totals: np.ndarray
    sd: sparse.csr_matrix | None = None
    added: np.ndarray | None = None

    @property
    def layers(self) -> list[sparse.csr_matrix]:
        """The matrices of the layers that :attr:`Imputer.layer_names` names."""
        return [self.values] if self.sd is None else [self.values, self.sd]


def joined_added(parts: Iterable[np.ndarray | None]) -> np.ndarray | None:
    """``added`` of all blocks; ``None`` if no block has it."""
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


class Imputer(ABC):
    """Fit once, predict block by block.

    Parameters
    ----------
    model
        The network and its genes.
    options
        Options of :func:`scmamba.impute`.

    Attributes
    ----------
    model
        The network that predicts: after :meth:`fit` perhaps an adapted copy.
    summary
        What fitting found, for the record of the result.
    """

    #: Value of the option ``method``.
    method: ClassVar[str]
    cells: CellReader

    def __init__(self, model: Model, options: ImputeOptions) -> None:
        self.model, self.options = model, options
        self.block = options.batch_size or _BLOCK
        self.summary: dict[str, Any] = {}
        self._observed = 0

    @property
    @abstractmethod
    def min_value(self) -> float:
        """Smaller predictions stay zero, in the units of the result."""

    @abstractmethod
    def learn(self, cells: CellReader) -> Any:
        """What fitting to ``cells`` produces; it can be sent to other processes and given to :meth:`restore` there."""

    @abstractmethod
    def restore(self, cells: CellReader, learned: Any) -> Imputer:
        """Get ready to predict ``cells`` with what :meth:`learn` returned, here or in another process."""

    @abstractmethod
    def expected(self, rows: slice, linear: sparse.csr_matrix) -> sparse.csr_matrix:
        """(r, n_vars) expected values where ``linear`` (r, n_vars) is zero, in its units; nothing elsewhere."""

    def fit(self, cells: CellReader) -> Imputer:
        """Fit to the cells that are then predicted."""
        return self.restore(cells, self.learn(cells))

    def predict(self, rows: slice) -> ImputedBlock:
        """Observed and imputed values of some cells."""
        linear = self.cells.linear(rows)
        self._observed += linear.nnz
        result = self._on_scale_of_data(linear, self.expected(rows, linear))
        totals = np.asarray(linear.sum(axis=1)).ravel()
        return ImputedBlock(result, totals, added=self._added(linear, result))

    def predict_blocks(self, only: Sequence[slice] | None = None) -> Iterator[ImputedBlock]:
        """Yield :meth:`predict` of all blocks of rows in order, or of ``only`` some of them."""
        wanted = list(self.cells.blocks(self.block)) if only is None else only
        number = sum(rows.stop - rows.start for rows in wanted)
        with progress("Imputing cells", number, self.options.verbose) as advance:
            for rows in wanted:
                yield self.predict(rows)
                advance(rows.stop - rows.start)

    @property
    def layer_names(self) -> list[str]:
        """Layers of the result: values, and their standard deviations where they were requested."""
        return [KEY, SD_KEY] if self.options.sd else [KEY]

    @property
    def density_before(self) -> float:
        """Share of entries that were not zero, among the cells predicted so far."""
        return self._observed / max(len(self.cells) * self.cells.adata.n_vars, 1)

    def write_annotations(
        self, adata: AnnData, totals: np.ndarray, stored: int, added: np.ndarray | None = None
    ) -> float:
        """Write ``obs`` and ``uns`` of the result and return the share of its entries that hold a value.

        ``totals`` (n,) of the cells, ``stored`` values of the layer, ``added`` (n,) as in :class:`ImputedBlock`.
        """
        flag_low_depth(adata, self.cells, totals, self.options.verbose)
        found = self._write_added(adata, added)
        density = stored / max(len(self.cells) * self.cells.adata.n_vars, 1)
        scale = "expected counts" if self.options.to_counts else "log1p(CP10k)"
        params = self.options.params() | {"method": self.method, "min_value": self.min_value}
        write_record(
            adata,
            "impute",
            params=params,
            model=self.model.config.name,
            summary=read_summary(self.cells)
            | {"scale": scale, "density": float(density)}
            | found
            | self.summary,
        )
        return density

    def _write_added(self, adata: AnnData, added: np.ndarray | None) -> dict[str, Any]:
        """Write ``obs["scmamba_added"]``, report it, and return its quantiles for the record."""
        if added is None:
            if ADDED in adata.obs:  # of an earlier result
                del adata.obs[ADDED]
            return {}
        adata.obs[ADDED] = added.astype(np.float32)
        low, middle, high = np.quantile(added, [0.05, 0.5, 0.95])
        say(
            f"Imputed zeros add {100 * middle:.0f}% to the sum of a cell's values in the median (5% of cells: at most "
            f"{100 * low:.0f}%; 5%: at least {100 * high:.0f}%); see obs['{ADDED}'].",
            self.options.verbose,
        )
        quantiles = {"added_5": float(low), "added_50": float(middle), "added_95": float(high)}
        return quantiles | {"columns": [ADDED]}

    def check_memory(self, block: ImputedBlock, max_values: int | None = None) -> None:
        """Refuse, after the first block, a result that will not fit in memory (twice, while blocks are joined).

        Parameters
        ----------
        block
            The first block of the result.
        max_values
            Values that the result may hold: R's sparse matrices have a limit.

        Raises
        ------
        DataError
            It does not fit.
        """
        expected = block.layers[0].nnz / len(block.totals) * len(self.cells)
        if max_values is not None and expected > max_values:
            raise DataError(
                f"The result will hold about {expected:,.0f} values and an R sparse matrix at most {max_values:,}. "
                f"Write it to a file, set a min_value above {self.min_value:g} to keep fewer values, or impute fewer cells."
            )
        size = sum(layer.data.nbytes + layer.indices.nbytes for layer in block.layers)
        needed = 2 * size / len(block.totals) * len(self.cells)
        if needed > 0.8 * available_memory():
            raise DataError(
                f"The imputed matrix needs about {needed / 1e9:.0f} GB while it is made, and "
                f"{available_memory() / 1e9:.0f} GB are free. Impute file to file with "
                f"'scmamba impute in.h5ad -o out.h5ad', set a min_value above {self.min_value:g} to keep fewer values, or impute fewer cells."
            )

    def _on_scale_of_data(
        self, linear: sparse.csr_matrix, expected: sparse.csr_matrix
    ) -> sparse.csr_matrix:
        """Observed and expected values together, both on the user's scale: observed ones are what NormalizeData gives.

        ``expected`` (r, n_vars) in the units of ``linear``, nothing where something was observed.
        """
        factor, observed = self._scales(linear)
        expected.data *= np.repeat(factor, np.diff(expected.indptr))
        if not self.options.to_counts:
            expected.data = np.log1p(expected.data)
        if self.min_value > 0:
            expected.data[expected.data < self.min_value] = 0
            expected.eliminate_zeros()
        result = (observed + expected.astype(np.float32)).tocsr()
        result.sort_indices()
        return result

    def _added(self, linear: sparse.csr_matrix, result: sparse.csr_matrix) -> np.ndarray:
        """(r,) sum of the imputed zeros of each cell, divided by that of its observed values."""
        scale, _ = self._scales(linear)
        observed = np.asarray(linear.sum(axis=1)).ravel() * scale
        values = result.astype(np.float64)
        if not self.options.to_counts:
            values.data = np.expm1(values.data)
        added = np.asarray(values.sum(axis=1)).ravel() - observed
        share: np.ndarray = np.divide(added, observed, out=np.zeros(len(added)), where=observed > 0)
        # Rounding of float32 gives sums that differ by less than a millionth.
        return np.where(share > 1e-6, share, 0.0)

    def _scales(self, linear: sparse.csr_matrix) -> tuple[np.ndarray, sparse.csr_matrix]:
        """(r,) factor from linear units to the result's, and the observed entries in the result's units."""
        observed = linear.copy()
        factor = np.ones(linear.shape[0])
        if self.options.to_counts:
            return factor, observed.astype(np.float32)
        if (
            self.cells.values.kind != "log1p"
        ):  # logarithms came on a scale of their own, which is kept
            totals = np.asarray(linear.sum(axis=1)).ravel()
            factor = np.divide(SCALE, totals, out=np.zeros(len(totals)), where=totals > 0)
        observed.data = np.log1p(observed.data * np.repeat(factor, np.diff(observed.indptr)))
        return factor, observed.astype(np.float32)
