"""A process with the slow libraries loaded that forks once for every run of pytest.

Loading torch takes longer than most tests. Nothing of the package itself is loaded here, so a
forked run sees the sources as they are then. It reads a line of JSON for each run (arguments, and a
file for the output), answers with the number of the process, and then with its exit status.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import sys


def main() -> None:
    """Load the modules named on the command line, then serve."""
    import pytest

    plugins = [
        plugin.value.partition(":")[0]
        for plugin in importlib.metadata.entry_points(group="pytest11")
    ]
    for name in [*sys.argv[1:], *(plugins if sys.argv[1:] else [])]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    while line := sys.stdin.readline():
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for target, source in ((0, nothing), (1, output), (2, output)):
                os.dup2(source, target)
            sys.path[0] = os.getcwd()  # as python -m does
            sys.argv = ["pytest", *order["arguments"]]
            importlib.invalidate_caches()
            sys.exit(pytest.main(order["arguments"]))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


main()
