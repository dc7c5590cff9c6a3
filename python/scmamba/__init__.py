"""scMamba: a pre-trained bidirectional Mamba for single-nucleus RNA-seq of the brain.

Questions about cells: :func:`impute`, :func:`embed`, :func:`annotate`, :func:`find_doublets`; about genes:
:func:`find_markers`, :func:`compare`, :func:`pseudobulk`, :func:`robustness`, :func:`gene_neighbors`. Studies are prepared with
:func:`prepare`, ambient RNA is estimated by :func:`ambient_rna`; models are listed, loaded and trained with
:func:`list_models`, :func:`load_model`, :func:`pretrain` and :func:`finetune`. Every name is imported when it is first used, so ``import scmamba`` is fast.
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
    "Model": "model",
    "ModelConfig": "nn",
    "PrepareConfig": "preprocessing",
    "PrepareOptions": "preprocessing",
    "ambient_rna": "preprocessing",
    "annotate": "annotation",
    "compare": "deg",
    "embed": "embedding",
    "embed_file": "embedding",
    "find_doublets": "doublets",
    "find_markers": "deg",
    "finetune": "training",
    "gene_embedding": "embedding",
    "gene_neighbors": "embedding",
    "impute": "imputation",
    "impute_file": "imputation",
    "info": "diagnostics",
    "list_models": "model",
    "load_model": "model",
    "marker_map": "embedding",
    "prepare": "preprocessing",
    "pretrain": "training",
    "pseudobulk": "deg",
    "references": "annotation",
    "robustness": "deg",
    "save_checkpoint": "model",
    "settings": "utils.settings",
}
#: Former public name -> today's name; calls of the former one warn.
_RENAMED = {"detect_doublets": "find_doublets", "gene_neighbours": "gene_neighbors"}
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
    "models",
    "neighbors",
    "nn",
    "ops",
    "pl",
    "preprocessing",
    "training",
)

__all__ = [
    "Client",
    "Model",
    "ModelConfig",
    "PrepareConfig",
    "PrepareOptions",
    "__version__",
    "ambient_rna",
    "annotate",
    "compare",
    "embed",
    "embed_file",
    "find_doublets",
    "find_markers",
    "finetune",
    "gene_embedding",
    "gene_neighbors",
    "impute",
    "impute_file",
    "info",
    "list_models",
    "load_model",
    "marker_map",
    "prepare",
    "pretrain",
    "pseudobulk",
    "references",
    "robustness",
    "save_checkpoint",
    "settings",
]

if TYPE_CHECKING:
    from .annotation import annotate, references
    from .client.client import Client
    from .deg import compare, find_markers, pseudobulk, robustness
    from .diagnostics import info
    from .doublets import find_doublets
    from .embedding import embed, embed_file, gene_embedding, gene_neighbors, marker_map
    from .imputation import impute, impute_file
    from .model.checkpoint import Model, load_model, save_checkpoint
    from .model.hub import list_models
    from .nn.config import ModelConfig
    from .preprocessing import PrepareConfig, PrepareOptions, ambient_rna, prepare
    from .training import finetune, pretrain
    from .utils.settings import settings


def __getattr__(name: str) -> Any:
    # Rooms first: `scmamba.model` is the package even after something imported a name from it.
    if name in _HOMES:
        room = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        return getattr(room, name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _RENAMED:
        from .utils.deprecation import renamed_function

        return renamed_function(name, __getattr__(_RENAMED[name]))
    raise AttributeError(f"module 'scmamba' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
