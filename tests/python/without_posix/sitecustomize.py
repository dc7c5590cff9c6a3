"""Removes, in a Python that has this folder on its path, what Windows does not have: modules and calls of POSIX."""

import os
import sys

ABSENT = {"fcntl", "resource", "pwd", "grp"}
CALLS = ("fork", "forkpty", "killpg", "setsid", "mkfifo", "sched_getaffinity")


class _Refuse:
    """The first finder of modules."""

    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, _Refuse())
for name in ABSENT:
    sys.modules.pop(name, None)
for name in CALLS:
    if hasattr(os, name):
        delattr(os, name)
