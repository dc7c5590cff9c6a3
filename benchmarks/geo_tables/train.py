"""Fine-tuning for each task, and its scores on the test samples."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from scmamba.utils.errors import ScMambaError
from scmamba.utils.progress import progress, say

from .label import labels_of
from .split import collection, splits
from .studies import (
    LEAST_TEST_CELLS,
    LEVELS,
    NOT_CELLS,
    PARTS,
    Study,
    note_of,
    obs_of,
    place,
    read_json,
    sha256_of,
    write_json,
)


def train(study: Study, options: argparse.Namespace) -> None:
    """Fine-tune for each task and score on the test samples; a completed task is not repeated."""
    labelled = place(study, options) / "labelled.h5ad"
    note = read_json(note_of(labelled))
    if not labelled.is_file() or not note:
        raise ScMambaError(f"{study.name}: there is no {labelled}. Run the step 'prepare' first.")
    if note["labels"] != labels_of(options):
        raise ScMambaError(
            f"{labelled} has labels of {note['labels']}, not of {labels_of(options)}. Run 'prepare' with these first."
        )
    parts = splits(study, options)
    for task in options.task:
        if task in LEVELS and not has_labels(labelled, task):
            say(f"{study.name}: there are no labels for {task}; it is left out", True)
            continue
        how = {
            "labelled": hashlib.sha256(json.dumps(note).encode()).hexdigest()[:16],
            "splits": parts,
            "model": identity(options.model),
            "recipe": options.recipe,
            "steps": options.steps,
            "seed": options.seed,
            "min_donor_cells": options.min_donor_cells,
        }
        if task == "imputation":
            how["imputation_cells"] = options.imputation_cells
        folder = place(study, options) / task
        begun = any((folder / name).exists() for name in ("training", "model", "result.json"))
        kept = read_json(folder / "how.json") if begun else {}
        if other := [key for key in how if kept and kept.get(key) != how[key]]:
            raise ScMambaError(
                f"{folder} holds a run with other settings ({', '.join(other)}). Delete it, or choose another --work."
            )
        folder.mkdir(exist_ok=True)
        write_json(folder / "how.json", how)
        if (folder / "result.json").is_file():
            say(f"{study.name}, {task}: done already", True)
            continue
        say(f"{study.name}, {task}", True)
        result = run_task(study, task, parts, folder, options)
        write_json(
            folder / "result.json",
            {
                **result,
                "labels": note["labels"],
                "splits": parts["how"],
                "model": identity(options.model),
                "recipe": options.recipe,
                "steps": options.steps,
                "seed": options.seed,
            },
        )


def identity(model: str) -> str:
    """A model's name; for a folder or file, with a digest that changes with the weights."""
    weights = next(
        (p for p in (Path(model) / "model.safetensors", Path(model)) if p.is_file()), None
    )
    return model if weights is None else f"{model} (SHA-256 {sha256_of(weights)[:16]})"


def has_labels(labelled: Path, level: str) -> bool:
    """Whether some cell has a label of the level."""
    return bool((obs_of(labelled)[f"label_{level}"].astype(str) != "").any())


def run_task(
    study: Study, task: str, parts: dict[str, Any], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Fine-tune and score: numbers of cells, scores, and how they were measured."""
    import scmamba
    from scmamba.model import load_model, save_checkpoint
    from scmamba.training.config import read_settings
    from scmamba.training.distributed import number_of_processes, training_device
    from scmamba.training.finetune_classifier import MAX_SINGLETS

    verb = {"doublets": "doublets", "imputation": "impute"}.get(task, "annotate")
    # The published subtypes and subclusters have ten epochs (configs/experiment), all other tasks five.
    epochs = (
        10.0 if task in LEVELS[1:] and options.recipe == "paper" and not options.steps else None
    )
    given = {
        "steps": options.steps,
        "epochs": epochs,
        "seed": options.seed,
        "min_donor_cells": options.min_donor_cells,
    }
    settings, _ = read_settings(verb, options.recipe, None, given)
    start, started = load_model(options.model), time.perf_counter()
    cells = task_cells(study, task, parts, start.genes, settings, options)
    if (
        task == "imputation"
        and min(len(cells["test"]), options.imputation_cells) < LEAST_TEST_CELLS
    ):
        raise ScMambaError(
            f"{study.name}: imputation is judged on at least {LEAST_TEST_CELLS} test cells; {len(cells['test'])} pass the recipe's filters "
            f"(more than {settings.above:g} counts), and --imputation-cells is {options.imputation_cells}. Leave it out with --task."
        )
    if (folder / "model" / "config.json").is_file():
        tuned = load_model(folder / "model")
    else:
        loop = settings.loop(
            len(cells["train"]), number_of_processes(), training_device().type == "cuda"
        )
        tuned = fine_tune(verb, start, cells, settings, loop, folder)
        save_checkpoint(
            tuned,
            folder / "model",
            card=f"# {study.name}, {task}\n\nFine-tuned by `benchmarks/paper_tables.py` from "
            f"{options.model}, recipe {options.recipe}. Training samples: {', '.join(parts['train'])}.\n\n"
            f"```yaml\n{settings.text()}```\n",
        )
    judge = {"doublets": judge_doublets, "imputation": judge_imputation}.get(task, judge_types)
    scores = judge(tuned, cells["test"], settings, study, options)
    people = (
        obs_of(place(study, options) / "labelled.h5ad")[["sample", "donor"]]
        .astype(str)
        .drop_duplicates()
    )
    people = people.set_index("sample")["donor"]
    shared = sorted(set(people.loc[parts["test"]]) & set(people.loc[parts["train"]]))
    numbers = {f"{part}_cells": len(cells[part]) if part in cells else 0 for part in PARTS}
    if task == "doublets":
        numbers["train_cells"] = min(numbers["train_cells"], MAX_SINGLETS)
    return {
        "task": task,
        **numbers,
        "scores": scores,
        "shared_donors": shared,
        "device": str(tuned.device),
        "version": scmamba.__version__,
        "seconds": round(time.perf_counter() - started),
    }


def task_cells(
    study: Study,
    task: str,
    parts: dict[str, Any],
    vocabulary: Any,
    settings: Any,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The cells of each part for the task: labeled ones, or all but doublets and unidentified ones; the recipe's filters."""
    level = f"label_{task}" if task in LEVELS else "celltype"
    cells = collection(study, options, vocabulary, "sample", level)
    exclude = ("",) if task in LEVELS else NOT_CELLS
    limits = {
        "min_total": settings.min_total,
        "min_donor_cells": settings.min_donor_cells,
        "above": settings.above or None,
    }
    cells = cells.filter(**limits, exclude=exclude)
    names = cells.column("donor")
    names = np.asarray(names.categories)[names.codes].astype(str)
    found = {part: np.isin(names, parts[part]) for part in PARTS}
    for part in ("train", "test"):
        if not found[part].any():
            raise ScMambaError(
                f"{study.name}, {task}: no cell of the samples for {part} ({', '.join(parts[part])}) passes the recipe's filters: "
                f"{settings.min_total:g} counts{f', more than {settings.above:g}' if settings.above else ''}, "
                f"{settings.min_donor_cells} cells a sample."
            )
    return {part: cells.take(mask) for part, mask in found.items() if mask.any()}


def fine_tune(
    verb: str, start: Any, cells: dict[str, Any], settings: Any, loop: Any, folder: Path
) -> Any:
    """The package's own training, with the state in ``folder`` so that a stopped run continues."""
    from scmamba.training import finetune
    from scmamba.training.finetune_classifier import finetune_classes

    held_out, work, name = (
        cells.get("validation"),
        folder / "training",
        f"{folder.parent.name}-{folder.name}",
    )
    if verb == "impute":
        return finetune(
            cells["train"],
            model=start,
            task=verb,
            loop=loop,
            sequence=settings.sequence(),
            held_out=() if held_out is None else held_out,
            folder=work,
            name=name,
            seed=settings.seed,
        )
    return finetune_classes(
        verb,
        cells["train"],
        model=start,
        loop=loop,
        sequence=settings.sequence(),
        held_out=held_out,
        balance=settings.balance,
        probe=settings.probe,
        recipe=settings.doublet_recipe,
        fraction=settings.doublet_fraction,
        folder=work,
        name=name,
    )


def judge_types(
    tuned: Any, cells: Any, settings: Any, study: Study, options: argparse.Namespace
) -> dict[str, Any]:
    """F1 macro, micro and weighted over all test cells; types without training cells count as missed."""
    from scmamba.evaluation.annotation import annotation_scores, per_class

    logits = np.concatenate(list(all_logits(tuned, cells)))
    called = np.array(tuned.labels, dtype=object)[logits.argmax(axis=1)].astype(str)
    truth = np.asarray(cells.column("label")).astype(str)
    scores = annotation_scores(truth, called)
    classes = per_class(truth, called)["f1"]
    return {
        **{key: scores[key] for key in ("macro", "micro", "weighted")},
        "classes": {name: float(f1) for name, f1 in classes.items()},
    }


def all_logits(tuned: Any, cells: Any, block: int = 512) -> Iterator[np.ndarray]:
    """(r, classes) logits, block by block, in the order of the cells (of one file)."""
    from scmamba.training.dataloaders import CollectionSource
    from scmamba.training.finetune_classifier import sample_logits

    feed = CollectionSource(cells, seed=0, similar=False)
    tuned.network.eval()
    with progress("Judging", len(cells), unit="cells") as advance:
        for first in range(0, len(cells), block):
            part = cells.read_sorted(cells.cells[first : first + block])
            yield sample_logits(tuned.network, list(feed.parts(part))).numpy()
            advance(len(part))


def judge_doublets(
    tuned: Any, cells: Any, settings: Any, study: Study, options: argparse.Namespace
) -> dict[str, Any]:
    """Single test cells against doublets simulated from them as in training; a call is the more likely class of the network (published code)."""
    from scmamba.evaluation.doublets import doublet_scores
    from scmamba.training.finetune_classifier import labels_from_simulated_doublets, sample_logits

    made_of = labels_from_simulated_doublets(
        cells,
        seed=options.seed + 1,
        fraction=settings.doublet_fraction,
        recipe=settings.doublet_recipe,
    )
    parts = made_of.sample(sys.maxsize)
    truth = np.concatenate([made_of.codes(part) for part in parts]) == 1
    tuned.network.eval()
    logits = sample_logits(tuned.network, parts).double().numpy()
    score = logits[:, tuned.labels.index("doublet")] - logits[:, tuned.labels.index("singlet")]
    return doublet_scores(truth, score, called=score > 0)


def judge_imputation(
    tuned: Any, cells: Any, settings: Any, study: Study, options: argparse.Namespace
) -> dict[str, Any]:
    """Squared error and Pearson's r on log1p(CP10k) of masked non-zero values, in five groups, next to two simple predictors."""
    from scmamba.evaluation import nonzero_imputation

    chosen = cells.cells
    if len(chosen) > options.imputation_cells:
        chosen = np.sort(
            np.random.default_rng(options.seed).choice(
                chosen, options.imputation_cells, replace=False
            )
        )
    test = ad.read_h5ad(place(study, options) / "labelled.h5ad", backed="r")[chosen].to_memory()
    table = nonzero_imputation(
        test,
        {"fine-tuned": tuned},
        predictors=["gene_rate", "neighbor_rate"],
        min_total=0,
        seed=options.seed,
    )
    rows = {
        name: {key: float(row[key]) for key in ("mse", "pearson", "deviance")}
        for name, row in table.iterrows()
    }
    return {"rows": rows, "cells": table.attrs["cells"], "values": table.attrs["values"]}
