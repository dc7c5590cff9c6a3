"""Learning cell types from a labelled reference: two linear views and the network, weighed and calibrated on donors left out.

None of the three is best everywhere. A linear model on all genes knows markers, one on leading components knows programmes, the
fine-tuned network knows what it brought along; their log probabilities are averaged, the network's share and the temperature chosen
on donors that none of them had seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import logsumexp

from .._errors import DataError
from .._progress import say, track
from ..data.neighbours import nearest_cells, principal_components

#: Genes found in fewer reference cells teach nothing.
MIN_CELLS_PER_GENE = 5
#: Components of the two reduced views.
COMPONENTS = 50
#: Most variable genes of the second.
VARIABLE = 3000
#: Neighbours a cell's distance to the reference is averaged over.
NEAREST = 5
_FLOOR = 1e-4  # no view may rule a class out alone


def softmax(logits: np.ndarray) -> np.ndarray:
    """(n, k) rows that sum to one."""
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))


@dataclass
class View:
    """One linear way to look at log1p(CP10k) values: (m, d) basis, (m,) scale of the genes, scaling of the d scores, weights."""

    scale: np.ndarray
    basis: np.ndarray | None
    centre: np.ndarray
    spread: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    def scores(self, x: sparse.csr_matrix) -> sparse.csr_matrix | np.ndarray:
        """What the linear model sees of (n, m) values."""
        if self.basis is None:
            return x
        scaled = sparse.csr_matrix(x.multiply(self.scale))
        scaled.data = np.minimum(scaled.data, 10.0)
        return (scaled @ self.basis - self.centre) / self.spread

    def log_probabilities(self, x: sparse.csr_matrix) -> np.ndarray:
        """(n, k), floored so that one view alone cannot rule a class out."""
        return np.log(softmax(np.asarray(self.scores(x) @ self.weight.T + self.bias)) + _FLOOR)


def fit_view(x: sparse.csr_matrix, codes: np.ndarray, classes: int, kind: str, seed: int) -> View:
    """``kind``: ``genes`` (all), ``components`` (of all genes), ``variable`` (components of the most variable genes, scaled)."""
    from sklearn.linear_model import LogisticRegression

    m = x.shape[1]
    one = np.ones(m)
    if kind == "genes":
        view = View(one, None, np.zeros(0), np.zeros(0), np.zeros((classes, m)), np.zeros(classes))
        model = LogisticRegression(C=0.02, class_weight="balanced", max_iter=300)
    else:
        mean = np.asarray(x.mean(axis=0)).ravel()
        variance = np.maximum(np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2, 1e-4)
        scale = one
        if kind == "variable":
            scale = np.zeros(m)
            chosen = np.argsort(-variance / np.maximum(mean, 1e-3), kind="stable")[:VARIABLE]
            scale[chosen] = 1 / np.sqrt(variance[chosen])
        scaled = sparse.csr_matrix(x.multiply(scale))
        scaled.data = np.minimum(scaled.data, 10.0)
        scores, basis = principal_components(scaled, COMPONENTS, seed=seed)
        view = View(scale, basis, scores.mean(axis=0), scores.std(axis=0) + 1e-9, np.zeros(0), np.zeros(0))
        model = LogisticRegression(C=1.0, max_iter=500)
    seen = np.unique(codes)
    weight, bias = np.zeros((classes, m if kind == "genes" else view.basis.shape[1])), np.full(classes, -30.0)  # type: ignore[union-attr]
    if len(seen) == 1:
        bias[seen] = 0.0
    else:
        model.fit(view.scores(x), codes)
        if len(seen) == 2:  # scikit-learn keeps one row for two classes
            weight[seen[1]], bias[seen[0]], bias[seen[1]] = model.coef_[0], 0.0, model.intercept_[0]
        else:
            weight[seen], bias[seen] = model.coef_, model.intercept_
    view.weight, view.bias = weight, bias
    return view


KINDS = ("genes", "components", "variable")


@dataclass
class Typist:
    """What was learnt from a reference.

    Attributes
    ----------
    names
        Classes of the finest level.
    views
        The linear models; the network's logits come from outside and have the share ``network_share``.
    temperature
        Divides the averaged log probabilities; chosen on donors left out.
    curve
        (points, 3) threshold, share of cells kept, share of those that are right, on donors left out.
    far
        (n, 3) class of reference cells, their distance to cells of other donors and their :func:`surprise` by the profiles of other
        donors: what is usual.
    profiles
        (k, m) :func:`log_profiles`.
    evening
        (k,) taken off the log probabilities, so that rare classes are not swallowed by common ones; chosen on donors left out.
    """

    names: list[str]
    views: list[View]
    temperature: float
    network_share: float
    curve: np.ndarray
    scores: np.ndarray
    codes: np.ndarray
    far: np.ndarray
    profiles: np.ndarray
    evening: np.ndarray
    report: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, x: sparse.csr_matrix, network: np.ndarray | None = None) -> np.ndarray:
        """(n, k) calibrated; ``network`` (n, k) log probabilities of the fine-tuned network, if it takes part."""
        return softmax(self._averaged(x, network) / self.temperature)

    def _averaged(self, x: sparse.csr_matrix, network: np.ndarray | None) -> np.ndarray:
        linear = np.mean([view.log_probabilities(x) for view in self.views], axis=0)
        return (linear if network is None else mix(linear, network, self.network_share)) - self.evening

    def threshold(self, error_rate: float) -> float:
        """Smallest probability above which at most ``error_rate`` of the cells of unseen donors were wrong."""
        fine = self.curve[1 - self.curve[:, 2] <= error_rate]
        return float(fine[0, 0]) if len(fine) else 1.0

    def strangeness(self, x: sparse.csr_matrix, codes: np.ndarray) -> np.ndarray:
        """(n,) share of reference cells of the class given that are as far from other donors' cells, or as surprising: small for unknown
        types.
        """
        distance = mean_distance(unit(np.asarray(self.views[1].scores(x))), self.scores)
        out = np.ones(len(codes))
        for column, found in ((1, distance), (2, surprise(x, self.profiles, codes))):
            for c in np.unique(codes):
                usual = np.sort(self.far[(self.far[:, 0] == c) & np.isfinite(self.far[:, column]), column])
                if len(usual) >= 10:
                    own = codes == c
                    out[own] = np.minimum(out[own], 1 - np.searchsorted(usual, found[own]) / len(usual))
        return out

    def write(self, path: Path) -> None:
        """Keep everything in one .npz file of plain arrays."""
        arrays: dict[str, np.ndarray] = {"names": np.array(self.names, dtype=str), "curve": self.curve, "scores": self.scores,
                                         "codes": self.codes, "far": self.far, "profiles": self.profiles,
                                         "evening": self.evening}  # fmt: skip
        for i, view in enumerate(self.views):
            for part in ("scale", "basis", "centre", "spread", "weight", "bias"):
                value = getattr(view, part)
                arrays[f"{i}_{part}"] = np.zeros(0) if value is None else value
        settings = {"temperature": self.temperature, "network_share": self.network_share, "report": self.report}
        with open(path, "wb") as file:
            np.savez(file, settings=np.array(json.dumps(settings)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Typist:
        """Read what :meth:`write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files}
        settings = json.loads(str(kept["settings"]))
        views = []
        for i in range(len(KINDS)):
            parts = {part: kept[f"{i}_{part}"] for part in ("scale", "basis", "centre", "spread", "weight", "bias")}
            views.append(View(**{**parts, "basis": parts["basis"] if parts["basis"].size else None}))
        names = [str(n) for n in kept["names"]]
        return cls(names, views, settings["temperature"], settings["network_share"], kept["curve"], kept["scores"], kept["codes"],
                   kept["far"], kept["profiles"], kept["evening"], settings["report"])  # fmt: skip


def mix(linear: np.ndarray, network: np.ndarray, share: float) -> np.ndarray:
    """Weighted mean of two sets of log probabilities."""
    return (1 - share) * linear + share * np.log(np.exp(network) + _FLOOR)


def unit(scores: np.ndarray) -> np.ndarray:
    """Rows of length one, so that distances are angles."""
    return scores / np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-9)


def mean_distance(query: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """(n,) mean distance to the nearest members of the pool."""
    nearest = nearest_cells(query, pool, NEAREST)
    return np.linalg.norm(query[:, None] - pool[nearest], axis=2).mean(axis=1)


def log_profiles(x: sparse.csr_matrix, codes: np.ndarray, classes: int) -> np.ndarray:
    """(k, m) log share of each gene in the mean cell of each class, with one average cell of all classes mixed in."""
    linear = x.copy()
    np.expm1(linear.data, out=linear.data)
    overall = np.asarray(linear.mean(axis=0)).ravel() + 1e-3
    chosen = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(classes, len(codes)))
    sums = (chosen @ linear).toarray() + overall
    return np.log(sums / sums.sum(axis=1, keepdims=True))


def surprise(x: sparse.csr_matrix, profiles: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(n,) nats per count of a cell when its genes are drawn by the profile of its class: large if it shows what the class never does."""
    rows = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    linear = np.expm1(x.data)
    total = np.bincount(rows, linear, minlength=x.shape[0])
    return -np.bincount(rows, linear * profiles[codes[rows], x.indices], minlength=x.shape[0]) / np.maximum(total, 1e-12)


def folds(groups: np.ndarray, codes: np.ndarray, number: int, seed: int) -> np.ndarray:
    """(n,) fold of each cell: whole donors where there are enough of them, else cells, classes spread evenly."""
    rng = np.random.default_rng(seed)
    names = np.unique(groups)
    if len(names) >= number:
        order = rng.permutation(names)
        place = {name: i % number for i, name in enumerate(order)}
        return np.array([place[g] for g in groups])
    fold = np.empty(len(codes), dtype=int)
    for c in np.unique(codes):
        own = rng.permutation(np.flatnonzero(codes == c))
        fold[own] = np.arange(len(own)) % number
    return fold


def fit_temperature(logits: np.ndarray, codes: np.ndarray) -> float:
    """The temperature with the smallest log loss."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(codes)), codes]))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 2), method="bounded").x))


def coverage_curve(probabilities: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(points, 3) threshold, share kept, accuracy of what is kept."""
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    points = []
    for threshold in np.round(np.arange(0, 1.0, 0.01), 2):
        kept = top >= threshold
        if kept.sum() >= 10 or threshold == 0:
            points.append((threshold, kept.mean(), right[kept].mean()))
    return np.array(points)


def learn_types(
    x: sparse.csr_matrix,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    network: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> Typist:
    """Learn the classes of labelled cells.

    Parameters
    ----------
    x
        (n, m) log1p(CP10k).
    labels, groups
        (n,) class and donor of each cell.
    network
        Rows of cells a fine-tuned network was not trained on, and its (r, k) log probabilities there, classes in sorted order.

    Raises
    ------
    DataError
        No labelled cell.
    """
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    if len(names) == 0:
        raise DataError("No cell of the reference has a label.")
    fold = folds(groups, codes, 3, seed)
    held = np.empty((len(codes), len(names)))
    distance, odd = np.full(len(codes), np.inf), np.full(len(codes), np.inf)
    for f in track(range(3), "Judging on donors left out", 3, verbose):
        out = fold == f
        if not out.any() or out.all():
            held[out] = np.log(1 / len(names))
            continue
        views = [fit_view(x[~out], codes[~out], len(names), kind, seed) for kind in KINDS]
        held[out] = np.mean([view.log_probabilities(x[out]) for view in views], axis=0)
        here, there = (unit(np.asarray(views[1].scores(x[rows]))) for rows in (out, ~out))
        distance[out] = mean_distance(here, there)
        odd[out] = surprise(x[out], log_profiles(x[~out], codes[~out], len(names)), codes[out])
    share = 0.0
    report: dict[str, Any] = {}
    judged = np.arange(len(codes))
    if network is not None:
        rows, logits = network
        share, report = choose_share(held[rows], logits, codes[rows])
        judged = rows
    final = mix(held[judged], network[1], share) if network is not None else held
    evening = choose_evening(final, codes[judged], np.log(np.bincount(codes, minlength=len(names)) / len(codes)))
    final = final - evening
    temperature = fit_temperature(final, codes[judged]) if len(names) > 1 else 1.0
    calibrated = softmax(final / temperature)
    report["accuracy_on_donors_left_out"] = float(np.mean(calibrated.argmax(axis=1) == codes[judged]))
    report["network_share"] = share
    say(f"{len(names)} classes; {100 * report['accuracy_on_donors_left_out']:.1f}% right on cells of donors left out", verbose)
    views = [fit_view(x, codes, len(names), kind, seed) for kind in KINDS]
    scores = unit(np.asarray(views[1].scores(x)))
    far, curve = np.column_stack([codes, distance, odd]), coverage_curve(calibrated, codes[judged])
    profiles = log_profiles(x, codes, len(names))
    return Typist(list(names), views, temperature, share, curve, scores, codes, far, profiles, evening, report)


def choose_share(linear: np.ndarray, network: np.ndarray, codes: np.ndarray) -> tuple[float, dict[str, Any]]:
    """How much of the average is the network's: the share with the smallest log loss after calibration."""
    losses = {}
    for share in (0.0, 0.15, 0.3, 0.5, 0.7, 1.0):
        logits = mix(linear, network, share)
        logits = logits / fit_temperature(logits, codes)
        losses[share] = float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(codes)), codes]))
    best = min(losses, key=lambda s: losses[s])
    return best, {"log_loss_by_network_share": {str(k): v for k, v in losses.items()}}


def choose_evening(logits: np.ndarray, codes: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
    """(k,) the share of the log prior whose removal gives the best mean of macro F1 and accuracy."""
    best, worth = 0.0, -1.0
    for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
        found = (logits - share * log_prior).argmax(axis=1)
        value = _macro_f1(codes, found) + float(np.mean(found == codes))
        if value > worth + 1e-9:
            best, worth = share, value
    return best * log_prior


def _macro_f1(codes: np.ndarray, found: np.ndarray) -> float:
    present = np.unique(codes)
    hits = np.array([np.sum((codes == c) & (found == c)) for c in present])
    sizes = np.array([np.sum(codes == c) + np.sum(found == c) for c in present])
    return float(np.mean(2 * hits / sizes))
