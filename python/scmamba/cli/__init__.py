"""The command line: ``scmamba --help``."""

from .main import app

__all__ = [
    "app",
]
