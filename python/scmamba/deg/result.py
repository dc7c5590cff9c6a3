"""The result of ``robustness``: tidy tables, paired tests, false-positive rates and warnings."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..utils.errors import DataError
from ..utils.tables import as_html

MEASURES = ("overlap", "overlap_matched", "precision", "precision_reference")
LOG_P_CAP = 20.0
# Imputed false positives count as inflated from here on, relative to raw and to the nominal 5%.
INFLATION = 1.5


@dataclass(frozen=True)
class RobustnessResult:
    """Tables of a robustness analysis.

    Attributes
    ----------
    runs
        One row per run, layer and direction: seed, DEGs called, ``overlap`` (share of the full data's DEGs
        found again), ``overlap_matched`` (the same for equally many top genes in every layer), ``precision``
        (share of the run's DEGs that the full data confirm), ``precision_reference`` (that the first layer's
        full data confirm), ``pseudobulk_overlap`` (share of the per-donor test's DEGs of the full data that
        the same test of the run finds again). Missing (NaN) if there are too few DEGs; ``note`` gives the reason where a run could not
        be made.
    nulls
        One row per run and layer where nothing differs: every gene called is a false positive.
    full
        DEGs of all cells, per cell type, layer and direction, beside those of a per-donor (pseudobulk) test.
    settings
        The arguments, and under ``scales`` what each layer was taken for.
    notes
        What was omitted, and why.
    warnings
        Where imputation inflates significance.
    """

    runs: pd.DataFrame
    nulls: pd.DataFrame
    full: pd.DataFrame
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = field(default_factory=tuple)

    @classmethod
    def build(
        cls,
        rows: pd.DataFrame,
        full: pd.DataFrame,
        settings: Mapping[str, Any],
        notes: Sequence[str],
    ) -> RobustnessResult:
        """Split the runs from the nulls and warn of inflated significance.

        Parameters
        ----------
        rows
            Rows of all runs, null runs included.
        full
            DEGs of all cells.
        settings
            The options of the call.
        notes
            What was omitted, and why.
        """
        null = rows["kind"].str.startswith("null").to_numpy(dtype=bool)
        real, empty = rows[~null].dropna(axis=1, how="all"), rows[null].dropna(axis=1, how="all")
        for column in ("overlap", "overlap_matched", "precision", "precision_reference"):
            if column not in real:
                real = real.assign(**{column: np.nan})
        if "pseudobulk_full" in real and "pseudobulk_overlap" not in real:
            real = real.assign(pseudobulk_overlap=np.nan)
        found = inflation(empty, settings["layers"])
        for text in found:
            warnings.warn(text, stacklevel=3)
        return cls(
            real.reset_index(drop=True),
            empty.reset_index(drop=True),
            full,
            settings,
            tuple(notes),
            tuple(found),
        )

    def summary(self) -> pd.DataFrame:
        """Mean, sd and number of runs of every measure, per kind, cell type, ratio, direction and layer."""
        keys = ["kind", "cell_type", "ratio", "direction", "layer"]
        table = self.runs.groupby(keys)[list(MEASURES)].agg(["mean", "std", "count"])
        table.columns = [f"{measure}_{what}" for measure, what in table.columns]
        degs = self.runs.groupby(keys)[["n_full", "n_called"]].mean()
        return degs.join(table).reset_index()

    def per_donor(self) -> pd.DataFrame:
        """Rows "per donor" of Fig. 7: overlap of the test over cells and of the test between donors on the same runs.

        One row per kind, cell type, ratio, direction and layer: ``degs`` and ``overlap`` of the test over cells,
        ``pseudobulk_degs`` and ``pseudobulk_overlap`` of the test between donors, means over the runs. Empty without donors.
        """
        if "pseudobulk_full" not in self.runs:
            return pd.DataFrame()
        keys = ["kind", "cell_type", "ratio", "direction", "layer"]
        grouped = self.runs.groupby(keys)
        table = pd.DataFrame(
            {
                "runs": grouped.size(),
                "degs": grouped["n_full"].mean(),
                "overlap": grouped["overlap"].mean(),
                "pseudobulk_degs": grouped["pseudobulk_full"].mean(),
                "pseudobulk_overlap": grouped["pseudobulk_overlap"].mean(),
            }
        )
        return table.reset_index()

    def tests(self, measure: str = "overlap") -> pd.DataFrame:
        """Paired t-tests over the runs, each further layer against the first, as in the paper.

        Parameters
        ----------
        measure
            ``"overlap"``, ``"overlap_matched"``, ``"precision"`` or ``"precision_reference"``.

        Returns
        -------
        DataFrame with ``difference``, ``t``, ``p_val`` and ``log10_p`` (-log10 p, capped at 20). Runs share most of
        their cells, so p measures how repeatable the difference is on these data, not what new donors would show.

        Raises
        ------
        DataError
            The measure is unknown.
        """
        if measure not in MEASURES:
            raise DataError(
                f"measure={measure!r} is not known. Choose one of {', '.join(MEASURES)}."
            )
        base, *others = self.settings["layers"]
        rows = []
        for key, part in self.runs.groupby(["kind", "cell_type", "ratio", "direction"]):
            wide = part.pivot(index="run", columns="layer", values=measure)
            for layer in others:
                both = wide[[base, layer]].dropna()
                rows.append(
                    dict(zip(("kind", "cell_type", "ratio", "direction"), key, strict=True))
                    | {"layer": layer, "reference": base}
                    | _paired(both[layer].to_numpy(), both[base].to_numpy())
                )
        columns = [
            "kind",
            "cell_type",
            "ratio",
            "direction",
            "layer",
            "reference",
            "n",
            "difference",
            "t",
            "p_val",
            "log10_p",
        ]
        return pd.DataFrame(rows, columns=columns)

    def false_positives(self) -> pd.DataFrame:
        """What the pipeline calls where nothing differs, per kind of null, cell type and layer.

        ``rate_nominal``: share of tested genes with p < 0.05 (0.05 is right); ``runs_with_calls``: share of
        runs with any DEG (at most ``alpha`` is right under Bonferroni); ``mean_called``: DEGs per run;
        ``pseudobulk_*``: the per-donor test on the same splits.
        """
        if self.nulls.empty:
            return pd.DataFrame()
        grouped = self.nulls.groupby(["kind", "cell_type", "layer"])
        table = pd.DataFrame(
            {
                "runs": grouped.size(),
                "tested": grouped["n_tested"].mean(),
                "rate_nominal": grouped["rate_nominal"].mean()
                if "rate_nominal" in self.nulls
                else np.nan,
                "runs_with_calls": grouped["n_called"].agg(lambda x: (x > 0).mean()),
                "mean_called": grouped["n_called"].mean(),
            }
        )
        for column in ("pseudobulk_rate", "pseudobulk_called"):
            table[column] = grouped[column].mean() if column in self.nulls else np.nan
        return table.reset_index()

    def to_table(self) -> pd.DataFrame:
        """Everything measured, tidy: one row per run, layer, direction and measure."""
        keys = ["kind", "cell_type", "layer", "ratio", "run", "seed", "direction"]
        real = self.runs.melt(
            keys,
            [m for m in (*MEASURES, "n_called", "pseudobulk_overlap") if m in self.runs],
            "measure",
        )
        if self.nulls.empty:
            return real
        names = [
            m
            for m in ("rate_nominal", "n_called", "pseudobulk_rate", "pseudobulk_called")
            if m in self.nulls
        ]
        return pd.concat([real, self.nulls.melt(keys, names, "measure")], ignore_index=True)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the tables as CSV, settings, notes and warnings as JSON, and the figures as PNG.

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
            The folder exists and ``overwrite`` is not set, or a table's file name is taken by a file that scMamba did not write.
        """
        from .report import write_report

        return write_report(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> RobustnessResult:
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        folder
            Folder of a saved result.

        Raises
        ------
        DataError
            The folder holds no result.
        """
        path = Path(folder)
        if not (path / "settings.json").exists():
            raise DataError(f"{path} holds no robustness result: settings.json is missing.")
        card = json.loads((path / "settings.json").read_text())
        runs, nulls, full = (_read(path, name) for name in ("runs", "nulls", "full"))
        return cls(
            runs, nulls, full, card["settings"], tuple(card["notes"]), tuple(card["warnings"])
        )

    def figures(self) -> dict[str, Any]:
        """All figures the runs allow: heat map (a), bars (b), box plots (c), false positives."""
        from .figures import all_figures

        return all_figures(self)

    def _repr_html_(self) -> str:
        """Notebooks show the text, and the summary as a table."""
        return as_html(repr(self), self.summary())

    def __repr__(self) -> str:
        """Sizes, and the warnings in full."""
        s = self.settings
        head = (
            f"RobustnessResult: {s['group1']} v {s['group2']}, {len(s['cell_types'])} cell type(s), "
            f"layers {', '.join(s['layers'])}; {len(self.runs):,} runs, {len(self.nulls):,} null runs"
        )
        return "\n".join(
            [
                head,
                *(f"  note: {n}" for n in self.notes),
                *(f"  WARNING: {w}" for w in self.warnings),
            ]
        )


def _read(folder: Path, name: str) -> pd.DataFrame:
    """One table of a saved result, packed or not."""
    packed = folder / f"{name}.csv.gz"
    try:
        return pd.read_csv(
            packed if packed.exists() else folder / f"{name}.csv", float_precision="round_trip"
        )
    except pd.errors.EmptyDataError:
        return pd.DataFrame()


def _paired(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Paired t-test; identical pairs give p = 1, a constant difference p = 0 (the cap in -log10)."""
    difference = x - y
    out = {"n": float(x.size), "difference": float(difference.mean()) if x.size else np.nan}
    if x.size < 2:
        return out | {"t": np.nan, "p_val": np.nan, "log10_p": np.nan}
    if np.ptp(difference) == 0:
        t, p = (0.0, 1.0) if difference[0] == 0 else (np.inf * np.sign(difference[0]), 0.0)
    else:
        t, p = stats.ttest_rel(x, y)
    with np.errstate(divide="ignore"):
        log10 = min(LOG_P_CAP, -np.log10(p)) + 0.0
    return out | {"t": float(t), "p_val": float(p), "log10_p": float(log10)}


_NULLS = {
    "null_cells": "between random halves of every donor's cells",
    "null_donors": "between random halves of the {group} donors",
}


def inflation(nulls: pd.DataFrame, layers: Sequence[str]) -> list[str]:
    """A sentence for every layer whose false positives exceed the first layer's and the nominal rate."""
    if nulls.empty or "rate_nominal" not in nulls:
        return []
    base, *others = layers
    found = []
    for (kind, name), part in nulls.groupby(["kind", "cell_type"]):
        rate = part.groupby("layer")["rate_nominal"].mean()
        called = part.groupby("layer")["n_called"].mean()
        for layer in others:
            if layer not in rate or base not in rate:
                continue
            worse = rate[layer] > INFLATION * max(rate[base], 0.05)
            more = called[layer] > INFLATION * max(called[base], 1.0)
            if worse or more:
                found.append(
                    f"{name}: {layer} inflates significance. "
                    f"{_NULLS[str(kind)].format(group='control').capitalize()}, {rate[layer]:.1%} of the "
                    f"genes have p < 0.05 ({base}: {rate[base]:.1%}) and {called[layer]:.1f} are called per "
                    f"run ({base}: {called[base]:.1f}); every one of them is false. Do not take DEGs of "
                    f"{layer} for findings without a per-donor test of the raw counts."
                )
    return found
