"""The audit log: who signed in, failed to, sent, read, deleted and cancelled; no expression data, no tokens."""

from __future__ import annotations

import json
import logging
import logging.handlers
import threading
import time
from pathlib import Path

#: Lines of ``audit.log`` in the data folder, one JSON object each.
_log = logging.getLogger("scmamba.audit")
_BYTES, _FILES = 10 << 20, 9
_REPEATS = 20  # times one message is logged in a minute


def audit(event: str, user: str | None = None, address: str | None = None, **facts: object) -> None:
    """Record one event.

    Parameters
    ----------
    event
        One word, such as ``"accepted"``.
    user, address
        Who it was, and from where.
    **facts
        Ids, tasks and numbers.
    """
    about = {"event": event, "user": user, "address": address, **facts}
    _log.info("%s", json.dumps({k: v for k, v in about.items() if v is not None}))


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return f'{{"time": "{when}", {record.getMessage()[1:]}'


class Sparing(logging.Filter):
    """Drops a message that was logged too often in the last minute, so that no fault fills the disk."""

    def __init__(self, repeats: int = _REPEATS) -> None:
        super().__init__()
        self.repeats, self._since, self._counts = repeats, 0.0, dict[str, int]()
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        now = time.monotonic()
        with self._lock:
            if now - self._since > 60:
                self._since, self._counts = now, {}
            key = f"{record.name} {str(record.msg)[:80]}"
            self._counts[key] = self._counts.get(key, 0) + 1
            return self._counts[key] <= self.repeats


def start_logging(folder: Path) -> None:
    """Send the audit log to ``audit.log`` in ``folder`` (rotated at 10 MB, nine older files are kept), all else to stderr."""
    logging.raiseExceptions = False  # a full disk must not end a request
    kept = logging.handlers.RotatingFileHandler(
        folder / "audit.log", maxBytes=_BYTES, backupCount=_FILES
    )
    kept.setFormatter(_Line())
    _log.handlers[:] = [kept]
    _log.setLevel(logging.INFO)
    _log.propagate = False
    shown = logging.StreamHandler()
    shown.addFilter(Sparing())
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", handlers=[shown], force=True
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
