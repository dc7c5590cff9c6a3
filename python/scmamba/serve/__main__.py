"""``python -m scmamba.serve --model brain-mini --host 127.0.0.1 --port 8642 --data DIR``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from ..utils.errors import ScMambaError
from .settings import Settings


def main() -> None:
    """Parse, check, serve."""
    parser = argparse.ArgumentParser(
        prog="python -m scmamba.serve", description="Serve scMamba's verbs as jobs over HTTP."
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of uploads, results, queue and tokens"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="anything but this machine needs tokens (python -m scmamba.serve.tokens)",
    )
    parser.add_argument("--port", type=int, default=8642)
    parser.add_argument("--model", default="brain-mini")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes, one per GPU or group of cores"
    )
    parser.add_argument("--max-upload", type=float, default=4, help="GiB")
    parser.add_argument("--max-cells", type=int, default=1_000_000)
    parser.add_argument("--max-seconds", type=int, default=6 * 3600, help="of one job")
    parser.add_argument(
        "--max-memory", type=float, default=0, help="GiB of one worker; 0: no limit"
    )
    parser.add_argument("--jobs-per-user", type=int, default=20)
    parser.add_argument("--keep-days", type=float, default=7)
    parser.add_argument("--requests-per-minute", type=int, default=600)
    parser.add_argument(
        "--patience", type=float, default=60, help="seconds an upload may bring nothing"
    )
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    a = parser.parse_args()
    try:
        import uvicorn

        from .app import create_app
    except ImportError as error:
        parser.error(
            f"the server needs more packages: pip install 'scmamba[serve]' ({error.name} is missing)"
        )
    settings = Settings(
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
    )
    settings.data.mkdir(parents=True, exist_ok=True)
    from ..model import list_models

    if a.model not in list_models():
        parser.error(f"there is no model '{a.model}'; there are {', '.join(list_models())}")
    if settings.needs_token and not (settings.data / "tokens.json").is_file():
        parser.error(
            "others can reach this address, so tokens are needed: python -m scmamba.serve.tokens add NAME --data DIR"
        )
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),
        logging.FileHandler(settings.data / "audit.log"),
    ]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    try:
        # h11 refuses headers beyond 64 kB; the other parser has no limit.
        uvicorn.run(
            create_app(settings),
            host=a.host,
            port=a.port,
            log_level="warning",
            ssl_certfile=a.tls_cert,
            ssl_keyfile=a.tls_key,
            server_header=False,
            timeout_keep_alive=30,
            http="h11",
        )
    except ScMambaError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
