"""One progress bar for all long work: in a terminal, in a notebook, as plain lines elsewhere; silent with ``verbose=False``."""

from __future__ import annotations

import html
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .settings import logger, settings

T = TypeVar("T")

# A host (R through reticulate, the server) may take over the display: it sets this to a function of
# (description, done, total) and no bar is drawn here.
listener: Callable[[str, int, int], None] | None = None
# The same for messages.
speaker: Callable[[str], None] | None = None


@contextmanager
def progress(
    description: str, total: int, verbose: bool = True, *, unit: str = "", each: float = 1
) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; show a progress bar with the time left while the block runs.

    A terminal shows it on stderr, a notebook below the cell.

    Parameters
    ----------
    description
        Title of the bar.
    total
        Number of steps.
    verbose
        Show the bar.
    unit
        Unit of the rate that is shown beside it, such as ``"cells"``; no rate if empty.
    each
        Units per step.

    Yields
    ------
    A function that advances the bar by some steps.
    """
    if listener is not None:
        done = 0

        def report(n: int = 1) -> None:
            nonlocal done
            done += n
            if listener is not None:
                listener(description, done, total)

        yield report
        return
    if not (verbose and settings.shows_progress) or total == 0:
        yield _silent
        return
    if _in_notebook():
        yield from _below_the_cell(description, total, unit, each)
        return
    if not sys.stderr.isatty():
        yield from _plain(description, total, unit, each)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task(description, total=total, rate="")

        def advance(n: int = 1) -> None:
            speed = bar.tasks[task].speed
            bar.update(
                task, advance=n, rate=f"{speed * each:,.0f} {unit}/s" if unit and speed else ""
            )

        yield advance


def _silent(n: int = 1) -> None:
    """Advance no bar."""


class _Pace:
    """Steps done, and in words the time and the rate that they took."""

    def __init__(self, description: str, total: int, unit: str, each: float) -> None:
        self.description, self.total, self.unit, self.each = description, total, unit, each
        self.done, self.started = 0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def _rate(self) -> str:
        rate = self.done * self.each / max(self.seconds, 1e-9)
        return f", {rate:,.0f} {self.unit}/s" if self.unit else ""

    def now(self) -> str:
        """The line while the work goes on."""
        left = self.seconds / max(self.done, 1) * (self.total - self.done)
        return (
            f"{self.description}: {self.done}/{self.total}, about {left:.0f} s left{self._rate()}"
        )

    def end(self) -> str:
        """The line when it has ended."""
        return f"{self.description}: {self.done}/{self.total} in {self.seconds:.0f} s{self._rate()}"


def _plain(
    description: str, total: int, unit: str = "", each: float = 1
) -> Iterator[Callable[[int], None]]:
    """Log files get a line every ten seconds and one at the end instead of control characters."""
    pace, last = _Pace(description, total, unit, each), time.monotonic()

    def advance(n: int = 1) -> None:
        nonlocal last
        pace.done += n
        now = time.monotonic()
        if now - last > 10 and pace.done < total:
            last = now
            print(pace.now(), file=sys.stderr, flush=True)

    yield advance
    print(pace.end(), file=sys.stderr, flush=True)


def _in_notebook() -> bool:
    """Whether the caller is a cell of a notebook (Jupyter, VS Code, Colab)."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _below_the_cell(
    description: str, total: int, unit: str = "", each: float = 1
) -> Iterator[Callable[[int], None]]:
    """The browser's own bar below the cell, which needs no widgets; at the end one line of text in its place."""
    from IPython.display import display, update_display

    pace, name = _Pace(description, total, unit, each), uuid.uuid4().hex

    def bar() -> dict[str, str]:
        text = html.escape(pace.now() if pace.done else f"{description}: 0/{total}")
        html_bar = f'<progress value="{pace.done}" max="{total}"></progress> {text}'
        return {"text/html": html_bar, "text/plain": text}

    display(bar(), raw=True, display_id=name)
    last = time.monotonic()

    def advance(n: int = 1) -> None:
        nonlocal last
        pace.done += n
        now = time.monotonic()
        if now - last > 0.2:
            last = now
            update_display(bar(), raw=True, display_id=name)

    try:
        yield advance
    finally:  # a bar that stands still would look like work after an error or an interruption
        update_display({"text/plain": pace.end()}, raw=True, display_id=name)


def track(items: Iterable[T], description: str, total: int, verbose: bool = True) -> Iterator[T]:
    """Iterate under a progress bar.

    Parameters
    ----------
    items
        What to iterate over.
    description
        Title of the bar.
    total
        Number of items.
    verbose
        Show the bar.

    Yields
    ------
    The items.

    Examples
    --------
    >>> from scmamba.utils.progress import track
    >>> list(track("ab", "Reading", 2, verbose=False))
    ['a', 'b']
    """
    with progress(description, total, verbose) as advance:
        for item in items:
            yield item
            advance(1)


def speak_warnings() -> None:
    """Report warnings for users as messages from now on, in a process whose messages another one shows."""
    former = warnings.showwarning

    def show(message: Any, category: Any, *where: Any, **named: Any) -> None:
        if category is UserWarning and speaker is not None:
            speaker(str(message))
        else:
            former(message, category, *where, **named)

    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = show


def say(text: str, verbose: bool) -> None:
    """Print one message on stderr, so that output can be piped.

    Parameters
    ----------
    text
        The message.
    verbose
        Whether to print it.
    """
    if not verbose:
        return
    if speaker is not None:
        speaker(text)
    else:
        logger.info(text)
