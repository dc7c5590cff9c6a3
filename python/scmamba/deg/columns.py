"""Names of columns as lists."""

from __future__ import annotations

from collections.abc import Sequence


def as_list(names: str | Sequence[str] | None) -> list[str]:
    """One name, several or none as a list."""
    return [names] if isinstance(names, str) else list(names or [])
