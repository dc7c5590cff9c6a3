"""``python -m scmamba.serve --data DIR``: the server's command line, and what has to hold before it starts."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import socket
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.errors import ScMambaError
from .disk import has_room
from .memory import job_memory
from .settings import Settings

if TYPE_CHECKING:
    from .services import Services


_BACKLOG = 512  # connections that wait to be accepted
_FOLDERS = ("uploads", "parts", "jobs", "references", "workers")
_KEPT = ("queue.sqlite", "tokens.json", "audit.log", "local-token")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scmamba.serve", description="Serve scMamba's verbs as jobs over HTTP."
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        help="folder of uploads, results, queue and tokens; only its owner may read it",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; other addresses than loopback need TLS and tokens",
    )
    add("--port", type=int, default=8642, help="port to listen on; 0: a free one, which is printed")
    add("--model", default="brain-mini", help="default model of the page and the clients")
    add("--workers", type=int, default=1, help="worker processes, one per GPU or group of cores")
    add(
        "--tokens",
        choices=["auto", "required", "none"],
        default="auto",
        help="tokens of users (python -m scmamba.serve.tokens): required, or none (loopback only); auto: required as soon as there are "
        "tokens, another address or a proxy; otherwise a random token is printed at the start",
    )
    add(
        "--proxy",
        metavar="ADDRESS",
        help="address or network of the proxy that speaks TLS; its X-Forwarded-* headers are believed, "
        "and all other addresses are refused",
    )
    add("--tls-cert", type=Path, help="certificate (PEM)")
    add("--tls-key", type=Path, help="key of the certificate (PEM)")
    add(
        "--insecure",
        action="store_true",
        help="allow other machines to connect without TLS: tokens and data can be read on the way",
    )
    add("--max-upload", type=float, default=4, help="GiB of one upload")
    add("--user-quota", type=float, default=100, help="GiB of all files of one user")
    add("--max-cells", type=int, default=1_000_000)
    add("--max-seconds", type=int, default=6 * 3600, help="seconds of one job")
    add(
        "--max-memory",
        type=float,
        default=0,
        help="GiB of one job; 0: an equal share of 80 %% of the memory",
    )
    add("--jobs-per-user", type=int, default=20, help="unfinished jobs of one user")
    add("--keep-days", type=float, default=7, help="days after which finished jobs are deleted")
    add("--requests-per-minute", type=int, default=600, help="of one user or address")
    add("--patience", type=float, default=60, help="seconds an upload may send nothing")
    add("--head-seconds", type=float, default=20, help="seconds the head of a request may take")
    add("--max-connections", type=int, default=1000)
    add("--requests-at-once", type=int, default=100, help="open requests of one user")
    add("--streams-per-user", type=int, default=20, help="event streams of one user")
    add("--max-streams", type=int, default=1000, help="event streams of all users")
    add("--no-confinement", action="store_true", help="run jobs without Landlock and seccomp")
    return parser  # fmt: skip


def _settings(a: argparse.Namespace) -> Settings:
    return Settings(
        a.data.resolve(),
        a.host,
        a.port,
        a.model,
        a.workers,
        int(a.max_upload * 2**30),
        a.max_cells,
        max_seconds=a.max_seconds,
        max_memory=int(a.max_memory * 2**30),
        jobs_per_user=a.jobs_per_user,
        keep_days=a.keep_days,
        requests_per_minute=a.requests_per_minute,
        patience=a.patience,
        tokens=a.tokens,
        proxy=a.proxy,
        user_bytes=int(a.user_quota * 2**30),
        max_connections=a.max_connections,
        head_seconds=a.head_seconds,
        requests_at_once=a.requests_at_once,
        streams_per_user=a.streams_per_user,
        max_streams=a.max_streams,
        confine=not a.no_confinement,
    )


def prepare_folder(folder: Path) -> str | None:
    """Make the data folder for its owner alone; why it cannot be used, or ``None``.

    Parameters
    ----------
    folder
        The data folder; created if missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = folder.stat()
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"the data folder {folder} cannot be used: {error.strerror}"
    if about.st_uid != os.geteuid():
        return f"the data folder {folder} belongs to another user; choose a folder of your own, or run: chown {os.geteuid()} {folder}"
    kinds = {"folder": (Path.is_dir, _FOLDERS), "file": (Path.is_file, _KEPT)}
    for what, (is_one, names) in kinds.items():
        for place in (folder / name for name in names):
            if place.exists() and not is_one(place):
                return f"{place} is no {what}; move it away, the server keeps a {what} of its own under this name"
    if stat.S_IMODE(about.st_mode) & 0o077:
        return f"others can read the data folder {folder}; run: chmod 700 {folder}"
    return None


def _problem(a: argparse.Namespace, settings: Settings) -> str | None:
    """Why this server must not start, or ``None``."""
    if not 0 <= a.port < 65536:
        return f"--port is {a.port}; expected a number from 1 to 65535, or 0 for a free port"
    if (a.tls_cert is None) != (a.tls_key is None):
        return "--tls-cert and --tls-key belong together"
    for name, file in (("--tls-cert", a.tls_cert), ("--tls-key", a.tls_key)):
        if file is not None and not os.access(file, os.R_OK):
            return f"{name}: {file} cannot be read"
    try:
        for part in (a.proxy or "127.0.0.1").split(","):
            ipaddress.ip_network(part.strip(), strict=False)
    except ValueError:
        return f"--proxy is {a.proxy}; expected an address or a network such as 10.0.0.0/8"
    if a.tokens == "none" and (not settings.on_loopback or a.proxy is not None):
        return "--tokens none is for a server that only this machine can reach, without a proxy"
    if not settings.on_loopback and a.tls_cert is None and a.proxy is None and not a.insecure:
        return (
            "other machines can reach this address, and without TLS tokens and data can be read on the way: give --tls-cert and --tls-key, "
            "or --proxy ADDRESS of a proxy that speaks TLS, or allow it with --insecure"
        )
    from .tokens import Tokens

    try:
        Tokens(settings.data).entries()
    except ScMambaError as error:
        return str(error)
    if settings.needs_token and not (settings.data / "tokens.json").is_file():
        return f"tokens are needed: python -m scmamba.serve.tokens add NAME --data {settings.data}"
    from ..model import list_models

    if a.model not in list_models():
        return f"there is no model '{a.model}'; available: {', '.join(list_models())}"
    return None


def _announce(settings: Settings, shared: Services, tls: bool) -> None:
    """Print address, access and limits for the operator at the start."""
    scheme = "https" if tls else "http"
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{scheme}://{name}:{settings.port}/"
    mode = shared.access.mode
    tokens = {
        "required": "required, one for each user",
        "local": "a random one, for this start",
        "none": "NONE: every program of this machine can use this server and read all its jobs",
    }[mode]
    if shared.access.local is not None:
        url += f"#token={shared.access.local.value}"
    confinement = ", ".join(shared.supervisor.confinement()) or "NONE"
    insecure = not tls and not settings.on_loopback and settings.proxy is None
    lines = [
        f"scMamba is served at {url}",
        f"  TLS          {'yes' if tls else 'by the proxy ' + settings.proxy if settings.proxy else 'no'}"
        + (": tokens and data can be read on the way (--insecure)" if insecure else ""),
        f"  tokens       {tokens}",
        f"  limits       {settings.max_upload / 2**30:g} GiB per upload, {settings.user_bytes / 2**30:g} GiB per user, "
        f"{job_memory(settings) / 2**30:.1f} GiB and {settings.max_seconds:,} s per job, {settings.jobs_per_user} unfinished jobs per user, "
        f"{settings.requests_per_minute} requests per minute, {settings.max_connections} connections",
        f"  data folder  {settings.data}",
        f"  confinement  {confinement}",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        lines.append("  WARNING      the server runs as root; run it as a dedicated user")
    print("\n".join(lines), file=sys.stderr, flush=True)


def _bound(host: str, port: int) -> socket.socket:
    """A socket that listens on the address: from here on no other program can take the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _serve(settings: Settings, listener: socket.socket, options: dict[str, Any]) -> None:
    import uvicorn

    from .app import create_app
    from .audit import start_logging
    from .connections import limit_handshakes, limited_protocol, raise_file_limit

    start_logging(settings.data)
    limit_handshakes(settings.head_seconds)
    connections = raise_file_limit(settings.max_connections)
    app = create_app(settings)
    _announce(settings, app.state.services, options["ssl_certfile"] is not None)
    config = uvicorn.Config(
        app,
        log_config=None,  # uvicorn's own would close the audit log
        access_log=False,
        server_header=False,
        proxy_headers=False,  # scmamba.serve.gate reads them
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        backlog=_BACKLOG,
        ws="none",
        loop="asyncio",
        http=limited_protocol(connections, settings.head_seconds, settings.patience),
        **options,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if not server.started:
        sys.exit(3)


def main() -> None:
    """Parse, check, serve."""
    parser = _parser()
    a = parser.parse_args()
    if not hasattr(os, "fork"):
        parser.error(
            "the server runs on Linux and macOS; on Windows, run it in WSL, or use the verbs of Python and R directly"
        )
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        parser.error(
            f"the server needs more packages: pip install 'scmamba[serve]' ({error.name} is missing)"
        )
    os.umask(0o077)
    settings = _settings(a)
    if problem := prepare_folder(settings.data) or _problem(a, settings):
        parser.error(problem)
    try:
        listener = _bound(a.host, a.port)
    except OSError as error:
        parser.error(f"{a.host}:{a.port} cannot be listened on: {error.strerror}")
    settings = replace(settings, port=listener.getsockname()[1])
    try:
        _serve(settings, listener, {"ssl_certfile": a.tls_cert, "ssl_keyfile": a.tls_key})
    except ScMambaError as error:
        full = (
            ""
            if has_room(settings.data)
            else " The disk of the data folder is full: free some room."
        )
        parser.error(f"{error}{full}")


if __name__ == "__main__":
    main()
