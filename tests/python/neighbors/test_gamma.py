"""Standard deviations of log1p of gamma variables against numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from scmamba.neighbors import log1p_gamma_sd


def exact(shape: float, mean: float) -> float:
    """Over quantiles, by adaptive integration."""
    law = stats.gamma(shape, scale=mean / shape)

    def moment(power: int) -> float:
        value = lambda p: np.log1p(law.ppf(p)) ** power  # noqa: E731
        edges = [0, 0.5, 0.9, 0.99, 0.999, 0.99999, 1]
        parts = [integrate.quad(value, a, b, limit=200)[0] for a, b in zip(edges, edges[1:])]
        return sum(parts)

    return float(np.sqrt(moment(2) - moment(1) ** 2))


@pytest.mark.parametrize("shape", [0.033, 0.3, 1.0, 4.2, 60.0])
@pytest.mark.parametrize("mean", [0.003, 0.4, 7.0, 900.0])
def test_the_table_is_within_a_percent_of_the_integral(shape, mean):
    found = log1p_gamma_sd(np.array([shape]), np.array([mean]))[0]
    assert found == pytest.approx(exact(shape, mean), rel=0.01)


def test_large_shapes_follow_the_first_order_formula():
    shape, mean = np.array([500.0, 4000.0, 1e6]), np.array([3.0, 50.0, 1e-6])
    first = mean / (np.sqrt(shape) * (1 + mean))
    np.testing.assert_allclose(log1p_gamma_sd(shape, mean), first, rtol=5e-3)
    # Where the shape is small the first-order formula is far off, so the table is needed.
    assert log1p_gamma_sd(np.array([0.1]), np.array([5.0]))[0] < 0.6 * 5 / (np.sqrt(0.1) * 6)
