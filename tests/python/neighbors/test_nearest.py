"""Nearest neighbors of large sets, kept tile by tile, are those that sorting all distances gives."""

from __future__ import annotations

import numpy as np

from scmamba.neighbors import knn, nearest_neighbors
from scmamba.neighbors.nearest_kernel import nearest_in_tiles


def test_tiles_give_the_neighbors_of_all_distances():
    points = np.random.default_rng(0).standard_normal((2300, 12))
    expected = nearest_neighbors(points[:700], points, 20)
    np.testing.assert_array_equal(nearest_in_tiles(points[:700], points, 20), expected)


def test_of_equal_cells_the_first_ones_are_found():
    points = np.repeat(np.eye(3), 1000, axis=0)
    found = nearest_in_tiles(points, points, 4)
    np.testing.assert_array_equal(found[:1000], np.tile(np.arange(4), (1000, 1)))


def test_large_pools_are_searched_in_tiles(monkeypatch):
    points = np.random.default_rng(1).standard_normal((4200, 5))
    monkeypatch.setattr(knn, "_LARGE", 10**9)
    expected = nearest_neighbors(points[:50], points, 15)
    monkeypatch.undo()
    np.testing.assert_array_equal(nearest_neighbors(points[:50], points, 15), expected)
