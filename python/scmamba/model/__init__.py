"""The network and its checkpoints."""

from ..nn.config import ModelConfig
from ..nn.scmamba import ScMamba
from .checkpoint import Model, load_model, save_checkpoint
from .convert import read_published
from .hub import fetch_model, list_models, model_folder, pack_model, registry
from .huggingface import fetch_from_hub, upload_model

__all__ = [
    "Model",
    "ModelConfig",
    "ScMamba",
    "fetch_from_hub",
    "fetch_model",
    "list_models",
    "load_model",
    "model_folder",
    "pack_model",
    "read_published",
    "registry",
    "save_checkpoint",
    "upload_model",
]
