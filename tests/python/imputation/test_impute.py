"""Imputation and embedding: the published rule, unchanged values, refused input, and no partial output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from conftest import small_model
from scipy import sparse

import scmamba
from scmamba.data import h5ad_stream as _stream
from scmamba.imputation import impute_or_write
from scmamba.utils.errors import CheckpointError, DataError, GeneError, ScMambaError

QUIET = dict(verbose=False, adapt_steps=0)


def published_rule(model, x, passes):
    """The ten passes written out cell by cell: every k-th zero is masked, its prediction kept, negative values set to 0."""
    result = x.copy()
    for row in range(len(x)):
        zeros = np.flatnonzero(x[row] == 0)
        for k in range(passes):
            mask = np.zeros((1, x.shape[1]), dtype=bool)
            mask[0, zeros[k::passes]] = True
            with torch.no_grad():
                answer = model.network.reconstruct(
                    torch.from_numpy(x[row : row + 1]), torch.from_numpy(mask)
                )[0].numpy()
            result[row, mask[0]] = np.maximum(answer[mask[0]], 0)
    return result


def test_the_published_rule_on_published_weights(reference):
    official = reference.official
    counts = np.load(official / "expected.npz")["counts"]
    model = scmamba.load_model(official / "pretrain.ckpt")
    data = ad.AnnData(sparse.csr_matrix(counts))
    data.var_names = list(model.genes)
    result = scmamba.impute(data, model=model, passes=2, **QUIET).layers["scmamba"].toarray()
    x = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
    np.testing.assert_allclose(result, published_rule(model, x, 2), atol=1e-4)


@pytest.mark.parametrize("reads", ["all", "expressed"])
def test_observed_values_and_all_other_parts_of_the_object_stay(cohort, reads):
    data = cohort[:4].copy()
    data.obs["note"] = pd.Categorical(
        ["a", None, "b", "a"], categories=["b", "a", "unused"], ordered=True
    )
    data.layers["mine"] = data.X * 2
    data.obsm["X_pca"] = np.arange(8.0).reshape(4, 2)
    before = data.copy()
    result = scmamba.impute(data, model=small_model(reads), passes=2, **QUIET)
    assert result is data
    assert (data.X != before.X).nnz == 0 and (data.layers["mine"] != before.layers["mine"]).nnz == 0
    pd.testing.assert_frame_equal(data.obs[before.obs.columns], before.obs)
    np.testing.assert_array_equal(data.obsm["X_pca"], before.obsm["X_pca"])
    layer = data.layers["scmamba"]
    assert layer.format == "csr" and layer.dtype == np.float32 and layer.data.min() > 0
    expected = before.copy()
    expected.X = expected.X.astype(np.float64)
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    observed = before.X.toarray() > 0
    np.testing.assert_allclose(layer.toarray()[observed], expected.X.toarray()[observed], rtol=1e-6)
    assert (layer.toarray()[~observed] > 0).mean() > 0.1
    assert data.uns["scmamba"]["impute"]["params"]["passes"] == 2


def test_predictions_are_rescaled_to_the_data(cohort):
    """A gene outside the model's list has half of every cell's counts: CP10k over all genes is half of CP10k over the model's genes."""
    known = cohort[:3].copy()
    known = known[:, scmamba.genes.match_adata(known).matched].copy()
    total = np.asarray(known.X.sum(axis=1)).ravel()
    other = ad.AnnData(sparse.csr_matrix(total[:, None]), obs=known.obs)
    other.var_names = ["not-a-gene"]
    both = ad.concat([known, other], axis="var", merge="first")
    model = small_model()
    alone = scmamba.impute(known, model=model, passes=1, **QUIET).layers["scmamba"].toarray()
    halved = scmamba.impute(both, model=model, passes=1, **QUIET).layers["scmamba"].toarray()
    np.testing.assert_allclose(np.expm1(halved[:, :-1]), np.expm1(alone) / 2, rtol=2e-5)
    np.testing.assert_allclose(np.expm1(halved[:, -1]), 5000, rtol=1e-5)


def test_expected_counts_follow_the_paper(cohort):
    data = cohort[:4, scmamba.genes.match_adata(cohort).matched].copy()
    model = small_model()
    logs = scmamba.impute(data.copy(), model=model, passes=1, **QUIET).layers["scmamba"].toarray()
    counts = (
        scmamba.impute(data.copy(), model=model, passes=1, to_counts=True, **QUIET)
        .layers["scmamba"]
        .toarray()
    )
    total = np.asarray(data.X.sum(axis=1))
    np.testing.assert_allclose(counts, np.expm1(logs.astype(np.float64)) / 1e4 * total, rtol=1e-4)
    observed = data.X.toarray() > 0
    np.testing.assert_array_equal(counts[observed], data.X.toarray()[observed])


def test_small_values_can_stay_zero(cohort):
    data = cohort[:3].copy()
    full = (
        scmamba.impute(data.copy(), model=small_model(), passes=1, **QUIET)
        .layers["scmamba"]
        .toarray()
    )
    cut = (
        scmamba.impute(data.copy(), model=small_model(), passes=1, min_value=0.4, **QUIET)
        .layers["scmamba"]
        .toarray()
    )
    filled = data.X.toarray() == 0
    np.testing.assert_array_equal(cut[filled], np.where(full[filled] >= 0.4, full[filled], 0))
    np.testing.assert_array_equal(cut[~filled], full[~filled])


def test_log_values_keep_their_own_scale(cohort):
    data = cohort[:3].copy()
    counts = (
        scmamba.impute(data.copy(), model=small_model(), passes=1, **QUIET)
        .layers["scmamba"]
        .toarray()
    )
    data.X = data.X.astype(np.float64)
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    logs = scmamba.impute(data, model=small_model(), passes=1, **QUIET).layers["scmamba"].toarray()
    np.testing.assert_allclose(logs, counts, atol=2e-4)
    with pytest.raises(DataError, match="no longer contain"):
        scmamba.impute(data, model=small_model(), to_counts=True, **QUIET)


def test_one_cell_and_a_cell_without_counts(cohort):
    one = scmamba.impute(cohort[:1].copy(), model=small_model("expressed"), passes=2, **QUIET)
    assert one.layers["scmamba"].nnz > cohort[:1].X.nnz
    empty = cohort[:2].copy()
    empty.X = sparse.vstack([empty.X[:1], empty.X[1:] * 0]).tocsr()
    result = scmamba.impute(empty, model=small_model("expressed"), passes=2, **QUIET)
    assert result.layers["scmamba"][1].nnz == 0 and result.obs["scmamba_low_depth"].tolist()[1]


def test_refused_input_leaves_the_object_unchanged(cohort):
    data = cohort[:4].copy()
    data.layers["scmamba"] = data.X.copy()
    with pytest.raises(DataError, match="pass overwrite=True"):
        scmamba.impute(data, model=small_model(), **QUIET)
    assert (data.layers["scmamba"] != data.X).nnz == 0 and "scmamba" not in data.uns
    replaced = scmamba.impute(data.copy(), model=small_model(), passes=1, overwrite=True, **QUIET)
    assert (replaced.layers["scmamba"] != data.X).nnz > 0
    few = cohort[:4, :500].copy()
    with pytest.raises(GeneError, match="force=True"):
        scmamba.impute(few, model=small_model(), **QUIET)
    assert (
        "scmamba" in scmamba.impute(few, model=small_model(), force=True, passes=1, **QUIET).layers
    )
    with pytest.raises(ScMambaError, match="passes is 0"):
        scmamba.impute(cohort[:2].copy(), model=small_model(), passes=0, **QUIET)
    with pytest.raises(CheckpointError):
        scmamba.impute(cohort[:2].copy(), model="no-such-model", **QUIET)


def test_adaptation_is_scored_on_held_out_cells_and_reproducible(cohort, capsys):
    data = ad.concat([cohort] * 3, index_unique="-")
    results = [
        scmamba.impute(
            data.copy(),
            model=small_model("expressed"),
            adapt_steps=6,
            passes=1,
            seed=5,
            verbose=verbose,
        )
        for verbose in (True, False)
    ]
    report = results[0].uns["scmamba"]["impute"]["summary"]["adapt"]
    assert report["used"] == (report["loss_after"] < report["loss_before"]) and report["steps"] == 6
    assert (results[0].layers["scmamba"] != results[1].layers["scmamba"]).nnz == 0
    told = (
        f"of 20 held-out cells: {report['loss_before']:.4f} before, {report['loss_after']:.4f} after "
        f"adaptation; the {'adapted' if report['used'] else 'pre-trained'} network is used"
    )
    assert capsys.readouterr().err.count(told) == 1, "by the first one, which is verbose"
    assert report["cells"] == 100 and report["seconds"] > 0
    few = scmamba.impute(cohort[:5].copy(), model=small_model("expressed"), passes=1, verbose=False)
    assert few.uns["scmamba"]["impute"]["summary"]["adapt"]["used"] is False


@pytest.mark.parametrize("reads", ["all", "expressed"])
def test_embedding_is_that_of_the_network(cohort, reads):
    model = small_model(reads, seed=2)
    data = scmamba.embed(cohort[:5].copy(), model=model, verbose=False)
    cells = scmamba.data.read_cells(cohort[:5].copy(), model.genes)
    x = np.zeros((5, 19306), dtype=np.float32)
    x[:, cells.genes] = cells.to_model(cells.linear(slice(0, 5)))[0].toarray()
    np.testing.assert_allclose(data.obsm["X_scmamba"], model.cell_embedding(x), atol=1e-5)


def test_a_file_gives_the_same_result_as_the_object(cohort, tmp_path):
    cohort.write_h5ad(tmp_path / "in.h5ad")
    model = small_model("expressed")
    scmamba.impute_file(
        tmp_path / "in.h5ad", tmp_path / "out.h5ad", model=model, passes=2, batch_size=7, **QUIET
    )
    from_file = ad.read_h5ad(tmp_path / "out.h5ad")
    direct = scmamba.impute(cohort.copy(), model=model, passes=2, **QUIET)
    assert abs(from_file.layers["scmamba"] - direct.layers["scmamba"]).max() < 1e-5
    assert (from_file.X != cohort.X).nnz == 0
    pd.testing.assert_frame_equal(from_file.obs, direct.obs, check_dtype=False)
    # anndata converts repeated strings to categories when it writes
    pd.testing.assert_frame_equal(from_file.var, ad.read_h5ad(tmp_path / "in.h5ad").var)
    assert from_file.uns["scmamba"]["impute"]["params"]["passes"] == 2
    scmamba.embed_file(tmp_path / "out.h5ad", tmp_path / "both.h5ad", model=model, verbose=False)
    both = ad.read_h5ad(tmp_path / "both.h5ad")
    assert {"impute", "embed"} <= set(both.uns["scmamba"]) and both.obsm["X_scmamba"].shape == (
        cohort.n_obs,
        8,
    )
    with pytest.raises(ScMambaError, match="exists already"):
        scmamba.impute_file(tmp_path / "in.h5ad", tmp_path / "out.h5ad", model=model, **QUIET)


def test_invalid_files_are_refused(tmp_path):
    (tmp_path / "a.h5ad").write_text("text")
    (tmp_path / "a.rds").write_bytes(b"\x1f\x8b\x08rds")
    for name, sentence in (
        ("a.h5ad", r"not an h5ad"),
        ("a.rds", "scmamba convert"),
        ("missing.h5ad", "There is no file"),
    ):
        with pytest.raises(DataError, match=sentence):
            scmamba.impute_file(tmp_path / name, tmp_path / "out.h5ad", **QUIET)
    assert not (tmp_path / "out.h5ad").exists()
    (tmp_path / "folder").mkdir()
    for verb, options in ((scmamba.impute_file, QUIET), (scmamba.embed_file, {"verbose": False})):
        for overwrite, sentence in (
            (False, "exists already"),
            (True, "folder is a folder; a file"),
        ):
            with pytest.raises(DataError, match=sentence):
                verb(tmp_path / "a.h5ad", tmp_path / "folder", overwrite=overwrite, **options)
    assert not list((tmp_path / "folder").iterdir())


def test_a_truncated_file_is_refused(cohort, tmp_path):
    cohort.write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        scmamba.impute_file(tmp_path / "cut.h5ad", tmp_path / "out.h5ad", **QUIET)


def test_a_full_disk_leaves_no_file(cohort, tmp_path):
    """Every write to /dev/full fails as on a full disk."""
    cohort[:4].write_h5ad(tmp_path / "in.h5ad")
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")

    def full_disk(source, temporary, adata):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_stream, "_copy", full_disk)
        with pytest.raises(ScMambaError, match="is full"):
            scmamba.impute_file(
                tmp_path / "in.h5ad", tmp_path / "out.h5ad", model=small_model(), passes=1, **QUIET
            )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad"]


def test_an_interrupt_leaves_no_file(tmp_path):
    """A real Ctrl-C to the real command while it imputes."""
    scmamba.datasets.brain_cohort(1500, seed=0).write_h5ad(tmp_path / "in.h5ad")
    scmamba.save_checkpoint(small_model(), tmp_path / "model")
    command = [
        sys.executable,
        "-m",
        "scmamba",
        "impute",
        "in.h5ad",
        "-o",
        "out.h5ad",
        "--model",
        "model",
        "--adapt-steps",
        "0",
    ]

    def hear() -> None:  # a shell's background processes ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=hear
    ) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(tmp_path.glob(".out.h5ad.*/out.h5ad")):
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in errors
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "model"]


def test_a_result_that_does_not_fit_is_written_to_the_target_or_refused(cohort, tmp_path):
    model = small_model("expressed")
    cells = cohort.copy()
    expected = scmamba.impute(cohort.copy(), model=model, **QUIET).layers["scmamba"]
    target = tmp_path / "imputed.h5ad"
    in_memory = impute_or_write(cells, target, model=model, max_values=10**9, **QUIET)
    assert in_memory is cells and not target.exists()
    assert (in_memory.layers["scmamba"] != expected).nnz == 0
    with pytest.raises(DataError, match="R sparse matrix at most 100"):
        impute_or_write(cohort.copy(), None, model=model, max_values=100, **QUIET)
    written = impute_or_write(cohort.copy(), target, model=model, max_values=100, **QUIET)
    assert written.isbacked
    assert list(written.obs["scmamba_low_depth"]) == list(cells.obs["scmamba_low_depth"])
    assert (written.to_memory().layers["scmamba"] != expected).nnz == 0
    with pytest.raises(DataError, match="exists already"):
        impute_or_write(cohort.copy(), target, model=model, max_values=100, **QUIET)
    # From a backed object: its file is not touched.
    cohort.copy().write_h5ad(tmp_path / "in.h5ad")
    before = (tmp_path / "in.h5ad").read_bytes()
    backed = ad.read_h5ad(tmp_path / "in.h5ad", backed="r")
    again = impute_or_write(backed, target, model=model, max_values=0, overwrite=True, **QUIET)
    assert (again.to_memory().layers["scmamba"] != expected).nnz == 0
    assert (tmp_path / "in.h5ad").read_bytes() == before
