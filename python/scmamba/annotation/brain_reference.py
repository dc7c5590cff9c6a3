"""Expected counts per gene of brain cell types, computed from public studies and shipped with the package.

The file is built by ``scripts/build_brain_reference.py``; the table beside it names the studies of each column, the terms of their
tables and the number of labeled nuclei.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
import pandas as pd

from ..utils.errors import OptionError

#: Name of the shipped reference -> its file.
FILES = {"human-brain": "human_brain_reference"}
#: Levels of the tree, coarse to fine.
LEVELS = ("class", "type", "subtype")


@dataclass(frozen=True)
class BrainReference:
    """Rates of the genes in each type.

    Attributes
    ----------
    genes
        (g,) Ensembl IDs.
    rates
        (g, columns) share of a column's counts; each column sums to 1.
    table
        One row per column: ``class``, ``type``, ``subtype`` (empty: none), ``ontology_id``, ``region``, ``cells``, ``studies``,
        ``licence``.
    """

    genes: np.ndarray
    rates: np.ndarray
    table: pd.DataFrame

    def of_region(self, region: str | None) -> BrainReference:
        """The columns that are expected in a region; all of them if it is ``None``."""
        if region is None:
            return self
        keep = self.table["region"].isin(["", region]).to_numpy()
        return BrainReference(
            self.genes, self.rates[:, keep], self.table[keep].reset_index(drop=True)
        )


@lru_cache(maxsize=2)
def load_reference(name: str = "human-brain") -> BrainReference:
    """Read a shipped reference.

    Parameters
    ----------
    name
        Its name; :func:`references` lists them.

    Returns
    -------
    The reference.

    Raises
    ------
    OptionError
        There is no reference of this name.
    """
    if name not in FILES:
        raise OptionError(f"There is no reference '{name}'; there are {', '.join(FILES)}.")
    folder = resources.files("scmamba") / "resources"
    with (folder / f"{FILES[name]}.npz").open("rb") as file, np.load(file) as kept:
        genes = np.array([f"ENSG{number:011d}" for number in kept["genes"]])
        rates = 2.0 ** (kept["log2_rates"] / 1000.0)
    with (folder / f"{FILES[name]}.tsv").open(encoding="utf-8") as text:
        table = pd.read_csv(text, sep="\t", keep_default_na=False)
    return BrainReference(genes, rates / rates.sum(axis=0), table)


def is_shipped(reference: object) -> bool:
    """Whether ``reference=`` names a reference that comes with the package."""
    return isinstance(reference, str) and reference in FILES


def references() -> pd.DataFrame:
    """List the cell types of the shipped references, with the studies they come from.

    Returns
    -------
    One row per column of a reference: ``reference``, ``class``, ``type``, ``subtype``, ``ontology_id`` (Cell Ontology), ``region``,
    ``cells`` (labeled nuclei; 0: published means whose number per type is not stated), ``studies``, ``licence``.

    Examples
    --------
    >>> import scmamba
    >>> table = scmamba.references()
    >>> sorted(table.loc[table["type"] == "Inhibitory neuron", "subtype"].unique())
    ['LAMP5', 'PVALB', 'SST', 'VIP']
    """
    tables = [load_reference(name).table.assign(reference=name) for name in FILES]
    columns = ["reference", *LEVELS, "ontology_id", "region", "cells", "studies", "licence"]
    return pd.concat(tables, ignore_index=True)[columns]
