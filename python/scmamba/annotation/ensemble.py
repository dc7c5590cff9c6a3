"""The cell-type ensemble of a labeled reference: base classifiers and the network, weighted and calibrated on held-out donors.

None of them is best on all data: the weights of the base classifiers (:mod:`.base_classifiers`), the network's weight and the
temperatures are fitted on held-out donors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import softmax

from ..training.calibration import coverage_curve, fit_temperature, log_loss, threshold_for
from ..utils.errors import DataError
from ..utils.progress import say, track
from .across_studies import usual_fit
from .base_classifiers import (
    BASE_CLASSIFIERS,
    KNNClassifier,
    LinearClassifier,
    class_log_profiles,
    fit_base_classifier,
    fit_classifier_weights,
    load_base_classifier,
    marker_features,
    profile_logits,
    tempered_log_probs,
)
from .cell_products import CellProducts
from .novelty import NoveltyDetector, call_evidence, common_space, novelty_scores

#: Genes detected in fewer reference cells are not used.
MIN_CELLS_PER_GENE = 5
#: Classes with fewer cells are too small for a penalized linear model; their mean profile is used if it helps.
RARE = 20
#: Parts of a reference that are held out in turn: whole donors if there are so many of them, else cells.
FOLDS = 3
#: Cells of the cross-validation, and cells of each class that are kept beside its share of them (fewer of many classes).
VALIDATION_CELLS, KEPT_PER_CLASS = 3000, 50
_FLOOR = 1e-4  # the network cannot exclude a class alone


@dataclass
class CellTypeEnsemble:
    """Everything that is fitted to a reference.

    Attributes
    ----------
    names
        Classes of the finest level.
    views
        Kind -> base classifier, of those with a weight and ``markers``; the network's logits are passed in and have the weight
        ``network_share``.
    weights
        Kind -> weight in the mean of log probabilities.
    temperatures
        Kind -> temperature of its logits before they are averaged: of the weighted base classifiers, and of the profiles.
    temperature
        Divides the averaged log probabilities; chosen on held-out donors.
    curve
        (points, 3) threshold, share of cells kept, share of those that are correct, on held-out donors.
    novelty
        Scores of reference cells of held-out donors (:class:`~.novelty.NoveltyDetector`).
    profiles
        (k, m) :func:`~.base_classifiers.class_log_profiles`.
    rare
        (k,) classes whose mean profile is used as well.
    prior_correction
        (k,) subtracted from the log probabilities, so that rare classes are not called as common ones; fitted on held-out donors.
    usual
        (k, 3) fit of reference cells to their own class (:func:`~.across_studies.usual_fit`).
    """

    names: list[str]
    views: dict[str, LinearClassifier | KNNClassifier]
    weights: dict[str, float]
    temperatures: dict[str, float]
    temperature: float
    network_share: float
    curve: np.ndarray
    novelty: NoveltyDetector
    profiles: np.ndarray
    rare: np.ndarray
    prior_correction: np.ndarray
    usual: np.ndarray
    report: dict[str, Any] = field(default_factory=dict)

    def probabilities(self, x: sparse.csr_matrix, network: np.ndarray | None = None) -> np.ndarray:
        """(n, k) calibrated; ``network`` (n, k) log probabilities of the fine-tuned network, if it is used."""
        return softmax(self._averaged(x, network) / self.temperature, axis=1)

    def _averaged(self, x: sparse.csr_matrix, network: np.ndarray | None) -> np.ndarray:
        parts = [
            share * tempered_log_probs(self.views[kind].logits(x), self.temperatures[kind])
            for kind, share in self.weights.items()
        ]
        linear = np.sum(parts, axis=0)
        if self.rare.any():
            linear = with_rare_class_profiles(
                linear,
                tempered_log_probs(profile_logits(x, self.profiles), self.temperatures["profile"]),
                self.rare,
            )
        return (
            linear if network is None else mix_network(linear, network, self.network_share)
        ) - self.prior_correction

    def threshold(self, error_rate: float) -> float:
        """Smallest probability above which at most ``error_rate`` of the cells of held-out donors were wrong."""
        return threshold_for(self.curve, error_rate)

    def is_novel(
        self,
        x: sparse.csr_matrix,
        probabilities: np.ndarray,
        reference: sparse.csr_matrix,
        seed: int,
    ) -> np.ndarray:
        """(n,) True: the cell resembles no class of the ``reference`` (r, m); ``probabilities`` (n, k) as from :meth:`probabilities`."""
        if not np.isfinite(self.novelty.level):
            return np.zeros(x.shape[0], dtype=bool)
        space = common_space(sparse.csr_matrix(sparse.vstack([reference, x], format="csr")), seed)
        called = probabilities.argmax(axis=1)
        here, there = space[reference.shape[0] :], space[: reference.shape[0]]
        evidence = call_evidence(
            probabilities, profile_logits(x, self.profiles), marker_features(self.markers, x)
        )
        scores = novelty_scores(here, there, evidence, self.novelty.pool, seed)
        return self.novelty.is_novel(scores, called)

    @property
    def markers(self) -> LinearClassifier:
        """Sums of the genes that mark each class."""
        view = self.views["markers"]
        assert isinstance(view, LinearClassifier)
        return view

    def write(self, path: Path) -> None:
        """Keep everything in one .npz file of plain arrays."""
        arrays: dict[str, np.ndarray] = {
            "names": np.array(self.names, dtype=str),
            "curve": self.curve,
            "profiles": self.profiles,
            "novelty_called": self.novelty.called,
            "novelty_shown": self.novelty.shown,
            "novelty": np.array([self.novelty.level, self.novelty.pool]),
            "rare": self.rare,
            "prior_correction": self.prior_correction,
            "usual": self.usual,
        }
        for kind, view in self.views.items():
            arrays |= view.arrays(f"{kind}_")
        settings = {
            "temperature": self.temperature,
            "temperatures": self.temperatures,
            "weights": self.weights,
            "network_share": self.network_share,
            "views": list(self.views),
            "report": self.report,
        }
        with open(path, "wb") as file:
            np.savez(file, settings=np.array(json.dumps(settings)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> CellTypeEnsemble:
        """Read what :meth:`write` wrote."""
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files}
        settings = json.loads(str(kept["settings"]))
        views = {kind: load_base_classifier(kind, kept) for kind in settings["views"]}
        names = [str(n) for n in kept["names"]]
        novelty = NoveltyDetector(
            kept["novelty_called"],
            kept["novelty_shown"],
            float(kept["novelty"][0]),
            int(kept["novelty"][1]),
        )
        return cls(
            names,
            views,
            settings["weights"],
            settings["temperatures"],
            settings["temperature"],
            settings["network_share"],
            kept["curve"],
            novelty,
            kept["profiles"],
            kept["rare"],
            kept["prior_correction"],
            kept["usual"],
            settings["report"],
        )


def with_rare_class_profiles(
    linear: np.ndarray, profile: np.ndarray, rare: np.ndarray
) -> np.ndarray:
    """Log probabilities in which rare classes have that of their profile, if it is larger."""
    out = linear.copy()
    out[:, rare] = np.maximum(linear[:, rare], profile[:, rare])
    return out


def mix_network(linear: np.ndarray, network: np.ndarray, share: float) -> np.ndarray:
    """Weighted mean of two sets of log probabilities."""
    return (1 - share) * linear + share * np.log(np.exp(network) + _FLOOR)


def donor_folds(groups: np.ndarray, codes: np.ndarray, number: int, seed: int) -> np.ndarray:
    """(n,) fold of each cell: whole donors if there are enough of them, else cells, stratified by class."""
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


def _accuracy_text(accuracy: float, groups: np.ndarray) -> str:
    """The accuracy in words, with what was held out: see :func:`donor_folds`."""
    if len(np.unique(groups)) >= FOLDS:
        return f"{100 * accuracy:.1f}% of the cells of held-out donors are correct"
    return (
        f"{100 * accuracy:.1f}% of the held-out cells are correct (the reference names fewer than {FOLDS} donors, so "
        "cells of new donors may be less accurate)"
    )


def fit_ensemble(
    x: sparse.csr_matrix,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    network: tuple[np.ndarray, np.ndarray] | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> CellTypeEnsemble:
    """Fit the ensemble to labeled cells.

    Parameters
    ----------
    x
        (n, m) log1p(CP10k).
    labels, groups
        (n,) class and donor of each cell.
    network
        Rows of cells that the fine-tuned network was not trained on, and its (r, k) log probabilities there, classes in sorted order.

    Raises
    ------
    DataError
        No labeled cell.
    """
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    if len(names) == 0:
        raise DataError("No cell of the reference has a label.")
    sample = validation_sample(codes, seed)
    x_sample, own = x[sample], codes[sample]
    fold = donor_folds(groups[sample], own, FOLDS, seed)
    products = CellProducts.of(x_sample)
    seen = cross_validate(x_sample, own, len(names), fold, seed, verbose, products)
    held, weights, temperatures, rare = fit_weights(seen, own, len(names))
    share = 0.0
    report: dict[str, Any] = {"views": list(weights), "weights": weights}
    judged, final = np.arange(len(own)), held
    if network is not None:
        judged, logits = _in_sample(*network, sample)
        share, losses = fit_network_weight(held[judged], logits, own[judged])
        report |= losses
        final = mix_network(held[judged], logits, share)
    prior_correction = fit_prior_correction(
        final, own[judged], np.log(np.bincount(codes, minlength=len(names)) / len(codes))
    )
    final = final - prior_correction
    temperature = fit_temperature(final, own[judged]) if len(names) > 1 else 1.0
    calibrated = softmax(final / temperature, axis=1)
    report["held_out_accuracy"] = float(np.mean(calibrated.argmax(axis=1) == own[judged]))
    report["network_share"] = share
    say(
        f"{len(names)} classes; {_accuracy_text(report['held_out_accuracy'], groups[sample])}",
        verbose,
    )
    kinds = list(dict.fromkeys([*weights, "markers"]))
    views = _fit_to_all(x, codes, len(names), kinds, seed, sample, products)
    shown = softmax((held - prior_correction) / temperature, axis=1)
    novelty = NoveltyDetector.of(
        common_space(x_sample, seed),
        shown.argmax(axis=1),
        call_evidence(shown, seen.logits["profile"], seen.marks),
        fold,
        seed,
    )
    profiles = class_log_profiles(x, codes, len(names))
    curve = coverage_curve(calibrated, own[judged])
    halves = donor_folds(groups[sample], own, 2, seed)
    usual = usual_fit(x_sample, own, len(names), halves, seed)
    return CellTypeEnsemble(
        list(names),
        views,
        weights,
        temperatures,
        temperature,
        share,
        curve,
        novelty,
        profiles,
        rare,
        prior_correction,
        usual,
        report,
    )


def validation_sample(codes: np.ndarray, seed: int) -> np.ndarray:
    """Positions, in order, of the cells for cross-validation: all, or of many a sample that keeps all cells of rare classes.

    Weights of base classifiers and temperatures are a dozen numbers: more cells make them no better, and take longer.
    """
    if len(codes) <= VALIDATION_CELLS:
        return np.arange(len(codes))
    sizes = np.bincount(codes)
    kept = max(RARE, min(KEPT_PER_CLASS, VALIDATION_CELLS // len(sizes)))
    low, high = 0.0, 1.0
    for _ in range(50):  # the share of each class beyond its first cells that fills the sample
        share = (low + high) / 2
        wanted = np.minimum(sizes, kept + np.floor(share * sizes)).astype(np.int64)
        low, high = (share, high) if wanted.sum() <= VALIDATION_CELLS else (low, share)
    wanted = np.minimum(sizes, kept + np.floor(low * sizes)).astype(np.int64)
    rng = np.random.default_rng(seed)
    chosen = [
        rng.choice(np.flatnonzero(codes == c), wanted[c], replace=False)
        for c in np.flatnonzero(sizes)
    ]
    return np.sort(np.concatenate(chosen))


def _in_sample(
    rows: np.ndarray, logits: np.ndarray, sample: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the sample, and the logits, of those ``rows`` that are in it."""
    inside = np.isin(rows, sample)
    return np.searchsorted(sample, rows[inside]), logits[inside]


def _fit_to_all(
    x: sparse.csr_matrix,
    codes: np.ndarray,
    classes: int,
    kinds: list[str],
    seed: int,
    sample: np.ndarray,
    products: CellProducts | None,
) -> dict[str, LinearClassifier | KNNClassifier]:
    """The base classifiers for use, fitted to all cells; where these are many, from where a fit to the sample ends."""
    whole = len(sample) == len(codes)
    starts = {}
    if not whole:
        products = CellProducts.of(x)
        if products is None:
            inner = CellProducts.of(x[sample])
            starts = {
                kind: fit_base_classifier(x[sample], codes[sample], classes, kind, seed, inner)
                for kind in kinds
                if kind in ("genes", "plain")
            }
    return {
        kind: fit_base_classifier(x, codes, classes, kind, seed, products, starts.get(kind))
        for kind in kinds
    }


@dataclass
class OutOfFoldScores:
    """Logits of each classifier and the profiles, and marker features, (n, k) each, of cells of donors they were not fitted to."""

    logits: dict[str, np.ndarray]
    marks: np.ndarray


def cross_validate(
    x: sparse.csr_matrix,
    codes: np.ndarray,
    classes: int,
    fold: np.ndarray,
    seed: int,
    verbose: bool,
    products: CellProducts | None = None,
) -> OutOfFoldScores:
    """Fit every base classifier to the cells outside each fold, and score those inside."""
    out = OutOfFoldScores(
        {kind: np.zeros((len(codes), classes)) for kind in (*BASE_CLASSIFIERS, "profile")},
        np.zeros((len(codes), classes)),
    )
    products = CellProducts.of(x) if products is None else products
    for f in track(range(FOLDS), "Cross-validating the reference", FOLDS, verbose):
        here = fold == f
        if not here.any() or here.all():
            continue
        train, test, known = x[~here], x[here], codes[~here]
        part = None if products is None else products.within(~here)
        views = {
            kind: fit_base_classifier(train, known, classes, kind, seed, part)
            for kind in BASE_CLASSIFIERS
        }
        for kind, view in views.items():
            out.logits[kind][here] = view.logits(test)
        out.marks[here] = marker_features(views["markers"], test)  # type: ignore[arg-type]
        profiles = class_log_profiles(train, known, classes)
        absent = np.bincount(known, minlength=classes) == 0
        out.logits["profile"][here] = profile_logits(test, profiles, absent)
    return out


def fit_weights(
    seen: OutOfFoldScores, codes: np.ndarray, classes: int
) -> tuple[np.ndarray, dict[str, float], dict[str, float], np.ndarray]:
    """The base classifiers weighted by log loss on held-out donors, (n, k), the weights, all temperatures, and the classes that use profiles."""
    sizes = np.bincount(codes, minlength=classes)
    if classes == 1:
        return (
            np.zeros((len(codes), 1)),
            {"components": 1.0},
            {"components": 1.0},
            np.zeros(1, dtype=bool),
        )
    temperatures = {kind: fit_temperature(logits, codes) for kind, logits in seen.logits.items()}
    views = {
        kind: tempered_log_probs(seen.logits[kind], temperatures[kind]) for kind in BASE_CLASSIFIERS
    }
    weights = fit_classifier_weights(views, codes)
    held = np.sum([share * views[kind] for kind, share in weights.items()], axis=0)
    rare = (sizes < RARE) & (sizes > 1)
    with_profiles = with_rare_class_profiles(
        held, tempered_log_probs(seen.logits["profile"], temperatures["profile"]), rare
    )
    if rare.any() and log_loss(with_profiles, codes) < log_loss(held, codes):
        return (
            with_profiles,
            weights,
            {kind: temperatures[kind] for kind in (*weights, "profile")},
            rare,
        )
    return (
        held,
        weights,
        {kind: temperatures[kind] for kind in weights},
        np.zeros(classes, dtype=bool),
    )


def fit_network_weight(
    linear: np.ndarray, network: np.ndarray, codes: np.ndarray
) -> tuple[float, dict[str, Any]]:
    """Weight of the network: the one with the smallest calibrated log loss."""
    losses = {}
    for share in (0.0, 0.15, 0.3, 0.5, 0.7, 1.0):
        losses[share] = log_loss(mix_network(linear, network, share), codes)
    best = min(losses, key=lambda s: losses[s])
    return best, {"log_loss_by_network_share": {str(k): v for k, v in losses.items()}}


def fit_prior_correction(
    logits: np.ndarray, codes: np.ndarray, log_prior: np.ndarray
) -> np.ndarray:
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
