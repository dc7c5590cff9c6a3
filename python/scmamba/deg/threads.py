"""How many threads a compiled loop gets: one for small work, where waking and waiting would cost more."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from numba import get_num_threads, set_num_threads

# Steps of an inner loop, about a nanosecond each. Below this a single thread is done before others have
# started, and on a machine that is busy with something else nobody waits for a thread that is not scheduled.
_SMALL = 1e7


@contextmanager
def threads_for(steps: float) -> Iterator[int]:
    """One thread for the block's parallel loops if they take fewer steps than pay; yields the number."""
    torch = sys.modules.get("torch")
    torch_threads = torch.get_num_threads() if torch else None
    threads = get_num_threads()
    use = 1 if steps < _SMALL else threads
    set_num_threads(use)
    try:
        yield use
    finally:
        set_num_threads(threads)
        # Both run on one OpenMP, and numba's first call gives it numba's number: the last digits of everything torch
        # computes afterwards would depend on whether a differential expression test came first.
        if torch and torch.get_num_threads() != torch_threads:
            torch.set_num_threads(torch_threads)
