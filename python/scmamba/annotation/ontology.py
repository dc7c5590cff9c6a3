"""Cell Ontology ids of cell types, in the column that CELLxGENE's schema names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..data.provenance import KEY
from ..utils.columns import require_adata, require_column
from ..utils.errors import DataError, OptionError
from .brain_reference import FILES, load_reference
from .result import UNASSIGNED

if TYPE_CHECKING:
    from anndata import AnnData

#: The column that CELLxGENE's schema names, and its value for cells without a type.
COLUMN, UNKNOWN = "cell_type_ontology_term_id", "unknown"
_ID = re.compile(r"CL:\d{7}")


def ontology_terms(
    adata: AnnData,
    label_key: str | None = None,
    *,
    terms: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> AnnData:
    """Write the Cell Ontology id of each cell's type into ``obs["cell_type_ontology_term_id"]``, as CELLxGENE expects it.

    Parameters
    ----------
    adata
        Cells that :func:`scmamba.annotate` was called on, or with types of your own.
    label_key
        Column of ``obs`` with the types. Default: ``scmamba_subtype``, or ``scmamba_type`` if there is none.
    terms
        Id of further types, such as ``{"T cell": "CL:0000084"}``. The types of the reference ``"human-brain"`` are known
        (:func:`scmamba.references`); yours have precedence.
    overwrite
        Replace the column if it exists. Default False.

    Returns
    -------
    The same object. Cells that are ``Unassigned`` or have no type get ``"unknown"``. The ids of subtypes of cortical neurons are those
    of their type: the Cell Ontology has other subtypes.

    Raises
    ------
    DataError
        There is no column with types, the column of the ids exists, or a type has no id.
    OptionError
        An id of ``terms`` has another form than ``CL:`` and seven digits.

    Examples
    --------
    >>> import scmamba
    >>> cells = scmamba.datasets.brain_cohort(60, n_genes=500, seed=0)
    >>> cells.obs["scmamba_type"] = ["Microglia"] * 30 + ["Unassigned"] * 30
    >>> cells = scmamba.annotation.ontology_terms(cells)
    >>> cells.obs["cell_type_ontology_term_id"].iloc[[0, -1]].tolist()
    ['CL:0000129', 'unknown']
    """
    require_adata(adata, "ontology_terms()")
    own = dict(terms or {})
    if wrong := [f"{name}: {term}" for name, term in own.items() if not _is_id(term)]:
        raise OptionError(f"terms= holds {wrong[0]!r}; an id is 'CL:' and seven digits.")
    if COLUMN in adata.obs and not overwrite:
        raise DataError(
            f"obs['{COLUMN}'] exists already. Rename it, or pass overwrite=True to replace it."
        )
    if label_key is None:
        found = [c for c in (f"{KEY}_subtype", f"{KEY}_type") if c in adata.obs]
        label_key = found[0] if found else f"{KEY}_type"
    if label_key not in adata.obs and label_key.startswith(KEY):
        raise DataError(
            f"The data have no column '{label_key}'; scmamba.annotate(adata) writes it, or name yours by label_key=."
        )
    types = require_column(adata.obs, label_key, "with the cell types")
    known = _shipped_terms() | own | {UNASSIGNED: UNKNOWN}
    names = [UNASSIGNED if pd.isna(name) else str(name) for name in types]
    if missing := sorted(set(names) - set(known)):
        raise DataError(
            f"No Cell Ontology id is known for {', '.join(missing[:8])} (obs['{label_key}']). Pass them as "
            f"terms={{{missing[0]!r}: 'CL:...'}}; https://www.ebi.ac.uk/ols4/ontologies/cl lists the ids."
        )
    adata.obs[COLUMN] = pd.Categorical([known[name] for name in names])
    return adata


def _is_id(term: Any) -> bool:
    return isinstance(term, str) and _ID.fullmatch(term) is not None


def _shipped_terms() -> dict[str, str]:
    """Id of every type and subtype of the shipped references."""
    terms: dict[str, str] = {}
    for name in FILES:
        table = load_reference(name).table
        for level in ("type", "subtype"):
            terms |= dict(zip(table[level], table["ontology_id"]))
    terms.pop("", None)
    return terms
