# R's half of scmamba.interop: takes Seurat and SingleCellExperiment objects apart into plain lists of
# vectors, data frames and matrices, and assembles them again. Python never gets an S4 class other than a
# dgCMatrix. Every "lost" line is a sentence for the user.

local({
  v5 <- function() utils::packageVersion("SeuratObject") >= "5.0.0"

  # Setting a class from outside R leaves out the bit that makes R dispatch on it.
  classed <- function(x, attributes, class) {
    for (n in names(attributes)) attr(x, n) <- attributes[[n]]
    class(x) <- class
    x
  }

  # A matrix Python can read: a dgCMatrix or a plain numeric matrix.
  readable <- function(m) {
    if (inherits(m, "dgCMatrix") && identical(class(m)[1], "dgCMatrix")) return(m)
    if (is.matrix(m)) {
      storage.mode(m) <- "double"
      return(m)
    }
    if (inherits(m, c("IterableMatrix", "DelayedMatrix"))) {
      stop("A layer is stored on disk (", class(m)[1], "). Load it first: as(layer, \"dgCMatrix\").", call. = FALSE)
    }
    m <- methods::as(methods::as(methods::as(m, "dMatrix"), "generalMatrix"), "CsparseMatrix")
    methods::new("dgCMatrix", x = m@x, i = m@i, p = m@p, Dim = m@Dim, Dimnames = m@Dimnames)
  }

  # Columns Python has a type for; the others are named in `lost`.
  columns_of <- function(frame, what) {
    lost <- character()
    out <- list()
    for (name in names(frame)) {
      column <- frame[[name]]
      if (methods::is(column, "Rle")) column <- S4Vectors::decode(column)
      if (is.list(column) || length(dim(column)) > 0 || isS4(column)) {
        lost <- c(lost, paste0(what, " column '", name, "' (", class(column)[1], ")"))
      } else {
        if (is.factor(column) && anyNA(levels(column))) {
          lost <- c(lost, paste0("the level NA of ", what, " column '", name, "' (its cells are plain NA)"))
        }
        out[[length(out) + 1]] <- column
        names(out)[length(out)] <- name
      }
    }
    list(columns = out, names = as.character(names(out)), lost = lost)
  }

  take_layer <- function(m) {
    if (is.null(m) || length(m) == 0 || any(dim(m) == 0)) return(NULL)
    m <- readable(m)
    list(matrix = m, features = rownames(m), cells = colnames(m))
  }

  take_assay <- function(assay, name) {
    lost <- character()
    if (v5() && inherits(assay, "StdAssay")) {
      split <- grep("^(counts|data|scale\\.data)\\.", SeuratObject::Layers(assay), value = TRUE)
      if (length(split) > 0) {
        assay <- SeuratObject::JoinLayers(assay)
        lost <- c(lost, paste0("the split of assay '", name, "' into layers ", paste(split, collapse = ", "), " (joined)"))
      }
      layers <- lapply(stats::setNames(nm = SeuratObject::Layers(assay)), function(l) {
        take_layer(SeuratObject::LayerData(assay, layer = l))
      })
      meta <- assay[[]]
    } else {
      layers <- list(counts = take_layer(assay@counts), data = take_layer(assay@data),
                     scale.data = take_layer(assay@scale.data))
      if (identical(assay@counts, assay@data)) layers["data"] <- list(NULL)
      meta <- assay@meta.features
    }
    if (inherits(assay, "SCTAssay")) lost <- c(lost, paste0("the SCT models of assay '", name, "'"))
    if (inherits(assay, "ChromatinAssay")) lost <- c(lost, paste0("ranges and fragments of assay '", name, "'"))
    meta <- columns_of(meta, paste0("feature metadata of '", name, "':"))
    list(class = class(assay)[1], key = SeuratObject::Key(assay), features = rownames(assay), layers = layers,
         variable = as.character(SeuratObject::VariableFeatures(assay)), meta = meta$columns, meta.names = meta$names,
         lost = c(lost, meta$lost))
  }

  take_reduction <- function(r) {
    loadings <- function(m) if (length(m) == 0) NULL else list(matrix = m, features = rownames(m))
    embeddings <- SeuratObject::Embeddings(r)
    lost <- character()
    if (length(r@jackstraw@empirical.p.values) > 0) lost <- "JackStraw results"
    list(embeddings = unname(embeddings), components = colnames(embeddings), cells = rownames(embeddings),
         loadings = loadings(r@feature.loadings), projected = loadings(r@feature.loadings.projected),
         stdev = as.numeric(r@stdev), key = SeuratObject::Key(r), assay = as.character(r@assay.used),
         global = isTRUE(r@global), lost = lost)
  }

  take_graph <- function(g) {
    list(x = g@x, i = g@i, p = g@p, n = nrow(g), assay = as.character(if (length(g@assay.used)) g@assay.used else ""))
  }

  seurat_apart <- function(object) {
    misc <- object@misc # updating drops unknown entries without a message
    object <- SeuratObject::UpdateSeuratObject(object)
    lost <- character()
    parts <- function(slot, f) lapply(stats::setNames(nm = names(methods::slot(object, slot))), f)
    images <- names(object@images)
    if (length(images)) lost <- c(lost, paste0("spatial images ", paste(images, collapse = ", ")))
    if (length(object@commands)) lost <- c(lost, paste0("the log of ", length(object@commands), " commands"))
    if (length(object@tools)) lost <- c(lost, paste0("tool results ", paste(names(object@tools), collapse = ", ")))
    if (length(object@neighbors)) lost <- c(lost, paste0("neighbor lists ", paste(names(object@neighbors), collapse = ", ")))
    obs <- columns_of(object@meta.data, "cell metadata")
    assays <- parts("assays", function(n) take_assay(object@assays[[n]], n))
    reductions <- parts("reductions", function(n) take_reduction(object@reductions[[n]]))
    for (n in names(reductions)) {
      if (length(reductions[[n]]$lost)) lost <- c(lost, paste0(reductions[[n]]$lost, " of reduction '", n, "'"))
    }
    list(cells = colnames(object), default = SeuratObject::DefaultAssay(object), assays = assays, obs = obs$columns,
         obs.names = obs$names, ident = unname(SeuratObject::Idents(object)), reductions = reductions,
         graphs = parts("graphs", function(n) take_graph(object@graphs[[n]])), project = object@project.name,
         misc = misc, lost = c(lost, obs$lost, unlist(lapply(assays, `[[`, "lost"), use.names = FALSE)))
  }

  frame <- function(columns, rows) {
    structure(columns, class = "data.frame", row.names = rows, names = as.character(names(columns)))
  }

  named <- function(m, rows, columns) {
    if (is.null(m)) return(NULL)
    dimnames(m) <- list(rows, columns)
    m
  }

  make_assay <- function(a, cells) {
    layers <- lapply(a$layers, function(l) named(l$matrix, l$features, cells))
    empty <- methods::new("matrix")
    meta <- frame(a$meta, a$features)
    if (v5() && (identical(a$class, "Assay5") || identical(a$class, "auto"))) {
      made <- SeuratObject::CreateAssay5Object(counts = layers$counts, data = layers$data)
      for (l in setdiff(names(layers), c("counts", "data"))) {
        if (!is.null(layers[[l]])) SeuratObject::LayerData(made, layer = l) <- layers[[l]]
      }
      if (ncol(meta)) made[[names(meta)]] <- meta[rownames(made), , drop = FALSE]
    } else {
      counts <- layers$counts
      data <- if (is.null(layers$data)) counts else layers$data
      made <- methods::new("Assay", counts = if (is.null(counts)) empty else counts, data = data,
                           scale.data = if (is.null(layers$scale.data)) empty else layers$scale.data,
                           meta.features = meta, var.features = character(), key = a$key)
    }
    if (length(a$variable)) SeuratObject::VariableFeatures(made) <- a$variable
    SeuratObject::Key(made) <- a$key
    made
  }

  make_reduction <- function(r, cells, default) {
    wide <- function(m) if (is.null(m)) methods::new("matrix") else named(m$matrix, m$features, r$components)
    SeuratObject::CreateDimReducObject(
      embeddings = named(r$embeddings, cells, r$components), loadings = wide(r$loadings),
      projected = wide(r$projected), assay = if (nzchar(r$assay)) r$assay else default,
      stdev = as.numeric(r$stdev), key = r$key, global = isTRUE(r$global))
  }

  make_graph <- function(g, cells, default) {
    methods::new("Graph", x = as.numeric(g$x), i = as.integer(g$i), p = as.integer(g$p), Dim = rep(length(cells), 2L),
                 Dimnames = list(cells, cells), assay.used = if (nzchar(g$assay)) g$assay else default)
  }

  seurat_together <- function(parts) {
    cells <- parts$cells
    object <- methods::new("Seurat", assays = lapply(parts$assays, make_assay, cells = cells),
                           meta.data = frame(parts$obs, cells), active.assay = parts$default,
                           active.ident = stats::setNames(parts$ident, cells), project.name = parts$project,
                           version = utils::packageVersion("SeuratObject"))
    for (n in names(parts$reductions)) object[[n]] <- make_reduction(parts$reductions[[n]], cells, parts$default)
    for (n in names(parts$graphs)) object[[n]] <- make_graph(parts$graphs[[n]], cells, parts$default)
    for (n in names(parts$misc)) suppressWarnings(SeuratObject::Misc(object, slot = n) <- parts$misc[[n]])
    methods::validObject(object)
    object
  }

  sce_apart <- function(x) {
    lost <- character()
    assays <- SummarizedExperiment::assays(x, withDimnames = FALSE)
    reduced <- SingleCellExperiment::reducedDims(x)
    alternatives <- SingleCellExperiment::altExpNames(x)
    pairs <- SingleCellExperiment::colPairs(x, asSparse = TRUE)
    obs <- columns_of(SummarizedExperiment::colData(x), "cell metadata")
    var <- columns_of(SummarizedExperiment::rowData(x), "gene metadata")
    if (length(SingleCellExperiment::rowPairs(x))) lost <- c(lost, "rowPairs")
    if (methods::is(SummarizedExperiment::rowRanges(x), "GRanges")) lost <- c(lost, "genomic ranges of the genes")
    for (n in alternatives) {
      a <- SingleCellExperiment::altExp(x, n)
      more <- methods::is(a, "SingleCellExperiment")
      has <- c("gene metadata" = ncol(SummarizedExperiment::rowData(a)) > 0, "cell metadata" = ncol(SummarizedExperiment::colData(a)) > 0,
               "metadata" = length(S4Vectors::metadata(a)) > 0,
               "reductions" = more && length(SingleCellExperiment::reducedDims(a)) > 0,
               "alternative experiments" = more && length(SingleCellExperiment::altExpNames(a)) > 0)
      if (any(has)) lost <- c(lost, paste0(paste(names(has)[has], collapse = ", "), " of the alternative experiment '", n, "'"))
    }
    main <- SingleCellExperiment::mainExpName(x)
    list(cells = colnames(x), features = rownames(x), main = if (is.null(main)) "" else main,
         assays = lapply(as.list(assays), readable), obs = obs$columns, obs.names = obs$names, var = var$columns,
         var.names = var$names,
         reductions = lapply(as.list(reduced), function(m) {
           rotation <- attr(m, "rotation")
           list(embeddings = unname(as.matrix(m))[, , drop = FALSE] + 0, components = as.character(colnames(m)),
                loadings = if (is.null(rotation)) NULL else list(matrix = unname(rotation), features = rownames(rotation)))
         }),
         alternatives = lapply(stats::setNames(nm = alternatives), function(n) {
           a <- SingleCellExperiment::altExp(x, n)
           list(features = rownames(a), assays = lapply(as.list(SummarizedExperiment::assays(a, withDimnames = FALSE)), readable))
         }),
         pairs = lapply(as.list(pairs), readable), metadata = S4Vectors::metadata(x),
         lost = c(lost, obs$lost, var$lost))
  }

  wide_frame <- function(columns, rows) {
    out <- S4Vectors::make_zero_col_DFrame(length(rows))
    for (n in names(columns)) out[[n]] <- columns[[n]]
    rownames(out) <- rows
    out
  }

  sce_together <- function(parts) {
    assays <- lapply(parts$assays, named, rows = parts$features, columns = parts$cells)
    made <- SingleCellExperiment::SingleCellExperiment(
      assays = assays, colData = wide_frame(parts$obs, parts$cells), rowData = wide_frame(parts$var, parts$features),
      mainExpName = if (nzchar(parts$main)) parts$main else NULL)
    for (n in names(parts$reductions)) {
      r <- parts$reductions[[n]]
      m <- named(r$embeddings, parts$cells, if (length(r$components)) r$components else NULL)
      if (!is.null(r$loadings)) attr(m, "rotation") <- named(r$loadings$matrix, r$loadings$features, colnames(m))
      SingleCellExperiment::reducedDim(made, n, withDimnames = FALSE) <- m
    }
    for (n in names(parts$alternatives)) {
      a <- parts$alternatives[[n]]
      SingleCellExperiment::altExp(made, n) <- SingleCellExperiment::SingleCellExperiment(
        assays = lapply(a$assays, named, rows = a$features, columns = parts$cells))
    }
    for (n in names(parts$pairs)) SingleCellExperiment::colPair(made, n) <- parts$pairs[[n]]
    S4Vectors::metadata(made) <- parts$metadata
    made
  }

  environment()
})
