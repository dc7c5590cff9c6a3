"""Differential expression: MAST's hurdle model, Seurat's FindMarkers, pseudobulk, and the robustness of DEGs.

``zlm``          the hurdle model for any design, with likelihood-ratio tests
``find_markers`` two groups of cells, as Seurat's ``FindMarkers(test.use = "MAST")``
``pseudobulk``   two groups of donors: the honest test between patients and controls
``robustness``   the paper's Fig. 7, with the false-positive rates beside it
"""

from .design import Design, build_design
from .markers import benjamini_hochberg, find_markers
from .prior import Prior, estimate_prior
from .pseudobulk import pseudobulk
from .report import RobustnessResult
from .robustness import robustness
from .zlm import ZlmFit, zlm

__all__ = [
    "Design",
    "Prior",
    "RobustnessResult",
    "ZlmFit",
    "benjamini_hochberg",
    "build_design",
    "estimate_prior",
    "find_markers",
    "pseudobulk",
    "robustness",
    "zlm",
]
