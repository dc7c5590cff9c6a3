"""How long a verb is likely to take, reported before long work with the argument that shortens it."""

from __future__ import annotations

from dataclasses import dataclass

from .progress import say

#: Shorter work is not announced.
LONG = 60.0
#: The machine on which the rates were measured.
MACHINE = "two cores of an Intel Xeon"


@dataclass(frozen=True)
class Rate:
    """Measured time and memory of one computation.

    Attributes
    ----------
    seconds
        Seconds that do not depend on the number of cells.
    each
        Seconds per 1,000 cells.
    gigabytes
        Memory that does not depend on the number of cells.
    gigabytes_each
        Memory per 1,000 cells.
    """

    seconds: float
    each: float
    gigabytes: float
    gigabytes_each: float

    def at(self, cells: int) -> tuple[float, float]:
        """Seconds and gigabytes for some cells."""
        return (
            self.seconds + self.each * cells / 1000,
            self.gigabytes + self.gigabytes_each * cells / 1000,
        )


#: Lines through 1,000 and 5,000 simulated nuclei of 10,000 genes, about 1,100 of them expressed in each; where the time is that of
#: the network, seconds per 1,000 nuclei. ``brain-mini`` for all but ``embed brain-base``. Of a reference the cells are the labeled
#: ones, of ``annotate network`` 400 steps.
RATES: dict[str, Rate] = {
    "impute ensemble": Rate(19, 3.3, 1.2, 0.03),
    "impute masked": Rate(0, 190, 1.5, 0.1),
    "embed": Rate(3, 7.0, 1.3, 0.08),
    "embed brain-base": Rate(3, 25, 2.0, 0.08),
    "annotate brain": Rate(2.3, 0.9, 0.4, 0.04),
    "annotate markers": Rate(2, 6.3, 0.5, 0.11),
    "annotate reference": Rate(4, 6.9, 0.6, 0.12),
    "annotate network": Rate(140, 5.0, 1.8, 0.05),
    "doublets fast": Rate(0, 7.4, 0.4, 0.18),
    "doublets network": Rate(0, 220, 2.0, 0.2),
}


def expected(what: str, cells: int, shorter: str = "", *, factor: float = 1.0) -> str:
    """The sentence about time and memory.

    Parameters
    ----------
    what
        A key of :data:`RATES`.
    cells
        Number of cells.
    shorter
        What shortens the work, as a sentence without a full stop; empty if nothing does.
    factor
        Multiple of the measured seconds.

    Returns
    -------
    The sentence, empty for work below a minute.

    Examples
    --------
    >>> expected("impute masked", 1000, "fewer passes are quicker in proportion")
    'About 3 minutes and 1.6 GB of memory on two cores of an Intel Xeon; fewer passes are quicker in proportion'
    >>> expected("embed", 1000)
    ''
    """
    seconds, gigabytes = RATES[what].at(cells)
    seconds *= factor
    if seconds < LONG:
        return ""
    text = f"About {_duration(seconds)} and {gigabytes:.1f} GB of memory on {MACHINE}"
    return f"{text}; {shorter}" if shorter else text


def report_expected(
    what: str, cells: int, shorter: str = "", *, factor: float = 1.0, verbose: bool = True
) -> None:
    """Report time and memory before work of more than a minute.

    Parameters
    ----------
    what, cells, shorter, factor
        As for :func:`expected`.
    verbose
        Whether to print it.

    Examples
    --------
    >>> report_expected("embed", 1000)
    """
    text = expected(what, cells, shorter, factor=factor)
    if text:
        say(text, verbose)


def _duration(seconds: float) -> str:
    """With one or two digits: rates of another machine say no more."""
    minutes = round(seconds / 60)
    if minutes < 90:
        return "a minute" if minutes <= 1 else f"{minutes} minutes"
    return f"{seconds / 3600:.0f} hours"
