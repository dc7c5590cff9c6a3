"""A guard of objects that several tests share: the test that writes to one fails, instead of those that run after it.

Fixtures of wider scope than one test are fingerprinted when they are made, and again after each test that uses them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

#: Fixtures that exist now: their names, and each of their objects with its fingerprint.
_SHARED: dict[str, list[tuple[ad.AnnData, dict[str, object]]]] = {}


def fingerprint(data: ad.AnnData) -> dict[str, object]:
    """What the object holds, by part: names and checksums of values, of ``uns`` the keys."""
    found: dict[str, object] = {"X": None if data.isbacked else _values(data.X)}
    for part in ("obs", "var"):
        frame = getattr(data, part)
        found[f"{part}_names"] = _values(frame.index.to_numpy())
        found |= {f"{part}[{name!r}]": _values(frame[name]) for name in frame}
    for part in ("layers", "obsm", "varm", "obsp", "varp"):
        found |= {
            f"{part}[{name!r}]": _values(value) for name, value in getattr(data, part).items()
        }
    found["raw"] = data.raw is not None
    return found | dict.fromkeys(_keys(data.uns, "uns"))


def _values(values: Any) -> object:
    if sparse.issparse(values):
        matrix = values.tocsr() if values.format not in ("csr", "csc") else values
        return tuple(_values(part) for part in (matrix.data, matrix.indices, matrix.indptr))
    if isinstance(values, pd.DataFrame):
        return tuple((name, _values(values[name])) for name in values)
    if isinstance(values, pd.Series) and isinstance(values.dtype, pd.CategoricalDtype):
        # As text: writing a file turns columns of text into categories.
        return _values(values.astype(object).to_numpy())
    if isinstance(values, pd.Series):
        values = values.to_numpy()
    if not isinstance(values, np.ndarray):
        return type(values).__name__  # of a file, or of dask
    if values.dtype == object:
        return tuple(map(repr, values.ravel()))
    return values.dtype.str, values.shape, zlib.crc32(np.ascontiguousarray(values))


def _keys(values: Mapping, path: str) -> Iterator[str]:
    for key, value in values.items():
        yield f"{path}[{key!r}]"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{path}[{key!r}]")


def _objects(value: Any) -> Iterator[ad.AnnData]:
    """Objects among what a fixture returns: itself, or the elements of a tuple, a list or a dict."""
    parts = value.values() if isinstance(value, dict) else value
    for part in parts if isinstance(value, (tuple, list, dict)) else [value]:
        if isinstance(part, ad.AnnData):
            yield part


def written(fixtures: list[str]) -> list[str]:
    """Which parts of these fixtures have changed, as sentences; what is there now is the reference of the next test."""
    found = []
    for name in sorted(set(fixtures) & set(_SHARED)):
        for at, (data, before) in enumerate(_SHARED[name]):
            now = fingerprint(data)
            parts = [p for p in before | now if before.get(p, now) != now.get(p, before)]
            if parts:
                found.append(f"{', '.join(sorted(parts))} of the fixture {name!r}")
                _SHARED[name][at] = data, now
    return found


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Fingerprint a fixture when it has been made."""
    value = yield
    if fixturedef.scope != "function":
        objects = [(data, fingerprint(data)) for data in _objects(value)]
        if objects:
            _SHARED[fixturedef.argname] = objects
    return value


def pytest_fixture_post_finalizer(fixturedef):
    """Forget a fixture that no longer exists."""
    _SHARED.pop(fixturedef.argname, None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Fail the test that wrote to a shared object."""
    try:
        result = yield
    finally:
        changed = written(getattr(item, "fixturenames", []))
    if changed:
        pytest.fail(f"The test changed {'; '.join(changed)}: give it a .copy().", pytrace=False)
    return result
