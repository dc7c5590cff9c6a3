"""scMamba: a pre-trained bidirectional Mamba for single-nucleus RNA-seq of the brain.

The public verbs; each is imported when first used, so that ``import scmamba`` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .utils.shared_libraries import load_torch_apart

# Torch's threads spin while they wait for each other, which on a shared machine makes small networks up to four times slower.
# Read when torch is first loaded, hence before anything else; whoever has set it keeps what was set.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

load_torch_apart()

#: Public name -> module that holds it.
_HOMES = {
    "Client": "client",
    "impute": "imputation",
    "impute_file": "imputation",
    "annotate": "annotation",
    "gene_embedding": "embedding",
    "gene_neighbours": "embedding",
    "marker_map": "embedding",
    "embed": "embedding",
    "embed_file": "embedding",
    "detect_doublets": "doublets",
    "load_model": "model",
    "save_checkpoint": "model",
    "models": "model",
    "Model": "model",
    "ModelConfig": "nn",
    "pretrain": "training",
    "finetune": "training",
    "prepare": "preprocessing",
    "PrepareConfig": "preprocessing",
    "info": "diagnostics",
}
_ROOMS = (
    "annotation",
    "data",
    "datasets",
    "deg",
    "doublets",
    "embedding",
    "evaluation",
    "genes",
    "imputation",
    "interop",
    "model",
    "neighbors",
    "nn",
    "ops",
    "preprocessing",
    "training",
)

__all__ = [
    "Client",
    "Model",
    "ModelConfig",
    "PrepareConfig",
    "__version__",
    "annotate",
    "detect_doublets",
    "embed",
    "embed_file",
    "finetune",
    "gene_embedding",
    "gene_neighbours",
    "impute",
    "impute_file",
    "info",
    "load_model",
    "marker_map",
    "models",
    "prepare",
    "pretrain",
    "save_checkpoint",
]

if TYPE_CHECKING:
    from .annotation import annotate
    from .client.client import Client
    from .diagnostics import info
    from .doublets import detect_doublets
    from .embedding import embed, embed_file, gene_embedding, gene_neighbours, marker_map
    from .imputation import impute, impute_file
    from .model.checkpoint import Model, load_model, save_checkpoint
    from .model.hub import models
    from .nn.config import ModelConfig
    from .preprocessing import PrepareConfig, prepare
    from .training import finetune, pretrain


def __getattr__(name: str) -> Any:
    # Rooms first: `scmamba.model` is the package even after something imported a name from it.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'scmamba' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
