"""Ambient RNA: shares that were added, single steps by hand, limits of the method, and what is written."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scmamba
from scmamba.datasets import brain_cohort
from scmamba.datasets.brain_reference import load_reference
from scmamba.preprocessing import ambient_shares, ambient_table
from scmamba.preprocessing.ambient import clusters
from scmamba.preprocessing.ambient_shares import (
    MAX_SHARE_CLUSTERS,
    posterior_ratios,
    sample_ambient,
    type_share,
)
from scmamba.preprocessing.brain_typing import brain_types
from scmamba.utils.errors import DataError

QUIET = dict(verbose=False)
KINDS = 3


def drawn(
    n: int = 300, share: float = 0.1, *, genes: int = 600, depth: float = 1500.0, seed: int = 0
) -> tuple[ad.AnnData, np.ndarray]:
    """Cells of three types, and their own counts; a third of the genes is expressed by one type each, and ``share`` is ambient."""
    rng = np.random.default_rng(seed)
    rates = np.tile(rng.gamma(0.5, 1.0, genes), (KINDS, 1))
    for code in range(KINDS):
        own = np.arange(genes) % 6 == code
        rates[np.arange(KINDS) != code] *= np.where(own, 0.0, 1.0)
    rates /= rates.sum(axis=1, keepdims=True)
    code = np.arange(n) % KINDS
    totals = rng.lognormal(np.log(depth), 0.3, n)
    average = rates[code].T @ totals / totals.sum()
    own = rng.poisson((1 - share) * totals[:, None] * rates[code])
    added = rng.poisson(share * totals[:, None] * average)
    cells = ad.AnnData(sparse.csr_matrix((own + added).astype(np.float32)))
    cells.var_names = [f"gene{i}" for i in range(genes)]
    cells.obs_names = [f"cell{i}" for i in range(n)]
    cells.obs["kind"] = np.array(["a", "b", "c"])[code]
    cells.obs["donor"] = np.where(np.arange(n) < n // 2, "d1", "d2")
    return cells, own


@pytest.mark.parametrize("share", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_a_share_that_was_added_is_found(share):
    cells, _ = drawn(share=share)
    found = scmamba.ambient_rna(cells, label_key="kind", **QUIET)
    table = ambient_table(found)
    assert abs(table["share"][0] - share) < 0.01 + 0.05 * share
    assert table["low"][0] <= share <= table["high"][0] or share == 0
    assert table["reason"][0] == "" and table["types"][0] == KINDS
    cell = found.obs["scmamba_ambient"].to_numpy()
    assert abs(cell.mean() - share) < 0.02
    by_type = ambient_table(found, by_type=True)
    assert by_type["type"].tolist() == ["a", "b", "c"]
    assert (by_type["share"] - share).abs().max() < 0.03


def test_intervals_hold_the_share_in_most_samples():
    held = []
    for seed in range(20):
        cells, _ = drawn(n=90, share=0.15, depth=700, seed=seed)
        fit = sample_ambient(
            sparse.csr_matrix(cells.X, dtype=float), np.arange(90) % KINDS, seed=seed
        )
        held.append(fit.low <= 0.15 <= fit.high)
    assert np.mean(held) >= 0.8


def test_low_ratios_by_chance_are_no_low_ratios():
    """Noise alone: without ambient RNA and without types every ratio is 1, and the lowest of many noisy ones are near 0."""
    rng = np.random.default_rng(0)
    average = rng.dirichlet(np.ones(2000))
    counts = sparse.csr_matrix(rng.poisson(400 * average, (40, 2000)).astype(float))
    observed, expected = np.asarray(counts.sum(axis=0)).ravel(), counts.sum() * average
    enough = expected > 5
    assert (observed / expected)[enough].min() < 0.4
    assert posterior_ratios(observed[enough], expected[enough]).min() > 0.8
    found = type_share(counts, average)
    assert abs(found.share - 1) < 0.1 and not found.known()


def test_genes_are_chosen_in_cells_in_which_they_are_not_counted(monkeypatch):
    cells, _ = drawn(n=120, share=0.1)
    counts = sparse.csr_matrix(cells.X, dtype=float)[::KINDS]
    average = np.asarray(cells.X.sum(axis=0)).ravel() / cells.X.sum()
    read = []
    chosen = ambient_shares.unexpressed_genes

    def watched(part, profile):
        read.append(part.shape[0])
        return chosen(part, profile)

    monkeypatch.setattr(ambient_shares, "unexpressed_genes", watched)
    found = type_share(counts, average)
    assert read == [20, 20] and found.cells == 40
    # Counted in both halves, they have the pooled ratio up to what choosing them took off.
    pooled = counts[:, found.genes].sum() / (counts.sum() * average[found.genes].sum())
    assert found.share == pytest.approx(pooled, abs=0.03)


def test_posterior_ratios_are_those_of_two_groups_of_genes():
    rng = np.random.default_rng(2)
    true = np.where(np.arange(600) < 150, 0.1, 1.0)
    expected = rng.uniform(20, 60, 600)
    found = posterior_ratios(rng.poisson(true * expected).astype(float), expected)
    assert abs(found[:150].mean() - 0.1) < 0.02 and abs(found[150:].mean() - 1) < 0.05
    assert found[:150].max() < found[150:].min()


def test_shares_of_cells_follow_their_own_counts():
    cells, _ = drawn(n=300, share=0.0, seed=3)
    rng = np.random.default_rng(4)
    own = sparse.csr_matrix(cells.X, dtype=float)
    average = np.asarray(own.sum(axis=0)).ravel()
    average /= average.sum()
    true = rng.beta(2, 8, 300)
    kept = own.copy()
    kept.data = rng.binomial(own.data.astype(int), np.repeat(1 - true, np.diff(own.indptr)))
    added = rng.poisson(np.asarray(own.sum(axis=1)) * true[:, None] * average)
    cells.X = sparse.csr_matrix(kept + added, dtype=np.float32)
    found = scmamba.ambient_rna(cells, label_key="kind", **QUIET).obs["scmamba_ambient"]
    assert np.corrcoef(found, true)[0, 1] > 0.9
    assert np.abs(found - true).mean() < 0.04


def test_corrected_counts_are_the_own_ones():
    cells, own = drawn(share=0.2)
    before = cells.X.copy()
    found = scmamba.ambient_rna(cells, label_key="kind", corrected_layer="own", **QUIET)
    corrected = found.layers["own"].toarray()
    counts = before.toarray()
    assert (before != found.X).nnz == 0
    assert corrected.min() >= 0 and (corrected <= counts).all()
    assert (corrected[counts == 0] == 0).all()
    assert np.abs(corrected - own).sum() < 0.6 * np.abs(counts - own).sum()
    assert corrected.sum() == pytest.approx(own.sum(), rel=0.02)
    # Of genes that a type does not express little is left.
    foreign = (np.arange(600) % 6 == 1)[None, :] & (cells.obs["kind"] == "a").to_numpy()[:, None]
    assert counts[foreign].sum() > 500 and corrected[foreign].sum() < 0.15 * counts[foreign].sum()
    record = found.uns["scmamba"]["ambient_rna"]
    assert (
        record["params"]["corrected_layer"] == "own" and record["summary"]["types_from"] == "kind"
    )


def test_many_counts_of_a_gene_in_one_cell_stay():
    """Of a gene that the rest of its type does not express at most what the ambient RNA explains is removed."""
    cells, _ = drawn(share=0.1, seed=5)
    x = cells.X.tolil()
    x[0, 1] = 200  # gene1 is expressed by type b only, and the cell is of type a
    cells.X = sparse.csr_matrix(x)
    found = scmamba.ambient_rna(cells, label_key="kind", corrected_layer="own", **QUIET)
    assert found.layers["own"][0, 1] > 150


def test_the_share_of_one_cell_type_cannot_be_known():
    cells, _ = drawn()
    one = cells[(cells.obs["kind"] == "a").to_numpy()].copy()
    found = scmamba.ambient_rna(one, label_key="kind", corrected_layer="own", **QUIET)
    table = ambient_table(found)
    assert np.isnan(table["share"][0]) and "two are needed" in table["reason"][0]
    assert found.obs["scmamba_ambient"].isna().all()
    assert (found.layers["own"] != found.X).nnz == 0
    # Clusters of one type are no types, nor are two labels of the same cells.
    alone = scmamba.ambient_rna(one.copy(), **QUIET)
    assert np.isnan(ambient_table(alone)["share"][0])
    one.obs["half"] = np.where(np.arange(one.n_obs) % 2, "x", "y")
    halves = ambient_table(scmamba.ambient_rna(one, label_key="half", **QUIET))
    assert np.isnan(halves["share"][0]) and "too similar" in halves["reason"][0]


def test_states_of_one_type_are_no_share(capsys):
    """Two clusters that differ threefold in many genes look like a large share; without labels such a share is refused."""
    rng = np.random.default_rng(1)
    rates = rng.gamma(0.5, 1.0, 800)
    fold = np.where(np.arange(800) % 3 == 0, 3.0, 1.0), np.where(np.arange(800) % 3 == 1, 3.0, 1.0)
    code = np.arange(200) % 2
    rates = np.array([rates * f / (rates * f).sum() for f in fold])
    cells = ad.AnnData(sparse.csr_matrix(rng.poisson(2000 * rates[code]).astype(np.float32)))
    assert MAX_SHARE_CLUSTERS < 0.5
    table = ambient_table(scmamba.ambient_rna(cells))
    assert np.isnan(table["share"][0])
    assert "cannot be known" in capsys.readouterr().err


def test_each_sample_has_its_own_share():
    first, second = drawn(share=0.05)[0], drawn(share=0.3, seed=1)[0]
    few = drawn(n=15, share=0.1, seed=2)[0]
    cells = ad.concat(
        [first, second, few], keys=["s1", "s2", "s3"], label="library", index_unique="-"
    )
    cells.obs["library"] = cells.obs["library"].astype(str)
    cells.obs.iloc[-1, cells.obs.columns.get_loc("library")] = None
    cells = cells[np.random.default_rng(0).permutation(cells.n_obs)].copy()
    found = scmamba.ambient_rna(
        cells, sample_key="library", label_key="kind", corrected_layer="own", **QUIET
    )
    table = ambient_table(found).set_index("sample")
    assert table.index.tolist() == ["no sample", "s1", "s2", "s3"]
    assert table.loc["s1", "share"] == pytest.approx(0.05, abs=0.02)
    assert table.loc["s2", "share"] == pytest.approx(0.3, abs=0.03)
    assert table.loc[["no sample", "s3"], "share"].isna().all()
    cell = found.obs.groupby("library")["scmamba_ambient"].mean()
    assert cell["s1"] == pytest.approx(0.05, abs=0.02) and cell["s2"] == pytest.approx(
        0.3, abs=0.03
    )
    alone = scmamba.ambient_rna(
        cells[(cells.obs["library"] == "s2").to_numpy()].copy(),
        label_key="kind",
        corrected_layer="own",
        **QUIET,
    )
    np.testing.assert_allclose(
        alone.layers["own"].toarray(), found[alone.obs_names].layers["own"].toarray(), atol=1e-5
    )


def test_cells_without_a_type_keep_their_counts():
    cells, _ = drawn()
    cells.obs["kind"] = cells.obs["kind"].astype(object)
    cells.obs.iloc[:6, cells.obs.columns.get_loc("kind")] = [
        None,
        "Unknown",
        "nan",
        "",
        "Unassigned",
        "NA",
    ]
    found = scmamba.ambient_rna(cells, label_key="kind", corrected_layer="own", **QUIET)
    assert found.obs["scmamba_ambient"].iloc[:6].isna().all()
    assert found.obs["scmamba_ambient"].iloc[6:].notna().all()
    assert (found.layers["own"][:6] != found.X[:6]).nnz == 0
    assert ambient_table(found)["types"][0] == KINDS


def test_types_of_the_brain_are_found_without_labels(capsys):
    cells = brain_cohort(400, n_donors=2, n_genes=6000, seed=2)
    named = brain_types(cells, sparse.csr_matrix(cells.X, dtype=float))
    first = np.array([str(n)[:5].lower() for n in named.names])[named.codes]
    true = np.array([str(c)[:5].lower() for c in cells.obs["cell_type"]])
    assert np.mean(first == true) > 0.9
    np.testing.assert_allclose(named.rates.sum(axis=1), 1)
    found = ambient_table(scmamba.ambient_rna(cells, sample_key="donor"))
    assert "reference 'human-brain'" in capsys.readouterr().err
    known = ambient_table(
        scmamba.ambient_rna(cells, sample_key="donor", label_key="cell_type", **QUIET)
    )
    np.testing.assert_allclose(found["share"], known["share"], atol=0.03)


def test_blood_is_no_brain(pbmc):
    blood = ad.read_h5ad(pbmc)
    assert brain_types(blood, sparse.csr_matrix(blood.X, dtype=float)) is None
    reference = load_reference()
    few = ad.AnnData(sparse.csr_matrix(np.ones((20, 99))))
    few.var_names = list(reference.genes[:99])
    assert brain_types(few, few.X) is None


def test_clusters_of_distinct_types():
    cells, _ = drawn(n=150, share=0.05)
    found = clusters(sparse.csr_matrix(cells.X, dtype=float))
    table = pd.crosstab(found, cells.obs["kind"].to_numpy())
    assert table.shape == (3, 3) and (table.max(axis=1) == table.sum(axis=1)).all()


def test_what_is_written_can_be_read_and_is_guarded(tmp_path):
    cells, _ = drawn(n=120)
    cells.layers["mine"] = cells.X.copy()
    cells.obs["scmamba_ambient"] = 1.0
    with pytest.raises(DataError, match=r"obs\['scmamba_ambient'\] exists already"):
        scmamba.ambient_rna(cells, label_key="kind", **QUIET)
    del cells.obs["scmamba_ambient"]
    with pytest.raises(DataError, match=r"layers\['mine'\] exists already"):
        scmamba.ambient_rna(cells, label_key="kind", corrected_layer="mine", **QUIET)
    copy = scmamba.ambient_rna(cells, label_key="kind", corrected_layer="own", copy=True, **QUIET)
    assert "own" not in cells.layers and "scmamba" not in cells.uns
    copy.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(
        ambient_table(back).astype({"sample": str}), ambient_table(copy).astype({"sample": str})
    )
    again = scmamba.ambient_rna(copy, label_key="kind", corrected_layer="own", **QUIET)
    assert again is copy  # scMamba's own column and layer are replaced
    with pytest.raises(DataError, match=r"layers\['mine'\] exists already"):
        scmamba.ambient_rna(copy, label_key="kind", corrected_layer="mine", **QUIET)
    with pytest.raises(DataError, match="holds the raw counts"):
        scmamba.ambient_rna(copy, layer="mine", corrected_layer="mine", **QUIET)
    with pytest.raises(DataError, match="Run scmamba.ambient_rna"):
        ambient_table(drawn(n=30)[0])


def test_unusable_input_gets_the_reason():
    cells, _ = drawn(n=60)
    logs = cells.copy()
    logs.X.data = np.log1p(
        1e4 * logs.X.data / np.repeat(logs.X.sum(axis=1).A1, np.diff(logs.X.indptr))
    )
    with pytest.raises(DataError, match="raw counts"):
        scmamba.ambient_rna(logs, label_key="kind", **QUIET)
    with pytest.raises(DataError, match="no column"):
        scmamba.ambient_rna(cells, sample_key="library", **QUIET)
    empty = cells.copy()
    empty.X = sparse.csr_matrix(sparse.diags((np.arange(60) != 3).astype(np.float32)) @ empty.X)
    found = scmamba.ambient_rna(empty, label_key="kind", corrected_layer="own", **QUIET)
    assert np.isfinite(ambient_table(found)["share"][0]) and found.layers["own"][3].nnz == 0


def test_command_line(tmp_path):
    from typer.testing import CliRunner

    from scmamba.cli.main import app

    cells, _ = drawn(n=120)
    cells.write_h5ad(tmp_path / "in.h5ad")
    call = ["ambient-rna", str(tmp_path / "in.h5ad"), "-o", str(tmp_path / "out.h5ad"), "-q"]
    call += ["--sample", "donor", "--labels", "kind", "--corrected-layer", "own"]
    call += ["--table", str(tmp_path / "t.csv")]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert "known for 2 of 2 samples" in done.output
    table = pd.read_csv(tmp_path / "t.csv")
    out = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_allclose(table["share"], ambient_table(out)["share"])
    assert "own" in out.layers and CliRunner().invoke(app, call).exit_code == 1


def test_real_nuclei_with_a_known_share(shared):
    """Donors of Velmeshev 2019 with a fifth of ambient RNA added: the difference of the estimates is that share."""
    from benchmarks.ambient import contaminated, recovered

    cells = ad.read_h5ad(shared / "data" / "velmeshev2019_pfc_3types.h5ad")
    cells.obs["sample"] = cells.obs["donor"].astype(str)
    cells.obs["label"] = cells.obs["cell_type"].astype(str)
    cells = cells[
        cells.obs["sample"].isin(cells.obs["sample"].value_counts().index[:4]).to_numpy()
    ].copy()
    found = []
    for share in (0.0, 0.2):
        made, own = contaminated(cells, share)
        assert made.X.sum() == pytest.approx(cells.X.sum(), rel=0.01)
        assert (made.X - own).min() >= 0
        scmamba.ambient_rna(
            made, sample_key="sample", label_key="label", corrected_layer="own", **QUIET
        )
        found.append(ambient_table(made).set_index("sample")["share"])
    added = recovered(*found)
    assert added.notna().all() and (added - 0.2).abs().max() < 0.06
    x, corrected = made.X.toarray(), made.layers["own"].toarray()
    assert corrected.min() >= 0 and (corrected <= x).all() and (corrected[x == 0] == 0).all()
    alone = made[(made.obs["label"] == "astrocyte").to_numpy()].copy()
    scmamba.ambient_rna(alone, sample_key="sample", **QUIET)
    assert ambient_table(alone)["share"].isna().all()
