"""Collections: every file type gives the same cells; reading is shuffled, complete, divided among readers and needs little memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import io, sparse

from scmamba.data import read_cells
from scmamba.data import storage as stores
from scmamba.data.collection import Collection, read_splits, write_splits
from scmamba.data.sampler import N_STRIPES, EpochSampler, shuffle_window
from scmamba.data.vocabulary_builder import build_vocabulary, read_gtf
from scmamba.datasets import brain_cohort
from scmamba.genes import Vocabulary, annotation
from scmamba.utils.errors import DataError, GeneError


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Real genes in another order than the vocabulary's, simulated counts; some genes have two rows, some are unknown."""
    data = brain_cohort(150, n_donors=3, n_genes=900, seed=4)
    data = data[:, np.random.default_rng(0).permutation(data.n_vars)].copy()
    names = data.var_names.to_numpy().astype(object)
    names[5], names[6] = names[7], "ENSG09999999999"
    obs = data.obs[["donor", "disease", "cell_type"]]
    data = ad.AnnData(
        sparse.csr_matrix(data.X, dtype=np.int32), obs=obs, var=pd.DataFrame(index=names)
    )
    data.obs_names = [f"cell{i}" for i in range(data.n_obs)]
    return data


def truth(data: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """What `read_cells`, which has its own tests, returns for the same object: values over the vocabulary, and totals."""
    vocabulary = Vocabulary.published()
    read = read_cells(data, vocabulary, force=True)
    values, totals = read.to_model(read.linear(slice(0, data.n_obs)))
    whole = np.zeros((data.n_obs, len(vocabulary)), np.float32)
    whole[:, read.genes] = values.toarray()
    return whole, totals


def write_10x(data: ad.AnnData, path: Path) -> None:
    """CellRanger 3's layout, with an antibody, which is not a gene."""
    antibody = sparse.csr_matrix(np.full((data.n_obs, 1), 7))
    matrix = sparse.hstack([data.X[:, :400], antibody, data.X[:, 400:]]).tocsr()
    ids = [*data.var_names[:400], "CD3", *data.var_names[400:]]
    kinds = ["Antibody Capture" if i == "CD3" else "Gene Expression" for i in ids]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = np.array(matrix.shape[::-1])
        group["barcodes"] = np.array(data.obs_names, dtype="S")
        for name, values in (("id", ids), ("name", ids), ("feature_type", kinds)):
            group[f"features/{name}"] = np.array(values, dtype="S")


def write_mtx(data: ad.AnnData, folder: Path) -> None:
    folder.mkdir()
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(data.X.T))
    pd.DataFrame([[i, i, "Gene Expression"] for i in data.var_names]).to_csv(
        folder / "features.tsv", sep="\t", header=False, index=False
    )
    pd.Series(data.obs_names).to_csv(folder / "barcodes.tsv", header=False, index=False)
    subprocess.run(["gzip", *map(str, folder.iterdir())], check=True)


def write(data: ad.AnnData, kind: str, folder: Path) -> Path | ad.AnnData:
    path = folder / f"study.{kind}"
    other = data.copy()
    if kind == "h5ad":
        data.write_h5ad(path, compression="gzip")
    elif kind == "csc.h5ad":
        other.X = sparse.csc_matrix(other.X)
        other.write_h5ad(path)
    elif kind == "dense.h5ad":
        other.X = other.X.toarray()
        other.write_h5ad(path)
    elif kind == "zarr":
        data.write_zarr(path)
    elif kind == "h5":
        write_10x(data, path)
    elif kind == "mtx":
        write_mtx(data, path)
    elif kind == "rds":
        pytest.importorskip("rpy2")
        if shutil.which("R") is None:
            pytest.skip("R is not installed")
        other.var_names_make_unique()
        other.write_h5ad(folder / "for_r.h5ad")
        command = [
            sys.executable,
            "-m",
            "scmamba",
            "convert",
            str(folder / "for_r.h5ad"),
            str(path),
            "--to",
            "seurat",
            "--quiet",
        ]
        done = subprocess.run(
            command, capture_output=True, text=True
        )  # in this process R would stay loaded for all other tests
        if done.returncode:
            pytest.skip(done.stderr)
    else:
        return other
    return path


@pytest.mark.parametrize(
    "kind", ["h5ad", "csc.h5ad", "dense.h5ad", "zarr", "h5", "mtx", "rds", "memory"]
)
def test_every_file_type_gives_the_same_cells(kind, cells, tmp_path):
    source = write(cells, kind, tmp_path)
    expected = cells
    if (
        kind == "rds"
    ):  # R's row names are unique: the second row of a gene gets another name, which is unknown
        expected = cells.copy()
        expected.var_names_make_unique()
    values, totals = truth(expected)
    found = Collection([source], cache=tmp_path / "cache", force=True, verbose=False)
    chosen = np.random.default_rng(1).permutation(150)[:60]
    block = found.read(chosen)
    np.testing.assert_array_equal(block.values.toarray(), values[chosen])
    np.testing.assert_array_equal(block.totals, totals[chosen])
    np.testing.assert_array_equal(found.totals, totals)
    np.testing.assert_array_equal(found.lengths, (values != 0).sum(axis=1))
    np.testing.assert_array_equal(found.detected(), (values != 0).sum(axis=0))
    if kind not in ("h5", "mtx"):  # these formats have no cell metadata
        assert (found.column("donor") == cells.obs["donor"].astype(str).to_numpy()).all()
        assert (found.column("label") == cells.obs["cell_type"].astype(str).to_numpy()).all()


def test_converted_files_and_summaries_are_cached_until_the_file_changes(cells, tmp_path):
    path = write(cells, "csc.h5ad", tmp_path)
    first = Collection([path], cache=tmp_path / "cache", force=True, verbose=False)
    assert first.totals.sum() > 0
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert sorted(Path(n).suffix for n in kept) == [".h5ad", ".npz"]
    again = Collection([path], cache=tmp_path / "cache", force=True, verbose=False)
    np.testing.assert_array_equal(again.totals, first.totals)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == kept
    fewer = cells[:100].copy()
    fewer.X = sparse.csc_matrix(fewer.X)
    fewer.write_h5ad(path)
    assert len(Collection([path], cache=tmp_path / "cache", force=True, verbose=False)) == 100


def test_of_several_processes_one_converts_and_the_others_wait(cells, tmp_path, monkeypatch):
    path, conversions = write(cells, "csc.h5ad", tmp_path), []
    convert = stores._convert

    def slow(*arguments):
        conversions.append(arguments)
        time.sleep(0.1)
        convert(*arguments)

    monkeypatch.setattr(stores, "_convert", slow)
    with ThreadPoolExecutor(3) as pool:
        opened = list(
            pool.map(
                lambda _: stores.open_store(path, cache=tmp_path / "cache", verbose=False).shape,
                range(3),
            )
        )
    assert opened == [cells.shape] * 3 and len(conversions) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1, "no lock is left"


def test_layers_logarithms_and_refusals(cells, tmp_path):
    data = cells[:, ~cells.var_names.duplicated(keep=False)].copy()
    data.layers["raw"] = data.X.copy()
    totals = np.asarray(data.X.sum(axis=1)).ravel()
    data.X = sparse.csr_matrix(
        np.log1p(data.X.toarray() / totals[:, None] * 1e4).astype(np.float32)
    )
    data.write_h5ad(tmp_path / "log.h5ad")
    logs = Collection([tmp_path / "log.h5ad"], cache=tmp_path, force=True, verbose=False)
    raw = Collection(
        [tmp_path / "log.h5ad"], layer="raw", cache=tmp_path, force=True, verbose=False
    )
    known = raw.members[0].match.positions >= 0
    np.testing.assert_allclose(
        logs.read(np.arange(9)).values.toarray(),
        raw.read(np.arange(9)).values.toarray(),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(
        raw.totals, np.asarray(data.layers["raw"][:, known].sum(axis=1)).ravel()
    )
    with pytest.raises(DataError, match="no layer 'spliced'"):
        Collection([tmp_path / "log.h5ad"], layer="spliced", cache=tmp_path, force=True)
    with pytest.raises(GeneError, match="log: The data measure only"):
        Collection([tmp_path / "log.h5ad"], cache=tmp_path)
    with pytest.raises(DataError, match="There is no file"):
        Collection([tmp_path / "none.h5ad"])
    (tmp_path / "text.h5ad").write_text("not HDF5")
    with pytest.raises(DataError, match="not an h5ad .HDF5. file, nor another kind"):
        Collection([tmp_path / "text.h5ad"])
    whole = (tmp_path / "log.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated"):
        Collection([tmp_path / "cut.h5ad"])
    with pytest.raises(DataError, match="No file has a column patient_number"):
        Collection([tmp_path / "log.h5ad"], donor_key="patient_number", cache=tmp_path, force=True)


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Collection:
    """Two studies with different columns and genes; the second has a donor with few cells, doublets and empty droplets."""
    folder = tmp_path_factory.mktemp("studies")
    first = brain_cohort(400, n_donors=2, n_genes=3000, seed=1)
    second = brain_cohort(300, n_donors=2, n_genes=2500, seed=2)
    second.obs["subject"] = np.where(np.arange(300) < 20, "few", second.obs["donor"].astype(str))
    second.obs["annotation"] = np.where(
        np.arange(300) % 10 == 0, "Doublet", second.obs["cell_type"].astype(str)
    )
    del second.obs["donor"], second.obs["cell_type"]
    counts = second.X.tolil()
    counts[290:] = 0
    second.X = counts.tocsr()
    first.write_h5ad(folder / "first.h5ad")
    second.write_h5ad(folder / "second.h5ad")
    return Collection(
        [folder / "first.h5ad", folder / "second.h5ad"],
        label_key=("annotation", "cell_type"),
        cache=folder,
        verbose=False,
    )


def test_columns_have_one_name_and_filters_are_those_of_the_paper(studies):
    obs = studies.obs
    assert list(obs.groupby("study", observed=True).size()) == [400, 300]
    kept = studies.filter(min_donor_cells=50)
    left = kept.obs
    expected = obs[(obs.total >= 200) & (obs.label != "Doublet")]
    expected = expected[
        expected.groupby(["study", "donor"], observed=True)["total"].transform("size") >= 50
    ]
    assert "few" in set(obs.donor) and "few" not in set(left.donor)
    np.testing.assert_array_equal(kept.cells, expected.index.to_numpy())
    deep = studies.filter(min_donor_cells=50, above=4000)
    assert (deep.totals > 4000).all() and len(deep) == (left.total > 4000).sum()
    with pytest.raises(
        DataError, match="No cell is left of 700 .*fewer than 1,000,000 counts: 700"
    ):
        studies.filter(min_total=1e6)


def test_splits_divide_donors_and_can_be_reused(studies, tmp_path):
    usable = studies.filter(min_donor_cells=50)
    table = usable.split(validation=0.25, test=0.25, seed=3)
    assert sorted(table["split"]) == ["test", "train", "train", "validation"]
    write_splits(table, tmp_path / "splits.tsv")
    parts = {
        name: usable.select(tmp_path / "splits.tsv", name)
        for name in ("train", "validation", "test")
    }
    together = np.sort(np.concatenate([part.cells for part in parts.values()]))
    np.testing.assert_array_equal(together, usable.cells)
    assert not set(parts["train"].donors()) & (
        set(parts["validation"].donors()) | set(parts["test"].donors())
    )
    pd.testing.assert_frame_equal(read_splits(tmp_path / "splits.tsv"), table)
    with pytest.raises(DataError, match="does not name the donors second/few"):
        studies.select(table, "train")
    with pytest.raises(DataError, match="4 named donors; 3 parts|2 named donors; 3 parts"):
        usable.take(usable.file_of(usable.cells) == 0).split()


def test_an_epoch_has_every_cell_once_and_a_new_order(studies):
    usable = studies.filter(min_donor_cells=0, exclude=())
    epochs = [
        np.concatenate([b.cells for b in usable.batches(16, seed=1, epoch=e, span=256)])
        for e in (0, 0, 1)
    ]
    np.testing.assert_array_equal(epochs[0], epochs[1])
    for order in epochs:
        assert len(set(order)) == len(order) == len(usable) // N_STRIPES * N_STRIPES
        assert set(order) <= set(usable.cells)
    assert (epochs[0] != epochs[2]).mean() > 0.9
    first = usable.file_of(epochs[0][:128])
    assert 0.3 < (first == 0).mean() < 0.9, "a batch holds cells of both files"
    block = next(usable.batches(16, seed=1, span=256))
    np.testing.assert_array_equal(block.values.toarray(), usable.read(block.cells).values.toarray())


@pytest.mark.parametrize("readers", [2, 3])
def test_processes_and_workers_divide_the_order(studies, readers):
    def cells_of(**share):
        return np.concatenate(
            [b.cells for b in studies.batches(8, seed=2, epoch=1, span=256, **share)]
        )

    whole = cells_of()
    for kind in ({"world": readers}, {"workers": readers}):
        name = "rank" if "world" in kind else "worker"
        parts = [cells_of(**kind, **{name: r}) for r in range(readers)]
        start = (-len(whole)) % readers  # positions are counted from the first epoch
        for r, part in enumerate(parts):
            np.testing.assert_array_equal(part, whole[(r + start) % readers :: readers])


def test_order_mixes_lanes_of_whole_blocks():
    order = EpochSampler(n=100_000, block=64, span=8192, seed=0)
    epoch = order.epoch(0)
    assert len(set(epoch.tolist())) == len(epoch) == 99_968
    eighth = np.sort(epoch[: order.span][3::8])
    runs = np.diff(np.flatnonzero(np.diff(eighth) > 1))
    assert runs.mean() > 32, (
        "every eighth position comes from blocks, a few cut at the ends of lanes"
    )
    # Cells next to each other in the order are far apart in the files, as in a full shuffle (a third of the length on average).
    assert abs(np.abs(np.diff(epoch[: order.span])).mean() / 100_000 - 1 / 3) < 0.03
    alike = EpochSampler(
        n=10_000, span=4096, group=16, lengths=np.random.default_rng(0).integers(100, 5000, 10_000)
    )
    batches = alike.epoch(0)[:4096].reshape(-1, 16)
    assert np.ptp(alike.lengths[batches], axis=1).mean() < 1000
    assert sorted(alike.epoch(0).tolist()) == sorted(set(alike.epoch(0).tolist()))


def test_memory_does_not_grow_with_the_collection():
    assert shuffle_window(10**6, 1000) * 8 * 1000 <= 100e6
    assert shuffle_window(10**7, 8000) * 8 * 8000 <= 100e6
    assert shuffle_window(500, 1000) <= 500


def test_the_vocabulary_follows_the_rule_of_the_paper(tmp_path):
    known = annotation()
    y = known[known.chromosome == "Y"].ensembl_id.iloc[0]
    genes = list(
        known[(known.chromosome == "1") & (known.biotype == "protein_coding")].ensembl_id[:6]
    )
    counts = np.zeros((1000, 6), int)
    counts[:, 0] = 3
    counts[:4, 1], counts[:5, 2] = (
        1,
        1,
    )  # 4 and 5 of all 2,000 cells are 0.2%; with the other study's 5 it is 0.5%
    counts[:, 3] = 1
    one = ad.AnnData(
        sparse.csr_matrix(counts),
        var=pd.DataFrame(index=[genes[0], genes[1], genes[2], y, genes[4], "not a gene"]),
    )
    other = one.copy()[:, [2, 0]].copy()
    other.X = sparse.csr_matrix(
        np.tile([[0, 2]], (1000, 1)) + np.outer(np.arange(1000) < 5, [1, 0])
    )
    built, table = build_vocabulary([one, other], cache=tmp_path, verbose=False)
    assert list(built) == sorted([genes[0], genes[2]])
    row = table.set_index("ensembl_id").loc[genes[2]]
    assert row["cells"] == 10 and row["fraction"] == 0.005 and row["kept"]
    # If the other study is excluded from the rule: 5 of 1,000 cells; its cells are still in the table.
    alone, table = build_vocabulary([one], not_counted=[other], cache=tmp_path, verbose=False)
    assert list(alone) == sorted([genes[0], genes[2]])
    assert table.set_index("ensembl_id").loc[genes[2], ["cells", "fraction"]].tolist() == [5, 0.005]
    assert table.set_index("ensembl_id").loc[genes[2], "cells_not_counted"] == 5
    rare, table = build_vocabulary([other], not_counted=[one], cache=tmp_path, verbose=False)
    assert list(rare) == sorted([genes[0], genes[2]])
    unseen = table.set_index("ensembl_id").loc[genes[1]]
    assert unseen[["cells", "cells_not_counted"]].tolist() == [0, 4] and not unseen["kept"]
    gtf = tmp_path / "genes.gtf"
    line = 'chr{}\tx\t{}\t1\t2\t.\t+\t.\tgene_id "{}.4"; gene_name "{}";\n'
    lines = [
        line.format(1, "gene", genes[0], "AA"),
        line.format(1, "exon", genes[1], "BB"),
        line.format("Y", "gene", y, "CC"),
    ]
    gtf.write_text("#!comment\n" + "".join(lines))
    assert read_gtf(gtf).to_numpy().tolist() == [[genes[0], "AA", "1"], [y, "CC", "Y"]]
    only, _ = build_vocabulary([one], gtf=gtf, cache=tmp_path, verbose=False)
    assert list(only) == [genes[0]] and only.symbols == ("AA",)


def test_vocab_build_runs_as_a_command(studies, tmp_path):
    files = [str(m.store.path) for m in studies.members]
    command = [
        sys.executable,
        "-m",
        "scmamba",
        "vocab",
        "build",
        *files,
        "-o",
        str(tmp_path / "genes.tsv"),
        "-q",
    ]
    environment = {**os.environ, "SCMAMBA_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "genes counted" in done.stdout
    built = Vocabulary.read(tmp_path / "genes.tsv")
    seen = Collection(files, vocabulary=built, cache=tmp_path, verbose=False).detected() / len(
        studies
    )
    assert (seen >= 0.005).all() and list(built) == sorted(built)


def test_real_files_agree_with_reading_them_into_memory(pbmc, tmp_path):
    values, totals = truth(ad.read_h5ad(pbmc))
    found = Collection([pbmc], cache=tmp_path, verbose=False)
    np.testing.assert_array_equal(found.totals, totals)
    np.testing.assert_array_equal(found.read(np.arange(300)).values.toarray(), values)
