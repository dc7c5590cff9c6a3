"""The paper's Fig. 7: how reproducible DEGs are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..utils.errors import DataError, OptionError
from ._common import shown_by_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..deg import RobustnessResult

#: Letter of the figure -> kind of the runs it draws.
_KINDS = {"a": "cells", "b": "cells", "c": "donors"}


def robustness(
    result: RobustnessResult,
    panel: Literal["a", "b", "c", "false_positives"] = "a",
    *,
    cell_type: str | None = None,
    ratio: float = 0.5,
    measure: str = "overlap",
) -> list[Axes]:
    """Fig. 7 of the paper from a result of :func:`scmamba.robustness`, in a new figure.

    Parameters
    ----------
    result
        What :func:`scmamba.robustness` returned.
    panel
        ``"a"``: mean overlap of the DEGs of every cell type and layer at one share of the cells; ``"b"``: the overlap at
        every share, for one cell type; ``"c"``: the overlap of combinations of donors; ``"false_positives"``: the share of
        genes with p < 0.05 in comparisons without a difference, which belongs beside every other panel.
    cell_type
        For ``"b"``: the cell type; may be omitted if there is one.
    ratio
        For ``"a"``: the share of the cells.
    measure
        ``"overlap"``, ``"overlap_matched"``, ``"precision"`` or ``"precision_reference"`` (docs/deg.md).

    Returns
    -------
    The axes.

    Raises
    ------
    OptionError
        The panel is unknown, or no subsample has this share of the cells.
    DataError
        The result has no runs of this kind, or no such cell type.

    Examples
    --------
    >>> import warnings
    >>> import scmamba
    >>> adata = scmamba.datasets.brain_cohort(400, n_genes=300, seed=1)
    >>> adata.layers["log"] = (adata.X.multiply(1e4 / adata.X.sum(axis=1))).tocsr().log1p()
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     result = scmamba.robustness(
    ...         adata, "disease", "donor", "cell_type", cell_types=["Excitatory"], layers=("counts", "log"),
    ...         permutations=2, max_combinations=2, null_permutations=2, min_degs=1, verbose=False,
    ...     )
    >>> [axis.get_title() for axis in scmamba.pl.robustness(result, "a")][:2]
    ['up-regulated', 'down-regulated']
    """
    from ..deg import figures

    if panel == "false_positives":
        if result.nulls.empty:
            raise DataError(
                "The result has no null runs; call robustness() with null_permutations= above 0."
            )
        return _axes(figures.false_positive_bars(result))
    if panel not in _KINDS:
        raise OptionError(f"panel={panel!r} is unknown; choose a, b, c or false_positives.")
    runs = result.runs[result.runs["kind"] == _KINDS[panel]]
    if runs.empty:
        needed = "donor_key=" if panel == "c" else "permutations= above 0"
        raise DataError(
            f"The result has no runs for panel {panel!r}; call robustness() with {needed}."
        )
    if panel == "c":
        return _axes(figures.donor_boxes(result, measure=measure))
    if panel == "a":
        ratios = sorted(runs["ratio"].unique())
        if not any(abs(ratio - one) < 1e-9 for one in ratios):
            raise OptionError(
                f"No subsample has the share ratio={ratio:g}; there are {', '.join(f'{r:g}' for r in ratios)}."
            )
        return _axes(figures.overlap_heatmap(result, ratio=ratio, measure=measure))
    names = [str(name) for name in result.settings["cell_types"]]
    chosen = names[0] if cell_type is None and len(names) == 1 else cell_type
    if chosen is None or chosen not in names:
        raise DataError(f"cell_type={cell_type!r} was not analyzed; there are {', '.join(names)}.")
    return _axes(figures.ratio_bars(result, cell_type=chosen, measure=measure))


def _axes(figure: object) -> list[Axes]:
    """Axes of a figure."""
    shown_by_axes(figure)
    return list(figure.axes)  # type: ignore[attr-defined]
