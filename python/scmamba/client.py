"""``scmamba.Client``: the verbs on somebody else's machine; only the standard library and what scmamba needs anyway."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPResponse
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import ScMambaError
from ._files import atomic_path
from ._progress import progress

if TYPE_CHECKING:
    from anndata import AnnData

_RETRIES = 5


class Client:
    """A server that runs scMamba's verbs (``python -m scmamba.serve``).

    Parameters
    ----------
    url, token
        Where it is, and the token whoever runs it gave you.

    Examples
    --------
    >>> server = Client("http://gpu-box:8642", "token")      # doctest: +SKIP
    >>> adata = server.impute(adata, seed=0)                 # doctest: +SKIP
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 60.0) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ScMambaError(f"'{url}' is no address of a server; it begins with http:// or https://.")
        self.url, self._token, self.timeout = url.rstrip("/"), token, timeout

    def impute(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """As :func:`scmamba.impute`, there."""
        return self.run("impute", adata, **options)

    def embed(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """As :func:`scmamba.embed`, there."""
        return self.run("embed", adata, **options)

    def annotate(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """As :func:`scmamba.annotate` by markers, there; the table is in ``obs``."""
        return self.run("annotate", adata, **options)

    def detect_doublets(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """As :func:`scmamba.detect_doublets`, there."""
        return self.run("doublets", adata, **options)

    def run(
        self, task: str, adata: AnnData | str | PathLike[str], *, model: str = "brain-mini", verbose: bool = True, **options: Any
    ) -> AnnData:
        """Send, wait, fetch; an interrupt cancels the job."""
        import anndata

        job = self.submit(task, adata, model=model, **options)
        try:
            self.wait(job, verbose=verbose)
        except KeyboardInterrupt:
            self.cancel(job)
            raise
        with tempfile.TemporaryDirectory() as folder:
            path = self.fetch(job, Path(folder) / "result.h5ad")
            result = anndata.read_h5ad(path)
        self.cancel(job)  # it has ended: this deletes it there
        return result

    def submit(self, task: str, adata: AnnData | str | PathLike[str], *, model: str = "brain-mini", **options: Any) -> str:
        """Send a file or an object; returns the job's name. Sent again if the line breaks."""
        query = urllib.parse.urlencode({"options": json.dumps(options)})
        path = f"/v2/models/{urllib.parse.quote(model)}/{urllib.parse.quote(task)}?{query}"
        if isinstance(adata, (str, PathLike)):
            return str(self._send(path, Path(adata))["id"])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "upload.h5ad"
            adata.write_h5ad(file)
            return str(self._send(path, file)["id"])

    def state(self, job: str) -> dict[str, Any]:
        """What the server says of a job: state, share done, message."""
        return self._json("GET", f"/v2/jobs/{job}")

    def wait(self, job: str, *, verbose: bool = True) -> dict[str, Any]:
        """Wait for the end.

        Raises
        ------
        ScMambaError
            The job failed or was cancelled, with the server's reason.
        """
        shown = 0
        with progress("Working on the server", 100, verbose) as advance:
            while True:
                now = self.state(job)
                done = int(100 * (now["done"] or 0))
                advance(max(0, done - shown))
                shown = max(shown, done)
                if now["state"] == "done":
                    return now
                if now["state"] in ("failed", "cancelled"):
                    ended = "failed" if now["state"] == "failed" else "was cancelled"
                    raise ScMambaError(f"On the server the job {ended}: {now['message']}")
                time.sleep(0.3)

    def fetch(self, job: str, target: str | PathLike[str], *, format: str = "h5ad") -> Path:
        """Save the result: the whole object, or with ``format="scmb"`` what was added."""
        target = Path(target)
        where = f"/v2/jobs/{job}/result?format={format}"
        with atomic_path(target) as temporary, self._open("GET", where) as answer, open(temporary, "wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
        return target

    def cancel(self, job: str) -> None:
        """Cancel a job, or delete one that has ended."""
        self._json("DELETE", f"/v2/jobs/{job}")

    def models(self) -> list[str]:
        """Names of the server's models."""
        return list(self._json("GET", "/v2/models")["models"])

    def _send(self, path: str, file: Path) -> dict[str, Any]:
        if not file.is_file():
            raise ScMambaError(f"There is no file {file}.")
        return self._json("POST", path, file)

    def _json(self, method: str, path: str, file: Path | None = None) -> dict[str, Any]:
        with self._open(method, path, file) as answer:
            return dict(json.loads(answer.read()))

    def _open(self, method: str, path: str, file: Path | None = None) -> HTTPResponse:
        """One request, again after a pause when the line breaks or the server is busy."""
        for attempt in range(_RETRIES):
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            body = None
            if file is not None:
                body = open(file, "rb")  # noqa: SIM115 - closed below, whatever happens
                headers |= {"Content-Length": str(file.stat().st_size), "Content-Type": "application/octet-stream"}
            try:
                request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
                return urllib.request.urlopen(request, timeout=self.timeout)  # type: ignore[no-any-return]
            except urllib.error.HTTPError as error:
                if error.code not in (502, 503, 504) or attempt == _RETRIES - 1:
                    raise ScMambaError(f"The server answered {error.code}: {_detail(error)}") from error
            except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
                if attempt == _RETRIES - 1:
                    raise ScMambaError(
                        f"The server {self.url} cannot be reached ({error}). Does it run, and is the address right?"
                    ) from error
            finally:
                if body is not None:
                    body.close()
            time.sleep(0.5 * 2**attempt)
        raise AssertionError("unreachable")


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        detail = json.loads(error.read())["detail"]
        return detail if isinstance(detail, str) else json.dumps(detail)
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
