"""MAST's hurdle model for any design: ``zlm`` and its likelihood-ratio tests (spec of MAST, section B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import chdtrc, expit

from ..utils.errors import DataError
from ..utils.threads import within_cores
from .continuous import ContinuousFit, fit_continuous
from .design import INTERCEPT, Design, build_design
from .discrete import DiscreteFit, fit_discrete
from .mixed_model import MixedModel, mixed_model
from .options import ZlmOptions
from .prior import NO_PRIOR, Prior, estimate_prior
from .values import Scale, as_source, layer_source

Z95 = 1.959963984540054


@dataclass(frozen=True)
class _Genes:
    """The genes' values above zero, column by column."""

    indptr: np.ndarray
    cells: np.ndarray
    values: np.ndarray
    lost: np.ndarray  # genes with missing values: no fit


@within_cores()
def zlm(
    adata_or_matrix: Any,
    formula: str,
    data: pd.DataFrame | None = None,
    *,
    method: Literal["bayesglm", "glm"] = "bayesglm",
    ebayes: bool = True,
    layer: str | None = None,
    scale: Scale | None = None,
    genes: Sequence[str] | None = None,
    prior: tuple[float, float] | None = None,
) -> ZlmFit | MixedModel:
    """Fit MAST's hurdle model (``zlm``; Finak et al., Genome Biol 16:278, 2015) to every gene.

    Parameters
    ----------
    adata_or_matrix
        AnnData, or a (cells, genes) matrix, sparse or dense. The X or ``layer`` of an AnnData may hold raw
        counts (normalized to log1p CP10k first) or log values; a plain matrix is taken as log values unless
        ``scale`` is ``"counts"`` or ``"auto"``.
    formula
        One-sided R formula over the columns of ``data``, such as ``"~ group + scale(age)"``; see
        :func:`scmamba.deg.build_design`. With a random intercept, ``"~ group + (1 | donor)"``, a negative-binomial mixed
        model of raw counts is fitted instead (:class:`scmamba.deg.MixedModel`); ``method``, ``ebayes`` and ``prior``
        do not apply to it.
    data
        Table with one row per cell; None: ``obs`` of an AnnData.
    method
        ``"bayesglm"``: logistic regression with MAST's Gaussian priors; ``"glm"``: without.
    ebayes
        Shrink the genes' variances towards a prior estimated from all of them.
    layer
        Layer with the values; None: X.
    scale
        ``"counts"`` or ``"log"`` overrides what the values are taken for; None: detected for an AnnData, log for a
        matrix.
    genes
        Names of the columns of a plain matrix.
    prior
        (variance, degrees of freedom) to use instead of estimating it.

    Returns
    -------
    ZlmFit
        With ``.lrt(term)``, ``.summary()`` and ``.fit_table()``; with a random intercept a ``MixedModel``, which has
        ``.lrt(coefficient)``.

    Raises
    ------
    DataError
        A formula or covariate that R would refuse, values that are not on a log scale, or, with a random intercept,
        values that are not raw counts.
    OptionError
        An option is not one of its choices.

    Examples
    --------
    >>> from scmamba import datasets, deg
    >>> adata = datasets.brain_cohort(n_cells=300, n_genes=200, seed=1)
    >>> adata.obs["depth"] = adata.X.sum(axis=1).A1
    >>> fit = deg.zlm(adata, "~ disease + log(depth)")
    >>> fit.design.names
    ('(Intercept)', 'diseaseAD', 'log(depth)')
    >>> table = fit.lrt("disease")
    >>> bool((table["p_H"] <= 1).all())
    True
    """
    ZlmOptions.from_mapping(
        {"formula": formula, "method": method, "ebayes": ebayes, "layer": layer, "scale": scale}
    )
    if "|" in formula:
        return mixed_model(adata_or_matrix, formula, data, layer, genes)
    csr, names, table = _inputs(adata_or_matrix, data, layer, scale, genes)
    design = build_design(formula, table)
    held, shared = _columns(csr), NO_PRIOR
    if prior is not None:
        shared = Prior(*prior)
    elif ebayes:
        shared = _prior_of(csr)
    return ZlmFit(names, design, shared, method, held)


def _inputs(
    source: Any,
    data: pd.DataFrame | None,
    layer: str | None,
    scale: Scale | None,
    genes: Sequence[str] | None,
) -> tuple[sp.csr_matrix, pd.Index, pd.DataFrame]:
    """Values, gene names and the cell table, checked for agreeing sizes."""
    if hasattr(source, "obs") and hasattr(source, "var_names"):
        read = layer_source(source, layer, scale or "auto")
        values, names = read.logs(), read.genes
        data = source.obs if data is None else data
    else:
        values = as_source(source, "the matrix", scale or "log").logs()
        names = pd.Index(genes) if genes is not None else pd.RangeIndex(values.shape[1]).map(str)
    if data is None:
        raise DataError("A matrix has no cell table: pass data=, a table with one row per cell.")
    if len(data) != values.shape[0]:
        raise DataError(
            f"The matrix has {values.shape[0]:,} rows (cells) and the table {len(data):,}. The matrix must "
            "be cells x genes, in the order of the table's rows."
        )
    if len(names) != values.shape[1]:
        raise DataError(f"{len(names):,} gene names were given for {values.shape[1]:,} columns.")
    return values, names, data


def _columns(csr: sp.csr_matrix) -> _Genes:
    """The positive values gene by gene; a gene with a missing value is lost, as an error in R loses it."""
    csc = csr.tocsc()
    gene = np.repeat(np.arange(csc.shape[1]), np.diff(csc.indptr))
    missing = np.isnan(csc.data)
    lost = np.bincount(gene[missing], minlength=csc.shape[1]) > 0
    positive = csc.data > 0
    if lost.any():
        positive &= ~lost[gene]
    if positive.all():
        return _Genes(csc.indptr.astype(np.int64), csc.indices, csc.data, lost)
    counts = np.bincount(gene[positive], minlength=csc.shape[1])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return _Genes(indptr, csc.indices[positive], csc.data[positive], lost)


def _prior_of(csr: sp.csr_matrix) -> Prior:
    """The prior from every gene's non-zero values (negative ones too), in two passes for exact zeros."""
    gene, genes = csr.indices, csr.shape[1]
    n = np.bincount(gene, minlength=genes).astype(np.float64)
    mean = np.bincount(gene, csr.data, genes) / np.maximum(n, 1)
    around = csr.data - mean[gene]
    squares = np.bincount(gene, around * around, genes)
    return estimate_prior(n, squares, np.bincount(gene, csr.data * csr.data, genes))


class ZlmFit:
    """A fitted model, made by :func:`zlm`: the fits of both parts (``continuous``, ``discrete``) and their tests.

    Parameters
    ----------
    genes
        Names of the genes.
    design
        Design matrix with its names.
    prior
        Prior of the variances.
    method
        ``"bayesglm"`` or ``"glm"``.
    held
        The values above zero, gene by gene.
    """

    def __init__(
        self, genes: pd.Index, design: Design, prior: Prior, method: str, held: _Genes
    ) -> None:
        """Fit both parts; made by :func:`zlm`."""
        self.genes, self.design, self.prior, self.method, self._held = (
            genes,
            design,
            prior,
            method,
            held,
        )
        self.continuous, self.discrete = self._fit(design.matrix)

    def _fit(self, matrix: np.ndarray) -> tuple[ContinuousFit, DiscreteFit]:
        held = self._held
        first = fit_continuous(held.indptr, held.cells, held.values, matrix, self.prior)
        second = fit_discrete(held.indptr, held.cells, matrix, bayes=self.method == "bayesglm")
        return first, second

    def __repr__(self) -> str:
        """One line: sizes, coefficients, prior."""
        return (
            f"ZlmFit({len(self.genes):,} genes, {self.design.matrix.shape[0]:,} cells, {self.method}; "
            f"{' + '.join(self.design.names)}; prior variance {self.prior.variance:.4g}, df "
            f"{self.prior.dof:.4g})"
        )

    def lrt(self, term: str | Sequence[str]) -> pd.DataFrame:
        """Likelihood-ratio test of a term, of one coefficient, or of several together.

        Parameters
        ----------
        term
            Term of the formula (``"group"``, ``"poly(age, 2)"``), coefficient (``"groupB"``), or several of them.

        Returns
        -------
        DataFrame in gene order: ``lambda_*``, ``df_*`` and ``p_*`` for the continuous (C), discrete (D) and
        hurdle (H) test, the log-likelihoods of both models and the reduced model's state; for a single
        coefficient also its estimates, 95% limits, ``logFC`` (on the scale of the values) and z scores.

        Raises
        ------
        DataError
            The name is no term or coefficient, is the intercept, or was dropped as aliased.
        """
        dropped = self.design.columns(term)
        kept = [j for j in range(len(self.design.names)) if j not in dropped]
        null_c, null_d = self._fit(np.ascontiguousarray(self.design.matrix[:, kept]))
        table = pd.DataFrame(_test(self, null_c, null_d, len(dropped)), index=self.genes)
        if len(dropped) == 1:
            table = table.join(pd.DataFrame(_effect(self, dropped[0]), index=self.genes))
        table.index.name = "gene"
        return table

    def summary(self, term: str | Sequence[str] | None = None) -> pd.DataFrame:
        """Every coefficient of every gene: estimates, limits, z, logFC; p of the ``term`` if one is named.

        Parameters
        ----------
        term
            Term whose p-values (``p_C``, ``p_D``, ``p_H``) are added; None: no tests.

        Returns
        -------
        DataFrame in long format, one row per gene and coefficient without the intercept.
        """
        parts = []
        tested = set() if term is None else set(self.design.columns(term))
        tests = self.lrt(term) if term is not None else None
        for j, name in enumerate(self.design.names):
            if name == INTERCEPT:
                continue
            part = pd.DataFrame({"gene": self.genes, "coefficient": name, **_effect(self, j)})
            if tests is not None:
                for column in ("p_C", "p_D", "p_H"):
                    part[column] = tests[column].to_numpy() if j in tested else np.nan
            parts.append(part)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def fit_table(self) -> pd.DataFrame:
        """State, likelihoods and coefficients of the full model, one row per gene."""
        c, d = self.continuous, self.discrete
        seen = d.iterations >= 0
        columns: dict[str, np.ndarray] = {
            "iterD": np.where(seen, d.iterations, np.nan),
            "rankC": np.where(seen, c.rank, np.nan),
            "converged_C": c.fitted,
            "converged_D": d.converged,
            "loglik_C": c.log_lik,
            "loglik_D": d.log_lik,
            "deviance_C": np.where(seen, c.rss, np.nan),
            "deviance_D": np.where(seen, d.deviance, np.nan),
            "dfresid_C": np.where(seen, c.df, np.nan),
            "dispersionMLE_C": c.s2_ml,
        }
        for j, name in enumerate(self.design.names):
            short = name.strip("()")
            for part, letter in ((c, "C"), (d, "D")):
                columns[f"coef{letter}_{short}"] = part.coef[:, j]
                columns[f"se{letter}_{short}"] = np.sqrt(part.cov[:, j, j])
        return pd.DataFrame(columns, index=pd.Index(self.genes, name="gene"))


def chi2_p(statistic: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Upper tail of chi-squared; 1 if there are no degrees of freedom or the statistic is not positive."""
    df = np.asarray(df, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        tail = chdtrc(np.maximum(df, 1), np.maximum(statistic, 0))
    return np.where(df > 0, tail, 1.0)


def _test(
    fit: ZlmFit, null_c: ContinuousFit, null_d: DiscreteFit, dropped: int
) -> dict[str, np.ndarray]:
    """Statistics, degrees of freedom and p of the three tests; untestable parts count 0 on 0."""
    full_c, full_d = fit.continuous, fit.discrete
    test_c = full_c.fitted & null_c.fitted & (full_c.df > 1) & (null_c.df > 1)
    test_d = full_d.converged & null_d.converged
    with np.errstate(invalid="ignore"):
        lam_c = np.where(test_c, -2 * (null_c.log_lik - full_c.log_lik), 0.0)
    lam_d = np.where(test_d, -2 * (null_d.log_lik - full_d.log_lik), 0.0)
    df_c = np.where(test_c, null_c.df - full_c.df, 0)
    df_d = np.where(test_d, dropped, 0)
    lam, df = (lam_c, lam_d, lam_c + lam_d), (df_c, df_d, df_c + df_d)
    out = {f"lambda_{part}": x for part, x in zip("CDH", lam, strict=True)}
    out |= {f"df_{part}": x for part, x in zip("CDH", df, strict=True)}
    out |= {f"p_{part}": chi2_p(x, k) for part, x, k in zip("CDH", lam, df, strict=True)}
    seen = null_d.iterations >= 0
    return out | {
        "loglik1_C": full_c.log_lik,
        "loglik1_D": full_d.log_lik,
        "loglik0_C": null_c.log_lik,
        "loglik0_D": null_d.log_lik,
        "converged0_C": null_c.fitted,
        "converged0_D": null_d.converged,
        "dfresid0_C": np.where(seen, null_c.df, np.nan),
        "dfresid0_D": np.where(seen, _discrete_df(fit) - null_d.coef.shape[1], np.nan),
        "deviance0_C": np.where(seen, null_c.rss, np.nan),
        "deviance0_D": np.where(seen, null_d.deviance, np.nan),
    }


def _discrete_df(fit: ZlmFit) -> np.ndarray:
    n = fit.continuous.n
    result: np.ndarray = np.minimum(n, fit.design.matrix.shape[0] - n)
    return result


def _effect(fit: ZlmFit, j: int) -> dict[str, np.ndarray]:
    """Estimates, Wald limits, the combined log fold change of the hurdle and z scores of one coefficient."""
    out: dict[str, np.ndarray] = {
        "coefC": fit.continuous.coef[:, j],
        "coefD": fit.discrete.coef[:, j],
    }
    for part, letter in ((fit.continuous, "C"), (fit.discrete, "D")):
        se = np.sqrt(part.cov[:, j, j])
        with np.errstate(divide="ignore", invalid="ignore"):
            out[f"z_{letter}"] = part.coef[:, j] / se
        out[f"ci_lo_{letter}"] = part.coef[:, j] - Z95 * se
        out[f"ci_hi_{letter}"] = part.coef[:, j] + Z95 * se
    log_fc, variance = _log_fold_change(fit, j)
    half = Z95 * np.sqrt(variance)
    out |= {"logFC": log_fc, "logFC_ci_lo": log_fc - half, "logFC_ci_hi": log_fc + half}
    with np.errstate(divide="ignore", invalid="ignore"):
        out |= {"logFC_z": log_fc / np.sqrt(variance), "varLogFC": variance}
    out["z_stouffer"] = (out["z_C"] + out["z_D"]) / np.sqrt(2.0)
    return out


def _log_fold_change(fit: ZlmFit, j: int) -> tuple[np.ndarray, np.ndarray]:
    """Difference of mean x probability between intercept + coefficient j and intercept, and its variance."""
    contrast = np.zeros((2, fit.design.matrix.shape[1]))
    contrast[:, 0] = 1.0
    contrast[1, j] = 1.0
    # Only the needed coefficients enter, so that an aliased other one does not spoil the result.
    used = [0, j]
    c = contrast[:, used]
    u = fit.continuous.coef[:, used] @ c.T
    p = expit(fit.discrete.coef[:, used] @ c.T)
    a = c @ fit.continuous.cov[:, used][:, :, used] @ c.T
    slope = p * (1 - p)
    b = (c @ fit.discrete.cov[:, used][:, :, used] @ c.T) * slope[:, :, None] * slope[:, None, :]
    both = a * b + u[:, :, None] * u[:, None, :] * b + p[:, :, None] * p[:, None, :] * a
    variance = both[:, 0, 0] + both[:, 1, 1] - 2 * both[:, 0, 1]
    return u[:, 1] * p[:, 1] - u[:, 0] * p[:, 0], variance
