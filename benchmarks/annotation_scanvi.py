"""scANVI in its own environment: FOLDER/{reference,query}.h5ad (counts; obs label, donor), label, seed, epochs -> FOLDER/calls.tsv."""

import sys

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scvi
import torch

folder, label, seed, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
scvi.settings.seed = seed
reference, query = (ad.read_h5ad(f"{folder}/{name}.h5ad") for name in ("reference", "query"))
both = ad.concat([reference, query], index_unique="-", keys=["reference", "query"])
both.obs["label"] = np.r_[reference.obs[label].astype(str), np.full(query.n_obs, "Unknown")]
logs = both.copy()
sc.pp.normalize_total(logs, target_sum=1e4)
sc.pp.log1p(logs)
sc.pp.highly_variable_genes(logs, n_top_genes=2000)
both = both[:, logs.var["highly_variable"]].copy()
both.X = both.X.astype(np.float32)
scvi.model.SCVI.setup_anndata(both, batch_key="donor", labels_key="label")
model = scvi.model.SCVI(both, n_layers=2, n_latent=30, gene_likelihood="nb")
quiet = {"accelerator": "cpu", "enable_progress_bar": False}
model.train(max_epochs=epochs, **quiet)
classifier = scvi.model.SCANVI.from_scvi_model(model, unlabeled_category="Unknown")
classifier.train(max_epochs=max(5, epochs // 5), n_samples_per_label=100, **quiet)
probabilities = classifier.predict(soft=True).iloc[reference.n_obs :]
best = probabilities.to_numpy().argmax(axis=1)
answers = pd.DataFrame(
    {"call": probabilities.columns[best], "sure": probabilities.max(axis=1).to_numpy()}
)
answers.to_csv(f"{folder}/calls.tsv", sep="\t", index=False)
