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
#: Differences of log rates between types that are smaller than this are not used: studies differ as much.
STUDY_SPREAD = 0.5
#: Specific genes of a type that are compared.
SPECIFIC_GENES = 60


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
        Its name; :func:`scmamba.references` lists them.

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


def shrink_differences(rates: np.ndarray, spread: float = STUDY_SPREAD) -> np.ndarray:
    """Bring the logs of rates nearer to the gene's mean; smaller differences vanish.

    Parameters
    ----------
    rates
        (g, columns).
    spread
        By how much.

    Returns
    -------
    (g, columns) rates; each column sums to 1.
    """
    logs = np.log(rates)
    mean = logs.mean(axis=1, keepdims=True)
    gap = logs - mean
    out = np.exp(mean + np.sign(gap) * np.maximum(np.abs(gap) - spread, 0))
    return out / out.sum(axis=0)


def specific_genes(means: np.ndarray, code: int) -> np.ndarray:
    """Genes with more than three times the mean rate of the other types, those with the highest rates first, at most 60.

    Parameters
    ----------
    means
        (g, types) mean rates.
    code
        The type.

    Returns
    -------
    Positions of the genes.
    """
    others = np.delete(means, code, axis=1).mean(axis=1)
    rate = np.where(means[:, code] > 3 * (others + 1e-9), means[:, code], 0)
    best = np.argsort(-rate, kind="stable")[:SPECIFIC_GENES]
    return best[rate[best] > 0]
