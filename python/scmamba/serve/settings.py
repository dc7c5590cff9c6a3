"""What a server is told when it starts."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Limits and places; sizes in bytes, times in seconds.

    Attributes
    ----------
    data
        Folder of uploads, results, the queue and the tokens.
    max_upload, max_cells, max_genes, max_seconds, max_memory, jobs_per_user
        What one upload and one job may be, and how many unfinished jobs a user may have.
    keep_days
        Finished jobs are deleted with their files after so many days.
    requests_per_minute
        Per user or address.
    patience
        Seconds an upload may bring nothing.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8642
    model: str = "brain-mini"
    workers: int = 1
    max_upload: int = 4 << 30
    max_cells: int = 1_000_000
    max_genes: int = 100_000
    max_seconds: int = 6 * 3600
    max_memory: int = 0
    jobs_per_user: int = 20
    keep_days: float = 7.0
    requests_per_minute: int = 600
    patience: float = 60.0

    @property
    def needs_token(self) -> bool:
        """Whoever listens beyond this machine asks for tokens."""
        if self.host == "localhost":
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return True

    def dump(self) -> str:
        """As JSON, for the workers."""
        return json.dumps({**asdict(self), "data": str(self.data)})

    @classmethod
    def load(cls, text: str) -> Settings:
        """What :meth:`dump` wrote."""
        values = json.loads(text)
        return cls(**{**values, "data": Path(values["data"])})
