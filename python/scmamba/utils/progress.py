"""One progress bar for all long work; silent with ``verbose=False``, plain lines if there is no terminal."""

from __future__ import annotations

import sys
import time
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
    """Yield ``advance(n)``; show a progress bar with the time left on stderr while the block runs.

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


def _plain(
    description: str, total: int, unit: str = "", each: float = 1
) -> Iterator[Callable[[int], None]]:
    """Log files get a line every ten seconds and one at the end instead of control characters."""
    done, started, last = 0, time.monotonic(), time.monotonic()

    def rate() -> str:
        return (
            f", {done * each / max(time.monotonic() - started, 1e-9):,.0f} {unit}/s" if unit else ""
        )

    def advance(n: int = 1) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last > 10 and done < total:
            last = now
            left = (now - started) / max(done, 1) * (total - done)
            print(
                f"{description}: {done}/{total}, about {left:.0f} s left{rate()}",
                file=sys.stderr,
                flush=True,
            )

    yield advance
    print(
        f"{description}: {done}/{total} in {time.monotonic() - started:.0f} s{rate()}",
        file=sys.stderr,
        flush=True,
    )


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
