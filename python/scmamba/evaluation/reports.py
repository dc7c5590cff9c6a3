"""Reports of doublets, hidden values and clusters where the truth is known: numbers, tables and pictures in one folder.

Cell types have a report of their own (``annotation_report``), which also shows confusions and coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..utils.errors import DataError
from .annotation_report import markdown
from .clusters import RESOLUTIONS, zero_imputation_scores
from .doublets import doublet_scores, identification_curve


@dataclass
class Report:
    """A summary, tables by name, and what draws the pictures.

    Attributes
    ----------
    title, notes
        Heading, and sentences under the summary.
    summary
        One row per method.
    tables
        Name -> table in long form.
    pictures
        Name -> function of the path to draw to.
    """

    title: str
    summary: pd.DataFrame
    notes: Sequence[str] = ()
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    pictures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """``report.md``, ``summary.tsv``, a ``.tsv`` of every table and a ``.png`` of every picture."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = [f"# {self.title}", markdown(self.summary), *self.notes]
        self.summary.to_csv(folder / "summary.tsv", sep="\t")
        for name, draw in self.pictures.items():
            draw(folder / f"{name}.png")
            parts.append(f"![{name}]({name}.png)")
        for name, table in self.tables.items():
            table.to_csv(folder / f"{name}.tsv", sep="\t", index=False)
            parts += [f"## {name}", markdown(table.set_index(table.columns[0]))]
        (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def doublet_report(
    truth: np.ndarray,
    scores: Mapping[str, np.ndarray],
    calls: Mapping[str, np.ndarray] | None = None,
) -> Report:
    """Each of ``scores`` (detector -> (n,) float, larger more like a doublet) against ``truth`` (n,) bool.

    Without ``calls`` (detector -> (n,) bool) as many droplets are called as there are true doublets. The curve calls 5 to 50% of the
    droplets; the paper's are 10 to 40%.
    """
    truth = np.asarray(truth, dtype=bool)
    if truth.all() or not truth.any():
        kind = "doublets" if truth.all() else "single cells"
        raise DataError(
            f"All {len(truth)} droplets are {kind}; both kinds are needed to score calls."
        )
    rows = {
        name: doublet_scores(truth, score, (calls or {}).get(name))
        for name, score in scores.items()
    }
    summary = pd.DataFrame(rows).T.rename_axis("detector")
    rates = [round(0.05 * i, 2) for i in range(1, 11)]
    curve = pd.concat(
        [identification_curve(truth, s, rates).assign(detector=name) for name, s in scores.items()]
    )
    curve = curve[["detector", "rate", "precision", "recall", "TNR", "F1"]].reset_index(drop=True)
    note = f"{int(truth.sum()):,} of {len(truth):,} droplets are doublets: a random detector has AUPRC {truth.mean():.3f}."
    picture = lines(curve, "rate", ("recall", "precision"), "detector", "share of droplets called")
    return Report(
        "Doublets against the truth",
        summary,
        [note],
        {"identification_rates": curve},
        {"curves": picture},
    )


def imputation_report(table: pd.DataFrame) -> Report:
    """The answer of :func:`scmamba.evaluation.nonzero_imputation` with what its columns mean."""
    about = table.attrs
    notes = [
        f"{about['cells']:,} cells x {about['genes']:,} genes; {about['values']:,} counted values were hidden, each once; "
        f"{100 * about['ones']:.0f}% of them are a single transcript.",
        "`mse`, `pearson`: on log1p(CP10k), all values together (the paper's); they mostly measure how deep a cell was read. "
        "`pearson_within_gene`: across cells, mean over genes. `deviance`: zero-truncated Poisson, per value, lower is better. "
        "`pearson_beyond_depth`: within genes, without what depth alone predicts.",
        *(f"`{name}`: {text}." for name, text in about["descriptions"].items()),
    ]
    picture = bars(table, ("mse", "pearson_within_gene", "pearson_beyond_depth"))
    return Report("Hidden values of non-zeros", table, notes, {}, {"columns": picture})


def cluster_report(
    values: Mapping[str, Any],
    types: np.ndarray,
    donors: np.ndarray | None = None,
    *,
    resolutions: Sequence[float] = RESOLUTIONS,
    seed: int = 0,
) -> Report:
    """Each of ``values`` (name -> (cells, genes) log values) clustered by one pipeline and compared with types, and donors if known.

    Types should score high and donors low. Raises as :func:`scmamba.evaluation.clusters.zero_imputation_scores`.
    """
    found = {
        name: zero_imputation_scores(matrix, types, donors, resolutions=resolutions, seed=seed)
        for name, matrix in values.items()
    }
    summary = pd.DataFrame({name: scores for name, (scores, _) in found.items()}).T.rename_axis(
        "values"
    )
    curve = pd.concat(
        [table.assign(values=name) for name, (_, table) in found.items()]
    ).reset_index(drop=True)
    curve = curve[["values", *(c for c in curve if c != "values")]]
    shown = ("NMI", "ARI") if donors is None else ("NMI", "NMI_donor")
    notes = [
        "`NMI`: best over the resolutions, with the types; `ARI` of the same clustering; `ASW`: silhouette of the types."
    ]
    if donors is not None:
        notes.append(
            "`_donor`: the same of donors (silhouette and mixing within types); low is good, but `mixing_donor` is 1 where even."
        )
    picture = lines(curve, "resolution", shown, "values", "Leiden's resolution")
    return Report(
        "Clusters against types and donors",
        summary,
        notes,
        {"resolutions": curve},
        {"curves": picture},
    )


def lines(
    table: pd.DataFrame, x: str, columns: Sequence[str], by: str, label: str
) -> Callable[[Path], None]:
    """What draws one panel a column, one line for each value of ``by``."""

    def draw(path: Path) -> None:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            1, len(columns), figsize=(4.5 * len(columns), 3.5), squeeze=False
        )
        for axis, column in zip(axes[0], columns):
            for name, own in table.groupby(by, sort=False):
                axis.plot(own[x], own[column], "o-", markersize=3, label=str(name))
            axis.set(xlabel=label, ylabel=column)
        axes[0, 0].legend(fontsize=8)
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)

    return draw


def bars(table: pd.DataFrame, columns: Sequence[str]) -> Callable[[Path], None]:
    """What draws one panel of bars a column, one bar for each row."""

    def draw(path: Path) -> None:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            1,
            len(columns),
            figsize=(3.5 * len(columns), 1.2 + 0.3 * len(table)),
            sharey=True,
            squeeze=False,
        )
        for axis, column in zip(axes[0], columns):
            axis.barh(table.index.astype(str), table[column])
            axis.set_title(column, fontsize=9)
        axes[0, 0].invert_yaxis()
        figure.savefig(path, dpi=150, bbox_inches="tight")
        plt.close(figure)

    return draw


__all__ = ["Report", "cluster_report", "doublet_report", "imputation_report"]
