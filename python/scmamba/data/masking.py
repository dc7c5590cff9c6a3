"""Which values are hidden from the model: at random in training, in interleaved groups at inference (spec)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mask_values(x: Tensor, nonzero: float, zero: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw a random mask: each non-zero value with probability ``nonzero``, each zero with ``zero``.

    Pre-training hides 15% of the non-zeros and no zeros; imputation fine-tuning 40% and 4% (paper, Methods).

    Parameters
    ----------
    x
        (B, L) log1p(CP10k).

    Returns
    -------
    (B, L) bool, True = hidden.
    """
    chance = torch.where(x != 0, torch.as_tensor(nonzero, dtype=torch.float32), torch.as_tensor(zero, dtype=torch.float32))
    return torch.rand(x.shape, generator=generator) < chance.to("cpu")


def interleaved_groups(hidden: np.ndarray, groups: int) -> np.ndarray:
    """Number the True positions of each row 0, 1, ..., groups-1, 0, 1, ... from left to right; -1 elsewhere.

    ``hidden`` (B, L) bool. Every group of a row spreads over its whole length (published inference rule).
    """
    rank = np.cumsum(hidden, axis=1, dtype=np.int64) - 1
    return np.where(hidden, rank % groups, -1)
