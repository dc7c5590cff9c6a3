"""Files that are either whole or absent: write beside the target, then rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ScMambaError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it onto ``target`` when the block succeeds.

    Works for files and for folders. On any failure, an interrupt or a full disk included, the temporary is removed and
    whatever stood at ``target`` before is untouched.

    Parameters
    ----------
    target
        The file or folder to write.

    Yields
    ------
    The temporary path, on the same disk.

    Raises
    ------
    ScMambaError
        The parent folder does not exist or cannot be written, or the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from scmamba.utils.atomic import atomic_path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(Path(folder) / "table.csv") as path:
    ...         _ = path.write_text("gene,value")
    ...     (Path(folder) / "table.csv").read_text()
    'gene,value'
    """
    target = Path(target)
    if not target.parent.is_dir():
        raise ScMambaError(
            f"The folder {target.parent} does not exist. Create it, or choose another output path."
        )
    try:
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise ScMambaError(
            f"Nothing can be written in {target.parent}: {error.strerror}."
        ) from error
    try:
        temporary = holder / target.name
        yield temporary
        if temporary.is_dir() and target.is_dir():
            # A directory cannot be renamed onto a full one: step the old aside first.
            os.replace(target, holder / "replaced")
        os.replace(temporary, target)
    except OSError as error:
        if error.errno == 28 or "No space left" in str(error):
            raise ScMambaError(
                f"The disk holding {target.parent} is full; {target.name} was not written. Free some space or choose another path."
            ) from error
        raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)
