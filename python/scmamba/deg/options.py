"""Options of the verbs of ``scmamba.deg``, each declared once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..utils.options import Options, option

#: Shares of the cells of the paper's figure 7.
RATIOS = (0.10, 0.20, 0.35, 0.50, 0.75, 0.90)

_LAYER = "Layer with the values; X if not given."
_SCALE = "What the values are: 'counts' or 'log' (log1p of counts per 10,000); detected if 'auto'."
_GROUP1 = "Value of the column, the condition of interest; several are one group."
_DONOR = "Column of obs with the donors."
_COVARIATES = "Columns of obs that the model adjusts for, such as age, sex or batch."


@dataclass(frozen=True)
class MarkerOptions(Options):
    """Every scalar option of :func:`scmamba.deg.find_markers`, with its default, help and range."""

    verb: ClassVar[str] = "find_markers"

    groupby: str | None = option(None, "Column of obs with the groups.")
    group1: str | Sequence[str] | None = option(None, "Value of the column; several are one group.")
    group2: str | Sequence[str] | None = option(
        None, "What group 1 is compared with; all other cells if not given."
    )
    covariates: str | Sequence[str] | None = option(
        None, "Columns of obs added to the model (test 'MAST' only)."
    )
    test: str = option(
        "MAST",
        "'MAST': hurdle model with a likelihood-ratio test; 'wilcox': rank-sum test.",
        choices=("MAST", "wilcox"),
    )
    seurat: str = option(
        "5",
        "Filters, fold change and order of Seurat '5' (5.0 and later) or '4'.",
        choices=("5", "4"),
    )
    layer: str | None = option(None, _LAYER)
    scale: str = option("auto", _SCALE, choices=("auto", "counts", "log"))
    min_pct: float | None = option(
        None,
        "Minimum fraction of expressing cells in either group; 0.01 (Seurat 5) or 0.1 (Seurat 4) if not given.",
        minimum=0,
        maximum=1,
    )
    logfc_threshold: float | None = option(
        None,
        "Minimum log2 fold change; 0.1 (Seurat 5) or 0.25 (Seurat 4) if not given.",
        minimum=0,
        unit="log2",
    )
    only_pos: bool = option(False, "Only genes that are higher in group 1.")
    min_diff_pct: float = option(
        -float("inf"),
        "Minimum difference between the fractions of expressing cells of the two groups.",
        maximum=1,
    )
    fold_change: str = option(
        "expm1",
        "'expm1': fold change of mean counts per 10,000; 'log': of mean log values, as Seurat 4.2 and 4.3 "
        "on an object without a recorded normalization.",
        choices=("expm1", "log"),
    )


@dataclass(frozen=True)
class ZlmOptions(Options):
    """Every scalar option of :func:`scmamba.deg.zlm`, with its default, help and range."""

    verb: ClassVar[str] = "zlm"

    formula: str | None = option(None, "One-sided R formula over the columns of obs.")
    method: str = option(
        "bayesglm",
        "'bayesglm': logistic regression with MAST's Gaussian priors; 'glm': without priors.",
        choices=("bayesglm", "glm"),
    )
    ebayes: bool = option(True, "Shrink the variances of genes towards a common prior.")
    layer: str | None = option(None, _LAYER)
    scale: str | None = option(None, _SCALE, choices=("auto", "counts", "log"))


@dataclass(frozen=True)
class PseudobulkOptions(Options):
    """Every scalar option of :func:`scmamba.deg.pseudobulk`, with its default, help and range."""

    verb: ClassVar[str] = "pseudobulk"

    condition_key: str | None = option(None, "Column of obs with the condition.")
    donor_key: str | None = option(None, _DONOR)
    group1: str | Sequence[str] | None = option(None, _GROUP1)
    group2: str | Sequence[str] | None = option(
        None, "What group 1 is compared with; all other cells if not given."
    )
    layer: str | None = option(None, _LAYER)
    scale: str = option("auto", _SCALE, choices=("auto", "counts", "log"))
    covariates: str | Sequence[str] | None = option(None, _COVARIATES)
    paired: bool | None = option(
        None, "Compare within donors; if not given, where every donor has cells of both groups."
    )
    moderate: bool = option(
        True, "Shrink the variances of genes towards a common trend (moderated t-test)."
    )
    min_cells: int = option(10, "Donors with fewer cells are omitted.", minimum=1, unit="cells")
    min_total: float = option(
        10.0, "Genes with a smaller sum over all samples are omitted.", minimum=0, unit="counts"
    )


@dataclass(frozen=True)
class RobustnessOptions(Options):
    """Every option of :func:`scmamba.deg.robustness`, with its default, help and range."""

    verb: ClassVar[str] = "robustness"

    condition_key: str | None = option(None, "Column of obs with the condition.")
    donor_key: str | None = option(
        None, "Column of obs with the donors; without it no combinations of donors are compared."
    )
    label_key: str | None = option(
        None, "Column of obs with the cell types; without it all cells are one type."
    )
    group1: str | None = option(None, "Value of the column, the condition of interest.")
    group2: str | None = option(
        None, "What group 1 is compared with; the value that means control if not given."
    )
    layers: Sequence[str] = option(
        ("counts", "scmamba"),
        "Layers to compare; the first is the reference. 'counts' is X unless there is such a layer.",
    )
    cell_types: Sequence[str] | None = option(None, "Cell types; all if not given.")
    ratios: Sequence[float] = option(
        RATIOS, "Shares of the cells of each group that subsamples keep."
    )
    permutations: int = option(
        100, "Random subsamples per share.", minimum=0, maximum=10_000, unit="runs"
    )
    donors: str | None = option(
        "3v3", "Donors per group of the combinations, such as 3v3; None for no combinations."
    )
    max_combinations: int = option(
        200,
        "Combinations of donors; if there are more, this many are drawn at random.",
        minimum=1,
        unit="runs",
    )
    null_permutations: int = option(
        20,
        "Runs of each null comparison, which measure false positives; 0 omits them.",
        minimum=0,
        maximum=10_000,
        unit="runs",
    )
    alpha: float = option(
        0.05, "A DEG has an adjusted p below this.", minimum=0, maximum=1, exclusive=True
    )
    min_log2fc: float = option(
        0.25, "A DEG has a log2 fold change beyond this.", minimum=0, unit="log2"
    )
    adjust: str = option(
        "bonferroni",
        "Adjustment of p: 'bonferroni' over all genes, as Seurat, or 'bh' over the tested genes.",
        choices=("bonferroni", "bh"),
    )
    seurat: str = option("5", "Filters and fold change of Seurat '5' or '4'.", choices=("5", "4"))
    min_degs: int = option(
        10, "Overlaps are missing where all cells give fewer DEGs.", minimum=1, unit="genes"
    )
    min_cells: int = option(
        10, "Donors with fewer cells take no part in donor runs.", minimum=1, unit="cells"
    )
    donor_test: str = option(
        "moderated_t",
        "Test between donors beside the test over cells: 'moderated_t' of the donors' means, or of their counts "
        "'likelihood_ratio' (the default of compare), 'quasi_likelihood' or 'wald'.",
        choices=("moderated_t", "likelihood_ratio", "quasi_likelihood", "wald"),
    )
    seed: int = option(
        0, "Seed of the random numbers; the same seed gives the same subsamples.", minimum=0
    )
    n_jobs: int | None = option(None, "Worker processes; one if not given.")
    resume: str | Path | None = option(
        None, "Folder of finished tasks: an interrupted call continues from it."
    )


@dataclass(frozen=True)
class CompareOptions(Options):
    """Every scalar option of :func:`scmamba.deg.compare`, with its default, help and range."""

    verb: ClassVar[str] = "compare"

    condition_key: str | None = option(None, "Column of obs with the condition.")
    donor_key: str | None = option(None, _DONOR)
    label_key: str | None = option(
        None, "Column of obs with the cell types; without it all cells are one type."
    )
    group1: str | None = option(None, "Value of the column, the condition of interest.")
    group2: str | None = option(
        None, "What group 1 is compared with; the value that means control if not given."
    )
    covariates: str | Sequence[str] | None = option(None, _COVARIATES)
    interaction: str | None = option(
        None,
        "Column of obs, numbers or two values, constant within a donor: test whether the difference depends on it.",
    )
    cell_types: Sequence[str] | None = option(None, "Cell types; all if not given.")
    test: str = option(
        "likelihood_ratio",
        "'likelihood_ratio': negative-binomial likelihood-ratio test averaged over the dispersion; "
        "'quasi_likelihood': negative-binomial F-test; 'wald': negative-binomial Wald test; "
        "'voom': weighted moderated t-test; "
        "'moderated_t': moderated t-test of log counts per million; 'mixed': negative-binomial mixed model of the cells.",
        choices=("likelihood_ratio", "quasi_likelihood", "wald", "voom", "moderated_t", "mixed"),
    )
    layer: str | None = option(None, "Layer with the raw counts; X if not given.")
    paired: bool | None = option(
        None, "Compare within donors; if not given, where every donor has cells of both groups."
    )
    alpha: float = option(
        0.05, "False discovery rate of the genes called.", minimum=0, maximum=1, exclusive=True
    )
    min_log2fc: float = option(
        0.0,
        "Minimal effect: genes are tested for a larger fold change than this.",
        minimum=0,
        unit="log2",
    )
    min_cells: int = option(
        10, "Donors with fewer cells of a type are omitted there.", minimum=1, unit="cells"
    )
    min_total: float = option(
        15.0, "Genes with a smaller sum over all samples are omitted.", minimum=0, unit="counts"
    )
