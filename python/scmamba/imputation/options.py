"""Options of :func:`scmamba.impute`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..utils.options import Options, option

#: Steps of adaptation by default.
ADAPT_STEPS = 300


@dataclass(frozen=True)
class ImputeOptions(Options):
    """Every scalar option of :func:`scmamba.impute`, with its default, help and range."""

    verb: ClassVar[str] = "impute"

    layer: str | None = option(None, "Layer to read; X if not given.")
    gene_column: str | None = option(
        None, "Column of var with gene names; the best matching one is used if not given."
    )
    method: Literal["ensemble", "masked"] | None = option(
        None,
        "'ensemble': rates of nearest neighbors, and of the network where it pays; 'masked': the paper's masked prediction. "
        "'ensemble' if not given and the model has a rate head.",
        choices=("ensemble", "masked"),
    )
    batch_key: str | None = option(
        None,
        "Column of obs with the donor or library. Nearest neighbors are then balanced across batches, which removes donor "
        "effects, but also real differences between donors or conditions (method 'ensemble' only).",
    )
    values: Literal["zeros", "posterior"] = option(
        "zeros",
        "'zeros': observed values are kept and zeros imputed; 'posterior': the expected rate of every gene, observed ones "
        "included, every cell with the sum 10,000, improbable ones 0 (method 'ensemble' only).",
        choices=("zeros", "posterior"),
    )
    sd: bool = option(
        False,
        "Also write the standard deviations of the values, to the layer scmamba_sd (method 'ensemble' only).",
    )
    min_probability: float = option(
        0.95,
        "A zero is imputed only if the gene is expressed in the cell with this probability, given the zero (method "
        "'ensemble'); 0 imputes every zero whose expected value is at least min_value, and sets no posterior value to 0.",
        minimum=0,
        maximum=1,
    )
    max_filled: float = option(
        0.25,
        "Largest share of a cell's entries (its genes) that is imputed (method 'ensemble', values 'zeros'): the zeros that are "
        "most probably expressed. 1: no limit.",
        minimum=0,
        maximum=1,
    )
    adapt_steps: int = option(
        ADAPT_STEPS,
        "Training steps of a copy of the network on these cells, where the network may be used; the copy is used only if it "
        "predicts masked counts of held-out cells better. 0 turns it off.",
        minimum=0,
        maximum=100_000,
        unit="steps of 16 cells",
    )
    passes: int = option(
        10,
        "Number of groups the zeros are divided into (method 'masked' only); time is proportional to it.",
        minimum=1,
        maximum=1000,
    )
    min_value: float | None = option(
        None,
        "Smaller predictions stay zero; 0.2 if not given (0.01 with values 'posterior', 0 with method 'masked' or to_counts).",
        minimum=0,
        maximum=1e6,
        unit="log1p(CP10k)",
    )
    to_counts: bool = option(False, "Write expected counts instead of log1p(CP10k).")
    batch_size: int | None = option(
        None,
        "Cells computed at once; chosen by memory if not given.",
        minimum=1,
        maximum=65_536,
        unit="cells",
    )
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; the GPU if there is one.")
    backend: str | None = option(None, "Backend of the selective scan (see scmamba info).")
    seed: int = option(
        0, "Seed of everything random; the same seed gives the same result.", minimum=0
    )
    force: bool = option(False, "Continue although few of the model's genes were measured.")
    overwrite: bool = option(False, "Replace an existing layer or file of the same name.")
    verbose: bool = option(True, "Print messages and progress.")
