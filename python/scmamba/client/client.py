"""``scmamba.Client``: the verbs on somebody else's machine; only the standard library and what scmamba needs anyway."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.atomic import atomic_path
from ..utils.deprecation import renamed_parameters
from ..utils.errors import ScMambaError
from ..utils.progress import progress
from .upload import WHOLE, send_in_parts

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ..deg import RobustnessResult
    from ..wire.tables import Tables

_RETRIES = 5
#: Tries when the server has answered before: a minute and a half.
_PATIENT = 15


@dataclass(frozen=True)
class KeptReference:
    """Labelled cells a server keeps for somebody (:meth:`Client.keep_reference`)."""

    name: str


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
            raise ScMambaError(
                f"'{url}' is no address of a server; it begins with http:// or https://."
            )
        self.url, self._token, self.timeout = url.rstrip("/"), token, timeout
        self._reached = False

    def impute(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """As :func:`scmamba.impute`, there."""
        return self.run("impute", adata, **options)

    def embed(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """As :func:`scmamba.embed`, there."""
        return self.run("embed", adata, **options)

    def annotate(
        self,
        adata: AnnData | str | PathLike[str],
        *,
        reference: AnnData | str | PathLike[str] | KeptReference | None = None,
        labels: str | Sequence[str] | None = None,
        donor: str | None = "donor",
        **options: Any,
    ) -> AnnData:
        """As :func:`scmamba.annotate`, there, by markers or by a labelled ``reference``; the table is in ``obs``.

        Of a reference in memory only the counts, the genes and the columns named in ``labels`` and ``donor`` are sent. It is deleted
        there afterwards; one that serves for several calls is sent once by :meth:`keep_reference`.
        """
        if reference is None:
            return self.run("annotate", adata, **options)
        if labels is None:
            raise ScMambaError(
                "Which column of the reference holds the types? Name it with labels=..."
            )
        columns = [labels] if isinstance(labels, str) else list(labels)
        if donor is not None:
            options["donor"] = donor
        if isinstance(reference, KeptReference):
            return self.run("annotate", adata, reference=reference.name, labels=columns, **options)
        kept = self.keep_reference(
            reference, labels=columns, donor=donor, layer=options.get("layer")
        )
        try:
            return self.run("annotate", adata, reference=kept.name, labels=columns, **options)
        finally:
            with contextlib.suppress(ScMambaError):
                self.drop_reference(kept)

    def keep_reference(
        self,
        reference: AnnData | str | PathLike[str],
        *,
        labels: str | Sequence[str] = (),
        donor: str | None = "donor",
        layer: str | None = None,
    ) -> KeptReference:
        """Send labelled cells, to be given to :meth:`annotate` again and again; the server forgets them after some days.

        Of an object only the columns named are sent, of a file everything.
        """
        columns = [labels] if isinstance(labels, str) else list(labels)
        if isinstance(reference, (str, PathLike)):
            return KeptReference(str(self._send("/v2/references", Path(reference))["id"]))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "reference.h5ad"
            _only(
                reference, [*columns, *([donor] if donor in reference.obs else [])], layer
            ).write_h5ad(file)
            return KeptReference(str(self._send("/v2/references", file)["id"]))

    def drop_reference(self, reference: KeptReference) -> None:
        """Delete labelled cells there."""
        self._json("DELETE", f"/v2/references/{reference.name}")

    def detect_doublets(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """As :func:`scmamba.detect_doublets`, there."""
        return self.run("doublets", adata, **options)

    def find_markers(
        self,
        adata: AnnData | str | PathLike[str],
        groupby: str,
        group1: str | Sequence[str],
        group2: str | Sequence[str] | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """As :func:`scmamba.deg.find_markers`, there."""
        return self._tables(
            "markers", adata, groupby=groupby, group1=group1, group2=group2, **options
        ).frames["markers"]

    @renamed_parameters(groupby="condition_key", donor="donor_key", cell_type="label_key")
    def robustness(
        self,
        adata: AnnData | str | PathLike[str],
        condition_key: str,
        donor_key: str | None = None,
        label_key: str | None = None,
        **options: Any,
    ) -> RobustnessResult:
        """As :func:`scmamba.deg.robustness`, there."""
        from ..deg import RobustnessResult

        found = self._tables(
            "robustness",
            adata,
            condition_key=condition_key,
            donor_key=donor_key,
            label_key=label_key,
            **options,
        )
        tables, about = found.frames, found.about
        return RobustnessResult(
            tables["runs"],
            tables["nulls"],
            tables["full"],
            about["settings"],
            tuple(about["notes"]),
            tuple(about["warnings"]),
        )

    def finetune(
        self,
        adata: AnnData | str | PathLike[str],
        folder: str | PathLike[str],
        *,
        model: str = "brain-mini",
        verbose: bool = True,
        **options: Any,
    ) -> Path:
        """As :func:`scmamba.training.finetune_on`, there; the new model comes home into ``folder``."""
        from ..model.hub import unpack_model

        if Path(folder).exists():
            raise ScMambaError(f"{folder} exists already; name a new folder.")
        with self._finished(
            "finetune", adata, "zip", model=model, verbose=verbose, **options
        ) as archive:
            return unpack_model(archive, folder)

    def _tables(
        self,
        task: str,
        adata: AnnData | str | PathLike[str],
        *,
        verbose: bool = True,
        **options: Any,
    ) -> Tables:
        from ..wire.tables import read_tables

        with self._finished(task, adata, "scmb", verbose=verbose, **options) as path:
            return read_tables(path)

    def run(
        self,
        task: str,
        adata: AnnData | str | PathLike[str],
        *,
        model: str = "brain-mini",
        verbose: bool = True,
        **options: Any,
    ) -> AnnData:
        """Send, wait, fetch; an interrupt cancels the job."""
        import anndata

        with self._finished(task, adata, "h5ad", model=model, verbose=verbose, **options) as path:
            return anndata.read_h5ad(path)

    @contextlib.contextmanager
    def _finished(
        self,
        task: str,
        adata: AnnData | str | PathLike[str],
        format: str,
        *,
        verbose: bool,
        **options: Any,
    ) -> Iterator[Path]:
        """The result's file, while the block lasts."""
        job = self.submit(task, adata, **options)
        try:
            self.wait(job, verbose=verbose)
        except KeyboardInterrupt:
            self.cancel(job)
            raise
        with tempfile.TemporaryDirectory() as folder:
            yield self.fetch(job, Path(folder) / f"result.{format}", format=format)
        with contextlib.suppress(
            ScMambaError
        ):  # the result is here; a server just gone deletes the job when its time is over
            self.cancel(job)

    def submit(
        self,
        task: str,
        adata: AnnData | str | PathLike[str],
        *,
        model: str = "brain-mini",
        **options: Any,
    ) -> str:
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
        shown, pause = 0, 0.2
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
                time.sleep(pause)
                pause = min(1.15 * pause, 0.5)  # short jobs end soon

    def fetch(self, job: str, target: str | PathLike[str], *, format: str = "h5ad") -> Path:
        """Save the result: the whole object, or with ``format="scmb"`` what was added. Fetched again if the line breaks."""
        target = Path(target)
        with atomic_path(target) as temporary:
            self._request("GET", f"/v2/jobs/{job}/result?format={format}", into=temporary)
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
        if file.stat().st_size > WHOLE:
            name = send_in_parts(self.url, self._token, file, self.timeout)
            return self._json("POST", f"{path}{'&' if '?' in path else '?'}upload={name}")
        return self._json("POST", path, file)

    def _json(self, method: str, path: str, file: Path | None = None) -> dict[str, Any]:
        return dict(json.loads(self._request(method, path, file)))

    def _request(
        self, method: str, path: str, file: Path | None = None, into: Path | None = None
    ) -> bytes:
        """One request and its whole answer; again after a pause when the line breaks or the server is busy.

        A server that has answered before is given longer: it may be starting again. A file goes under a name of its own, by which the
        server knows it when it comes a second time because the first answer was lost.
        """
        name, tries = secrets.token_urlsafe(24), 0
        while True:
            tries += 1
            last = tries >= (_PATIENT if self._reached else _RETRIES)
            try:
                return self._once(method, path, file, into, name)
            except urllib.error.HTTPError as error:
                if error.code not in (502, 503, 504) or last:
                    raise ScMambaError(
                        f"The server answered {error.code}: {_detail(error)}"
                    ) from error
            except (urllib.error.URLError, ConnectionError, TimeoutError, HTTPException) as error:
                if last:
                    raise ScMambaError(
                        f"The server {self.url} cannot be reached ({error}). Does it run, and is the address right?"
                    ) from error
            time.sleep(min(0.5 * 2 ** (tries - 1), 8.0))

    def _once(
        self, method: str, path: str, file: Path | None, into: Path | None, name: str
    ) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if method == "POST":
            headers["Idempotency-Key"] = name
        with contextlib.ExitStack() as stack:
            body = None
            if file is not None:
                body = stack.enter_context(open(file, "rb"))
                headers |= {
                    "Content-Length": str(file.stat().st_size),
                    "Content-Type": "application/octet-stream",
                }
            request = urllib.request.Request(
                self.url + path, data=body, headers=headers, method=method
            )
            answer = stack.enter_context(urllib.request.urlopen(request, timeout=self.timeout))
            self._reached = True
            if into is None:
                return bytes(answer.read())
            with open(into, "wb") as target:
                shutil.copyfileobj(answer, target, 1 << 20)
            # A line that breaks in the middle looks like the end otherwise.
            if (promised := answer.headers.get("Content-Length")) is not None and int(
                promised
            ) != into.stat().st_size:
                raise ConnectionError(f"{into.stat().st_size} bytes of {promised} came")
            return b""


def _only(reference: AnnData, columns: list[Any], layer: str | None) -> AnnData:
    """The counts, the genes and some columns of an object."""
    import anndata

    if missing := [c for c in columns if c not in reference.obs]:
        raise ScMambaError(
            f"The reference has no column '{missing[0]}'; it has {', '.join(map(str, reference.obs.columns))}."
        )
    matrix = reference.X if layer is None else reference.layers[layer]
    layers = {} if layer is None else {layer: matrix}
    return anndata.AnnData(
        matrix, obs=reference.obs[columns].copy(), var=reference.var.copy(), layers=layers
    )


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        detail = json.loads(error.read())["detail"]
        return detail if isinstance(detail, str) else json.dumps(detail)
    except (ValueError, KeyError, TypeError):
        return str(error.reason)
