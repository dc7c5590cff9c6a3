"""Embeddings of cells without labels, scMamba's beside others, on donors that brain-mini was not trained on.

    python -m benchmarks.embeddings --data FOLDER [--set heldout kang] [--seeds 3] [--peers-python PYTHON]
        [--geneformer FOLDER] [--scgpt FOLDER]

Every method is a function of an AnnData of raw counts and a seed that returns one vector for each cell. Then, for all of them: 15 nearest
neighbors, Leiden at resolutions 0.1 to 2.0, NMI and ARI of the best clustering with the types, silhouette of types, and the mixing of
donors within types (``scmamba.evaluation.clusters``); and the accuracy of a 20-nearest-neighbor classifier that is given the types of all
donors but one. scVI runs with the Python named by ``--peers-python``. Geneformer and scGPT need their weights in a local folder: nothing
is fetched. A method whose package or weights are absent has a row that states so.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.clusters import TITLES, load, raw, trained_scvi
from benchmarks.machine import machine_of

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / ".cache" / "embeddings"
COLUMNS = ("NMI", "ARI", "ASW", "neighbor accuracy", "mixing_donor")


def components(adata: Any, seed: int, path: Path | None = None) -> np.ndarray:
    """50 principal components of the 2,000 most variable genes."""
    from scmamba.evaluation.clusters import leading_components

    return leading_components(raw(adata, seed), seed=seed)


def scmamba_of(name: str) -> Callable[..., np.ndarray]:
    """The embedding of one of the shipped models."""

    def embed(adata: Any, seed: int, path: Path | None = None) -> np.ndarray:
        import scmamba

        done = scmamba.embed(adata, model=name, copy=True, verbose=False)
        return done.obsm["X_scmamba"]

    return embed


def scvi(adata: Any, seed: int, path: Path | None = None) -> np.ndarray:
    """The latent means of scVI, trained on these cells without donors."""
    return trained_scvi(adata, seed, None).get_latent_representation()


def scgpt(adata: Any, seed: int, path: Path | None = None) -> np.ndarray:
    """scGPT's cell embedding by its own function, from a folder with best_model.pt, vocab.json and args.json."""
    import scgpt as package

    done = package.tasks.embed_data(
        adata.copy(), str(path), gene_col="index", device="cpu", use_fast_transformer=False
    )
    return np.asarray(done.obsm["X_scGPT"])


def geneformer(
    adata: Any, seed: int, path: Path | None = None, *, batch: int = 8, length: int = 2048
) -> np.ndarray:
    """Mean of the hidden states before the last layer of Geneformer (Theodoris et al. 2023), by transformers.

    ``path`` holds the weights (``config.json``, ``model.safetensors``) and the two dictionaries of its package,
    ``token_dictionary*.pkl`` (Ensembl ID -> token) and ``gene_median_dictionary*.pkl`` (Ensembl ID -> median of the
    non-zero values). A pickle can run code: take them from their authors only.
    """
    import torch
    from transformers import AutoModel

    assert path is not None
    tokens, medians = (_dictionary(path, name) for name in ("token", "gene_median"))
    model = AutoModel.from_pretrained(path, local_files_only=True).eval()
    length = min(length, int(model.config.max_position_embeddings))
    sequences = [s[:length] for s in rank_values(adata, tokens, medians)]
    out = np.zeros((adata.n_obs, model.config.hidden_size), dtype=np.float32)
    order = np.argsort([-len(s) for s in sequences], kind="stable")
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            longest = max(1, *(len(sequences[i]) for i in rows))
            ids = torch.full((len(rows), longest), int(tokens.get("<pad>", 0)))
            mask = torch.zeros((len(rows), longest), dtype=torch.long)
            for j, i in enumerate(rows):
                ids[j, : len(sequences[i])] = torch.as_tensor(sequences[i], dtype=torch.long)
                mask[j, : len(sequences[i])] = 1
            states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            hidden = states.hidden_states[-2] * mask[:, :, None]
            out[rows] = (hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
    return out


def _dictionary(path: Path, name: str) -> dict[str, Any]:
    files = sorted(path.glob(f"{name}_dictionary*.pkl"))
    if not files:
        raise FileNotFoundError(f"{path} has no {name}_dictionary*.pkl")
    return pickle.loads(files[0].read_bytes())


def rank_values(adata: Any, tokens: dict[str, Any], medians: dict[str, Any]) -> list[np.ndarray]:
    """Tokens of the expressed genes of each cell, by counts over the gene's median, the highest first."""
    from scipy import sparse

    from scmamba.annotation.expression import all_human_genes
    from scmamba.genes import match_genes

    ids = np.asarray(all_human_genes().ensembl_ids)
    place = match_genes(list(adata.var_names), all_human_genes()).positions
    names = np.where(place >= 0, ids[np.maximum(place, 0)], "")
    known = np.array([name in tokens and name in medians for name in names])
    counts = sparse.csr_matrix(adata.X, dtype=np.float64)
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1)
    counts = counts[:, known]
    token = np.array([tokens[name] for name in names[known]], dtype=np.int64)
    median = np.array([float(medians[name]) for name in names[known]])
    found = []
    for i in range(counts.shape[0]):
        row = slice(counts.indptr[i], counts.indptr[i + 1])
        genes = counts.indices[row]
        value = counts.data[row] * 1e4 / totals[i] / median[genes]
        found.append(token[genes[np.argsort(-value, kind="stable")]])
    return found


METHODS: dict[str, Callable[..., np.ndarray]] = {
    "principal components": components,
    "scMamba, brain-mini": scmamba_of("brain-mini"),
    "scMamba, brain-base": scmamba_of("brain-base"),
    "scVI": scvi,
    "Geneformer": geneformer,
    "scGPT": scgpt,
}
#: Option with the folder of the weights.
WEIGHTS = {"Geneformer": "geneformer", "scGPT": "scgpt"}


def neighbor_accuracy(points: np.ndarray, types: np.ndarray, donors: np.ndarray) -> float:
    """Share of cells whose type is that of most of their 20 nearest cells of other donors (cosine)."""
    from sklearn.neighbors import KNeighborsClassifier

    right = np.zeros(len(points), dtype=bool)
    for donor in np.unique(donors):
        own = donors == donor
        model = KNeighborsClassifier(min(20, int((~own).sum())), metric="cosine")
        right[own] = model.fit(points[~own], types[~own]).predict(points[own]) == types[own]
    return float(right.mean())


def kept_path(set_name: str, method: str, seed: int) -> Path:
    return KEPT / f"{set_name}__{''.join(c if c.isalnum() else '_' for c in method)}__{seed}.npz"


def run_one(set_name: str, method: str, seed: int, data: Path, weights: Path | None) -> None:
    """Embed one set and keep the points."""
    adata = load(set_name, data, seed)
    started = time.perf_counter()
    points = METHODS[method](adata, seed, weights)
    about = {"set": set_name, "method": method, "seed": seed}
    about["seconds"] = round(time.perf_counter() - started, 1)
    KEPT.mkdir(parents=True, exist_ok=True)
    np.savez(kept_path(set_name, method, seed), points=points, about=json.dumps(about))
    print(f"{set_name}: {method}, seed {seed}: {about['seconds']} s", flush=True)


def scored(path: Path, data: Path) -> dict[str, Any]:
    """The row of one kept run."""
    from scmamba.evaluation.clusters import zero_imputation_scores

    kept = np.load(path)
    about = json.loads(str(kept["about"]))
    obs = load(about["set"], data, about["seed"]).obs
    types, donors = (obs[key].astype(str).to_numpy() for key in ("cell_type", "donor"))
    scores, _ = zero_imputation_scores(
        kept["points"], types, donors, embedding=True, seed=about["seed"]
    )
    scores["neighbor accuracy"] = neighbor_accuracy(kept["points"], types, donors)
    return {**about, "dimensions": kept["points"].shape[1], **{c: scores[c] for c in COLUMNS}}


def report(data: Path, sets: list[str], absent: dict[str, str], measured: bool) -> str:
    """The tables of all kept runs, in results/embeddings.tsv and .md."""
    rows = [scored(path, data) for path in sorted(KEPT.glob("*.npz"))]
    table = pd.DataFrame(rows).sort_values(["set", "method", "seed"])
    target = HERE / "results"
    table.round(4).to_csv(target / "embeddings.tsv", sep="\t", index=False, lineterminator="\n")
    parts = ["# Embeddings of cells, without labels", (__doc__ or "").split("\n\n")[2].strip()]
    for name in sets:
        own = table[table["set"] == name]
        if own.empty:
            continue
        means = own.groupby("method")[[*COLUMNS, "seconds"]].mean()
        head = ["embedding", "seeds", "dimensions", *COLUMNS, "seconds"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for method in METHODS:
            if method in means.index:
                mine = own[own["method"] == method]
                numbers = [
                    f"**{v:.3f}**" if f"{v:.3f}" == f"{means[c].max():.3f}" else f"{v:.3f}"
                    for c, v in means.loc[method, list(COLUMNS)].items()
                ]
                cells = [method, str(len(mine)), str(mine["dimensions"].iloc[0]), *numbers]
                lines.append(f"| {' | '.join(cells)} | {means.loc[method, 'seconds']:.0f} |")
            else:
                why = absent.get(method, "not run")
                lines.append(f"| {method} | {why} |" + " |" * (len(head) - 2))
        parts += [f"## {TITLES[name]}", "\n".join(lines)]
    text = "\n\n".join([*parts, f"Machine: {machine_of('embeddings', measured)}."]) + "\n"
    (target / "embeddings.md").write_text(text, encoding="utf-8")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--set", dest="sets", nargs="*", default=["heldout", "kang"])
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--peers-python", type=Path, default=HERE.parent / ".cache/peers/doublets/bin/python"
    )
    for name in WEIGHTS.values():
        parser.add_argument(f"--{name}", type=Path, help="folder of its weights")
    parser.add_argument("--one", nargs=3, metavar=("SET", "METHOD", "SEED"), help="internal")
    options = parser.parse_args()
    paths = {method: getattr(options, name) for method, name in WEIGHTS.items()}
    if options.one:
        name, method, seed = options.one
        run_one(name, method, int(seed), options.data, paths.get(method))
        return
    absent = {m: "no weights given" for m, path in paths.items() if path is None}
    measured = False
    for method in options.only:
        elsewhere = method == "scVI" and options.peers_python.exists()
        python = options.peers_python if elsewhere else Path(sys.executable)
        for name in options.sets if method not in absent else ():
            for seed in range(options.seeds):
                if kept_path(name, method, seed).exists() or method in absent:
                    continue
                more = [f"--{WEIGHTS[method]}", str(paths[method])] if method in WEIGHTS else []
                call = [str(python), "-m", "benchmarks.embeddings", "--data", str(options.data)]
                done = subprocess.run(
                    [*call, *more, "--one", name, method, str(seed)],
                    capture_output=True,
                    text=True,
                    cwd=HERE.parent,
                    env=os.environ | {"PYTHONPATH": str(HERE.parent / "python")},
                )
                measured |= done.returncode == 0
                if done.returncode:
                    absent[method] = f"not run: {done.stderr.strip().splitlines()[-1][:100]}"
                print(done.stdout.strip() or f"{name}: {method}: {absent[method]}", flush=True)
    print(report(options.data, options.sets, absent, measured))


if __name__ == "__main__":
    main()
