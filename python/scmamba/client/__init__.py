"""A client of the server, for Python."""

from .client import Client, KeptReference

__all__ = [
    "Client",
    "KeptReference",
]
