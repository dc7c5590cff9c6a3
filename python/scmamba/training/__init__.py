"""Training: batches of cells, objectives, the trainer, pre-training and fine-tuning."""

from ._finetune import finetune, finetune_on
from ._pretrain import pretrain
from .batches import CellSource, SequenceConfig, make_batch, read_sources
from .trainer import TrainerConfig, fit

__all__ = [
    "CellSource",
    "SequenceConfig",
    "TrainerConfig",
    "finetune",
    "finetune_on",
    "fit",
    "make_batch",
    "pretrain",
    "read_sources",
]
