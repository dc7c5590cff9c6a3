"""Cell types of held-out donors (or cells): scMamba and its parts next to logistic regression, CellTypist and Seurat's label transfer.

    python -m benchmarks.annotation --data FOLDER [--set kang ...] [--method ...] [--seeds 0 1 2] [--celltypist PYTHON]
        [--scvi PYTHON]
    python -m benchmarks.annotation --report

Every run is a separate process, so that time and peak memory are its own; its row goes into results/annotation.tsv, in place of an
earlier row of the same set, method and seed. CellTypist 1.7.1 needs scikit-learn < 1.8: give the Python of an environment that has both.
scANVI runs in the Python given by ``--scvi``.

Sets: ``kang`` (kang2018_ifnb, singlets, donors 1244 and 1256 out, 13 types), ``velmeshev`` (human brain nuclei, the four held-out donors
that no step of brain-mini's training saw, 3 types), ``marques`` (mouse oligodendrocyte lineage through orthologs, 13 classes; no donors are
known, so a random third of the cells, stratified, is held out, by seed).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import io, sparse

from scmamba.evaluation.annotation import (
    UNASSIGNED,
    annotation_scores,
    calibration_error,
    coverage_accuracy,
)
from scmamba.evaluation.annotation_report import markdown

HERE = Path(__file__).resolve().parent
TABLE = HERE / "results" / "annotation.tsv"
CURVES = HERE / "results" / "annotation_coverage.tsv"
SHARES = (
    0.5,
    0.6,
    0.7,
    0.75,
    0.8,
    0.85,
    0.9,
    0.925,
    0.95,
    0.975,
    1.0,
)  # of the cells, those with the most certain calls
HELD_OUT = {"kang": ["1244", "1256"], "velmeshev": ["4341", "5403", "5864", "5958"]}
TITLES = {
    "kang": "kang2018_ifnb, held-out donors 1244 and 1256, 13 types",
    "velmeshev": "velmeshev2019, four held-out donors, 3 types",
    "marques": "marques2016, mouse through one-to-one orthologs, a held-out third of the cells, 13 classes",
}
KEYS = ["set", "method", "seed"]


def load(name: str, data: Path, seed: int) -> tuple[ad.AnnData, ad.AnnData, str, str]:
    """Reference, query, their label column and their donor column."""
    if name == "kang":
        adata = ad.read_h5ad(data / "kang2018_ifnb_8donors_2cond.h5ad")
        adata, label = adata[adata.obs["demuxlet_call"] == "SNG"].copy(), "cell_type"
    elif name == "velmeshev":
        adata, label = ad.read_h5ad(data / "velmeshev2019_pfc_3types.h5ad"), "cell_type"
    else:
        from scmamba.genes import mouse_to_human

        adata, label = (
            mouse_to_human(ad.read_h5ad(data / "marques2016_mouse_oligo_lineage_8691genes.h5ad")),
            "cell_type_original",
        )
    out = held_out(name, adata, label, seed)
    return adata[~out].copy(), adata[out].copy(), label, "donor"


def held_out(name: str, adata: ad.AnnData, label: str, seed: int) -> np.ndarray:
    """(n,) True for the query; whole donors if donors are known."""
    if name in HELD_OUT:
        return adata.obs["donor"].astype(str).isin(HELD_OUT[name]).to_numpy()
    rng, out = np.random.default_rng(seed), np.zeros(adata.n_obs, dtype=bool)
    codes = adata.obs[label].astype("category").cat.codes.to_numpy()
    for c in np.unique(codes):
        own = rng.permutation(np.flatnonzero(codes == c))
        out[own[: max(1, len(own) // 3)]] = True
    return out


def log_values(adata: ad.AnnData) -> sparse.csr_matrix:
    x = sparse.csr_matrix(adata.X, dtype=np.float64)
    x.data *= np.repeat(1e4 / np.asarray(x.sum(axis=1)).ravel(), np.diff(x.indptr))
    return x.log1p()


# Every method: reference, query, label, donor, seed, options -> calls (n,), their scores (n,), and calls with Unassigned or None.


def by_logistic_regression(reference, query, label, donor, seed, options):
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=300, random_state=seed)
    model.fit(log_values(reference), reference.obs[label].astype(str))
    p = model.predict_proba(log_values(query))
    return model.classes_[p.argmax(axis=1)], p.max(axis=1), None


def by_celltypist(reference, query, label, donor, seed, options):
    if not options.celltypist:
        raise SystemExit(
            "CellTypist: give --celltypist PYTHON, an environment with celltypist and scikit-learn < 1.8."
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, adata in (("reference", reference), ("query", query)):
            values, genes = (
                log_values(adata).astype(np.float32),
                pd.DataFrame(index=adata.var_names),
            )
            slim = ad.AnnData(values, obs=adata.obs[[label]].astype(str), var=genes)
            slim.var_names_make_unique()
            slim.write_h5ad(f"{folder}/{name}.h5ad")
        command = [
            options.celltypist,
            "-W",
            "ignore",
            str(HERE / "annotation_celltypist.py"),
            folder,
            label,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read_calls(folder)


def by_seurat(reference, query, label, donor, seed, options):
    with tempfile.TemporaryDirectory() as folder:
        for name, adata in (("reference", reference), ("query", query)):
            io.mmwrite(f"{folder}/{name}.mtx", sparse.coo_matrix(adata.X.T, dtype=np.int64))
        pd.Series(reference.obs[label].astype(str)).to_csv(
            f"{folder}/labels.txt", index=False, header=False
        )
        subprocess.run(
            ["Rscript", str(HERE / "annotation_seurat.R"), folder, str(seed)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return read_calls(folder)


def by_scanvi(reference, query, label, donor, seed, options):
    if not options.scvi:
        raise SystemExit("scANVI: give --scvi PYTHON, an environment with scvi-tools.")
    with tempfile.TemporaryDirectory() as folder:
        for name, adata in (("reference", reference), ("query", query)):
            batch = adata.obs[donor].astype(str) if donor in adata.obs else "one"
            slim = ad.AnnData(
                sparse.csr_matrix(adata.X),
                obs=adata.obs[[label]].astype(str).assign(donor=batch),
                var=adata.var[[]],
            )
            slim.var_names_make_unique()
            slim.write_h5ad(f"{folder}/{name}.h5ad")
        command = [
            options.scvi,
            "-W",
            "ignore",
            str(HERE / "annotation_scanvi.py"),
            folder,
            label,
            str(seed),
            str(options.epochs),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return read_calls(folder)


def read_calls(folder):
    """The output of another program: its calls and their scores."""
    table = pd.read_csv(f"{folder}/calls.tsv", sep="\t", dtype={"call": str}, keep_default_na=False)
    return table["call"].to_numpy(), table["sure"].to_numpy(float), None


def by_scmamba(reference, query, label, donor, seed, options, steps=None):
    import scmamba

    found = scmamba.annotate(
        query,
        reference=reference,
        label_key=label,
        donor_key=donor,
        finetune_steps=(options.steps or 400) if steps is None else steps,
        return_result=True,
        seed=seed,
        cache=cache_of(reference, seed, options) or False,
        verbose=options.verbose,
    )
    return answers(found)


def cache_of(reference, seed, options):
    """One folder for each set and seed, so that the cached network belongs to this run."""
    return Path(options.cache) / f"{reference.n_obs}-{seed}" if options.cache else None


def answers(found):
    level = list(found.levels)[-1]
    p = found.probabilities[level]
    return (
        np.array(found.levels[level], dtype=object)[p.argmax(axis=1)],
        p.max(axis=1),
        found.labels(level),
    )


def by_linear_views(*arguments):
    return by_scmamba(*arguments, steps=0)


def by_network_alone(reference, query, label, donor, seed, options):
    """The fine-tuned network that the row above keeps in its cache."""
    import scmamba

    with tempfile.TemporaryDirectory() as folder:
        cache = cache_of(reference, seed, options) or Path(folder)
        scmamba.annotate(
            query[:2].copy(),
            reference=reference,
            label_key=label,
            donor_key=donor,
            seed=seed,
            cache=cache,
            finetune_steps=options.steps or 400,
            force=True,
            verbose=options.verbose,
        )
        (kept,) = cache.glob("*/network")
        return answers(
            scmamba.annotate(query, model=kept, force=True, return_result=True, verbose=False)
        )


METHODS: dict[str, tuple[str, Callable, bool]] = {
    # name: label in the tables, function, whether the seed matters
    "scmamba": ("scMamba with the network (`finetune_steps=400`)", by_scmamba, True),
    "linear": ("**scMamba (`annotate()`)**", by_linear_views, True),
    "network": ("its fine-tuned network alone", by_network_alone, True),
    "logistic": ("logistic regression, all genes", by_logistic_regression, False),
    "celltypist": ("CellTypist 1.7.1", by_celltypist, False),
    "seurat": ("Seurat 4.3 label transfer", by_seurat, False),
    "scanvi": ("scANVI (scvi-tools 1.4.2, 100 + 20 epochs)", by_scanvi, True),
}


def run_one(name: str, method: str, seed: int, options: argparse.Namespace) -> dict:
    reference, query, label, donor = load(name, options.data, seed)
    started = time.perf_counter()
    calls, best, cut = METHODS[method][1](reference, query, label, donor, seed, options)
    seconds = time.perf_counter() - started
    truth = query.obs[label].astype(str).to_numpy()
    row = {"set": name, "method": method, "seed": seed} | annotation_scores(truth, calls)
    row["coverage"] = row["accuracy"] = np.nan
    if cut is not None:
        kept = annotation_scores(truth, cut)
        row |= {
            "coverage": kept["coverage"],
            "accuracy": kept["accuracy"],
            "calibration_error": calibration_error(truth, calls, best),
        }
    # Linux counts KiB; children are R and the Python of CellTypist.
    peak = (
        max(
            resource.getrusage(who).ru_maxrss
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        / 1024
    )
    row |= {
        "cells": len(truth),
        "reference_cells": reference.n_obs,
        "seconds": seconds,
        "peak_mib": peak,
    }
    return row | {
        "curve": coverage_accuracy(truth, calls, best, SHARES)[["coverage", "accuracy"]]
        .to_numpy()
        .tolist()
    }


def novel_types(options: argparse.Namespace) -> pd.DataFrame:
    """Each type in turn is removed from the reference: the share of its cells in the held-out donors that is `Unassigned`, and that of the others."""
    import scmamba

    reference, query, label, donor = load("kang", options.data, 0)
    truth = query.obs[label].astype(str).to_numpy()
    rows = []
    for name in options.types or np.unique(truth):
        known = reference[reference.obs[label].astype(str) != name].copy()
        found = scmamba.annotate(
            query,
            reference=known,
            label_key=label,
            donor_key=donor,
            finetune_steps=0,
            return_result=True,
            cache=False,
            verbose=False,
        )
        calls, own = found.labels().astype(str), truth == name
        taken = pd.Series(calls[own & (calls != UNASSIGNED)]).value_counts()
        given = calls != UNASSIGNED
        rows.append(
            {
                "type": name,
                "cells": own.sum(),
                "rejected": np.mean(calls[own] == UNASSIGNED),
                "strange": np.mean(found.is_novel[own]),
                "others_right": np.mean(calls[given & ~own] == truth[given & ~own]),
                "others_rejected": np.mean(calls[~own] == UNASSIGNED),
                "else_called": taken.index[0] if len(taken) else "",
            }
        )
    return with_all(pd.DataFrame(rows))


def with_all(table: pd.DataFrame) -> pd.DataFrame:
    """With a last row: the shares over the cells of all types."""
    every = {
        name: np.average(table[name], weights=table["cells"]) for name in ("rejected", "strange")
    }
    return pd.concat(
        [table, pd.DataFrame([{"type": "all", "cells": table["cells"].sum(), **every}])],
        ignore_index=True,
    )


#: Sets for annotation without labels.
PANEL_SETS = {
    "velmeshev2019_pfc_3types": "velmeshev2019, human nuclei, 3 types present",
    "zeisel2018_mouse_pseudocases_27998genes": "zeisel2018, mouse cells through orthologs, 3 types present",
    "pairedtag2021_mouse_brain_nuclei_2000genes": "paired-tag 2021, mouse nuclei, 823 genes through orthologs, 8 types present",
    "allen_acc_visp_nuclei_2023genes": "allen, human nuclei, 2,023 genes",
}
#: Names of their types in the panel; ependymal cells have none.
PANEL_NAMES = {
    "astrocytes": "Astrocyte",
    "inhibitory": "Inhibitory neuron",
    "excitatory": "Excitatory neuron",
    "OPC": "OPC",
}


def by_markers(options: argparse.Namespace) -> pd.DataFrame:
    """No labels: the default panel on cells with known types; a set with too few marker genes must be refused."""
    import scmamba
    from scmamba.genes import mouse_to_human
    from scmamba.utils.errors import DataError

    rows = []
    for file, title in PANEL_SETS.items():
        cells = ad.read_h5ad(options.data / f"{file}.h5ad")
        cells = mouse_to_human(cells) if "ortholog_one2one" in cells.var else cells
        try:
            found = scmamba.annotate(
                cells, markers="panel", force=True, return_result=True, verbose=False
            )
        except DataError as error:
            rows.append({"set": title, "note": f"refused: {error}"})
            continue
        truth = (
            cells.obs["cell_type"]
            .astype(str)
            .map(lambda name: PANEL_NAMES.get(name, name.capitalize()))
        )
        scores = annotation_scores(truth, found.labels().astype(str))
        rows.append(
            {
                "set": title,
                **{k: scores[k] for k in ("macro", "micro", "coverage", "accuracy")},
                "note": "",
            }
        )
    return pd.DataFrame(rows)[["set", "macro", "micro", "coverage", "accuracy", "note"]]


def put(row: dict) -> None:
    """Write the scores into one table and the curve into the other."""
    curve = pd.DataFrame(row.pop("curve"), columns=["kept", "right"])
    replace(TABLE, pd.DataFrame([row]))
    replace(CURVES, pd.DataFrame([{k: row[k] for k in KEYS}] * len(curve)).join(curve))


def replace(path: Path, rows: pd.DataFrame) -> None:
    """Write the rows of one run into a table, in place of those of an earlier run."""
    if path.exists():
        table = pd.read_csv(path, sep="\t")
        same = (table[KEYS].astype(str) == rows[KEYS].iloc[0].astype(str)).all(axis=1)
        rows = pd.concat([table[~same], rows])
    order = {m: i for i, m in enumerate(METHODS)}
    rows = rows.sort_values(
        KEYS,
        kind="stable",
        key=lambda column: column.map(order) if column.name == "method" else column,
    )
    rows.round(4).to_csv(path, sep="\t", index=False, lineterminator="\n")


def section(name: str, table: pd.DataFrame) -> str:
    lines = [
        f"### {TITLES[name]}",
        "",
        "| method | runs | F1 macro | F1 micro | F1 weighted | kept at 5% stated error | right of these | seconds | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for method, (title, _, _) in METHODS.items():
        own = table[(table["set"] == name) & (table["method"] == method)]
        if not len(own):
            continue
        cells = [spread(own[c]) for c in ("macro", "micro", "weighted", "coverage", "accuracy")]
        lines.append(
            f"| {title} | {len(own)} | {' | '.join(cells)} | {own['seconds'].mean():.0f} | {own['peak_mib'].max():.0f} |"
        )
    return "\n".join(lines)


def spread(values: pd.Series) -> str:
    values = values.dropna()
    if not len(values):
        return ""
    text = f"{values.mean():.3f}"
    return (
        text
        if values.max() - values.min() < 5e-4
        else f"{text} ({values.min():.3f}-{values.max():.3f})"
    )


#: Headings of columns in the page; the tables of results keep their names.
HEADINGS = {
    "rejected": "Unassigned",
    "strange": "is_novel",
    "others_right": "others right",
    "others_rejected": "others Unassigned",
    "else_called": "most frequent other call",
}
ABSENT = "Not run: SciBet, scBERT and scHyena, which are on no package registry; the paper compares with them on other data."


def report(measured: bool) -> None:
    """Markdown from the committed tables, into results and docs."""
    from benchmarks.machine import machine_of  # this file also runs by its path

    table = pd.read_csv(TABLE, sep="\t")
    parts = [
        f"Made by `python -m benchmarks.annotation` ({machine_of('annotation', measured)}). Mean over seeds, range in brackets if it is wider than 0.0005.",
        *[section(name, table) for name in TITLES if (table["set"] == name).any()],
    ]
    for file, title in (
        ("annotation_novel.tsv", "A type absent from the reference (kang, `finetune_steps=0`)"),
        ("annotation_markers.tsv", "No labels: the default marker panel"),
    ):
        if (TABLE.parent / file).exists():  # numbers keep their notation, missing values stay empty
            rows = pd.read_csv(
                TABLE.parent / file, sep="\t", keep_default_na=False, dtype=str, index_col=0
            )
            parts.append(f"### {title}\n\n" + markdown(rows.rename(columns=HEADINGS)))
    text = "\n\n".join([*parts, ABSENT]) + "\n"
    (TABLE.parent / "annotation.md").write_text(text, encoding="utf-8")
    page = HERE.parent / "docs" / "annotation.md"
    head = page.read_text(encoding="utf-8").split("<!-- results -->")[0] if page.exists() else ""
    page.write_text(head + "<!-- results -->\n\n" + text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--set", nargs="*", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--method", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--celltypist", help="Python of an environment with celltypist and scikit-learn < 1.8"
    )
    parser.add_argument("--scvi", help="Python of an environment with scvi-tools")
    parser.add_argument(
        "--epochs", type=int, default=100, help="epochs of scVI; a fifth of them follow for scANVI"
    )
    parser.add_argument(
        "--cache",
        help="folder for fitted references; 'network' then reuses those of 'scmamba'",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="fine-tuning steps of 16 cells, for the rows with the network; 400 if not given",
    )
    parser.add_argument("--novel", action="store_true", help="types absent from the reference")
    parser.add_argument("--types", nargs="*", help="with --novel: which types; all if not given")
    parser.add_argument("--markers", action="store_true", help="annotation by the default panel")
    parser.add_argument(
        "--report", action="store_true", help="only write the pages from the tables"
    )
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("SET", "METHOD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(
            json.dumps(
                run_one(options.one[0], options.one[1], int(options.one[2]), options), default=float
            )
        )
        return
    for wanted, function, name in (
        (options.novel, novel_types, "novel"),
        (options.markers, by_markers, "markers"),
    ):
        if wanted:
            function(options).round(3).to_csv(
                TABLE.parent / f"annotation_{name}.tsv", sep="\t", index=False, lineterminator="\n"
            )
    if not (options.report or options.novel or options.markers):
        run_all(options)
    report(measured=not options.report)


def run_all(options: argparse.Namespace) -> None:
    for name in options.set:
        for method in options.method:
            seeds = options.seeds if METHODS[method][2] or name == "marques" else options.seeds[:1]
            for seed in seeds:
                command = [
                    sys.executable,
                    __file__,
                    "--data",
                    str(options.data),
                    "--one",
                    name,
                    method,
                    str(seed),
                ]
                command += ["--verbose"] * options.verbose
                for option in ("celltypist", "scvi", "epochs", "cache", "steps"):
                    command += (
                        [f"--{option}", str(getattr(options, option))]
                        if getattr(options, option)
                        else []
                    )
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
                if done.returncode:
                    print(f"{name} {method} {seed}: failed", file=sys.stderr)
                    continue
                row = json.loads(done.stdout.splitlines()[-1])
                put(row)
                print(
                    f"{name} {method} {seed}: macro {row['macro']:.3f} micro {row['micro']:.3f} {row['seconds']:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
