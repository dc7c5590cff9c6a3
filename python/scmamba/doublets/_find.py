"""Doublets: droplets with two cells, found per sample by comparison with doublets simulated from the sample's own cells.

The default needs no network and no GPU: six kinds of features (:mod:`scmamba.doublets.features`) are combined by a logistic regression
that separates simulated doublets from the observed droplets. It is cross-fitted, and suspected doublets are removed from the observed
ones between rounds. The share of its two cells' RNA that a real doublet holds differs between libraries and is not known, so rounds
alternate between two simulations: all of it, where depth is not used because it would be nearly the only feature; and a random share,
where it is used.
Limitations: homotypic doublets are not detected, and heterotypic ones are hard to detect between closely related cell types.
The detector of the paper, the pre-trained network with three [CLS] tokens fine-tuned on simulated doublets, is ``method="network"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.doublet_simulation import Recipe, simulate_doublets
from ..data.provenance import KEY, refuse_existing, write_record
from ..data.row_store import BLOCK, Rows, collect, is_in_memory
from ..data.selection import select_matrix
from ..utils.columns import require_column
from ..utils.deprecation import renamed_function, renamed_parameters
from ..utils.errors import DataError
from ..utils.expected_time import report_expected
from ..utils.progress import progress, say
from ..utils.threads import single_blas_thread, within_cores
from .brain import BrainClusters
from .features import (
    DEPTH,
    Clusters,
    Coexpression,
    Evidence,
    Mixtures,
    VariableGenes,
    gather,
    log_values,
    median_total,
)
from .options import DoubletOptions, Method, Simulation

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import Model

#: Key of the result in ``uns["scmamba"]``.
TASK = "doublets"
#: Columns of ``obs`` that are written.
COLUMNS = (f"{KEY}_doublet_score", f"{KEY}_doublet", f"{KEY}_doublet_parents")
#: Share of doublets per 1,000 cells recovered, as 10x Genomics states for its droplets.
RATE_PER_1000 = 0.008
#: Fewer cells with counts are refused.
MIN_CELLS = 30
#: Compositions of simulated doublets whose depth is not compared with that of the observed droplets.
DEPTHLESS = ("sum", "matched")
_BATCH_CELLS = 15_000  # cells of whole samples that are analyzed together
_SUSPECTED = 0.1  # share of the observed droplets that the second and third fit omit
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


@renamed_parameters(sample="sample_key", labels="label_key", recipe="doublet_simulation")
@within_cores()
@single_blas_thread()
def find_doublets(
    adata: AnnData,
    *,
    sample_key: str | None = None,
    method: Method = "fast",
    model: str | PathLike[str] | Model | None = None,
    expected_rate: float | Mapping[str, float] | None = None,
    identification_rate: float | None = None,
    label_key: str | None = None,
    doublet_simulation: Simulation = "both",
    rounds: int = 4,
    layer: str | None = None,
    seed: int = 0,
    copy: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
) -> AnnData:
    """Find doublets: droplets with two cells.

    Parameters
    ----------
    adata
        Cells x genes, raw counts, all cells that were sequenced (before clusters are removed); any genes.
    sample_key
        Column of ``obs`` with the library or donor: doublets are simulated and called within each. Cells without one (NA) are
        one more sample. Default: all cells are one sample.
    method
        ``"fast"`` (default): seconds to a minute on a CPU. ``"network"``: the pre-trained network fine-tuned on simulated
        doublets (paper); minutes on a CPU, and better on brain nuclei. ``"both"``: the mean of their log odds; within .02 of the better
        of them where that was measured (docs/doublets.md).
    model
        The pre-trained model to fine-tune (``"network"``, ``"both"``); default ``brain-mini``.
    expected_rate
        Share of doublets, one number or one for each sample. Default: 0.8% per 1,000 cells of a sample, corrected by the number of
        droplets that resemble simulated doublets.
    identification_rate
        Call exactly this share of each sample (the paper reports 10 to 40%) instead of the expected one.
    label_key
        Column of ``obs`` with cell types, used only to name the likely parents. Default: of brain cells the types of the reference
        ``human-brain``, of others clusters, described by their top genes.
    doublet_simulation
        Composition of simulated doublets (:func:`scmamba.data.doublet_simulation.simulate_doublets`): ``"sum"`` of two cells,
        ``"mean"`` (half of the sum, paper), ``"mixed"`` (a random share, half to all of it), ``"matched"`` (the depth of one of the two
        cells, and depth is no feature). ``"both"`` (default) alternates between ``"mixed"`` and ``"sum"``, of brain cells also
        ``"matched"`` doublets of two types; with ``"mean"`` for the network.
    rounds
        Independent simulations whose log odds are averaged; more rounds give steadier calls. Even with ``"both"``. Default 4.
    layer
        Layer with the raw counts; default ``X``.
    seed
        Seed of simulation, clustering and fits. Default 0.
    copy
        Return a copy and leave ``adata`` as it is.
    overwrite
        Replace columns of ``obs`` with our names that other software wrote.
    verbose
        Print what is done.

    Returns
    -------
    ``adata`` (or its copy) with ``obs["scmamba_doublet_score"]`` (0 to 1, the probability of a doublet at the rate given in ``uns``;
    NaN for cells without counts), ``obs["scmamba_doublet"]`` (bool), ``obs["scmamba_doublet_parents"]`` (of called droplets, the two
    likely cell types) and ``uns["scmamba"]["doublets"]``.

    Raises
    ------
    OptionError
        An option outside of its range.
    DataError
        A column or layer does not exist, fewer than 30 cells have counts, values are not counts, or columns of ``obs`` with our
        names were written by other software.

    Examples
    --------
    >>> import scmamba
    >>> from scmamba.datasets import brain_cohort
    >>> cells = brain_cohort(200, n_donors=2, n_genes=500, seed=1)
    >>> cells = scmamba.find_doublets(cells, sample_key="donor", rounds=2, identification_rate=0.1, verbose=False)
    >>> int(cells.obs["scmamba_doublet"].sum())
    20

    References
    ----------
    Wolock 2019 (Scrublet), McGinnis 2019 (DoubletFinder) and Bais and Kostka 2020 (cxds), whose ideas are among the features.
    """
    options = DoubletOptions(
        sample_key=sample_key,
        method=method,
        expected_rate=expected_rate,
        identification_rate=identification_rate,
        label_key=label_key,
        doublet_simulation=doublet_simulation,
        rounds=rounds,
        layer=layer,
        seed=seed,
        overwrite=overwrite,
    )
    refuse_existing(adata, TASK, obs=COLUMNS, overwrite=overwrite)
    counts, values = _counts(adata, layer)
    say(values, verbose)
    names, codes = _samples(adata, sample_key, verbose)
    _check_rates(names, expected_rate)
    if label_key is not None:
        require_column(adata.obs, label_key)
    result, full = _score_samples(adata, counts, codes, options, model, verbose)
    rates = _rates(result, codes, full, names, expected_rate)
    _call(result, codes, full, rates, identification_rate)
    adata = adata.to_memory() if copy and adata.isbacked else adata.copy() if copy else adata
    _write(adata, result, names, codes, rates, options, model, values)
    _report(result, rates, full, verbose)
    return adata


#: Former name of :func:`find_doublets`.
detect_doublets = renamed_function("detect_doublets", find_doublets)


def _score_samples(
    adata: AnnData,
    counts: Rows,
    codes: np.ndarray,
    options: DoubletOptions,
    model: str | PathLike[str] | Model | None,
    verbose: bool,
) -> tuple[_Result, np.ndarray]:
    """Log likelihood ratios and parents of all droplets, and (n,) which of them have counts."""
    full = np.asarray(counts.sum(axis=1)).ravel() > 0
    if full.sum() < MIN_CELLS:
        raise DataError(
            f"{int(full.sum())} cells have counts; at least {MIN_CELLS} are needed to find doublets."
        )
    key = options.label_key
    labels = None
    if key is not None:  # cells without a label do not name a cluster
        column = adata.obs[key]
        labels = column.astype(str).astype(object).to_numpy(copy=True)
        labels[column.isna().to_numpy()] = None
    result = _Result.empty(adata.n_obs)
    if options.method == "fast":
        report_expected(
            "doublets fast", int(full.sum()), factor=options.rounds / 4, verbose=verbose
        )
    else:
        shorter = "method='fast' is much faster"
        report_expected("doublets network", int(full.sum()), shorter, verbose=verbose)
    batches = list(_sample_batches(codes[full]))
    with progress("Finding doublets", len(batches) * options.rounds, verbose) as advance:
        for k, part in enumerate(batches):
            rows = np.flatnonzero(full)[part]
            own = counts[rows]
            detector = DoubletDetector(adata, own, codes[rows], options, model, verbose)
            found = detector.detect(advance)
            prefix = f"g{k + 1}" if len(batches) > 1 else ""
            found.name_parents(
                own, adata.var_names, None if labels is None else labels[rows], prefix
            )
            result.assign(rows, found)
    return result, full


def _counts(adata: AnnData, layer: str | None) -> tuple[Rows, str]:
    """(n, genes) float64 CSR of counts, and what the values were found to be; other values are refused.

    Counts of a file are copied to a temporary file, from which the cells of each sample are read.
    """
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise DataError(f"The object is empty: {adata.n_obs} cells x {adata.n_vars} genes.")
    selected = select_matrix(adata, layer)
    values = selected.classify()
    values.require_usable()
    if values.kind == "log1p":
        raise DataError(
            f"{values.sentence}, but simulated doublets are sums of counts. Give raw counts, in X or in a layer (layer='counts')."
        )

    def some(rows: slice) -> sparse.csr_matrix:
        block = selected.rows(rows)
        if values.kind == "log1p_counts":
            block.data = np.rint(values.linear(block.data))
            block.eliminate_zeros()
        return block

    if is_in_memory(selected.matrix):
        return some(slice(None)), values.sentence
    blocks = (some(slice(k, k + BLOCK)) for k in range(0, adata.n_obs, BLOCK))
    return collect(blocks, adata.n_vars, on_disk=True), values.sentence


def _samples(adata: AnnData, sample: str | None, verbose: bool) -> tuple[list[str], np.ndarray]:
    """Names of the samples and (n,) codes; NA is a sample of its own."""
    if sample is None:
        several = [
            name for name in _CANDIDATES if name in adata.obs and adata.obs[name].nunique() > 1
        ]
        if several:
            say(
                f"all cells are treated as one sample; if obs['{several[0]}'] holds the samples, pass sample_key='{several[0]}'",
                verbose,
            )
        return ["all"], np.zeros(adata.n_obs, dtype=np.int64)
    column = require_column(adata.obs, sample)
    text = column.astype(str).where(column.notna(), None)  # 1 and "1" are one sample
    codes, levels = pd.factorize(text.astype(object), sort=False)
    names = [str(level) for level in levels]
    if (codes < 0).any():
        missing = "NA" if "NA" not in names else "no sample"
        say(
            f"{int((codes < 0).sum())} cells have no {sample}; they are treated as one more sample, {missing!r}",
            verbose,
        )
        codes = np.where(codes < 0, len(names), codes)
        names.append(missing)
    return names, codes.astype(np.int64)


def _sample_batches(codes: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of whole samples, at most 15,000 cells at a time unless one sample has more."""
    size = np.bincount(codes)
    group, held, number = np.zeros(len(size), dtype=np.int64), 0, 0
    for code, cells in enumerate(size):
        if held and held + cells > _BATCH_CELLS:
            number, held = number + 1, 0
        group[code], held = number, held + cells
    if number and held < MIN_CELLS:  # a few left-over cells join the group before
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
    names: list[str] | None = None
    source: str = "clusters"

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
        if part.names is not None:
            self.source = "human-brain"

    def name_parents(
        self, counts: sparse.csr_matrix, genes: pd.Index, kinds: np.ndarray | None, prefix: str
    ) -> None:
        """Turn cluster codes into names: the cells' most common label, the types of the brain reference, or c1, c2, ... with their top genes kept aside."""
        present = np.unique(self.cluster)
        if self.names is not None:
            names = dict(enumerate(self.names))
        elif kinds is None:
            names = {code: f"{prefix}c{code + 1}" for code in present}
            self.clusters = {
                names[code]: text for code, text in _top_genes(counts, self.cluster, genes).items()
            }
        else:
            modes = {code: pd.Series(kinds[self.cluster == code]).mode() for code in present}
            names = {
                code: str(mode[0]) if len(mode) else f"{prefix}c{code + 1}"
                for code, mode in modes.items()
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


@dataclass
class DoubletDetector:
    """Scores the droplets of some samples.

    Attributes
    ----------
    adata
        The object whose ``var`` names the genes, for the network.
    counts
        (n, genes) counts of the droplets.
    codes
        (n,) sample of each.
    options
        Options of :func:`find_doublets`.
    model
        The pre-trained network, or its name.
    verbose
        Print what is done.
    """

    adata: AnnData
    counts: sparse.csr_matrix
    codes: np.ndarray
    options: DoubletOptions
    model: str | PathLike[str] | Model | None = None
    verbose: bool = False

    def detect(self, advance: Callable[[int], Any]) -> _Result:
        """Log ratios, parents and the scores of the simulated doublets; ``advance`` is called after each round."""
        clusters = Clusters.find(self.counts, seed=self.options.seed)
        mixtures = {
            name: Mixtures(self.counts, code, suspected=_SUSPECTED, seed=self.options.seed)
            for name, code in (("coarse", clusters.coarse), ("fine", clusters.fine))
        }
        brain = BrainClusters.find(self.adata, self.counts)
        if brain is not None:
            mixtures["brain"] = Mixtures(
                self.counts,
                brain.codes,
                suspected=_SUSPECTED,
                seed=self.options.seed,
                expected=brain.expected,
            )
        n = self.counts.shape[0]
        result = _Result.empty(n)
        result.log_ratio, result.simulated = self._simulation_rounds(mixtures, advance)
        if self.options.method != "fast":
            self._add_network(result)
        by_type = brain is not None and self.options.label_key is None
        named = mixtures["brain" if by_type else "fine"]
        result.cluster, result.pair = named.cluster, named.pair
        result.names = None if brain is None or not by_type else list(map(str, brain.names))
        for code in np.unique(self.codes):
            here = self.codes == code
            share = np.bincount(clusters.coarse[here]) / here.sum()
            result.detectable[here] = 1 - (share**2).sum()
        return result

    def _simulation_rounds(
        self, mixtures: dict[str, Mixtures], advance: Callable[[int], Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(n,) mean log ratios over the rounds, and those of all simulated doublets."""
        n, options = self.counts.shape[0], self.options
        coexpression, variable = Coexpression(self.counts), VariableGenes.of(self.counts)
        ratios, simulated = np.zeros(n), []
        brain = mixtures.get("brain")
        kinds = recipes(options.doublet_simulation, brain is not None)
        for k in range(options.rounds):
            kind, seed = kinds[k % len(kinds)], options.seed * 1000 + k
            cluster = brain.cluster if brain is not None and kind == "matched" else None
            made = simulate_doublets(
                self.counts, self.codes, n, cluster=cluster, recipe=kind, seed=seed
            )
            if len(made) < 10:
                raise DataError(
                    "No sample has two cells, so no doublet can be simulated. Omit sample_key to treat all cells as one sample."
                )
            evidence = gather(
                self.counts,
                made.counts,
                mixtures,
                coexpression,
                seed=options.seed,
                variable=variable,
            )
            odds = _combined_log_odds(evidence, kind, seed)
            odds += np.log(n / len(made))
            ratios += odds[:n] / options.rounds
            simulated.append(odds[n:])
            advance(1)
        return ratios, np.concatenate(simulated)

    def _add_network(self, result: _Result) -> None:
        """Replace the log ratios by those of the fine-tuned network, or average both."""
        from .network import network_odds  # torch takes a second to import

        options, ratios = self.options, result.log_ratio
        # "mean" as in the paper: without depth as a feature the network has to detect the mixture.
        kind = options.doublet_simulation
        made = simulate_doublets(
            self.counts,
            self.codes,
            self.counts.shape[0],
            recipe="mean" if kind == "both" else kind,
            seed=options.seed * 1000 + options.rounds,
        )
        doubtful = ratios > np.quantile(ratios, 1 - _SUSPECTED)
        real, double = network_odds(
            self.adata,
            self.counts,
            made,
            doubtful,
            model=self.model,
            seed=options.seed,
            verbose=self.verbose,
        )
        if options.method == "network":
            result.log_ratio, result.simulated = real, double
            return
        result.log_ratio = (ratios + real) / 2
        # The two sets of odds belong to different simulated doublets, so their quantiles are averaged.
        result.simulated = (_sorted_like(result.simulated, len(double)) + np.sort(double)) / 2


def recipes(simulation: Simulation, brain: bool) -> list[Recipe]:
    """Composition of the simulated doublets of each round, in turn.

    Parameters
    ----------
    simulation
        Option of :func:`find_doublets`.
    brain
        The cells have types of the brain reference.
    """
    if simulation != "both":
        return [simulation]
    return ["mixed", "sum", "matched", "sum"] if brain else ["mixed", "sum"]


def _combined_log_odds(evidence: Evidence, recipe: str, seed: int) -> np.ndarray:
    """(rows,) log odds from all features; without depth where the simulated doublets are sums or have the depth of one cell."""
    between = crossfit_log_odds(
        evidence.curved(), evidence.simulated, ridge=30.0, refits=2, seed=seed
    )
    table = evidence.table.drop(columns=list(DEPTH)) if recipe in DEPTHLESS else evidence.table
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
    """(rows,) log odds of being simulated, each from a fit without the row.

    Ridge-penalized logistic regression on standardized features. The second and third fit omit the tenth of the observed rows
    with the highest odds, because true doublets among the training singlets bias the fit.
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
        # Fits on fewer observed rows have higher odds; the correction keeps rounds comparable.
        odds += np.log(max((real & ~out).sum(), 1) / real.sum())
        out = real & (odds > np.quantile(odds[real], 1 - _SUSPECTED))
    return odds


def logistic(x: np.ndarray, y: np.ndarray, *, ridge: float = 5.0, steps: int = 30) -> np.ndarray:
    """(1 + k,) intercept and weights that maximize the log-likelihood minus ridge/2 times the squared weights (Newton's method)."""
    # By hand: LogisticRegression agrees to 1e-7 and takes twice as long; a hundred fits are made for each call
    # (benchmarks/results/library_calls.md).
    design = np.column_stack([np.ones(len(x)), x])
    penalty = np.full(design.shape[1], ridge)
    penalty[0] = 1e-6
    weights = np.zeros(design.shape[1])
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (y - chance) - penalty * weights
        scaled = design * np.sqrt(chance * (1 - chance))[:, None]
        curve = scaled.T @ scaled + np.diag(penalty)  # one matrix twice: half of a product
        step = np.linalg.solve(curve, slope)
        weights += step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _check_rates(names: list[str], given: Any) -> None:
    """Refuse rates by sample that lack one; called before the work."""
    if not isinstance(given, Mapping):
        return
    if unknown := sorted(set(names) - {str(k) for k in given}):
        has = ", ".join(map(str, given))
        raise DataError(
            f"expected_rate has no entry for the sample(s) {', '.join(unknown[:5])}; it has {has}. Give a rate for each sample, or "
            "one number for all."
        )


def _rates(
    result: _Result, codes: np.ndarray, full: np.ndarray, names: list[str], given: Any
) -> pd.DataFrame:
    """One row per sample: cells, prior rate, apparent rate, and the rate used."""
    if isinstance(given, Mapping):
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
    """Upper bound of the share of droplets that resemble simulated doublets, and the number of droplets it rests on.

    Above any threshold there are at least as many droplets as doublets, so the ratio of the two shares bounds the rate; the smallest bound
    over thresholds that keep 30 to 80% of the simulated ones (Blanchard, Lee and Scott 2010).
    """
    if not len(real):
        return 0.0, 0
    keep = np.linspace(0.3, 0.8, 11)
    above = np.array([(real > t).sum() for t in np.quantile(simulated, 1 - keep)])
    best = int(np.argmin((above + 1) / keep))  # one more than observed: zero droplets give no bound
    return float(above[best] / len(real) / keep[best]), int(above[best])


def _posterior_rate(prior: float, look: float, above: int) -> float:
    """Geometric mean of both, weighted by precision (a factor of two for the loading of a sample, and counting error)."""
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
    options: DoubletOptions,
    model: str | PathLike[str] | Model | None,
    values: str,
) -> None:
    rates = rates.assign(
        called=[int(result.doublet[codes == code].sum()) for code in range(len(names))]
    )
    columns = (result.score.astype(np.float32), result.doublet, pd.Categorical(result.parents))
    for name, column in zip(COLUMNS, columns):
        adata.obs[name] = column
    summary = {
        "values": values,
        "samples": {column: rates[column].to_numpy() for column in rates},
        "cluster_genes": result.clusters,
        "parents_from": result.source if options.label_key is None else options.label_key,
    }
    used = None
    if options.method != "fast":
        used = "brain-mini" if model is None else getattr(model, "config", None) or str(model)
        used = getattr(used, "name", used)
    write_record(adata, TASK, params=options.params(), model=used, summary=summary)


def _report(result: _Result, rates: pd.DataFrame, full: np.ndarray, verbose: bool) -> None:
    called, cells = int(result.doublet.sum()), int(full.sum())
    say(
        f"{called} of {cells} droplets called doublets ({100 * called / max(cells, 1):.1f}%), in {len(rates)} sample(s)",
        verbose,
    )
    if (rates["detectable"] < 0.2).any():
        say(
            "one cell type dominates a sample, so most of its doublets are homotypic and cannot be detected",
            verbose,
        )
