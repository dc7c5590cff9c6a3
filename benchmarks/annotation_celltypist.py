"""CellTypist in its own environment: FOLDER/{reference,query}.h5ad (log1p CP10k) and the label column -> FOLDER/calls.tsv."""

import sys

import anndata as ad
import celltypist
import pandas as pd

folder, label = sys.argv[1:]
reference, query = (ad.read_h5ad(f"{folder}/{name}.h5ad") for name in ("reference", "query"))
model = celltypist.train(
    reference, labels=label, n_jobs=1, feature_selection=True, check_expression=True
)
found = celltypist.annotate(query, model=model, majority_voting=False)
calls = found.predicted_labels["predicted_labels"].astype(str).to_numpy()
sure = found.probability_matrix.max(axis=1).to_numpy()
pd.DataFrame({"call": calls, "sure": sure}).to_csv(f"{folder}/calls.tsv", sep="\t", index=False)
