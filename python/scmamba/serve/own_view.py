"""Without Landlock: a view of the files of its own for a process that opens strangers' files (Linux).

The process gets new user, mount and network namespaces and a root folder that holds nothing but what was
named (https://man7.org/linux/man-pages/man7/mount_namespaces.7.html). Bubblewrap does the same for a program
that it starts; a job is forked from a worker that has its libraries open, so no program is started.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

_NEW_USER, _NEW_MOUNTS, _NEW_NETWORK = 0x10000000, 0x00020000, 0x40000000  # CLONE_NEW*
_READ_ONLY, _NO_SUID, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 32, 4096, 1 << 14, 1 << 18
_LOCKED = 1 | 2 | 4 | 8 | 1024 | 2048 | (1 << 21)  # flags of a mount that a new namespace must keep
_DETACH = 2  # MNT_DETACH
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_OLD = "/.old"


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _checked(
        _libc().mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None),
        f"mount {target}",
    )


def _enter_namespaces() -> None:
    """New namespaces, in which this process may mount; its user and group keep their numbers."""
    user, group = os.geteuid(), os.getegid()
    _checked(_libc().unshare(_NEW_USER | _NEW_MOUNTS | _NEW_NETWORK), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path("/proc/self", name).write_text(text)
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)


def _bind(path: str, writable: bool) -> None:
    """Show a file or folder of the old root at its place in the new one."""
    source = _OLD + os.path.realpath(_OLD + path).removeprefix(_OLD)
    if not os.path.lexists(path):
        if os.path.isdir(source):
            os.makedirs(path)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Path(path).touch()
    elif not writable:
        return  # part of a folder that is shown already
    _mount(source, path, "", _BIND | _RECURSIVE)
    if not writable:
        kept = os.statvfs(path).f_flag & _LOCKED
        _mount("none", path, "", _REMOUNT | _BIND | _READ_ONLY | kept)


def enter(read: Iterable[Path], write: Iterable[Path], devices: Iterable[Path]) -> None:
    """Leave this process, for good, with the given files and folders only, and without a network.

    Parameters
    ----------
    read
        Files and folders it may read.
    write
        Folders it may change.
    devices
        Device files it may read and write.

    Raises
    ------
    OSError
        If the kernel, or the container, does not allow it, or the process has several threads. Nothing has
        changed then, except that the process may have no network.
    """
    machine = os.uname().machine
    if machine not in _PIVOT_ROOT:
        raise OSError(errno.ENOSYS, f"no call numbers for {machine}")
    # Symbolic links are resolved while the old root is in place; both names are shown.
    shown = {name for path in read for name in (os.path.abspath(path), os.path.realpath(path))}
    changed = {name for path in write for name in (os.path.abspath(path), os.path.realpath(path))}
    opened = [os.path.abspath(path) for path in devices if os.path.exists(path)]
    here, base = os.getcwd(), os.path.realpath(tempfile.gettempdir())
    _enter_namespaces()
    _mount("tmpfs", base, "tmpfs", _NO_SUID)
    os.mkdir(base + _OLD)
    call = _libc().syscall
    _checked(call(_PIVOT_ROOT[machine], base.encode(), (base + _OLD).encode()), "pivot_root")
    os.chdir("/")
    for path in sorted(shown, key=len):
        if os.path.exists(_OLD + path):
            _bind(path, writable=False)
    for path in sorted(opened + [*changed], key=len):
        _bind(path, writable=True)
    _checked(_libc().umount2(_OLD.encode(), _DETACH), "umount2")
    os.rmdir(_OLD)
    _mount("none", "/", "", _REMOUNT | _READ_ONLY | _NO_SUID)
    os.chdir(here if os.path.isdir(here) else "/")


@lru_cache(maxsize=1)
def possible() -> bool:
    """Whether :func:`enter` works here; a process of its own tries it."""
    if sys.platform != "linux":
        return False
    code = "from scmamba.serve.own_view import enter; enter(['/usr'], [], ['/dev/null'])"
    paths = os.pathsep.join(filter(None, sys.path))
    tried = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return tried.returncode == 0
