"""Where models are found by name: in the package, in the user's folder, or listed in a registry and fetched once, checked.

A registry is a JSON table ``{name: {"url": ..., "sha256": ..., "about": ...}}``. The package carries one; a lab can have its own
(``SCMAMBA_REGISTRY``, a path or address). An archive is a zip of a checkpoint folder as :func:`pack_model` writes it. Without a network
the folder may be copied by hand into :func:`model_folder`.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from ..utils.atomic import atomic_path
from ..utils.errors import CheckpointError
from ..utils.progress import say

#: What a checkpoint directory may hold; nothing else is unpacked.
FILES = ("config.json", "genes.tsv", "labels.json", "model.safetensors", "model_card.md")
#: The model card among them.
CARD = "model_card.md"
_DATE = (1980, 1, 1, 0, 0, 0)  # so that packing the same model twice gives the same bytes


def list_models() -> dict[str, Path]:
    """Models that can be loaded without a network: shipped with the package, fetched, or put in :func:`model_folder`.

    Returns
    -------
    Checkpoint folder of each model by its name, sorted by name.

    See Also
    --------
    scmamba.load_model : Load one of them.
    scmamba.model.registry : Models that can be fetched.

    Examples
    --------
    >>> import scmamba
    >>> "brain-mini" in scmamba.list_models()
    True
    """
    found: dict[str, Path] = {}
    for root in (model_folder(), Path(str(resources.files("scmamba.model") / "pretrained"))):
        if root.is_dir():
            found |= {
                folder.name: folder
                for folder in sorted(root.iterdir())
                if (folder / "config.json").is_file()
            }
    return dict(sorted(found.items()))


def model_folder() -> Path:
    """Folder of fetched models: ``SCMAMBA_MODELS``, or the user's cache folder.

    Returns
    -------
    The folder; it may not exist yet.

    Examples
    --------
    >>> import os
    >>> os.environ["SCMAMBA_MODELS"] = "/data/models"
    >>> str(model_folder())
    '/data/models'
    >>> del os.environ["SCMAMBA_MODELS"]
    """
    if chosen := os.environ.get("SCMAMBA_MODELS"):
        return Path(chosen)
    import pooch

    return Path(pooch.os_cache("scmamba")) / "models"


def registry() -> dict[str, dict[str, Any]]:
    """Models that can be fetched: the package's table and the one that ``SCMAMBA_REGISTRY`` names.

    Returns
    -------
    Entry of each model by its name: ``url``, ``sha256`` and ``about``.

    Raises
    ------
    CheckpointError
        A table cannot be read.

    Examples
    --------
    >>> import scmamba.model
    >>> sorted(scmamba.model.registry())  # as shipped
    []
    """
    tables = [(resources.files("scmamba.model") / "pretrained" / "registry.json").read_text()]
    if own := os.environ.get("SCMAMBA_REGISTRY"):
        tables.append(_read_text(own))
    entries: dict[str, dict[str, Any]] = {}
    for text in tables:
        try:
            table = json.loads(text)
            for name, entry in table.items():
                if not name or name.startswith(".") or Path(name).name != name:
                    raise ValueError(f"'{name}' is no name for a folder")
                entries[name] = {
                    "url": str(entry["url"]),
                    "sha256": str(entry["sha256"]),
                    "about": str(entry.get("about", "")),
                }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f'The registry {own} cannot be read ({error!r}); it must be a JSON table of {{"name": {{"url": ..., "sha256": ...}}}}.'
            ) from error
    return entries


def is_offline() -> bool:
    """Whether ``SCMAMBA_OFFLINE`` forbids the network."""
    return os.environ.get("SCMAMBA_OFFLINE", "0") not in ("", "0")


def fetch_model(name: str, *, verbose: bool = True) -> Path:
    """Fetch a model of the registry, verify its checksum, and unpack it into :func:`model_folder`; nothing if it is there.

    Parameters
    ----------
    name
        Name in the registry.
    verbose
        Print a message.

    Returns
    -------
    The checkpoint folder.

    Raises
    ------
    CheckpointError
        The name is not in the registry; there is no network (or ``SCMAMBA_OFFLINE`` is set); the checksum differs.
    """
    target = model_folder() / name
    if (target / "config.json").is_file():
        return target
    entries = registry()
    if name not in entries:
        raise CheckpointError(
            f"The model '{name}' is in no registry; the registries have {', '.join(entries) or 'none'}."
        )
    by_hand = (
        f"On a machine with a network fetch {entries[name]['url']}, and unpack it to {target}."
    )
    if is_offline():
        raise CheckpointError(
            f"The model '{name}' is not on this machine and SCMAMBA_OFFLINE is set. {by_hand}"
        )
    say(f"fetching the model {name}", verbose)
    target.parent.mkdir(parents=True, exist_ok=True)
    archive = _download(name, entries[name], target.parent / ".downloads", by_hand)
    try:
        unpack_model(archive, target)
    finally:
        archive.unlink(missing_ok=True)
    return target


def _download(name: str, entry: dict[str, Any], folder: Path, by_hand: str) -> Path:
    import logging

    import pooch

    pooch.get_logger().setLevel(logging.ERROR)
    try:
        return Path(
            pooch.retrieve(
                entry["url"],
                known_hash=f"sha256:{entry['sha256']}",
                fname=f"{name}.zip",
                path=folder,
            )
        )
    except ValueError as error:  # what pooch raises when the checksum differs
        raise CheckpointError(
            f"{entry['url']} is not the model the registry describes: {error}. Nothing was kept."
        ) from error
    except Exception as error:  # every transport raises its own
        raise CheckpointError(
            f"The model '{name}' could not be fetched ({type(error).__name__}: {error}). {by_hand}"
        ) from error


def unpack_model(archive: str | PathLike[str], target: str | PathLike[str]) -> Path:
    """Unpack an archive into a checkpoint folder, whole or not at all; only the files of a checkpoint are unpacked.

    Parameters
    ----------
    archive
        A ``.zip`` written by :func:`pack_model`.
    target
        The folder to write.

    Returns
    -------
    The folder.

    Raises
    ------
    CheckpointError
        The file is no archive, or holds no checkpoint.
    """
    target = Path(target)
    try:
        with zipfile.ZipFile(archive) as zipped:
            inside = {
                Path(info.filename).name: info
                for info in zipped.infolist()
                if Path(info.filename).name in FILES
            }
            if missing := {"config.json", "genes.tsv", "model.safetensors"} - set(inside):
                raise CheckpointError(
                    f"{archive} is no scMamba model: it lacks {', '.join(sorted(missing))}."
                )
            with atomic_path(target) as folder:
                folder.mkdir()
                for name, info in inside.items():
                    (folder / name).write_bytes(zipped.read(info))
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{archive} is not a zip archive, or is truncated.") from error
    return target


def pack_model(folder: str | PathLike[str], target: str | PathLike[str]) -> dict[str, str]:
    """Write a checkpoint folder as one ``.zip`` for a registry; the same model gives the same bytes.

    Parameters
    ----------
    folder
        A checkpoint folder.
    target
        The ``.zip`` to write.

    Returns
    -------
    ``{"sha256": ...}``, for the entry of the registry.

    Raises
    ------
    CheckpointError
        ``folder`` is no checkpoint folder.

    Examples
    --------
    >>> import tempfile
    >>> import scmamba
    >>> from scmamba.model import pack_model
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     entry = pack_model(scmamba.list_models()["brain-mini"], f"{folder}/brain-mini.zip")
    >>> len(entry["sha256"])
    64
    """
    folder, target = Path(folder), Path(target)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a checkpoint folder: it has no config.json.")
    with (
        atomic_path(target) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as zipped,
    ):
        for name in FILES:
            if (folder / name).is_file():
                zipped.writestr(
                    zipfile.ZipInfo(name, _DATE), (folder / name).read_bytes(), zipfile.ZIP_DEFLATED
                )
    return {"sha256": hashlib.sha256(target.read_bytes()).hexdigest()}


def _read_text(path_or_url: str) -> str:
    from urllib.request import urlopen

    try:
        if "://" not in path_or_url:
            return Path(path_or_url).read_text()
        if not path_or_url.startswith(("https://", "http://")):
            raise CheckpointError(
                f"SCMAMBA_REGISTRY is {path_or_url}; it must be a path or an http(s) address."
            )
        with urlopen(path_or_url, timeout=20) as answer:  # nosec B310: http(s), checked above
            return str(answer.read().decode())
    except OSError as error:
        raise CheckpointError(
            f"The registry {path_or_url} (SCMAMBA_REGISTRY) cannot be read: {error}."
        ) from error
