"""``scmamba.Client``: the verbs on another machine, with the standard library and what scmamba needs anyway."""

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
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.atomic import atomic_path
from ..utils.deprecation import renamed_parameters, warn_renamed
from ..utils.errors import ScMambaError
from ..utils.h5_output import write_anndata
from ..utils.progress import progress, say
from .transport import open_request, refuse_plain_token
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
    """Labelled cells that a server keeps (:meth:`Client.keep_reference`).

    Attributes
    ----------
    name
        Id on the server.
    """

    name: str


class Client:
    """A server that runs scMamba's verbs (``python -m scmamba.serve``).

    Objects and files are sent, the verb runs there, and the result is returned; the numbers are those of the direct call. Large files are
    continued where a connection broke, and a server that is restarting is waited for (a minute and a half).

    Parameters
    ----------
    url
        Address of the server, such as ``"https://box:8642"``.
    token
        Token from the person who runs the server; a server on this machine writes one into ``local-token`` in its data folder.
    timeout
        Seconds to wait for an answer before a request is repeated.
    insecure
        Send the token over plain ``http`` to another machine, where others can read it on the way.

    Raises
    ------
    ScMambaError
        The address is none, or the token would travel unprotected to another machine and ``insecure`` is not set.

    Examples
    --------
    >>> server = Client("https://gpu-box:8642", "token")     # doctest: +SKIP
    >>> adata = server.impute(adata, seed=0)                 # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 60.0,
        insecure: bool = False,
    ) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ScMambaError(
                f"'{url}' is no address of a server; it begins with http:// or https://."
            )
        if token and not insecure:
            refuse_plain_token(url)
        self.url, self._token, self.timeout = url.rstrip("/"), token, timeout
        self._reached = False

    def impute(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """Impute on the server, as :func:`scmamba.impute` does.

        Parameters
        ----------
        adata
            Cells x genes, or the path of an ``.h5ad`` file; not changed.
        **options
            Options of :func:`scmamba.impute`, ``model`` (a name) and ``verbose``.

        Returns
        -------
        A new object with ``layers["scmamba"]``.

        Raises
        ------
        ScMambaError
            The job failed, with the server's reason, or the server cannot be reached.

        Examples
        --------
        >>> adata = server.impute(adata, batch_key="donor")  # doctest: +SKIP
        """
        return self.run("impute", adata, **options)

    def embed(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """Embed on the server, as :func:`scmamba.embed` does.

        Parameters
        ----------
        adata
            Cells x genes, or the path of an ``.h5ad`` file; not changed.
        **options
            Options of :func:`scmamba.embed`, ``model`` (a name) and ``verbose``.

        Returns
        -------
        A new object with ``obsm["X_scmamba"]``.

        Raises
        ------
        ScMambaError
            The job failed, with the server's reason, or the server cannot be reached.

        Examples
        --------
        >>> adata = server.embed("cells.h5ad")               # doctest: +SKIP
        """
        return self.run("embed", adata, **options)

    @renamed_parameters(labels="label_key", donor="donor_key")
    def annotate(
        self,
        adata: AnnData | str | PathLike[str],
        *,
        reference: AnnData | str | PathLike[str] | KeptReference | None = None,
        label_key: str | Sequence[str] | None = None,
        donor_key: str | None = "donor",
        **options: Any,
    ) -> AnnData:
        """Annotate on the server, by a reference or by markers, as :func:`scmamba.annotate` does.

        Of a reference in memory only the counts, the gene names and the columns named here are sent. It is deleted on the server
        afterwards; a reference for several calls is sent once by :meth:`keep_reference`.

        Parameters
        ----------
        adata
            Cells x genes, or the path of an ``.h5ad`` file; not changed.
        reference
            Labeled cells: an object, a file, or what :meth:`keep_reference` returned; or ``"human-brain"``, for which
            no labels are needed. By default as in :func:`scmamba.annotate`: ``"human-brain"``, or with ``markers`` these.
        label_key
            Column or columns of the reference's ``obs`` with the cell types.
        donor_key
            Column of the reference's ``obs`` with the donors, or ``None``.
        **options
            Further options of :func:`scmamba.annotate`, ``model`` (a name) and ``verbose``.

        Returns
        -------
        A new object with the cell types in ``obs``.

        Raises
        ------
        ScMambaError
            ``label_key`` is missing, the job failed, or the server cannot be reached.

        Examples
        --------
        >>> adata = server.annotate(adata, reference=atlas, label_key="cell_type")  # doctest: +SKIP
        """
        if reference is None:
            return self.run("annotate", adata, **options)
        from ..annotation.brain_reference import is_shipped  # here: a client needs little else

        if is_shipped(reference):
            return self.run("annotate", adata, reference=reference, **options)
        if label_key is None:
            raise ScMambaError(
                "reference= needs label_key=: the column of its obs with the cell types."
            )
        columns = [label_key] if isinstance(label_key, str) else list(label_key)
        if donor_key is not None:
            options["donor_key"] = donor_key
        options["label_key"] = columns
        if isinstance(reference, KeptReference):
            return self.run("annotate", adata, reference=reference.name, **options)
        layer = options.get("reference_layer", options.get("layer"))
        kept = self.keep_reference(reference, label_key=columns, donor_key=donor_key, layer=layer)
        try:
            return self.run("annotate", adata, reference=kept.name, **options)
        finally:
            with contextlib.suppress(ScMambaError):
                self.drop_reference(kept)

    @renamed_parameters(labels="label_key", donor="donor_key")
    def keep_reference(
        self,
        reference: AnnData | str | PathLike[str],
        *,
        label_key: str | Sequence[str] = (),
        donor_key: str | None = "donor",
        layer: str | None = None,
    ) -> KeptReference:
        """Send labeled cells that :meth:`annotate` can use several times; the server deletes them after some days.

        Parameters
        ----------
        reference
            Labeled cells: an object, of which only the columns named here are sent, or a file, which is sent whole.
        label_key
            Column or columns of ``obs`` with the cell types.
        donor_key
            Column of ``obs`` with the donors, or ``None``.
        layer
            Layer with the counts; ``X`` if not given.

        Returns
        -------
        A handle for :meth:`annotate` and :meth:`drop_reference`.

        Raises
        ------
        ScMambaError
            A column is missing, the file is refused, or the server cannot be reached.

        Examples
        --------
        >>> kept = server.keep_reference(atlas, label_key="cell_type")  # doctest: +SKIP
        """
        columns = [label_key] if isinstance(label_key, str) else list(label_key)
        if isinstance(reference, (str, PathLike)):
            return KeptReference(str(self._send("/v2/references", Path(reference))["id"]))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "reference.h5ad"
            sent = [*columns, *([donor_key] if donor_key in reference.obs else [])]
            write_anndata(_only(reference, sent, layer), file)
            return KeptReference(str(self._send("/v2/references", file)["id"]))

    def drop_reference(self, reference: KeptReference) -> None:
        """Delete labeled cells on the server.

        Parameters
        ----------
        reference
            What :meth:`keep_reference` returned.

        Raises
        ------
        ScMambaError
            There is no such reference, or the server cannot be reached.

        Examples
        --------
        >>> server.drop_reference(kept)                      # doctest: +SKIP
        """
        self._json("DELETE", f"/v2/references/{reference.name}")

    def kept_references(self) -> pd.DataFrame:
        """Your labeled cells on the server.

        Returns
        -------
        One row per reference, indexed by ``name``: ``bytes`` of the file, and when it was ``sent`` (UTC).
        ``KeptReference(name)`` is a handle for :meth:`annotate` and :meth:`drop_reference`.

        Raises
        ------
        ScMambaError
            The token is wrong, or the server cannot be reached.

        Examples
        --------
        >>> server.kept_references()                         # doctest: +SKIP
        """
        import pandas as pd

        found = self._json("GET", "/v2/references")["references"]
        table = pd.DataFrame(found, columns=["id", "bytes", "sent"])
        table["sent"] = pd.to_datetime(table["sent"].astype(float), unit="s", utc=True)
        return table.rename(columns={"id": "name"}).set_index("name")

    def find_doublets(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """Find doublets on the server, as :func:`scmamba.find_doublets` does.

        Parameters
        ----------
        adata
            Cells x genes, or the path of an ``.h5ad`` file; not changed.
        **options
            Options of :func:`scmamba.find_doublets`, and ``verbose``.

        Returns
        -------
        A new object with ``obs["scmamba_doublet"]`` and ``obs["scmamba_doublet_score"]``.

        Raises
        ------
        ScMambaError
            The job failed, with the server's reason, or the server cannot be reached.

        Examples
        --------
        >>> adata = server.find_doublets(adata)              # doctest: +SKIP
        """
        return self.run("doublets", adata, **options)

    def detect_doublets(self, adata: AnnData | str | PathLike[str], **options: Any) -> AnnData:
        """Find doublets: the old name of :meth:`find_doublets`.

        Parameters
        ----------
        adata, **options
            As for :meth:`find_doublets`.

        Returns
        -------
        As from :meth:`find_doublets`.
        """
        warn_renamed("Client.detect_doublets()", "Client.find_doublets()")
        return self.find_doublets(adata, **options)

    @renamed_parameters(latent_vars="covariates")
    def find_markers(
        self,
        adata: AnnData | str | PathLike[str],
        groupby: str,
        group1: str | Sequence[str],
        group2: str | Sequence[str] | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Test for differential expression on the server, as :func:`scmamba.deg.find_markers` does.

        Parameters
        ----------
        adata
            Cells x genes, or the path of an ``.h5ad`` file.
        groupby
            Column of ``obs`` with the groups.
        group1, group2
            Groups to compare; ``group2`` is all other cells if not given.
        **options
            Further options of :func:`scmamba.deg.find_markers`, and ``verbose``.

        Returns
        -------
        One row per gene.

        Raises
        ------
        ScMambaError
            The job failed, with the server's reason, or the server cannot be reached.

        Examples
        --------
        >>> table = server.find_markers(adata, "disease", "AD")  # doctest: +SKIP
        """
        got = self._tables(
            "markers", adata, groupby=groupby, group1=group1, group2=group2, **options
        )
        table = got.frames["markers"]
        table.attrs.update(got.about)
        return table

    @renamed_parameters(groupby="condition_key", donor="donor_key", cell_type="label_key")
    def robustness(
        self,
        adata: AnnData | str | PathLike[str],
        condition_key: str,
        donor_key: str | None = None,
        label_key: str | None = None,
        **options: Any,
    ) -> RobustnessResult:
        """Measure the reproducibility of DEGs on the server, as :func:`scmamba.deg.robustness` does.

        Parameters
        ----------
        adata
            Cells x genes, or the path of an ``.h5ad`` file.
        condition_key, donor_key, label_key
            Columns of ``obs`` with the condition, the donors and the cell types.
        **options
            Further options of :func:`scmamba.deg.robustness`, and ``verbose``.

        Returns
        -------
        The result object of :func:`scmamba.deg.robustness`.

        Raises
        ------
        ScMambaError
            The job failed, with the server's reason, or the server cannot be reached.

        Examples
        --------
        >>> found = server.robustness(adata, "disease", "donor")  # doctest: +SKIP
        """
        from ..deg import RobustnessResult

        keys: dict[str, Any] = {
            "condition_key": condition_key,
            "donor_key": donor_key,
            "label_key": label_key,
        }
        found = self._tables("robustness", adata, **keys, **options)
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
        """Fine-tune a model on the server, as :func:`scmamba.training.finetune_on` does, and save it here.

        Parameters
        ----------
        adata
            Cells x genes, or the path of an ``.h5ad`` file.
        folder
            New folder for the checkpoint.
        model
            Name of the model to start from.
        verbose
            Show progress.
        **options
            Further options: ``steps``, ``name``, ``label_key``, ``donor_key``, ``seed``, ``force``.

        Returns
        -------
        ``folder``.

        Raises
        ------
        ScMambaError
            The folder exists, the job failed, or the server cannot be reached.

        Examples
        --------
        >>> server.finetune(adata, "my-model", steps=200)    # doctest: +SKIP
        """
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
        """Send cells, wait for the job and fetch its result; an interrupt cancels the job.

        Parameters
        ----------
        task
            A task of the server: ``impute``, ``embed``, ``annotate``, ``doublets``.
        adata
            Cells x genes, or the path of a file.
        model
            Name of one of the server's models.
        verbose
            Show progress.
        **options
            Options of the task.

        Returns
        -------
        The object with the results.

        Raises
        ------
        ScMambaError
            The job failed, with the server's reason, or the server cannot be reached.

        Examples
        --------
        >>> adata = server.run("embed", "cells.h5ad")        # doctest: +SKIP
        """
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
        """Send a file or an object and return without waiting.

        Parameters
        ----------
        task
            A task of the server.
        adata
            Cells x genes, or the path of a file. It is sent again if the connection breaks.
        model
            Name of one of the server's models.
        **options
            Options of the task.

        Returns
        -------
        Id of the job, for :meth:`wait`, :meth:`fetch` and :meth:`cancel`.

        Raises
        ------
        ScMambaError
            The file or an option is refused, or the server cannot be reached.

        Examples
        --------
        >>> job = server.submit("impute", "cells.h5ad")      # doctest: +SKIP
        """
        query = urllib.parse.urlencode({"options": json.dumps(options)})
        path = f"/v2/models/{urllib.parse.quote(model)}/{urllib.parse.quote(task)}?{query}"
        if isinstance(adata, (str, PathLike)):
            return str(self._send(path, Path(adata))["id"])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "upload.h5ad"
            write_anndata(adata, file)
            return str(self._send(path, file)["id"])

    def state(self, job: str) -> dict[str, Any]:
        """State of a job.

        Parameters
        ----------
        job
            Id from :meth:`submit`.

        Returns
        -------
        ``state`` (queued, running, done, failed, cancelled), ``done`` (0 to 1), ``message`` (the present step),
        ``messages`` (what the verb reported so far), ``warnings`` and times.

        Raises
        ------
        ScMambaError
            There is no such job, or the server cannot be reached.

        Examples
        --------
        >>> server.state(job)["done"]                        # doctest: +SKIP
        """
        return self._json("GET", f"/v2/jobs/{job}")

    def wait(self, job: str, *, verbose: bool = True) -> dict[str, Any]:
        """Wait for the end of a job.

        Parameters
        ----------
        job
            Id from :meth:`submit`.
        verbose
            Show progress and the verb's messages.

        Returns
        -------
        The last state. Warnings of the server, such as old names of options, are given as ``DeprecationWarning``.

        Examples
        --------
        >>> server.wait(job)                                 # doctest: +SKIP

        Raises
        ------
        ScMambaError
            The job failed or was cancelled, with the server's reason.
        """
        shown, printed, pause = 0, 0, 0.2
        with progress("Working on the server", 100, verbose) as advance:
            while True:
                now = self.state(job)
                done = int(100 * (now["done"] or 0))
                advance(max(0, done - shown))
                shown = max(shown, done)
                reported = now.get("messages", ())
                for text in reported[printed:]:
                    say(text, verbose)
                # A job that is begun again reports the same messages again.
                printed = max(printed, len(reported))
                if now["state"] == "done":
                    for text in now.get("warnings", ()):
                        warnings.warn(f"On the server: {text}", DeprecationWarning, stacklevel=2)
                    return now
                if now["state"] in ("failed", "cancelled"):
                    ended = "failed" if now["state"] == "failed" else "was cancelled"
                    raise ScMambaError(f"On the server the job {ended}: {now['message']}")
                time.sleep(pause)
                pause = min(1.15 * pause, 0.5)  # short jobs end soon

    def fetch(self, job: str, target: str | PathLike[str], *, format: str = "h5ad") -> Path:
        """Save the result of a job; repeated if the connection breaks.

        Parameters
        ----------
        job
            Id from :meth:`submit`.
        target
            File to write, whole or not at all.
        format
            ``"h5ad"`` (the whole object), ``"scmb"`` (what was added) or ``"zip"`` (a fine-tuned model).

        Returns
        -------
        ``target``.

        Raises
        ------
        ScMambaError
            The job has no result, or the server cannot be reached.

        Examples
        --------
        >>> server.fetch(job, "result.h5ad")                 # doctest: +SKIP
        """
        target = Path(target)
        with atomic_path(target) as temporary:
            self._request("GET", f"/v2/jobs/{job}/result?format={format}", into=temporary)
        return target

    def cancel(self, job: str) -> None:
        """Cancel a job, or delete one that has ended, with its files.

        Parameters
        ----------
        job
            Id from :meth:`submit`.

        Raises
        ------
        ScMambaError
            There is no such job, or the server cannot be reached.

        Examples
        --------
        >>> server.cancel(job)                               # doctest: +SKIP
        """
        self._json("DELETE", f"/v2/jobs/{job}")

    def models(self) -> list[str]:
        """Names of the server's models.

        Returns
        -------
        The names.

        Raises
        ------
        ScMambaError
            The server cannot be reached.

        Examples
        --------
        >>> server.models()                                  # doctest: +SKIP
        """
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
        server recognizes it when it arrives a second time because the first answer was lost.
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
            answer = stack.enter_context(open_request(request, self.timeout))
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
