"""Pictures of a comparison between donors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._common import shown_by_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..deg import CompareResult


def power(result: CompareResult, cell_type: str | None = None) -> Axes:
    """Smallest fold change that a study finds with 80% power against its number of donors, in a new figure.

    Solid: a gene of median expression; dotted: the most expressed quarter of the genes; points: this comparison. Standard
    errors are those of the comparison, scaled by the number of donors, and 1% of the genes are assumed to differ.

    Parameters
    ----------
    result
        What :func:`scmamba.compare` returned.
    cell_type
        One of the cell types compared; None: all.

    Returns
    -------
    The axes; the numbers are those of ``result.power_curve(cell_type)``.

    Raises
    ------
    DataError
        The cell type was not compared.

    Examples
    --------
    >>> import scmamba
    >>> adata = scmamba.datasets.brain_cohort(1500, n_donors=8, n_genes=300, seed=1)
    >>> result = scmamba.compare(adata, "disease", "donor", verbose=False)
    >>> scmamba.pl.power(result).get_xlabel()
    'donors in each group'
    """
    figure = result.power(cell_type)
    shown_by_axes(figure)
    axes: Axes = figure.axes[0]
    return axes
