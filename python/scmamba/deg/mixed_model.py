"""``zlm("~ group + (1 | donor)")``: the mixed model of cells by formula."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.stats import false_discovery_control

from ..utils.columns import require_column
from ..utils.errors import DataError
from .design import Design, build_design, formula_terms
from .mixed import fit_mixed, make_strata
from .values import Source, as_source, layer_source

LN2 = float(np.log(2.0))


class MixedModel:
    """Negative-binomial mixed model with a random intercept per donor, made by :func:`scmamba.deg.zlm`.

    Parameters
    ----------
    source
        The raw counts.
    design
        Fixed effects.
    donor
        (cells,) donors.
    random
        Name of the column of the donors.
    """

    def __init__(self, source: Source, design: Design, donor: np.ndarray, random: str) -> None:
        """Keep what :meth:`lrt` fits."""
        self.genes, self.design, self.random = source.genes, design, random
        names, self._donor = np.unique(donor, return_inverse=True)
        self.donors = tuple(map(str, names))
        self._counts = source.matrix.tocsc()
        assert source.totals is not None
        self._depth = source.totals
        self._strata = make_strata(design.matrix, self._donor)

    def __repr__(self) -> str:
        """One line: sizes and terms."""
        return (
            f"MixedModel({len(self.genes):,} genes, {len(self._depth):,} cells, {len(self.donors)} donors; "
            f"{' + '.join(self.design.names)} + (1 | {self.random}))"
        )

    def take(self, genes: np.ndarray) -> MixedModel:
        """The model of some genes; depths stay those of all genes.

        Parameters
        ----------
        genes
            Positions of the genes.
        """
        other = copy.copy(self)
        other.genes, other._counts = self.genes[genes], self._counts[:, genes]
        return other

    def lrt(self, term: str, *, exact: bool = False) -> pd.DataFrame:
        """Likelihood-ratio F-test of one coefficient in every gene.

        Parameters
        ----------
        term
            Term of the formula with one coefficient (``"group"``), or the coefficient (``"groupB"``).
        exact
            Find both variances within 0.3% instead of 5%, which takes three times as long.

        Returns
        -------
        DataFrame indexed by gene: ``log2FC`` and its standard error ``lfc_se``, ``statistic`` (likelihood ratio),
        ``df``, ``p_val``, ``p_val_adj`` (Benjamini-Hochberg), ``dispersion`` between cells and ``donor_variance``.
        Genes without counts have missing estimates and p 1.

        Raises
        ------
        DataError
            The name is no term, or has several coefficients.
        """
        columns = self.design.columns(term)
        if len(columns) != 1:
            raise DataError(
                f"{term!r} has {len(columns)} coefficients; the mixed model tests one. Name one of: "
                f"{', '.join(self.design.names[j] for j in columns)}."
            )
        fit = fit_mixed(self._counts, self._depth, self._strata, columns[0], exact=exact)
        empty = np.diff(self._counts.indptr) == 0
        p = np.where(empty, 1.0, fit.p)
        table = pd.DataFrame(
            {
                "log2FC": fit.coef[:, columns[0]] / LN2,
                "lfc_se": fit.se(columns[0]) / LN2,
                "statistic": fit.lr,
                "df": fit.df,
                "p_val": p,
                "p_val_adj": false_discovery_control(p),
                "dispersion": fit.dispersion,
                "donor_variance": fit.variance,
            },
            index=pd.Index(self.genes, name="gene"),
        )
        table.loc[empty, ["log2FC", "lfc_se", "statistic", "dispersion", "donor_variance"]] = np.nan
        return table


def mixed_model(
    source: Any,
    formula: str,
    data: pd.DataFrame | None = None,
    layer: str | None = None,
    genes: Sequence[str] | None = None,
) -> MixedModel:
    """Read counts and formula; see :func:`scmamba.deg.zlm`.

    Parameters
    ----------
    source
        AnnData or (cells, genes) matrix of raw counts.
    formula
        One-sided R formula with one random intercept.
    data
        Table of the cells; None: ``obs``.
    layer
        Layer with the counts; None: X.
    genes
        Names of the columns of a plain matrix.

    Raises
    ------
    DataError
        Several random effects, no raw counts, no donor for a cell, fewer than three donors.
    """
    if hasattr(source, "obs") and hasattr(source, "var_names"):
        read, data = layer_source(source, layer), source.obs if data is None else data
    else:
        names = None if genes is None else pd.Index(genes)
        read = as_source(source, "the matrix", genes=names)
    if data is None:
        raise DataError("A matrix has no cell table: pass data=, a table with one row per cell.")
    return mixed_of(read, formula, data)


def mixed_of(read: Source, formula: str, data: pd.DataFrame) -> MixedModel:
    """The model of values already read.

    Parameters
    ----------
    read
        The raw counts.
    formula
        One-sided R formula with one random intercept.
    data
        Table of the cells.

    Raises
    ------
    DataError
        As :func:`mixed_model`.
    """
    random = formula_terms(formula, data.columns).random
    if len(random) != 1:
        raise DataError(
            f"The formula {formula!r} has {len(random)} random effects; one, such as (1 | donor), can be fitted."
        )
    if read.totals is None:
        raise DataError(f"{read.values}, but a mixed model of counts needs raw counts.")
    if len(data) != read.matrix.shape[0]:
        raise DataError(
            f"The matrix has {read.matrix.shape[0]:,} rows (cells) and the table {len(data):,}."
        )
    donor = require_column(data, random[0], "to name the donors")
    missing = int(donor.isna().sum())
    if missing:
        raise DataError(
            f"{random[0]!r} is missing for {missing:,} cells. Name their donors, or exclude those cells."
        )
    if donor.nunique() < 3:
        raise DataError(
            f"{random[0]!r} has {donor.nunique()} values; a variance between donors needs at least 3."
        )
    design = build_design(formula, data, random=True)
    used = read.totals > 0
    if not used.all():
        some = np.flatnonzero(used)
        read = read._replace(matrix=sp.csr_matrix(read.matrix[some]), totals=read.totals[some])
        design = build_design(formula, data.iloc[some], random=True)
        donor = donor.iloc[some]
    return MixedModel(read, design, donor.astype(str).to_numpy(), random[0])
