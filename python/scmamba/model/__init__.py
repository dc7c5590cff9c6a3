"""The network and its checkpoints."""

from .checkpoint import Model, load_model, save_checkpoint
from .config import ModelConfig
from .network import ScMamba
from .published import read_published
from .registry import fetch_model, model_folder, models, pack_model, registry

__all__ = [
    "Model",
    "ModelConfig",
    "ScMamba",
    "fetch_model",
    "load_model",
    "model_folder",
    "models",
    "pack_model",
    "read_published",
    "registry",
    "save_checkpoint",
]
