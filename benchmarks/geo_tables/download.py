"""GEO's files, each with the checksum of its first download."""

from __future__ import annotations

import argparse
import gzip
import os
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

from scmamba.utils.errors import ScMambaError
from scmamba.utils.progress import say

from .studies import Study, place, read_json, sha256_of, write_json


def download(study: Study, options: argparse.Namespace) -> None:
    """GEO's files into ``raw/``; existing ones are compared with the SHA-256 recorded when they were fetched."""
    folder = place(study, options) / "raw"
    folder.mkdir(exist_ok=True)
    for name, url in addresses(study, options.base_url).items():
        obtain(url, folder / name)


def addresses(study: Study, base: str) -> dict[str, str]:
    """File name -> address."""
    series = f"{base.rstrip('/')}/{study.accession[:-3]}nnn/{study.accession}"
    found = {name: f"{series}/suppl/{name}" for name in study.files}
    if study.braak:
        name = f"{study.accession}_series_matrix.txt.gz"
        found[name] = f"{series}/matrix/{name}"
    return found


def obtain(url: str, target: Path) -> None:
    """Fetch a file unless it exists, is complete and is unchanged.

    Raises
    ------
    ScMambaError
        It cannot be fetched, or is another file than the one noted.
    """
    notes = target.parent / "downloads.json"
    known = read_json(notes).get(target.name)
    problem: str | None = "is not there"
    if target.is_file():
        if known is None:  # put there by hand, or the run ended before its checksum was recorded
            problem = damage(target)
        elif target.stat().st_size < known["bytes"]:
            problem = f"is cut off ({target.stat().st_size:,} of {known['bytes']:,} bytes)"
        elif sha256_of(target) == known["sha256"]:
            return
        else:
            raise ScMambaError(
                f"{target} is not the file that was fetched (its SHA-256 differs from {notes.name}). Delete it to fetch it again, or "
                f"delete its entry in {notes.name} if you put this file there on purpose."
            )
    if problem is not None:
        say(f"{target.name} {problem}; fetching it", True)
        _fetch(url, target, known)
    write_json(
        notes,
        {
            **read_json(notes),
            target.name: {"url": url, "bytes": target.stat().st_size, "sha256": sha256_of(target)},
        },
    )


def _fetch(url: str, target: Path, known: dict[str, Any] | None, attempts: int = 3) -> None:
    import logging

    import pooch
    import requests

    pooch.get_logger().setLevel(logging.ERROR)
    by_hand = f"See {url.rsplit('/', 1)[0]}/ for what there is; a file put by hand into {target.parent} is used."
    if os.environ.get("SCMAMBA_OFFLINE", "0") not in ("", "0"):
        raise ScMambaError(
            f"{target.name} is not (whole) in {target.parent} and SCMAMBA_OFFLINE is set. {by_hand}"
        )
    target.unlink(missing_ok=True)  # pooch keeps existing files
    known_hash = None if known is None else f"sha256:{known['sha256']}"
    problem: Any = None
    for attempt in range(attempts):
        time.sleep(attempt)
        try:
            loader = pooch.HTTPDownloader(progressbar=_Bar(target.name), timeout=60)
            pooch.retrieve(
                url, known_hash=known_hash, fname=target.name, path=target.parent, downloader=loader
            )
        except ValueError as error:  # pooch raises it if the checksum differs; some errors of requests are ValueErrors too
            if isinstance(error, requests.RequestException):
                raise ScMambaError(f"{url} cannot be fetched: {error}.") from error
            raise ScMambaError(
                f"{url} gives another file than the one fetched before ({known_hash}). If GEO has replaced it, delete "
                f"{target.parent / 'downloads.json'} and everything made from the old one. Nothing was kept."
            ) from error
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else 500
            problem = f"the server answered {code}"
            if code < 500:
                break
        except requests.RequestException as error:
            problem = f"{type(error).__name__}: {error}"
        except OSError as error:
            raise ScMambaError(
                f"{target.name} cannot be written to {target.parent}: {error.strerror}."
            ) from error
        else:
            problem = damage(target)
            if problem is None:
                return
            target.unlink()
        say(f"{target.name}: {problem}", True)
    raise ScMambaError(f"{url} cannot be fetched ({problem}). {by_hand}")


class _Bar:
    """Progress of pooch: a line every half gigabyte."""

    def __init__(self, name: str) -> None:
        self.name, self.total, self.done, self.told = name, 0, 0, 0.0

    def update(self, size: int) -> None:
        """Add ``size`` bytes."""
        self.done += size
        if self.done - self.told >= 5e8:
            self.told = self.done
            say(f"{self.name}: {self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB", True)

    def reset(self) -> None:
        """Called by pooch at the end."""
        self.told = float("inf")

    def close(self) -> None:
        """No file is open."""


def damage(path: Path) -> str | None:
    """The damage of a downloaded file, judged by its contents; ``None`` if it is complete."""
    with open(path, "rb") as file:
        head = file.read(512)
    try:
        if head[:2] == b"\x1f\x8b":
            with gzip.open(path) as packed:
                while packed.read(1 << 22):
                    pass
        elif tarfile.is_tarfile(path):
            with tarfile.open(path, "r:") as tar:
                end = max((m.offset_data + (m.size + 511) // 512 * 512 for m in tar), default=0)
            if path.stat().st_size < end + 512:
                return "is a tar archive that is cut off"
        elif not head.startswith(b"!"):  # a series matrix that the server has unpacked
            return "is neither a tar archive nor gzip; is it a page with an error?"
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"is damaged or cut off ({error})"
    return None
