"""Checkpoints in the layout of the published code: a Lightning file of weights plus a ``vocab.txt``.

The layout (specification: keys and shapes of such files): ``state_dict`` with every key prefixed ``model.``; an embedding
table with one row per line of ``vocab.txt``, special tokens in brackets first, padded to a multiple of 8.
"""

from __future__ import annotations

import json
import warnings
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..genes import Vocabulary
from ..nn.config import ModelConfig
from ..utils.errors import CheckpointError

#: Special tokens before the first gene in the published vocabulary file.
_SPECIAL_TOKENS = 1005
#: Row of the [CLS] token among them.
_CLS_ROW = 101
_TABLE = "backbone.gene_id_embedding.weight"


def read_published(
    path: str | PathLike[str],
    vocabulary: str | PathLike[str] | Vocabulary | None = None,
    labels: str | PathLike[str] | None = None,
) -> tuple[ModelConfig, dict[str, Tensor], Vocabulary, list[str] | None]:
    """Read a published checkpoint; every size is taken from its tensors.

    Parameters
    ----------
    path
        The ``.ckpt`` file. It is opened with ``weights_only=True``: no code in it can run.
    vocabulary
        Its ``vocab.txt`` (one token a line). Default: the published 19,306 genes behind 1,005 special tokens.
    labels
        JSON of class name -> index, for classifiers.

    Returns
    -------
    config, weights (gene embedding cut to the genes), vocabulary, label names in order of their index.

    Raises
    ------
    CheckpointError
        Truncated file, another layout, or a vocabulary that does not fit the table.

    See Also
    --------
    scmamba.load_model : Does this for a path that ends in ``.ckpt``.
    """
    weights = _clean(_state_dict(Path(path)))
    table = weights[_TABLE]
    genes, rows, cls_row = _vocabulary_rows(vocabulary, table.shape[0])
    weights[_TABLE] = table[rows].clone()
    if "backbone.cls_token" in weights and cls_row is not None:
        # The published code embeds [CLS] like a gene: its row of the table is added to the learned token.
        weights["backbone.cls_token"] = weights["backbone.cls_token"] + table[cls_row]
    config = _infer_config(weights, len(genes), Path(path).stem)
    return config, weights, genes, _labels(labels, config.n_classes)


def _state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}.")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged or unsafe file
        raise CheckpointError(
            f"{path.name} cannot be read as a checkpoint ({type(error).__name__}). It may be truncated (compare its size or checksum "
            "with the source), or hold more than weights; only plain tensors are opened, for safety."
        ) from error
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else stored
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise CheckpointError(f"{path.name} does not hold a 'state_dict' of tensors.")
    return stored


def _clean(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the wrapper's prefix, keep what the network has, and refuse layouts whose arithmetic differs."""
    weights: dict[str, Tensor] = {}
    ignored = []
    for key, value in state.items():
        for part in ("backbone.", "regressor.", "cls_head."):
            if (at := key.find(part)) >= 0:
                weights[key[at:]] = value.float() if value.is_floating_point() else value
                break
        else:
            ignored.append(key)
    if _TABLE not in weights or "backbone.layers.0.mixer.A_log" not in weights:
        raise CheckpointError(
            f"This is not a scMamba checkpoint: it has no '{_TABLE}' (its first keys: {list(state)[:4]})."
        )
    if ignored:
        warnings.warn(
            f"Ignoring weights that this network does not have: {', '.join(sorted(ignored)[:6])}",
            stacklevel=3,
        )
    for key in weights:
        if key.endswith(
            ("in_proj.bias", "out_proj.bias", "norm.bias", "norm_f.bias", "gene_id_embedding.bias")
        ):
            raise CheckpointError(
                f"'{key}' means a variant (biased projections or LayerNorm) this reader does not support."
            )
    if ("backbone.layers.0.mixer.A_b_log" in weights) != (
        "backbone.layers.0.mixer.conv1d_b.weight" in weights
    ):
        raise CheckpointError(
            "This is a bidirectional 'v1' mixer (shared convolution); only 'v2' and one-directional ones are supported."
        )
    return weights


def _vocabulary_rows(
    source: str | PathLike[str] | Vocabulary | None, table: int
) -> tuple[Vocabulary, Tensor, int | None]:
    """The genes, the rows of the embedding table that hold them, and the row of [CLS] if there is one."""
    if source is None or isinstance(source, Vocabulary):
        genes = source or Vocabulary.published()
        # A table of just the genes, or the published order behind the special tokens (padded to a multiple of 8).
        offset = 0 if table == len(genes) else _SPECIAL_TOKENS
        rows = torch.arange(offset, offset + len(genes))
        cls_row = _CLS_ROW if offset else None
    else:
        file = Path(source)
        if not file.is_file():
            raise CheckpointError(f"There is no vocabulary file {file}.")
        lines = [line.strip() for line in file.read_text().splitlines() if line.strip()]
        named = [
            (i, token)
            for i, token in enumerate(lines)
            if not (token.startswith("[") and token.endswith("]"))
        ]
        genes = Vocabulary.from_ids([token for _, token in named])
        rows = torch.tensor([i for i, _ in named], dtype=torch.long)
        cls_row = lines.index("[CLS]") if "[CLS]" in lines else None
    if len(rows) == 0 or int(rows.max()) >= table:
        raise CheckpointError(
            f"The embedding table has {table} rows, and the vocabulary needs {int(rows.max()) + 1 if len(rows) else 1}. Pass the vocab.txt "
            "the model was trained with (vocabulary=...)."
        )
    return genes, rows, cls_row


def _infer_config(weights: dict[str, Tensor], n_genes: int, name: str) -> ModelConfig:
    """Read every size off the tensors."""
    layers = {int(key.split(".")[2]) for key in weights if key.startswith("backbone.layers.")}
    if layers != set(range(len(layers))):
        raise CheckpointError(
            f"Layers {sorted(set(range(max(layers) + 1)) - layers)} are missing; the file is incomplete."
        )
    mixer = "backbone.layers.0.mixer."
    d_inner, d_state = weights[mixer + "A_log"].shape
    d_model = weights[_TABLE].shape[1]
    head = weights.get("cls_head.weight")
    return ModelConfig(
        n_genes=n_genes,
        d_model=d_model,
        n_layer=len(layers),
        d_state=d_state,
        d_conv=weights[mixer + "conv1d.weight"].shape[-1],
        expand=d_inner / d_model,
        dt_rank=weights[mixer + "dt_proj.weight"].shape[1],
        bidirectional=mixer + "A_b_log" in weights,
        n_classes=0 if head is None else head.shape[0],
        reconstructs="regressor.weight" in weights,
        name=name,
    )


def _labels(source: str | PathLike[str] | None, n_classes: int) -> list[str] | None:
    if source is None:
        return None
    stored = json.loads(Path(source).read_text())
    names = (
        sorted(stored, key=lambda name: stored[name]) if isinstance(stored, dict) else list(stored)
    )
    if len(names) != n_classes:
        raise CheckpointError(
            f"{Path(source).name} names {len(names)} classes, the checkpoint has {n_classes}."
        )
    return names
