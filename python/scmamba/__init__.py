"""scMamba: a pre-trained bidirectional Mamba for single-nucleus RNA-seq of the brain.

The public verbs; each is imported when first used, so that ``import scmamba`` costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from ._host import load_torch_apart

# Torch's threads spin while they wait for each other, which on a shared machine makes small networks up to four times slower.
# Read when torch is first loaded, hence before anything else; whoever has set it keeps what was set.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

load_torch_apart()

__version__ = "0.1.0"

#: Public name -> module that holds it.
_HOMES = {
    "Client": "client",
    "impute": "tasks.impute",
    "impute_file": "tasks.impute",
    "annotate": "tasks.annotate",
    "gene_embedding": "tasks.gene_map",
    "gene_neighbours": "tasks.gene_map",
    "marker_map": "tasks.gene_map",
    "embed": "tasks.embed",
    "embed_file": "tasks.embed",
    "detect_doublets": "tasks.doublets",
    "load_model": "model.checkpoint",
    "save_checkpoint": "model.checkpoint",
    "models": "model.registry",
    "Model": "model.checkpoint",
    "ModelConfig": "model.config",
    "pretrain": "training.recipes",
    "finetune": "training.recipes",
    "prepare": "_prepare",
    "PrepareConfig": "_prepare",
    "info": "_info",
}
_ROOMS = ("data", "datasets", "deg", "evaluation", "genes", "interop", "model", "plots", "scan", "tasks", "training")

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
    from ._info import info
    from ._prepare import PrepareConfig, prepare
    from .client import Client
    from .model.checkpoint import Model, load_model, save_checkpoint
    from .model.config import ModelConfig
    from .model.registry import models
    from .tasks.annotate import annotate
    from .tasks.doublets import detect_doublets
    from .tasks.embed import embed, embed_file
    from .tasks.gene_map import gene_embedding, gene_neighbours, marker_map
    from .tasks.impute import impute, impute_file
    from .training.recipes import finetune, pretrain


def __getattr__(name: str) -> Any:
    # Rooms first: `scmamba.model` is the package even after something imported a name from it.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'scmamba' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
