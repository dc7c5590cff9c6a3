"""Meta-analysis: the same comparison in several studies.

Fixed effects by inverse variances; random effects by DerSimonian and Laird (Control Clin Trials 7:177, 1986) with the
interval of Hartung and Knapp (Stat Med 20:3875, 2001); heterogeneity by Cochran's Q and I^2 (Higgins and Thompson, Stat Med
21:1539, 2002).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.special import chdtrc, ndtr, stdtr, stdtrit

from ..utils.errors import DataError
from .markers import benjamini_hochberg

if TYPE_CHECKING:
    from .comparison_result import CompareResult

_COLUMNS = ("gene", "log2FC", "lfc_se", "p_val", "p_val_adj")


def meta_analysis(
    studies: Mapping[str, CompareResult | pd.DataFrame],
    cell_type: str | None = None,
    *,
    min_studies: int = 2,
) -> pd.DataFrame:
    """Combine the fold changes of one cell type over studies.

    Parameters
    ----------
    studies
        Study -> result of :func:`scmamba.deg.compare`, or a table with the columns ``gene, log2FC, lfc_se``.
    cell_type
        Cell type of the results; may be omitted where each has one. Tables are used as they are.
    min_studies
        Genes tested in fewer studies are omitted.

    Returns
    -------
    DataFrame indexed by gene, sorted by the p of the random effects: ``studies`` (number), ``same_direction`` (studies whose
    fold change has the sign of the fixed effect); ``log2FC_fixed, se_fixed, p_fixed, p_fixed_adj``; ``log2FC_random,
    se_random, ci_low, ci_high, p_random, p_random_adj`` (Hartung-Knapp); ``tau2``, ``Q``, ``I2`` (0 to 1) and ``p_heterogeneity``.

    Raises
    ------
    DataError
        Fewer than two studies, an unknown cell type, missing columns, a gene twice in one study, or no shared gene.

    Examples
    --------
    >>> genes = ["APOE", "CLU"]
    >>> one = pd.DataFrame({"gene": genes, "log2FC": [1.0, 0.2], "lfc_se": [0.2, 0.2]})
    >>> two = pd.DataFrame({"gene": genes, "log2FC": [1.4, -0.3], "lfc_se": [0.4, 0.2]})
    >>> meta_analysis({"A": one, "B": two}).loc["APOE", "log2FC_fixed"].round(2).item()
    1.08
    """
    if len(studies) < 2:
        raise DataError(f"A meta-analysis needs two studies or more; {len(studies)} were given.")
    tables = {name: _study(name, study, cell_type) for name, study in studies.items()}
    genes = sorted(set().union(*(t.index for t in tables.values())))
    change, se = (
        np.column_stack([t[c].reindex(genes).to_numpy(dtype=float) for t in tables.values()])
        for c in ("log2FC", "lfc_se")
    )
    known = np.isfinite(change) & np.isfinite(se) & (se > 0)
    enough = known.sum(axis=1) >= max(min_studies, 2)
    if not enough.any():
        raise DataError(
            "No gene was tested in enough of the studies. Check that their genes have the same names."
        )
    table = _combine(change[enough], se[enough], known[enough])
    table.index = pd.Index(np.asarray(genes, dtype=object)[enough], name="gene")
    for kind in ("fixed", "random"):
        table[f"p_{kind}_adj"] = benjamini_hochberg(table[f"p_{kind}"].to_numpy())
    return table.sort_values("p_random", kind="stable")


def _combine(change: np.ndarray, se: np.ndarray, known: np.ndarray) -> pd.DataFrame:
    """Fixed and random effects of every gene (rows); studies without it count nothing."""
    weight = np.where(known, 1 / np.where(known, se, 1) ** 2, 0.0)
    b = np.where(known, change, 0.0)
    n = known.sum(axis=1)
    total = weight.sum(axis=1)
    fixed = (weight * b).sum(axis=1) / total
    q = (weight * (b - fixed[:, None]) ** 2).sum(axis=1)
    scale = total - (weight**2).sum(axis=1) / total
    tau2 = np.maximum((q - (n - 1)) / scale, 0.0)
    wide = np.where(known, 1 / (np.where(known, se, 1) ** 2 + tau2[:, None]), 0.0)
    random = (wide * b).sum(axis=1) / wide.sum(axis=1)
    spread = (wide * (b - random[:, None]) ** 2).sum(axis=1) / (n - 1)
    se_random = np.sqrt(spread / wide.sum(axis=1))
    # Studies that agree better than by chance may not narrow the interval below that of the fixed effects.
    se_random = np.maximum(se_random, np.sqrt(1 / wide.sum(axis=1)))
    half = -stdtrit(n - 1, 0.025) * se_random
    with np.errstate(divide="ignore", invalid="ignore"):
        i2 = np.where(q > 0, np.maximum(1 - (n - 1) / q, 0.0), 0.0)
    return pd.DataFrame(
        {
            "studies": n,
            "same_direction": (known & (np.sign(change) == np.sign(fixed)[:, None])).sum(axis=1),
            "log2FC_fixed": fixed,
            "se_fixed": 1 / np.sqrt(total),
            "p_fixed": 2 * ndtr(-np.abs(fixed) * np.sqrt(total)),
            "log2FC_random": random,
            "se_random": se_random,
            "ci_low": random - half,
            "ci_high": random + half,
            "p_random": 2 * stdtr(n - 1, -np.abs(random) / se_random),
            "tau2": tau2,
            "Q": q,
            "I2": i2,
            "p_heterogeneity": chdtrc(n - 1, q),
        }
    )


def replication(
    studies: Mapping[str, CompareResult | pd.DataFrame],
    cell_type: str | None = None,
    *,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """How many genes called in one study are found in each other study.

    Parameters
    ----------
    studies
        As for :func:`meta_analysis`; tables also need ``p_val`` and ``p_val_adj``.
    cell_type
        As for :func:`meta_analysis`.
    alpha
        False discovery rate of the calls, and p of the replication.

    Returns
    -------
    DataFrame, one row per ordered pair of studies: ``called`` in ``study`` and tested in ``other``, of those
    ``same_direction`` and ``replicated`` (same direction and p < alpha), and ``called_in_both``.

    Raises
    ------
    DataError
        As :func:`meta_analysis`.
    """
    tables = {name: _study(name, study, cell_type, _COLUMNS) for name, study in studies.items()}
    rows = []
    for first, one in tables.items():
        for second, two in tables.items():
            if first == second:
                continue
            genes = one.index[one["p_val_adj"] < alpha].intersection(two.index)
            a, b = one.loc[genes], two.loc[genes]
            same = np.sign(a["log2FC"]) == np.sign(b["log2FC"])
            rows.append(
                {
                    "study": first,
                    "other": second,
                    "called": len(genes),
                    "same_direction": int(same.sum()),
                    "replicated": int((same & (b["p_val"] < alpha)).sum()),
                    "called_in_both": int((same & (b["p_val_adj"] < alpha)).sum()),
                }
            )
    return pd.DataFrame(rows)


def _study(
    name: str,
    study: CompareResult | pd.DataFrame,
    cell_type: str | None,
    columns: tuple[str, ...] = _COLUMNS[:3],
) -> pd.DataFrame:
    """The table of one study, indexed by gene."""
    if isinstance(study, pd.DataFrame):
        table = study.reset_index() if "gene" not in study and study.index.name == "gene" else study
    else:
        types = list(study.summary["cell_type"])
        if cell_type is None and len(types) > 1:
            raise DataError(
                f"Study {name!r} has {len(types)} cell types ({', '.join(types[:10])}). Name one: cell_type='...'."
            )
        own = types[0] if cell_type is None else cell_type
        if own not in types:
            raise DataError(f"Study {name!r} has no cell type {own!r}. It has: {', '.join(types)}.")
        table = study.table[study.table["cell_type"] == own]
    if missing := [c for c in columns if c not in table]:
        raise DataError(
            f"Study {name!r} has no column {missing[0]!r}; {', '.join(columns)} are needed."
        )
    if table["gene"].duplicated().any():
        twice = table["gene"][table["gene"].duplicated()].iloc[0]
        raise DataError(f"Study {name!r} has the gene {twice!r} in two rows. Keep one.")
    return table.set_index("gene")
