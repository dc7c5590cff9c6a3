"""The arithmetic of imputation: which values are masked in which pass, on which scale predictions are returned, which values stay as observed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_model, with_rate_head
from scipy import sparse

import scmamba
from scmamba.data import h5ad_stream as _stream
from scmamba.data import read_cells
from scmamba.imputation import ImputeOptions, base, ensemble_imputer, masked
from scmamba.imputation import imputer as imputer_module
from scmamba.imputation.base_predictors import GeneMap
from scmamba.imputation.distributed import read_shares, write_share
from scmamba.imputation.ensemble_imputer import RateEnsembleImputer
from scmamba.imputation.rate_fit import fit_rates
from scmamba.model import Model
from scmamba.neighbors.hierarchical import RatePosterior
from scmamba.nn import ScMamba
from scmamba.utils.errors import DataError, ScMambaError

QUIET = dict(verbose=False, force=True)


@pytest.fixture(scope="module")
def model() -> Model:
    small = small_model("expressed", n_genes=50)
    return with_rate_head(small, seed=1)


@pytest.fixture(scope="module")
def cells(model) -> ad.AnnData:
    """120 cells with forty genes of the model, one of them in two rows, and a gene outside its list; one cell has no counts."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 3.0, 42), (120, 42)).astype(np.float32)
    counts[:, 41] += 3
    counts[7] = 0
    data = ad.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame({"lib": list("ab") * 60}, index=[f"c{i}" for i in range(120)]),
    )
    data.var_names = [*model.genes.ensembl_ids[5:45], "other", "unknown"]
    data.var["ensembl_id"] = [*model.genes.ensembl_ids[5:45], model.genes.ensembl_ids[5], "unknown"]
    return data


def test_constants():
    assert imputer_module.MAX_BATCHES == 500 and ensemble_imputer.MAX_POOL == 10_000


class KnownModel:
    """A model with known predictions: it records the masks and returns values by position."""

    def __init__(self, answer: np.ndarray) -> None:
        self.answer, self.masks, self.values = answer, [], []

    def reconstruct(self, x, mask, genes=None, batch_size=None):
        self.masks.append(mask.numpy().copy())
        self.values.append(x.numpy().copy())
        return torch.from_numpy(self.answer + len(self.masks))


def test_every_zero_is_masked_once_in_interleaved_groups():
    rng = np.random.default_rng(0)
    x = (rng.random((4, 23)) * (rng.random((4, 23)) < 0.4)).astype(np.float32)
    x[2] = 0
    known_model = KnownModel(np.zeros((4, 23), np.float32) - 2)
    found = masked.predict_zeros(known_model, x, None, 3)
    np.testing.assert_array_equal(np.sum(known_model.masks, axis=0), x == 0)
    for row in range(4):
        zeros = np.flatnonzero(x[row] == 0)
        for k in range(3):
            assert np.flatnonzero(known_model.masks[k][row]).tolist() == zeros[k::3].tolist()
    assert all(np.array_equal(v, x) for v in known_model.values)
    # Pass 1 predicts -1, pass 2 predicts 0, pass 3 predicts 1: kept where that group was masked, never below zero.
    expected = np.where(known_model.masks[2], 1.0, 0.0)
    expected[2] = 0  # a cell without counts gives the model no input
    np.testing.assert_array_equal(found, expected)
    few = KnownModel(np.ones((1, 3), np.float32))
    masked.predict_zeros(few, np.array([[1.0, 0, 2.0]], np.float32), None, 10)
    assert len(few.masks) == 1, "empty groups are not read"


def imputer_of(data: ad.AnnData, model: Model, **options):
    chosen = ImputeOptions(**{"adapt_steps": 0, "force": True, "verbose": False, **options})
    imputer, cells = imputer_module.open_imputer(data, model, chosen)
    return imputer.fit(cells)


@pytest.mark.parametrize("batch", [None, "lib"])
def test_expected_frequencies_are_converted_to_the_logs_of_the_data(model, cells, batch):
    """Rate given a zero, times the cell's depth, on log1p(CP10k) of all genes; observed values as NormalizeData gives them."""
    data = cells.copy()
    scmamba.impute(
        data,
        model=model,
        adapt_steps=0,
        batch_key=batch,
        min_value=0,
        min_probability=0,
        max_filled=1,
        seed=3,
        **QUIET,
    )
    counts = cells.X.toarray().astype(float)
    total = counts.sum(axis=1)
    full = total > 0
    codes = np.tile([0, 1], 60)
    read = read_cells(cells, model.genes, force=True)
    fitted = fit_rates(
        model,
        sparse.csr_matrix(counts[full]),
        total[full],
        GeneMap.of(read),
        adapt_steps=0,
        seed=3,
        verbose=False,
        batch=codes[full] if batch else None,
    )
    own = np.full(120, -1)
    own[full] = np.arange(119)
    rows = np.r_[0:5, 100]
    expected = fitted.posterior(
        sparse.csr_matrix(counts[rows]), total[rows], own[rows], codes[rows] if batch else None
    ).mean
    layer = data.layers["scmamba"].toarray()
    zero = counts[rows] == 0
    np.testing.assert_allclose(layer[rows][zero], np.log1p(1e4 * expected)[zero], rtol=1e-4)
    exact = np.log1p(1e4 * counts[full] / total[full, None])
    np.testing.assert_allclose(layer[full][counts[full] > 0], exact[counts[full] > 0], rtol=1e-6)
    assert data.obs["scmamba_low_depth"].tolist() == (total < 200).tolist()
    about = data.uns["scmamba"]["impute"]
    params, summary = about["params"], about["summary"]
    assert params["method"] == "ensemble" and params["min_value"] == 0 and params["seed"] == 3
    assert params.get("batch_key") == batch and summary["scale"] == "log1p(CP10k)"
    assert summary["density"] == pytest.approx(data.layers["scmamba"].nnz / (120 * 42))
    assert summary["deviance_neighbors"] == fitted.report["deviance_neighbors"]


def test_small_values_stay_zero_unless_expected_counts_are_returned(model, cells):
    every = {"min_probability": 0, "max_filled": 1}
    least, full, counts = (
        scmamba.impute(cells.copy(), model=model, adapt_steps=0, **every, **options, **QUIET)
        for options in ({}, {"min_value": 0}, {"to_counts": True})
    )
    assert (
        least.uns["scmamba"]["impute"]["params"]["min_value"] == 0.2
        and counts.uns["scmamba"]["impute"]["params"]["min_value"] == 0.0
    )
    a, b, observed = (
        least.layers["scmamba"].toarray(),
        full.layers["scmamba"].toarray(),
        cells.X.toarray() > 0,
    )
    np.testing.assert_array_equal(a[~observed], np.where(b < 0.2, 0, b)[~observed])
    np.testing.assert_array_equal(a[observed], b[observed])
    assert (b[~observed] > 0).mean() > 0.9 and least.layers["scmamba"].nnz == (a != 0).sum()
    total = cells.X.toarray().sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        counts.layers["scmamba"].toarray(),
        np.expm1(b.astype(float)) * total / 1e4,
        rtol=1e-3,
        atol=1e-6,
    )
    assert counts.uns["scmamba"]["impute"]["summary"]["scale"] == "expected counts"
    published = scmamba.impute(
        cells.copy(), model=model, method="masked", passes=1, adapt_steps=0, **QUIET
    ).uns["scmamba"]["impute"]["params"]
    assert (
        published["min_value"] == 0.0
        and published["passes"] == 1
        and published["method"] == "masked"
    )


def test_masked_predictions_are_rescaled_from_the_model_to_the_data(model, cells):
    found = (
        scmamba.impute(cells.copy(), model=model, method="masked", passes=3, adapt_steps=0, **QUIET)
        .layers["scmamba"]
        .toarray()
    )
    counts = cells.X.toarray().astype(float)
    ours = counts[:, :40].copy()
    ours[:, 0] += counts[:, 40]  # two rows of one gene
    total = ours.sum(axis=1, keepdims=True)
    x = np.log1p(1e4 * ours / np.maximum(total, 1)).astype(np.float32)
    predicted = masked.predict_zeros(model, x, torch.arange(5, 45), 3).astype(float)
    moved = np.log1p(np.expm1(predicted) * total / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    zero = (ours == 0) & (counts[:, :40] == 0)
    np.testing.assert_allclose(found[:, :40][zero], moved[zero], rtol=2e-4, atol=1e-6)
    assert (found[:, 40:][counts[:, 40:] == 0] == 0).all(), (
        "further rows and unknown genes keep what was counted"
    )
    assert not found[7].any()


def test_the_pool_is_a_sample_of_large_data(model, cells, monkeypatch):
    read = read_cells(cells, model.genes, force=True)
    assert ensemble_imputer.pool_members(len(read), 3).tolist() == list(range(120))
    monkeypatch.setattr(ensemble_imputer, "MAX_POOL", 105)
    members = ensemble_imputer.pool_members(len(read), 3)
    assert (
        len(set(members)) == 105
        and (np.diff(members) > 0).all()
        and not np.array_equal(members, ensemble_imputer.pool_members(len(read), 4))
    )
    assert imputer_of(cells, model).fitted.rates.pool.counts.shape[0] <= 105
    # Cells outside the pool are not neighbors; those inside are not their own neighbors.
    queries = []

    class Flat:
        network, rates, report = SimpleNamespace(model=model, base=np.ones(42)), None, {}

        def posterior(self, counts, totals, own, batch):
            queries.append(own)
            return RatePosterior(np.ones(counts.shape), np.ones(counts.shape))

    imputer = RateEnsembleImputer(model, ImputeOptions()).restore(read, (Flat(), members))
    imputer.expected(slice(0, 120), read.linear(slice(0, 120)))
    expected = np.full(120, -1)
    expected[members] = np.arange(105)
    np.testing.assert_array_equal(queries[0], expected)


def test_methods_follow_the_heads(model):
    assert (
        imputer_module.choose_method(None, model) == "ensemble"
        and imputer_module.choose_method(None, small_model(n_genes=20)) == "masked"
    )
    assert imputer_module.choose_method("masked", model) == "masked"
    # The rate head of pre-training alone is not used.
    fresh = small_model("expressed", n_genes=20)
    fresh = Model(ScMamba(replace(fresh.config, rates=True)), fresh.genes)
    assert imputer_module.choose_method(None, fresh) == "masked"
    with pytest.raises(ScMambaError, match="a rate head that was not trained"):
        imputer_module.choose_method("ensemble", fresh)
    classifier = small_model("expressed", n_classes=2, n_genes=20)
    classifier.network.config = replace(classifier.config, reconstructs=False)
    with pytest.raises(ScMambaError, match="classifies cells"):
        imputer_module.choose_method("masked", classifier)


def test_batches_are_coded_by_name(cells):
    assert imputer_module.batch_codes(cells, None, "masked") is None
    assert imputer_module.batch_codes(cells, "lib", "ensemble").tolist() == [0, 1] * 60
    one = cells.copy()
    one.obs["lib"] = "a"
    assert imputer_module.batch_codes(one, "lib", "ensemble") is None


def test_a_result_too_large_for_memory_is_refused_after_a_block(model, cells, monkeypatch):
    imputer = imputer_of(cells, model)
    block = next(imputer.predict_blocks([slice(0, 10)]))
    needed = 2 * (block.values.data.nbytes + block.values.indices.nbytes) / 10 * 120
    monkeypatch.setattr(base, "available_memory", lambda: needed / 0.8 + 1)
    imputer.check_memory(block)
    monkeypatch.setattr(base, "available_memory", lambda: needed / 0.8 - 1)
    with pytest.raises(DataError, match="Impute file to file"):
        imputer.check_memory(block)
    assert imputer.density_before == pytest.approx(cells.X[:10].nnz / (120 * 42))
    assert imputer.block == 64


def test_blocks_of_rows_and_shares_cover_all_cells(model, cells, tmp_path):
    options = {"batch_size": 17, "sd": True}
    parts = [b.layers for b in imputer_of(cells, model, **options).predict_blocks()]
    whole = [sparse.vstack(layers) for layers in zip(*parts, strict=True)]
    imputer, shares = imputer_of(cells, model, **options), []
    blocks = list(imputer.cells.blocks(17))
    assert len(blocks) == 8 and imputer.layer_names == ["scmamba", "scmamba_sd"]
    for number, own in enumerate((blocks[:3], blocks[3:])):
        write_share(imputer, own, tmp_path / f"{number}.h5")
        shares.append((tmp_path / f"{number}.h5", own))
    totals: list[np.ndarray] = []
    added: list[np.ndarray | None] = []
    again = list(read_shares(shares, imputer.layer_names, 42, totals, added))
    for at in range(2):
        assert [b[at].shape[0] for b in again] == [b.stop - b.start for b in blocks]
        assert (sparse.vstack([b[at] for b in again]) != whole[at]).nnz == 0
    assert (whole[0] != whole[1]).nnz > 0
    np.testing.assert_allclose(np.concatenate(totals), np.asarray(cells.X.sum(axis=1)).ravel())
    counts, values = np.asarray(cells.X.sum(axis=1)).ravel(), np.expm1(whole[0].toarray())
    scale = np.where(counts > 0, 1e4, 1)
    share = np.maximum(values.sum(axis=1), scale) / scale - 1
    np.testing.assert_allclose(base.joined_added(added), share, atol=1e-6)


def test_a_layer_is_streamed_as_anndata_writes_it(cells, tmp_path):
    given = cells.copy()
    given.layers["old"] = given.X
    given.write_h5ad(tmp_path / "a.h5ad")
    rng = np.random.default_rng(0)
    layer = sparse.random(120, 42, 0.3, "csr", np.float32, rng)
    backed = ad.read_h5ad(tmp_path / "a.h5ad")

    def finish(annotations, stored):
        assert stored == layer.nnz
        annotations.obs["new"] = np.arange(120)
        annotations.uns["scmamba"] = {"x": 1}
        annotations.obsm["X_new"] = np.ones((120, 2))

    blocks = [layer[i : i + 50] for i in range(0, 120, 50)]
    for _ in range(2):  # an earlier layer of the same name is replaced
        _stream.write_with_layers(
            tmp_path / "a.h5ad",
            tmp_path / "b.h5ad",
            backed,
            ["mine", "second"],
            ((block, 2 * block) for block in blocks),
            finish,
            drop=["old"],
        )
        (tmp_path / "b.h5ad").replace(tmp_path / "a.h5ad")
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    assert (found.layers["second"] != 2 * layer).nnz == 0 and "old" not in found.layers
    assert (found.layers["mine"] != layer).nnz == 0 and found.layers["mine"].dtype == np.float32
    assert (
        found.obs["new"].tolist() == list(range(120))
        and found.uns["scmamba"] == {"x": 1}
        and found.obsm["X_new"].shape == (120, 2)
    )
    assert (found.X != cells.X).nnz == 0 and found.var_names.equals(cells.var_names)
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert (
            file["layers/mine"].attrs["encoding-type"] == "csr_matrix"
            and file["layers/mine/indices"].dtype == np.int32
        )


def test_an_embedding_is_the_mean_of_the_networks_output(cells):
    small = small_model("expressed", n_genes=50)
    found = scmamba.embed(cells.copy(), model=small, batch_size=33, **QUIET)
    read = read_cells(cells, small.genes, force=True)
    values = read.to_model(read.linear(slice(0, 120)))[0].toarray()
    np.testing.assert_allclose(
        found.obsm["X_scmamba"],
        small.cell_embedding(values, genes=torch.from_numpy(read.genes)).numpy(),
        atol=1e-5,
    )
    total = np.asarray(cells.X.sum(axis=1)).ravel()
    assert (
        found.obs["scmamba_low_depth"].tolist() == (total < 200).tolist()
        and found.obsm["X_scmamba"].dtype == np.float32
    )
    assert found.uns["scmamba"]["embed"]["model"] == "small"
    copied = scmamba.embed(cells, model=small, copy=True, **QUIET)
    assert "X_scmamba" not in cells.obsm and "X_scmamba" in copied.obsm


def test_memory_is_checked_after_the_first_block(model, cells, monkeypatch):
    monkeypatch.setattr(base, "available_memory", lambda: 10)
    given = cells[:40].copy()  # one block
    with pytest.raises(DataError, match="Impute file to file"):
        scmamba.impute(given, model=model, force=True, adapt_steps=0, verbose=False)
    assert "scmamba" not in given.layers
