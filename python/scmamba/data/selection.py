"""Which matrix of an object a verb reads: X, a layer or ``adata.raw``, and which of its rows are genes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.columns import refuse_lazy
from ..utils.errors import DataError
from ..utils.layers import layer_names
from .values import ValueScale, classify_values, detect_value_scale, log1p_cp10k, to_csr

if TYPE_CHECKING:
    from anndata import AnnData

#: Columns of ``var`` in which 10x Genomics software and its readers name the kind of a row.
FEATURE_TYPE_COLUMNS = ("feature_types", "feature_type")
#: The kind that is a gene, and those that are not, in lower case.
GENE = "gene expression"
NOT_GENES = frozenset(
    (
        "antibody capture",
        "antigen capture",
        "crispr guide capture",
        "custom",
        "multiplexing capture",
        "peaks",
    )
)


@dataclass(frozen=True)
class SelectedMatrix:
    """One matrix of an object.

    Attributes
    ----------
    matrix
        (cells, rows of ``var``), dense, sparse or backed.
    var
        Its genes; those of ``adata.raw`` differ from ``adata.var``.
    name
        What to call it in messages: ``X``, ``layers['counts']`` or ``raw``.
    is_gene
        (rows of ``var``,) which rows are genes; ``None``: all.
    base, logged
        What was recorded with the values; see :func:`scmamba.data.values.classify_values`.
    """

    matrix: Any
    var: pd.DataFrame
    name: str
    is_gene: np.ndarray | None = None
    base: float | None = None
    logged: bool | None = None

    @property
    def genes(self) -> pd.Index:
        """Names of the rows that are genes."""
        names = pd.Index(self.var.index)
        return names if self.is_gene is None else names[self.is_gene]

    @property
    def left_out(self) -> str:
        """A sentence about rows that are no genes, or an empty string."""
        if self.is_gene is None:
            return ""
        column = next(c for c in FEATURE_TYPE_COLUMNS if c in self.var)
        others = self.var[column].astype(str)[~self.is_gene]
        kinds = ", ".join(sorted(set(others)))
        return f"{len(others):,} rows of {self.name} are not genes ({kinds} in var['{column}']) and are not read"

    def classify(self) -> ValueScale:
        """What the values are, without refusing any."""
        return classify_values(self.matrix, name=self.name, base=self.base, logged=self.logged)

    def detect(self, *, force: bool = False, any_total: bool = False) -> ValueScale:
        """What the values are.

        Parameters
        ----------
        force, any_total
            As in :func:`scmamba.data.values.detect_value_scale`.

        Raises
        ------
        DataError
            Neither counts nor logarithms.
        """
        return detect_value_scale(
            self.matrix,
            force=force,
            any_total=any_total,
            name=self.name,
            base=self.base,
            logged=self.logged,
        )

    def display_values(self) -> sparse.csr_matrix:
        """Values on a log scale for plots: counts become log1p(CP10k), all others stay as they are."""
        values = to_csr(self.matrix[:])
        return log1p_cp10k(values) if self.classify().kind == "counts" else values

    def rows(self, index: Any) -> sparse.csr_matrix:
        """Some cells, float64 CSR, with zeros in rows of ``var`` that are not genes.

        Parameters
        ----------
        index
            Slice or positions of cells.
        """
        block = to_csr(self.matrix[index])
        if self.is_gene is not None:
            block.data[~self.is_gene[block.indices]] = 0
            block.eliminate_zeros()
        return block


def select_matrix(adata: AnnData, layer: str | None = None) -> SelectedMatrix:
    """The matrix that ``layer`` names; nothing is replaced by another matrix.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed.
    layer
        ``None`` or ``"X"``: ``X``. ``"raw"``: ``adata.raw`` with its own genes. Any other name: that layer; a layer that is called ``"X"``
        or ``"raw"`` comes first.

    Returns
    -------
    SelectedMatrix

    Raises
    ------
    DataError
        There is no such layer, no X, no raw, or none of its rows is a gene.

    Examples
    --------
    >>> import anndata, numpy as np
    >>> cells = anndata.AnnData(np.ones((2, 3)))
    >>> cells.layers["counts"] = cells.X
    >>> select_matrix(cells, "counts").name
    "layers['counts']"
    """
    if hasattr(adata, "mod"):
        raise DataError(
            f"This is a MuData object with the modalities {', '.join(adata.mod)}. Give the one with the gene counts: "
            f"mdata['{next(iter(adata.mod), 'rna')}']."
        )
    refuse_lazy(adata.obs)
    _refuse_sd(adata.uns, layer)
    if layer is not None and layer in adata.layers:
        name, matrix, var = f"layers['{layer}']", adata.layers[layer], adata.var
    elif layer == "raw":
        if adata.raw is None:
            raise DataError(f"The object has no adata.raw. {_listed(adata)}")
        name, matrix, var = "raw", adata.raw.X, adata.raw.var
    elif layer is None or layer == "X":
        if adata.X is None:
            raise DataError(f"X is empty. {_listed(adata)}")
        name, matrix, var = "X", adata.X, adata.var
    else:
        hint = (
            " The imputed values are layers['scmamba'], written by scmamba.impute()."
            if layer in ("imputed", "scmamba")
            else ""
        )
        raise DataError(f"There is no layer '{layer}'. {_listed(adata)}{hint}")
    recorded = recorded_scale(adata.uns, name)
    return SelectedMatrix(matrix, var, name, gene_rows(var, name), **recorded)


def _refuse_sd(uns: Mapping[str, Any], layer: str | None) -> None:
    """Standard deviations of imputed values are no expression."""
    record = uns.get("scmamba")
    record = record.get("impute") if isinstance(record, Mapping) else None
    params = record.get("params") if isinstance(record, Mapping) else None
    if layer == "scmamba_sd" and isinstance(params, Mapping) and params.get("sd"):
        raise DataError(
            "layers['scmamba_sd'] holds the standard deviations of imputed values, and expression is needed. "
            "The imputed values are layers['scmamba']; counts are best."
        )


def gene_rows(var: pd.DataFrame, name: str = "X") -> np.ndarray | None:
    """Which rows are genes, where ``feature_types`` or ``feature_type`` names other kinds (antibodies, guides, peaks).

    Parameters
    ----------
    var
        Annotation of the rows.
    name
        What to call the matrix in messages.

    Returns
    -------
    (rows,) bool, or ``None`` if ``var`` lists no other features than genes.

    Raises
    ------
    DataError
        No row is a gene.

    Examples
    --------
    >>> import pandas as pd
    >>> gene_rows(pd.DataFrame({"feature_types": ["Gene Expression", "Antibody Capture"]})).tolist()
    [True, False]
    """
    column = next((c for c in FEATURE_TYPE_COLUMNS if c in var), None)
    if column is None:
        return None
    kinds = var[column].astype(str).str.strip().str.lower()
    if not (kinds.eq(GENE).any() or kinds.isin(NOT_GENES).any()):
        return None  # another vocabulary, such as biotypes
    is_gene = (kinds.eq(GENE) | var[column].isna()).to_numpy()
    if not is_gene.any():
        raise DataError(
            f"No row of {name} is a gene: var['{column}'] holds {', '.join(sorted(set(var[column].astype(str))))}. "
            "Give the object that holds the 'Gene Expression' rows."
        )
    return None if is_gene.all() else is_gene


def _listed(adata: AnnData) -> str:
    """What can be named instead."""
    layers = ", ".join(f"'{name}'" for name in layer_names(adata.layers)) or "none"
    has = ["X"] if adata.X is not None else []
    has += ["raw"] if adata.raw is not None else []
    return f"Its layers: {layers}" + (f"; it also has {' and '.join(has)}." if has else ".")


def recorded_scale(uns: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What was recorded about the values: ``base`` and ``logged`` of :func:`scmamba.data.values.classify_values`.

    Parameters
    ----------
    uns
        ``uns`` of the object; ``log1p`` (scanpy) and ``scmamba`` are read.
    name
        Which matrix: ``X``, ``raw``, ``layers['counts']``.
    """
    record = uns.get("log1p")
    base = record.get("base") if isinstance(record, Mapping) else None
    known = float(base) if isinstance(base, (int, float, np.number)) and base > 1 else None
    logged = None
    if name in ("X", "raw"):
        logged = True if "log1p" in uns else None
    elif name == "layers['scmamba']":
        logged = _imputed_logs(uns)
    return {"base": known, "logged": logged}


def _imputed_logs(uns: Mapping[str, Any]) -> bool:
    """Whether the values are the logarithms that ``impute`` wrote: imputed values have no common total."""
    records = uns.get("scmamba")
    record = records.get("impute") if isinstance(records, Mapping) else None
    if not isinstance(record, Mapping):
        return True
    summary = record.get("summary", record)
    scale = summary.get("scale") if isinstance(summary, Mapping) else None
    return scale is None or str(scale).startswith("log1p")
