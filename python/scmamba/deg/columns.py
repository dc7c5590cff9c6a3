"""Names of columns as lists."""

from __future__ import annotations

from collections.abc import Iterable


def as_list(names: str | Iterable[str] | None) -> list[str]:
    """One name, several or none as a list; each once."""
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(dict.fromkeys(map(str, names)))
