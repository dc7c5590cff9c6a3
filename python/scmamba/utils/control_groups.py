"""Limits that Linux's control groups (Docker, Kubernetes, Slurm) put on this process."""

from __future__ import annotations

from pathlib import Path

_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def group_folders(controller: str) -> list[tuple[Path, int]]:
    """Folders of the control groups from the own one up, and the version (2 or 1) of their files.

    Parameters
    ----------
    controller
        ``"memory"`` or ``"cpu"``.
    """
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return []
    found: list[tuple[Path, int]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = _GROUPS, 2
        elif controller in controllers.split(","):
            root, version = _GROUPS / controller, 1
        else:
            continue
        own = root / path.strip("/")
        # In a container the path of the host may not exist; its own group is then the root.
        for folder in [own, *own.parents] if own.is_dir() else [root]:
            found.append((folder, version))
            if folder == root:
                break
    return found
