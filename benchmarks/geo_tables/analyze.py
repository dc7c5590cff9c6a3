"""What the paper shows beside its tables: doublet detectors, imputed zeros, embeddings of cells and genes, and Fig. 7."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from benchmarks import doublets as detectors
from benchmarks.clusters import METHODS, raw
from scmamba.utils.errors import ScMambaError
from scmamba.utils.progress import say

from .label import labels_of
from .split import splits
from .studies import ANALYSES, NOT_CELLS, Study, note_of, obs_of, place, read_json, write_json
from .train import identity

#: Detectors that run in this environment; DoubletDetection and SOLO need one of their own (benchmarks/doublets.py).
DETECTORS = ("Scrublet", "bcds equivalent", "DoubletFinder equivalent")
#: Values in which clusters are compared with types and donors; peers whose package is not installed are left blank.
PEERS = ("neighbors' rates, all entries", "MAGIC", "scVI")


def analyze(study: Study, options: argparse.Namespace) -> None:
    """Every analysis of a study on its test samples (Fig. 7: on all samples); a completed one is not repeated.

    Raises
    ------
    ScMambaError
        A step before is missing, or the folder holds results with other settings.
    """
    labelled = place(study, options) / "labelled.h5ad"
    note = read_json(note_of(labelled))
    if not labelled.is_file() or note.get("labels") != labels_of(options):
        raise ScMambaError(f"{study.name}: run the step 'prepare' with these labels first.")
    parts = splits(study, options)
    for name in options.analysis:
        folder = place(study, options) / name
        how = {
            "splits": parts,
            "model": identity(str(model_of(study, options))),
            "cells": options.analysis_cells,
            "permutations": options.permutations,
            "steps": options.steps,
            "deg_cells": options.deg_cells,
            "seed": options.seed,
        }
        if (folder / "result.json").is_file():
            kept = read_json(folder / "how.json")
            if other := [key for key in how if kept.get(key) != how[key]]:
                raise ScMambaError(
                    f"{folder} holds a result with other settings ({', '.join(other)}). Delete it, or choose another --work."
                )
            say(f"{study.name}, {name}: done already", True)
            continue
        say(f"{study.name}, {name}", True)
        folder.mkdir(exist_ok=True)
        write_json(folder / "how.json", how)
        rows = RUN[name](study, parts, folder, options)
        write_json(folder / "result.json", {"rows": rows, "model": how["model"]})


def model_of(study: Study, options: argparse.Namespace) -> str | Path:
    """The model that was fine-tuned for imputation on this study, or the one that fine-tuning starts from."""
    tuned = place(study, options) / "imputation" / "model"
    return tuned if (tuned / "config.json").is_file() else str(options.model)


def chosen_cells(
    study: Study, samples: list[str] | None, number: int, options: argparse.Namespace
) -> ad.AnnData:
    """Labeled cells of some samples (all if ``None``), at most ``number``, with the types as ``obs["cell_type"]``."""
    path = place(study, options) / "labelled.h5ad"
    obs = obs_of(path)
    types = obs["label_celltype"].astype(str)
    kept = (types != "") & ~types.isin(NOT_CELLS)
    if samples is not None:
        kept &= obs["sample"].astype(str).isin(samples)
    rows = np.flatnonzero(kept)
    if len(rows) < 50:
        raise ScMambaError(
            f"{study.name}: {len(rows)} labeled cells in these samples; an analysis needs at least 50."
        )
    if len(rows) > number:
        rows = np.sort(np.random.default_rng(options.seed).choice(rows, number, replace=False))
    cells = ad.read_h5ad(path, backed="r")[rows].to_memory()
    cells.obs["cell_type"] = cells.obs["label_celltype"].astype(str).astype("category")
    return cells


def _test_cells(study: Study, parts: dict[str, Any], options: argparse.Namespace) -> ad.AnnData:
    return chosen_cells(study, parts["test"], options.analysis_cells, options)


Rows = list[dict[str, Any]]


def doublet_detectors(
    study: Study, parts: dict[str, Any], folder: Path, options: argparse.Namespace
) -> Rows:
    """Simulated doublets of the test samples: six metrics at the true rate, and precision, recall, TNR at 10 to 40%."""
    from scmamba.evaluation.doublets import doublet_scores, identification_curve

    droplets = detectors.with_doublets(_test_cells(study, parts, options), "donor", options.seed)
    scores: dict[str, Callable[[], np.ndarray]] = {
        "scMamba, default": lambda: detectors.ours(droplets, options.seed, {})[0],
        **{
            name: lambda name=name: detectors.DETECTORS[name](droplets, options.seed)
            for name in DETECTORS
        },
        "number of counts": lambda: np.asarray(droplets.X.sum(axis=1)).ravel(),
    }
    truth = droplets.obs["truth"].to_numpy(bool)
    rows = []
    for name, score in scores.items():
        values = score()
        row = {"detector": name, "droplets": len(truth), **doublet_scores(truth, values)}
        for _, at in identification_curve(truth, values).iterrows():
            for key in ("precision", "recall", "TNR"):
                row[f"{key} at {at['rate']:.0%}"] = float(at[key])
        rows.append(row)
    return rows


def zeros(study: Study, parts: dict[str, Any], folder: Path, options: argparse.Namespace) -> Rows:
    """Clusters of raw and imputed values beside types and donors of the test samples."""
    import scmamba

    cells = _test_cells(study, parts, options)
    how = {"model": model_of(study, options), "seed": options.seed}
    if options.steps is not None:
        how["adapt_steps"] = options.steps  # a trial

    def ours(**more: Any) -> Any:
        done = scmamba.impute(cells, copy=True, verbose=False, force=True, **how, **more)
        return done.layers["scmamba"]

    makers: dict[str, Callable[[], Any]] = {
        "raw": lambda: raw(cells, options.seed),
        "scMamba (masked, the paper's)": lambda: ours(method="masked"),
        "scMamba": ours,
        "scMamba, donors corrected": lambda: ours(batch_key="donor"),
        **{name: lambda name=name: METHODS[name](cells, options.seed) for name in PEERS},
    }
    return [_clusters(name, make, cells, options.seed) for name, make in makers.items()]


def cells(study: Study, parts: dict[str, Any], folder: Path, options: argparse.Namespace) -> Rows:
    """Embeddings of cells (Fig. 2): how well types separate and donors mix, without any label."""
    import scmamba
    from scmamba.evaluation.clusters import leading_components

    chosen = _test_cells(study, parts, options)

    def embedded(model: str | Path) -> np.ndarray:
        return scmamba.embed(chosen, model=model, copy=True, verbose=False, force=True).obsm[
            "X_scmamba"
        ]

    makers: dict[str, Callable[[], Any]] = {
        "principal components": lambda: leading_components(
            raw(chosen, options.seed), seed=options.seed
        ),
        "scMamba, pre-trained": lambda: embedded(options.model),
    }
    if (tuned := model_of(study, options)) != str(options.model):
        makers["scMamba, fine-tuned for imputation"] = lambda: embedded(tuned)
    return [
        _clusters(name, make, chosen, options.seed, embedding=True) for name, make in makers.items()
    ]


def _clusters(
    name: str, make: Callable[[], Any], chosen: ad.AnnData, seed: int, embedding: bool = False
) -> dict[str, Any]:
    """Scores of one matrix; blank with the reason where a peer's package is not installed."""
    from scmamba.evaluation.clusters import zero_imputation_scores

    try:
        values = make()
    except ImportError as error:
        return {"values": name, "note": f"{error.name} is not installed"}
    labels = [chosen.obs[key].astype(str).to_numpy() for key in ("cell_type", "donor")]
    scores, _ = zero_imputation_scores(values, *labels, embedding=embedding, seed=seed)
    keys = ("NMI", "ARI", "ASW", "NMI_donor", "ARI_donor", "ASW_donor", "mixing_donor")
    return {"values": name, "cells": chosen.n_obs, **{key: scores[key] for key in keys}}


def genes(study: Study, parts: dict[str, Any], folder: Path, options: argparse.Namespace) -> Rows:
    """Embeddings of genes (Fig. 2): markers whose nearest other marker is of the same type, beside chance; and the map."""
    from scmamba.embedding import marker_map, plot_marker_map

    rows = []
    for name, model in (("pre-trained", options.model), ("fine-tuned", model_of(study, options))):
        if name == "fine-tuned" and model == str(options.model):
            continue
        table = marker_map(model=model, seed=options.seed)
        plot_marker_map(table).savefig(folder / f"genes_{name}.png", dpi=150, bbox_inches="tight")
        rows.append(
            {
                "model": name,
                "markers": len(table),
                "same type": float(table["own_type"].mean()),
                "expected": table.attrs["expected"],
            }
        )
    return rows


def degs(study: Study, parts: dict[str, Any], folder: Path, options: argparse.Namespace) -> Rows:
    """Fig. 7 a-c and S4 on all samples: overlap of DEGs, with the false positives of the same pipeline; figures in the folder."""
    import scmamba

    chosen = chosen_cells(study, None, options.deg_cells, options)
    groups = sorted(set(chosen.obs["disease"].astype(str)) - {"", "nan"})
    if len(groups) < 2:
        return [{"note": f"the samples have one diagnosis only: {', '.join(groups) or 'none'}"}]
    # Of several Braak stages the highest and the lowest.
    control = "Control" if "Control" in groups else groups[0]
    patients = next(name for name in reversed(groups) if name != control)
    chosen = chosen[chosen.obs["disease"].astype(str).isin([control, patients])].copy()
    scmamba.impute(
        chosen, model=model_of(study, options), seed=options.seed, verbose=False, force=True
    )
    donors = chosen.obs.groupby("disease", observed=True)["donor"].nunique()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # kept in the result
        result = scmamba.robustness(
            chosen,
            "disease",
            "donor",
            "cell_type",
            group1=patients,
            group2=control,
            donors="3v3" if donors.min() > 3 else None,
            permutations=options.permutations,
            null_permutations=max(2, options.permutations // 5),
            seed=options.seed,
            resume=folder / "tasks",
            verbose=False,
        )
    result.save(folder / "robustness", overwrite=True)
    return _overlaps(result)


def _overlaps(result: Any) -> Rows:
    """Mean overlaps at half of the cells and of combinations of donors, and the false positives."""
    table = result.summary()
    at_half = (table["kind"] == "cells") & np.isclose(table["ratio"].astype(float), 0.5)
    table = table[at_half | (table["kind"] == "donors")]
    keys = ["kind", "cell_type", "direction", "layer"]
    shown = table[[*keys, "n_full", "overlap_mean", "overlap_matched_mean"]]
    rows = [
        {key: _plain(value) for key, value in row.items()}
        for row in shown.to_dict("records")  # type: ignore[union-attr]
    ]
    for row in result.false_positives().to_dict("records"):
        rows.append(
            {
                "kind": row["kind"],
                "cell_type": row["cell_type"],
                "direction": "",
                "layer": row["layer"],
                "false at p < 0.05": _plain(row["rate_nominal"]),
                "false, between donors": _plain(row["pseudobulk_rate"]),
            }
        )
    return rows


def _plain(value: Any) -> Any:
    """A number that JSON has; ``None`` where there is none."""
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


RUN: dict[str, Callable[..., Rows]] = {
    "detectors": doublet_detectors,
    "zeros": zeros,
    "cells": cells,
    "genes": genes,
    "degs": degs,
}
assert tuple(RUN) == ANALYSES
