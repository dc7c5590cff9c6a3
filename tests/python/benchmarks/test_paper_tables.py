"""The reproduction script on small files in GEO's layouts, served by a real web server on this machine: the result equals the input."""

from __future__ import annotations

import functools
import gzip
import http.server
import io
import json
import re
import tarfile
import threading
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from benchmarks import paper_tables
from benchmarks.geo_tables.download import addresses
from benchmarks.geo_tables.label import by_markers
from benchmarks.geo_tables.read import braak_stages, call_cells, dense_table
from benchmarks.geo_tables.split import splits
from benchmarks.geo_tables.studies import LEFT_OUT, LEVELS, PARTS, STUDIES, TYPES
from scipy import io as mtx
from scipy import sparse

from scmamba.datasets import brain_cohort
from scmamba.utils.errors import ScMambaError

GENOME = "GRCh38-1.2.0_premrna"  # the group of Leng's files


# ------------------------------------------------------------------------------------------------------------ a small GEO


class Geo:
    """A folder behind a web server that counts requests and breaks off at given bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.requested, self.cut = folder, [], []  # type: Path, list[str], list[str]
        geo = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                geo.requested.append(self.path.rsplit("/", 1)[-1])
                file = Path(self.translate_path(self.path))
                if geo.requested[-1] in geo.cut and file.is_file():
                    geo.cut.remove(geo.requested[-1])
                    content = file.read_bytes()
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[: len(content) // 2])
                    self.close_connection = True
                    return
                super().do_GET()

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def put(self, study: str, name: str, content: bytes) -> Path:
        accession = STUDIES[study].accession
        kind = "matrix" if name.endswith("_series_matrix.txt.gz") else "suppl"
        file = self.folder / f"{accession[:-3]}nnn" / accession / kind / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file


@pytest.fixture
def geo(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    geo = Geo(folder)
    yield geo
    geo.server.shutdown()
    geo.server.server_close()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def triplet(prefix: str, cells: ad.AnnData, genes: str = "features") -> dict[str, bytes]:
    buffer = io.BytesIO()
    mtx.mmwrite(buffer, sparse.coo_matrix(cells.X.T), field="integer")
    features = "".join(
        f"{i}\t{s}\tGene Expression\n" for i, s in zip(cells.var["ensembl_id"], cells.var_names)
    )
    barcodes = "".join(f"{b}\n" for b in cells.obs["barcode"])
    texts = {
        "matrix.mtx": buffer.getvalue(),
        f"{genes}.tsv": features.encode(),
        "barcodes.tsv": barcodes.encode(),
    }
    return {f"{prefix}_{name}.gz": gzip.compress(text) for name, text in texts.items()}


def hdf5(cells: ad.AnnData, version: int) -> bytes:
    """CellRanger's file: ``version`` 2 has a group named by the genome, 3 one called matrix."""
    buffer = io.BytesIO()
    counts = sparse.csr_matrix(cells.X)
    with h5py.File(buffer, "w") as file:
        group = file.create_group(GENOME if version == 2 else "matrix")
        ids, names = cells.var["ensembl_id"].to_numpy("S"), cells.var_names.to_numpy("S")
        group["barcodes"] = cells.obs["barcode"].to_numpy("S")
        group["data"], group["indices"], group["indptr"] = (
            counts.data,
            counts.indices.astype(np.int64),
            counts.indptr.astype(np.int64),
        )
        group["shape"] = np.array(counts.shape[::-1], dtype=np.int32)
        if version == 2:
            group["genes"], group["gene_names"] = ids, names
        else:
            features = group.create_group("features")
            features["id"], features["name"] = ids, names
            features["feature_type"] = np.full(len(ids), b"Gene Expression")
    return buffer.getvalue()


def with_droplets(cells: ad.AnnData, seed: int) -> ad.AnnData:
    """The cells among five hundred empty droplets of a few counts, in random order."""
    rng = np.random.default_rng(seed)
    rows = sparse.random(
        500, cells.n_vars, density=20 / cells.n_vars, random_state=rng, format="csr"
    )
    rows.data[:] = 1
    everything = sparse.vstack([sparse.csr_matrix(cells.X), rows.astype(np.int32)], format="csr")
    order = rng.permutation(everything.shape[0])
    barcodes = np.array([*cells.obs["barcode"], *(f"EMPTY{i}-1" for i in range(500))])
    return ad.AnnData(
        everything[order],
        obs=pd.DataFrame({"barcode": barcodes[order]}, index=barcodes[order]),
        var=cells.var,
    )


def series_matrix(stages: dict[str, tuple[str, str]]) -> bytes:
    """``{GSM: (title, Braak stage)}`` as GEO writes it."""
    rows = [
        ["!Sample_title", *(t for t, _ in stages.values())],
        ["!Sample_geo_accession", *stages],
        ["!Sample_characteristics_ch1", *("tissue: brain 6" for _ in stages)],
        ["!Sample_characteristics_ch1", *(f"braak stage: {stage}" for _, stage in stages.values())],
    ]
    lines = [
        '!Series_title\t"Selectively vulnerable neurons"',
        *("\t".join([r[0], *(f'"{c}"' for c in r[1:])]) for r in rows),
    ]
    return gzip.compress("\n".join([*lines, "!series_matrix_table_begin", ""]).encode())


def midbrain(cells: ad.AnnData, rng: np.random.Generator, by_r: bool = False) -> dict[str, bytes]:
    """Smajic's three archives; genes and cells are described in another order than in the table. ``by_r``: with R's row and column names."""
    dense, barcodes = np.asarray(cells.X.T.todense()), cells.obs["barcode"]
    starts = [f'"{gene}"\t' if by_r else "" for gene in cells.var["ensembl_id"]]
    text = "\t".join(f'"{b.replace("-", ".")}"' if by_r else b for b in barcodes) + "\n"
    text += "".join(start + "\t".join(map(str, row)) + "\n" for start, row in zip(starts, dense))
    genes = pd.DataFrame(
        {"gene": cells.var["ensembl_id"], "row": range(1, cells.n_vars + 1), "vst.mean": 0.5}
    )
    about = pd.DataFrame(
        {
            "barcode": cells.obs["barcode"],
            "cell_ontology": cells.obs["cell_type"],
            "patient": cells.obs["sample"],
        }
    )
    files = {"UMI": text}
    for name, table in (("genes", genes), ("cell", about)):
        files[name] = table.iloc[rng.permutation(len(table))].to_csv(sep="\t", index=False)
    stem = "IPDCO_hg_midbrain"
    return {
        f"GSE157783_{stem}_{name}.tar.gz": tar({f"{stem}_{name}.tsv": t.encode()}, "w:gz")
        for name, t in files.items()
    }


def named(cohort: ad.AnnData, samples: dict[str, str]) -> ad.AnnData:
    """The cohort's donors under the sample names of a study, with barcodes."""
    cells = cohort[cohort.obs["donor"].isin(list(samples))].copy()
    cells.obs["sample"] = cells.obs["donor"].astype(str).map(samples)
    letters = np.array(list("ACGT"))
    numbers = np.arange(cells.n_obs)
    cells.obs["barcode"] = [
        "".join(letters[(n // 4**k) % 4] for k in range(16)) + "-1" for n in numbers
    ]
    return cells


@pytest.fixture(scope="module")
def small() -> ad.AnnData:
    """Cells of five donors with at least 200 detected genes, so that none is taken for an empty droplet."""
    cells = brain_cohort(160, n_donors=5, n_genes=2500, seed=3)
    cells = cells[np.diff(cells.X.indptr) >= 220].copy()
    assert cells.obs["donor"].value_counts().min() >= 5
    return cells


#: Donors of the cohort -> samples of a study.
NAMES = {
    "Lau": {"D01": "AD1", "D02": "NC3"},
    "Leng": {"D01": "EC1", "D02": "SFG1", "D03": "EC10"},
    "Smajic": {"D01": "C4", "D02": "PD3", "D03": "IPD5"},
    "Zhu": {"D01": "HSDG10HC", "D02": "HSDG199PD", "D03": "hsDG101HC_HHT"},
}
#: Sample -> donor, diagnosis: the expected result.
TRUTH = {
    "Lau": {"AD1": ("AD1", "AD"), "NC3": ("NC3", "Control")},
    "Leng": {"EC1": ("1", "Braak 0"), "SFG1": ("1", "Braak 0"), "EC10": ("10", "Braak 6")},
    "Smajic": {"C4": ("C4", "Control"), "PD3": ("PD3", "PD"), "IPD5": ("PD5", "PD")},
    "Zhu": {
        "HSDG10HC": ("HSDG10HC", "Control"),
        "HSDG199PD": ("HSDG199PD", "PD"),
        "hsDG101HC_HHT": ("HSDG101HC", "Control"),
    },
}
LENG = {"EC1": "GSM4432646", "SFG1": "GSM4432634", "EC10": "GSM4432655"}


def publish(geo: Geo, study: str, cells: ad.AnnData) -> None:
    """Put a study's files on the server, in the layout it has at GEO."""
    of = {name: cells[cells.obs["sample"] == name] for name in cells.obs["sample"].unique()}
    if study == "Lau":
        files = [triplet(f"GSM477556{i}_{name}", own) for i, (name, own) in enumerate(of.items())]
        geo.put(study, "GSE157827_RAW.tar", tar({k: v for part in files for k, v in part.items()}))
    elif study == "Leng":
        files = {
            f"{LENG[name]}_{name}_raw_gene_bc_matrices_h5.h5": hdf5(with_droplets(own, 1), 2)
            for name, own in of.items()
        }
        geo.put(study, "GSE147528_RAW.tar", tar(files))
        stages = {gsm: (name, TRUTH["Leng"][name][1].split()[1]) for name, gsm in LENG.items()}
        geo.put(study, "GSE147528_series_matrix.txt.gz", series_matrix(stages))
    elif study == "Smajic":
        for name, content in midbrain(cells, np.random.default_rng(5)).items():
            geo.put(study, name, content)
    else:  # one sample with each type of file that may be present
        first, second, *others = of.items()
        files = [
            {f"GSM6106342_{first[0]}_filtered_feature_bc_matrix.h5": hdf5(first[1], 3)},
            triplet(f"GSM6106348_{second[0]}", second[1]),
            *(
                triplet(f"GSM610635{i}_{name}", own, genes="genes")
                for i, (name, own) in enumerate(others)
            ),
        ]
        geo.put(study, "GSE202210_RAW.tar", tar({k: v for part in files for k, v in part.items()}))


def run(geo: Geo, work: Path, step: str, study: str, *more: str) -> int:
    return paper_tables.main(
        [step, "--work", str(work), "--base-url", geo.address, "--study", study, *more]
    )


def expected(study: str, cells: ad.AnnData) -> dict[str, dict[str, int]]:
    """Cell name -> gene (Ensembl ID) -> count, from what was put on the server."""
    counts, ids = cells.X.tocsr(), cells.var["ensembl_id"].to_numpy()
    names = (
        cells.obs["barcode"]
        if study == "Smajic"
        else cells.obs["sample"] + "_" + cells.obs["barcode"]
    )
    return {
        name: dict(zip(ids[counts[i].indices], counts[i].data.tolist()))
        for i, name in enumerate(names)
    }


def found(cells: ad.AnnData) -> dict[str, dict[str, int]]:
    ids = cells.var["ensembl_id"].to_numpy()
    return {
        name: dict(zip(ids[cells.X[i].indices], cells.X[i].data.tolist()))
        for i, name in enumerate(cells.obs_names)
    }


# -------------------------------------------------------------------------------------------------------- download and read


@pytest.mark.parametrize("study", list(NAMES))
def test_cells_read_equal_the_cells_on_the_server(geo, tmp_path, small, study):
    put = named(small, NAMES[study])
    publish(geo, study, put)
    work = tmp_path / "work"
    assert run(geo, work, "download", study) == 0
    assert run(geo, work, "read", study) == 0
    cells = ad.read_h5ad(work / study / "cells.h5ad")
    assert cells.X.dtype == np.int32 and sparse.issparse(cells.X)
    assert found(cells) == expected(study, put)
    assert set(cells.var["ensembl_id"]) == set(put.var["ensembl_id"])
    symbols = dict(zip(put.var["ensembl_id"], put.var_names))
    if study != "Smajic":  # these files have no symbols: they come from the package's table
        assert dict(zip(cells.var["ensembl_id"], cells.var["symbol"])) == symbols
    else:
        same = [symbols[i] == s for i, s in zip(cells.var["ensembl_id"], cells.var["symbol"])]
        assert np.mean(same) > 0.9
    sample = dict(zip(expected(study, put), put.obs["sample"]))
    for name, row in cells.obs.iterrows():
        assert (row["donor"], row["disease"]) == TRUTH[study][sample[name]]
        assert row["sample"] == (row["donor"] if study == "Smajic" else sample[name])
    requested = list(geo.requested)
    assert sorted(requested) == sorted(addresses(STUDIES[study], ""))
    before = (work / study / "cells.h5ad").stat().st_mtime_ns
    assert run(geo, work, "download", study) == 0 and run(geo, work, "read", study) == 0
    assert geo.requested == requested and (work / study / "cells.h5ad").stat().st_mtime_ns == before


def test_an_interrupted_download_is_fetched_again(geo, tmp_path, small, capsys):
    put = named(small, NAMES["Lau"])
    publish(geo, "Lau", put)
    work, name = tmp_path / "work", "GSE157827_RAW.tar"
    geo.cut = [name]
    assert run(geo, work, "download", "Lau") == 0 and geo.requested == [name] * 2
    whole = (geo.folder / "GSE157nnn/GSE157827/suppl" / name).read_bytes()
    mine = work / "Lau" / "raw" / name
    assert mine.read_bytes() == whole
    mine.write_bytes(whole[:5000])  # as after a full disk
    assert run(geo, work, "download", "Lau") == 0 and len(geo.requested) == 3
    assert mine.read_bytes() == whole
    # A file that was put there by hand is used if it is complete, else fetched; partial files of pooch are ignored.
    with tarfile.open(mine) as archive:
        between = archive.getmembers()[3].offset  # the boundary between two files
    for content, number in (
        (whole, 3),
        (whole[: len(whole) // 2], 4),
        (whole[:between], 5),
        (b"<html>busy</html>", 6),
    ):
        (mine.parent / "downloads.json").unlink()
        mine.write_bytes(content)
        assert run(geo, work, "download", "Lau") == 0 and len(geo.requested) == number
        assert mine.read_bytes() == whole
    geo.cut = [name] * 3
    mine.unlink()
    assert run(geo, work, "download", "Lau") == 1
    assert "put by hand" in capsys.readouterr().err and not mine.exists()


def test_a_file_that_changed_since_it_was_fetched_is_refused(geo, tmp_path, small, capsys):
    publish(geo, "Lau", named(small, NAMES["Lau"]))
    work = tmp_path / "work"
    assert run(geo, work, "download", "Lau") == 0
    mine = work / "Lau" / "raw" / "GSE157827_RAW.tar"
    content = bytearray(mine.read_bytes())
    content[700] ^= 1
    mine.write_bytes(content)
    assert run(geo, work, "download", "Lau") == 1
    assert (
        "is not the file that was fetched" in capsys.readouterr().err
        and mine.read_bytes() == content
    )
    publish(geo, "Lau", named(small, {"D01": "AD1", "D03": "NC7"}))  # GEO changes its file
    mine.unlink()
    assert run(geo, work, "download", "Lau") == 1
    assert (
        "gives another file than the one fetched before" in capsys.readouterr().err
        and not mine.exists()
    )


def test_errors_without_file_or_network_give_the_next_step(geo, tmp_path, capsys, monkeypatch):
    assert run(geo, tmp_path / "work", "download", "Zhu") == 1
    text = capsys.readouterr().err
    assert (
        "404" in text
        and "GSE202nnn/GSE202210/suppl/ for what there is" in text
        and geo.requested == ["GSE202210_RAW.tar"]
    )
    monkeypatch.setenv("SCMAMBA_OFFLINE", "1")
    assert run(geo, tmp_path / "work", "download", "Zhu") == 1
    assert "SCMAMBA_OFFLINE" in capsys.readouterr().err and len(geo.requested) == 1
    assert run(geo, tmp_path / "work", "read", "Zhu") == 1
    assert "Run the step 'download' first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("study", "file", "content", "sentence"),
    [
        (
            "Lau",
            "GSE157827_RAW.tar",
            {f"GSM1_{n}_matrix.mtx.gz": b"" for n in ("XX9", "AD1")},
            r"1 of 2 samples.*XX9\. Names like AD1",
        ),
        (
            "Lau",
            "GSE157827_RAW.tar",
            {"filelist.txt": b"nothing"},
            "holds no 10x file.*it holds filelist.txt",
        ),
        (
            "Lau",
            "GSE157827_RAW.tar",
            {"GSM2_AD1_matrix.mtx.gz": b""},
            "sample AD1 lacks its file of barcodes, features",
        ),
        (
            "Lau",
            "GSE157827_RAW.tar",
            {f"GSM{i}_AD1_matrix.mtx.gz": b"" for i in (1, 2)},
            "AD1 stands more than once",
        ),
        (
            "Zhu",
            "GSE202210_RAW.tar",
            {"GSM2_HSDG7_matrix.mtx.gz": b""},
            "names of an unknown form: HSDG7",
        ),
        (
            "Zhu",
            "GSE202210_RAW.tar",
            {"GSM2_HSDG07HC.h5": b"no HDF5"},
            "sample HSDG07HC cannot be read",
        ),
    ],
)
def test_unknown_archives_are_refused_with_their_content(
    geo, tmp_path, capsys, study, file, content, sentence
):
    geo.put(study, file, tar(content))
    work = tmp_path / "work"
    assert run(geo, work, "download", study) == 0
    assert run(geo, work, "read", study) == 1
    assert re.search(sentence, capsys.readouterr().err)
    assert not (work / study / "cells.h5ad").exists()


def test_other_variants_of_the_dense_table(small):
    cells = named(small, {"D01": "C4"})[:4]
    dense = np.asarray(cells.X.T.todense())[:6]
    barcodes, genes = list(cells.obs["barcode"]), [f"G{i}" for i in range(6)]
    in_r = [b.replace("-", ".") for b in barcodes]
    body = ["\t".join(map(str, row)) for row in dense]
    forms = {
        "plain": ("\t".join(barcodes), body, None),
        "quoted, as R writes it": (
            "\t".join(f'"{b}"' for b in in_r),
            [f'"{g}"\t{row}' for g, row in zip(genes, body)],
            genes,
        ),
        "with a word above the row names": (
            "\t".join(["gene", *barcodes]),
            [f"{g}\t{row}" for g, row in zip(genes, body)],
            genes,
        ),
    }
    for name, (header, lines, rows) in forms.items():
        text = io.BytesIO("\n".join([header, *lines, ""]).encode())
        names, given, counts = dense_table(text, set(barcodes), "UMI")
        assert (counts.toarray() == dense).all(), name
        assert given == rows and names in (barcodes, in_r), name
    for broken in (
        body[0].replace(body[0][0], "NA", 1),
        body[0] + "\t1",
        "0.5" + body[0][1:],
        "-1" + body[0][1:],
    ):
        with pytest.raises(ScMambaError, match="line 3 does not hold 4 counts"):
            dense_table(
                io.BytesIO("\n".join([forms["plain"][0], body[0], broken]).encode()),
                set(barcodes),
                "UMI",
            )


def test_the_midbrain_table_as_r_writes_it(geo, tmp_path, small):
    put = named(small, NAMES["Smajic"])
    for name, content in midbrain(put, np.random.default_rng(5), by_r=True).items():
        geo.put("Smajic", name, content)
    assert (
        run(geo, tmp_path, "download", "Smajic") == 0 and run(geo, tmp_path, "read", "Smajic") == 0
    )
    cells = ad.read_h5ad(tmp_path / "Smajic" / "cells.h5ad")
    assert found(cells) == expected("Smajic", put)
    truth = dict(zip(put.obs["barcode"], put.obs["sample"]))
    assert [TRUTH["Smajic"][truth[name]][0] for name in cells.obs_names] == list(cells.obs["donor"])


def test_inconsistent_midbrain_tables_are_refused(geo, tmp_path, small, capsys):
    put = named(small, {"D01": "C4"})
    files = midbrain(put, np.random.default_rng(0))
    stem = "GSE157783_IPDCO_hg_midbrain"
    genes = (
        pd.DataFrame({"gene": put.var["ensembl_id"][:-1]}).to_csv(sep="\t", index=False).encode()
    )
    strangers = (
        pd.DataFrame({"barcode": ["A", "B"], "patient": ["C1", "C1"]})
        .to_csv(sep="\t", index=False)
        .encode()
    )
    nobody = (
        pd.DataFrame({"barcode": put.obs["barcode"], "patient": "X1"})
        .to_csv(sep="\t", index=False)
        .encode()
    )
    headless = b"cell\nA\n"
    bad = {
        f"{stem}_genes.tar.gz": [(genes, "2,500 rows and .* 2,499 genes")],
        f"{stem}_cell.tar.gz": [
            (strangers, "are not in"),
            (nobody, "unknown form: X1"),
            (headless, "no column barcode, "),
        ],
    }
    for name, variants in bad.items():
        for number, (content, sentence) in enumerate(variants):
            for other, good in files.items():
                geo.put(
                    "Smajic", other, tar({"table.tsv": content}, "w:gz") if other == name else good
                )
            work = tmp_path / f"{name}{number}"
            assert run(geo, work, "download", "Smajic") == 0
            assert run(geo, work, "read", "Smajic") == 1
            assert re.search(sentence, capsys.readouterr().err)


def test_droplets_are_called_by_the_rule_of_cell_ranger():
    totals = np.r_[np.full(30, 5000), np.full(70, 600), np.full(5, 499), np.full(900, 20)].astype(
        float
    )
    genes = np.where(np.arange(len(totals)) == 0, 150, 400)
    kept, least = call_cells(totals, genes, 100, None)
    assert least == 500 and kept.sum() == 99 and not kept[0] and kept[1:100].all()
    kept, least = call_cells(totals, genes, 100, 10)
    assert least == 10 and kept.sum() == len(totals) - 1


STAGES = [
    ("braak stage: 2", "2"),
    ("Braak_stage: VI", "6"),
    ("disease: Braak 0, male", "0"),
    ("age: 6", None),
]


@pytest.mark.parametrize(("text", "stage"), STAGES)
def test_braak_stages_in_several_notations(tmp_path, text, stage):
    lines = [
        '!Sample_title\t"EC1"',
        '!Sample_geo_accession\t"GSM1"',
        f'!Sample_characteristics_ch1\t"{text}"',
    ]
    (tmp_path / "GSE147528_series_matrix.txt.gz").write_text(
        "\n".join(lines)
    )  # a server may have unpacked it
    stages = braak_stages(tmp_path, STUDIES["Leng"])
    assert stages == ({} if stage is None else {"GSM1": f"Braak {stage}", "EC1": f"Braak {stage}"})


# ------------------------------------------------------------------------------------------------------- labels and splits


@pytest.fixture
def leng(geo, tmp_path, small):
    """Leng's cells as read, with a table of labels in the authors' format; the work folder, the table and the cells."""
    put = named(small, NAMES["Leng"])
    publish(geo, "Leng", put)
    work = tmp_path / "work"
    assert run(geo, work, "download", "Leng") == 0 and run(geo, work, "read", "Leng") == 0
    table = pd.DataFrame(
        {
            "study": "Leng_2021_Nat_Neurosci",
            "id": put.obs["sample"].map(LENG) + "_" + put.obs["sample"] + "_" + put.obs["barcode"],
            "celltype": put.obs["cell_type"].astype(str),
            "subtype": np.where(np.arange(put.n_obs) % 2, "one", "two"),
            "subcluster": [f"c{i % 3}" for i in range(put.n_obs)],
        }
    )
    return work, table, put


def labelled(geo, work, table, *more):
    file = work / "labels.tsv"
    table.to_csv(file, sep="\t", index=False)
    return run(geo, work, "prepare", "Leng", "--labels", str(file), *more)


def test_labels_of_the_authors_are_assigned_to_their_cells(geo, leng):
    work, table, put = leng
    table = table.set_index(put.obs["sample"] + "_" + put.obs["barcode"])
    table.loc[table.index[0], "celltype"] = "Doublet"
    table.loc[table.index[1], "subtype"] = "Unidentified"
    table.loc[table.index[2], "celltype"] = "Double_positive_Neuron"
    missing = table.index[3]
    assert labelled(geo, work, table.drop(missing)) == 0
    obs = ad.read_h5ad(work / "Leng" / "labelled.h5ad").obs
    assert len(obs) == len(table) and (obs["study"] == "Leng").all()
    for name, row in table.iterrows():
        mine = obs.loc[name]
        if name == missing:
            assert (
                mine["celltype"] == "Unidentified"
                and mine["label_celltype"] == mine["label_subtype"] == ""
            )
        elif row["celltype"] in ("Doublet", "Double_positive_Neuron"):
            assert (
                mine["celltype"] == row["celltype"]
                and mine["label_celltype"] == mine["label_subcluster"] == ""
            )
        else:
            whole = row["celltype"] in (
                "OPC",
                "Pericyte",
                "Endothelial",
            )  # Leng's code does not divide this type
            fine = "" if row["subtype"] == "Unidentified" else f"{row['celltype']}_{row['subtype']}"
            assert mine["label_celltype"] == row["celltype"]
            assert mine["label_subtype"] == (row["celltype"] if whole else fine)
            expected = (
                "" if row["subtype"] == "Unidentified" else f"{row['celltype']}_{row['subcluster']}"
            )
            assert mine["label_subcluster"] == (row["celltype"] if whole else expected)


def test_inconsistent_labels_are_refused(geo, leng, capsys):
    work, table, _ = leng
    for change, sentence in (
        (
            {"id": "nothing"},
            "none of its 1 ids is a cell here. Its first is 'nothing'; the cells are called '",
        ),
        ({"study": "Mathys"}, "has no cell of Leng .* its studies are Mathys"),
        ({"celltype": "T cell"}, "unknown cell types T cell. Known are Astrocyte"),
    ):
        assert labelled(geo, work, table.assign(**change)) == 1
        assert re.search(sentence, capsys.readouterr().err)
    assert labelled(geo, work, table.drop(columns="celltype")) == 1
    assert "no column celltype" in capsys.readouterr().err
    assert labelled(geo, work, table) == 0
    assert run(geo, work, "train", "Leng") == 1
    assert "Run 'prepare' with these first" in capsys.readouterr().err


def test_every_name_in_prepare_is_in_the_published_code(small, tmp_path, monkeypatch):
    import scmamba
    from scmamba.preprocessing import cluster_labels

    names = [*cluster_labels.brain_panels(), *cluster_labels.LEFT_OVER]
    cells = named(small, {f"D0{i}": f"AD{i}" for i in range(1, 6)})[: len(names)].copy()
    cells.obs["scmamba_cluster_type"], cells.var["symbol"] = names, cells.var_names
    cells.write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr(scmamba, "prepare", lambda *_, **__: cells)
    found = by_markers(tmp_path / "cells.h5ad", tmp_path / "prepare", {"min_donor_cells": 1})
    called, labels = found.obs["celltype"].astype(str), found.obs["label_celltype"].astype(str)
    assert set(called[:8]) == set(TYPES) and set(called[8:]) <= set(LEFT_OUT)
    assert list(labels[:8]) == list(called[:8]) and (labels[8:] == "").all()


def test_splits_are_checked_and_stored(geo, leng, capsys):
    work, table, _ = leng
    assert labelled(geo, work, table) == 0
    study = STUDIES["Leng"]

    def options(**content):
        file = work / "splits.json"
        file.write_text(json.dumps(content))
        return paper_tables.parse(["train", "--work", str(work), "--splits", str(file)])

    for content, sentence in (
        ({"Lau": {}}, "does not divide Leng; it divides Lau"),
        (
            {"Leng": {"train": ["EC1"], "test": ["EC7"]}},
            "no donor or sample EC7 with cells left; it has EC1, EC10, SFG1",
        ),
        ({"Leng": {"train": ["EC1"]}}, "puts no donor of Leng in 'test'"),
        ({"Leng": {"train": ["1"], "test": ["SFG1"]}}, "SFG1 of Leng stands in more than one part"),
        ({"Leng": ["EC1"]}, "must be JSON of the form"),
    ):
        with pytest.raises(ScMambaError, match=sentence):
            splits(study, options(**content))
    good = {
        "Leng_2021_Nat_Neurosci": {"train": ["GSM4432646_EC1"], "val": ["SFG1"], "test": ["10"]}
    }
    parts = {"train": ["EC1"], "validation": ["SFG1"], "test": ["EC10"]}
    assert splits(study, options(**good)) == {"how": "given (splits.json)", **parts}
    with pytest.raises(ScMambaError, match="holds another division"):
        splits(study, paper_tables.parse(["train", "--work", str(work), "--test-samples", "seed"]))
    with pytest.raises(
        ScMambaError, match="the published test set: Leng has no donor or sample SFG5, EC7, EC8"
    ):
        splits(study, paper_tables.parse(["train", "--work", str(work)]))


def test_donors_stay_whole_in_random_splits(geo, tmp_path, small):
    cells = named(small, {f"D0{i}": f"EC{i}" for i in range(1, 6)})
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    donors = np.array([name[2:] for name in cells.obs["sample"]])
    region = np.where(np.arange(cells.n_obs) % 2, "EC", "SFG")
    obs = pd.DataFrame(
        {
            "study": "Leng",
            "donor": donors,
            "sample": np.char.add(region, donors),
            "disease": "Braak 0",
            "celltype": labels,
            **{f"label_{level}": labels for level in LEVELS},
        },
        index=cells.obs_names,
    )
    var = pd.DataFrame({"symbol": cells.var_names}, index=cells.var["ensembl_id"].to_numpy())
    for seed in (0, 1):
        work = tmp_path / str(seed)
        (work / "Leng").mkdir(parents=True)
        ad.AnnData(cells.X, obs=obs, var=var).write_h5ad(work / "Leng" / "labelled.h5ad")
        options = paper_tables.parse(
            ["train", "--work", str(work), "--test-samples", "seed", "--seed", str(seed)]
        )
        parts = splits(STUDIES["Leng"], options)
        assert sorted(sum((parts[p] for p in PARTS), [])) == sorted(obs["sample"].unique())
        people = [{name.lstrip("ECSFG") for name in parts[part]} for part in PARTS]
        assert (
            all(people)
            and not people[0] & people[1]
            and not people[0] & people[2]
            and not people[1] & people[2]
        )


# --------------------------------------------------------------------------------------------------------------- training


def check_analyses(geo: Geo, work: Path, small: tuple[str, ...]) -> None:
    """Detectors, imputed zeros, embeddings and Fig. 7 of the study that was trained, and their tables in the report."""
    from scmamba.deg import RobustnessResult
    from scmamba.embedding import marker_map

    given = [word for word in small if word != "--analysis"]
    more = ("--analysis-cells", "150", "--deg-cells", "400", "--permutations", "2")
    assert run(geo, work, "analyze", "Zhu", *given, *more) == 0
    rows = {
        name: json.loads((work / "Zhu" / name / "result.json").read_text())["rows"]
        for name in ("detectors", "zeros", "cells", "genes", "degs")
    }
    found = {row["detector"]: row for row in rows["detectors"]}
    for row in found.values():
        assert row["precision"] == pytest.approx(row["recall"])  # as many are called as there are
        assert row["precision at 10%"] * 0.1 <= row["prevalence"] + 0.01
        assert row["recall at 40%"] >= row["recall at 10%"]
    assert found["scMamba, default"]["AUROC"] > 0.6 and "Scrublet" in found
    values = {row["values"]: row for row in rows["zeros"]}
    assert 0 < values["raw"]["NMI"] <= 1 and "note" in values["MAGIC"]
    assert {row["values"] for row in rows["cells"]} >= {"principal components"}
    expected = marker_map(model="brain-mini")
    assert rows["genes"][0]["same type"] == pytest.approx(expected["own_type"].mean())
    saved = RobustnessResult.load(work / "Zhu" / "degs" / "robustness")
    assert saved.settings["group1"] == "PD" and saved.settings["group2"] == "Control"
    false = [row for row in rows["degs"] if row["kind"] == "null_cells"]
    rates = saved.false_positives().query("kind == 'null_cells'")["rate_nominal"]
    assert sorted(r["false at p < 0.05"] for r in false) == pytest.approx(sorted(rates))
    assert run(geo, work, "report", "Zhu", *small) == 0
    page = (work / "paper_tables.md").read_text()
    for heading in ("Doublet detectors", "Imputed zeros", "Embeddings of genes", "Robustness of"):
        assert f"## {heading}" in page
    assert run(geo, work, "analyze", "Zhu", *given, *more, "--seed", "0") == 0
    assert run(geo, work, "analyze", "Zhu", *given, "--permutations", "3") == 1


@pytest.mark.slow
def test_all_steps_on_one_small_study(geo, tmp_path):
    """Zhu from download to report, labels by markers; the scores in the report are those of the saved checkpoint."""
    from sklearn.metrics import f1_score

    from scmamba.model import load_model

    pytest.importorskip("harmonypy")
    pytest.importorskip("leidenalg")
    cohort = brain_cohort(500, n_donors=5, n_genes=2500, seed=4)
    put = named(
        cohort,
        {
            "D01": "HSDG10HC",
            "D02": "HSDG199PD",
            "D03": "HSDG7HC",
            "D04": "HSDG30PD",
            "D05": "HSDG9HC",
        },
    )
    publish(geo, "Zhu", put)
    work = tmp_path / "work"
    small = (
        "--recipe",
        "small",
        "--steps",
        "2",
        "--min-donor-cells",
        "30",
        "--analysis",
        "--imputation-cells",
        "55",
    )
    assert run(geo, work, "all", "Zhu", *small) == 0
    cells = ad.read_h5ad(work / "Zhu" / "labelled.h5ad")
    truth = dict(
        zip(put.obs["sample"] + "_" + put.obs["barcode"], put.obs["cell_type"].astype(str))
    )
    known = cells.obs[cells.obs["label_celltype"] != ""]
    assert (
        len(known) > 430
        and np.mean([truth[name] == label for name, label in known["label_celltype"].items()]) > 0.9
    )
    parts = json.loads((work / "Zhu" / "splits.json").read_text())
    assert (
        parts["test"] == ["HSDG10HC", "HSDG199PD"]
        and len(parts["train"]) == 2
        and len(parts["validation"]) == 1
    )

    # The classes of the test cells from the checkpoint by another path: dense, in one batch, from the counts on the server.
    model = load_model(work / "Zhu" / "celltype" / "model", device="cpu")
    test = known[known["sample"].isin(parts["test"])]
    mine = put[pd.Index(put.obs["sample"] + "_" + put.obs["barcode"]).get_indexer(test.index)]
    kept = (
        mine.var["ensembl_id"].isin(cells.var_names).to_numpy()
    )  # genes that the preparation kept
    place = {gene: i for i, gene in enumerate(model.genes)}
    dense = np.zeros((len(test), len(model.genes)))
    for j, gene in zip(np.flatnonzero(kept), mine.var["ensembl_id"][kept]):
        if gene in place:
            dense[:, place[gene]] = mine.X[:, j].toarray().ravel()
    x = np.log1p(1e4 * dense / dense.sum(axis=1, keepdims=True)).astype(np.float32)
    called = np.array(model.labels)[model.classify(x).numpy().argmax(axis=1)]
    answer = test["label_celltype"].astype(str)
    f1 = {
        k: f1_score(answer, called, average=k, labels=sorted(set(answer)), zero_division=0)
        for k in ("macro", "weighted")
    }

    page = (work / "paper_tables.md").read_text()
    train = int(known["sample"].isin(parts["train"]).sum())
    row = next(line for line in page.splitlines() if line.startswith("| Zhu | celltype |"))
    numbers = [cell.strip() for cell in row.strip("|").split("|")]
    assert numbers[2] == "0.9940" and numbers[6:] == ["50,157", str(train), str(len(test))]
    assert numbers[3] == f"{f1['macro']:.4f}" and numbers[5] == f"{f1['weighted']:.4f}"
    assert "| Lau | celltype | 0.9983 | - | - | - | 87,779 | - | - |" in page
    assert "| Zhu | subtype | 0.6889 | - | - | - | 49,456 | - | - |" in page
    assert (
        "trained for 2 steps only" in page
        and "is not published" in page
        and "divided with seed 0" in page
    )
    table = (
        pd.read_csv(work / "paper_tables.tsv", sep="\t")
        .set_index(["study", "task", "row", "metric"])
        .sort_index()
    )
    number = table["here"].loc[("Zhu", "celltype")].droplevel(0)["macro"]
    assert float(np.ravel(number)[0]) == pytest.approx(f1["macro"], abs=1e-6)
    single = ~cells.obs["celltype"].isin(("Doublet", "Unidentified")) & cells.obs["sample"].isin(
        parts["train"]
    )
    row = next(
        line for line in page.splitlines() if line.startswith("| Zhu |") and "| 55,834 |" in line
    )
    assert f"| 55,834 | {single.sum()} |" in row
    doublets = table["here"].loc[("Zhu", "doublets")].droplevel(0)
    assert doublets["prevalence"] == pytest.approx(
        1 / 3, abs=0.02
    )  # the small recipe's value: half the number of cells
    assert 0 <= doublets["AUROC"] <= 1
    imputed = table["here"].loc[("Zhu", "imputation")]
    assert {"gene_rate", "neighbor_rate"} < set(imputed.index.get_level_values(0)) and (
        imputed.loc[:, "mse"] > 0
    ).all()

    check_analyses(geo, work, small)

    # Completed steps are not repeated; other settings are refused.
    products = ("result.json", "model.safetensors", "labelled.h5ad", "cells.h5ad")
    stamps = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.name in products}
    requested = len(geo.requested)
    assert len(stamps) == 13 and run(geo, work, "all", "Zhu", *small) == 0
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps and len(geo.requested) == requested
    assert run(geo, work, "train", "Zhu", *small, "--steps", "5") == 1
    (
        work / "Zhu" / "celltype" / "result.json"
    ).unlink()  # scored again from the checkpoint, with the same result
    assert run(geo, work, "train", "Zhu", *small) == 0
    again = json.loads((work / "Zhu" / "celltype" / "result.json").read_text())
    assert again["scores"]["macro"] == pytest.approx(f1["macro"], abs=1e-6)
    assert {
        p: p.stat().st_mtime_ns for p in stamps if p.name == "model.safetensors"
    }.items() <= stamps.items()


@pytest.mark.slow
def test_subtypes_of_the_authors_are_learned_and_shared_donors_are_reported(geo, leng, capsys):
    work, table, put = leng
    splits = work / "given.json"
    splits.write_text(json.dumps({"Leng": {"train": ["EC1", "EC10"], "test": ["SFG1"]}}))
    labels = work / "labels.tsv"
    table.to_csv(labels, sep="\t", index=False)
    given = (
        "--labels",
        str(labels),
        "--splits",
        str(splits),
        "--recipe",
        "small",
        "--steps",
        "2",
        "--analysis",
        "--min-donor-cells",
        "0",
    )
    assert run(geo, work, "all", "Leng", *given, "--task", "subtype") == 0
    page = (work / "paper_tables.md").read_text()
    test = put.obs["sample"] == "SFG1"
    row = next(line for line in page.splitlines() if line.startswith("| Leng | subtype |"))
    assert [c.strip() for c in row.strip("|").split("|")][2::4] == ["0.6503", "36,796"]
    assert row.endswith(f"| {(~test).sum()} | {test.sum()} |")
    assert (
        "Leng: the donors 1 are in the test set with one sample and in training with another"
        in page
    )
    assert "given (given.json)" in page and "labels.tsv (SHA-256" in page
    assert (
        run(geo, work, "train", "Leng", *given, "--task", "imputation", "--imputation-cells", "20")
        == 1
    )
    assert "imputation is judged on at least 50 test cells" in capsys.readouterr().err
    assert (
        run(geo, work, "train", "Leng", *given, "--task", "subtype", "--imputation-cells", "20")
        == 0
    )
    assert "subtype: done already" in capsys.readouterr().err


def test_an_empty_report_is_refused(tmp_path, capsys):
    assert paper_tables.main(["report", "--work", str(tmp_path)]) == 1
    assert "Run the step 'train' first" in capsys.readouterr().err


def test_the_page_shows_the_published_numbers_of_cells_and_their_steps():
    from documents import text_of

    page = text_of("docs/paper.md")
    for study in STUDIES.values():
        cells = study.cells
        numbers = " / ".join(f"{cells[task]:,}" for task in ("celltype", "doublets", "imputation"))
        steps = [
            f"{round(5 * cells['celltype'] / 16):,}",
            f"{round(5 * cells['imputation'] / 8):,}",
        ]
        assert f"| {study.name} | {numbers} | {steps[0]} | {steps[1]} |" in page, steps
