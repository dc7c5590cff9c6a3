"""Doublet detectors compared on hashed cell lines with known doublets and on brain nuclei with doublets simulated within donors.

    python -m benchmarks.doublets --data FOLDER [--set stoeckius velmeshev pbmc3k] [--only NAME ...] [--seeds 3] [--report]

Peers run where their packages are: Scrublet in this environment (scanpy), DoubletDetection and SOLO with the Python named by
``--peers-python`` (default ``.cache/peers/doublets/bin/python``; skipped if it is absent). Every score is kept in
``.cache/doublets``, so the command may be run in pieces; ``--report`` makes the tables and docs/doublets.md from what is there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import peak_memory

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / ".cache" / "doublets"
HELD_OUT = ["4341", "5403", "5864", "5958"]  # donors held out from brain-mini
UNCLEAR = ["Ambiguous", "Neuron unspecified", "Vascular unspecified"]
#: What follows the name of a set -> options of with_doublets.
KINDS_OF_PAIRS: dict[str, dict[str, bool]] = {
    "": {},
    "types": {"two_types": True},
    "matched": {"two_types": True, "matched": True},
}
OURS = {
    "scMamba fast": {},
    "scMamba fast, mixed": {"doublet_simulation": "mixed"},
    "scMamba fast, sums": {"doublet_simulation": "sum"},
    "scMamba fast, means (paper's doublets)": {"doublet_simulation": "mean"},
    "scMamba network": {"method": "network"},  # the paper's doublets: means
    "scMamba network, mixed": {"method": "network", "doublet_simulation": "mixed"},
    "scMamba network, sums": {"method": "network", "doublet_simulation": "sum"},
    "scMamba both": {"method": "both"},
}
PARTS = {
    "neighbours25": "nearest neighbors",
    "coarse5": "two clusters, coarse",
    "fine5": "two clusters, fine",
    "together": "cxds equivalent",
    "counts": "number of counts",
    "genes": "number of detected genes",
}
PEERS = ("Scrublet", "DoubletDetection", "SOLO", "bcds equivalent", "DoubletFinder equivalent")
ABSENT = {
    "DoubletFinder": "R package, distributed on GitHub only; row 'DoubletFinder equivalent' is our own code after its paper",
    "scDblFinder": "Bioconductor; not in the Debian or Python registries available here",
    "scds (cxds, bcds, hybrid)": "Bioconductor; rows 'cxds/bcds/hybrid equivalent' are our own code after its paper",
    "scHyena": "code and weights not published as a package",
}


# --- data ---------------------------------------------------------------------------------------------
def load(name: str, data: Path, seed: int = 0) -> Any:
    """AnnData of counts with obs ``truth`` and ``sample``; ``seed`` draws the doublets of the simulated sets."""
    import anndata as ad

    if name == "stoeckius":
        adata = ad.read_h5ad(data / "stoeckius2018_celllines_hashing_2000genes.h5ad")
        adata = adata[adata.obs["doublet_truth"] != "negative"].copy()
        adata.obs["truth"] = (adata.obs["doublet_truth"] == "doublet").to_numpy()
        adata.obs["sample"] = "all"
        return adata
    if name.startswith("velmeshev"):
        adata = ad.read_h5ad(data / "velmeshev2019_pfc_3types.h5ad")
        adata = adata[adata.obs["donor"].astype(str).isin(HELD_OUT)].copy()
        return with_doublets(adata, "donor", seed, **KINDS_OF_PAIRS[name.partition("_")[2]])
    if name.startswith("agarwal"):
        adata = ad.read_h5ad(data / "agarwal2020_substantia_nigra_cortex_2donors.h5ad")
        clear = ~adata.obs["cell_type"].astype(str).isin(UNCLEAR).to_numpy()
        adata = adata[adata.obs["pass_qc"].to_numpy(bool) & clear].copy()
        return with_doublets(adata, "sample", seed, **KINDS_OF_PAIRS[name.partition("_")[2]])
    if name == "kang":
        adata = ad.read_h5ad(data / "kang2018_ifnb_8donors_2cond.h5ad")
        call = adata.obs["demuxlet_call"].astype(str).to_numpy()
        adata, call = (
            adata[np.isin(call, ["SNG", "DBL"])].copy(),
            call[np.isin(call, ["SNG", "DBL"])],
        )
        adata.obs["truth"], adata.obs["homotypic"] = call == "DBL", False
        adata.obs["sample"] = adata.obs["condition"].astype(str)  # one library for each
        return adata
    adata = ad.read_h5ad(data / "pbmc3k_10x.h5ad")
    adata.obs["one"] = "all"
    return with_doublets(adata, "one", seed)


def with_doublets(
    adata: Any,
    donor: str,
    seed: int,
    share: float = 0.1,
    *,
    two_types: bool = False,
    matched: bool = False,
) -> Any:
    """A tenth of the droplets of each donor become sums of two of its cells, which are removed; any two, of one type or of two.

    ``two_types``: of two types only. ``matched``: molecules of the sum are dropped at random until as many are left as one of its two
    cells had, so that depth shows nothing.
    """
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    rng = np.random.default_rng([seed, 77])
    x = sparse.csr_matrix(adata.X)
    used, pairs = np.zeros(adata.n_obs, dtype=bool), []
    types = adata.obs["cell_type"].astype(str).to_numpy()
    for _, rows in sorted(adata.obs.groupby(donor, observed=True).indices.items()):
        order = rng.permutation(rows)
        number = round(
            share * len(rows) / (1 + share)
        )  # two cells are removed and one droplet is added
        pairs += pairs_of(order, types if two_types else None, number)
    a, b = np.array(pairs).T
    used[a] = used[b] = True
    both = sparse.csr_matrix(x[a] + x[b])
    if matched:
        own = np.asarray(x.sum(axis=1)).ravel()
        wanted = own[np.where(rng.random(len(a)) < 0.5, a, b)]
        for i in range(len(a)):
            part = slice(both.indptr[i], both.indptr[i + 1])
            left = rng.multivariate_hypergeometric(both.data[part].astype(np.int64), int(wanted[i]))
            both.data[part] = left
        both.eliminate_zeros()
    obs = pd.DataFrame(
        {
            "sample": np.r_[
                adata.obs[donor].astype(str)[~used], adata.obs[donor].astype(str).to_numpy()[a]
            ]
        }
    )
    obs["truth"] = np.r_[np.zeros((~used).sum(), bool), np.ones(len(a), bool)]
    obs["homotypic"] = np.r_[np.zeros((~used).sum(), bool), types[a] == types[b]]
    obs["types"] = np.r_[
        types[~used], [" + ".join(sorted(pair)) for pair in zip(types[a], types[b])]
    ]
    obs.index = [f"d{i}" for i in range(len(obs))]
    order = rng.permutation(len(obs))
    made = ad.AnnData(sparse.vstack([x[~used], both], format="csr"), obs=obs, var=adata.var[[]])
    return made[order].copy()


def pairs_of(order: np.ndarray, types: np.ndarray | None, number: int) -> list[tuple[int, int]]:
    """Pairs of different cells in the order given, of two types if ``types`` are given; fewer where a donor has too few of them."""
    free, found = list(order), []
    while len(found) < number and len(free) > 1:
        first = free.pop(0)
        if types is None:
            found.append((first, free.pop(0)))
            continue
        for place, second in enumerate(free):
            if types[second] != types[first]:
                found.append((first, free.pop(place)))
                break
    return found


# --- detectors: (adata, seed) -> score per droplet, larger more like a doublet -------------------------
def scrublet(adata: Any, seed: int) -> np.ndarray:
    import scanpy as sc

    several = adata.obs["sample"].nunique() > 1
    copy = adata.copy()
    sc.pp.scrublet(
        copy,
        batch_key="sample" if several else None,
        random_state=seed,
        verbose=False,
        threshold=0.25,
    )
    return copy.obs["doublet_score"].to_numpy()


def doubletdetection(adata: Any, seed: int) -> np.ndarray:
    import doubletdetection

    settings = {
        "n_iters": 10,
        "clustering_algorithm": "leiden",
        "standard_scaling": True,
        "n_jobs": 1,
    }
    detector = doubletdetection.BoostClassifier(random_state=seed, **settings)
    detector.fit(adata.X.tocsr().astype(float))
    detector.predict(p_thresh=1e-16, voter_thresh=0.5)
    return detector.doublet_score()


def solo(adata: Any, seed: int) -> np.ndarray:
    import scvi
    import torch

    torch.set_num_threads(1)
    scvi.settings.seed = seed
    adata = adata.copy()
    adata.X = adata.X.astype(np.float32)
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=100, accelerator="cpu", enable_progress_bar=False)
    detector = scvi.external.SOLO.from_scvi_model(model)
    detector.train(max_epochs=100, accelerator="cpu", enable_progress_bar=False)
    return detector.predict()["doublet"].to_numpy()


def bcds(adata: Any, seed: int) -> np.ndarray:
    """Boosted trees on the 500 most variable log values, real against summed pairs (Bais and Kostka 2020)."""
    from scipy import sparse
    from sklearn.ensemble import HistGradientBoostingClassifier

    from scmamba.data.doublet_simulation import simulate_doublets
    from scmamba.doublets.features import log_values, variable_genes

    counts = sparse.csr_matrix(adata.X, dtype=float)
    n = counts.shape[0]
    made = simulate_doublets(counts, np.zeros(n, dtype=int), n, recipe="sum", seed=seed)
    values = log_values(sparse.vstack([counts, made.counts], format="csr"), 1e4)
    values = values[:, variable_genes(values[:n], 500)].toarray()
    kind = np.arange(len(values)) >= n
    fitted = HistGradientBoostingClassifier(max_iter=100, max_leaf_nodes=31, random_state=seed).fit(
        values, kind
    )
    return fitted.predict_proba(values[:n])[:, 1]


def doubletfinder(adata: Any, seed: int) -> np.ndarray:
    """Share of averaged pairs among the neighbors, within each sample, the reach chosen by bimodality (McGinnis et al. 2019)."""
    score = np.zeros(adata.n_obs)
    for rows in adata.obs.groupby("sample", observed=True).indices.values():
        score[rows] = best_neighbour_share(adata.X[rows], seed)
    return score


def best_neighbour_share(counts: Any, seed: int) -> np.ndarray:
    """The share with pN 0.25 at the pK with the largest bimodality: mean over variance across pN."""
    reaches = np.r_[0.005, np.arange(0.01, 0.31, 0.01)]
    shares = {
        pn: neighbour_shares(counts, pn, reaches, seed) for pn in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
    }
    found = np.array([[bimodality(share) for share in shares[pn].T] for pn in shares])
    spread = found.var(axis=0)
    return shares[0.25][
        :,
        int(
            np.argmax(np.where(spread > 0, found.mean(axis=0) / np.maximum(spread, 1e-12) ** 2, -1))
        ),
    ]


def neighbour_shares(counts: Any, pn: float, reaches: np.ndarray, seed: int) -> np.ndarray:
    """(cells, reaches) shares of artificial droplets among the nearest pK of all droplets, in 10 components of 2,000 scaled genes."""
    import anndata as ad
    import scanpy as sc
    from scipy import sparse

    from scmamba.neighbors.knn import nearest_neighbors

    rng, n = np.random.default_rng(seed), counts.shape[0]
    a, b = rng.choice(n, (2, round(n * pn / (1 - pn))))
    both = ad.AnnData(
        sparse.vstack([counts, (counts[a] + counts[b]) / 2], format="csr").astype(np.float32)
    )
    sc.pp.normalize_total(both, target_sum=1e4)
    sc.pp.log1p(both)
    sc.pp.highly_variable_genes(both, n_top_genes=min(2000, both.n_vars))
    both = both[:, both.var["highly_variable"]].copy()
    sc.pp.scale(both, max_value=10)
    sc.pp.pca(both, n_comps=10, random_state=seed)
    points = both.obsm["X_pca"].astype(float)
    k = np.maximum((reaches * len(points)).round().astype(int), 1)
    near = nearest_neighbors(points[:n], points, int(k.max()) + 1)[:, 1:]
    made = np.cumsum(near >= n, axis=1)
    return made[:, k - 1] / k


def bimodality(values: np.ndarray) -> float:
    """Bimodality coefficient of the density of ``values`` at evenly spaced points, as in DoubletFinder."""
    from scipy.stats import gaussian_kde, kurtosis, skew

    if values.std() < 1e-9:
        return 0.0
    density = gaussian_kde(values)(np.linspace(values.min(), values.max(), len(values)))
    n = len(density)
    return float(
        (skew(density, bias=False) ** 2 + 1)
        / (kurtosis(density, bias=False) + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))
    )


DETECTORS = {
    "Scrublet": scrublet,
    "DoubletDetection": doubletdetection,
    "SOLO": solo,
    "bcds equivalent": bcds,
    "DoubletFinder equivalent": doubletfinder,
}
ELSEWHERE = ("DoubletDetection", "SOLO")


def parts(adata: Any, seed: int) -> dict[str, np.ndarray]:
    """Each feature of the fast detector alone."""
    from scipy import sparse

    from scmamba.data.doublet_simulation import simulate_doublets
    from scmamba.doublets.features import Clusters, Coexpression, Mixtures, gather

    counts = sparse.csr_matrix(adata.X, dtype=float)
    codes = adata.obs["sample"].astype("category").cat.codes.to_numpy().astype(int)
    clusters = Clusters.find(counts, seed=seed)
    mixtures = {
        "coarse": Mixtures(counts, clusters.coarse, suspected=0.1, seed=seed),
        "fine": Mixtures(counts, clusters.fine, suspected=0.1, seed=seed),
    }
    made = simulate_doublets(counts, codes, len(codes), cluster=clusters.fine, seed=seed)
    table = gather(counts, made.counts, mixtures, Coexpression(counts), seed=seed).table[
        : len(codes)
    ]
    return {name: table[column].to_numpy() for column, name in PARTS.items()}


def ours(adata: Any, seed: int, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    import scmamba

    several = adata.obs["sample"].nunique() > 1
    rate = float(
        adata.obs["truth"].mean()
    )  # calls at the true rate, so that the calls of all detectors can be compared; the scores do not depend on it
    sample = "sample" if several else None
    found = scmamba.find_doublets(
        adata, sample_key=sample, expected_rate=rate, seed=seed, copy=True, verbose=False, **options
    )
    return found.obs["scmamba_doublet_score"].to_numpy(), found.obs["scmamba_doublet"].to_numpy()


# --- running ------------------------------------------------------------------------------------------
def keep(
    set_name: str,
    detector: str,
    seed: int,
    score: np.ndarray,
    called: np.ndarray | None,
    seconds: float,
) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    peak = peak_memory()
    about = json.dumps(
        {"set": set_name, "detector": detector, "seed": seed, "seconds": seconds, "peak_mib": peak}
    )
    extra = {} if called is None else {"called": called}
    np.savez(kept_path(set_name, detector, seed), score=score, about=about, **extra)
    print(f"{set_name}: {detector}, seed {seed}: {seconds:.0f} s", flush=True)


def kept_path(set_name: str, detector: str, seed: int) -> Path:
    return KEPT / f"{set_name}__{''.join(c if c.isalnum() else '_' for c in detector)}__{seed}.npz"


def run_one(set_name: str, detector: str, seed: int, data: Path) -> None:
    adata = load(set_name, data)
    started = time.perf_counter()
    if detector == "parts":
        for name, score in parts(adata, seed).items():
            keep(set_name, name, seed, score, None, time.perf_counter() - started)
        return
    if detector in OURS:
        score, called = ours(adata, seed, OURS[detector])
        keep(set_name, detector, seed, score, called, time.perf_counter() - started)
        return
    keep(
        set_name,
        detector,
        seed,
        DETECTORS[detector](adata, seed),
        None,
        time.perf_counter() - started,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument(
        "--set", dest="sets", nargs="*", default=["stoeckius", "velmeshev", "pbmc3k"]
    )
    parser.add_argument("--only", nargs="*", default=["parts", *OURS, *PEERS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--peers-python", type=Path, default=HERE.parent / ".cache/peers/doublets/bin/python"
    )
    parser.add_argument(
        "--one",
        nargs=3,
        metavar=("SET", "DETECTOR", "SEED"),
        help="internal: one run in this process",
    )
    parser.add_argument("--report", action="store_true", help="only make the tables and the page")
    options = parser.parse_args()
    if options.one:
        run_one(options.one[0], options.one[1], int(options.one[2]), options.data)
        return
    measured = False
    for set_name in [] if options.report else options.sets:
        for seed in range(options.seeds):
            for detector in options.only:
                python = options.peers_python if detector in ELSEWHERE else Path(sys.executable)
                first = next(iter(PARTS.values())) if detector == "parts" else detector
                if kept_path(set_name, first, seed).exists() or not python.exists():
                    continue
                # A separate process for each, so that peak memory is the detector's own.
                call = [
                    str(python),
                    __file__,
                    "--data",
                    str(options.data),
                    "--one",
                    set_name,
                    detector,
                    str(seed),
                ]
                done = subprocess.run(call, capture_output=True, text=True)
                measured |= done.returncode == 0
                print(
                    done.stdout.strip()
                    or f"{set_name}: {detector} failed: {done.stderr.strip()[-300:]}",
                    flush=True,
                )
    from benchmarks.doublets_report import report

    report(options.data, load, KEPT, HERE, ABSENT, measured)


if __name__ == "__main__":
    main()
