"""Seurat and SingleCellExperiment objects to AnnData and back (extra ``r``: rpy2; R with Seurat).

Nothing here imports rpy2 before a function is called: :mod:`scmamba.wire.slots` also serves Python inside
R.
"""

from .sce import from_sce, read_sce, to_sce, write_sce
from .seurat import from_seurat, read_seurat, to_seurat, write_seurat

__all__ = [
    "from_sce",
    "from_seurat",
    "read_sce",
    "read_seurat",
    "to_sce",
    "to_seurat",
    "write_sce",
    "write_seurat",
]
