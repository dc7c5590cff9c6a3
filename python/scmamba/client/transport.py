"""Requests that keep the token to the server it is for."""

from __future__ import annotations

import ipaddress
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPMessage
from typing import IO, Any

from ..utils.errors import ScMambaError


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A server of scMamba never redirects; one that does would get the token and the cells of another."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        host = urllib.parse.urlsplit(newurl).hostname
        raise ScMambaError(
            f"{req.full_url.partition('?')[0]} redirects to {host}; nothing was sent there. Use the address of the server itself."
        )


_opener = urllib.request.build_opener(_NoRedirect)


def open_request(request: urllib.request.Request, timeout: float) -> Any:
    """Send a request; redirects are errors.

    Parameters
    ----------
    request
        The request with its headers.
    timeout
        Seconds to wait for an answer.

    Returns
    -------
    The answer, to be closed.

    Raises
    ------
    ScMambaError
        The server redirects.
    urllib.error.URLError
        It cannot be reached, or answers with an error.
    """
    return _opener.open(request, timeout=timeout)


def refuse_plain_token(url: str) -> None:
    """Refuse to send a token without TLS to another machine.

    Parameters
    ----------
    url
        Address of the server.

    Raises
    ------
    ScMambaError
        It begins with ``http://`` and names another machine.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise ScMambaError(
            f"{url} has no TLS: the token and the cells could be read on the way. Use https://, or allow it with insecure=True."
        )
