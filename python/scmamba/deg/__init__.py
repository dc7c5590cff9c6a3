"""Differential expression: MAST's hurdle model, Seurat's FindMarkers, tests between donors, robustness of DEGs.

``zlm``          the hurdle model for any design, with likelihood-ratio tests
``find_markers`` two groups of cells, as Seurat's ``FindMarkers(test.use = "MAST")``
``find_all_markers`` every group of cells against all others
``compare``      two groups of donors in every cell type: likelihood ratios, power, sentences
``meta_analysis``, ``replication``  the same comparison in several studies
``gene_set_test``  competitive test of gene sets
``pseudobulk``   two groups of donors, moderated t-test
``robustness``   the paper's Fig. 7, with false-positive rates
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .all_markers import find_all_markers
    from .between_donors import pseudobulk
    from .comparison import compare
    from .comparison_result import CompareResult
    from .design import Design, build_design
    from .gene_sets import gene_set_test, read_gmt
    from .hurdle import ZlmFit, zlm
    from .markers import benjamini_hochberg, find_markers
    from .meta import meta_analysis, replication
    from .mixed_model import MixedModel
    from .prior import Prior, estimate_prior
    from .result import RobustnessResult
    from .robustness_analysis import robustness

__all__ = [
    "CompareResult",
    "Design",
    "MixedModel",
    "Prior",
    "RobustnessResult",
    "ZlmFit",
    "benjamini_hochberg",
    "build_design",
    "compare",
    "estimate_prior",
    "find_all_markers",
    "find_markers",
    "gene_set_test",
    "meta_analysis",
    "pseudobulk",
    "read_gmt",
    "replication",
    "robustness",
    "zlm",
]


__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CompareResult": "comparison_result",
        "compare": "comparison",
        "Design": "design",
        "MixedModel": "mixed_model",
        "Prior": "prior",
        "RobustnessResult": "result",
        "ZlmFit": "hurdle",
        "benjamini_hochberg": "markers",
        "build_design": "design",
        "estimate_prior": "prior",
        "find_all_markers": "all_markers",
        "find_markers": "markers",
        "gene_set_test": "gene_sets",
        "meta_analysis": "meta",
        "pseudobulk": "between_donors",
        "read_gmt": "gene_sets",
        "replication": "meta",
        "robustness": "robustness_analysis",
        "zlm": "hurdle",
    },
)
