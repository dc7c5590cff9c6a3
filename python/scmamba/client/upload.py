"""Sending a large file so that a broken connection costs only the part that was being sent (tus 1.0.0, https://tus.io/protocols/resumable-upload)."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPException
from pathlib import Path

from ..utils.errors import ScMambaError
from .transport import open_request

#: Files below are sent whole: sending them again costs less than asking.
WHOLE = 16 << 20
_PART = 64 << 20
_TRIES = 15  # in a row without a byte more


def send_in_parts(url: str, token: str | None, file: Path, timeout: float) -> str:
    """Send a file to ``/v2/uploads`` of a server.

    Parameters
    ----------
    url, token
        Of the server.
    file
        The file.
    timeout
        Seconds to wait for an answer.

    Returns
    -------
    The name under which a job can take it.

    Raises
    ------
    ScMambaError
        The server refuses it, or cannot be reached for a minute and a half.
    """
    size, tries, offset, where = file.stat().st_size, 0, 0, ""
    while not where or offset < size:
        try:
            if not where:
                where = _ask(
                    url + "/v2/uploads", token, "POST", timeout, {"Upload-Length": str(size)}
                )["Location"]
            elif tries:
                offset = int(_ask(url + where, token, "HEAD", timeout, {})["Upload-Offset"])
            while offset < size:
                with open(file, "rb") as source:
                    source.seek(offset)
                    part = source.read(_PART)
                kind = {
                    "Content-Type": "application/offset+octet-stream",
                    "Upload-Offset": str(offset),
                }
                offset, tries = (
                    int(_ask(url + where, token, "PATCH", timeout, kind, part)["Upload-Offset"]),
                    0,
                )
        except urllib.error.HTTPError as error:
            if error.code not in (408, 409, 502, 503, 504) or tries >= _TRIES:
                raise ScMambaError(
                    f"The server answered {error.code}: {error.read().decode(errors='replace')[:500]}"
                ) from error
            tries += 1
        except (urllib.error.URLError, ConnectionError, TimeoutError, HTTPException) as error:
            if tries >= _TRIES:
                raise ScMambaError(
                    f"The server {url} cannot be reached ({error}). Does it run, and is the address right?"
                ) from error
            tries += 1
        if tries:
            time.sleep(min(0.5 * 2 ** (tries - 1), 8.0))
    return where.rsplit("/", 1)[1]


def _ask(
    url: str,
    token: str | None,
    method: str,
    timeout: float,
    headers: dict[str, str],
    body: bytes | None = None,
) -> dict[str, str]:
    """One request; the headers of its answer."""
    headers = {**headers, "Tus-Resumable": "1.0.0"} | (
        {"Authorization": f"Bearer {token}"} if token else {}
    )
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    with open_request(request, timeout) as answer:
        answer.read()
        return {k.title(): v for k, v in answer.headers.items()}
