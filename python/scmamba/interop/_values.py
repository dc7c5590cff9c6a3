"""R vectors, factors, data frames and matrices to numpy and pandas and back, keeping what converters lose.

NA in logicals, integers and strings, order and unused levels of factors, dates, names as they are (no
``check.names``). Numbers cross as memory, not element by element.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from ..data.values import is_integer
from ..utils.errors import DataError

_NA_INTEGER = -(2**31)
_NA_REAL = np.array([0x7FF00000000007A2], dtype=np.uint64).view(np.float64)  # R's NA among the NaNs
#: Types that AnnData files have no type for: what a column was in R is kept in ``uns`` under this name.
DATE, DATETIME, STRING = "Date", "POSIXct", "character"


class Unknown(Exception):
    """An R value Python has no type for."""


def attribute(value: Any, name: str) -> Any:
    """An R attribute as Python values, or None."""
    from rpy2.rinterface import NULL

    found = value.do_slot(name) if name in value.list_attrs() else NULL
    return None if found is NULL else found


def strings(value: Any) -> list[str | None]:
    """A character vector, NA as None."""
    from rpy2.rinterface import NA_Character

    return [None if item is NA_Character else str(item) for item in value]


def named(value: Any) -> dict[str, Any]:
    """A named R list as a dict of R values."""
    names = attribute(value, "names")
    return dict(zip(strings(names), value)) if names is not None else {}  # type: ignore[arg-type]


def column(value: Any) -> tuple[Any, str | None]:
    """One R column as something a DataFrame holds, and what it was in R if AnnData has no such type.

    Returns
    -------
    bool, Int32 and boolean (with NA) arrays, float64, categoricals, object arrays of str; dates and times as
    ISO strings, strings with NA as categoricals, each with its R class.
    """
    from rpy2 import rinterface as ri

    kind = (
        set(strings(attribute(value, "class"))) if attribute(value, "class") is not None else set()
    )
    if "factor" in kind:
        levels = strings(attribute(value, "levels"))
        codes = memory(value, np.int32)
        codes = np.where(codes == _NA_INTEGER, 0, codes) - 1
        if (
            None in levels
        ):  # addNA(): a missing level; pandas has missing values, not missing levels
            codes = np.where(codes == levels.index(None), -1, codes - (codes > levels.index(None)))
            levels = [level for level in levels if level is not None]
        return pd.Categorical.from_codes(
            codes, categories=pd.Index(levels, dtype=object), ordered="ordered" in kind
        ), None
    if "integer64" in kind:  # 64-bit integers in the memory of doubles
        raw = memory(value, np.float64).view(np.int64)
        missing = raw == np.iinfo(np.int64).min
        return (
            pd.arrays.IntegerArray(np.where(missing, 0, raw), missing) if missing.any() else raw
        ), None
    if "difftime" in kind:
        raise Unknown("difftime")
    if "Date" in kind:
        return _dates(
            memory(value, np.float64)
            if isinstance(value, ri.FloatSexpVector)
            else np.asarray(value, float),
            "D",
        ), DATE
    if "POSIXct" in kind:
        return _dates(np.asarray(memory(value, np.float64)), "s"), DATETIME
    if isinstance(value, ri.BoolSexpVector):
        raw = memory(value, np.int32)
        if (raw == _NA_INTEGER).any():
            return pd.arrays.BooleanArray(raw == 1, raw == _NA_INTEGER), None
        return raw == 1, None
    if isinstance(value, ri.IntSexpVector):
        raw = memory(value, np.int32)
        if (raw == _NA_INTEGER).any():
            return pd.arrays.IntegerArray(
                np.where(raw == _NA_INTEGER, 0, raw).astype(np.int32), raw == _NA_INTEGER
            ), None
        return raw, None
    if isinstance(value, ri.FloatSexpVector):
        return memory(value, np.float64), None
    if isinstance(value, ri.StrSexpVector):
        text = strings(value)
        if None in text:
            return pd.Categorical(
                text, categories=list(dict.fromkeys(t for t in text if t is not None))
            ), STRING
        return np.array(text, dtype=object), STRING  # h5ad files turn such columns into categories
    raise Unknown(type(value).__name__)


def _dates(number: np.ndarray, unit: str) -> pd.Categorical:
    """Days or seconds since 1970 as a categorical of ISO strings, missing where NA."""
    bad = ~np.isfinite(number)
    number = np.where(bad, 0, number)
    if unit == "D":
        time = np.floor(number).astype(np.int64).astype("datetime64[D]")
    else:  # nanoseconds, whole and fractional seconds apart: enough to get the same double back
        whole = np.floor(number)
        time = whole.astype(np.int64).astype("datetime64[s]") + np.round(
            (number - whole) * 1e9
        ).astype("timedelta64[ns]")
    return pd.Categorical(np.where(bad, None, np.datetime_as_string(time).astype(object)))


def memory(value: Any, dtype: Any) -> np.ndarray:
    """A flat copy of a vector's (or matrix's) memory: the R object may be collected afterwards."""
    return (
        np.asarray(value.memoryview()).ravel(order="K").astype(dtype)
        if len(value)
        else np.empty(0, dtype)
    )


def matrix(value: Any) -> sparse.csr_matrix | np.ndarray:
    """A genes x cells dgCMatrix as a cells x genes CSR (same memory layout), a numeric matrix transposed.

    Whole numbers come as int32, as AnnData files of counts have them; everything else stays float64.
    """
    if "Dim" in value.list_attrs():
        rows, columns = (int(n) for n in value.do_slot("Dim"))
        x = np.asarray(value.do_slot("x").memoryview()) if len(value.do_slot("x")) else np.empty(0)
        data = x.astype(np.int32) if is_integer(x) and _fits_32_bits(x) else x.copy()
        out = sparse.csr_matrix(
            (data, memory(value.do_slot("i"), np.int32), memory(value.do_slot("p"), np.int32)),
            shape=(columns, rows),
        )
        out.has_sorted_indices = True
        return out
    rows, columns = (int(n) for n in attribute(value, "dim"))
    return memory(value, np.float64).reshape(columns, rows)


def _fits_32_bits(x: np.ndarray) -> bool:
    return len(x) == 0 or x.dtype == bool or bool(x.min() > -(2**31) and x.max() < 2**31)


def tree(value: Any, lost: list[str] | None = None, what: str = "") -> Any:
    """Nested R lists of plain vectors as dicts and arrays that AnnData's ``uns`` can hold.

    Parameters
    ----------
    value
        An R value.
    lost
        Gets the names of elements of lists that are not converted; without it they end the conversion.
    what
        What to call ``value`` there.

    Raises
    ------
    Unknown
        Functions, environments, S4 objects, or whatever else has no place.
    """
    from rpy2 import rinterface as ri

    try:
        if isinstance(value, ri.ListSexpVector):
            kinds = attribute(value, "class")
            if kinds is not None and "data.frame" in strings(kinds):
                return _frame(value)
            return _dict(value, lost, what)
        return _leaf(value)
    except Unknown:
        raise
    except Exception as error:
        raise Unknown(f"{type(value).__name__}: {error}") from error


def _dict(value: Any, lost: list[str] | None, what: str) -> dict[str, Any]:
    names = attribute(value, "names")
    keys = strings(names) if names is not None else [str(i) for i in range(len(value))]
    out = {}
    for key, inner in zip(keys, value):
        try:
            out[str(key)] = tree(inner, lost, f"{what}${key}")
        except Unknown as error:
            if lost is None:
                raise
            lost.append(f"{what}${key} ({error})")
    return out


def _frame(value: Any) -> pd.DataFrame:
    from rpy2 import rinterface as ri

    rows = attribute(value, "row.names")
    first: Any = value[0] if len(value) else []
    numbered = range(1, len(first) + 1)
    index = [str(i) for i in (strings(rows) if isinstance(rows, ri.StrSexpVector) else numbered)]
    return pd.DataFrame({n: column(c)[0] for n, c in named(value).items()}, index=index)


def _leaf(value: Any) -> Any:
    """A vector or a matrix; one value becomes a scalar, missing values in text or factors make it a categorical."""
    from rpy2 import rinterface as ri

    if value.__class__.__name__ == "NULLType":
        raise Unknown("NULL")
    if attribute(value, "dim") is not None and isinstance(
        value, (ri.FloatSexpVector, ri.IntSexpVector)
    ):
        shape = [int(n) for n in attribute(value, "dim")]
        return np.asarray(memory(value, np.asarray(value.memoryview()).dtype)).reshape(
            shape, order="F"
        )
    found, _ = column(value)
    if len(found) == 1 and not pd.isna(found[0]):
        item = found[0]
        return item.item() if hasattr(item, "item") else item
    if isinstance(found, pd.Categorical):
        return found if found.isna().any() else np.array(found, dtype=object).astype(str)
    if isinstance(found, (pd.arrays.IntegerArray, pd.arrays.BooleanArray)):
        return found.to_numpy(dtype=float, na_value=np.nan)
    return found


def _integers(values: np.ndarray) -> Any:
    """An R integer vector from memory."""
    from rpy2.rinterface import IntSexpVector

    return IntSexpVector.from_memoryview(np.ascontiguousarray(values, dtype=np.int32).data)


def _floats(values: np.ndarray) -> Any:
    """An R double vector, filled in place: no second copy of a large matrix is ever held."""
    from rpy2.rinterface import FloatSexpVector

    from ._r import r, run

    if len(values) == 0:
        return FloatSexpVector([])
    out = run(r("numeric"), to_column(np.array([len(values)])))
    np.asarray(out.memoryview())[:] = values
    return out


def to_strings(values: Any) -> Any:
    """A character vector; missing values become NA."""
    from rpy2.rinterface import NA_Character, StrSexpVector

    return StrSexpVector(
        [NA_Character if v is None or v is pd.NA or v != v else str(v) for v in values]
    )


def to_column(values: Any, was: str | None = None) -> Any:
    """One column of a DataFrame (or any 1-d array) as an R vector or factor; ``was`` restores dates and
    strings.

    Raises
    ------
    Unknown
        Objects R has no vector for.
    """
    from rpy2.rinterface import BoolSexpVector

    series = values if isinstance(values, pd.Series) else pd.Series(values)
    if series.dtype.kind in "cmV":
        raise Unknown(str(series.dtype))
    if was in (DATE, DATETIME):
        return _to_dates(series, was)
    if was == STRING:
        return to_strings(series.astype(object))
    if isinstance(series.dtype, pd.CategoricalDtype):
        return _to_factor(series.cat)
    if isinstance(series.dtype, pd.DatetimeTZDtype) or series.dtype.kind == "M":
        return _to_dates(series, DATETIME)
    if pd.api.types.is_bool_dtype(series.dtype):
        raw = np.where(series.isna(), _NA_INTEGER, series.fillna(False).astype(bool)).astype(
            np.int32
        )
        return _logical(BoolSexpVector, raw)
    if pd.api.types.is_integer_dtype(series.dtype):
        filled = series.fillna(0).to_numpy()
        if len(filled) and max(int(filled.max()), -int(filled.min())) > 2**53:
            raise Unknown(f"{series.dtype} beyond 2^53, which R's numbers do not hold")
        filled = filled.astype(np.int64)
        if len(filled) == 0 or np.abs(filled).max() < 2**31:
            return _integers(np.where(series.isna(), _NA_INTEGER, filled).astype(np.int32))
        return _floats(np.where(series.isna(), _NA_REAL, filled.astype(float)))
    if pd.api.types.is_float_dtype(series.dtype):
        return _floats(np.ascontiguousarray(series.to_numpy(dtype=np.float64, na_value=np.nan)))
    present = series[series.notna()]
    if present.map(lambda v: isinstance(v, (bool, np.bool_))).all() and len(present):
        return to_column(series.astype("boolean"))
    if present.map(lambda v: isinstance(v, str)).all():
        return to_strings(series)
    raise Unknown(f"{type(present.iloc[0]).__name__} among {series.dtype}")


def _logical(kind: Any, raw: np.ndarray) -> Any:
    from rpy2.rinterface import NA_Logical

    return kind([NA_Logical if v == _NA_INTEGER else bool(v) for v in raw])


def _to_factor(cat: Any) -> Any:
    codes = cat.codes.to_numpy().astype(np.int32)
    out = _integers(np.where(codes < 0, _NA_INTEGER, codes + 1).astype(np.int32))
    levels = to_strings([str(c) for c in cat.categories])
    return _classed(out, {"levels": levels}, ["ordered", "factor"] if cat.ordered else ["factor"])


def _classed(value: Any, attributes: dict[str, Any], kind: list[str]) -> Any:
    from ._r import call

    return call("classed", value, to_list(attributes), to_strings(kind))


def _to_dates(series: pd.Series, was: str) -> Any:
    time = (
        pd.to_datetime(series.astype(object), utc=True)
        .dt.tz_localize(None)
        .to_numpy()
        .astype("datetime64[ns]")
    )
    since = np.where(np.isnat(time), np.datetime64(0, "ns"), time).astype(np.int64)
    number = since // 10**9 + since % 10**9 / 1e9
    number = np.where(np.isnat(time), _NA_REAL, number / 86400 if was == DATE else number)
    out = _floats(number)
    if was == DATE:
        return _classed(out, {}, ["Date"])
    return _classed(out, {"tzone": to_strings(["UTC"])}, ["POSIXct", "POSIXt"])


def to_list(items: dict[str, Any]) -> Any:
    """A named R list of R values; None becomes NULL."""
    from rpy2.rinterface import NULL, ListSexpVector

    out = ListSexpVector([NULL if v is None else v for v in items.values()])
    out.do_slot_assign("names", to_strings(list(items)))
    return out


def plain_matrix(values: Any) -> Any:
    """A matrix in memory, each entry stored once: dask arrays are computed, repeated entries added up.

    Parameters
    ----------
    values
        Dense, sparse or dask.
    """
    if hasattr(values, "compute"):
        values = values.compute()
    if isinstance(values, sparse.sparray):
        values = sparse.csr_matrix(values)
    compressed = sparse.issparse(values) and values.format in ("csr", "csc")
    if compressed and not values.has_canonical_format:
        values = values.astype(np.float64)  # a copy, in a type that holds the sums
        values.sum_duplicates()
    return values


def to_matrix(values: Any) -> Any:
    """A cells x genes matrix as a genes x cells dgCMatrix (sparse) or numeric matrix (dense), without names.

    Raises
    ------
    DataError
        More values than a dgCMatrix can index.
    """
    from rpy2.rinterface import IntSexpVector

    from ._r import r, run

    values = plain_matrix(values)
    if not sparse.issparse(values):
        dense = np.ascontiguousarray(values, dtype=np.float64)
        out = _floats(dense.ravel())
        out.do_slot_assign("dim", IntSexpVector(list(dense.shape[::-1])))
        return out
    rows = values.tocsr()
    if rows.nnz >= 2**31:
        raise DataError(
            f"The matrix holds {rows.nnz:,} values; an R sparse matrix holds at most {2**31 - 1:,}. Write it in parts."
        )
    if not rows.has_sorted_indices:
        rows = rows.sorted_indices()
    slots = {
        "x": _floats(rows.data),
        "i": _integers(np.ascontiguousarray(rows.indices, dtype=np.int32)),
        "p": _integers(np.ascontiguousarray(rows.indptr, dtype=np.int32)),
        "Dim": IntSexpVector([rows.shape[1], rows.shape[0]]),
    }
    return run(r("new", "methods"), to_strings(["dgCMatrix"]), **slots)


def to_dense(values: np.ndarray) -> Any:
    """A 2-d array as an R matrix of the same orientation."""
    return to_matrix(np.asarray(values, dtype=np.float64).T)


def to_tree(value: Any, lost: list[str] | None = None, what: str = "") -> Any:
    """Dicts, DataFrames, arrays and scalars of ``uns`` as R values; ``None`` becomes NULL.

    Parameters
    ----------
    value
        An entry of ``uns``.
    lost
        Gets the names of entries of dicts and lists that are not converted; without it they end the conversion.
    what
        What to call ``value`` there.

    Raises
    ------
    Unknown
        Anything else.
    """
    try:
        if isinstance(value, Mapping):
            return _to_named_list({str(k): item for k, item in value.items()}, lost, what)
        if isinstance(value, (list, tuple, np.ndarray)) and not _is_flat(value):
            if (made := _to_rectangle(value)) is not None:
                return made
            return _to_named_list({str(i): x for i, x in enumerate(value, 1)}, lost, what)
        return _to_leaf(value)
    except (Unknown, DataError):
        raise
    except Exception as error:
        raise Unknown(f"{type(value).__name__}: {error}") from error


def _to_named_list(items: dict[str, Any], lost: list[str] | None, what: str) -> Any:
    made: dict[str, Any] = {}
    for key, item in items.items():
        try:
            made[key] = None if item is None else to_tree(item, lost, f"{what}/{key}")
        except Unknown as error:
            if lost is None:
                raise
            lost.append(f"{what}/{key} (holds a {error})")
    return to_list(made)


def _is_flat(value: Any) -> bool:
    """One-dimensional values, none of which is a list; record arrays are tables."""
    if isinstance(value, np.ndarray):
        return (
            value.dtype.names is not None
            or (value.ndim <= 1 and value.dtype != object)
            or (
                value.ndim == 1
                and not any(isinstance(x, (list, tuple, np.ndarray, dict)) for x in value)
            )
        )
    return not any(isinstance(x, (list, tuple, np.ndarray, Mapping)) for x in value)


def _to_rectangle(value: Any) -> Any:
    """A matrix of numbers, or ``None``: ragged lists, text, more than two dimensions."""
    try:
        table = np.asarray(value)
    except ValueError:  # rows of different length
        return None
    if table.ndim != 2 or table.dtype.kind not in "fiub":
        return None
    return to_dense(table)


def _to_leaf(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.names is not None:
        if value.ndim != 1:
            raise Unknown("record array of several dimensions")
        value = pd.DataFrame.from_records(value)
        value.index = pd.RangeIndex(1, len(value) + 1)
    if isinstance(value, pd.DataFrame):
        return _to_frame(value)
    if sparse.issparse(value):
        return to_matrix(value.T)
    if isinstance(value, (pd.Categorical, pd.Series, pd.Index)) or (
        pd.api.types.is_extension_array_dtype(getattr(value, "dtype", None))
    ):
        return to_column(pd.Series(value))
    if isinstance(value, (str, bool, int, float, np.generic)):
        return to_column(np.array([value], dtype=object if isinstance(value, str) else None))
    if isinstance(value, (list, tuple, np.ndarray)):
        flat = np.atleast_1d(np.asarray(value))
        text = flat.dtype.kind in "USO"
        if flat.dtype.kind == "S":
            flat = np.char.decode(flat, "utf-8")
        return to_column(flat.astype(object) if text else flat)
    raise Unknown(type(value).__name__)


def _to_frame(value: pd.DataFrame) -> Any:
    out = to_list({str(n): to_column(value.iloc[:, i]) for i, n in enumerate(value.columns)})
    names = list(value.index.astype(str))
    # Numbers from 1 are what R gives rows without names.
    plain = names == [str(i) for i in range(1, len(names) + 1)]
    rows = _integers(np.arange(1, len(names) + 1)) if plain else to_strings(names)
    return _classed(out, {"row.names": rows}, ["data.frame"])
