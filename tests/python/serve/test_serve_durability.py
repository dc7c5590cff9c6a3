"""What is on the disk before the queue names it: the order of the system calls of a real server, as a power cut would find them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import free_port

from scmamba.client import Client
from scmamba.datasets import brain_cohort
from scmamba.utils.errors import ScMambaError


@pytest.mark.slow
def test_uploads_results_and_references_are_synced_before_they_are_recorded(tmp_path):
    data, log = tmp_path / "data", tmp_path / "calls"
    port = free_port()
    trace = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-e",
        "trace=fsync,fdatasync,rename,renameat,renameat2,link,linkat",
        "-o",
        log,
    ]
    try:
        subprocess.run([*trace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("strace cannot be used here")
    command = [sys.executable, "-m", "scmamba.serve", "--data", data, "--port", str(port)]
    server = subprocess.Popen(
        [*trace, *command, "--tokens", "none"], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        client = Client(f"http://127.0.0.1:{port}")
        until = time.monotonic() + 400
        while time.monotonic() < until:
            with contextlib.suppress(ScMambaError):
                client.models()
                break
            time.sleep(0.5)
        brain_cohort(20, n_donors=2, seed=5)[:, :3000].write_h5ad(tmp_path / "cells.h5ad")
        job = client.submit("embed", tmp_path / "cells.h5ad", force=True)
        client.wait(job, verbose=False)
        kept = client.keep_reference(tmp_path / "cells.h5ad").name
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    text = log.read_text()

    def at(pattern: str, after: int = 0) -> int:
        """Where a call is first found after another one."""
        found = re.compile(pattern).search(text, after)
        assert found is not None, pattern
        return found.end()

    folder = re.escape(str(data))
    sent = at(rf"fsync\(\d+<{folder}/uploads/[0-9a-f]{{32}}>")
    named = at(rf"fsync\(\d+<{folder}/uploads>", sent)
    accepted = at(rf"f(?:data)?sync\(\d+<{folder}/queue.sqlite-wal>", named)
    for file in ("h5ad", "scmb"):
        at(rf"fsync\(\d+<{folder}/jobs/{job}/work-\w+/result/result.{file}>", accepted)
    moved = at(rf'rename\(".*/result", "{folder}/jobs/{job}/result"', accepted)
    its_folder = at(rf"fsync\(\d+<{folder}/jobs/{job}>", moved)
    all_folders = at(rf"fsync\(\d+<{folder}/jobs>", its_folder)
    at(rf"f(?:data)?sync\(\d+<{folder}/queue.sqlite-wal>", all_folders)
    kept_at = at(rf'rename\(".*", "{folder}/references/\w+/{kept}"', all_folders)
    at(rf"fsync\(\d+<{folder}/references/\w+>", kept_at)
