"""Settings of a server: addresses, limits and folders."""

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
    host, port
        Address the server listens on.
    model
        Model that the page and the clients use by default.
    workers
        Number of worker processes.
    max_upload, max_cells, max_genes, max_seconds, jobs_per_user
        Limits of one upload and one job, and the number of unfinished jobs a user may have.
    max_memory
        Bytes one job may use; 0: an equal share of 80 % of the memory of the machine or container.
    keep_days
        Finished jobs are deleted with their files after so many days.
    requests_per_minute
        Per user or address.
    patience
        Seconds an upload may send nothing, and a client may read nothing of its answer.
    tokens
        ``"required"``, ``"none"`` (loopback only), or ``"auto"``: required unless the server listens on the loopback
        address alone and the folder holds no tokens; then a random token is made at each start.
    proxy
        Address or network (CIDR), or several separated by commas, of the proxy whose forwarded headers are believed;
        ``None``: none. Any other address is then refused.
    user_bytes
        Bytes of uploads, references and results one user may keep.
    max_connections
        Open connections; beyond it the oldest one without a complete request is closed.
    head_seconds
        Seconds the head of a request may take.
    requests_at_once
        Open requests of one user, event streams apart.
    streams_per_user, max_streams
        Event streams of one user, and of all.
    confine
        Run jobs and parsers confined as far as the kernel allows (:mod:`scmamba.serve.confinement`).
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
    tokens: str = "auto"
    proxy: str | None = None
    user_bytes: int = 100 << 30
    max_connections: int = 1000
    head_seconds: float = 20.0
    requests_at_once: int = 100
    streams_per_user: int = 20
    max_streams: int = 1000
    confine: bool = True

    @property
    def on_loopback(self) -> bool:
        """Whether only programs of this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_token(self) -> bool:
        """Whether users need a token that an operator gave them."""
        if self.tokens == "auto":
            return (
                not self.on_loopback
                or self.proxy is not None
                or (self.data / "tokens.json").is_file()
            )
        return self.tokens == "required"

    def is_proxy(self, address: str) -> bool:
        """Whether a connection comes from the proxy."""
        try:
            peer = ipaddress.ip_address(address)
        except ValueError:
            return False
        return self.proxy is not None and any(
            peer in ipaddress.ip_network(part.strip(), strict=False)
            for part in self.proxy.split(",")
        )

    def dump(self) -> str:
        """As JSON, for the workers."""
        return json.dumps({**asdict(self), "data": str(self.data)})

    @classmethod
    def load(cls, text: str) -> Settings:
        """Settings from the text of :meth:`dump`."""
        values = json.loads(text)
        return cls(**{**values, "data": Path(values["data"])})
