"""Old, unusual and misnamed files: labels are right, two files stay two, and everything that was read can be written and read again."""

from __future__ import annotations

import gzip
import lzma
import shutil
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import small_model
from scipy import sparse

import scmamba
from scmamba.data import Collection
from scmamba.data.h5ad_files import check_writable, open_backed, writable_frame, write_h5ad
from scmamba.data.storage import name_apart, open_store
from scmamba.genes import Vocabulary
from scmamba.utils.errors import DataError

PACKED = Path(__file__).parents[2] / "data" / "old_h5ad"
VERSIONS = sorted(p.stem for p in PACKED.glob("*.h5ad.xz") if "other" not in p.name)
#: The first versions with each encoding of columns; earlier ones stored categories elsewhere.
OTHERS = ["anndata-0.5.10", "anndata-0.7.8"]
GENES = [
    "ENSG00000095970",
    "ENSG00000171885",
    "ENSG00000131095",
    "ENSG00000132639",
    "ENSG00000130203",
    "ENSG00000197971",
    "ENSG00000149295",
    "ENSG00000170558",
]
VOCABULARY = Vocabulary.from_ids(GENES)


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """The files of old versions, extracted."""
    folder = tmp_path_factory.mktemp("old_h5ad")
    for packed in PACKED.glob("*.xz"):
        (folder / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
    return folder


def collect(*sources, **options) -> Collection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Collection(list(sources), vocabulary=VOCABULARY, verbose=False, **options)


def cells(**obs) -> ad.AnnData:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"donor": ["1", "2"] * 3, **obs}, index=[f"c{i}" for i in range(6)])
    return ad.AnnData(
        sparse.csr_matrix(rng.poisson(4, (6, 8)).astype(np.float32)),
        obs=frame,
        var=pd.DataFrame(index=list(GENES)),
    )


# --- old files
@pytest.mark.parametrize("name", VERSIONS)
def test_labels_of_old_files_are_strings(old, name):
    found = collect(old / name, label_key="cell_type")
    assert list(found.column("label")) == ["Microglia", "Astrocyte", "Oligodendrocyte"] * 4
    stem = name.removesuffix(".h5ad")
    assert list(found.donors()) == [f"{stem}/d0", f"{stem}/d1"]
    kept = found.filter(min_total=0, min_donor_cells=1, exclude=("microglia",))
    assert set(kept.column("label")) == {"Astrocyte", "Oligodendrocyte"}
    counts = ad.read_h5ad(old / name).X.toarray()
    for layer in (None, "raw"):
        read = collect(old / name, label_key="cell_type", layer=layer)
        np.testing.assert_array_equal(read.totals, counts.sum(axis=1))
        np.testing.assert_array_equal(read.members[0].linear(2, 5).toarray(), counts[2:5])


def test_the_versions_are_those_from_half_to_twelve():
    assert [name.split("-")[1].split(".")[1] for name in VERSIONS] == [
        *("10", "11", "12", "5", "6", "7", "8", "9")
    ]


@pytest.mark.parametrize("version", OTHERS)
def test_equal_codes_of_two_old_files_are_different_labels(old, version):
    found = collect(old / f"{version}.h5ad", old / f"{version}-other.h5ad", label_key="cell_type")
    assert list(found.column("label")[12:]) == ["Neuron", "Astrocyte", "OPC"] * 4
    assert len(found.donors()) == 4


TYPES = ["Microglia", "Astrocyte", "Oligodendrocyte"] * 4


def embed_old(source: Path, target: Path) -> None:
    scmamba.embed_file(source, target, model=small_model(), force=True, verbose=False)


def impute_old(source: Path, target: Path) -> None:
    options = dict(method="masked", passes=1, force=True, verbose=False)
    scmamba.impute_file(source, target, model=small_model(n_genes=None), **options)


def annotate_old(source: Path, target: Path) -> None:
    """As the command does: read, annotate, write."""
    adata = open_backed(source).to_memory()
    check_writable(adata)
    panel = {"Microglia": ["TREM2", "APOE"], "Glia": ["AQP4", "GFAP"], "Neuron": ["SNAP25", "DRD2"]}
    named = scmamba.annotate(adata, markers=panel, force=True, verbose=False)
    write_h5ad(named, target, verbose=False)


def convert_old(source: Path, target: Path) -> None:
    """What convert and find-doublets do with a file: read it into memory and write it."""
    write_h5ad(open_backed(source).to_memory(), target, verbose=False)


@pytest.mark.parametrize("make", [embed_old, impute_old, annotate_old, convert_old])
@pytest.mark.parametrize("name", VERSIONS)
def test_results_from_an_old_file_can_be_read(old, name, make, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(old / name, tmp_path / "e.h5ad")
        before = ad.read_h5ad(old / name)
    after = ad.read_h5ad(tmp_path / "e.h5ad")
    assert list(after.obs["cell_type"]) == list(before.obs["cell_type"]) == TYPES
    assert list(after.obs["donor"]) == ["d0"] * 6 + ["d1"] * 6
    assert list(after.var["kind"]) == list(before.var["kind"]) == ["a", "b"] * 4
    # 0.5 stored no categories of raw.var: the values of its own reader are kept
    assert list(after.raw.var["kind"]) == list(before.raw.var["kind"])
    assert after.obsm["X_pca"].shape == (12, 2) and list(after.uns["note"]["k"]) == [0, 1, 2]
    np.testing.assert_array_equal(after.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(after.raw.X.toarray(), before.X.toarray())
    if "passed" in before.obs:  # 0.8 and later: nullable columns, layers, tables
        assert after.obs["passed"].isna().sum() == 4 == after.obs["cells_seen"].isna().sum()
        np.testing.assert_array_equal(after.obsm["table"]["q"], before.obsm["table"]["q"])
        np.testing.assert_array_equal(after.layers["counts"].toarray(), before.X.toarray())
        assert after.obsp["near"].nnz == 12
    if make is embed_old:
        assert after.obsm["X_scmamba"].shape == (12, 8)
    if make is impute_old:
        layer, x = after.layers["scmamba"].toarray(), before.X.toarray()
        assert ((layer > 0) >= (x > 0)).all() and layer.shape == x.shape
    if make is annotate_old:
        assert set(after.obs["scmamba_type"]) <= {"Microglia", "Glia", "Neuron", "Unassigned"}
        assert after.obs["scmamba_probability"].between(0, 1).all()


# --- data frames that h5ad cannot store
def test_frames_are_made_writable():
    notes: list[str] = []
    frame = pd.DataFrame(
        {
            "a": [1, 2, 3],
            "a/b": [4, 5, 6],
            "a_b": [7, 8, 9],
            "age": [70, "90+", np.nan],
            "seen": pd.to_datetime(["2020-01-01", "2021-02-03", None]),
            "_index": ["x", "y", "z"],
            "text": pd.array(["u", None, "w"], dtype="string"),
            5: [True, None, False],
        },
        index=pd.Index(["x", "y", "z"], dtype="string", name="_index"),
    )
    made = writable_frame(frame, "obs", notes)
    assert list(made.columns) == ["a", "a_b", "a_b_2", "age", "seen", "text", "5"]
    assert made["a_b"].tolist() == [4, 5, 6] and made["a_b_2"].tolist() == [7, 8, 9]
    assert made["age"].tolist()[:2] == ["70", "90+"] and made["age"].isna().tolist()[2]
    assert made["seen"].tolist()[0] == "2020-01-01 00:00:00"
    assert made.index.dtype == object and made.index.name is None
    assert "several types" in " ".join(notes) and "'a/b' is called 'a_b'" in " ".join(notes)
    plain = pd.DataFrame({"a": [1.5], "b": pd.Categorical(["x"])}, index=["c"])
    assert writable_frame(plain, "obs", notes) is plain


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.obs.__setitem__("a/b", 1),
        lambda a: a.obs.__setitem__("age", [70, "90+", 1, 2, 3, np.nan]),
        lambda a: setattr(a, "obs_names", pd.Index(a.obs_names, dtype="string")),
        lambda a: setattr(a, "var_names", pd.Index(a.var_names, dtype="string")),
        lambda a: setattr(a, "raw", ad.AnnData(a.X, var=a.var.assign(_index=GENES))),
    ],
    ids=["slash", "mixed column", "nullable cell names", "nullable gene names", "_index in raw"],
)
def test_whatever_was_read_can_be_written_and_read_again(spoil, tmp_path):
    data = cells()
    spoil(data)
    check_writable(data)
    write_h5ad(data, tmp_path / "x.h5ad", verbose=False)
    after = ad.read_h5ad(tmp_path / "x.h5ad")
    assert list(after.obs_names) == list(data.obs_names) and list(after.var_names) == GENES
    np.testing.assert_array_equal(after.X.toarray(), data.X.toarray())
    assert after.n_obs == 6 and set(after.obs["donor"]) == {"1", "2"}


def test_a_column_index_in_raw_of_a_file_is_streamed(tmp_path):
    """As SeuratDisk writes it: raw/var with a column _index."""
    data = cells()
    data.raw = data
    data.write_h5ad(tmp_path / "in.h5ad")
    with h5py.File(tmp_path / "in.h5ad", "r+") as file:
        frame = file["raw/var"]
        names = np.asarray(ad.io.read_elem(frame[frame.attrs["_index"]]), dtype=object)
        del frame[frame.attrs["_index"]]
        ad.io.write_elem(frame, "_index", names)
        ad.io.write_elem(frame, "features", names)
        frame.attrs["_index"] = "features"
        frame.attrs["column-order"] = np.array(["_index"], dtype=h5py.string_dtype())
    scmamba.embed_file(
        tmp_path / "in.h5ad", tmp_path / "o.h5ad", model=small_model(), force=True, verbose=False
    )
    assert list(ad.read_h5ad(tmp_path / "o.h5ad").raw.var_names) == GENES


def test_an_entry_that_cannot_be_written_is_refused_before_the_work():
    data = cells()
    data.uns["fit"] = {"model": object()}
    with pytest.raises(DataError, match="uns cannot be written"):
        check_writable(data)


# --- names of sources
def test_two_files_of_the_same_name_are_two_studies(tmp_path):
    for folder in ("lab1", "lab2"):
        (tmp_path / folder / "outs").mkdir(parents=True)
        cells().write_h5ad(tmp_path / folder / "outs" / "filtered.h5ad")
    paths = [tmp_path / f / "outs" / "filtered.h5ad" for f in ("lab1", "lab2")]
    assert list(collect(*paths).donors()) == [
        "lab1/filtered/1",
        "lab1/filtered/2",
        "lab2/filtered/1",
        "lab2/filtered/2",
    ]
    shutil.copy(paths[0], tmp_path / "GSM1.brain.h5ad")
    shutil.copy(paths[0], tmp_path / "GSM1.liver.h5ad")
    found = collect(tmp_path / "GSM1.brain.h5ad", tmp_path / "GSM1.liver.h5ad")
    assert found.files == ["GSM1.brain", "GSM1.liver"] and len(found.donors()) == 4
    assert collect(cells(), cells()).files == ["cells1", "cells2"]
    assert len(collect(cells(), cells()).donors()) == 4
    stores = [open_store(path, verbose=False) for path in (paths[0], paths[0], paths[1])]
    name_apart(stores)
    assert len({store.name for store in stores}) == 3


def test_a_zarr_store_edited_in_place_is_read_again(tmp_path):
    zarr = pytest.importorskip("zarr")
    data = cells()
    data.X = sparse.csc_matrix(data.X)  # converted once and cached
    data.write_zarr(tmp_path / "x.zarr")
    before = collect(tmp_path / "x.zarr", cache=tmp_path / "cache").totals
    zarr.open_group(str(tmp_path / "x.zarr"))["X/data"][:] = 2 * data.X.data
    after = collect(tmp_path / "x.zarr", cache=tmp_path / "cache").totals
    np.testing.assert_array_equal(after, 2 * before)


# --- types of files
def tenx(path: Path, version: int = 3, genomes: tuple[str, ...] = ("GRCh38",)) -> np.ndarray:
    """A small 10x HDF5 file of two genes and an antibody (version 3)."""
    counts = np.array([[1, 0, 50], [2, 3, 60]])
    with h5py.File(path, "w") as file:
        for name in ("matrix",) if version == 3 else genomes:
            group = file.create_group(name)
            kept = counts if version == 3 else counts[:, :2]
            matrix = sparse.csr_matrix(kept)
            group["data"], group["indices"] = matrix.data, matrix.indices.astype(np.int64)
            group["indptr"] = matrix.indptr.astype(np.int64)
            group["shape"] = np.array(kept.shape[::-1])
            group["barcodes"] = np.array([b"AAA-1", b"CCC-1"])
            if version == 3:
                features = group.create_group("features")
                features["id"] = np.array([GENES[0].encode(), GENES[1].encode(), b"CD4"])
                features["name"] = np.array([b"TREM2", b"AQP4", b"CD4"])
                features["feature_type"] = np.array(
                    [b"Gene Expression", b"Gene Expression", b"Antibody Capture"]
                )
            else:
                group["genes"] = np.array([g.encode() for g in GENES[:2]])
                group["gene_names"] = np.array([b"TREM2", b"AQP4"])
    return counts[:, :2]


@pytest.mark.parametrize("version", [2, 3])
def test_10x_files_are_read_by_every_command(version, tmp_path):
    counts = tenx(tmp_path / "f.h5", version)
    found = open_backed(tmp_path / "f.h5")
    assert found.X.toarray().tolist() == counts.tolist()
    assert list(found.obs_names) == ["AAA-1", "CCC-1"] and list(found.var_names) == GENES[:2]
    assert list(found.var["symbol"]) == ["TREM2", "AQP4"]
    scmamba.embed_file(
        tmp_path / "f.h5", tmp_path / "o.h5ad", model=small_model(), force=True, verbose=False
    )
    after = ad.read_h5ad(tmp_path / "o.h5ad")
    assert after.obsm["X_scmamba"].shape == (2, 8) and after.X.toarray().tolist() == counts.tolist()


def test_mtx_folders_and_zarr_stores_are_opened(tmp_path):
    from scipy.io import mmwrite

    data = cells()
    folder = tmp_path / "mtx"
    folder.mkdir()
    mmwrite(folder / "matrix.mtx", data.X.T.astype(int))
    (folder / "barcodes.tsv").write_text("\n".join(data.obs_names))
    (folder / "genes.tsv").write_text("\n".join(f"{g}\t{g}s" for g in GENES))
    found = open_backed(folder)
    assert found.X.toarray().tolist() == data.X.toarray().tolist()
    data.write_zarr(tmp_path / "x.zarr")
    assert open_backed(tmp_path / "x.zarr").X.toarray().tolist() == data.X.toarray().tolist()


def test_unsupported_file_types_are_named_in_the_error(tmp_path, monkeypatch):
    data = cells()
    data.write_h5ad(tmp_path / "x.h5ad")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_backed("~/x.h5ad").n_obs == 6
    with gzip.open(tmp_path / "x.h5ad.gz", "wb") as file:
        file.write((tmp_path / "x.h5ad").read_bytes())
    tenx(tmp_path / "two.h5", 2, ("GRCh38", "mm10"))
    with h5py.File(tmp_path / "x.loom", "w") as file:
        for name in ("matrix", "row_attrs", "col_attrs"):
            file.create_group(name)
    with h5py.File(tmp_path / "x.h5mu", "w") as file:
        file.create_group("mod/rna"), file.create_group("mod/prot")
    (tmp_path / "x.csv").write_text("a,b")
    (tmp_path / "empty.h5ad").write_bytes(b"")
    (tmp_path / "x.rds").write_bytes(b"RDX")
    for name, words in {
        "x.h5ad.gz": "compressed with gzip.*gunzip x.h5ad.gz",
        "two.h5": "genomes GRCh38, mm10.*genome='GRCh38'",
        "x.loom": "loom file.*read_loom",
        "x.h5mu": "MuData file with the modalities prot, rna",
        "x.csv": "text table",
        "empty.h5ad": "0 bytes",
        "x.rds": "scmamba convert",
        "none.h5ad": "There is no file",
    }.items():
        with pytest.raises(DataError, match=words):
            open_backed(tmp_path / name)
    with pytest.raises(DataError, match="https://host/x.h5ad is a URL"):
        open_backed(Path("https://host/x.h5ad"))
    with pytest.raises(DataError, match="is a URL"):
        collect("s3://bucket/x.h5ad")


# --- every command, every type of file
def cellbender(path: Path, version: int) -> np.ndarray:
    """CellBender's output: posterior arrays in groups next to the matrix (0.3), or in the group of the matrix (0.2 and earlier)."""
    if version == 3:
        counts = tenx(path, 3)
        with h5py.File(path, "r+") as file:
            for name in ("droplet_latents", "global_latents", "metadata"):
                group = file.create_group(name)
                group["cell_probability"] = np.array([0.9, 1.0])
            file["droplet_latents/gene_expression_encoding"] = np.zeros((2, 4))
        return counts
    counts = tenx(path, 2, ("background_removed",))
    with h5py.File(path, "r+") as file:
        group = file["background_removed"]
        group["latent_cell_probability"] = np.array([0.9, 1.0])
        group["ambient_expression"] = np.array([0.5, 0.5])
    return counts


def every_kind(folder: Path) -> dict[str, str]:
    """A file of every type, and the words of the error; empty for types that are read."""
    from scipy.io import mmwrite

    kinds: dict[str, str] = {}
    data = cells()
    data.write_h5ad(folder / "x.h5ad")
    data.write_zarr(folder / "x.zarr")
    for version in (2, 3):
        tenx(folder / f"v{version}.h5", version)
        cellbender(folder / f"cellbender{version}.h5", version)
        kinds |= {f"v{version}.h5": "", f"cellbender{version}.h5": ""}
    (folder / "mtx").mkdir()
    mmwrite(folder / "mtx" / "matrix.mtx", data.X.T.astype(int))
    (folder / "mtx" / "barcodes.tsv").write_text("\n".join(data.obs_names))
    (folder / "mtx" / "genes.tsv").write_text("\n".join(GENES))  # one column
    kinds |= {"x.zarr": "", "mtx": "", "x.h5ad": ""}
    with gzip.open(folder / "x.h5ad.gz", "wb") as file:
        file.write((folder / "x.h5ad").read_bytes())
    tenx(folder / "two.h5", 2, ("GRCh38", "mm10"))
    with h5py.File(folder / "x.loom", "w") as file:
        for name in ("matrix", "row_attrs", "col_attrs"):
            file.create_group(name)
    with h5py.File(folder / "x.h5mu", "w") as file:
        file.create_group("mod/rna"), file.create_group("mod/prot")
    with h5py.File(folder / "half.h5", "w") as file:  # a matrix without gene names
        for name in ("data", "indices", "indptr", "shape", "barcodes"):
            file[f"matrix/{name}"] = np.array([0])
    (folder / "x.csv").write_text("a,b")
    return kinds | {
        "x.h5ad.gz": "compressed with gzip",
        "two.h5": "holds the genomes GRCh38, mm10",
        "x.loom": "is a loom file",
        "x.h5mu": "MuData file with the modalities prot, rna",
        "half.h5": "has no names of genes",
        "x.csv": "is a text table",
        "https://host/x.h5ad": "is a URL",
        "none.h5ad": "There is no file",
    }


#: Commands, and the words of the error once they could read the file: the next missing thing.
COMMANDS = {
    "impute {} -o o.h5ad --layer no --model small": "no layer 'no'",
    "embed {} -o o.h5ad --layer no --model small": "no layer 'no'",
    "annotate {} -o o.h5ad --truth no": "no column 'no'",
    "annotate x.h5ad -o o.h5ad --reference {} --label-key no": "no column 'no'",
    "find-doublets {} -o o.h5ad --sample-key no --model small": "'no'",
    "prepare {} -o o --donor-key no": "'no'",
    "find-markers {} --groupby no --group1 a -o o.csv": "'no'",
    "find-markers {} --groupby no --group1 a -o o.csv --test pseudobulk --donor-key no": "'no'",
    "compare {} --condition-key no --donor-key no -o o": "'no'",
    "robustness {} --condition-key no --donor-key no -o o": "'no'",
    "report {} -o o.html": "no result of scMamba",
    "evaluate annotation {} --truth no": "no column 'no'",
    "evaluate doublets {} --truth no": "no column 'no'",
    "evaluate clusters {} --truth no": "no layer 'scmamba'",
    "evaluate imputation {} --model small": None,
    "convert {} o.h5ad": "",
    "vocab build {} -o o.tsv --cache cache": "",
    "pretrain {} -o o --vocabulary genes.tsv --donor no --cache cache": "column no in obs",
    "finetune {} -o o --model small --label no --force --cache cache": "column no in obs",
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("kinds")
    from scmamba.model import save_checkpoint

    save_checkpoint(small_model("expressed"), folder / "small")
    VOCABULARY.write(folder / "genes.tsv")
    return folder, every_kind(folder)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_every_file_type_or_names_it(kinds, command, monkeypatch):
    """Exit status 1 and one sentence, never a traceback. If the file can be read, the error is about the next mistake."""
    from typer.testing import CliRunner

    from scmamba.cli.main import app

    folder, expected = kinds
    monkeypatch.chdir(folder)
    for name, words in expected.items():
        if name == "x.h5ad" and "convert" in command:
            words = "already"
        for made in folder.glob("o*"):
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = CliRunner().invoke(app, command.format(name).split())
        assert done.exception is None or isinstance(done.exception, SystemExit), (
            name,
            repr(done.exception),
        )
        output = " ".join(done.output.split())
        if words:
            assert words in output and done.exit_code == 1, (name, output)
        elif COMMANDS[command] is not None:
            assert COMMANDS[command] in output, (name, output)
            assert done.exit_code == bool(COMMANDS[command]), (name, output)


@pytest.mark.parametrize("version", [2, 3])
def test_cellbenders_counts_are_read(version, tmp_path):
    counts = cellbender(tmp_path / "c.h5", version)
    found = open_backed(tmp_path / "c.h5")
    assert found.X.toarray().tolist() == counts.tolist() and list(found.var_names) == GENES[:2]
    np.testing.assert_array_equal(collect(tmp_path / "c.h5", force=True).totals, counts.sum(axis=1))


def test_messages_about_a_file_are_silent_on_request(tmp_path, capsys):
    cells().write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        file.move("obs/donor", "obs/seen/by")
        file["obs"].attrs["column-order"] = np.array(["seen/by"], dtype=h5py.string_dtype())
    for verbose in (True, False):
        scmamba.embed_file(
            tmp_path / "x.h5ad",
            tmp_path / f"{verbose}.h5ad",
            model=small_model(),
            force=True,
            verbose=verbose,
        )
        output = "".join(capsys.readouterr())
        assert ("'seen/by' is called 'seen_by'" in output) is verbose
        assert output == "" or verbose
        assert list(ad.read_h5ad(tmp_path / f"{verbose}.h5ad").obs["seen_by"]) == ["1", "2"] * 3
