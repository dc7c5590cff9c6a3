"""Fit the coefficients of ``scmamba.annotation.across_studies`` to the development sets of ``benchmarks/calibration.py``.

    python -m benchmarks.calibration_fit --data FOLDER --cache FOLDER

Sets: Kang's control cells -> pbmc3k, Velmeshev -> Agarwal, Agarwal -> pbmc3k (no type in common), and within one study halves of
pbmc3k and the two donors of Agarwal; each with the whole reference and without some of its types. Marques (mouse) is not used: cells
of another species differ from the reference as absent types do. Two logistic models, with coefficients that cannot be negative and a
ridge penalty: absent against right calls (three measures), wrong names of types that the reference holds against right calls (log
odds of cell and neighborhood). Right and wrong calls of each set have the same weight, so the constant is that of even odds. For each
set the other sets' coefficients are fitted as well and scored on it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
from scipy.optimize import minimize

from benchmarks import calibration as sets
from scmamba.annotation import across_studies as across

PENALTY = 0.003
#: set -> reference, query, types that are removed in turn; "": none.
FITTED: dict[str, tuple[Callable, Callable, list[str]]] = {
    "kang-pbmc3k": (
        sets.kang,
        sets.pbmc3k,
        ["", "B", "CD14 Mono", "CD16 Mono", "CD4 T", "CD8 T", "DC", "Mk", "NK"],
    ),
    "velmeshev-agarwal": (sets.velmeshev, sets.agarwal, ["", "Microglia", "Astrocyte"]),
    "agarwal-pbmc3k": (sets.agarwal, sets.pbmc3k, [""]),
    "within pbmc3k": (lambda d: half(d, 1), lambda d: half(d, 0), ["", "CD8 T", "B"]),
    "within agarwal": (
        lambda d: donor(d, "donor1"),
        lambda d: donor(d, "donor5"),
        ["", "Oligodendrocyte"],
    ),
    "within agarwal, reversed": (
        lambda d: donor(d, "donor5"),
        lambda d: donor(d, "donor1"),
        ["Inhibitory neuron"],
    ),
}


def half(data: Path, which: int) -> ad.AnnData:
    """Half of the cells of pbmc3k."""
    cells = sets.pbmc3k(data)
    order = np.random.default_rng(0).permutation(cells.n_obs)
    return cells[np.sort(order[which::2])].copy()


def donor(data: Path, name: str) -> ad.AnnData:
    """One donor of Agarwal."""
    cells = sets.agarwal(data)
    return cells[(cells.obs["donor"] == name).to_numpy()].copy()


def features(
    known: ad.AnnData, query: ad.AnnData, cache: str
) -> tuple[across.StudyShift, np.ndarray, set[str]]:
    """The shift of one annotation, the called types, and the types of the reference."""
    import scmamba

    kept: list[across.StudyShift] = []
    made = across.StudyShift.of.__func__

    def note(cls, *arguments):
        kept.append(made(cls, *arguments))
        return kept[-1]

    across.StudyShift.of = classmethod(note)
    try:
        found = scmamba.annotate(
            query,
            reference=known,
            label_key="kind",
            cache=cache,
            return_result=True,
            force=True,
            verbose=False,
        )
    finally:
        across.StudyShift.of = classmethod(made)
    best = found.probabilities["type"].argmax(axis=1)
    return kept[0], np.array(found.levels["type"])[best], set(known.obs["kind"])


def inputs(shift: across.StudyShift) -> tuple[np.ndarray, np.ndarray]:
    """What the two models read."""
    beyond = np.maximum(shift.measures, across._LOWEST)
    common = np.quantile(beyond, across.COMMON, axis=0)
    return beyond - np.clip(common, 0, across.COMMON_CAPS), shift.against


def fit(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """Coefficients and constant from (inputs, target, weights, weight of the set)."""
    x = np.vstack([p[0] for p in parts])
    y = np.concatenate([p[1] for p in parts]).astype(float)
    w = np.concatenate([p[2] * p[3] for p in parts])
    for value in (0, 1):
        w[y == value] /= 2 * w[y == value].sum()
    mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-9
    z = np.column_stack([(x - mean) / spread, np.ones(len(x))])

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        s = z @ b
        gradient = z.T @ (w * (1 / (1 + np.exp(-s)) - y))
        gradient[:-1] += 2 * PENALTY * b[:-1]
        value = np.sum(w * (np.logaddexp(0, s) - y * s)) + PENALTY * np.sum(b[:-1] ** 2)
        return float(value), gradient

    bounds = [(0, None)] * (z.shape[1] - 1) + [(None, None)]
    b = minimize(loss, np.zeros(z.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.append(b[:-1] / spread, b[-1] - np.sum(b[:-1] / spread * mean))


def part_of(
    x: np.ndarray, target: np.ndarray, right: np.ndarray, truth: np.ndarray, weight: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Weights of one annotation: less for cells of common types, the same for target and right calls."""
    _, code, number = np.unique(truth, return_inverse=True, return_counts=True)
    w = (target | right) / np.sqrt(number[code])
    for group in (target, right):
        if group.any():
            w[group] /= w[group].sum()
    return x, target, w, weight


def main() -> None:
    """Print the coefficients of all sets, and of all but each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", required=True)
    options = parser.parse_args()
    parts: dict[str, tuple[list, list]] = {name: ([], []) for name in FITTED}
    for name, (reference, query, removed) in FITTED.items():
        for kind in removed:
            known, cells = reference(options.data), query(options.data)
            known = known[(known.obs["kind"] != kind).to_numpy()].copy()
            shift, called, types = features(known, cells, options.cache)
            truth = cells.obs["kind"].to_numpy(str)
            right, absent = called == truth, ~np.isin(truth, list(types))
            for number, x in enumerate(inputs(shift)):
                target = absent if number == 0 else ~right & ~absent
                parts[name][number].append(part_of(x, target, right, truth, 1 / len(removed)))
    for out in ["", *FITTED]:
        models = [
            fit([p for name, own in parts.items() if name != out for p in own[number]])
            for number in (0, 1)
        ]
        print(f"without {out or 'none'}:", *[np.round(m, 3).tolist() for m in models])


if __name__ == "__main__":
    main()
