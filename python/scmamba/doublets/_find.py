"""Doublets: droplets that held two cells, found per sample by comparison with doublets made of the sample's own cells.

The default needs no network and no GPU: six kinds of evidence (:mod:`scmamba.doublets.features`) joined by a logistic regression
that learns to tell simulated doublets from the real droplets, cross-fitted, suspected doublets taken out of the real ones between rounds.
How much of its two cells a real doublet holds differs between libraries and is not known, so rounds alternate between two answers: all of
it, where depth is then no evidence because it would be nearly all of it; and a random share, where it is.
What it trades: it knows only these data, so finds no doublet of two cells of one kind, and few where kinds of cells shade into each other.
The paper's detector, the pre-trained network with three [CLS] tokens fine-tuned on simulated doublets, is ``method="network"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from .._version import __version__
from ..data.doublet_simulation import Recipe, simulate_doublets
from ..data.provenance import KEY
from ..data.selection import select_matrix
from ..utils.errors import DataError, ScMambaError
from ..utils.progress import progress, say
from ..utils.threads import single_blas_thread
from .features import (
    DEPTH,
    Clusters,
    Coexpression,
    Evidence,
    Mixtures,
    gather,
    log_values,
    median_total,
)
from .network import network_odds

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import Model

Method = Literal["fast", "network", "both"]
#: How the detector makes its doublets: as :data:`scmamba.data.doublet_simulation.Recipe`, or mixed ones and sums in turn.
Recipes = Literal["both", "mixed", "sum", "mean"]
TASK = "doublets"
#: Share of doublets per 1,000 cells recovered, as 10x Genomics states for its droplets.
RATE_PER_1000 = 0.008
#: Fewer cells than this in all say nothing about what is usual.
LEAST_CELLS = 30
_AT_ONCE = 15_000  # cells of whole samples looked at together
_SUSPECTED = 0.1  # share of the real droplets left out of the second and third fit
_CANDIDATES = (
    "sample",
    "donor",
    "donor_id",
    "patient",
    "orig.ident",
    "library",
    "batch",
    "channel",
)


@single_blas_thread()
def detect_doublets(
    adata: AnnData,
    *,
    sample: str | None = None,
    method: Method = "fast",
    model: str | PathLike[str] | Model | None = None,
    expected_rate: float | Mapping[str, float] | None = None,
    identification_rate: float | None = None,
    labels: str | None = None,
    recipe: Recipes = "both",
    rounds: int = 4,
    layer: str | None = None,
    seed: int = 0,
    copy: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Find doublets.

    Parameters
    ----------
    adata
        Cells x genes, raw counts, all cells that were sequenced (before clusters are thrown away); any genes.
    sample
        Column of ``obs`` that names the library or donor: doublets are simulated and called within each. Cells without one (NA) are
        taken as one more sample. ``None``: all cells are one sample.
    method
        ``"fast"``: seconds to a minute on a CPU. ``"network"``: the pre-trained network fine-tuned on simulated doublets (paper);
        minutes on a CPU, and better on brain nuclei. ``"both"``: the mean of their log odds; within .02 of the better of them where
        that was measured (docs/doublets.md), so take it if you have the minutes.
    model
        The pre-trained model to fine-tune (``"network"``, ``"both"``); default ``brain-mini``.
    expected_rate
        Share of doublets, one number or one for each sample. ``None``: 0.8% per 1,000 cells of a sample, corrected by how many droplets
        look like simulated doublets.
    identification_rate
        Call exactly this share of every sample (the paper reports 10 to 40%) instead of the expected one.
    labels
        Column of ``obs`` with cell types, used only to name the likely parents; clusters with their top genes if not given.
    recipe
        How doublets are simulated: :func:`scmamba.data.doublet_simulation.simulate_doublets`; ``"both"``: ``"mixed"`` and ``"sum"`` in turn, and
        ``"mean"`` for the network (paper).
    rounds
        Independent simulations whose log odds are averaged: more of them, steadier calls. Even with ``"both"``.

    Returns
    -------
    The same object (a copy with ``copy=True``) with ``obs["scmamba_doublet_score"]`` (0 to 1, the probability of a doublet if the rate is
    the one in ``uns``; NaN for cells without counts), ``obs["scmamba_doublet"]`` (bool), ``obs["scmamba_doublet_parents"]`` (for called
    droplets, the two kinds of cells it seems to hold) and ``uns["scmamba"]["doublets"]``.

    Raises
    ------
    ScMambaError
        Options that make no sense; no such column; fewer than 30 cells; values that are not counts.
    """
    _check_options(method, recipe, expected_rate, identification_rate, rounds)
    counts = _counts(adata, layer)
    names, codes = _samples(adata, sample, verbose)
    if labels is not None and labels not in adata.obs:
        raise DataError(f"obs has no column '{labels}'; its columns are {list(adata.obs.columns)}.")
    full = np.asarray(counts.sum(axis=1)).ravel() > 0
    if full.sum() < LEAST_CELLS:
        raise DataError(
            f"{int(full.sum())} cells with counts are too few to tell what is usual; at least {LEAST_CELLS} are needed."
        )
    kinds = None if labels is None else adata.obs[labels].astype(str).to_numpy()
    result = _Result.empty(adata.n_obs)
    groups = list(_sample_batches(codes[full]))
    with progress("Finding doublets", len(groups) * rounds, verbose) as advance:
        for k, part in enumerate(groups):
            rows = np.flatnonzero(full)[part]
            found = _detect(
                counts[rows],
                codes[rows],
                method,
                model,
                recipe,
                rounds,
                seed,
                adata,
                rows,
                advance,
                verbose,
            )
            prefix = f"g{k + 1}" if len(groups) > 1 else ""
            found.name_parents(
                counts[rows], adata.var_names, None if kinds is None else kinds[rows], prefix
            )
            result.assign(rows, found)
    rates = _rates(result, codes, full, names, expected_rate)
    _call(result, codes, full, rates, identification_rate)
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    _write(
        adata,
        result,
        names,
        codes,
        rates,
        sample=sample,
        method=method,
        recipe=recipe,
        rounds=int(rounds),
        seed=int(seed),
        identification_rate=identification_rate,
    )
    _report(result, rates, full, verbose)
    return adata


def _check_options(
    method: str, recipe: str, rate: Any, identification: float | None, rounds: int
) -> None:
    for word, value, choices in (
        ("method", method, get_args(Method)),
        ("recipe", recipe, get_args(Recipes)),
    ):
        if value not in choices:
            raise ScMambaError(f"There is no {word} '{value}'; choose one of {', '.join(choices)}.")
    given = [("expected_rate", r) for r in (rate.values() if isinstance(rate, Mapping) else [rate])]
    for name, value in [*given, ("identification_rate", identification)]:
        if value is not None and not 0 <= float(value) < 1:
            raise ScMambaError(
                f"{name} is {value}; it is a share of the droplets, from 0 to less than 1 (8% is 0.08)."
            )
    if rounds < 1:
        raise ScMambaError(f"rounds is {rounds}; it must be at least 1.")


def _counts(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    """(n, genes) float64 CSR of counts, or an error that says what the values are."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(f"The object is empty: {adata.n_obs} cells x {adata.n_vars} genes.")
    selected = select_matrix(adata, layer)
    values = selected.detect(force=True)
    if values.kind == "log1p":
        raise DataError(
            f"{values.sentence}, but simulated doublets are sums of counts. Give raw counts, in X or in a layer (layer='counts')."
        )
    matrix = selected.matrix[:] if adata.isbacked else selected.matrix
    counts = sparse.csr_matrix(matrix, dtype=np.float64, copy=True)
    if selected.is_gene is not None:
        counts.data[~selected.is_gene[counts.indices]] = 0
    if values.kind == "log1p_counts":
        counts.data = np.rint(values.linear(counts.data))
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _samples(adata: AnnData, sample: str | None, verbose: bool) -> tuple[list[str], np.ndarray]:
    """Names of the samples and (n,) codes; NA is a sample of its own."""
    if sample is None:
        several = [
            name for name in _CANDIDATES if name in adata.obs and adata.obs[name].nunique() > 1
        ]
        if several:
            say(
                f"all cells are taken as one sample; if obs['{several[0]}'] names the samples, pass sample='{several[0]}'",
                verbose,
            )
        return ["all"], np.zeros(adata.n_obs, dtype=np.int64)
    if sample not in adata.obs:
        raise DataError(f"obs has no column '{sample}'; its columns are {list(adata.obs.columns)}.")
    codes, levels = pd.factorize(adata.obs[sample], sort=False)
    names = [str(level) for level in levels]
    if (codes < 0).any():
        say(
            f"{int((codes < 0).sum())} cells have no {sample}; they are taken as one more sample, 'NA'",
            verbose,
        )
        codes = np.where(codes < 0, len(names), codes)
        names.append("NA")
    return names, codes.astype(np.int64)


def _sample_batches(codes: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of whole samples, at most 15,000 cells at a time unless one sample has more."""
    size = np.bincount(codes)
    group, held, number = np.zeros(len(size), dtype=np.int64), 0, 0
    for code, cells in enumerate(size):
        if held and held + cells > _AT_ONCE:
            number, held = number + 1, 0
        group[code], held = number, held + cells
    if number and held < LEAST_CELLS:  # a few left-over cells join the group before
        group[group == number] = number - 1
    for k in np.unique(group):
        rows = np.flatnonzero(group[codes] == k)
        if len(rows):
            yield rows


@dataclass
class _Result:
    """Per droplet: log likelihood ratio of being a simulated doublet, the likely parents; and how the simulated ones scored."""

    log_ratio: np.ndarray
    pair: np.ndarray
    detectable: np.ndarray
    parents: np.ndarray
    doublet: np.ndarray
    score: np.ndarray
    simulated: np.ndarray
    cluster: np.ndarray
    clusters: dict[str, str]

    @classmethod
    def empty(cls, n: int) -> _Result:
        return cls(
            np.full(n, np.nan),
            np.zeros((n, 2), dtype=np.int64),
            np.zeros(n),
            np.full(n, "", dtype=object),
            np.zeros(n, dtype=bool),
            np.full(n, np.nan),
            np.empty(0),
            np.zeros(n, dtype=np.int64),
            {},
        )

    def assign(self, rows: np.ndarray, part: _Result) -> None:
        for name in ("log_ratio", "pair", "detectable", "parents"):
            getattr(self, name)[rows] = getattr(part, name)
        self.simulated = np.concatenate([self.simulated, part.simulated])
        self.clusters |= part.clusters

    def name_parents(
        self, counts: sparse.csr_matrix, genes: pd.Index, kinds: np.ndarray | None, prefix: str
    ) -> None:
        """Turn cluster codes into names: the cells' commonest label, or c1, c2, ... with their top genes kept aside."""
        present = np.unique(self.cluster)
        if kinds is None:
            names = {code: f"{prefix}c{code + 1}" for code in present}
            self.clusters = {
                names[code]: text for code, text in _top_genes(counts, self.cluster, genes).items()
            }
        else:
            names = {
                code: str(pd.Series(kinds[self.cluster == code]).mode()[0]) for code in present
            }
        self.parents = np.array(
            [" + ".join(sorted((names.get(a, "?"), names.get(b, "?")))) for a, b in self.pair],
            dtype=object,
        )


def _top_genes(
    counts: sparse.csr_matrix, cluster: np.ndarray, genes: pd.Index, n: int = 5
) -> dict[int, str]:
    """For each cluster the genes with the largest difference of mean log values to the other cells."""
    values = log_values(counts, median_total(counts))
    overall = np.asarray(values.sum(axis=0)).ravel()
    top = {}
    for code in np.unique(cluster):
        here = cluster == code
        mine = np.asarray(values[here].sum(axis=0)).ravel()
        gain = mine / here.sum() - (overall - mine) / max((~here).sum(), 1)
        top[int(code)] = ", ".join(map(str, genes[np.argsort(-gain, kind="stable")[:n]]))
    return top


def _detect(
    counts: sparse.csr_matrix,
    codes: np.ndarray,
    method: str,
    model: Any,
    recipe: Recipes,
    rounds: int,
    seed: int,
    adata: AnnData,
    rows: np.ndarray,
    advance: Any,
    verbose: bool,
) -> _Result:
    """Log ratios of the droplets of some samples."""
    n = counts.shape[0]
    clusters = Clusters.find(counts, seed=seed)
    mixtures = {
        name: Mixtures(counts, code, suspected=_SUSPECTED, seed=seed)
        for name, code in (("coarse", clusters.coarse), ("fine", clusters.fine))
    }
    coexpression = Coexpression(counts)
    ratios, simulated = np.zeros(n), []
    recipes: list[Recipe] = ["mixed", "sum"] if recipe == "both" else [recipe]
    for k in range(rounds):
        kind = recipes[k % len(recipes)]
        made = simulate_doublets(counts, codes, n, recipe=kind, seed=seed * 1000 + k)
        if len(made) < 10:
            raise DataError(
                "No sample has two cells, so no doublet can be simulated. Leave sample out to take all cells as one."
            )
        evidence = gather(counts, made.counts, mixtures, coexpression, seed=seed)
        odds = _combined_log_odds(evidence, kind, seed * 1000 + k)
        odds += np.log(n / len(made))
        ratios += odds[:n] / rounds
        simulated.append(odds[n:])
        advance(1)
    if method != "fast":
        # Left to itself the network learns from the paper's doublets: no depth to lean on, so it has to see the mixture.
        made = simulate_doublets(
            counts,
            codes,
            n,
            recipe="mean" if recipe == "both" else recipe,
            seed=seed * 1000 + rounds,
        )
        doubtful = ratios > np.quantile(ratios, 1 - _SUSPECTED)
        real, double = network_odds(
            adata, counts, made, doubtful, model=model, seed=seed, verbose=verbose
        )
        ratios = real if method == "network" else (ratios + real) / 2
        # The two kinds of odds belong to different simulated doublets; their quantiles are averaged instead.
        simulated = (
            [double]
            if method == "network"
            else [(_sorted_like(np.concatenate(simulated), len(double)) + np.sort(double)) / 2]
        )
    result = _Result.empty(n)
    result.log_ratio, result.simulated = ratios, np.concatenate(simulated)
    result.cluster, result.pair = mixtures["fine"].cluster, mixtures["fine"].pair
    for code in np.unique(codes):
        here = codes == code
        share = np.bincount(clusters.coarse[here]) / here.sum()
        result.detectable[here] = 1 - (share**2).sum()
    return result


def _combined_log_odds(evidence: Evidence, recipe: str, seed: int) -> np.ndarray:
    """(rows,) log odds from all the evidence; without depth where the simulated doublets are sums."""
    between = crossfit_log_odds(
        evidence.curved(), evidence.simulated, ridge=30.0, refits=2, seed=seed
    )
    table = evidence.table.drop(columns=list(DEPTH)) if recipe == "sum" else evidence.table
    return crossfit_log_odds(
        np.column_stack([table.to_numpy(), between]), evidence.simulated, seed=seed
    )


def _sorted_like(values: np.ndarray, n: int) -> np.ndarray:
    """``n`` quantiles of ``values``, increasing."""
    return np.quantile(values, (np.arange(n) + 0.5) / n)


def crossfit_log_odds(
    features: np.ndarray,
    simulated: np.ndarray,
    *,
    ridge: float = 5.0,
    seed: int = 0,
    refits: int = 3,
    folds: int = 5,
) -> np.ndarray:
    """(rows,) log odds of being simulated, each from a fit that did not see the row.

    Ridge-penalised logistic regression on standardised features. The tenth of the real rows that looks most like doublets is left out of
    the second and third fit, because calling true doublets real teaches the opposite of what is wanted.
    """
    x = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-9)
    fold = np.random.default_rng(seed).integers(0, folds, len(x))
    odds, out = np.zeros(len(x)), np.zeros(len(x), dtype=bool)
    real = ~simulated
    for _ in range(refits):
        for k in range(folds):
            learn = (fold != k) & ~out
            weights = logistic(x[learn], simulated[learn], ridge=ridge)
            odds[fold == k] = x[fold == k] @ weights[1:] + weights[0]
        # Fits on fewer real rows have higher odds; take that out so that rounds stay comparable.
        odds += np.log(max((real & ~out).sum(), 1) / real.sum())
        out = real & (odds > np.quantile(odds[real], 1 - _SUSPECTED))
    return odds


def logistic(x: np.ndarray, y: np.ndarray, *, ridge: float = 5.0, steps: int = 30) -> np.ndarray:
    """(1 + k,) intercept and weights that maximise the log-likelihood minus ridge/2 times the squared weights (Newton's method)."""
    design = np.column_stack([np.ones(len(x)), x])
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 1e-6
    weights = np.zeros(design.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (y - chance) - penalty * weights
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        weights += step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _rates(
    result: _Result, codes: np.ndarray, full: np.ndarray, names: list[str], given: Any
) -> pd.DataFrame:
    """One row per sample: cells, prior rate, what the droplets look like, and the rate used."""
    if isinstance(given, Mapping):
        if unknown := sorted(set(names) - {str(k) for k in given}):
            has = ", ".join(map(str, given))
            raise ScMambaError(
                f"expected_rate has no entry for the sample(s) {', '.join(unknown[:5])}; it has {has}."
            )
        given = {str(k): float(v) for k, v in given.items()}
    rows = []
    for code, name in enumerate(names):
        here = full & (codes == code)
        cells = int(here.sum())
        prior = min(RATE_PER_1000 * cells / 1000, 0.4)
        fixed = given.get(name) if isinstance(given, dict) else given
        look, above = _apparent_rate(result.log_ratio[here], result.simulated)
        rate = float(fixed) if fixed is not None else _posterior_rate(prior, look, above)
        rows.append(
            {
                "sample": name,
                "cells": cells,
                "prior": prior,
                "apparent": look,
                "rate": rate,
                "detectable": float(result.detectable[here].mean()) if cells else 0.0,
            }
        )
    return pd.DataFrame(rows)


def _apparent_rate(real: np.ndarray, simulated: np.ndarray) -> tuple[float, int]:
    """At most this share of the droplets are doublets like the simulated ones, and the number of droplets that says so.

    Above any threshold there are at least as many droplets as doublets, so the ratio of the two shares bounds the rate; the smallest bound
    over thresholds that keep 30 to 80% of the simulated ones (Blanchard, Lee and Scott 2010).
    """
    if not len(real):
        return 0.0, 0
    keep = np.linspace(0.3, 0.8, 11)
    above = np.array([(real > t).sum() for t in np.quantile(simulated, 1 - keep)])
    best = int(np.argmin((above + 1) / keep))  # one more than seen: a bound of nothing says nothing
    return float(above[best] / len(real) / keep[best]), int(above[best])


def _posterior_rate(prior: float, look: float, above: int) -> float:
    """Geometric mean of both, weighted by how sure each is (a factor of two for the loading of a sample, and counting error)."""
    if prior <= 0 or above == 0:
        return prior
    sure, seen = 1 / 0.7**2, 1 / (0.5**2 + 1 / above)
    return float(min(np.exp((sure * np.log(prior) + seen * np.log(look)) / (sure + seen)), 0.4))


def _call(
    result: _Result,
    codes: np.ndarray,
    full: np.ndarray,
    rates: pd.DataFrame,
    identification: float | None,
) -> None:
    """Scores from ratios and rates; the called droplets of each sample are those with the highest scores."""
    for code, rate in enumerate(rates["rate"]):
        here = np.flatnonzero(full & (codes == code))
        if not len(here):
            continue
        odds = np.log(max(rate, 1e-6) / (1 - rate)) + result.log_ratio[here]
        result.score[here] = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
        n = int(round((rate if identification is None else identification) * len(here)))
        result.doublet[here[np.argsort(-result.log_ratio[here], kind="stable")[:n]]] = True
    result.parents[~result.doublet] = ""


def _write(
    adata: AnnData,
    result: _Result,
    names: list[str],
    codes: np.ndarray,
    rates: pd.DataFrame,
    **settings: Any,
) -> None:
    rates = rates.assign(
        called=[int(result.doublet[codes == code].sum()) for code in range(len(names))]
    )
    adata.obs[f"{KEY}_doublet_score"] = result.score.astype(np.float32)
    adata.obs[f"{KEY}_doublet"] = result.doublet
    adata.obs[f"{KEY}_doublet_parents"] = pd.Categorical(result.parents)
    notes = dict(adata.uns.get(KEY, {}))
    notes[TASK] = {
        "version": __version__,
        "samples": {column: rates[column].to_numpy() for column in rates},
        "cluster_genes": result.clusters,
        **{key: value for key, value in settings.items() if value is not None},
    }
    adata.uns[KEY] = notes


def _report(result: _Result, rates: pd.DataFrame, full: np.ndarray, verbose: bool) -> None:
    called, cells = int(result.doublet.sum()), int(full.sum())
    say(
        f"{called} of {cells} droplets called doublets ({100 * called / max(cells, 1):.1f}%), in {len(rates)} sample(s)",
        verbose,
    )
    if (rates["detectable"] < 0.2).any():
        say(
            "where nearly all cells are of one kind most doublets are two of it, and those cannot be told from one cell",
            verbose,
        )
