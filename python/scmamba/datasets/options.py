"""Options of the simulated cohort, each declared once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..utils.options import Options, option


@dataclass(frozen=True)
class CohortOptions(Options):
    """Every scalar option of :func:`scmamba.datasets.brain_cohort`, with its default, help and range."""

    verb: ClassVar[str] = "brain_cohort"

    n_cells: int = option(2000, "Number of cells.")
    n_donors: int = option(8, "Number of donors.")
    n_genes: int | None = option(
        None, "Keep this many of the most expressed genes; all 10,000 if not given."
    )
    disease: str | None = option(
        None,
        "'AD' or 'PD': changes as published for Alzheimer's or Parkinson's disease, type by type, and donors that differ "
        "as real controls do; if not given, which genes change is random and patients are called AD.",
        choices=("AD", "PD"),
    )
    disease_fraction: float = option(0.5, "Share of donors with the disease.")
    cell_types: Sequence[str] | None = option(None, "Cell types; all eight if not given.")
    de_fraction: float = option(
        0.05, "Share of the genes a type expresses that change; without a disease only."
    )
    effect: float | None = option(
        None, "Factor on log2 fold changes; 1 with a disease and 2 without if not given."
    )
    donor_effect: float = option(1.0, "Factor on the standard deviation of donor effects.")
    dropout: float | None = option(None, "Share of non-zero counts lost on top of sampling.")
    ambient: float = option(
        0.0,
        "Mean share of a cell's counts that is ambient RNA of its donor.",
        minimum=0,
        maximum=0.9,
    )
    ambient_ratio: float = option(
        1.0, "Factor on the ambient share of patients: confounding.", minimum=0, maximum=10
    )
    depth_ratio: float = option(
        1.0, "Factor on the counts per cell of patients: confounding.", minimum=0.05, maximum=20
    )
    keep_rates: bool = option(False, "Also keep the true rates, in the layer 'rate'.")
    seed: int = option(0, "Seed; the same seed gives the same cohort.")
