"""What a process that opens strangers' files may do: no new privileges, no network, few files (Linux).

Landlock restricts files, seccomp system calls; both need no privileges and cannot be taken back. The structures and numbers are those of
the kernel's documentation (https://docs.kernel.org/userspace-api/landlock.html, seccomp_filter.html). Without Landlock, namespaces hide the
files (:mod:`scmamba.serve.own_view`). Where the kernel or the container allows neither, the rest is used, and the server prints what is active.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from . import own_view

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
# Rights to files: bits of LANDLOCK_ACCESS_FS_*.
_EXECUTE, _WRITE, _READ, _READ_DIR, _TRUNCATE, _IOCTL = 1, 2, 4, 8, 1 << 14, 1 << 15
_ON_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
#: All rights to files by version of the interface.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_RIGHTS = (1 << 16) - 1  # from version 5 on
#: Denied system calls: network, other processes, mounts, modules, keys, BPF. By machine: architecture, socket, the rest.
_DENIED = {
    "x86_64": (
        0xC000003E,
        (41, 101, 155, 161, 165, 166, 175, 176, 246, 248, 249, 250, 272, 298, 304, 308, 310, 311, 313, 321, 323, 425),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 39, 40, 41, 51, 97, 104, 105, 106, 117, 217, 218, 219, 241, 265, 268, 270, 271, 273, 280, 282, 425),
    ),
}  # fmt: skip
#: Calls that send signals by the number of a process, and ``prlimit64``.
_SIGNALS = {
    "x86_64": ((62, 129, 200, 234, 297, 424), 302),
    "aarch64": ((129, 138, 130, 131, 240, 424), 261),
}
#: What Python and its libraries read.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/lib32", "/bin", "/opt", "/nix", "/proc", "/sys", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd",
    "/etc/nsswitch.conf", "/etc/fonts", "/etc/mime.types",
)  # fmt: skip
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_GPUS = "/dev"  # nvidia*, dri, kfd


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def landlock_version() -> int:
    """Version of Landlock in this kernel; 0: none."""
    if sys.platform != "linux":
        return 0
    return max(0, int(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def available() -> list[str]:
    """What :func:`confine` can use here."""
    if sys.platform != "linux":
        return []
    found = ["no-new-privileges"]
    if platform.machine() in _DENIED and Path("/proc/sys/kernel/seccomp").is_dir():
        found.append("seccomp")
    if version := landlock_version():
        found.append(f"landlock {version}")
    elif own_view.possible():
        found.append("namespaces")
    return found


def confine(read: Iterable[Path] = (), write: Iterable[Path] = ()) -> list[str]:
    """Confine this process and whatever it starts, for good.

    Parameters
    ----------
    read
        Files and folders it may read beside Python and its libraries.
    write
        Folders it may change.

    Returns
    -------
    What is active.
    """
    if sys.platform != "linux":
        return []
    active = []
    if _libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        active.append("no-new-privileges")
    read, write = [*_read_by_python(), *read], list(write)
    if landlock_version():
        _restrict_files(read, write)
        active.append(f"landlock {landlock_version()}")
    else:
        with contextlib.suppress(OSError):
            own_view.enter(read, write, [*map(Path, _DEVICES), *_gpus()])
            active.append("namespaces")
    if _drop_capabilities(all_of_them=os.geteuid() != 0):
        active.append("no capabilities")
    if platform.machine() in _DENIED:
        with contextlib.suppress(OSError):
            _restrict_calls()
            active.append("seccomp")
    return active


def _drop_capabilities(all_of_them: bool) -> bool:
    """Give up root's powers, but for root's reading of files, which is limited; true if there was something to give up."""
    if "CapPrm:\t0000000000000000" in Path("/proc/self/status").read_text():
        return False
    kept = 0 if all_of_them else (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    header = struct.pack("=Ii", 0x20080522, 0)
    data = struct.pack("=6I", kept, kept, 0, 0, 0, 0)
    return int(_libc().capset(header, data)) == 0


def _read_by_python() -> list[Path]:
    places = [*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, *filter(None, sys.path)]
    return [Path(p) for p in places if os.path.exists(p)]


def _gpus() -> list[Path]:
    return [p for pattern in ("nvidia*", "dri", "kfd") for p in Path(_GPUS).glob(pattern)]


def _restrict_files(read: list[Path], write: list[Path]) -> None:
    version, libc = landlock_version(), _libc()
    rights = _RIGHTS.get(version, _ALL_RIGHTS)
    about = struct.pack("=Q", rights)
    if version >= 4:
        about += struct.pack("=Q", 3)  # no TCP, neither bind nor connect
    if version >= 6:
        about += struct.pack("=Q", 3)  # no abstract sockets of others, no signals to others
    rules = libc.syscall(_CREATE_RULESET, about, ctypes.c_size_t(len(about)), 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        devices = [Path(d) for d in _DEVICES]
        for path in read:
            _allow(libc, rules, path, (_READ | _READ_DIR | _EXECUTE) & rights)
        for path in devices:
            _allow(libc, rules, path, (_READ | _WRITE) & rights)
        for path in _gpus():
            _allow(libc, rules, path, (_READ | _READ_DIR | _WRITE | _IOCTL) & rights)
        for path in write:
            _allow(libc, rules, path, rights & ~_EXECUTE)
        if libc.syscall(_RESTRICT_SELF, int(rules), 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not path.is_dir():
            rights &= _ON_FILES
        about = struct.pack("=Qi", rights, handle)
        if libc.syscall(_ADD_RULE, int(rules), 1, about, 0) != 0:
            raise OSError(ctypes.get_errno(), f"landlock_add_rule {path}")
    finally:
        os.close(handle)


def _filter(others_signals: bool) -> list[tuple[int, int, int, int]]:
    """Instructions that answer EPERM to the denied calls, and to calls of another architecture.

    ``others_signals``: signals to other processes are left to Landlock. ``prlimit`` is for this process only.
    """
    architecture, denied = _DENIED[platform.machine()]
    signals, limits = _SIGNALS[platform.machine()]
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06  # BPF: LD W ABS, JEQ K, JGE K, RET K
    own = os.getpid()
    # (operation, where to go if true, if false, operand); None: the next one.
    program: list[tuple[int, str | None, str | None, int]] = [
        (load, None, None, 4),  # the architecture
        (equal, None, "refuse", architecture),
        (load, None, None, 0),  # the number of the call
        (above, "refuse", None, 0x40000000),  # calls of x32
        *((equal, "refuse", None, call) for call in denied),
        *((equal, "signal", None, call) for call in signals if not others_signals),
        (equal, "limit", "allow", limits),
    ]
    labels = {"signal": len(program)}
    program += [(load, None, None, 16), (equal, "allow", "refuse", own)]  # the first argument
    labels["limit"] = len(program)
    program += [(load, None, None, 16), (equal, "allow", None, 0), (equal, "allow", "refuse", own)]
    labels |= {"allow": len(program), "refuse": len(program) + 1}
    program += [(give, None, None, 0x7FFF0000), (give, None, None, 0x00050000 | errno.EPERM)]

    def steps(label: str | None, i: int) -> int:
        return 0 if label is None else labels[label] - i - 1

    return [(op, steps(yes, i), steps(no, i), k) for i, (op, yes, no, k) in enumerate(program)]


def _restrict_calls() -> None:
    program = _filter(others_signals=landlock_version() >= 6)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    about = struct.pack("=H6xQ", len(program), ctypes.addressof(code))
    holder = ctypes.create_string_buffer(about, len(about))
    if _libc().prctl(_PR_SET_SECCOMP, 2, holder, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def die_with_parent(parent: int) -> None:
    """End with the process that started this one, also if it has ended already."""
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def limit_memory(size: int) -> None:
    """At most this many bytes more than now; no core files."""
    used = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path("/proc/self/status").read_text()
        used = int(text.split("VmData:")[1].split()[0]) * 1024
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (size + used, size + used))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def first_to_go() -> None:
    """If the machine runs out of memory, the kernel ends this process before the server."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
