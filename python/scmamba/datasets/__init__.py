"""Data that come with scMamba: a simulated human brain cohort whose truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._cohort import CELL_TYPES, brain_cohort

__all__ = ["CELL_TYPES", "brain_cohort"]

__getattr__, __dir__ = lazy_names(__name__, {"CELL_TYPES": "_cohort", "brain_cohort": "_cohort"})
