"""Checks of a checkpoint folder before anything is built from it: a folder that a stranger made costs a sentence, no memory and no time."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..genes import Vocabulary
from ..nn import ModelConfig, ScMamba
from ..utils.errors import CheckpointError, GeneError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

#: Largest size of any part of a network, and of config.json and labels.json in bytes.
_LARGEST, _TEXT = 1 << 31, 64 << 20
#: A safetensors file begins with the length of its header, which has at most this many bytes.
_HEADER = 100 << 20
#: Tokens that older checkpoints do not carry.
_OPTIONAL = ("mask_token", "cls_token")


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _TEXT:
            raise CheckpointError(f"{path} is larger than any file of a checkpoint.")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is missing or not JSON; the checkpoint is incomplete. Fetch or convert it again."
        ) from error


def read_config(path: Path) -> ModelConfig:
    """Read ``config.json`` with the type and range of every setting checked.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    The configuration.

    Raises
    ------
    CheckpointError
        The file is none, or a setting is missing, of another type or out of range.
    """
    stored = _read_json(path)
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} is no JSON object.")
    for each in dataclasses.fields(ModelConfig):
        if each.name not in stored:
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
                raise CheckpointError(f"{path} has no '{each.name}'.")
            continue
        _check_setting(path, each.name, str(each.type), stored[each.name])
    return ModelConfig.read(path)


def _check_setting(path: Path, name: str, kind: str, value: Any) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    least = 0 if name in ("n_classes", "dt_rank") else 1
    fits = {
        "int": is_number and isinstance(value, int) and least <= value < _LARGEST,
        "float": is_number and math.isfinite(value) and 0 < value < 1e6,
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
    }.get(kind, True)
    if not fits:
        expected = {"int": f"a whole number from {least}", "float": "a positive number"}.get(
            kind, kind
        )
        raise CheckpointError(f"{path}: {name} is {str(value)[:60]}; expected {expected}.")


def check_header(config: ModelConfig, path: Path) -> None:
    """Compare the header of the weights with the network that the configuration describes; nothing is allocated.

    Parameters
    ----------
    config
        The configuration.
    path
        ``model.safetensors``.

    Raises
    ------
    CheckpointError
        The header is damaged, or names, number or shapes of the tensors are not those of the network.
    """
    found = _header(path)
    if config.n_layer > len(found):
        raise CheckpointError(
            f"{path} holds {len(found)} tensors, fewer than the {config.n_layer:,} layers of config.json need."
        )
    try:
        with torch.device("meta"):
            expected = {k: tuple(v.shape) for k, v in ScMamba(config).state_dict().items()}
    except (RuntimeError, OverflowError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"The sizes in the config.json beside {path} are not possible."
        ) from error
    missing = [k for k in expected if k not in found and not k.endswith(_OPTIONAL)]
    if missing or found.keys() - expected.keys():
        unexpected = sorted(found.keys() - expected.keys())
        raise CheckpointError(
            f"{path.parent.name} is incomplete: missing {missing[:4]}, not expected {[k[:60] for k in unexpected[:4]]}."
        )
    for name, shape in found.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"The weights of {path} do not fit its config.json: {name} is {shape}, expected {expected[name]}."
            )


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a safetensors file."""
    damaged = CheckpointError(f"{path} is damaged or truncated. Fetch it again.")
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size - 8, _HEADER):
                raise damaged
            stored = json.loads(file.read(length))
        stored.pop("__metadata__", None)
        return {str(k): tuple(int(n) for n in v["shape"]) for k, v in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error


def check_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are not finite.

    Parameters
    ----------
    weights
        Tensors by name.
    path
        Where they come from, for the message.

    Raises
    ------
    CheckpointError
        A tensor holds NaN or an infinite value.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite.")


def read_genes(path: Path, config: ModelConfig) -> Vocabulary:
    """Read ``genes.tsv``.

    Parameters
    ----------
    path
        The file.
    config
        The configuration, whose number of genes it must have.

    Returns
    -------
    The vocabulary.

    Raises
    ------
    CheckpointError
        It is no table of genes, or has another number of them.
    """
    try:
        genes = Vocabulary.read(path)
    except (OSError, ValueError, KeyError, TypeError, GeneError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"{path} is no table of genes ({reason}).") from error
    if len(genes) != config.n_genes:
        raise CheckpointError(
            f"{path} names {len(genes):,} genes and config.json {config.n_genes:,}; they do not fit."
        )
    return genes


def read_labels(path: Path, config: ModelConfig) -> tuple[list[str] | None, Any]:
    """Read ``labels.json``, if there is one.

    Parameters
    ----------
    path
        The file.
    config
        The configuration, whose number of classes it must have.

    Returns
    -------
    Names of the classes and their calibration; ``None`` for what is missing.

    Raises
    ------
    CheckpointError
        It is no list of names, or has another number of them.
    """
    if not path.is_file():
        return None, None
    kept = _read_json(path)
    labels = kept.get("labels") if isinstance(kept, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{path} has no list of names under 'labels'.")
    if len(labels) != config.n_classes:
        raise CheckpointError(
            f"{path} names {len(labels):,} classes and config.json {config.n_classes:,}; they do not fit."
        )
    return labels, kept.get("calibration")
