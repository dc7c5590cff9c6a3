"""Cells of each run of the robustness analysis: subsamples, donors, null labels, seeds."""

from __future__ import annotations

import itertools
import math
import re
import zlib
from typing import NamedTuple

import numpy as np

from ..utils.errors import DataError


class Task(NamedTuple):
    """One unit of work: consecutive runs of one ``kind`` on one cell type and layer.

    ``kind`` is "cells", "donors", "null_cells" or "null_donors"; ``ratio`` the share of the cells kept (1 but
    for "cells"); ``first`` the number of the first run, ``seeds`` one per run; ``weights`` (runs, samples)
    0/1: the donors that take part in donor runs.
    """

    kind: str
    cell_type: str
    layer: str
    ratio: float
    first: int
    seeds: tuple[int, ...]
    weights: np.ndarray | None

    def __hash__(self) -> int:
        """Without the weights, which follow from the rest."""
        return hash(self[:6])

    def __eq__(self, other: object) -> bool:
        """Without the weights, which follow from the rest."""
        return isinstance(other, Task) and self[:6] == other[:6]


def run_seed(seed: int, kind: str, cell_type: str, ratio: float, run: int) -> int:
    """The seed of one run: the same for every layer, so that layers are compared on the same cells."""
    words = [
        seed,
        zlib.crc32(kind.encode()),
        zlib.crc32(cell_type.encode()),
        round(ratio * 1e6),
        run,
    ]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def cell_subsample(group: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """(cells, 2) membership of a random ``ratio`` of the cells of each group, without replacement."""
    rng = np.random.default_rng(seed)
    member = np.zeros((group.size, 2), dtype=np.uint8)
    for k in (0, 1):
        cells = np.flatnonzero(group == k)
        member[rng.choice(cells, size=round(cells.size * ratio), replace=False), k] = 1
    return member


def null_cells(strata: np.ndarray, seed: int) -> np.ndarray:
    """(cells, 2) random halves within every stratum (donor x group): no gene differs, donors are balanced."""
    rng = np.random.default_rng(seed)
    member = np.zeros((strata.size, 2), dtype=np.uint8)
    for s in np.unique(strata[strata >= 0]):
        cells = rng.permutation(np.flatnonzero(strata == s))
        # Odd cells go to either side at random, so that no side is systematically larger.
        half = cells.size // 2 + (int(rng.integers(2)) if cells.size % 2 else 0)
        member[cells[:half], 0] = 1
        member[cells[half:], 1] = 1
    return member


def parse_design(donors: str) -> tuple[int, int]:
    """``"3v3"`` as (3, 3)."""
    found = re.fullmatch(r"\s*(\d+)\s*(?:v|vs|x)\s*(\d+)\s*", donors)
    if not found or min(int(found[1]), int(found[2])) < 1:
        raise DataError(f"donors={donors!r} cannot be read. Write the donors per group as '3v3'.")
    return int(found[1]), int(found[2])


def donor_combinations(n1: int, n2: int, take: tuple[int, int], most: int, seed: int) -> np.ndarray:
    """(runs, n1 + n2) 0/1: all combinations of donors of the two groups, or ``most`` of them at random."""
    every = math.comb(n1, take[0]) * math.comb(n2, take[1])
    if every == 0:
        return np.zeros((0, n1 + n2), dtype=np.uint8)
    if every <= most:
        pairs = itertools.product(
            itertools.combinations(range(n1), take[0]),
            itertools.combinations(range(n1, n1 + n2), take[1]),
        )
        chosen = [a + b for a, b in pairs]
    else:
        rng = np.random.default_rng(seed)
        seen: set[tuple[int, ...]] = set()
        while len(seen) < most:
            a = sorted(rng.choice(n1, take[0], replace=False).tolist())
            b = sorted((n1 + rng.choice(n2, take[1], replace=False)).tolist())
            seen.add(tuple(a + b))
        chosen = sorted(seen)
    out = np.zeros((len(chosen), n1 + n2), dtype=np.uint8)
    for i, row in enumerate(chosen):
        out[i, list(row)] = 1
    return out


def donor_splits(n: int, most: int, seed: int) -> np.ndarray:
    """(runs, n) 0/1: ways to split n donors of one condition in two halves, each way once."""
    half = n // 2
    if half < 1:
        return np.zeros((0, n), dtype=np.uint8)
    every = math.comb(n, half) // (2 if n % 2 == 0 else 1)
    rows: list[tuple[int, ...]]
    if every <= most:
        # For an even number the complement is the same split: keep the halves that hold the first donor.
        rows = [c for c in itertools.combinations(range(n), half) if n % 2 or 0 in c]
    else:
        rng = np.random.default_rng(seed)
        seen: set[tuple[int, ...]] = set()
        while len(seen) < most:
            c = tuple(sorted(rng.choice(n, half, replace=False).tolist()))
            if n % 2 == 0 and 0 not in c:
                c = tuple(sorted(set(range(n)) - set(c)))
            seen.add(c)
        rows = sorted(seen)
    out = np.zeros((len(rows), n), dtype=np.uint8)
    for i, c in enumerate(rows):
        out[i, list(c)] = 1
    return out
