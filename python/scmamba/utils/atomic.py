"""Files that are either whole or absent: write beside the target, then rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ScMambaError

#: In a temporary folder; locked as long as the process that writes there lives.
IN_USE = ".scmamba-in-use"
_FULL = {errno.ENOSPC, errno.EDQUOT}
#: How libraries that keep no error number say that a disk is full (HDF5, R, PyTorch, safetensors).
_FULL_WORDS = (
    "No space left",
    "Disk quota exceeded",
    "os error 28",
    "errno = 28",
    "errno = 122",
    "error writing to connection",
    "write error during",
    "PytorchStreamWriter failed writing",
)
_TOO_LARGE_WORDS = ("File too large", "os error 27", "errno = 27")


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it onto ``target`` when the block succeeds.

    Works for files and for folders; a link is followed, so that it stays a link. On any failure, an interrupt or a full disk included, the temporary is removed and
    whatever stood at ``target`` before is untouched. What a killed process left behind is removed by the next one that
    writes in the same folder.

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
    if target.is_symlink():
        target = target.resolve()
    with temporary_folder(target) as holder:
        temporary = holder / target.name
        yield temporary
        if temporary.is_dir() and target.is_dir():
            # A directory cannot be renamed onto a full one: step the old aside first.
            os.replace(target, holder / "replaced")
        os.replace(temporary, target)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``target``, which is removed in the end; first remove those of killed processes.

    Parameters
    ----------
    target
        What is going to be written.

    Yields
    ------
    The folder, on the same disk.

    Raises
    ------
    ScMambaError
        The parent folder does not exist or cannot be written, or the disk is full.
    """
    if not target.parent.is_dir():
        raise ScMambaError(
            f"The folder {target.parent} does not exist. Create it, or choose another output path."
        )
    _remove_abandoned(target.parent)
    try:
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
    except OSError as error:
        raise ScMambaError(
            f"Nothing can be written in {target.parent}: {error.strerror}."
        ) from error
    mark = _mark(holder)
    try:
        yield holder
    except ScMambaError as error:
        if any(words in str(error) for words in _FULL_WORDS):  # R's, as text
            raise ScMambaError(no_room(error, target)) from error
        raise
    except Exception as error:  # libraries raise many kinds for a full disk
        if sentence := no_room(error, target):
            raise ScMambaError(sentence) from error
        raise
    finally:
        if mark is not None:
            os.close(mark)
        shutil.rmtree(holder, ignore_errors=True)


def check_target(target: Path) -> None:
    """Make and remove a temporary folder beside a target, so that long work does not end where nothing can be written.

    Parameters
    ----------
    target
        The file or folder to be written; a link is followed.

    Raises
    ------
    ScMambaError
        Its parent folder does not exist or cannot be written.
    """
    with temporary_folder(target.resolve() if target.is_symlink() else target):
        pass


def no_room(error: BaseException, target: Path) -> str:
    """A sentence if the cause of an error is a full disk or a limit on the size of files, or an empty string.

    Parameters
    ----------
    error
        What was raised while ``target`` was written.
    target
        The file or folder.

    Examples
    --------
    >>> no_room(OSError(28, "No space left on device"), Path("folder/x.h5ad"))
    'The disk holding folder is full; x.h5ad was not written. Free some space or choose another path.'
    """
    cause: BaseException | None = error
    while cause is not None:
        number, text = getattr(cause, "errno", None), str(cause)
        if number in _FULL or any(words in text for words in _FULL_WORDS):
            return (
                f"The disk holding {target.parent} is full; {target.name} was not written. "
                "Free some space or choose another path."
            )
        if number == errno.EFBIG or any(words in text for words in _TOO_LARGE_WORDS):
            return (
                f"{target.name} is larger than the disk holding {target.parent}, or a limit of this session (ulimit -f), "
                "allows; it was not written."
            )
        cause = cause.__cause__ or cause.__context__
    return ""


def _mark(holder: Path) -> int | None:
    """The number of a locked file in ``holder``; ``None`` where files cannot be locked (Windows, some network disks)."""
    try:
        import fcntl

        file = os.open(holder / f"{IN_USE}-new", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Renamed once it is locked, so that no other process takes it for an abandoned one before.
        os.replace(holder / f"{IN_USE}-new", holder / IN_USE)
    except (ImportError, OSError):
        return None
    return file


def _remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders in ``parent`` whose process is dead."""
    try:
        import fcntl

        with os.scandir(parent) as entries:
            found = [Path(entry.path) for entry in entries if entry.name.startswith(".")]
    except (ImportError, OSError):
        return
    for folder in found:
        try:
            with open(folder / IN_USE, "r+") as mark:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # no temporary folder of ours, or its process lives
            continue
