"""The result of ``compare``: tables, sentences, figures, and a folder of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..utils.errors import DataError
from ..utils.result_folder import result_folder
from ..utils.tables import as_html
from .quasi_likelihood import minimal_change

#: Donors in each group of the statement about power.
DONORS = (3, 4, 6, 8, 10, 15, 20, 30, 40, 60)
#: Assumed share of genes that differ, for the statement about power.
TRUE_SHARE = 0.01


def p_of_calls(alpha: float) -> float:
    """The p at which genes are called at a false discovery rate, if 1% of them differ and 80% of those are called.

    Parameters
    ----------
    alpha
        False discovery rate.
    """
    return 0.8 * TRUE_SHARE * alpha / ((1 - TRUE_SHARE) * (1 - alpha))


def describe(row: pd.Series, group1: str, group2: str, interaction: str | None = None) -> str:
    """One gene in a sentence.

    Parameters
    ----------
    row
        Row of the table of :class:`CompareResult`.
    group1, group2
        The two conditions.
    interaction
        Column on which the difference may depend; None: the difference itself.
    """
    up = row["log2FC_shrunk"] > 0 if row["log2FC_shrunk"] != 0 else row["log2FC"] > 0
    sign = 1 if up else -1
    fold = 2 ** abs(row["log2FC_shrunk"])
    low, high = sorted(2 ** (sign * row[c]) for c in ("ci_low", "ci_high"))
    if interaction is not None:
        text = (
            f"{row['gene']}: the fold change of {group1} over {group2} is {fold:.2g} times as {'large' if up else 'small'} with a "
            f"higher {interaction!r}, or its second value (95% interval {low:.2g} to {high:.2g})."
        )
        return text + _dependence(row)
    number = row["donors_higher" if up else "donors_lower"]
    text = (
        f"{row['gene']}: {fold:.2g}-fold {'higher' if up else 'lower'} in {group1} than in {group2} (95% interval "
        f"{low:.2g} to {high:.2g}); {'higher' if up else 'lower'} in {number} of {row['donors']} {group1} donors."
    )
    return text + _dependence(row)


def _dependence(row: pd.Series) -> str:
    if not row["driven_by"]:
        return ""
    return f" Depends on donor {row['driven_by']}: without this donor p > 0.05 or the direction changes."


@dataclass(frozen=True)
class CompareResult:
    """Differences between two conditions in every cell type.

    Attributes
    ----------
    table
        One row per cell type and tested gene: ``log2FC`` (group 1 over group 2, with a prior count) and its standard error
        ``lfc_se``; ``log2FC_shrunk`` with its 95% interval ``ci_low, ci_high``; ``mean_log2`` (log2 counts per million);
        ``statistic, df, p_val``; ``p_val_adj`` (Benjamini-Hochberg within the type); ``donors_higher`` and
        ``donors_lower`` of ``donors`` of group 1 are above and below the median of group 2 (in a paired design: themselves in
        group 2); ``driven_by`` (a donor without
        whom p > 0.05 or the direction changes); ``sentence`` for genes that are called.
    summary
        One row per cell type: donors and cells, genes tested and called, and the log2 fold change that is found with 80%
        power (median gene, and median of the quarter with the highest expression).
    samples
        Cell type -> table of the samples.
    levels
        Cell type -> (samples, genes) log2 counts per million.
    settings
        The options.
    notes
        What was omitted, and why.
    warnings
        Columns that are confounded with the condition.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    samples: Mapping[str, pd.DataFrame]
    levels: Mapping[str, pd.DataFrame]
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = field(default_factory=tuple)

    def genes(self, cell_type: str, alpha: float | None = None) -> pd.DataFrame:
        """The genes called in one cell type.

        Parameters
        ----------
        cell_type
            A cell type of the summary.
        alpha
            False discovery rate; None: that of the call.
        """
        self._known(cell_type)
        limit = self.settings["alpha"] if alpha is None else alpha
        table = self.table[self.table["cell_type"] == cell_type]
        return table[table["p_val_adj"] < limit].reset_index(drop=True)

    def sentence(self, gene: str, cell_type: str) -> str:
        """One gene of one cell type in a sentence.

        Parameters
        ----------
        gene, cell_type
            As in ``table``.

        Raises
        ------
        DataError
            The gene was not tested in that type.
        """
        self._known(cell_type)
        table = self.table
        found = table[(table["cell_type"] == cell_type) & (table["gene"] == gene)]
        if found.empty:
            raise DataError(
                f"{gene!r} was not tested in {cell_type}: it is no gene of the object, or has too few counts there."
            )
        s = self.settings
        return describe(found.iloc[0], s["group1"], s["group2"], s.get("interaction"))

    def power_statement(self, cell_type: str) -> str:
        """What this number of donors can find in one cell type.

        Parameters
        ----------
        cell_type
            A cell type of the summary.
        """
        self._known(cell_type)
        row = self.summary.set_index("cell_type").loc[cell_type]
        return (
            f"{cell_type}: with {int(row['donors1'])} and {int(row['donors2'])} donors, a {2 ** row['log2fc_80_power']:.2g}-fold change "
            f"is found with 80% power at a false discovery rate of {self.settings['alpha']:.0%} in a gene of median "
            f"expression, a {2 ** row['log2fc_80_power_top']:.2g}-fold change in the quarter with the highest expression "
            "(assuming that 1% of the genes differ)."
        )

    def power_curve(
        self, cell_type: str, donors: Sequence[int] = DONORS, power: float = 0.8
    ) -> pd.DataFrame:
        """The smallest fold change that other numbers of donors would find in one cell type.

        Standard errors of this comparison are scaled by the number of donors, at the same cells per donor; 1% of the genes
        are assumed to differ.

        Parameters
        ----------
        cell_type
            A cell type of the summary.
        donors
            Donors in each of the two groups.
        power
            Probability with which such a gene is called.

        Returns
        -------
        DataFrame with ``donors``, ``log2fc`` (median gene) and ``log2fc_top`` (median of the quarter with the highest
        expression).

        Raises
        ------
        DataError
            Numbers of donors below 2, or a power outside of 0 to 1.
        """
        self._known(cell_type)
        if min(donors, default=0) < 2 or not 0 < power < 1:
            raise DataError(
                f"donors={list(donors)} and power={power:g}: give at least 2 donors in each group, and a power between 0 and 1."
            )
        table = self.table[self.table["cell_type"] == cell_type]
        row = self.summary.set_index("cell_type").loc[cell_type]
        p = p_of_calls(self.settings["alpha"])
        level, minimum = table["mean_log2"].to_numpy(), self.settings["min_log2fc"]
        top = level >= np.quantile(level, 0.75)
        own = 1 / row["donors1"] + 1 / row["donors2"]
        paired = bool(self.samples[cell_type]["donor"].duplicated(keep=False).all())
        rows = []
        for n in donors:
            se = table["lfc_se"].to_numpy() * np.sqrt(2 / n / own)
            more = (n - row["donors1"]) if paired else 2 * n - row["donors1"] - row["donors2"]
            df = np.maximum(table["df"].to_numpy() + more, 1.0)
            least = minimal_change(se, df, p, power) + minimum
            rows.append((n, float(np.nanmedian(least)), float(np.nanmedian(least[top]))))
        return pd.DataFrame(rows, columns=["donors", "log2fc", "log2fc_top"])

    def power(self, cell_type: str | None = None) -> Any:
        """Figure: the smallest fold change that is found with 80% power, against the number of donors.

        Parameters
        ----------
        cell_type
            A cell type of the summary; None: all.
        """
        from .comparison_figures import power

        if cell_type is not None:
            self._known(cell_type)
        return power(self, cell_type)

    def volcano(self, cell_type: str) -> Any:
        """Figure: fold change against p of every gene of one cell type.

        Parameters
        ----------
        cell_type
            A cell type of the summary.
        """
        from .comparison_figures import volcano

        self._known(cell_type)
        return volcano(self, cell_type)

    def heatmap(self, cell_type: str, n: int = 30) -> Any:
        """Figure: the most certain genes of one cell type in every donor.

        Parameters
        ----------
        cell_type
            A cell type of the summary.
        n
            Number of genes.
        """
        from .comparison_figures import heatmap

        self._known(cell_type)
        return heatmap(self, cell_type, n)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the tables as CSV, settings and sentences as JSON, and the figures as PNG.

        Parameters
        ----------
        folder
            Folder to write; its parent exists.
        overwrite
            Accept a folder that holds files: those of an earlier result are replaced, all others stay.

        Returns
        -------
        The folder.

        Raises
        ------
        DataError
            The folder exists and ``overwrite`` is not set.
        """
        from .comparison_figures import save_figures

        target = Path(folder)
        with result_folder(target, overwrite) as path:
            self.table.to_csv(path / "genes.csv", index=False)
            self.summary.to_csv(path / "summary.csv", index=False)
            pd.concat(
                [t.assign(cell_type=name) for name, t in self.samples.items()], ignore_index=True
            ).to_csv(path / "samples.csv", index=False)
            card = {
                "settings": dict(self.settings),
                "notes": list(self.notes),
                "warnings": list(self.warnings),
                "power": [self.power_statement(name) for name in self.summary["cell_type"]],
            }
            (path / "settings.json").write_text(json.dumps(card, indent=1))
            save_figures(self, path)
        return target

    def _known(self, cell_type: str) -> None:
        if cell_type not in set(self.summary["cell_type"]):
            raise DataError(
                f"{cell_type!r} was not compared. Compared: {', '.join(self.summary['cell_type'])}."
            )

    def _repr_html_(self) -> str:
        """Notebooks show the text, and the summary as a table."""
        return as_html(repr(self), self.summary)

    def __repr__(self) -> str:
        """Genes called in every type, the power, notes and warnings."""
        s = self.settings
        lines = [f"CompareResult: {s['group1']} v {s['group2']}, {s['test']}, FDR {s['alpha']:.0%}"]
        for _, row in self.summary.iterrows():
            lines.append(
                f"  {row['cell_type']}: {row['donors1']} v {row['donors2']} donors, {row['cells1'] + row['cells2']:,} cells; "
                f"{row['up']} genes up, {row['down']} down of {row['tested']:,}; 80% power for "
                f"{2 ** row['log2fc_80_power']:.2g}-fold changes"
            )
        lines += [f"  note: {n}" for n in self.notes]
        lines += [f"  WARNING: {w}" for w in self.warnings]
        return "\n".join(lines)
