"""The shipped reference of the human brain as users see it; :mod:`scmamba.datasets.brain_reference` reads it."""

from __future__ import annotations

import pandas as pd

from ..datasets.brain_reference import FILES, LEVELS, BrainReference, load_reference

__all__ = ["FILES", "LEVELS", "BrainReference", "is_shipped", "load_reference", "references"]


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
