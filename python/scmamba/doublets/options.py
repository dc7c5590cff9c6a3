"""Options of :func:`scmamba.find_doublets`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Literal, get_args

from ..utils.errors import OptionError
from ..utils.options import Options, option

Method = Literal["fast", "network", "both"]
#: Composition of the simulated doublets; ``"both"`` alternates between ``"mixed"`` and ``"sum"``, for brain cells also ``"matched"``.
Simulation = Literal["both", "mixed", "sum", "mean", "matched"]


@dataclass(frozen=True)
class DoubletOptions(Options):
    """Options of :func:`scmamba.find_doublets`."""

    verb: ClassVar[str] = "find_doublets"

    sample_key: str | None = option(
        None, "Column of obs with the library or donor; all cells are one sample if not given."
    )
    method: Method = option(
        "fast",
        "fast: seconds to a minute on a CPU; network: the fine-tuned network of the paper; both: "
        "the mean of their log odds.",
        choices=get_args(Method),
    )
    expected_rate: float | Mapping[str, float] | None = option(
        None, "Share of doublets; from the number of cells of each sample if not given."
    )
    identification_rate: float | None = option(
        None, "Call exactly this share of each sample instead of the expected one."
    )
    label_key: str | None = option(
        None, "Column of obs with cell types, used only to name the likely parents of a doublet."
    )
    doublet_simulation: Simulation = option(
        "both",
        "Composition of simulated doublets: sum of two cells (sum), half of it (mean, as in the "
        "paper), a random share (mixed), the depth of one cell (matched), or mixed and sum in turn, "
        "for brain cells also matched (both).",
        choices=get_args(Simulation),
    )
    rounds: int = option(
        4,
        "Independent simulations whose log odds are averaged.",
        minimum=1,
        maximum=1000,
        unit="rounds",
    )
    layer: str | None = option(None, "Layer with the raw counts; X if not given.")
    seed: int = option(0, "Seed of the random numbers; the same seed gives the same result.")
    overwrite: bool = option(
        False,
        "Replace columns of obs named scmamba_doublet and so on that other software wrote.",
    )

    def __post_init__(self) -> None:
        """Refuse values outside of their range.

        Raises
        ------
        OptionError
            A value is not one of the choices, or outside of its range.
        """
        super().__post_init__()
        rate = self.expected_rate
        given = [
            ("expected_rate", r) for r in (rate.values() if isinstance(rate, Mapping) else [rate])
        ]
        for name, value in [*given, ("identification_rate", self.identification_rate)]:
            number = isinstance(value, Real) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value < 1):
                raise OptionError(
                    f"{name} is {value}; expected a share of the droplets, from 0 to less than 1 (8% is 0.08)."
                )
