"""Every option of the command line reaches its verb under the right name; options that are not given have the documented default."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scmamba.cli.main import app
from scmamba.datasets.options import CohortOptions
from scmamba.deg.options import RobustnessOptions
from scmamba.utils.errors import ScMambaError

IN, OUT = Path("in.h5ad"), Path("out.h5ad")


class Verb:
    """Replaces a verb and records its arguments."""

    def __init__(self, answer: object = None) -> None:
        self.answer, self.calls = answer, []

    def __call__(self, *positional: object, **named: object) -> object:
        self.calls.append((positional, named))
        return self.answer


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty folder and check its exit status."""
    monkeypatch.chdir(tmp_path)

    def call(line: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == code, result.output
        return result.output

    return call


@pytest.fixture
def verb(monkeypatch):
    """Replace the verb at an import path."""

    def replace(address: str, answer: object = None) -> Verb:
        made = Verb(answer)
        monkeypatch.setattr(address, made)
        return made

    return replace


@pytest.fixture
def cells(tmp_path) -> ad.AnnData:
    obs = pd.DataFrame(
        {
            "known": ["A", "B", None],
            "call": ["A", "A", "B"],
            "sure": [0.9, 0.5, 0.4],
            "score": [0.8, 0.3, 0.1],
            "twin": ["doublet", "Singlet", "singlet"],
            "donor": ["d1", "d2", "d2"],
        },
        index=["a", "b", "c"],
    )
    adata = ad.AnnData(
        np.array([[1.0, 0], [0, 2], [3, 3]], np.float32),
        obs=obs,
        layers={"scmamba": np.ones((3, 2), np.float32)},
    )
    adata.write_h5ad(tmp_path / "in.h5ad")
    return adata


COMMON = dict(
    model=None,
    layer=None,
    gene_column=None,
    batch_size=None,
    device=None,
    backend=None,
    force=False,
    overwrite=False,
    verbose=True,
)
GIVEN = "--model m --layer L --gene-column g --batch-size 3 --device cpu --backend b --force --overwrite -q"
SAID = dict(
    model="m",
    layer="L",
    gene_column="g",
    batch_size=3,
    device="cpu",
    backend="b",
    force=True,
    overwrite=True,
    verbose=False,
)


def test_impute(run, verb):
    made = verb("scmamba.imputation.distributed.impute_file_shared")
    assert "layers['scmamba']" in run("impute in.h5ad -o out.h5ad")
    run(
        f"impute in.h5ad -o out.h5ad {GIVEN} --method masked --batch-key d --adapt-steps 0 --sd --min-probability 0.5 --max-filled 0.4 --passes 4 --min-value 0.5 --to-counts --seed 7"
    )
    plain = dict(
        method=None,
        batch_key=None,
        values="zeros",
        sd=False,
        min_probability=0.95,
        max_filled=0.25,
        adapt_steps=300,
        passes=10,
        min_value=None,
        to_counts=False,
        seed=0,
    )
    other = dict(
        method="masked",
        batch_key="d",
        values="zeros",
        sd=True,
        min_probability=0.5,
        max_filled=0.4,
        adapt_steps=0,
        passes=4,
        min_value=0.5,
        to_counts=True,
        seed=7,
    )
    assert made.calls == [((IN, OUT), COMMON | plain), ((IN, OUT), SAID | other)]
    old = "--method published --batch d --no-adapt --sd --min-probability 0.5 --max-filled 0.4 --passes 4 --min-value 0.5 --to-counts"
    result = run(f"impute in.h5ad -o out.h5ad {GIVEN} {old} --seed 7")  # the options before 0.2.0
    assert "--method published was renamed to --method masked" in result and "--adapt was" in result
    assert made.calls[2] == made.calls[1]
    for bad in ("--passes 0", "--min-value -1", "--batch-size 0", "--method other"):
        run(f"impute in.h5ad -o out.h5ad {bad}", 2)


def test_embed(run, verb):
    made = verb("scmamba.embedding.embed_file")
    run("embed in.h5ad -o out.h5ad")
    run(f"embed in.h5ad --output out.h5ad {GIVEN}")
    assert made.calls == [((IN, OUT), COMMON), ((IN, OUT), SAID)]


def test_annotate(run, verb, cells, tmp_path):
    found = SimpleNamespace(
        to_adata=lambda adata: None,
        labels=lambda: pd.Series(["A", "Unassigned", "B"]),
        to_table=lambda: pd.DataFrame({"t": [1]}),
        report=lambda known: pd.DataFrame({"f1": [0.12345]}, index=[list(known)]),
    )
    made = verb("scmamba.annotation.annotate", found)
    plain = dict(
        reference=None,
        label_key=None,
        model=None,
        markers=None,
        donor_key="donor",
        region=None,
        layer=None,
        reference_layer=None,
        gene_column=None,
        finetune_steps=0,
        error_rate=0.05,
        across_studies=False,
        device=None,
        cache=True,
        seed=0,
        force=False,
        return_result=True,
        verbose=True,
    )
    assert "types of 2 of 3 cells" in run("annotate in.h5ad -o out.h5ad")
    assert made.calls[0][1] == plain and made.calls[0][0][0].shape == (3, 2)
    cells[:2].copy().write_h5ad(tmp_path / "known.h5ad")
    (tmp_path / "m.tsv").write_text("type\tgenes\nA\tX, Y,\n#B\tZ\n\nA\tZ\n")
    run(
        "annotate in.h5ad -o out.h5ad --reference known.h5ad --labels big --labels small --model m --markers m.tsv --donor d --region cortex --layer L --reference-layer R "
        "--gene-column g --no-network --across-studies --error-rate 0.1 --device cpu --no-cache --seed 3 --force --overwrite -q --table t.csv"
    )
    named = dict(made.calls[1][1])
    assert named.pop("reference").n_obs == 2
    assert named == dict(
        label_key=["big", "small"],
        model="m",
        markers={"A": ["X", "Y", "Z"]},
        donor_key="d",
        region="cortex",
        layer="L",
        reference_layer="R",
        gene_column="g",
        finetune_steps=0,
        error_rate=0.1,
        across_studies=True,
        device="cpu",
        cache=False,
        seed=3,
        force=True,
        return_result=True,
        verbose=False,
    )
    assert (tmp_path / "t.csv").read_text().splitlines() == [",t", "0,1"]
    assert (
        "0.123" in run("annotate in.h5ad -o new.h5ad --labels one --truth call")
        and made.calls[2][1]["label_key"] == "one"
    )
    assert "no column 'none'" in run("annotate in.h5ad -o x.h5ad --truth none", 1)
    for place in (
        "-o out.h5ad",
        "-o x.h5ad --table t.csv",
    ):
        assert "exists already" in run(f"annotate in.h5ad {place}", 1)
    assert "is a file" in run("annotate in.h5ad -o x.h5ad --plots known.h5ad", 1)
    (tmp_path / "m.tsv").write_text("A\tX\nB X\n")
    assert "Line 2" in run("annotate in.h5ad -o x.h5ad --markers m.tsv", 1) and len(made.calls) == 3


def test_doublets(run, verb, cells, tmp_path):
    made = Verb()

    def detect(adata, **named):
        adata.obs["scmamba_doublet"], adata.obs["scmamba_doublet_score"] = (
            [True, False, True],
            [0.9, 0.1, 0.8],
        )
        return made(adata.n_obs, **named)

    import scmamba.doublets as home

    original, home.find_doublets = home.find_doublets, detect
    try:
        assert "2 of 3 droplets" in run("find-doublets in.h5ad -o out.h5ad")
        run(
            "find-doublets in.h5ad -o out.h5ad --sample s --method both --model m --expected-rate 0.1 --identification-rate 0.2 --labels l "
            "--doublet-simulation sum --rounds 6 --layer L --seed 3 --overwrite -q --table t.csv"
        )
    finally:
        home.find_doublets = original
    plain = dict(
        sample_key=None,
        method="fast",
        model=None,
        expected_rate=None,
        identification_rate=None,
        label_key=None,
        doublet_simulation="both",
        rounds=4,
        layer=None,
        seed=0,
        overwrite=False,
    )
    other = dict(
        sample_key="s",
        method="both",
        model="m",
        expected_rate=0.1,
        identification_rate=0.2,
        label_key="l",
        doublet_simulation="sum",
        rounds=6,
        layer="L",
        seed=3,
        overwrite=True,
    )
    assert made.calls == [((3,), plain | {"verbose": True}), ((3,), other | {"verbose": False})]
    table = pd.read_csv(tmp_path / "t.csv", index_col=0)
    assert list(table) == ["scmamba_doublet", "scmamba_doublet_score"] and table.index.tolist() == [
        "a",
        "b",
        "c",
    ]
    assert ad.read_h5ad(tmp_path / "out.h5ad").obs["scmamba_doublet"].tolist() == [
        True,
        False,
        True,
    ]
    for place in ("-o out.h5ad", "-o x.h5ad --table t.csv"):
        assert "exists already" in run(f"find-doublets in.h5ad {place}", 1)


def test_deg(run, verb, cells, tmp_path):
    table = pd.DataFrame({"p_val_adj": [0.04, 0.05, 0.5]}, index=["x", "y", "z"])
    table.attrs["values"] = "X holds raw counts"
    markers, bulk = verb("scmamba.deg.find_markers", table), verb("scmamba.deg.pseudobulk", table)
    result = run("find-markers in.h5ad --groupby g --group1 A -o t.csv")
    assert "X holds raw counts" in result and "3 genes tested, 1 with" in result
    assert "exists already" in run("find-markers in.h5ad --groupby g --group1 A -o t.csv", 1)
    assert (tmp_path / "t.csv").read_text().splitlines()[:2] == [",p_val_adj", "x,0.04"]
    run(
        "find-markers in.h5ad --groupby g --group1 A,B --group2 C --test wilcox --latent a,b --layer L --seurat 4 --min-pct 0.2 "
        "--logfc-threshold 0.3 --only-pos -o t.csv --overwrite"
    )
    plain = dict(
        covariates=None,
        layer=None,
        min_pct=None,
        test="MAST",
        seurat="5",
        logfc_threshold=None,
        only_pos=False,
    )
    other = dict(
        covariates=["a", "b"],
        layer="L",
        min_pct=0.2,
        test="wilcox",
        seurat="4",
        logfc_threshold=0.3,
        only_pos=True,
    )
    assert [(p[1:], n) for p, n in markers.calls] == [
        (("g", ["A"], None), plain),
        (("g", ["A", "B"], ["C"]), other),
    ]
    run(
        "find-markers in.h5ad --groupby g --group1 A --group2 C --test pseudobulk --donor d --covariates a --layer L -o t.csv --overwrite"
    )
    assert [(p[1:], n) for p, n in bulk.calls] == [
        (("g", "d", ["A"], ["C"]), {"layer": "L", "covariates": ["a"]})
    ]
    assert "--donor" in run(
        "find-markers in.h5ad --groupby g --group1 A --test pseudobulk -o u.csv", 1
    )
    assert "no file" in run("find-markers none.h5ad --groupby g --group1 A -o u.csv", 1)


def test_robustness(run, verb, cells):
    saved = Verb()
    made = verb("scmamba.deg.robustness", SimpleNamespace(save=saved))
    run("robustness in.h5ad --groupby g -o out")
    run(
        "robustness in.h5ad --groupby g -o out --donor d --cell-type t --group1 A --group2 B --layers a,b --ratios 0.2,1 --permutations 3 "
        "--donors none --null-permutations 4 --seurat 4 --adjust bh --seed 5 --jobs 2 --resume r"
    )
    plain = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in RobustnessOptions.defaults().items()
        if not name.endswith("_key")
    }
    other = plain | dict(
        group1="A",
        group2="B",
        layers=["a", "b"],
        ratios=[0.2, 1.0],
        permutations=3,
        donors=None,
        null_permutations=4,
        seurat="4",
        adjust="bh",
        seed=5,
        n_jobs=2,
        resume="r",
    )
    assert [(p[1:], n) for p, n in made.calls] == [
        (("g", None, None), plain),
        (("g", "d", "t"), other),
    ]
    assert saved.calls == [((Path("out"),), {"overwrite": False})] * 2
    assert "expected numbers" in run("robustness in.h5ad --groupby g -o out --ratios a", 1)


def test_prepare(run, verb, tmp_path):
    made = verb(
        "scmamba.preprocessing.prepare",
        SimpleNamespace(obs=pd.DataFrame({"scmamba_label": ["a", None]}), n_obs=2, n_vars=5),
    )
    assert "2 cells x 5 genes, 1 labeled" in run("prepare a.h5ad b.h5ad -o out")
    (tmp_path / "m.tsv").write_text("type\tgenes\n#c\tC\nA\tX, Y\n")
    run(
        "prepare a.h5ad -o out --donor d --markers m.tsv --min-total 3 --min-cells-per-donor 4 --resolution 0.5 --seed 6 --overwrite -q"
    )
    from scmamba.preprocessing import PrepareOptions

    options = PrepareOptions.defaults()
    shared = dict(folder=Path("out"), markers=None, overwrite=False, verbose=True)
    own = dict(
        markers={"A": ["X", "Y"]},
        overwrite=True,
        verbose=False,
        donor_key="d",
        min_total=3,
        min_cells_per_donor=4,
        resolution=0.5,
        seed=6,
    )
    assert made.calls == [
        (([Path("a.h5ad"), Path("b.h5ad")],), shared | options),
        (([Path("a.h5ad")],), shared | options | own),
    ]


def test_cohort_and_convert(run, verb, tmp_path):
    made = verb("scmamba.datasets.brain_cohort", ad.AnnData(np.ones((3, 2), np.float32)))
    assert "3 simulated cells x 2 genes, 8 donors" in run("cohort a.h5ad")
    run("cohort a.h5ad --cells 5 --donors 2 --genes 300 --disease-fraction 0.25 --seed 6")
    plain = {k: v for k, v in CohortOptions.defaults().items() if k != "n_cells"} | {
        "effects": None
    }
    other = plain | dict(n_donors=2, n_genes=300, disease_fraction=0.25, seed=6)
    assert made.calls == [((2000,), plain), ((5,), other)] and ad.read_h5ad(
        tmp_path / "a.h5ad"
    ).shape == (3, 2)
    turned = verb("scmamba.interop._convert.convert_file", "a sentence")
    assert run("convert a.rds b.h5ad") == "a sentence\n"
    run("convert a.h5ad b.rds --assay X --to sce --overwrite --no-compress --quiet")
    plain = dict(assay="", to="seurat", overwrite=False, compress=True, verbose=True)
    other = dict(assay="X", to="sce", overwrite=True, compress=False, verbose=False)
    assert turned.calls == [
        ((Path("a.rds"), Path("b.h5ad")), plain),
        ((Path("a.h5ad"), Path("b.rds")), other),
    ]


def test_genes(run, verb, tmp_path):
    near = verb(
        "scmamba.embedding.gene_neighbors",
        pd.DataFrame({"gene": ["B"], "cosine": [0.98765]}),
    )
    assert "0.988" in run("genes A")
    run("genes A B -n 3 --model m")
    assert near.calls == [
        ((["A"],), {"model": None, "n": 10}),
        ((["A", "B"],), {"model": "m", "n": 3}),
    ]


def test_evaluate_annotation(run, verb, cells):
    report = SimpleNamespace(
        summary=pd.DataFrame({"f1": [0.5]}), write=lambda folder: folder.mkdir(exist_ok=True)
    )
    made = verb("scmamba.evaluation.of_object.annotation_report", report)
    assert "2 cells" in run(
        "evaluate annotation in.h5ad --truth known --called call --called donor --confidence sure -o out"
    )
    truth, calls, sure = made.calls[0][0]
    assert truth.tolist() == ["A", "B"] and sure.tolist() == [0.9, 0.5]
    assert {name: values.tolist() for name, values in calls.items()} == {
        "call": ["A", "A"],
        "donor": ["d1", "d2"],
    }
    run("evaluate annotation in.h5ad --truth known --called call")
    assert made.calls[1][0][2] is None
    assert "exists already" in run(
        "evaluate annotation in.h5ad --truth known --called call -o out", 1
    )
    cells.obs["scmamba_type"], cells.obs["scmamba_probability"] = ["B", "B", "A"], [0.7, 0.6, 0.5]
    cells.write_h5ad("more.h5ad")
    run("evaluate annotation more.h5ad --truth known --called call")
    assert made.calls[2][0][2] is None  # the probabilities belong to other calls
    run("evaluate annotation more.h5ad --truth known")
    truth, calls, sure = made.calls[3][0]
    assert calls["scmamba_type"].tolist() == ["B", "B"] and sure.tolist() == [0.7, 0.6]
    for bad in (
        "--truth none --called call",
        "--truth known",
        "--truth known --called call --confidence none",
    ):
        assert "no column" in run(f"evaluate annotation in.h5ad {bad}", 1)


def test_evaluate_doublets(run, verb, cells):
    made = verb(
        "scmamba.evaluation.of_object.doublet_report",
        SimpleNamespace(summary=pd.DataFrame({"f1": [0.5]})),
    )
    run("evaluate doublets in.h5ad --truth twin --score score --score sure")
    truth, scores, calls = made.calls[0][0]
    assert truth.tolist() == [True, False, False] and calls is None
    assert {n: v.tolist() for n, v in scores.items()} == {
        "score": [0.8, 0.3, 0.1],
        "sure": [0.9, 0.5, 0.4],
    }
    run("evaluate doublets in.h5ad --truth twin --score score --called sure")
    assert {n: v.tolist() for n, v in made.calls[1][0][2].items()} == {"score": [True, True, True]}
    assert "holds no numbers" in run("evaluate doublets in.h5ad --truth twin --score donor", 1)
    assert "must be true or false" in run(
        "evaluate doublets in.h5ad --truth donor --score score", 1
    )


def test_evaluate_imputation_and_clusters(run, verb, cells):
    answer = pd.DataFrame({"r": [0.5]})
    answer.attrs["cells"] = 3
    made = verb("scmamba.evaluation.imputation.nonzero_imputation", answer)
    shown = verb("scmamba.evaluation.of_object.imputation_report", SimpleNamespace(summary=answer))
    run("evaluate imputation in.h5ad")
    run(
        "evaluate imputation in.h5ad --model a/b --model c --predictor p --layer L --min-total 3 --cells 2 --seed 4 -q"
    )
    (first, plain), (second, other) = made.calls
    assert first[0].n_obs == 3 and first[1] == {"brain-mini": "brain-mini"} and second[0].n_obs == 2
    assert plain == dict(
        predictors=None, layer=None, min_total=2000, seed=0, verbose=True
    ) and second[1] == {"b": "a/b", "c": "c"}
    assert (
        other == dict(predictors=["p"], layer="L", min_total=3, seed=4, verbose=False)
        and shown.calls[0][0][0] is answer
    )
    made = verb("scmamba.evaluation.of_object.cluster_report", SimpleNamespace(summary=answer))
    run("evaluate clusters in.h5ad --truth known --donor donor --seed 5")
    (values, truth, donors), named = made.calls[0]
    assert (
        list(values) == ["counts", "scmamba"]
        and values["scmamba"].shape == (2, 2)
        and named == {"seed": 5}
    )
    assert truth.tolist() == ["A", "B"] and donors.tolist() == ["d1", "d2"]
    expected = np.log1p(np.array([[1.0, 0], [0, 2]]) / np.array([[1], [2]]) * 1e4)
    np.testing.assert_allclose(np.asarray(values["counts"].todense()), expected, rtol=1e-5)
    assert "no layer 'none'" in run("evaluate clusters in.h5ad --truth known --layer none", 1)


def test_models_and_packing(run, verb, tmp_path, monkeypatch):
    fetched = verb("scmamba.model.fetch_model", Path("/kept/m"))
    assert run("fetch-model m -q") == "/kept/m\n" and fetched.calls == [
        (("m",), {"verbose": False})
    ]
    run("fetch-model m")
    assert fetched.calls[1] == (("m",), {"verbose": True})
    packed = verb("scmamba.model.pack_model", {"sha256": "abc"})
    result = run("pack-model folder -o m.zip")
    assert (
        packed.calls == [((Path("folder"), Path("m.zip")), {})]
        and '"sha256": "abc"' in result
        and '"m": {' in result
    )
    (tmp_path / "m.zip").write_text("x")
    assert "exists already" in run("pack-model folder -o m.zip", 1)
    run("pack-model folder -o m.zip --overwrite")
    broken = verb("scmamba.model.pack_model")
    monkeypatch.setattr(
        type(broken), "__call__", lambda *_: (_ for _ in ()).throw(ScMambaError("why"))
    )
    assert "Error: why" in run("pack-model folder -o other.zip", 1)
