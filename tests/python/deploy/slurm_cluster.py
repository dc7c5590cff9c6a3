"""A real Slurm cluster of two nodes on this machine, for the tests of ``deploy/*.slurm``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


def is_possible() -> bool:
    """Root, and the packages munge and slurm-wlm."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return os.geteuid() == 0 and all(
        shutil.which(name, path=path) for name in ("munged", "slurmctld", "slurmd", "sbatch")
    )


class Cluster:
    """A real Slurm of two nodes on this machine, each with a file that stands for a GPU; the second node has only its own name."""

    def __init__(self, folder: Path) -> None:
        self.folder, here = folder, socket.gethostname()
        second = "zz-second" + here
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
        }
        ports = [self.free_port() for _ in range(3)]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=folder, here=here, second=second, ports=ports)
        )
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\nIgnoreSystemd=yes\n")
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o400)
        hosts = Path("/etc/hosts").read_text()
        (folder / "hosts").write_text(f"{hosts}\n127.0.0.1 {here} {second}\n")
        for name in ("state", f"spool-{here}", f"spool-{second}"):
            (folder / name).mkdir()
        named = f"mount --bind {folder}/hosts /etc/hosts; hostname {{}}; exec slurmd -D"
        self.daemons = [
            self.start(
                "munged",
                "--foreground",
                "--force",
                *(f"--{k}={folder}/{v}" for k, v in MUNGE.items()),
            ),
            self.start("slurmctld", "-D"),
            *(
                self.start("unshare", "--mount", "--uts", "sh", "-c", named.format(name))
                for name in (here, second)
            ),
        ]

    @staticmethod
    def free_port() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return int(free.getsockname()[1])

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def run(self, *command: str, seconds: float = 20, **variables: str) -> str:
        environment = {**self.environment, **variables}
        done = subprocess.run(
            command,
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stderr + "".join(
            f.read_text() for f in self.folder.glob("job-*.txt")
        )
        return done.stdout

    def is_up(self) -> bool:
        """Whether both nodes answer within a minute."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                if self.run("sinfo", "--noheader", "--format=%D %t", seconds=10).split() == [
                    "2",
                    "idle",
                ]:
                    return True
            except (AssertionError, subprocess.TimeoutExpired):
                pass
            time.sleep(0.5)
        return False

    def stop(self) -> None:
        for daemon in reversed(self.daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGTERM)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()


MUNGE = {
    "key-file": "key",
    "socket": "munge.sock",
    "pid-file": "munge.pid",
    "log-file": "munge.log",
    "seed-file": "munge.seed",
}
CONFIGURATION = """ClusterName=two
SlurmctldHost={here}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.sock
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node-%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node-%n.log
SlurmdParameters=config_overrides
NodeName={here} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 Gres=gpu:1
NodeName={second} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES State=UP
"""
