"""Models of the Hugging Face hub, addressed as ``hf://organization/name`` or ``hf://organization/name@revision``.

A repository there holds the files of a checkpoint folder; the model card is its ``README.md``, with the metadata that the hub reads
at its top. Files are kept below :func:`scmamba.model.model_folder`. The package ``huggingface_hub`` is optional: ``pip install
'scmamba[hub]'``. ``HF_ENDPOINT`` names another server than huggingface.co, ``HF_TOKEN`` the token of private repositories.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

from .._version import __version__
from ..utils.errors import CheckpointError
from ..utils.progress import say
from .hub import CARD, FILES, is_offline, model_folder

#: How an address begins.
SCHEME = "hf://"
_ADDRESS = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")
#: The files of a checkpoint, as a repository of the hub names them.
_REMOTE = tuple("README.md" if name == CARD else name for name in FILES)
_TAGS = ["scmamba", "biology", "single-cell", "single-nucleus RNA-seq", "brain"]


def fetch_from_hub(address: str, *, verbose: bool = True) -> Path:
    """Fetch a model of the Hugging Face hub, once for each revision; only the files of a checkpoint are fetched.

    Parameters
    ----------
    address
        ``hf://organization/name``, with ``@revision`` (a branch, a tag or a commit) if not the newest is wanted. Name a commit
        in an analysis that has to be repeated.
    verbose
        Print a message.

    Returns
    -------
    The checkpoint folder.

    Raises
    ------
    CheckpointError
        The address is none, huggingface_hub is not installed, there is no such repository, or it cannot be reached
        (``SCMAMBA_OFFLINE`` is set, no network) and was not fetched before.
    """
    repository, revision = parse_address(address)
    hub = _package()
    offline = is_offline()
    say(f"fetching {address}" if not offline else f"looking for {address}", verbose)
    try:
        found = hub.snapshot_download(
            repository,
            revision=revision,
            cache_dir=model_folder() / ".huggingface",
            allow_patterns=list(_REMOTE),
            local_files_only=offline,
            endpoint=_endpoint(),
            library_name="scmamba",
            library_version=__version__,
        )
    except Exception as error:  # every transport raises its own
        raise CheckpointError(
            f"The model {address} could not be fetched ({_why(error)}). Check the name and the network; a private "
            "repository needs a token in HF_TOKEN. Without a network, copy a checkpoint folder to this machine and name it."
        ) from error
    return Path(found)


def upload_model(
    folder: str | PathLike[str],
    address: str,
    *,
    licence: str | None = None,
    private: bool = True,
    verbose: bool = True,
) -> str:
    """Upload a checkpoint folder to the Hugging Face hub; the repository is made if it does not exist.

    The model card becomes the repository's page. Read it before you upload: it names donors, studies and accuracy.

    Parameters
    ----------
    folder
        A checkpoint folder, as :func:`scmamba.save_checkpoint` writes it.
    address
        ``hf://organization/name``, with ``@branch`` if not the main branch is meant.
    licence
        Name of the licence of the weights as the hub spells it, such as ``"apache-2.0"``.
    private
        Make a new repository private. Default True.
    verbose
        Print a message.

    Returns
    -------
    Address of the commit.

    Raises
    ------
    CheckpointError
        ``folder`` is no checkpoint folder or has an empty card, huggingface_hub is not installed, or the upload failed.
    """
    repository, revision = parse_address(address)
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} is not a checkpoint folder: it has no config.json.")
    card = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    if not card.strip():
        raise CheckpointError(
            f"{folder} has no model card. Write {folder / CARD}: which data and donors the model was trained on, their licence, "
            "what was measured, what it cannot do."
        )
    hub = _package()
    api = hub.HfApi(endpoint=_endpoint(), library_name="scmamba", library_version=__version__)
    say(f"uploading {folder} to {address}", verbose)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            for name in FILES:
                if name != CARD and (folder / name).is_file():
                    shutil.copyfile(folder / name, Path(temporary) / name)
            (Path(temporary) / "README.md").write_text(
                hub_card(card, licence=licence), encoding="utf-8"
            )
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=temporary,
                revision=revision,
                commit_message=f"Upload {folder.name} with scMamba {__version__}",
            )
    except Exception as error:  # every transport raises its own
        raise CheckpointError(
            f"{folder} could not be uploaded to {address} ({_why(error)}). Check the token in HF_TOKEN; it has "
            "to allow writing to this organization."
        ) from error
    return str(commit.commit_url)


def hub_card(card: str, *, licence: str | None = None) -> str:
    """A model card with the metadata that the Hugging Face hub reads.

    Parameters
    ----------
    card
        Text of ``model_card.md``.
    licence
        Name of the licence as the hub spells it; none if not given.

    Returns
    -------
    Text of ``README.md``.
    """
    hub = _package()
    data = hub.ModelCardData(
        license=licence, library_name="scmamba", tags=list(_TAGS), pipeline_tag="feature-extraction"
    )
    return f"---\n{data.to_yaml()}\n---\n\n{card}"


def parse_address(address: str) -> tuple[str, str | None]:
    """Repository and revision of an address.

    Parameters
    ----------
    address
        ``hf://organization/name`` or ``hf://organization/name@revision``.

    Returns
    -------
    ``organization/name``, and the revision or ``None``.

    Raises
    ------
    CheckpointError
        It has another form.

    Examples
    --------
    >>> from scmamba.model.huggingface import parse_address
    >>> parse_address("hf://lab/brain-mini@v2")
    ('lab/brain-mini', 'v2')
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise CheckpointError(
            f"'{address}' is no address of a model; expected hf://organization/name or hf://organization/name@revision."
        )
    return found["repository"], found["revision"]


def _why(error: Exception) -> str:
    """Name of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{SCHEME} needs the package huggingface_hub: pip install 'scmamba[hub]'."
        ) from error
    return huggingface_hub
