"""The table of the simulated cohort can be rebuilt from what comes with the package."""

from __future__ import annotations

import numpy as np
from benchmarks import fit_cohort

from scmamba.annotation.brain_reference import load_reference
from scmamba.datasets._cohort import cohort_parameters


def test_the_table_is_rebuilt_from_the_shipped_reference(tmp_path):
    table, parameters = fit_cohort.refreshed()
    fit_cohort.write(table, parameters, tmp_path / "again.tsv.gz")
    assert (tmp_path / "again.tsv.gz").read_bytes() == fit_cohort.TARGET.read_bytes()


def test_profiles_are_the_mean_rates_of_the_cortical_columns():
    shipped = cohort_parameters()[0].set_index("ensembl_id")
    reference = load_reference()
    place = {gene: i for i, gene in enumerate(reference.genes)}
    genes = [gene for gene in shipped.index if gene in place]
    assert len(genes) > 9_000
    kinds = reference.table
    for name, kind in (("Excitatory", "Excitatory neuron"), ("OPC", "OPC")):
        own = (kinds["type"] == kind) & ~kinds["subtype"].str.startswith("Hippocampal")
        rates = reference.rates[:, own.to_numpy()].mean(axis=1)[[place[g] for g in genes]]
        expected = 1e4 * rates * shipped.loc[genes, "factor"]
        np.testing.assert_allclose(shipped.loc[genes, name], expected, rtol=0.006)
    assert (shipped.drop(genes)["factor"] == 1).all() and shipped["factor"].between(0.05, 20).all()
