"""Options of :func:`scmamba.annotate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import ClassVar

from ..utils.options import Options, option

#: Regions of the brain that ``region=`` takes.
REGIONS = ("cortex", "hippocampus", "midbrain")
#: Steps of fine-tuning the network on a reference where it is asked for without a number.
FINETUNE_STEPS = 400


@dataclass(frozen=True)
class AnnotateOptions(Options):
    """Options of :func:`scmamba.annotate`."""

    verb: ClassVar[str] = "annotate"

    label_key: str | Sequence[str] | None = option(
        None, "Column of the reference's obs with the cell types; several, from coarse to fine."
    )
    donor_key: str | None = option(
        "donor",
        "Column of the reference's obs with the donors; probabilities are calibrated on held-out donors.",
    )
    region: str | None = option(
        None,
        "Region of the brain, with the reference human-brain: cell types of other regions are not considered.",
        choices=REGIONS,
    )
    layer: str | None = option(None, "Layer with the counts of the query; X if not given.")
    reference_layer: str | None = option(
        None, "Layer with the counts of the reference; the layer of the query if not given."
    )
    gene_column: str | None = option(
        None, "Column of var with gene names; the best one is chosen if not given."
    )
    finetune_steps: int = option(
        0,
        "Steps of 16 cells for which the network is fine-tuned on the reference as well, such as 400; 0 leaves the "
        "network out, which is several times faster and was as good wherever it was measured.",
        minimum=0,
        unit="steps",
    )
    error_rate: float = option(
        0.05,
        "Target error rate: cells below the probability at which this share of the calls on "
        "held-out donors is wrong are Unassigned.",
        minimum=0,
        maximum=1,
        exclusive=True,
    )
    across_studies: bool = option(
        False,
        "With a reference of labeled cells: also leave cells Unassigned that do not fit their type, if they differ from "
        "the reference as cells of different studies do.",
    )
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; the GPU if there is one.")
    cache: bool | str | PathLike[str] = option(
        True, "Keep what is fitted to a reference on disk for the next query."
    )
    seed: int = option(0, "Seed of the random numbers; the same seed gives the same result.")
    overwrite: bool = option(
        False, "Replace columns of obs named scmamba_type and so on that other software wrote."
    )
    force: bool = option(
        False,
        "Continue although few genes are shared, or values are neither counts nor logarithms.",
    )
