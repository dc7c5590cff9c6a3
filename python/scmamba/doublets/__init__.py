"""Droplets with two cells."""

from ._find import detect_doublets

__all__ = [
    "detect_doublets",
]
