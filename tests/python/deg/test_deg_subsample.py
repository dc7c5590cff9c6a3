"""Cells and donors of a run: distinct, drawn without replacement, as many as the ratio gives."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scmamba.deg.subsample import (
    Task,
    cell_subsample,
    donor_combinations,
    donor_splits,
    null_cells,
    parse_design,
    run_seed,
)
from scmamba.utils.errors import DataError

GROUP = np.repeat([0, 1], [40, 60])


@pytest.mark.parametrize(
    ("ratio", "sizes"), [(0.1, (4, 6)), (0.35, (14, 21)), (0.9, (36, 54)), (1.0, (40, 60))]
)
def test_a_subsample_has_the_ratio_of_each_group(ratio, sizes):
    member = cell_subsample(GROUP, ratio, 5)
    assert member.shape == (100, 2) and set(np.unique(member)) <= {0, 1}
    assert tuple(member.sum(axis=0)) == sizes  # distinct cells: none is drawn twice
    assert member[GROUP == 1, 0].sum() == 0 and member[GROUP == 0, 1].sum() == 0


def test_odd_sizes_are_rounded():
    assert cell_subsample(np.repeat([0, 1], [7, 9]), 0.5, 0).sum(axis=0).tolist() == [
        4,
        4,
    ]  # 3.5, 4.5


def test_hundred_permutations_are_distinct():
    seeds = [run_seed(0, "cells", "MG", 0.5, i) for i in range(100)]
    assert len(set(seeds)) == 100
    members = {cell_subsample(GROUP, 0.5, s).tobytes() for s in seeds}
    assert len(members) == 100
    # Every cell is in about half of the draws: binomial, 5 sd
    drawn = sum(cell_subsample(GROUP, 0.5, s).any(axis=1).astype(int) for s in seeds)
    assert abs(drawn - 50).max() <= 25 and drawn.std() > 2


def test_a_seed_depends_on_the_whole_name_of_the_run():
    base = (0, "cells", "MG", 0.5, 3)
    other = [
        (1, *base[1:]),
        (0, "null_cells", *base[2:]),
        (0, "cells", "AC", 0.5, 3),
        (0, "cells", "MG", 0.35, 3),
        (0, "cells", "MG", 0.5, 4),
    ]
    seeds = {run_seed(*words) for words in [base, *other]}
    assert len(seeds) == 6 and run_seed(*base) == run_seed(*base)
    assert 0 <= run_seed(*base) < 2**32
    assert run_seed(0, "cells", "MG", 0.1 + 0.2, 3) == run_seed(
        0, "cells", "MG", 0.3, 3
    )  # rounding of ratios


def test_null_halves_within_every_donor():
    strata = np.repeat([0, 1, 2, -1], [10, 7, 1, 4])
    sides = []
    for seed in range(60):
        member = null_cells(strata, seed)
        assert member.shape == (22, 2) and (member.sum(axis=1) == (strata >= 0)).all()
        assert member[strata == 0].sum(axis=0).tolist() == [5, 5]
        seven = member[strata == 1, 0].sum()
        assert seven in (3, 4)
        sides.append((seven, member[strata == 2, 0].sum()))
    # the odd cell is on either side, stratum by stratum
    assert len(set(sides)) == 4
    first = null_cells(strata, 0)
    assert not np.array_equal(first, null_cells(strata, 1))
    np.testing.assert_array_equal(first, null_cells(strata, 0))
    drawn = sum(null_cells(strata, s)[:10, 0].astype(int) for s in range(100))
    assert abs(drawn - 50).max() <= 25  # every cell is on either side about equally often


def test_notations_of_donors_per_group():
    for text in ("3v3", " 3 v 3", "3vs3", "3x3 "):
        assert parse_design(text) == (3, 3)
    assert parse_design("2v12") == (2, 12)
    for text in ("3", "0v3", "3v0", "3-3", "3v3v3", "av3"):
        with pytest.raises(DataError, match="Write the donors per group as '3v3'"):
            parse_design(text)


def test_all_combinations_are_distinct():
    got = {tuple(np.flatnonzero(row)) for row in donor_combinations(4, 3, (2, 1), 18, 0)}
    truth = {(*a, 4 + b) for a in itertools.combinations(range(4), 2) for b in range(3)}
    assert got == truth and len(donor_combinations(4, 3, (2, 1), 18, 0)) == 18
    # one fewer than possible: a random choice
    some = donor_combinations(4, 3, (2, 1), 17, 0)
    assert len(some) == 17 and len(np.unique(some, axis=0)) == 17
    assert (
        some[:, :4].sum(axis=1).tolist() == [2] * 17
        and some[:, 4:].sum(axis=1).tolist() == [1] * 17
    )
    assert {tuple(np.flatnonzero(row)) for row in some} < truth


def test_random_combinations():
    a = donor_combinations(12, 10, (3, 2), 40, 1)
    assert a.shape == (40, 22) and len(np.unique(a, axis=0)) == 40 and a.dtype == np.uint8
    assert (a[:, :12].sum(axis=1) == 3).all() and (a[:, 12:].sum(axis=1) == 2).all()
    np.testing.assert_array_equal(a, donor_combinations(12, 10, (3, 2), 40, 1))
    assert not np.array_equal(a, donor_combinations(12, 10, (3, 2), 40, 2))
    assert (a.sum(axis=0) > 0).all()  # every donor is drawn at least once
    assert donor_combinations(2, 5, (3, 3), 10, 0).shape == (0, 7)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_all_splits_are_distinct(n):
    every = donor_splits(n, 1000, 0)
    assert len(every) == math.comb(n, n // 2) // (1 if n % 2 else 2)
    assert (every.sum(axis=1) == n // 2).all() and every.shape[1] == n
    both = {frozenset([row.tobytes(), (1 - row).tobytes()]) for row in every}
    assert len(both) == len(every)  # no split is another's mirror


@pytest.mark.parametrize("n", [10, 11])
def test_random_splits(n):
    some = donor_splits(n, 30, 4)
    assert some.shape == (30, n) and (some.sum(axis=1) == n // 2).all()
    assert len({frozenset([row.tobytes(), (1 - row).tobytes()]) for row in some}) == 30
    np.testing.assert_array_equal(some, donor_splits(n, 30, 4))
    assert not np.array_equal(some, donor_splits(n, 30, 5))
    assert donor_splits(1, 30, 0).shape == (0, 1) and donor_splits(2, 30, 0).tolist() == [[1, 0]]
    assert len(donor_splits(4, 4, 0)) == 3  # there are no more
    assert len(donor_splits(4, 3, 0)) == 3 and len(donor_splits(4, 2, 0)) == 2


def test_tasks_are_compared_without_their_weights():
    a = Task("donors", "MG", "counts", 1.0, 0, (1, 2), np.eye(2))
    assert a == a._replace(weights=None) and hash(a) == hash(a._replace(weights=None))
    changes = {
        "kind": "cells",
        "cell_type": "AC",
        "layer": "x",
        "ratio": 0.5,
        "first": 25,
        "seeds": (1, 3),
    }
    for name, value in changes.items():
        assert not a == a._replace(**{name: value}), name  # noqa: SIM201  (== is what looks them up)
    assert not a == tuple(a)  # noqa: SIM201
    assert len({a, a._replace(weights=None)}) == 1
