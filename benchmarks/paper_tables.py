"""The paper's tables from its public studies: fetched from GEO, read, labeled, used for fine-tuning, and scored on held-out samples.

    python -m benchmarks.paper_tables all --work FOLDER [--study Lau Leng Smajic Zhu] [--model NAME_OR_FOLDER] [--recipe paper|small]
    python -m benchmarks.paper_tables download|read|prepare|train|analyze|report --work FOLDER ...

Every step continues where it stopped, and names the step to run first if something is missing. In FOLDER/STUDY: ``raw/`` (GEO's files and
their SHA-256), ``cells.h5ad`` (counts, donor, disease, sample), ``prepare/`` and ``labelled.h5ad``, ``splits.json``, ``TASK/`` (checkpoint,
loss, result); in FOLDER the tables, ``paper_tables.md`` and ``paper_tables.tsv``. Options must be the same for every step.

What the published code (github.com/okt0711/scMamba, commit 4c21f54) holds and what it does not: it names the types, the test samples
(``results/calculate_*.py``) and the numbers of training cells (``configs/dataset/*.yaml``). It has neither the label of each cell nor
the division of the other samples. Whoever has these from the authors gives ``--labels`` (TSV: study, id, celltype, subtype, subcluster)
and ``--splits`` (JSON: study -> train, validation, test -> samples or donors). Without them cells are labeled by ``scmamba.prepare``
(cell types only), the published samples are the test set, and the others are divided once by seed, donors kept whole.

Leng's files on GEO are all droplets, empty ones too: see ``call_cells``. The authors' own filtered objects (Synapse syn21788402) are
better, if available: use ``scmamba finetune`` as they are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.geo_tables.analyze import analyze
from benchmarks.geo_tables.download import download
from benchmarks.geo_tables.label import prepare
from benchmarks.geo_tables.read import read
from benchmarks.geo_tables.report import report
from benchmarks.geo_tables.studies import ANALYSES, BASE_URL, EXPECTED_CELLS, STEPS, STUDIES, TASKS
from benchmarks.geo_tables.train import train
from scmamba.utils.errors import ScMambaError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument("--study", nargs="*", default=list(STUDIES), choices=list(STUDIES))
    parser.add_argument("--task", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--base-url", default=BASE_URL, help="GEO's series folder, or a mirror of it"
    )
    parser.add_argument(
        "--expected-cells",
        type=int,
        default=EXPECTED_CELLS,
        help="raw droplets: cells expected in a sample",
    )
    parser.add_argument(
        "--min-total",
        type=float,
        help="raw droplets: least counts of a cell, in place of Cell Ranger's rule",
    )
    parser.add_argument(
        "--min-donor-cells",
        type=int,
        default=200,
        help="samples with fewer cells are omitted (paper: 200)",
    )
    parser.add_argument("--labels", type=Path, help="TSV: study, id, celltype, subtype, subcluster")
    parser.add_argument(
        "--splits", type=Path, help="JSON: study -> train, validation, test -> samples or donors"
    )
    parser.add_argument(
        "--test-samples",
        choices=["published", "seed"],
        default="published",
        help="without --splits: the test set",
    )
    parser.add_argument(
        "--model",
        default="brain-mini",
        help="name, checkpoint folder or published .ckpt to fine-tune",
    )
    parser.add_argument("--recipe", choices=["paper", "small"], default="paper")
    parser.add_argument(
        "--steps",
        type=int,
        help="optimiser steps in place of the recipe's epochs and of impute()'s adaptation: for a trial",
    )
    parser.add_argument(
        "--imputation-cells",
        type=int,
        default=2000,
        help="at most so many test cells for imputation",
    )
    parser.add_argument(
        "--analysis",
        nargs="*",
        default=list(ANALYSES),
        choices=list(ANALYSES),
        help="what 'analyze' measures",
    )
    parser.add_argument(
        "--analysis-cells", type=int, default=2000, help="at most so many test cells in an analysis"
    )
    parser.add_argument(
        "--deg-cells", type=int, default=20_000, help="at most so many cells of a study for Fig. 7"
    )
    parser.add_argument(
        "--permutations", type=int, default=100, help="subsamples for each share of Fig. 7"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Carry out one step, or all; 1 and a sentence if that is not possible."""
    options = parse(arguments)
    steps = {
        "download": download,
        "read": read,
        "prepare": prepare,
        "train": train,
        "analyze": analyze,
    }
    try:
        options.work.mkdir(parents=True, exist_ok=True)
        # Study by study, so that the first one is complete before the last one is fetched.
        for name in options.study if options.step != "report" else ():
            for step in steps if options.step == "all" else (options.step,):
                steps[step](STUDIES[name], options)
        if options.step in ("report", "all"):
            print(report(options))
    except ScMambaError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
