"""Which slots a round trip through h5ad keeps; R's own ``identical`` compares them.

    RPY2_CFFI_MODE=ABI PYTHONPATH=python python tests/python/interop/round_trip_table.py --write                        # Seurat 4 and SCE
    RPY2_CFFI_MODE=ABI PYTHONPATH=python scripts/in_seurat5.sh .venv/bin/python tests/python/interop/round_trip_table.py --write   # Seurat 5

writes this R's part of docs/round_trips.md; ``interop_cases.py`` measures the same in every run of the tests and compares with that page.
A slot that does not come back must be named in a message on the way: otherwise its line says "LOST WITHOUT A WORD" and the test fails.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anndata
import rpy2.robjects as ro

import scmamba.interop as bridge
from scmamba.interop import _r

PAGE = Path(__file__).parents[3] / "docs" / "round_trips.md"

SETUP = """
layer <- function(assay, name) {
  if (inherits(assay, "StdAssay")) SeuratObject::LayerData(assay, layer = name) else methods::slot(assay, name)
}
# The whole of a layer, whether it is split or not, in the object's own order.
whole <- function(object, assay, name) {
  a <- object[[assay]]
  if (inherits(a, "StdAssay") && !name %in% SeuratObject::Layers(a)) a <- SeuratObject::JoinLayers(a, layers = name, new = name)
  m <- layer(a, name)
  m[rownames(a), colnames(object)[colnames(object) %in% colnames(m)], drop = FALSE]
}
odd_columns <- function(n) list(
  logical_na = rep(c(TRUE, NA, FALSE, TRUE), length.out = n), integer_na = rep(c(1L, NA), length.out = n),
  double_na = rep(c(1.5, NA, NaN, Inf), length.out = n), text_na = rep(c("a", NA, "\\u00e9\\u4e2d", "NA"), length.out = n),
  ordered = factor(rep(c("low", "high", NA, "low"), length.out = n), levels = c("low", "mid", "high"), ordered = TRUE),
  unused = factor(rep("b", n), levels = c("c", "b", "a")), date = as.Date("2020-02-29") + c(NA, seq_len(n - 1)),
  time = as.POSIXct("2020-02-29 12:34:56.25", tz = "UTC") + c(NA, seq_len(n - 1)), `1x of-its own` = 2^40 + seq_len(n),
  row_names = rep("r", n), with_na_level = addNA(factor(rep(c("u", NA, "w"), length.out = n))))
"""

SEURAT = """
suppressPackageStartupMessages(library(Seurat))
x <- SeuratObject::pbmc_small
n <- ncol(x)
for (name in names(odd_columns(n))) x@meta.data[[name]] <- odd_columns(n)[[name]]
x@meta.data$nested <- lapply(seq_len(n), function(i) 1:i)
m <- matrix(rep(0:4, length.out = 5 * n), 5, dimnames = list(paste0("AB-", 1:5), colnames(x)))
x[["ADT"]] <- SeuratObject::CreateAssayObject(counts = methods::as(m, "CsparseMatrix"))
x[["ADT"]] <- SeuratObject::AddMetaData(x[["ADT"]], c("i", "j", "k", "l", "m"), "isotype")
SeuratObject::VariableFeatures(x[["ADT"]]) <- c("AB-3", "AB-1")
x[["fov"]] <- SeuratObject::CreateFOV(data.frame(x = 1:n, y = n:1, cell = colnames(x)), type = "centroids", assay = "RNA", key = "fov_")
x@tools$mine <- list(1)
x@neighbors$near <- methods::new("Neighbor", nn.idx = matrix(1L, n, 2), nn.dist = matrix(0, n, 2), cell.names = colnames(x))
SeuratObject::Misc(x, "study") <- list(who = "us", table = data.frame(a = 1:2, b = c("x", "y")))
SeuratObject::Misc(x, "code") <- function() 1
SeuratObject::Idents(x) <- factor(as.character(SeuratObject::Idents(x)), levels = c("2", "0", "nobody", "1"))
"""

# Seurat 5: its own class of assay, split by sample.
SPLIT = """
a <- SeuratObject::CreateAssay5Object(counts = layer(x[["RNA"]], "counts"), data = layer(x[["RNA"]], "data"))
a <- SeuratObject::AddMetaData(a, data.frame(long = paste("gene", seq_len(nrow(a))), row.names = rownames(a)))
SeuratObject::VariableFeatures(a) <- rev(rownames(a))[1:7]
SeuratObject::Key(a) <- "vfive_"
x[["V5"]] <- split(a, f = rep(c("one", "two"), length.out = ncol(x)))
SeuratObject::DefaultAssay(x) <- "V5"
"""

ODD = [
    "logical_na",
    "integer_na",
    "double_na",
    "text_na",
    "ordered",
    "unused",
    "date",
    "time",
    "1x of-its own",
    "row_names",
]

# slot, R expression of the object `o`; if it is not restored: words of the required message; if it is changed: what
# the expression then gives.
Line = tuple[str, str, str, str]


def _assay(name: str, scale: bool) -> list[Line]:
    lines = [
        (f"{name}: counts", f"whole(o, '{name}', 'counts')", "", ""),
        (f"{name}: data", f"whole(o, '{name}', 'data')", "", ""),
        (
            f"{name}: variable features, in order",
            f"SeuratObject::VariableFeatures(o[['{name}']])",
            "",
            "",
        ),
        (f"{name}: key", f"SeuratObject::Key(o[['{name}']])", "", ""),
        (f"{name}: class", f"class(o[['{name}']])[1]", "", ""),
    ]
    if scale:
        lines.insert(2, (f"{name}: scale.data", f"layer(o[['{name}']], 'scale.data')", "", ""))
    return lines


def seurat_lines(split: bool) -> list[Line]:
    """Slots of the Seurat object, in the order of the page."""
    reduction = (
        "cell.embeddings",
        "feature.loadings",
        "feature.loadings.projected",
        "stdev",
        "key",
        "assay.used",
        "global",
    )
    lines = _assay("RNA", True) + [("RNA: feature metadata", "o[['RNA']][[]]", "", "")]
    lines += [*_assay("ADT", False), ("ADT: feature metadata", "o[['ADT']][[]]", "", "")]
    if split:
        lines += _assay("V5", False)
        lines += [
            ("V5: feature metadata", "o[['V5']][['long']]", "", ""),
            (
                "V5: split layers",
                "SeuratObject::Layers(o[['V5']])",
                "the split of assay 'V5' into layers",
                "c('counts', 'data')",
            ),
        ]
    lines += [
        ("default assay", "SeuratObject::DefaultAssay(o)", "", ""),
        ("cell names", "colnames(o)", "", ""),
    ]
    lines += [(f"metadata: {name}", f"o@meta.data[['{name}']]", "", "") for name in ODD]
    lines += [
        ("metadata: order of the columns", "setdiff(names(o@meta.data), 'nested')", "", ""),
        (
            "metadata: a factor's level NA",
            "o@meta.data$with_na_level",
            "level NA",
            "factor(as.character(x@meta.data$with_na_level))",
        ),
        (
            "metadata: a column of lists",
            "o@meta.data$nested",
            "cell metadata column 'nested' (list)",
            "",
        ),
        ("identities, with unused levels", "SeuratObject::Idents(o)", "", ""),
        ("project", "o@project.name", "", ""),
    ]
    lines += [(f"reduction pca: {part}", f"o[['pca']]@{part}", "", "") for part in reduction]
    lines += [
        (
            "reduction pca: JackStraw",
            "o[['pca']]@jackstraw@empirical.p.values",
            "JackStraw results of reduction 'pca'",
            "",
        ),
        ("reduction tsne", "o[['tsne']]@cell.embeddings", "", ""),
        ("graph RNA_snn", "o[['RNA_snn']]", "", ""),
        ("neighbor lists", "names(o@neighbors)", "neighbor lists near", ""),
        (
            "misc: lists and tables",
            "SeuratObject::Misc(o, 'study')",
            "(no message: a file sorts the names of a list)",
            "SeuratObject::Misc(x, 'study')[c('table', 'who')]",
        ),
        ("misc: code", "is.function(SeuratObject::Misc(o, 'code'))", "'code'", ""),
        ("images", "names(o@images)", "spatial images fov", ""),
        ("command log", "names(o@commands)", "commands", ""),
        ("tools", "names(o@tools)", "tool results mine", ""),
    ]
    return lines


SCE = """
suppressPackageStartupMessages(library(SingleCellExperiment))
set.seed(1)
m <- methods::as(matrix(rpois(600, 1), 20, dimnames = list(paste0("g_", 1:20), paste0("c", 1:30))), "CsparseMatrix")
l <- m
l@x <- log1p(l@x)
x <- SingleCellExperiment(list(counts = m, logcounts = l, dense = as.matrix(l) / 2), mainExpName = "RNA")
for (name in names(odd_columns(30))) x[[name]] <- odd_columns(30)[[name]]
x$nested <- lapply(1:30, function(i) 1:i)
x$run <- S4Vectors::Rle(rep(c("a", "b"), each = 15))
sizeFactors(x) <- seq(0.5, 2, length.out = 30)
rowData(x)$long <- paste("gene", 1:20)
p <- matrix(rnorm(90), 30, dimnames = list(colnames(x), paste0("PC", 1:3)))
attr(p, "rotation") <- matrix(rnorm(30), 10, dimnames = list(rownames(x)[10:1], colnames(p)))
reducedDim(x, "PCA") <- p
reducedDim(x, "My map") <- unname(p[, 1:2])
altExp(x, "spikes") <- SingleCellExperiment(list(counts = m[1:4, ]), rowData = S4Vectors::DataFrame(mix = 1:4),
  colData = S4Vectors::DataFrame(total = 1:30, row.names = colnames(x)))
colPair(x, "near") <- methods::as(Matrix::rsparsematrix(30, 30, 0.1), "dgCMatrix")
rowPair(x, "genes") <- methods::as(Matrix::rsparsematrix(20, 20, 0.1), "dgCMatrix")
metadata(x) <- list(who = "us", table = data.frame(a = 1:2, b = c("x", "y")), f = function() 1)
"""


def sce_lines() -> list[Line]:
    """Slots of the SingleCellExperiment, in the order of the page."""
    return [
        *[
            (f"assay {name}", f"assay(o, '{name}')", "", "")
            for name in ("counts", "logcounts", "dense")
        ],
        ("order and names of the assays", "assayNames(o)", "", ""),
        ("gene and cell names", "dimnames(o)", "", ""),
        *[(f"colData: {name}", f"o[['{name}']]", "", "") for name in ODD],
        (
            "colData: a factor's level NA",
            "o$with_na_level",
            "level NA",
            "factor(as.character(x$with_na_level))",
        ),
        ("colData: a column of lists", "o$nested", "cell metadata column 'nested' (list)", ""),
        ("colData: run-length encoded", "as.vector(o$run)", "", ""),
        ("size factors", "sizeFactors(o)", "", ""),
        ("rowData", "as.list(rowData(o))", "", ""),
        ("reducedDim PCA", "matrix(reducedDim(o, 'PCA'), 30)", "", ""),
        (
            "reducedDim PCA: rotation",
            "{r <- attr(reducedDim(o, 'PCA'), 'rotation'); r[sort(rownames(r)), ]}",
            "",
            "",
        ),
        (
            "names of reducedDims and their columns",
            "list(reducedDimNames(o), lapply(as.list(reducedDims(o)), colnames))",
            "",
            "",
        ),
        ("altExp: assay", "assay(altExp(o, 'spikes'), 'counts')", "", ""),
        (
            "altExp: rowData",
            "as.list(rowData(altExp(o, 'spikes')))",
            "of the alternative experiment 'spikes'",
            "",
        ),
        (
            "altExp: colData",
            "as.list(colData(altExp(o, 'spikes')))",
            "of the alternative experiment 'spikes'",
            "",
        ),
        ("colPair", "methods::as(colPair(o, 'near', asSparse = TRUE), 'matrix')", "", ""),
        ("rowPair", "length(rowPairs(o))", "rowPairs", ""),
        ("name of the main experiment", "mainExpName(o)", "", ""),
        ("metadata: text", "metadata(o)$who", "", ""),
        ("metadata: table", "metadata(o)$table", "", ""),
        ("metadata: code", "is.function(metadata(o)$f)", "metadata 'f'", ""),
    ]


def _same(code: str, first: str = "x", second: str = "y") -> bool:
    return bool(
        ro.r(
            f"isTRUE(tryCatch({{f <- function(o) {code}; identical(f({first}), f({second}))}}, error = function(e) NA))"
        )[0]
    )


def _verdict(line: Line, messages: list[str]) -> tuple[str, str, str]:
    slot, code, words, other = line
    if _same(code):
        return slot, "kept", ""
    message = (
        words if words.startswith("(") else next((s for s in messages if words and words in s), "")
    )
    if not message:
        return slot, "LOST WITHOUT A WORD", ""
    changed = bool(other) and bool(ro.r(f"f <- function(o) {code}; identical({other}, f(y))")[0])
    return slot, "changed" if changed else "lost", message


def travel(make: str, lines: list[Line], there: Any, back: Any) -> list[tuple[str, str, str]]:
    """Make the object in R, convert it to a file and back, and compare every slot: rows of (slot, verdict, message)."""
    _r.bridge()
    ro.r(SETUP)
    ro.r(make)
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5ad"
        there(ro.globalenv["x"]).write_h5ad(path)
        ro.globalenv["y"] = back(anndata.read_h5ad(path))
    plain = re.sub(r"scMamba: Not carried over from [^:]*: ", "", heard.getvalue())
    messages = [re.sub(r"\s+", " ", s).strip(" ;.") for s in re.split(r"[\n;]", plain)]
    return [_verdict(line, messages) for line in lines]


def version(package: str) -> str:
    """Installed version of an R package, "" if there is none."""
    return str(
        ro.r(
            f"if (requireNamespace('{package}', quietly = TRUE)) as.character(utils::packageVersion('{package}')) else ''"
        )[0]
    )


def tables() -> dict[str, list[tuple[str, str, str]]]:
    """Heading -> rows, for the packages of this R."""
    _r.bridge()
    _r.need("SeuratObject")
    found = {}
    if version("Seurat"):
        five = int(version("SeuratObject").split(".")[0]) >= 5
        name = "Seurat 5, split layers" if five else "Seurat 4"
        make = SEURAT + (SPLIT if five else "")
        lines = seurat_lines(five)
        found[f"{name} -> h5ad -> Seurat"] = travel(
            make, lines, lambda x: bridge.from_seurat(x, assay="RNA"), bridge.to_seurat
        )
        if five:
            return found
    if version("SingleCellExperiment"):
        found["SingleCellExperiment -> h5ad -> SingleCellExperiment"] = travel(
            SCE, sce_lines(), bridge.from_sce, bridge.to_sce
        )
    return found


def as_text(heading: str, rows: list[tuple[str, str, str]]) -> str:
    """One section of the page."""
    body = "".join(
        f"| {slot} | {verdict} | {message.replace('|', '/')} |\n" for slot, verdict, message in rows
    )
    return f"## {heading}\n\n| slot | verdict | message |\n|---|---|---|\n{body}"


def written() -> dict[str, str]:
    """The page's sections by heading."""
    parts = re.split(r"(?m)^(?=## )", PAGE.read_text(encoding="utf-8")) if PAGE.exists() else []
    return {
        part[3:].split("\n", 1)[0]: part.rstrip("\n") + "\n"
        for part in parts
        if part.startswith("## ")
    }


INTRODUCTION = """# Round trips, slot by slot

Objects with something in every slot went to an `.h5ad` file and back; R's `identical()` compared each slot. *kept*: identical.
*changed*, *lost*: different, with a message that names the slot (except for the order of names in a nested list). Written by
`tests/python/interop/round_trip_table.py`, which describes the method; every run of the tests measures it again and compares. Where each
slot is stored in the AnnData: [interop.md](interop.md).

"""


def main() -> None:
    """Print this R's tables, or write them to the page."""
    found = {heading: as_text(heading, rows) for heading, rows in tables().items()}
    if "--write" not in sys.argv:
        print("\n".join(found.values()))
        return
    everything = written() | found
    PAGE.write_text(
        INTRODUCTION + "\n".join(everything[heading] for heading in sorted(everything)),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
