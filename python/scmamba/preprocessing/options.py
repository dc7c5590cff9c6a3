"""Options of :func:`scmamba.prepare`; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..utils.deprecation import warn_renamed
from ..utils.options import Options, option


@dataclass(frozen=True)
class PrepareOptions(Options):
    """Settings of the steps."""

    verb: ClassVar[str] = "prepare"

    donor_key: str = option("donor", "Column of obs with the donor.")
    min_total: float = option(200, "Minimum counts of a cell.", minimum=0, unit="counts")
    min_cells_per_donor: int = option(200, "Minimum cells of a donor.", minimum=0, unit="cells")
    min_cell_fraction: float = option(
        0.005, "Minimum fraction of cells in which a gene is detected.", minimum=0, maximum=1
    )
    n_top_genes: int = option(2000, "Highly variable genes.", minimum=2, unit="genes")
    target_sum: float = option(
        50_000,
        "Total that a cell is scaled to before log2.",
        minimum=0,
        exclusive=True,
        unit="counts",
    )
    n_components: int = option(20, "Principal components of the neighbor graph.", minimum=1)
    n_neighbors: int = option(40, "Neighbors of each cell in the graph.", minimum=2)
    resolution: float = option(1.8, "Resolution of the Leiden clusters.", minimum=0, exclusive=True)
    max_doublet_score: float = option(
        0.1, "Clusters with a larger mean Scrublet score are doublets.", minimum=0, maximum=1
    )
    min_score: float = option(
        0.2, "Minimum mean z-score of a marker panel for a cluster to be named after it."
    )
    min_margin: float = option(
        0.1, "Minimum difference between the scores of the two neuron types.", minimum=0
    )
    seed: int = option(0, "The same seed gives the same result.", minimum=0)


#: Names that the settings had before 0.2.0.
_FORMER = {
    "min_share": "min_cell_fraction",
    "genes": "n_top_genes",
    "total": "target_sum",
    "components": "n_components",
    "neighbours": "n_neighbors",
    "doublet_score": "max_doublet_score",
    "least": "min_score",
    "margin": "min_margin",
}


def PrepareConfig(**settings: float) -> PrepareOptions:
    """Settings of :func:`scmamba.prepare` under their former names; use :class:`PrepareOptions`.

    Parameters
    ----------
    **settings
        Former or present names and their values.

    Returns
    -------
    PrepareOptions

    Examples
    --------
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     PrepareConfig(neighbours=15).n_neighbors
    15
    """
    warn_renamed("PrepareConfig()", "PrepareOptions(), or the parameters of prepare()")
    return PrepareOptions.from_mapping({_FORMER.get(k, k): v for k, v in settings.items()})


@dataclass(frozen=True)
class AmbientOptions(Options):
    """Options of :func:`scmamba.ambient_rna`."""

    verb: ClassVar[str] = "ambient_rna"

    sample_key: str | None = option(
        None, "Column of obs with the library or donor; all cells are one sample if not given."
    )
    label_key: str | None = option(
        None,
        "Column of obs with cell types; by default those of the reference human-brain, or clusters.",
    )
    corrected_layer: str | None = option(
        None, "Name of a new layer for the corrected counts; none is written if not given."
    )
    layer: str | None = option(None, "Layer with the raw counts; X if not given.")
    seed: int = option(0, "Seed of the random numbers; the same seed gives the same result.")
    overwrite: bool = option(
        False, "Replace a column or layer of this name that other software wrote."
    )
