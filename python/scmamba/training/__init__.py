"""Training: batches of cells, objectives, the trainer, pre-training and fine-tuning."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from ._finetune import finetune, finetune_on
    from ._pretrain import pretrain
    from .batches import CellSource, SequenceConfig, make_batch, read_sources
    from .options import TrainingOptions
    from .trainer import TrainerConfig, fit

__all__ = [
    "CellSource",
    "SequenceConfig",
    "TrainerConfig",
    "TrainingOptions",
    "finetune",
    "finetune_on",
    "fit",
    "make_batch",
    "pretrain",
    "read_sources",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CellSource": "batches",
        "SequenceConfig": "batches",
        "TrainerConfig": "trainer",
        "TrainingOptions": "options",
        "finetune": "_finetune",
        "finetune_on": "_finetune",
        "fit": "trainer",
        "make_batch": "batches",
        "pretrain": "_pretrain",
        "read_sources": "batches",
    },
)
