"""Fifteen scales of values, given to every public verb: the same detected scale in each."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from conftest import small_model
from scipy import sparse
from typer.testing import CliRunner

import scmamba
from scmamba import deg
from scmamba.annotation._reference import ReferenceAnnotator
from scmamba.cli import app
from scmamba.data import CellReader, Collection
from scmamba.data.selection import select_matrix
from scmamba.data.values import classify_values
from scmamba.datasets import brain_cohort
from scmamba.deg.values import layer_source
from scmamba.genes import Vocabulary, match_genes
from scmamba.model import Model, save_checkpoint
from scmamba.preprocessing import _prepare
from scmamba.preprocessing.studies import read_studies
from scmamba.training import read_sources
from scmamba.utils.errors import ScMambaError

COHORT = brain_cohort(120, n_genes=2000, n_donors=4, seed=3)
COUNTS = sparse.csr_matrix(COHORT.X, dtype=np.float64)
TOTALS = np.asarray(COUNTS.sum(axis=1)).ravel()


def of(change: Callable[[sparse.csr_matrix], np.ndarray]) -> Callable[[], sparse.csr_matrix]:
    """Counts after a change of the values."""

    def make() -> sparse.csr_matrix:
        out = COUNTS.copy()
        out.data = np.asarray(change(out), dtype=np.float64)
        out.eliminate_zeros()
        return out

    return make


def per_cell(values: np.ndarray) -> np.ndarray:
    return np.repeat(values, np.diff(COUNTS.indptr))


def cp10k(counts: sparse.csr_matrix) -> np.ndarray:
    return counts.data / per_cell(TOTALS) * 1e4


def small_corrected(counts: sparse.csr_matrix) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.where(counts.data <= 15, counts.data * rng.uniform(0.7, 1, counts.nnz), 0)


def scaled() -> np.ndarray:
    logs = np.log1p(of(cp10k)().toarray())
    return np.minimum((logs - logs.mean(axis=0)) / (logs.std(axis=0) + 1e-9), 10)


def shifted() -> sparse.csr_matrix:
    out = COUNTS.copy()
    out.data[::50] = -1
    return out


def with_nan() -> sparse.csr_matrix:
    out = COUNTS.copy()
    out.data[5] = np.nan
    return out


#: Scale of values -> the matrix; the detected scale, its base and words of its sentence.
KINDS: dict[str, tuple[Callable[[], object], str, float, str]] = {
    "raw counts": (COUNTS.copy, "counts", np.e, "raw counts (integers"),
    "raw counts, integer type": (
        lambda: COUNTS.astype(np.int32),
        "counts",
        np.e,
        "raw counts (integers",
    ),
    "corrected counts": (of(lambda x: x.data * 0.93), "counts", np.e, "non-integer counts"),
    "small corrected counts": (of(small_corrected), "counts", np.e, "non-integer counts"),
    "normalized, no logarithm": (of(cp10k), "counts", np.e, "without logarithm"),
    "log1p(CP10k)": (
        of(lambda x: np.log1p(cp10k(x))),
        "log1p",
        np.e,
        "log-normalized values (expm1",
    ),
    "log2(CP10k + 1)": (of(lambda x: np.log2(cp10k(x) + 1)), "log1p", 2.0, "base 2"),
    "log10(CP10k + 1)": (of(lambda x: np.log10(cp10k(x) + 1)), "log1p", 10.0, "base 10"),
    "log1p(counts)": (
        of(lambda x: np.log1p(x.data)),
        "log1p_counts",
        np.e,
        "without normalization",
    ),
    "log2(counts + 1)": (of(lambda x: np.log2(x.data + 1)), "log1p_counts", 2.0, "base 2"),
    "scaled": (scaled, "scaled", np.e, "scaled or centered values"),
    "negative": (shifted, "negative", np.e, "negative values"),
    "NaN": (with_nan, "not_finite", np.e, "NaN or infinite"),
    "fractions below one": (
        of(lambda x: np.random.default_rng(1).random(x.nnz)),
        "neither",
        np.e,
        "between 0 and",
    ),
    "zeros": (lambda: COUNTS * 0, "empty", np.e, "zeros only"),
}
#: Scales that the verbs cannot use.
REFUSED = ("scaled", "negative", "not_finite", "neither", "empty")


@functools.cache
def network(n_classes: int = 0) -> Model:
    """A small network that reads the genes of the cells."""
    published = Vocabulary.published()
    found = np.unique(match_genes(list(COHORT.var_names), published).positions)
    return small_model(n_classes=n_classes, vocabulary=published.subset(found[found >= 0].tolist()))


def cells_of(kind: str) -> ad.AnnData:
    out = COHORT.copy()
    out.X = KINDS[kind][0]()
    out.uns, out.layers = {}, {}
    return out


def expected(kind: str) -> str:
    """The sentence of the detected scale."""
    return select_matrix(cells_of(kind)).classify().sentence


@pytest.mark.parametrize("kind", KINDS)
def test_detection_of_the_scale(kind):
    make, judgement, base, words = KINDS[kind]
    found = classify_values(make())
    assert (found.kind, found.base) == (judgement, base) and words in found.sentence
    assert found.usable is (judgement not in REFUSED)
    assert classify_values(make(), block=7).kind == judgement


@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k][1] not in REFUSED])
def test_counts_are_recovered(kind):
    """Relative counts from every usable scale equal those of the original counts."""
    make, _, _, _ = KINDS[kind]
    matrix = sparse.csr_matrix(make())
    linear = matrix.copy()
    linear.data = classify_values(matrix).linear(matrix.data)
    total = np.asarray(linear.sum(axis=1)).ravel()
    got = linear.toarray() / total[:, None]
    truth = COUNTS.toarray() / TOTALS[:, None]
    if "small" not in kind:
        np.testing.assert_allclose(got, truth, rtol=1e-6, atol=1e-12)


class Reached(Exception):
    """Raised after the values were accepted, in place of the following work."""


def stop(*_: object, **__: object) -> None:
    raise Reached


# Each verb returns the sentence about the values that it stores.


def markers(adata: ad.AnnData, **_: object) -> str:
    return str(deg.find_markers(adata, "disease", "AD").attrs["values"])


def pseudobulk(adata: ad.AnnData, **_: object) -> str:
    return str(deg.pseudobulk(adata, "disease", "donor", "AD", min_cells=1).attrs["values"])


def compare(adata: ad.AnnData, **_: object) -> str:
    found = deg.compare(adata, "disease", "donor", min_cells=1, min_total=1, verbose=False)
    return str(found.settings["values"])


def hurdle(adata: ad.AnnData, **_: object) -> str:
    deg.zlm(adata, "~ disease")
    return layer_source(adata).values


def robustness(adata: ad.AnnData, **_: object) -> str:
    deg.robustness(
        adata,
        "disease",
        "donor",
        layers=["X"],
        donors=None,
        ratios=[0.5],
        permutations=1,
        null_permutations=0,
        verbose=False,
    )
    return layer_source(adata).values


def kept(adata: ad.AnnData, verb: str) -> str:
    return str(adata.uns["scmamba"][verb]["summary"]["values"])


def impute(adata: ad.AnnData, **options: object) -> str:
    done = scmamba.impute(
        adata,
        model=network(),
        method="masked",
        passes=1,
        adapt_steps=0,
        verbose=False,
        **options,
    )
    return kept(done, "impute")


def embed(adata: ad.AnnData, **options: object) -> str:
    return kept(scmamba.embed(adata, model=network(), verbose=False, **options), "embed")


def annotate_markers(adata: ad.AnnData, **options: object) -> str:
    return kept(scmamba.annotate(adata, markers="panel", verbose=False, **options), "annotate")


def annotate_human_brain(adata: ad.AnnData, **options: object) -> str:
    found = scmamba.annotate(adata, reference="human-brain", verbose=False, **options)
    return kept(found, "annotate")


def annotate_classifier(adata: ad.AnnData, **options: object) -> str:
    return kept(
        scmamba.annotate(adata, model=network(n_classes=3), verbose=False, **options), "annotate"
    )


def annotate_reference(adata: ad.AnnData, **options: object) -> str:
    """The query's values; the fit to the reference is tested elsewhere."""
    read: list[str] = []

    def fitted(annotator: ReferenceAnnotator, query: CellReader) -> None:
        read.extend((annotator.cells.values.sentence, query.values.sentence))
        raise Reached

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached):
        patch.setattr(ReferenceAnnotator, "_training_cells", fitted)
        scmamba.annotate(
            adata,
            reference=cells_of("raw counts"),
            label_key="cell_type",
            model=network(),
            cache=False,
            verbose=False,
            **options,
        )
    assert KINDS["raw counts"][3] in read[0]
    return read[1]


def annotate_from(adata: ad.AnnData, **options: object) -> str:
    """The reference's values."""
    read: list[str] = []

    def fitted(annotator: ReferenceAnnotator, query: ad.AnnData) -> None:
        read.append(annotator.cells.values.sentence)
        raise Reached

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Reached):
        patch.setattr(ReferenceAnnotator, "predict", fitted)
        scmamba.annotate(
            cells_of("raw counts"),
            reference=adata,
            label_key="cell_type",
            model=network(),
            cache=False,
            verbose=False,
            **options,
        )
    return read[0]


def find_doublets(adata: ad.AnnData, **_: object) -> str:
    return kept(scmamba.find_doublets(adata, rounds=2, verbose=False), "doublets")


def prepare(adata: ad.AnnData, **_: object) -> str:
    pytest.importorskip("harmonypy")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_prepare, "run_identity", stop)
        try:
            scmamba.prepare(adata, folder=folder, verbose=False)
        except Reached:
            return read_studies(adata, "donor")[0].uns["values"]
    raise AssertionError("prepare neither refused the values nor went on")


def collection(adata: ad.AnnData, **options: object) -> str:
    found = Collection([adata], min_coverage=0, verbose=False, **options)
    return found.members[0].values.sentence


def training_sources(adata: ad.AnnData, **options: object) -> str:
    """Cells in memory, as :func:`scmamba.finetune` reads them."""
    read_sources([adata], network().genes, min_total=1, **options)
    return select_matrix(adata).detect(**options).sentence


def masked_counts(adata: ad.AnnData, **_: object) -> str:
    scmamba.evaluation.nonzero_imputation(adata, {}, predictors=["one"], min_total=0, verbose=False)
    return select_matrix(adata).detect().sentence


def split_counts(adata: ad.AnnData, **_: object) -> str:
    scmamba.evaluation.count_splitting(adata, {}, verbose=False)
    return select_matrix(adata).detect().sentence


def reads(kinds: tuple[str, ...], kind: str) -> bool:
    return KINDS[kind][1] in kinds or ("integers" in kinds and kind.startswith("raw counts"))


ALL = ("counts", "log1p", "log1p_counts")
#: Verb -> scales of values that it reads; every other one is refused with the sentence of the detection.
VERBS: dict[Callable[..., str], tuple[str, ...]] = {
    markers: ALL,
    pseudobulk: ALL,
    compare: ("counts",),
    hurdle: ALL,
    robustness: ALL,
    impute: ALL,
    embed: ALL,
    annotate_markers: ALL,
    annotate_human_brain: ALL,
    annotate_classifier: ALL,
    annotate_reference: ALL,
    annotate_from: ALL,
    find_doublets: ("counts", "log1p_counts"),
    prepare: ("counts",),
    collection: ALL,
    training_sources: ALL,
    masked_counts: ("counts",),
    split_counts: ("integers",),
}
#: Verbs with ``force=``, which accepts fractions below one as corrected counts and no other scale.
FORCED = (
    impute,
    embed,
    annotate_markers,
    annotate_human_brain,
    annotate_classifier,
    annotate_reference,
    collection,
    training_sources,
)


@pytest.mark.parametrize(
    ("verb", "kind"),
    [pytest.param(verb, kind, id=f"{verb.__name__}-{kind}") for verb in VERBS for kind in KINDS],
)
def test_every_verb_detects_the_same_scale(verb, kind):
    adata, sentence = cells_of(kind), expected(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if reads(VERBS[verb], kind):
            assert sentence in verb(adata)
        else:
            with pytest.raises(ScMambaError, match=re.escape(sentence)):
                verb(adata)


@pytest.mark.parametrize("verb", FORCED, ids=lambda verb: verb.__name__)
def test_force_accepts_fractions_only(verb):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = verb(cells_of("fractions below one"), force=True)
        assert f"{expected('fractions below one')}; taken as corrected counts" in read
        for kind in ("scaled", "negative", "NaN", "zeros"):
            with pytest.raises(ScMambaError, match=re.escape(expected(kind))):
                verb(cells_of(kind), force=True)


# --- the command line

#: Command -> its arguments, for a file, a temporary folder and a model.
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "impute": ("{cells} -o {out}.h5ad -m {model} --method masked --passes 1 --quiet", ALL),
    "embed": ("{cells} -o {out}.h5ad -m {model} --quiet", ALL),
    "annotate": ("{cells} -o {out}.h5ad --markers panel --quiet", ALL),
    "annotate ": ("{cells} -o {out}.h5ad --reference human-brain --quiet", ALL),
    "find-doublets": ("{cells} -o {out}.h5ad --rounds 2 --quiet", ("counts", "log1p_counts")),
    "find-markers": ("{cells} -o {out}.csv --groupby disease --group1 AD", ALL),
    "find-markers ": (
        "{cells} -o {out}.csv --groupby disease --group1 AD --test pseudobulk --donor donor",
        ALL,
    ),
    "compare": ("{cells} -o {out} --condition disease --donor donor", ("counts",)),
    "robustness": ("{cells} -o {out} --condition disease --donor donor --layers X", ALL),
    "prepare": ("{cells} -o {out}", ("counts",)),
    "evaluate imputation": ("{cells} -m {model} --predictor one --min-total 0", ("counts",)),
    "evaluate clusters": ("{cells} --truth cell_type --layer same", ALL),
    "pretrain": ("{cells} -o {out} --quiet", ALL),
    "finetune": ("{cells} -o {out} -m {model} --quiet", ALL),
}
#: Commands that run to the end; the results of the others are tested in Python.
FAST = ("embed", "annotate", "find-doublets", "find-markers")
#: Usable scales that they are run with: the commands call the verbs, which are tested with all of them.
RUN = ("raw counts, integer type", "log2(CP10k + 1)", "log2(counts + 1)")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """One file for each scale of values, and a model."""
    folder = tmp_path_factory.mktemp("kinds")
    out = {kind: folder / f"{i}.h5ad" for i, kind in enumerate(KINDS)}
    for kind, path in out.items():
        cells = cells_of(kind)
        cells.layers["same"] = cells.X
        cells.write_h5ad(path)
    save_checkpoint(network(), folder / "model")
    return out | {"model": folder / "model"}


def run(command: str, kind: str, files: dict[str, Path], out: Path) -> Result:
    words = COMMANDS[command][0].format(cells=files[kind], out=out, model=files["model"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(app, [*command.split(), *words.split()])


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        pytest.param(command, kind, id=f"{command}-{kind}")
        for command, (_, kinds) in COMMANDS.items()
        for kind in KINDS
        if not reads(kinds, kind) or (command in FAST and kind in RUN)
    ],
)
def test_the_command_line_detects_the_same_scale(command, kind, files, tmp_path):
    done = run(command, kind, files, tmp_path / "out")
    if not reads(COMMANDS[command][1], kind):
        assert done.exit_code == 1 and f"{expected(kind)}" in done.output
        return
    assert done.exit_code == 0, done.output
    if command == "find-markers":
        assert expected(kind) in done.output
    else:
        (record,) = ad.read_h5ad(tmp_path / "out.h5ad").uns["scmamba"].values()
        assert record["summary"]["values"] == expected(kind)


# --- R

#: Reads every file, calls every verb and prints verb, scale and the stored or refused text, one line each.
IN_R = """
suppressPackageStartupMessages({library(scMamba); library(Matrix)})
given <- jsonlite::fromJSON(commandArgs(TRUE)[[1]])
reader <- reticulate::import("anndata", convert = FALSE)
say <- function(verb, kind, expr) {
  got <- tryCatch(list("kept", force(expr)), error = function(e) list("refused", conditionMessage(e)))
  cat("\n", jsonlite::toJSON(list(verb, kind, got[[1]], as.character(got[[2]])), auto_unbox = TRUE), "\n", sep = "")
}
kept <- function(object) attr(object, "scmamba")$summary$values
for (kind in setdiff(names(given), c("model", "usable"))) {
  cells <- reader$read_h5ad(given[[kind]])
  r <- reticulate::py_to_r
  x <- as(t(as(r(cells$X$astype("float64")), "CsparseMatrix")), "CsparseMatrix")
  dimnames(x) <- list(r(cells$var_names$to_list()), r(cells$obs_names$to_list()))
  obs <- scMamba:::.plain_frame(cells$obs)
  sick <- which(obs$disease == "AD")
  seurat <- suppressWarnings(SeuratObject::CreateSeuratObject(x, meta.data = as.data.frame(lapply(
    obs[c("disease", "donor", "cell_type")], as.character), row.names = colnames(x))))
  say("ScMambaImpute", kind, kept(ScMambaImpute(x, model = given$model, method = "masked", adapt = FALSE, passes = 1,
    verbose = FALSE)))
  say("ScMambaEmbed", kind, kept(ScMambaEmbed(x, model = given$model, verbose = FALSE)))
  slow <- function(expr) if (kind %in% given$usable && kind != given$usable[[3]]) "not run" else expr
  say("ScMambaAnnotate", kind, slow(kept(ScMambaAnnotate(x, verbose = FALSE))))
  say("ScMambaDoublets", kind, kept(ScMambaDoublets(x, verbose = FALSE)))
  say("ScMambaFindMarkers", kind, nrow(ScMambaFindMarkers(x, ident.1 = sick, verbose = FALSE)))
  say("ScMambaFindMarkers, other base", kind, nrow(ScMambaFindMarkers(x, ident.1 = sick, base = 10, verbose = FALSE)))
  say("ScMambaPseudobulk", kind, nrow(ScMambaPseudobulk(seurat, "disease", "donor", "AD", min.cells = 1,
    verbose = FALSE)))
  say("ScMambaCompare", kind, nrow(ScMambaCompare(seurat, "disease", "donor", min.cells = 1, min.total = 1,
    verbose = FALSE)$table))
  say("ScMambaRobustness", kind, slow(nrow(ScMambaRobustness(seurat, "disease", donor = "donor", donors = NULL,
    imputed.assay = NULL, ratios = 0.5, permutations = 1, null.permutations = 0, verbose = FALSE)$full)))
}
"""
#: Verb of R -> scales of values that it reads.
R_VERBS = {
    "ScMambaImpute": ALL,
    "ScMambaEmbed": ALL,
    "ScMambaAnnotate": ALL,
    "ScMambaDoublets": ("counts", "log1p_counts"),
    "ScMambaFindMarkers": ALL,
    "ScMambaFindMarkers, other base": ALL,
    "ScMambaPseudobulk": ALL,
    "ScMambaCompare": ("counts",),
    "ScMambaRobustness": ALL,
}


@pytest.fixture(scope="module")
def texts_of_r(files, tmp_path_factory) -> dict[tuple[str, str], tuple[str, str]]:
    """The stored or refused text of each verb of R for each scale of values; R is started once."""
    if shutil.which("Rscript") is None:
        pytest.skip("R is not installed")
    root = Path(scmamba.__file__).parents[2]
    libraries = [os.environ.get("R_LIBS", ""), str(root / ".cache" / "rlib")]
    environment = {
        **os.environ,
        "R_LIBS": ":".join(filter(None, libraries)),
        "RETICULATE_PYTHON": sys.executable,
        "RETICULATE_USE_MANAGED_VENV": "false",
        "PYTHONPATH": str(root / "python"),
    }
    installed = "q(status = !requireNamespace('scMamba', quietly = TRUE))"
    if subprocess.run(["Rscript", "--vanilla", "-e", installed], env=environment).returncode:
        pytest.skip("the R package scMamba is not installed")
    folder = tmp_path_factory.mktemp("r")
    usable = [kind for kind in KINDS if KINDS[kind][1] in ALL]
    given = {name: str(path) for name, path in files.items()} | {"usable": usable}
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "kinds.R").write_text(IN_R)
    done = subprocess.run(
        ["Rscript", "--vanilla", folder / "kinds.R", folder / "given.json"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {(verb, kind): (what, " ".join(text.split())) for verb, kind, what, text in lines}


@pytest.mark.parametrize("verb", R_VERBS)
def test_r_detects_the_same_scale(verb, texts_of_r):
    keeps = verb in ("ScMambaImpute", "ScMambaEmbed", "ScMambaAnnotate", "ScMambaDoublets")
    for kind in KINDS:
        what, text = texts_of_r[verb, kind]
        says = expected(kind) in re.sub("[Tt]he matrix", "X", text)  # R's word for X
        if not reads(R_VERBS[verb], kind):
            assert what == "refused" and says, (kind, what, text)
        elif text != "not run":
            assert what == "kept" and (says or not keeps), (kind, text)


def test_the_recorded_base_is_used_if_the_values_do_not_determine_it():
    """Two genes of log2 values with different totals: only the record gives the base."""
    rng = np.random.default_rng(0)
    values = rng.gamma(3, 0.4, (60, 10)) * (rng.random((60, 10)) < 0.5)
    adata = ad.AnnData(sparse.csr_matrix(values), uns={"log1p": {"base": 2}})
    found = select_matrix(adata).classify()
    assert (found.kind, found.base) == ("log1p", 2.0)
    np.testing.assert_allclose(found.natural_logs(np.array([1.0])), np.log(2))
    # The record is about X: the scale of a layer of corrected counts is detected from its values.
    adata.layers["corrected"] = of(small_corrected)()[:60, :10]
    assert select_matrix(adata, "corrected").classify().kind == "counts"


def test_a_named_matrix_is_read_or_refused():
    adata = cells_of("scaled")
    adata.raw = ad.AnnData(COUNTS, obs=adata.obs, var=adata.var)
    assert select_matrix(adata, "raw").classify().integer
    assert select_matrix(adata, "X").classify().kind == "scaled"
    table = deg.find_markers(adata, "disease", "AD", layer="raw")
    pd.testing.assert_frame_equal(table, deg.find_markers(cells_of("raw counts"), "disease", "AD"))
    for layer in ("counts", "data"):
        with pytest.raises(
            ScMambaError, match=f"no layer '{layer}'. Its layers: none; it also has X and raw"
        ):
            deg.find_markers(adata, "disease", "AD", layer=layer)
    with pytest.raises(ScMambaError, match="scaled or centered"):
        deg.find_markers(adata, "disease", "AD")


def test_objects_with_several_matrices_or_lazy_ones():
    class MuData:  # the class of mudata, which is not installed here, has the modalities in `mod`
        mod = {"rna": COHORT, "prot": COHORT}

    with pytest.raises(
        ScMambaError, match=r"MuData object with the modalities rna, prot.*mdata\['rna'\]"
    ):
        select_matrix(MuData())
    array = pytest.importorskip("dask.array")
    lazy = array.from_array(COUNTS.toarray(), chunks=(50, 500)).map_blocks(sparse.csr_matrix)
    adata = cells_of("raw counts")
    adata.X = lazy
    assert select_matrix(adata).classify().integer
    pd.testing.assert_frame_equal(
        deg.find_markers(adata, "disease", "AD"),
        deg.find_markers(cells_of("raw counts"), "disease", "AD"),
    )
