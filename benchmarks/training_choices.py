"""Choices of training, each measured once on held-out donors.

    python -m benchmarks.training_choices passes      --data FOLDER --pretrained CHECKPOINT [--steps 800]
    python -m benchmarks.training_choices mask-token  --data FOLDER --pretrained CHECKPOINT [--steps 800]
    python -m benchmarks.training_choices pretraining --data FOLDER --pretrained CHECKPOINT
    python -m benchmarks.training_choices types       --data FOLDER --pretrained CHECKPOINT [--steps 80]
    python -m benchmarks.training_choices frozen      --data FOLDER --pretrained CHECKPOINT [--seeds 3] [--start NAME ...]

``passes``: imputation fine-tuned with few masked zeros, and with a share of the zeros between 0.04 and 1; masked values predicted by
the published rule in 1, 2, 5 and 10 passes, and by one reading by the rate head. ``mask-token``: the same fine-tuning with the
pre-trained mask token and with a fresh one, as the published code has it. ``pretraining``: the same fine-tuning from the pre-trained
network and from a fresh one, on imputation; ``types``: on annotation, brain-mini as shipped for comparison. ``frozen``: what cell
embeddings of networks that were not fine-tuned for cell types, scored by logistic regression: pre-trained, fresh, and brain-mini as
shipped. The checkpoint is the intermediate result of ``make brain-mini``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import scmamba
from benchmarks.machine import machine
from scmamba.data import Collection
from scmamba.data.preprocess import CellReader, read_cells
from scmamba.data.values import SCALE
from scmamba.evaluation import nonzero_imputation
from scmamba.evaluation.annotation import annotation_scores
from scmamba.evaluation.imputation import Hidden
from scmamba.evaluation.imputation.gating import value_if_counted
from scmamba.imputation.base_predictors import BasePredictors, GeneMap, base_rate
from scmamba.imputation.masked import predict_zeros
from scmamba.model import Model, load_model
from scmamba.model.inference import input_positions
from scmamba.nn import ScMamba
from scmamba.training import TrainerConfig, fit, read_sources
from scmamba.training.finetune_classifier import NO_MASKING, finetune_classes
from scmamba.training.objectives import RateConfig, nb_rate_step, rate_validation, store_gene_rates
from scmamba.training.reconstruction import IMPUTE, clone, reconstruction_step, validation

RESULTS = Path(__file__).resolve().parent / "results"
#: Donors of the Velmeshev set that are held out from brain-mini's training.
HELD_OUT = ["4341", "5403", "5864", "5958"]
FEW = replace(IMPUTE, genes_per_step=1536, zeros=(100, 1600))
ANY = replace(IMPUTE, genes_per_step=1536, zeros=(0.04, 1.0))


def nuclei(data: Path) -> tuple[ad.AnnData, ad.AnnData]:
    """Training and held-out donors."""
    cells = ad.read_h5ad(data / "velmeshev2019_pfc_3types.h5ad")
    cells.uns["name"] = "velmeshev2019"
    out = cells.obs["donor"].astype(str).isin(HELD_OUT).to_numpy()
    return cells[~out].copy(), cells[out].copy()


def fresh(model: Model, seed: int) -> Model:
    """The same network with random weights."""
    torch.manual_seed(seed)
    return Model(ScMamba(model.config), model.genes)


def tune(
    model: Model, training: ad.AnnData, sequence, steps: int, seed: int, lr: float = 1e-3
) -> Model:
    """Masked imputation fine-tuning of a copy."""
    sources = read_sources([training], model.genes)
    loop = TrainerConfig(steps=steps, batch_size=16, lr=lr, warmup=0.05, seed=seed)
    copy = clone(model)
    torch.manual_seed(seed)
    fit(
        copy.network,
        reconstruction_step(sources, sequence, loop),
        loop,
        description="Fine-tuning",
        verbose=True,
    )
    return copy


class Published:
    """Masked counts by the published inference in a number of passes; records the seconds."""

    def __init__(self, model: Model, passes: int) -> None:
        self.model, self.passes, self.seconds = model, passes, 0.0

    def __call__(self, hidden: Hidden) -> np.ndarray:
        started = time.perf_counter()
        cells = read(hidden, self.model)
        where, genes = input_positions(self.model, cells)
        slot = np.full(len(hidden.genes), -1)
        slot[cells.columns] = where
        out = np.zeros(len(hidden.rows))
        for start in range(0, hidden.visible.shape[0], 64):
            known, totals = cells.to_model(hidden.visible[start : start + 64])
            x = np.zeros(
                (len(totals), len(self.model.genes) if genes is None else len(genes)),
                dtype=np.float32,
            )
            x[:, where] = known.toarray()
            answer = predict_zeros(self.model, x, genes, self.passes)
            lo, hi = np.searchsorted(hidden.rows, [start, start + len(totals)])
            cell, at = hidden.rows[lo:hi] - start, slot[hidden.columns[lo:hi]]
            expected = np.expm1(answer[cell, at].astype(np.float64)) * totals[cell] / SCALE
            out[lo:hi] = np.where(
                at >= 0, np.log1p(SCALE / hidden.totals[cell + start] * expected), 0
            )
        self.seconds += time.perf_counter() - started
        return out


class OneReading:
    """Masked counts by the rate head from one reading of the visible ones, without adaptation or neighbors."""

    def __init__(self, model: Model) -> None:
        self.model, self.seconds = model, 0.0

    def __call__(self, hidden: Hidden) -> np.ndarray:
        started = time.perf_counter()
        genes = GeneMap.of(read(hidden, self.model))
        sources = BasePredictors(
            self.model, genes, base_rate(hidden.visible, self.model, genes), None
        )
        out = np.zeros(len(hidden.rows))
        for start in range(0, hidden.visible.shape[0], 64):
            totals = hidden.totals[start : start + 64]
            rate = sources.network(hidden.visible[start : start + 64], totals) + sources.base
            lo, hi = np.searchsorted(hidden.rows, [start, start + len(totals)])
            out[lo:hi] = value_if_counted(rate, totals[:, None])[
                hidden.rows[lo:hi] - start, hidden.columns[lo:hi]
            ]
        self.seconds += time.perf_counter() - started
        return out


def read(hidden: Hidden, model: Model) -> CellReader:
    """The visible counts, as the model reads them."""
    return read_cells(
        ad.AnnData(hidden.visible.astype(np.float32), var=pd.DataFrame(index=hidden.genes)),
        model.genes,
        force=True,
    )


def passes(arguments: argparse.Namespace) -> pd.DataFrame:
    """Accuracy against the number of passes."""
    training, others = nuclei(arguments.data)
    others = others[
        np.random.default_rng(0).choice(
            others.n_obs, min(arguments.cells, others.n_obs), replace=False
        )
    ].copy()
    start = load_model(arguments.pretrained)
    shipped = load_model("brain-mini")
    models = {
        "100 to 1,600 zeros hidden": tune(start, training, FEW, arguments.steps, arguments.seed),
        "0.04 to 1 of the zeros hidden": tune(
            start, training, ANY, arguments.steps, arguments.seed
        ),
        "brain-mini as shipped": shipped,
    }
    rows = {
        f"{name}, {k} pass{'es' * (k > 1)}": Published(model, k)
        for name, model in models.items()
        for k in (1, 2, 5, 10)
    }
    rows["brain-mini's rate head, one reading"] = OneReading(shipped)
    predictors: dict[str, Callable | None] = {**rows, "gene_rate": None}
    table = nonzero_imputation(others, predictors=predictors, min_total=0, groups=5, verbose=True)
    table["seconds"] = pd.Series({name: row.seconds for name, row in rows.items()})
    return table.drop(columns="covered")


def mask_token(arguments: argparse.Namespace) -> pd.DataFrame:
    """The pre-trained mask token against a fresh one, as validation loss along the fine-tuning."""
    training, others = nuclei(arguments.data)
    start = load_model(arguments.pretrained)
    dropped = clone(start)
    with torch.no_grad():
        dropped.network.backbone.mask_token.copy_(
            torch.zeros_like(dropped.network.backbone.mask_token)
        )
    return curves(
        {"pre-trained mask token kept": start, "mask token fresh, as published": dropped},
        training,
        others,
        arguments,
    )


def curves(
    starts: dict[str, Model],
    training: ad.AnnData,
    others: ad.AnnData,
    arguments: argparse.Namespace,
) -> pd.DataFrame:
    """Squared error at masked counts of held-out donors after the given numbers of steps, the same cells for all; mean over seeds."""
    rows = []
    for name, start in starts.items():
        sources, held = (read_sources([cells], start.genes) for cells in (training, others))
        judge = validation(held, IMPUTE, cells=48)
        for seed in range(arguments.seeds):
            rows += [
                {"start": name, "seed": seed, "steps": steps, "squared_error": loss}
                for steps, loss in masked_curve(start, sources, judge, arguments.steps, seed)
            ]
    return spread(pd.DataFrame(rows), ["start", "steps"], ["squared_error"])


def masked_curve(start: Model, sources, judge, steps: int, seed: int) -> list[tuple[int, float]]:
    loop = TrainerConfig(steps=steps, batch_size=16, lr=1e-3, warmup=0.05, seed=seed)
    step = reconstruction_step(sources, FEW, loop)
    copy, seen = clone(start), []
    marks = sorted({steps // 8, steps // 4, steps // 2, steps})

    def watched(network, k: int, rng):
        if k in marks:
            network.eval()
            seen.append((k, judge(network)["validation_loss"]))
            network.train()
        return step(network, k, rng)

    torch.manual_seed(seed)
    fit(copy.network, watched, loop, description="Fine-tuning", verbose=True)
    copy.network.eval()
    return [*seen, (steps, judge(copy.network)["validation_loss"])]


def pretraining(arguments: argparse.Namespace) -> pd.DataFrame:
    """The same fine-tuning from the pre-trained network and from random weights."""
    rows = []
    for seed in range(arguments.seeds):
        trained = load_model(arguments.pretrained)
        starts = {"pre-trained": trained, "not pre-trained": fresh(trained, seed)}
        for name, start in starts.items():
            rows += [
                {"start": name, "seed": seed, **row}
                for row in imputation_rows(start, arguments, seed)
            ]
            print(pd.DataFrame(rows).tail(6).to_string(), flush=True)
    return spread(pd.DataFrame(rows), ["task", "steps", "start"], ["value"])


def imputation_rows(start: Model, arguments: argparse.Namespace, seed: int) -> list[dict]:
    """Both objectives of imputation on held-out donors, after few and after many steps."""
    training, others = nuclei(arguments.data)
    sources, held = (read_sources([cells], start.genes) for cells in (training, others))
    rows = []
    for steps in (arguments.steps // 4, arguments.steps):
        loop = TrainerConfig(steps=steps, batch_size=16, lr=1e-3, warmup=0.05, seed=seed)
        masked = clone(start)
        torch.manual_seed(seed)
        fit(
            masked.network,
            reconstruction_step(sources, FEW, loop),
            loop,
            description="Masked values",
            verbose=False,
        )
        error = validation(held, IMPUTE, cells=48)(masked.network)["validation_loss"]
        rows.append(
            {
                "task": "masked values, velmeshev: squared error (lower is better)",
                "steps": steps,
                "value": error,
            }
        )
        rates = clone(start)
        store_gene_rates(rates.network, sources)
        torch.manual_seed(seed)
        fit(
            rates.network,
            nb_rate_step(sources, RateConfig(), loop),
            loop,
            description="Rates",
            verbose=False,
        )
        deviance = rate_validation(held, RateConfig())(rates.network)["validation_loss"]
        rows.append(
            {
                "task": "rates, velmeshev: deviance per hidden count (lower is better)",
                "steps": steps,
                "value": deviance,
            }
        )
    return rows


def labelled(data: Path) -> dict[str, tuple[ad.AnnData, ad.AnnData]]:
    """Training and held-out donors: kang's singlets without 1244 and 1256 (13 types), velmeshev (3 types)."""
    kang = ad.read_h5ad(data / "kang2018_ifnb_8donors_2cond.h5ad")
    kang = kang[kang.obs["demuxlet_call"] == "SNG"].copy()
    out = kang.obs["donor"].astype(str).isin(["1244", "1256"]).to_numpy()
    return {"kang": (kang[~out].copy(), kang[out].copy()), "velmeshev": nuclei(data)}


def starts(arguments: argparse.Namespace, seed: int) -> dict[str, Model]:
    """The networks to compare: those that ``--start`` names."""
    makers: dict[str, Callable[[], Model]] = {
        "pre-trained": lambda: load_model(arguments.pretrained),
        "not pre-trained": lambda: fresh(load_model(arguments.pretrained), seed),
        "brain-mini": lambda: load_model("brain-mini"),
        "brain-base": lambda: load_model("brain-base"),
    }
    return {name: make() for name, make in makers.items() if name in arguments.start}


def frozen(arguments: argparse.Namespace) -> pd.DataFrame:
    """Macro F1 of logistic regression on cell embeddings, with many labels and with 200; seeds draw cells and fresh weights."""
    rows = []
    for name, (training, others) in labelled(arguments.data).items():
        for seed in range(arguments.seeds):
            for start, model in starts(arguments, seed).items():
                rows += [
                    {"set": name, "start": start, "seed": seed, **row}
                    for row in probe(model, training, others, seed)
                ]
            print(pd.DataFrame(rows).tail(6).to_string(), flush=True)
    return spread(pd.DataFrame(rows), ["set", "labelled_cells", "start"], ["macro", "micro"])


def probe(model: Model, training: ad.AnnData, others: ad.AnnData, seed: int) -> list[dict]:
    """Rows with 1,000 labeled cells and with 200."""
    drawn = np.random.default_rng(seed).permutation(training.n_obs)[:1000]
    known, new = (
        scmamba.embed(cells.copy(), model=model, force=True, verbose=False, copy=True).obsm[
            "X_scmamba"
        ]
        for cells in (training[drawn], others)
    )
    types, rows = training.obs["cell_type"].astype(str).to_numpy()[drawn], []
    for number in (len(drawn), 200):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(
            known[:number], types[:number]
        )
        score = annotation_scores(
            others.obs["cell_type"].astype(str).to_numpy(), fitted.predict(new)
        )
        rows.append({"labelled_cells": number, "macro": score["macro"], "micro": score["micro"]})
    return rows


def types(arguments: argparse.Namespace) -> pd.DataFrame:
    """The network's own classifier from three starts, the same steps: donors 1244 and 1256 of kang, and velmeshev's held-out donors."""
    rows = []
    for name, (training, others) in labelled(arguments.data).items():
        for seed in range(arguments.seeds):
            drawn = np.random.default_rng(seed).permutation(training.n_obs)
            for start, model in starts(arguments, seed).items():
                for number in (1000, 200):
                    score = fine_tuned_types(
                        model, training[drawn[:number]].copy(), others, arguments.steps, seed
                    )
                    scores = {"macro": score["macro"], "micro": score["micro"]}
                    rows.append(
                        {
                            "set": name,
                            "labelled_cells": number,
                            "start": start,
                            "seed": seed,
                            **scores,
                        }
                    )
            print(pd.DataFrame(rows).tail(6).to_string(), flush=True)
    return spread(pd.DataFrame(rows), ["set", "labelled_cells", "start"], ["macro", "micro"])


def fine_tuned_types(
    start: Model, training: ad.AnnData, others: ad.AnnData, steps: int, seed: int
) -> dict:
    """F1 on other donors of a classifier fine-tuned whole, its head started from the embeddings."""
    files = Collection(
        [training], vocabulary=start.genes, label_key="cell_type", force=True, verbose=False
    )
    loop = TrainerConfig(steps=steps, batch_size=16, lr=1e-3, warmup=0.05, seed=seed)
    short = replace(NO_MASKING, genes_per_step=1536)
    tuned = finetune_classes(
        "annotate", files, model=start, loop=loop, sequence=short, balance=0.5, verbose=False
    )
    found = scmamba.annotate(others, model=tuned, force=True, return_result=True, verbose=False)
    (level,) = found.levels
    called = np.array(found.levels[level])[found.probabilities[level].argmax(axis=1)]
    return annotation_scores(others.obs["cell_type"].astype(str).to_numpy(), called)


def spread(rows: pd.DataFrame, by: list[str], columns: list[str]) -> pd.DataFrame:
    """Mean, minimum and maximum over the seeds."""
    table = rows.groupby(by, sort=False)[columns].agg(["mean", "min", "max"])
    table.columns = [
        stat if len(columns) == 1 else f"{column}_{stat}" for column, stat in table.columns
    ]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["passes", "mask-token", "pretraining", "types", "frozen"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cells", type=int, default=200, help="held-out cells of the table of passes"
    )
    parser.add_argument(
        "--start",
        nargs="+",
        default=["pre-trained", "not pre-trained", "brain-mini"],
        help="types, frozen: only these starts; rows of others stay in the table",
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    measure = {
        "passes": passes,
        "mask-token": mask_token,
        "pretraining": pretraining,
        "types": types,
        "frozen": frozen,
    }[arguments.what]
    table = measure(arguments)
    print(table.round(4).to_string(), flush=True)
    path = RESULTS / f"training_{arguments.what.replace('-', '_')}.tsv"
    head = f"# {' '.join(f'{k}={v}' for k, v in vars(arguments).items() if k in ('steps', 'seeds', 'seed', 'cells'))}; "
    head += f"{time.perf_counter() - started:.0f} s; {machine()}\n"
    if "start" in table.index.names and path.is_file():
        older = pd.read_csv(path, sep="\t", comment="#").set_index(table.index.names)
        table = pd.concat([older[~older.index.isin(table.index)], table])
    path.write_text(head + table.round(4).to_csv(sep="\t"))


if __name__ == "__main__":
    main()
