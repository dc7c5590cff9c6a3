"""The network in torch modules."""

from .config import ModelConfig
from .scmamba import ScMamba

__all__ = [
    "ModelConfig",
    "ScMamba",
]
