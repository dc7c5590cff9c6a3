"""Data that come with scMamba: a simulated human brain cohort whose truth is known."""

from ._cohort import CELL_TYPES, brain_cohort

__all__ = ["CELL_TYPES", "brain_cohort"]
