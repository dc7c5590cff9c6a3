"""The network and its checkpoints."""

from .checkpoint import Model, load_model, models, save_checkpoint
from .config import ModelConfig
from .network import ScMamba
from .published import read_published

__all__ = ["Model", "ModelConfig", "ScMamba", "load_model", "models", "read_published", "save_checkpoint"]
