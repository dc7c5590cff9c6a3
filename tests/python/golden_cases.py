"""Results of the shipped models and of the statistics on small fixed cells; recorded by ``scripts/record_golden.py``.

Answers are named ``case/model/column`` (``case/column`` where no model takes part): by what they mean, not by where they are
computed. Where a verb or one of its columns gets another name, change ``NAMES`` or the call below, and nothing in the recorded file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from reference_numbers import read_pack

import scmamba
from scmamba import deg

FOLDER = Path(__file__).resolve().parents[1] / "data" / "golden"
MODELS = ("brain-mini", "brain-base")
#: Meaning -> its current place in the result of the verb.
NAMES = {
    "imputed": "scmamba",  # layers
    "embedding": "X_scmamba",  # obsm
    "low depth": "scmamba_low_depth",  # obs, as the next three
    "score": "scmamba_doublet_score",
    "doublet": "scmamba_doublet",
    "parents": "scmamba_doublet_parents",
    "p": "p_val",  # tables of differential expression
    "log2 fold change": "avg_log2FC",
    "detected 1": "pct.1",
    "detected 2": "pct.2",
    "adjusted p": "p_val_adj",
    "false-discovery rate": "p_val_bh",
    "log2 fold change of donors": "log2FC",
    "mean log2": "mean_log2",
    "t": "t",
    "degrees of freedom": "df",
}
MARKERS = (
    "p",
    "log2 fold change",
    "detected 1",
    "detected 2",
    "adjusted p",
    "false-discovery rate",
)
DONORS = ("p", "log2 fold change of donors", "mean log2", "t", "degrees of freedom", "adjusted p")
#: The size that Triton's interpreter, thousands of times slower than the other backends, computes in a few seconds.
SMALL = {"rows": 1, "width": 40}
QUIET = {"verbose": False}
Answers = dict[str, np.ndarray]


@cache
def _cells() -> ad.AnnData:
    stored = read_pack(FOLDER / "input.npz.xz")
    counts = sp.csr_matrix(
        (stored["count"].astype(np.float32), stored["gene"].astype(np.int32), stored["ends"]),
        stored["shape"],
    )
    obs = pd.DataFrame({n[4:]: a.astype(object) for n, a in stored.items() if n.startswith("obs/")})
    obs.index = [f"cell{i}" for i in range(len(obs))]
    obs["kind"] = np.where(obs["cell_type"].isin(["Excitatory", "Inhibitory"]), "Neuron", "Glia")
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=stored["genes"].astype(object)))


def cells() -> ad.AnnData:
    """160 simulated nuclei of six donors, 2,000 genes; rows and labels as stored."""
    return _cells().copy()


def few() -> ad.AnnData:
    """Twenty of the cells: the input of the networks."""
    return cells()[::8].copy()


def known() -> ad.AnnData:
    """The other cells: the reference for annotation."""
    whole = cells()
    return whole[np.arange(whole.n_obs) % 8 != 0].copy()


@cache
def model(name: str) -> scmamba.Model:
    return scmamba.load_model(name)


def forward(
    name: str, backend: str | None = None, exact: bool = False, rows: int = 4, width: int = 800
) -> Answers:
    """The bare network on four cells with a quarter of their counts and some zeros masked; ``exact``: in float64, step by step."""
    opened = scmamba.load_model(name)
    opened.network.backend = backend
    if exact:
        opened.network.double().backend = "reference"
    counts = few()[:rows].X.toarray()
    place = {gene: i for i, gene in enumerate(opened.genes.symbols)}
    columns = [i for i, gene in enumerate(_cells().var_names) if gene in place][:width]
    genes = torch.tensor([place[_cells().var_names[i]] for i in columns])
    x = np.log1p(1e4 * counts[:, columns] / counts.sum(axis=1, keepdims=True))
    mask = np.add.outer(np.arange(rows), np.arange(len(columns))) % 4 == 0
    mask &= (x > 0) | (np.arange(len(columns)) % 5 == 0)
    values = sp.csr_matrix(x)
    return {
        "reconstruction": opened.reconstruct(
            torch.from_numpy(np.where(mask, 0, x)), mask, genes=genes
        ).numpy(),
        "embedding": opened.cell_embedding(torch.from_numpy(x), genes=genes).numpy(),
        "log ratio": opened.log_ratio(values, genes.numpy()),
    }


def impute(name: str, **options) -> Answers:
    data = scmamba.impute(few()[:10].copy(), model=model(name), force=True, **QUIET, **options)
    return {
        "imputed": data.layers[NAMES["imputed"]].toarray(),
        "low depth": data.obs[NAMES["low depth"]].to_numpy(),
    }


def embed(name: str) -> Answers:
    return {
        "embedding": scmamba.embed(few(), model=model(name), force=True, **QUIET).obsm[
            NAMES["embedding"]
        ]
    }


def annotate(query: ad.AnnData, **options) -> Answers:
    found = scmamba.annotate(query, return_result=True, **options, **QUIET)
    return {
        "labels": found.labels().astype("U"),
        "types": np.array(found.levels["type"]),
        "probabilities": found.probabilities["type"],
    }


def from_reference() -> Answers:
    """On a sixth of the genes, so that not every cell has a certain type."""
    return annotate(
        few()[:, ::6].copy(),
        reference=known()[:, ::6].copy(),
        label_key="cell_type",
        cache=False,
        finetune_steps=0,
    )


def from_markers() -> Answers:
    return annotate(few(), markers="panel", force=True)


def doublets() -> Answers:
    """The nuclei, and twelve simulated heterotypic doublets."""
    data = cells()
    pairs = data.X[:24:2] + data.X[1:24:2]
    droplets = ad.AnnData(sp.vstack([data.X, pairs], format="csr"), var=data.var)
    droplets.obs["library"] = np.where(np.arange(droplets.n_obs) % 2, "a", "b")
    obs = scmamba.find_doublets(
        droplets, sample_key="library", identification_rate=0.08, **QUIET
    ).obs
    return {
        "score": obs[NAMES["score"]].to_numpy(),
        "doublet": obs[NAMES["doublet"]].to_numpy().astype(bool),
        "parents": obs[NAMES["parents"]].astype(str).to_numpy().astype("U"),
    }


def _table(table: pd.DataFrame, columns: tuple[str, ...]) -> Answers:
    """Sorted by gene, so that ties in p do not matter."""
    table = table.sort_index()
    return {"genes": table.index.to_numpy().astype("U")} | {
        name: table[NAMES[name]].to_numpy() for name in columns
    }


def markers(**options) -> Answers:
    return _table(deg.find_markers(cells(), "kind", "Neuron", "Glia", **options), MARKERS)


def pseudobulk(**options) -> Answers:
    return _table(
        deg.pseudobulk(cells(), "disease", "donor", "AD", "Control", min_cells=3, **options), DONORS
    )


def robustness() -> Answers:
    data = cells()
    data.layers["smooth"] = _smoothed(data)
    options = {
        "layers": ("counts", "smooth"),
        "ratios": (0.5, 0.9),
        "permutations": 4,
        "donors": "2v2",
        "null_permutations": 4,
    }
    found = deg.robustness(
        data,
        "kind",
        "donor",
        group1="Neuron",
        group2="Glia",
        min_cells=3,
        n_jobs=1,
        **options,
        **QUIET,
    )
    answers: Answers = {}
    for kind, table in (("runs", found.runs), ("nulls", found.nulls), ("full", found.full)):
        for column in table:
            values = table[column].to_numpy()
            text = values.dtype.kind in "OUTS" or str(table[column].dtype) in (
                "str",
                "string",
                "category",
            )
            answers[f"{kind}: {column}"] = (
                np.asarray(table[column].astype(str)).astype("U") if text else values.astype(float)
            )
    return answers


def _smoothed(data: ad.AnnData) -> sp.csr_matrix:
    """Log values in which every cell is averaged with the next cell of the table."""
    x = data.X.toarray()
    logs = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))
    return sp.csr_matrix((logs + np.roll(logs, 1, axis=0)) / 2)


CASES: dict[str, Callable[[], Answers]] = {
    **{f"impute/{m}": lambda m=m: impute(m, adapt_steps=0) for m in MODELS},
    **{
        f"impute as published/{m}": lambda m=m: impute(m, adapt_steps=0, method="masked", passes=2)
        for m in MODELS
    },
    **{f"embed/{m}": lambda m=m: embed(m) for m in MODELS},
    "annotate by reference": from_reference,
    "annotate by markers": from_markers,
    "doublets": doublets,
    "markers": markers,
    "markers of Seurat 4": lambda: markers(seurat="4"),
    "markers, rank sums": lambda: markers(test="wilcox"),
    "markers with a latent variable": lambda: markers(covariates=["sex"], min_pct=0.3),
    "pseudobulk": pseudobulk,
    "pseudobulk with a covariate": lambda: pseudobulk(covariates="sex"),
    "robustness": robustness,
}
