"""What the values of a matrix are: raw counts, corrected counts, logarithms of some base, scaled values, or none of these.

Every verb, ``scmamba.deg``, the converters and the R package judge values here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import sparse

from ..utils.errors import DataError

#: Counts of a cell are scaled to this total before log1p (paper, Methods).
SCALE = 1e4
#: Larger values cannot be logarithms: log2 of a million is 19.93.
LARGEST_LOG = 20.0
#: Totals whose 95% quantile is at most this many times their 5% quantile are one constant, up to rounding.
_CONSTANT = 1.02
#: The same ratio, up to which log-normalised values are accepted although some genes were removed after normalization.
_NEARLY_CONSTANT = 1.5
#: Slope of a cell's median value on its detected genes (both as logarithms): -0.4 to -0.9 in log-normalised values, near 0 in counts.
_LOG_SLOPE = -0.2
#: Cells whose values are compared with each other where the values alone do not decide.
_SAMPLE = 1024

#: Fewer cells, genes or values show nothing that they have in common.
_FEW = 10
#: So many genes are never all detected in every cell, and the share of a cell's values that are its smallest one, above which
#: this one stands for zero.
_ALL_DETECTED, _UNDETECTED = 100, 0.1

ValueKind = Literal[
    "counts", "log1p", "log1p_counts", "scaled", "negative", "neither", "not_finite", "empty"
]


@dataclass(frozen=True)
class ValueScale:
    """The scale of a matrix's values, and the sentence that describes it.

    Attributes
    ----------
    kind
        ``"counts"`` (raw or corrected), ``"log1p"`` (logarithms of normalized counts), ``"log1p_counts"`` (logarithms of counts without
        normalization); and what no verb can use: ``"scaled"`` (scaled or centered genes), ``"negative"`` (other negative values),
        ``"neither"``, ``"not_finite"`` (NaN or infinite values), ``"empty"`` (zeros only).
    scale
        Total of a cell of normalized values (median); 10,000 for counts.
    sentence
        What was found, for messages and provenance.
    base
        Base of the logarithms; e if there are none.
    integer
        The values are whole numbers.
    totals
        5% and 95% quantile of the cells' totals after the logarithm is undone; equal if the cells were normalized.
    """

    kind: ValueKind
    scale: float
    sentence: str
    base: float = np.e
    integer: bool = False
    totals: tuple[float, float] = field(default=(0.0, 0.0), compare=False)

    @property
    def usable(self) -> bool:
        """Counts or logarithms, the kinds that every verb reads."""
        return self.kind in ("counts", "log1p", "log1p_counts")

    @property
    def corrected(self) -> bool:
        """Counts with fractions."""
        return self.kind == "counts" and not self.integer

    @property
    def spread(self) -> float:
        """How many times the 95% quantile of the cells' totals is their 5% quantile."""
        return self.totals[1] / max(self.totals[0], 1e-12)

    def linear(self, values: np.ndarray) -> np.ndarray:
        """Counts, or relative counts, from values of this kind.

        Parameters
        ----------
        values
            Values of the matrix, any shape.
        """
        return values if self.kind == "counts" else _unlog(values, self.base)

    def natural_logs(self, values: np.ndarray) -> np.ndarray:
        """Logarithms of this base as natural ones, of :data:`numpy.float64`.

        Parameters
        ----------
        values
            Values of the matrix, any shape.
        """
        values = np.asarray(values, dtype=np.float64)
        return values if self.base == np.e else values * np.log(self.base)

    def require_usable(self, *, force: bool = False) -> None:
        """Refuse values that are neither counts nor logarithms.

        Parameters
        ----------
        force
            Take ``"neither"`` as corrected counts. Missing, infinite and negative values are refused all the same.

        Raises
        ------
        DataError
            What was found, what is expected, and what to do.
        """
        if self.usable or (force and self.kind == "neither"):
            return
        advice = {
            "not_finite": "Raw counts are expected; remove or repair those entries first.",
            "scaled": "Give raw counts, or log-normalized values from before the scaling (ScaleData, sc.pp.scale).",
            "negative": "Counts and log1p of counts are 0 or more: give raw counts, or log-normalized values.",
            "neither": "Give raw counts, or log1p of counts per 10,000. force=True takes them as corrected counts.",
            "empty": "There is nothing to read in this matrix.",
        }
        raise DataError(f"{self.sentence}. {advice[self.kind]}")


def classify_values(
    matrix: Any,
    *,
    name: str = "X",
    base: float | None = None,
    logged: bool | None = None,
    block: int = 2000,
) -> ValueScale:
    """Find out what the values of a matrix are; whatever they are, nothing is refused.

    Integers are counts. Fractions are logarithms if undoing a logarithm of base e, 2 or 10 gives integers (log1p of counts), or one total
    per cell, or in each cell multiples of one value (the count of one; also after genes were selected). They are corrected counts if the
    same holds without undoing a logarithm, or if they are above 20. What is left is decided by how a cell's median value changes with its
    number of detected genes: it falls in log-normalised data and does not in counts.

    Parameters
    ----------
    matrix
        (cells, genes), dense, sparse or backed; read once, ``block`` cells at a time.
    name
        What to call the matrix in the sentence.
    base
        Base that was recorded with the values (``uns["log1p"]["base"]``); it decides where several bases fit.
    logged
        The values were recorded as logarithms (or as counts, if False); decides where the values do not.
    block
        Cells that are read at once.

    Returns
    -------
    ValueScale

    Raises
    ------
    DataError
        The matrix does not hold numbers.

    Examples
    --------
    >>> import numpy as np
    >>> classify_values(np.array([[3, 0], [0, 7]])).sentence
    'X holds raw counts (integers, largest 7)'
    >>> counts = np.random.default_rng(0).poisson(1.0, (50, 200))
    >>> classify_values(np.log2(counts / counts.sum(axis=1, keepdims=True) * 1e4 + 1)).base
    2.0
    >>> classify_values(np.array([[1.5, -0.5], [-1.5, 0.5]])).kind
    'scaled'
    """
    seen = _Census(base if base else np.e)
    for rows in _blocks(matrix, block):
        seen.add(rows)
    if seen.bad:
        return ValueScale("not_finite", SCALE, f"{seen.bad:,} values of {name} are NaN or infinite")
    if seen.smallest < 0:
        centered = seen.is_centered()
        what = "scaled or centered values" if centered else "negative values"
        return ValueScale(
            "scaled" if centered else "negative",
            SCALE,
            f"{name} holds {what} (down to {seen.smallest:.3g})",
            integer=seen.integer,
        )
    if seen.largest <= 0:
        return ValueScale("empty", SCALE, f"{name} holds zeros only")
    if not seen.integer and seen.has_unit_variance():
        return ValueScale(
            "scaled",
            SCALE,
            f"{name} holds genes scaled to unit variance (sc.pp.scale or ScaleData without centering)",
        )
    if seen.integer:
        return ValueScale(
            "counts",
            SCALE,
            f"{name} holds raw counts (integers, largest {seen.largest:.0f})",
            integer=True,
        )
    return _Fractions(seen, name, logged).judge()


def detect_value_scale(
    matrix: Any,
    *,
    force: bool = False,
    any_total: bool = False,
    name: str = "X",
    base: float | None = None,
    logged: bool | None = None,
    block: int = 2000,
) -> ValueScale:
    """As :func:`classify_values`, for verbs that need counts or log-normalised values.

    Parameters
    ----------
    matrix, name, base, logged, block
        As in :func:`classify_values`.
    force
        Accept logarithms whose cells have different totals, and fractions that fit neither counts nor logarithms.
    any_total
        Accept the former only: for verbs that normalize the values over other genes themselves.

    Returns
    -------
    ValueScale
        Of kind ``"counts"``, ``"log1p"`` or ``"log1p_counts"``.

    Raises
    ------
    DataError
        NaN or infinite, negative (scaled or centered) values, zeros only, or logarithms on a scale that cannot be recovered.

    Examples
    --------
    >>> import numpy as np
    >>> counts = np.random.default_rng(0).poisson(1.0, (50, 200))
    >>> detect_value_scale(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)).kind
    'log1p'
    """
    found = classify_values(matrix, name=name, base=base, logged=logged, block=block)
    found.require_usable(force=force)
    if found.kind == "neither":
        return ValueScale(
            "counts", SCALE, f"{found.sentence}; taken as corrected counts (force=True)"
        )
    if found.kind == "log1p" and found.spread > _NEARLY_CONSTANT and not (force or any_total):
        low, high = found.totals
        raise DataError(
            f"{name} looks like logarithms, but the cells' totals without the logarithm lie between {low:,.0f} and {high:,.0f}; "
            "log1p of values normalized to one total per cell (10,000) is expected. Give raw counts (R: "
            'layer = "counts"), or normalize all genes before selecting some. force=True takes them as they are.'
        )
    return found


def log1p_cp10k(
    counts: sparse.csr_matrix, totals: np.ndarray | None = None, *, dtype: Any = np.float32
) -> sparse.csr_matrix:
    """log1p of counts per 10,000, same sparsity; a cell without counts stays empty.

    The order of operations is R's (count / total * 10,000), in float64, rounded to ``dtype`` once.

    Parameters
    ----------
    counts
        (r, m) CSR.
    totals
        (r,) totals of the cells; the sums of ``counts`` if not given.
    dtype
        Type of the result.

    Returns
    -------
    (r, m) CSR.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> log1p_cp10k(sparse.csr_matrix([[1, 3]]), dtype=np.float64).toarray().round(3).tolist()
    [[7.824, 8.923]]
    """
    if totals is None:
        totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    result = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        result.data /= np.repeat(np.asarray(totals, dtype=np.float64), np.diff(result.indptr))
    result.data *= SCALE
    result.data[~np.isfinite(result.data)] = 0
    np.log1p(result.data, out=result.data)
    result = result.astype(dtype, copy=False)
    result.eliminate_zeros()
    return result


def to_csr(block: Any) -> sparse.csr_matrix:
    """A float64 CSR copy of a block of rows, dense, sparse or backed, without stored zeros.

    Parameters
    ----------
    block
        (r, m) matrix.

    Returns
    -------
    (r, m) CSR.

    Raises
    ------
    DataError
        It does not hold numbers.
    """
    if hasattr(block, "compute"):  # dask, also with sparse chunks
        block = block.compute()
    if not sparse.issparse(block):
        block = to_numbers(block)
    result = _without_zeros(sparse.csr_matrix(block))
    result.sum_duplicates()
    result.eliminate_zeros()
    return result


def _without_zeros(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """A float64 copy without stored zeros, which are never copied: a small file can hold a billion of them."""
    kept = np.flatnonzero(rows.data)
    if len(kept) == len(rows.data):
        return sparse.csr_matrix(rows, dtype=np.float64, copy=True)
    indptr = np.searchsorted(kept, rows.indptr)
    values = rows.data[kept].astype(np.float64)
    return sparse.csr_matrix((values, rows.indices[kept], indptr), shape=rows.shape)


def to_numbers(values: Any) -> np.ndarray:
    """A dense block of numbers of a type that sparse matrices can hold: half precision and foreign byte order become usual types.

    Parameters
    ----------
    values
        Array, matrix or masked array; masked values become NaN, which is refused where values are judged.

    Returns
    -------
    The values, copied only where their type has to change.

    Raises
    ------
    DataError
        They are no real numbers.

    Examples
    --------
    >>> to_numbers(np.ones(2, dtype=np.float16)).dtype
    dtype('float32')
    """
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        values = np.ma.filled(values.astype(np.float64), np.nan)
    array = np.asarray(values)
    if array.dtype.kind not in "iufb":
        raise DataError(f"The matrix holds {array.dtype} values; numbers are expected.")
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        return array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def is_integer(values: np.ndarray) -> bool:
    """Whether all values are whole numbers; in parts, so that no large temporary is made.

    Parameters
    ----------
    values
        (n,) numbers.
    """
    if values.dtype.kind in "iub":
        return True
    step = 1 << 20
    return all(
        np.array_equal(part, np.rint(part))
        for part in (values[start : start + step] for start in range(0, len(values), step))
    )


def _unlog(values: np.ndarray, base: float) -> np.ndarray:
    """base ** x - 1, exact near 0."""
    values = np.asarray(values, dtype=np.float64)
    result: np.ndarray = np.expm1(values if base == np.e else values * np.log(base))
    return result


def _is_integral(values: np.ndarray) -> bool:
    """Whole numbers above 0 up to what a logarithm in float32 keeps of them; it keeps nothing of the fractions of large ones."""
    small = values[values < 5000]
    if not len(small) or small.min() < 0.5:
        return False
    return bool(np.allclose(small, np.rint(small), atol=1e-3, rtol=1e-5))


def _blocks(matrix: Any, block: int) -> Iterator[sparse.csr_matrix]:
    for start in range(0, matrix.shape[0], block):
        yield to_csr(_some_rows(matrix, start, min(start + block, matrix.shape[0])))


def _some_rows(matrix: Any, start: int, stop: int) -> Any:
    """Rows of a matrix; of CSR in memory without a copy, for which scipy needs twice the memory of the rows."""
    if not (sparse.issparse(matrix) and matrix.format == "csr"):
        return matrix[start:stop]
    indptr = matrix.indptr[start : stop + 1]
    values = slice(indptr[0], indptr[-1])
    return sparse.csr_matrix(
        (matrix.data[values], matrix.indices[values], indptr - indptr[0]),
        shape=(stop - start, matrix.shape[1]),
    )


def _spread(totals: np.ndarray) -> tuple[float, float]:
    """5% and 95% quantile of the positive totals."""
    totals = totals[totals > 0]
    if not len(totals):
        return 0.0, 0.0
    low, high = np.quantile(totals, [0.05, 0.95])
    return float(low), float(high)


def _row_sums(rows: sparse.csr_matrix, values: np.ndarray) -> np.ndarray:
    return np.bincount(
        np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)),
        weights=values,
        minlength=rows.shape[0],
    )


def _fractions_become_whole(values: np.ndarray, undone: np.ndarray) -> bool:
    """The undone values are whole numbers although several of the values are not; large ones decide nothing."""
    small = undone < 5000
    odd = small & (np.abs(values - np.rint(values)) > 1e-3)
    # A square root in float32 keeps this much of a count.
    off = np.abs(undone[small] - np.rint(undone[small]))
    return int(odd.sum()) >= _FEW and bool((off < 2e-3).all())


#: Transformations that no verb reads -> their inverse.
_OTHER_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "square roots of counts": np.square,
    "Freeman-Tukey transformed counts": lambda x: np.square((x - 1 / x) / 2),
    "Anscombe transformed counts": lambda x: np.square(x) / 4 - 0.375,
    "inverse hyperbolic sines of counts": np.sinh,
    "log1p of log1p of counts (log1p was applied twice)": lambda x: np.expm1(np.expm1(x)),
}
#: Those that are also recognized by one total per cell; sums of hyperbolic sines are nearly those of logarithms.
_OF_TOTALS = tuple(name for name in _OTHER_TRANSFORMS if name[0] in "sl")


class _Census:
    """Range of all values, and a sample of cells."""

    def __init__(self, base: float) -> None:
        self.base = float(base)
        self.smallest, self.largest, self.cells = np.inf, -np.inf, 0
        self.bad = self.negative = self.stored = self._counted = 0
        self.integer = self.log_integer = True
        self._sums: list[np.ndarray] = []
        self._genes: list[np.ndarray] = []  # sums and sums of squares of the genes
        self._sample: list[sparse.csr_matrix] = []

    def add(self, rows: sparse.csr_matrix) -> None:
        data = rows.data
        self.cells += rows.shape[0]
        if len(data):
            self.bad += int(np.count_nonzero(~np.isfinite(data)))
            self.smallest, self.largest = (
                min(self.smallest, float(data.min())),
                max(self.largest, float(data.max())),
            )
            with np.errstate(invalid="ignore"):  # NaN is counted above
                self.integer = self.integer and bool((data == np.rint(data)).all())
            self.negative += int(np.count_nonzero(data < 0))
            self.stored += len(data)
        if self.bad:
            return
        if self.smallest >= 0 and not self.integer and self.largest <= LARGEST_LOG:
            back = _unlog(data, self.base)
            self.log_integer = self.log_integer and (_is_integral(back) or not len(back))
            self._sums.append(_row_sums(rows, back))
        if not self.integer:
            self._add_genes(rows)
        self._sample.append(rows)
        if sum(part.shape[0] for part in self._sample) > 4 * _SAMPLE:
            self._sample = [self.sample]

    @property
    def sample(self) -> sparse.csr_matrix:
        """Up to :data:`_SAMPLE` cells, evenly spaced over what was read."""
        rows = sparse.csr_matrix(sparse.vstack(self._sample, format="csr"))
        return rows[:: max(1, -(-rows.shape[0] // _SAMPLE))]

    @property
    def sums(self) -> np.ndarray:
        """Totals of the cells without the logarithm; none are known of blocks of integers."""
        return np.concatenate(self._sums) if self._sums else np.zeros(0)

    def _add_genes(self, rows: sparse.csr_matrix) -> None:
        own = [
            np.bincount(rows.indices, weights=values, minlength=rows.shape[1])
            for values in (rows.data, rows.data**2)
        ]
        self._genes = [a + b for a, b in zip(self._genes, own)] if self._genes else own
        self._counted += rows.shape[0]

    def has_unit_variance(self) -> bool:
        """Most genes have one standard deviation, 1, or one root mean square, 1 (R's ``scale`` without centering)."""
        n = self._counted
        if not self._genes or n != self.cells or n < _FEW:
            return False
        sums, squares = (part[self._genes[1] > 0] for part in self._genes)
        if len(sums) < _FEW:
            return False
        around = squares - sums**2 / n
        shapes = (around / n, around / (n - 1), squares / (n - 1))
        return any(float(np.mean(np.abs(part - 1) < 1e-3)) > 0.5 for part in shapes)

    def is_centered(self) -> bool:
        """A good part of the values is negative, and most genes have a mean near 0 compared with their standard deviation."""
        if self.smallest > -1e-6:  # rounding
            return False
        if self.negative < 0.2 * self.stored:
            return False
        values = self.sample
        mean = np.asarray(values.mean(axis=0)).ravel()
        square = np.asarray(values.multiply(values).mean(axis=0)).ravel()
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        varies = deviation > 0
        return bool(varies.any()) and bool(
            np.median(np.abs(mean[varies]) / deviation[varies]) < 0.5
        )


class _Fractions:
    """Non-negative values that are not whole numbers: logarithms of some base, corrected counts, or neither."""

    def __init__(self, seen: _Census, name: str, logged: bool | None) -> None:
        self.seen, self.name, self.logged = seen, name, logged
        self.bases = list(dict.fromkeys((seen.base, np.e, 2.0, 10.0)))
        sample = seen.sample
        self.rows = sample[np.diff(sample.indptr) > 0]

    def judge(self) -> ValueScale:
        if self.seen.largest > LARGEST_LOG:
            return self._several() or self._transformed() or self._counts(self._one_total(None))
        if (base := self._log_of_counts()) is not None:
            return self._logs("log1p_counts", base)
        if self._has_prior_count():
            words = "logarithms of counts plus a prior count (as of voom, cpm(log = TRUE) or vst): no value is 0"
            return ValueScale("neither", SCALE, f"{self.name} holds {words}")
        candidates = [*self.bases] if self.logged else [*self.bases, None]
        spreads: dict[float | None, float] = {base: self._ratio(base) for base in candidates}
        best = min(spreads, key=lambda base: spreads[base])
        if spreads[best] <= _CONSTANT:
            return self._counts(True) if best is None else self._logs("log1p", best)
        if (unit := self._unit_of_counts()) is not None:
            return self._counts(False) if unit == 0 else self._logs("log1p", unit)
        if (other := self._several() or self._transformed()) is not None:
            return other
        if self.seen.largest <= 1 and self.logged is None:
            return ValueScale(
                "neither",
                SCALE,
                f"{self.name} holds fractions between 0 and {self.seen.largest:.3g}, neither counts nor logarithms of counts",
            )
        if self.logged if self.logged is not None else self._looks_logged():
            return self._logs("log1p", self.seen.base)
        return self._counts(False)

    def _logs(self, kind: ValueKind, base: float) -> ValueScale:
        sums = self._sums(base)
        low, high = _spread(sums)
        words = {np.e: "natural", 2.0: "base 2", 10.0: "base 10"}.get(base, f"base {base:g}")
        note = "" if base == np.e else f", {words} logarithms"
        if kind == "log1p_counts":
            text = f"{self.name} holds log1p of counts without normalization{note}; the counts are taken back from it"
            return ValueScale(kind, SCALE, text, base, totals=(low, high))
        scale = float(np.median(sums[sums > 0]))
        text = f"{self.name} holds log-normalized values{note} (expm1 sums to about {scale:,.0f} per cell)"
        return ValueScale(kind, scale, text, base, totals=(low, high))

    def _counts(self, normalized: bool) -> ValueScale:
        totals = _spread(_row_sums(self.rows, self.rows.data))
        if normalized:
            text = f"{self.name} holds values normalized to about {totals[1]:,.0f} per cell, without logarithm, read as corrected counts"
        else:
            text = f"{self.name} holds non-integer counts (largest {self.seen.largest:.1f}), read as corrected counts"
        return ValueScale("counts", SCALE, text, totals=totals)

    def _sums(self, base: float | None) -> np.ndarray:
        """Totals of the cells: of all, for the recorded base, else of the sample; ``None``: without undoing a logarithm."""
        if base == self.seen.base and len(self.seen.sums) == self.seen.cells:
            return self.seen.sums
        values = self.rows.data if base is None else _unlog(self.rows.data, base)
        return _row_sums(self.rows, values)

    def _ratio(self, base: float | None) -> float:
        low, high = _spread(self._sums(base))
        return high / max(low, 1e-12)

    def _one_total(self, base: float | None) -> bool:
        return len(self.rows.indptr) > 2 and self._ratio(base) <= _CONSTANT

    def _transformed(self) -> ValueScale | None:
        """Values that another transformation turns back into counts, or into values of one total per cell."""
        values = self.rows.data
        if self.logged is not None:
            return None
        for words, undo in _OTHER_TRANSFORMS.items():
            with np.errstate(all="ignore"):
                undone = undo(values)
            if not np.isfinite(undone).all():
                continue
            low, high = _spread(_row_sums(self.rows, undone))
            one_total = len(values) >= _FEW < self.rows.shape[0] and high <= _CONSTANT * low
            if _fractions_become_whole(values, undone) or (one_total and words in _OF_TOTALS):
                return ValueScale("neither", SCALE, f"{self.name} holds {words}")
        return None

    def _has_prior_count(self) -> bool:
        """No value is 0, and in most cells many genes share the smallest value: the undetected ones."""
        cells, genes = self.rows.shape
        if genes < _ALL_DETECTED or self.rows.nnz < cells * genes or self.seen.smallest <= 1e-3:
            return False
        data = self.rows.data
        with np.errstate(all="ignore"):
            others = [undo(data) for undo in _OTHER_TRANSFORMS.values()]
        if any(_fractions_become_whole(data, undone) for undone in others):
            return False  # zeros become positive in Freeman-Tukey and Anscombe transforms, too
        values = data.reshape(cells, genes)
        least = values.min(axis=1, keepdims=True)
        return bool(np.median((values <= least * (1 + 1e-6)).mean(axis=1)) > _UNDETECTED)

    def _several(self) -> ValueScale | None:
        """Whole numbers in some cells and logarithms in the others: studies that were joined as they were."""
        detected = np.diff(self.rows.indptr)
        odd = np.abs(self.rows.data - np.rint(self.rows.data)) > 1e-6
        whole = np.add.reduceat(odd.astype(np.int64), self.rows.indptr[:-1]) == 0
        whole &= (detected >= 10) & (np.maximum.reduceat(self.rows.data, self.rows.indptr[:-1]) > 1)
        others = self.rows[np.flatnonzero(~whole)]
        if not 0.02 < whole.mean() < 0.98 or others.data.max() > LARGEST_LOG:
            return None
        for base in self.bases:
            low, high = _spread(_row_sums(others, _unlog(others.data, base)))
            if high / max(low, 1e-12) <= _CONSTANT:
                return ValueScale(
                    "neither",
                    SCALE,
                    f"{self.name} holds whole numbers in {whole.mean():.0%} of the cells and logarithms in the others",
                )
        return None

    def _is_normalized(self, base: float) -> bool:
        """One total in all cells, none of which has a count of one: normalized values that happen to be whole numbers."""
        smallest = float(_unlog(self.rows.data, base).min())
        return self.rows.shape[0] > 1 and self._ratio(base) < 1.0001 and smallest > 1.5

    def _log_of_counts(self) -> float | None:
        """The base in which all values are logarithms of integers."""
        for base in self.bases:
            if base == self.seen.base:
                fits = self.seen.log_integer
            else:
                fits = _is_integral(_unlog(self.rows.data, base))
            if fits and not self._is_normalized(base):
                return base
        return None

    def _unit_of_counts(self) -> float | None:
        """The base in which the values of a cell are multiples of its smallest one; 0: without a logarithm; ``None``: none."""
        for base in self.bases if self.logged else [0.0, *self.bases]:
            values = self.rows.data if base == 0 else _unlog(self.rows.data, base)
            smallest = np.minimum.reduceat(values, self.rows.indptr[:-1])
            times = values / np.repeat(smallest, np.diff(self.rows.indptr))
            odd = (np.abs(times - np.rint(times)) > 2e-3) & (times < 1000)
            several = np.maximum.reduceat(times, self.rows.indptr[:-1]) > 1.5
            whole = np.add.reduceat(odd.astype(np.int64), self.rows.indptr[:-1]) == 0
            if several.any() and whole[several].mean() > 0.9:
                return base
        return None

    def _looks_logged(self) -> bool:
        """Dense values, totals that vary less without the logarithm, or values that get smaller where more genes were detected."""
        detected = np.diff(self.rows.indptr).astype(np.float64)
        if detected.sum() > 0.95 * len(detected) * self.rows.shape[1]:
            return True
        logs, plain = self._ratio(self.seen.base), self._ratio(None)
        if logs <= min(_NEARLY_CONSTANT, plain):
            return True
        if logs > 3 * plain:
            return False
        if len(detected) < 20 or np.std(np.log(detected)) < 0.1:
            return logs <= plain
        middle = [np.median(part) for part in np.split(self.rows.data, self.rows.indptr[1:-1])]
        slope = np.polyfit(np.log(detected), np.log(middle), 1)[0]
        return bool(slope < _LOG_SLOPE)
