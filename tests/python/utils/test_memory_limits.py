"""Free memory within the limits of control groups, from the files that the kernel shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from scmamba.utils import control_groups, memory


@pytest.fixture()
def system(tmp_path, monkeypatch) -> Path:
    """The files of a machine with 64 GB free."""
    (tmp_path / "meminfo").write_text("MemTotal: 128000000 kB\nMemAvailable:   64000000 kB\n")
    (tmp_path / "cgroup").write_text("0::/slurm/job7\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(control_groups, "_GROUPS", tmp_path / "fs")
    (tmp_path / "fs" / "slurm" / "job7").mkdir(parents=True)
    return tmp_path


def limit(folder: Path, most: str, now: int, cache: int = 0) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{now}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_without_a_limit_the_machine_decides(system):
    assert memory.available_memory() == 64e9 * 1.024
    limit(system / "fs/slurm/job7", "max", 10**9)
    assert memory.available_memory() == 64e9 * 1.024


def test_the_smallest_limit_of_all_parent_groups_counts(system):
    limit(system / "fs/slurm/job7", "8000000000", 3 * 10**9, cache=10**9)
    assert memory.available_memory() == 6e9
    limit(system / "fs/slurm", "5000000000", 4 * 10**9)
    assert memory.available_memory() == 1e9
    limit(system / "fs/slurm", "5000000000", 6 * 10**9)
    assert memory.available_memory() == 0


def test_a_container_sees_its_own_group_as_the_root(system):
    (system / "cgroup").write_text("0::/kubepods/pod1\n")  # a path on the host
    limit(system / "fs", "2000000000", 10**9)
    assert memory.available_memory() == 1e9


def test_version_1_of_control_groups(system):
    (system / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/docker/abc\n")
    folder = system / "fs" / "memory" / "docker" / "abc"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("4000000000")
    (folder / "memory.usage_in_bytes").write_text("1000000000")
    assert memory.available_memory() == 3e9
    (folder / "memory.limit_in_bytes").write_text(str(2**63 - 4096))  # no limit
    assert memory.available_memory() == 64e9 * 1.024
