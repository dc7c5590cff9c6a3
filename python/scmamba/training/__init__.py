"""One loop, a few recipes: pre-train, fine-tune, adapt to somebody's own cells."""

from .adapt import adapt
from .loop import LoopConfig, fit
from .recipes import finetune, finetune_on, pretrain
from .sequences import SequenceConfig, Source, draw_batch, read_sources

__all__ = ["LoopConfig", "SequenceConfig", "Source", "adapt", "draw_batch", "finetune", "finetune_on", "fit", "pretrain", "read_sources"]
