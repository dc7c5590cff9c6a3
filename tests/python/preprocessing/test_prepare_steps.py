"""The steps of the preparation on small hand-made cells and clusters: filters at their limits, panel scores, names."""

from __future__ import annotations

from dataclasses import asdict

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmamba.genes import annotation
from scmamba.preprocessing import PrepareOptions, _prepare, analysis, cluster_labels
from scmamba.preprocessing import studies as studies_module
from scmamba.preprocessing.cluster_labels import (
    DOUBLET,
    MYELOID,
    NEURON_BOTH,
    NEURON_NEITHER,
    UNIDENTIFIED,
    name_clusters,
    panel_scores,
)
from scmamba.preprocessing.steps import StepFolder, run_identity
from scmamba.utils.errors import DataError, ScMambaError


def test_settings_are_those_of_the_paper():
    assert asdict(PrepareOptions()) == dict(
        donor_key="donor",
        min_total=200,
        min_cells_per_donor=200,
        min_cell_fraction=0.005,
        n_top_genes=2000,
        target_sum=50_000,
        n_components=20,
        n_neighbors=40,
        resolution=1.8,
        max_doublet_score=0.1,
        min_score=0.2,
        min_margin=0.1,
        seed=0,
    )
    assert len(cluster_labels.brain_panels()) == 8 and {
        DOUBLET,
        UNIDENTIFIED,
        NEURON_BOTH,
        NEURON_NEITHER,
        MYELOID,
    } == set(cluster_labels.LEFT_OVER)


def study(
    totals: list[int], donors: list[str | None], names: list[str], seed: int = 0
) -> ad.AnnData:
    """Cells with these totals over genes with these names."""
    counts = (
        np.random.default_rng(seed).integers(0, 2, (len(totals), len(names))).astype(np.float32)
    )
    counts[:, 0] = np.array(totals) - counts[:, 1:].sum(axis=1)
    obs = pd.DataFrame({"donor": donors}, index=[f"c{i}" for i in range(len(totals))])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=names))


def genes(where: str = "1", n: int = 20) -> list[str]:
    table = annotation()
    return list(table.loc[table.chromosome == where, "ensembl_id"].drop_duplicates()[:n])


def test_studies_are_read_by_ensembl_id_without_the_y_chromosome():
    names = [*genes(), *genes("Y", 3), "nothing"]
    first = study([300] * 6, list("aab") + ["b", None, "b"], names)
    (alone,) = studies_module.read_studies(first, "donor")
    assert list(alone.var_names) == sorted(genes(), key=list(alone.var_names).index) and set(
        alone.var_names
    ) == set(genes())
    where = [names.index(g) for g in alone.var_names]
    np.testing.assert_array_equal(alone.X.toarray(), first.X.toarray()[:, where])
    assert (
        alone.obs["donor"].tolist() == ["a", "a", "b", "b", "", "b"]
        and alone.obs["study"].tolist() == ["study1"] * 6
    )
    assert alone.obs_names.tolist() == first.obs_names.tolist() and "symbol" in alone.var
    pair = studies_module.read_studies([first, study([300] * 2, ["a", "z"], genes(n=4))], "donor")
    assert pair[1].obs["donor"].tolist() == ["study2:a", "study2:z"] and pair[
        1
    ].obs_names.tolist() == ["study2:c0", "study2:c1"]
    twice = study([300] * 3, list("abc"), genes(n=6))
    twice.var_names = [*genes(n=5), genes(n=1)[0] + ".2"]  # a version of the first gene's ID
    (joined,) = studies_module.read_studies(twice, "donor")
    first_gene = list(joined.var_names).index(genes(n=1)[0])
    np.testing.assert_array_equal(
        joined.X.toarray()[:, first_gene], twice.X.toarray()[:, [0, 5]].sum(axis=1)
    )


def test_filters_at_their_limits():
    config = PrepareOptions(min_total=200, min_cells_per_donor=30, min_cell_fraction=0.05)
    totals = [199] + [200] * 30 + [500] * 29 + [199] + [500] * 31 + [500] * 40
    donors = ["a"] * 31 + ["b"] * 30 + ["c"] * 31 + [""] * 40
    cells = study(totals, donors, [f"g{i}" for i in range(30)], 1)
    dense = cells.X.toarray()
    dense[:, 20:] = 0
    kept = np.r_[1:31, 61:92]
    for column, number in ((20, 3), (21, 4), (22, 61)):  # a twentieth of 61 cells is 3.05
        dense[kept[:number], column] = 1
    dense[0, 23] = 1  # detected in a cell that is removed
    dense[:, 0] += np.array(totals) - dense.sum(axis=1)
    cells.X = sparse.csr_matrix(dense)
    found = analysis.filter_cells([cells], config, False)
    assert set(found.obs["donor"]) == {"a", "c"} and found.n_obs == 61
    deep = dense.sum(axis=1) >= 200
    rows = [i for i in range(len(totals)) if deep[i] and donors[i] in ("a", "c")]
    assert found.obs_names.tolist() == [f"c{i}" for i in rows]
    share = (dense[rows] > 0).mean(axis=0)
    expected = [f"g{i}" for i in range(30) if share[i] >= 0.05]
    assert found.var_names.tolist() == expected and "g22" in expected and "g23" not in expected
    np.testing.assert_array_equal(found.X.toarray(), dense[rows][:, share >= 0.05])
    with pytest.raises(
        DataError,
        match=r"0 of 132 cells are left, and at least 50 are needed: 130 have 200 counts, and donors need 300",
    ):
        analysis.filter_cells([cells], PrepareOptions(min_cells_per_donor=300), False)
    other = study([400] * 60, ["q"] * 60, ["g1", "new"], 2)
    other.obs_names = [f"x{i}" for i in range(60)]
    both = analysis.filter_cells([cells, other], config, False)
    assert "new" in both.var_names and both.n_obs == len(rows) + 60
    assert (
        not both[found.obs_names, "new"].X.sum()
        and both[other.obs_names, "new"].X.sum() == other.X.toarray()[:, 1].sum()
    )
    other.obs_names = cells.obs_names[:60]
    with pytest.raises(DataError, match="names are duplicated"):
        analysis.filter_cells([cells, other], config, False)


def clusters() -> tuple[ad.AnnData, np.ndarray]:
    """Sixty cells in three clusters; each expresses its own genes."""
    rng = np.random.default_rng(0)
    cluster = np.repeat([2, 5, 7], [10, 20, 30])
    counts = rng.poisson(
        np.where(np.arange(12)[None] // 4 == np.searchsorted([2, 5, 7], cluster)[:, None], 8.0, 1.0)
    )
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(12)]}, index=[f"e{i}" for i in range(12)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=var), cluster


def test_panel_scores_are_mean_z_scores_of_the_clusters():
    cells, cluster = clusters()
    panels = {"one": ["S0", "S1", "gone"], "two": ["S5"], "none": ["gone"]}
    found = panel_scores(cells, cluster, panels)
    counts = cells.X.toarray().astype(float)
    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    z = (logs - logs.mean(axis=0)) / logs.std(axis=0)
    assert found.index.tolist() == [2, 5, 7] and found["none"].isna().all()
    for c in (2, 5, 7):
        assert found.loc[c, "one"] == pytest.approx(z[cluster == c][:, [0, 1]].mean(), abs=1e-5)
        assert found.loc[c, "two"] == pytest.approx(z[cluster == c][:, 5].mean(), abs=1e-5)


def names_of(
    rows: list[list[float]], doublet: list[float] | None = None, brain: bool = True, **config: float
) -> list[str]:
    columns = ["Excitatory neuron", "Inhibitory neuron", "Microglia", "_neuron", "_myeloid"][
        : len(rows[0])
    ]
    scores = pd.DataFrame(rows, columns=columns)
    return list(
        name_clusters(
            scores, pd.Series(doublet or [0.0] * len(rows)), PrepareOptions(**config), brain=brain
        )
    )


def test_names_of_clusters_at_the_limits():
    exc, inh, mic = "Excitatory neuron", "Inhibitory neuron", "Microglia"
    assert names_of([[0.2, 0, 0, 0, 0], [0.199, 0, 0, 0, 0]]) == [exc, UNIDENTIFIED]
    assert names_of([[1, 0, 0, 0, 0]] * 2, [0.1, 0.101]) == [exc, DOUBLET]
    # Both types of neurons: each at least .2 and less than .1 apart.
    assert names_of([[0.5, 0.401, 0, 0, 0], [0.5, 0.399, 0, 0, 0], [0.25, 0.199, 0, 0, 0]]) == [
        NEURON_BOTH,
        exc,
        exc,
    ]
    assert names_of([[0.4, 0.45, 0.9, 0, 0]]) == [mic]  # the best panel is neither of the two
    assert names_of([[0.1, 0.1, 0, 0.2, 0], [0.1, 0.1, 0, 0.19, 0]]) == [
        NEURON_NEITHER,
        UNIDENTIFIED,
    ]
    assert names_of(
        [
            [0, 0, 0.5, 0, 0.6],
            [0, 0, 0.5, 0, 0.5],
            [0, 0, 0.1, 0, 0.2],
            [0, 0, 0.1, 0, 0.19],
            [0.5, 0, 0, 0, 0.9],
        ]
    ) == [MYELOID, mic, MYELOID, UNIDENTIFIED, exc]
    assert names_of([[0.5, 0.45, 0], [0.1, 0.1, 0.1]], brain=False) == [exc, UNIDENTIFIED]
    assert names_of([[0.5, 0.35, 0, 0, 0]], min_margin=0.2) == [NEURON_BOTH] and names_of(
        [[0.5, 0, 0, 0, 0]], min_score=0.6
    ) == [UNIDENTIFIED]
    assert names_of([[np.nan, 0.3, np.nan, 0, 0], [np.nan] * 3 + [0.0, 0.0]]) == [inh, UNIDENTIFIED]


@pytest.mark.parametrize("own", [True, False])
def test_the_result_has_the_columns_of_every_step(own):
    cells, cluster = clusters()
    panels = {
        "Excitatory neuron": ("S0", "S1"),
        "Inhibitory neuron": ("S4", "S5"),
        "Microglia": ("S9",),
    }
    rng = np.random.default_rng(1)
    score = np.where(cluster == 7, 0.3, 0.05) + rng.uniform(0, 0.04, 60)
    found = {
        "2_scrublet": {"score": score},
        "3_pca": {"scores": rng.normal(size=(60, 5)), "genes": np.array([1, 4])},
        "4_harmony": {"scores": rng.normal(size=(60, 5))},
        "5_graph": {"cluster": cluster, "umap": rng.normal(size=(60, 2))},
    }
    config = PrepareOptions(resolution=0.7)
    result = _prepare.finish(cells, found, panels, config, own_panels=own)
    kinds = {2: "Excitatory neuron", 5: "Inhibitory neuron", 7: DOUBLET}
    assert result.obs["scmamba_cluster_type"].tolist() == [kinds[c] for c in cluster]
    assert result.obs["scmamba_label"].isna().tolist() == (cluster == 7).tolist()
    assert result.obs["scmamba_label"].dropna().tolist() == [kinds[c] for c in cluster if c != 7]
    assert result.obs["scmamba_cluster"].tolist() == [str(c) for c in cluster]
    np.testing.assert_allclose(result.obs["scmamba_doublet_scrublet"], score, rtol=1e-6)
    for name, step, part in (
        ("X_pca", "3_pca", "scores"),
        ("X_pca_harmony", "4_harmony", "scores"),
        ("X_umap", "5_graph", "umap"),
    ):
        np.testing.assert_array_equal(result.obsm[name], found[step][part])
    assert np.flatnonzero(result.var["highly_variable"]).tolist() == [1, 4]
    about = result.uns["scmamba"]["prepare"]
    assert about["params"]["resolution"] == 0.7
    assert about["summary"]["clusters"]["name"].tolist() == list(kinds.values())
    np.testing.assert_allclose(
        about["summary"]["clusters"]["doublet_score"],
        [score[cluster == c].mean() for c in (2, 5, 7)],
    )
    np.testing.assert_allclose(
        about["summary"]["clusters"]["Microglia"], panel_scores(cells, cluster, panels)["Microglia"]
    )
    assert ("_neuron" in about["summary"]["clusters"]) == own and (result.X != cells.X).nnz == 0


def test_components_are_those_of_scaled_log2_values():
    pytest.importorskip("scanpy")
    cells, _ = clusters()
    found = analysis.principal_components(cells, PrepareOptions())
    counts = cells.X.toarray().astype(float)
    logs = np.log2(1 + 5e4 * counts / counts.sum(axis=1, keepdims=True))
    z = (logs - logs.mean(axis=0)) / logs.std(axis=0, ddof=1)
    size = np.linalg.svd(z, compute_uv=False)[:11]
    np.testing.assert_allclose(np.linalg.norm(found["scores"], axis=0), size, rtol=1e-3)
    assert found["genes"].tolist() == list(range(12))
    some = analysis.principal_components(cells, PrepareOptions(n_top_genes=5))["genes"]
    share = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    residual = np.clip(
        (counts - share) / np.sqrt(share + share**2 / 100), -np.sqrt(60), np.sqrt(60)
    )
    np.testing.assert_array_equal(some, np.sort(np.argsort(-residual.var(axis=0))[:5]))


def test_single_cell_donors_are_not_changed():
    scores = np.random.default_rng(0).normal(size=(30, 3))
    assert analysis.harmony(scores, pd.Series(["a"] * 30), PrepareOptions()) is scores
    pytest.importorskip("harmonypy")
    donors = pd.Series(["a"] * 30 + ["b"] * 30)
    both = np.vstack([scores, scores + [4, 0, 0]])
    corrected = analysis.harmony(both, donors, PrepareOptions())
    assert corrected.shape == (60, 3)
    gap = np.abs(corrected[:30].mean(axis=0) - corrected[30:].mean(axis=0))
    assert gap[0] < 3  # previously four


def test_small_donors_have_no_doublet_score(monkeypatch):
    sc = pytest.importorskip("scanpy")
    seen = []

    def scrublet(part, **options):
        seen.append((part.obs_names.tolist(), options))
        part.obs["doublet_score"] = np.arange(part.n_obs) + 1.0

    monkeypatch.setattr(sc.pp, "scrublet", scrublet)
    cells = study([300] * 89, ["a"] * 30 + ["b"] * 29 + ["a"] * 30, [f"g{i}" for i in range(9)])
    found = analysis.scrublet_scores(cells, PrepareOptions(seed=4), False)
    expected = np.zeros(89)
    expected[np.r_[0:30, 59:89]] = np.arange(60) + 1
    np.testing.assert_array_equal(found, expected)
    assert len(seen) == 1 and seen[0][1]["n_prin_comps"] == 30 and seen[0][1]["random_state"] == 4


def test_steps_are_cached_for_the_same_cells_and_settings(tmp_path):
    panels = {"a": ["S1"]}
    cells = study([300] * 5, list("aabbb"), ["g1", "g2"])
    first = run_identity([cells], PrepareOptions(), panels)
    steps = StepFolder(tmp_path, first, False, False)
    steps.arrays("2_scrublet", lambda: {"v": np.arange(3)})
    kept = steps.adata("1_filtered", lambda: cells)
    assert kept is cells
    again = StepFolder(tmp_path, first, False, False)
    again.arrays("2_scrublet", lambda: pytest.fail("made again"))
    assert again.found["2_scrublet"]["v"].tolist() == [0, 1, 2]
    assert (again.adata("1_filtered", lambda: pytest.fail("made again")).X != cells.X).nnz == 0
    other = study([301] * 5, list("aabbb"), ["g1", "g2"])
    renamed, elsewhere = cells.copy(), cells.copy()
    renamed.obs_names = [f"d{i}" for i in range(5)]
    elsewhere.obs["donor"] = list("aaabb")
    for identity, what in (
        (run_identity([other], PrepareOptions(), panels), "cells"),
        (run_identity([renamed], PrepareOptions(), panels), "cells"),
        (run_identity([elsewhere], PrepareOptions(), panels), "cells"),
        (run_identity([cells], PrepareOptions(seed=1), panels), "options"),
        (run_identity([cells], PrepareOptions(donor_key="patient"), panels), "donor"),
        (run_identity([cells], PrepareOptions(), {"a": ["S2"]}), "markers"),
    ):
        with pytest.raises(ScMambaError, match=rf"another run \({what} differ\)"):
            StepFolder(tmp_path, identity, False, False)
    fresh = StepFolder(tmp_path, identity, True, False)
    made = []
    fresh.arrays("2_scrublet", lambda: made.append(1) or {"v": np.ones(1)})
    assert made == [1] and not (tmp_path / "1_filtered.h5ad").exists()


def test_the_graph_is_built_as_in_the_paper(monkeypatch):
    """Forty neighbors in twenty components, Leiden at 1.8; the settings passed to scanpy."""
    sc = pytest.importorskip("scanpy")
    calls: dict = {}

    def remember(name, **answers):
        def call(work, **options):
            calls[name] = options | {"seen": work.obsm["X"]}
            work.obsm.update({k: v for k, v in answers.items() if k.startswith("X_")})
            if "leiden" in answers:
                work.obs["leiden"] = answers["leiden"]

        return call

    monkeypatch.setattr(sc.pp, "neighbors", remember("neighbors"))
    monkeypatch.setattr(sc.tl, "umap", remember("umap", X_umap=np.ones((60, 2))))
    monkeypatch.setattr(sc.tl, "leiden", remember("leiden", leiden=[str(i % 3) for i in range(60)]))
    scores = np.random.default_rng(0).normal(size=(60, 30))
    found = analysis.neighbor_graph(scores, PrepareOptions(seed=6))
    np.testing.assert_array_equal(calls["neighbors"]["seen"], scores[:, :20])
    assert (
        calls["neighbors"]["n_neighbors"],
        calls["neighbors"]["use_rep"],
        calls["neighbors"]["random_state"],
    ) == (40, "X", 6)
    assert calls["umap"]["random_state"] == 6
    assert (calls["leiden"]["resolution"], calls["leiden"]["random_state"]) == (1.8, 6) and calls[
        "leiden"
    ]["directed"] is False
    assert (
        found["cluster"].tolist() == [i % 3 for i in range(60)]
        and found["umap"].tolist() == [[1, 1]] * 60
    )
    monkeypatch.setattr(sc.tl, "umap", remember("umap", X_umap=np.ones((9, 2))))
    monkeypatch.setattr(sc.tl, "leiden", remember("leiden", leiden=["0"] * 9))
    analysis.neighbor_graph(scores[:9], PrepareOptions())
    assert calls["neighbors"]["n_neighbors"] == 8
