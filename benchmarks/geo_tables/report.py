"""The tables next to the published numbers."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pandas as pd

from scmamba.utils.atomic import atomic_path
from scmamba.utils.errors import ScMambaError
from scmamba.utils.progress import say

from .studies import ANALYSES, LEVELS, STUDIES, TASKS, read_json


def report(options: argparse.Namespace) -> str:
    """The tables of all completed steps, next to the published numbers; as Markdown and TSV."""
    results: Results = {name: {} for name in STUDIES}
    for name in STUDIES:
        for task in TASKS:
            if found := read_json(options.work / name / task / "result.json"):
                results[name][task] = found
    if not any(results.values()):
        raise ScMambaError(f"There is no result in {options.work}. Run the step 'train' first.")
    text = (
        "\n\n".join(
            [
                "# The paper's tables, from GEO",
                "Made by `python -m benchmarks.paper_tables`. 'Published' is the paper's scMamba; its numbers of training cells are those of its code. "
                "A dash: not measured here, or not published in the code or copied here from the paper.",
                *_deviations(results),
                "## Cell types (F1 on the test samples)",
                type_table(results),
                "## Doublets (simulated, on the test samples)",
                doublet_table(results),
                "## Imputation of non-zero values (test samples)",
                imputation_table(results),
                *_analyses(options),
                "## How",
                *_how(results),
            ]
        )
        + "\n"
    )
    table = long_table(results).to_csv(sep="\t", index=False, lineterminator="\n")
    for name, content in (("paper_tables.md", text), ("paper_tables.tsv", table)):
        with atomic_path(options.work / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    say(f"{options.work / 'paper_tables.md'} and .tsv", True)
    return text


Results = dict[str, dict[str, dict[str, Any]]]


#: Analysis -> heading.
HEADINGS = {
    "detectors": "Doublet detectors (doublets simulated from the test samples; at 10 to 40% called)",
    "zeros": "Imputed zeros: clusters, types and donors (test samples)",
    "cells": "Embeddings of cells, without labels (Fig. 2; test samples)",
    "genes": "Embeddings of genes: nearest other marker of the same type (Fig. 2)",
    "degs": "Robustness of DEGs (Fig. 7 a-c, S4), and what the same pipeline calls where nothing differs",
}


def _analyses(options: argparse.Namespace) -> list[str]:
    """A heading and a table for each analysis that was done for some study."""
    parts = []
    for name in ANALYSES:
        rows = [
            {"study": study} | row
            for study in STUDIES
            for row in read_json(options.work / study / name / "result.json").get("rows", [])
        ]
        if rows:
            head = list(dict.fromkeys(key for row in rows for key in row))
            table = markdown(head, [[row.get(key) for key in head] for row in rows])
            parts += [f"## {HEADINGS[name]}", table]
    return parts


def type_table(results: Results) -> str:
    """Markdown: one row per study and level."""
    rows = []
    for name, study in STUDIES.items():
        for level, published in zip(LEVELS, study.f1):
            own = results[name].get(level)
            scores = (
                [own["scores"][key] for key in ("macro", "micro", "weighted")]
                if own
                else [None] * 3
            )
            rows.append([name, level, published, *scores, study.cells[level], *(_cells_of(own))])
    head = [
        "study",
        "level",
        "F1 macro, published",
        "F1 macro, here",
        "F1 micro, here",
        "F1 weighted, here",
        "training cells, published",
        "training cells, here",
        "test cells, here",
    ]
    return markdown(head, rows)


def doublet_table(results: Results) -> str:
    """Markdown: one row per study."""
    keys, rows = ("precision", "recall", "AUROC", "AUPRC", "prevalence"), []
    for name, study in STUDIES.items():
        own = results[name].get("doublets")
        rows.append(
            [
                name,
                *([own["scores"][key] for key in keys] if own else [None] * 5),
                study.cells["doublets"],
                *_cells_of(own),
            ]
        )
    head = [
        "study",
        *keys,
        "training cells with doublets, published",
        "without, here",
        "test cells without, here",
    ]
    return markdown(head, rows)


def imputation_table(results: Results) -> str:
    """Markdown: one row per study and predictor."""
    rows: list[list[Any]] = []
    for name, study in STUDIES.items():
        own = results[name].get("imputation")
        scored = own["scores"]["rows"] if own else {"fine-tuned": {"mse": None, "pearson": None}}
        rows += [
            [name, row, value["mse"], value["pearson"], study.cells["imputation"], *_cells_of(own)]
            for row, value in scored.items()
        ]
    return markdown(
        [
            "study",
            "predictor",
            "MSE",
            "Pearson r",
            "training cells, published",
            "here",
            "test cells, here",
        ],
        rows,
    )


def _cells_of(own: dict[str, Any] | None) -> list[int | None]:
    if own is None:
        return [None, None]
    return [own["train_cells"], own["scores"].get("cells", own["test_cells"])]


def markdown(head: list[str], rows: list[list[Any]]) -> str:
    """A table; fractions with four digits, thousands separated, a dash for missing values."""

    def shown(value: Any) -> str:
        if isinstance(value, float):
            return "undefined" if np.isnan(value) else f"{value:.4f}"
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else value

    lines = [head, ["---"] * len(head), *([shown(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _deviations(results: Results) -> list[str]:
    """Reasons why the numbers differ from the paper's, printed above them."""
    done = [own for tasks in results.values() for own in tasks.values()]
    lines = []
    if any(own["steps"] for own in done):
        steps = ", ".join(
            str(number) for number in sorted({own["steps"] for own in done if own["steps"]})
        )
        lines.append(
            f"**A trial: models were trained for {steps} steps only. Their scores are no measure of the method.**"
        )
    if any(own["recipe"] != "paper" for own in done):
        lines.append("**Some models were not trained by the paper's recipe (see below).**")
    if any(own["labels"] == "scmamba.prepare" for own in done):
        lines.append(
            "The paper's label of each cell is not published. Labels of `scmamba.prepare` stand in for them: the paper's "
            "procedure, with our own clusters, named by marker genes; cell types only."
        )
    if any(own["splits"].startswith(("published", "divided")) for own in done):
        lines.append(
            "The paper's division of samples is not published except for the test samples. Where it was not given, the other "
            "samples were divided by seed (`splits.json` in each study's folder)."
        )
    for name, tasks in results.items():
        if shared := next(
            (own["shared_donors"] for own in tasks.values() if own["shared_donors"]), None
        ):
            lines.append(
                f"{name}: the donors {', '.join(shared)} are in the test set with one sample and in training with another, so "
                "these scores are not of unseen donors. `--test-samples seed` keeps donors whole."
            )
    if "imputation" in {own["task"] for own in done}:
        lines.append(
            "Imputation is judged on the number of test cells shown. The paper's method is the masked prediction of the network "
            "as it is: the row 'fine-tuned', or for a model with a rate head 'fine-tuned (masked, not adapted)', whose row "
            "'fine-tuned' is what `scmamba impute` answers."
        )
    if "doublets" in {own["task"] for own in done}:
        lines.append(
            "Doublets are simulated from at most 50,000 training cells; the paper has no such limit."
        )
    return lines


def _how(results: Results) -> list[str]:
    head = [
        "study",
        "task",
        "labels",
        "splits",
        "model",
        "recipe",
        "steps",
        "seed",
        "device",
        "seconds",
        "version",
    ]
    rows = [
        [
            name,
            task,
            *(own[key] for key in head[2:6]),
            own["steps"] or "recipe's",
            str(own["seed"]),
            *(own[key] for key in head[8:]),
        ]
        for name, tasks in results.items()
        for task, own in tasks.items()
    ]
    return [markdown(head, rows)]


def long_table(results: Results) -> pd.DataFrame:
    """One number per row: study, task, row, metric, published, here, and how it was measured."""
    rows, noted = (
        [],
        ("train_cells", "test_cells", "labels", "splits", "model", "recipe", "steps", "seed"),
    )
    for name, study in STUDIES.items():
        for task in TASKS:
            own = results[name].get(task, {})
            scores = own.get("scores", {})
            if task == "imputation":
                numbers = {
                    (row, key): value
                    for row, values in scores.get("rows", {}).items()
                    for key, value in values.items()
                }
            else:
                numbers = {("", key): value for key, value in scores.items() if key != "classes"}
                numbers |= {(row, "F1"): value for row, value in scores.get("classes", {}).items()}
            if task in LEVELS and not numbers:
                numbers = {("", "macro"): None}
            for (row, key), value in numbers.items():
                published = (
                    study.f1[LEVELS.index(task)] if task in LEVELS and key == "macro" else None
                )
                rows.append(
                    {
                        "study": name,
                        "task": task,
                        "row": row,
                        "metric": key,
                        "published": published,
                        "here": value,
                        "train_cells_published": study.cells[task],
                        **{column: own.get(column) for column in noted},
                    }
                )
    return pd.DataFrame(rows)
