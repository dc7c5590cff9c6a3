# Python's sentences in R's words: what AnnData calls obs, layers and var_names are metadata, layers or assays and row
# names here, and arguments are written with dots and TRUE. Both backends' sentences pass through here.

.r_words <- function(text) {
  for (i in seq_len(nrow(.word_table))) text <- gsub(.word_table$python[[i]], .word_table$r[[i]], text, perl = TRUE)
  text
}

# In this order: whole phrases first.
.word_table <- as.data.frame(matrix(c(
  "scmamba\\.genes\\.mouse_to_human\\(adata\\)", "ScMambaMouseToHuman(object)",
  "scmamba\\.ambient_rna\\(\\)", "ScMambaAmbient()",
  "adata\\.obs_names_make_unique\\(\\)", "colnames(x) <- make.unique(colnames(x))",
  "Give human gene names as var_names, or name the column of var that holds them \\(gene_column=\\.\\.\\.\\)",
  "Give human gene names as row names, or name the column that holds them (gene.column = \"...\")",
  "force=True \\(R: force = TRUE\\)", "force = TRUE",
  "layers\\['scmamba'\\] holds values for", "The imputed assay holds values for",
  "\\bThe object has X and the layers\\b", "The object has the layers",
  "\\bin X or in a layer \\(layer='counts'\\)", "in the layer \"counts\"",
  "\\bX holds\\b", "The matrix holds",
  "\\bvalues of X are\\b", "values of the matrix are",
  "\\bX \\(or", "the matrix (or",
  "\\bobs\\['([^']+)'\\]", "the metadata column \"\\1\"",
  "\\bvar\\['([^']+)'\\]", "the gene column \"\\1\"",
  "\\blayers\\['([^']+)'\\]", "the layer \"\\1\"",
  "\\bobsm\\['([^']+)'\\]", "the reduction \"\\1\"",
  "\\buns\\['scmamba'\\]", "the record of scMamba",
  "^obs has no column", "The metadata have no column",
  "\\bobs has no column", "the metadata have no column",
  "\\badata\\.var has no column", "The table of genes has no column",
  "\\b(in|of) `?obs`?(?=[ .,;:)]|$)", "\\1 the metadata",
  "\\bvar_names\\b", "row names",
  "\\bobs_names\\b", "cell names",
  "\\badapt_steps=0\\b", "adapt = FALSE",
  "\\bfinetune_steps=0\\b", "network = FALSE",
  "\\badapt_steps\\b", "adapt",
  "\\bfinetune_steps\\b", "network",
  "\\b(batch|sample|donor)_key\\b", "\\1",
  "\\blabel_keys?\\b", "labels",
  "\\bcondition_key\\b", "group.by",
  "\\bacross_studies\\b", "across.studies",
  "\\bn_jobs\\b", "workers",
  "\\bmin_diff_pct\\b", "min.diff.pct",
  "(?<!['\"])\\bgroup([12])\\b(?!['\"])", "ident.\\1",
  paste0("\\b(gene|min|to|error|expected|identification|batch|max|null|logfc)_",
    "(column|value|counts|probability|rate|size|pct|cells|total|degs|combinations|permutations|threshold)\\b"),
  "\\1.\\2",
  "\\b([a-z.]+)=(?=[).,; ]|$)", "\\1 =",
  "\\b([a-z.]+)=True\\b", "\\1 = TRUE",
  "\\b([a-z.]+)=False\\b", "\\1 = FALSE",
  "\\b([a-z.]+)=None\\b", "\\1 = NULL",
  "\\b([a-z.]+)='([^']*)'", "\\1 = \"\\2\"",
  "\\b(layer|sample|batch|labels|donor|force|adapt|min[.][a-z]+|expected[.]rate|seed)=(?=[0-9])", "\\1 = "
), ncol = 2, byrow = TRUE, dimnames = list(NULL, c("python", "r"))), stringsAsFactors = FALSE)
