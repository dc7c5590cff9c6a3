"""One progress bar for all long work; silent with ``verbose=False``, plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

# A host (R through reticulate, the server) may take over the display: it sets this to a function of
# (description, done, total) and no bar is drawn here.
listener: Callable[[str, int, int], None] | None = None
# The same for the sentences a task says on its way.
speaker: Callable[[str], None] | None = None


@contextmanager
def progress(
    description: str, total: int, verbose: bool = True, *, unit: str = "", each: float = 1
) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(n)``; draw a bar with time left on stderr while the block runs, and the rate if it has a ``unit``.

    One step of the bar stands for ``each`` units.
    """
    if listener is not None:
        done = 0

        def tell(n: int = 1) -> None:
            nonlocal done
            done += n
            if listener is not None:
                listener(description, done, total)

        yield tell
        return
    if not verbose or total == 0:
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
    """Advance a bar nobody sees."""


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
    """Iterate over ``items`` under :func:`progress`."""
    with progress(description, total, verbose) as advance:
        for item in items:
            yield item
            advance(1)


def say(text: str, verbose: bool) -> None:
    """One line for people, on stderr so that output can be piped."""
    if not verbose:
        return
    if speaker is not None:
        speaker(text)
    else:
        print(f"scMamba: {text}", file=sys.stderr, flush=True)
