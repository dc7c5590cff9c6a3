"""The table of non-zero imputation on real data: simple predictors, MAGIC and scVI where installed, scMamba
models.

    python -m benchmarks.nonzero_imputation --data FOLDER [--model NAME_OR_PATH ...] [--set kang]
        [--skip magic scvi] [--out benchmarks/results]

Two sets: ``kang`` (kang2018_ifnb, singlets, cells with at least 2,000 counts) and ``velmeshev`` (human brain
nuclei; the held-out donors named below are predicted, the rest may be in a model's training data;
also with gene rates and neighbors taken from the other donors only).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import pandas as pd

from benchmarks.machine import machine
from scmamba.evaluation import PREDICTORS, nonzero_imputation

HELD_OUT = ["4341", "5403", "5864", "5958"]  # the donors that no training step of brain-mini used
HERE = Path(__file__).resolve().parent


def sets(data: Path) -> dict[str, dict]:
    kang = ad.read_h5ad(data / "kang2018_ifnb_8donors_2cond.h5ad")
    brain = ad.read_h5ad(data / "velmeshev2019_pfc_3types.h5ad")
    out = brain.obs["donor"].astype(str).isin(HELD_OUT).to_numpy()
    return {
        "kang": {"adata": kang[kang.obs["demuxlet_call"] == "SNG"].copy(), "min_total": 2000},
        "velmeshev": {"adata": brain[out].copy(), "min_total": 0},
        "velmeshev_from_other_donors": {
            "adata": brain[out].copy(),
            "min_total": 0,
            "reference": brain[~out].copy(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--model", nargs="*", default=[], help="models by name or folder, a row each"
    )
    parser.add_argument("--set", dest="only", nargs="*", help="only these sets")
    parser.add_argument("--skip", nargs="*", default=[], help="predictors to skip")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    for name, options in sets(arguments.data).items():
        if arguments.only and name not in arguments.only:
            continue
        started = time.perf_counter()
        wanted = [
            p
            for p, (_, needs, _) in PREDICTORS.items()
            if p not in arguments.skip and installed(needs)
        ]
        models = {f"scmamba:{Path(m).name}": m for m in arguments.model}
        adata = options.pop("adata")
        table = nonzero_imputation(adata, models or None, predictors=wanted, **options)
        path = arguments.out / f"nonzero_imputation_{name}.tsv"
        write(table, name, path, time.perf_counter() - started)
        print(path, table.round(4).to_string(), sep="\n", flush=True)


def installed(package: str | None) -> bool:
    import importlib.util

    return package is None or importlib.util.find_spec(package) is not None


def write(table: pd.DataFrame, name: str, path: Path, seconds: float) -> None:
    about = table.attrs
    size = f"{about['cells']} cells x {about['genes']} genes, {about['values']} values"
    head = [
        f"{name}: {size}, {100 * about['ones']:.1f}% of them ones",
        f"{seconds:.0f} s; {machine()}",
        *(f"{key}: {text}" for key, text in about["descriptions"].items()),
    ]
    path.write_text("".join(f"# {line}\n" for line in head) + table.round(4).to_csv(sep="\t"))


if __name__ == "__main__":
    main()
