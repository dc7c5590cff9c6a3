"""Tables for spreadsheets: no cell that a spreadsheet would run as a formula."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: First characters of what Excel and LibreOffice take for a formula.
_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_csv(frame: pd.DataFrame, path: Path, **options: Any) -> None:
    """Write a table as CSV; text that begins like a formula gets a leading apostrophe.

    Parameters
    ----------
    frame
        The table. Numbers are written as they are.
    path
        File to write.
    **options
        As for :meth:`pandas.DataFrame.to_csv`.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_csv(pd.DataFrame({"a": ["=1+1", "b"], "n": [-1, 2]}), Path(folder) / "t.csv", index=False)
    ...     print((Path(folder) / "t.csv").read_text().split())
    ['a,n', "'=1+1,-1", 'b,2']
    """
    made = frame.copy()
    for position, name in enumerate(made.columns):
        column = made.iloc[:, position]
        if column.dtype.kind == "O":  # text of any type of pandas, and categories
            made[name] = column.astype(object).map(_plain)
    made.index = made.index.map(_plain) if made.index.dtype.kind == "O" else made.index
    made.columns = made.columns.map(_plain)
    made.to_csv(path, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_STARTS) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_html(text: str, table: pd.DataFrame) -> str:
    """What a notebook shows of a result: its text, and a table below it.

    Parameters
    ----------
    text
        The text, which may have several lines.
    table
        The table; of a long one the first and last rows.

    Examples
    --------
    >>> import pandas as pd
    >>> as_html("5 < 6", pd.DataFrame({"a": [1]})).startswith("<pre>5 &lt; 6</pre>")
    True
    """
    from html import escape

    return f"<pre>{escape(text)}</pre>{table.to_html(max_rows=30, notebook=True)}"
