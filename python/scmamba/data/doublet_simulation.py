"""Simulated doublets: two cells of one sample in one droplet.

The paper's recipe is the mean of the counts of two random singlets of one donor ("Doublet detection", Methods). A mean has half counts and
no more depth than a single cell, so a classifier can recognize it by that alone; real doublets hold most of what both
cells had. :func:`simulate_doublets` makes both, and something between them. After normalization a mean and a sum are the same values, so that
they differ only for what reads depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from ..utils.errors import DataError, ScMambaError

Recipe = Literal["mixed", "sum", "mean", "matched"]
#: Least share of the two cells' molecules that their droplet catches ("mixed").
LEAST_SHARE = 0.5
#: Words of droplets with two cells and with one, and of droplets without a call, in columns of obs (hashing, genotypes), in lower case.
DOUBLET_WORDS = ("doublet", "doublets", "multiplet", "dbl", "true", "1", "1.0")
SINGLET_WORDS = ("singlet", "singlets", "sng", "false", "0", "0.0")
NO_CALL = (
    "",
    "negative",
    "ambiguous",
    "unassigned",
    "unknown",
    "undetermined",
    "amb",
    "na",
    "nan",
)


@dataclass(frozen=True)
class Simulated:
    """Doublets made of real cells.

    Attributes
    ----------
    counts
        (m, genes) CSR float64.
    parents
        (m, 2) rows of the cells they were made of.
    sample
        (m,) the sample (code) both parents belong to.
    """

    counts: sparse.csr_matrix
    parents: np.ndarray
    sample: np.ndarray

    def __len__(self) -> int:
        return len(self.sample)


def doublet_codes(calls: pd.Categorical) -> np.ndarray | None:
    """What a column of in-vivo calls says: 1 for doublets, 0 for singlets, -1 for droplets without a call.

    Parameters
    ----------
    calls
        (n,) words, as hashing or genotypes gave them.

    Returns
    -------
    (n,) codes; ``None`` if the column is not one of doublets: other words occur, or not both of singlets and doublets.

    Examples
    --------
    >>> doublet_codes(pd.Categorical(["Singlet", "Doublet", "Negative"])).tolist()
    [0, 1, -1]
    """
    words = calls.categories.astype(str).str.strip().str.lower()
    known = dict.fromkeys(NO_CALL, -1)
    known |= dict.fromkeys(SINGLET_WORDS, 0) | dict.fromkeys(DOUBLET_WORDS, 1)
    if not words.isin(list(known)).all():
        return None
    codes = np.array([*(known[word] for word in words), -1])[calls.codes]
    return codes if {0, 1} <= set(codes.tolist()) else None


def simulate_doublets(
    counts: sparse.csr_matrix,
    sample: np.ndarray,
    n: int,
    *,
    cluster: np.ndarray | None = None,
    recipe: Recipe = "mixed",
    weight: np.ndarray | None = None,
    seed: int | np.random.Generator = 0,
) -> Simulated:
    """Make ``n`` doublets of pairs of cells of one sample.

    Parameters
    ----------
    counts
        (cells, genes) counts.
    sample
        (cells,) integer codes: only cells of one code meet. A sample gets doublets in proportion to its cells.
    n
        Number of doublets.
    cluster
        (cells,) codes: only cells of different clusters meet (heterotypic doublets). In a sample where all cells are of one cluster
        any two may meet. ``None``: any two cells anywhere.
    recipe
        ``"sum"``: all counts of both. ``"mean"``: half of that, as published; keeps half counts. ``"mixed"``: a random share of the sum,
        between half and all of it, molecule by molecule, so that depth alone does not reveal it. ``"matched"``: as many molecules of the
        sum, on average, as one of the two cells had, so that depth reveals nothing.
    weight
        (cells,) how likely a cell is drawn; 0 leaves it out (suspected doublets).
    seed
        Seed, or the generator to draw from. Default 0.

    Returns
    -------
    :class:`Simulated`; fewer than ``n`` (perhaps none) if only some samples have two cells.

    Raises
    ------
    ScMambaError
        No such recipe, or lengths that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scmamba.doublets import simulate_doublets
    >>> counts = sparse.csr_matrix(np.eye(4, dtype=int))
    >>> made = simulate_doublets(counts, np.zeros(4, dtype=int), 3, recipe="sum", seed=0)
    >>> made.counts.sum(axis=1).ravel().tolist()
    [[2.0, 2.0, 2.0]]
    """
    if recipe not in get_args(Recipe):
        raise ScMambaError(
            f"There is no recipe '{recipe}' for simulated doublets; choose one of {', '.join(get_args(Recipe))}."
        )
    cells = counts.shape[0]
    for name, values in (("sample", sample), ("cluster", cluster), ("weight", weight)):
        if values is not None and len(values) != cells:
            raise DataError(f"{name} has {len(values)} entries and there are {cells} cells.")
    rng = np.random.default_rng(seed)
    weight = np.ones(cells) if weight is None else np.asarray(weight, dtype=float)
    pairs = [
        _pairs(
            np.flatnonzero((sample == code) & (weight > 0)),
            n * np.mean(sample == code),
            cluster,
            weight,
            rng,
        )
        for code in np.unique(sample)
    ]
    parents = np.concatenate(pairs) if pairs else np.empty((0, 2), dtype=np.int64)
    parents = parents[rng.permutation(len(parents))]
    return Simulated(
        _join(sparse.csr_matrix(counts, dtype=np.float64), parents, recipe, rng),
        parents,
        np.asarray(sample)[parents[:, 0]],
    )


def _pairs(
    rows: np.ndarray,
    n: float,
    cluster: np.ndarray | None,
    weight: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """(about n, 2) pairs of different cells among ``rows``, of different clusters if there are several."""
    n = int(n) + int(rng.random() < n % 1)  # the expectation is kept for samples of a few cells
    if len(rows) < 2 or n == 0:
        return np.empty((0, 2), dtype=np.int64)
    chance = weight[rows] / weight[rows].sum()
    label = None if cluster is None or len(np.unique(cluster[rows])) < 2 else cluster[rows]
    found: list[np.ndarray] = []
    size, tries = 0, 0
    while (
        size < n and tries < 50
    ):  # rare clusters need several draws; a single cell of a second cluster still finds a partner
        pair = rng.choice(len(rows), (2 * n + 8, 2), p=chance)
        good = pair[:, 0] != pair[:, 1] if label is None else label[pair[:, 0]] != label[pair[:, 1]]
        found.append(pair[good])
        size, tries = size + int(good.sum()), tries + 1
    result: np.ndarray = rows[np.concatenate(found)[:n]]
    return result


def _join(
    counts: sparse.csr_matrix, parents: np.ndarray, recipe: str, rng: np.random.Generator
) -> sparse.csr_matrix:
    joined = sparse.csr_matrix(counts[parents[:, 0]] + counts[parents[:, 1]])
    if recipe == "mixed":
        # Molecules are lost one by one, so a share of a droplet is a binomial draw, not a multiple.
        joined = _thin(joined, rng.uniform(LEAST_SHARE, 1, len(parents)), rng)
    if recipe == "matched":
        depth = np.asarray(counts.sum(axis=1)).ravel()
        one = depth[parents[np.arange(len(parents)), rng.integers(0, 2, len(parents))]]
        both = np.maximum(depth[parents].sum(axis=1), 1)
        joined = _thin(joined, np.minimum(one / both, 1), rng)
    if recipe == "mean":
        joined.data *= 0.5
    joined.eliminate_zeros()
    joined.sort_indices()
    return joined


def _thin(
    counts: sparse.csr_matrix, share: np.ndarray, rng: np.random.Generator
) -> sparse.csr_matrix:
    """Keep each molecule of a cell with the cell's probability; fractions of corrected counts are rounded first."""
    out = counts.copy()
    out.data = rng.binomial(
        np.rint(out.data).astype(np.int64), np.repeat(share, np.diff(out.indptr))
    ).astype(np.float64)
    return out
