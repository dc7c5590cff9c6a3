"""Hyperparameters of training, each declared once for the trainer, recipes, YAML files and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..utils.options import Options, option


@dataclass(frozen=True)
class OptimizerOptions(Options):
    """The optimizer, the size of a step, and what is kept of a run.

    A step of P processes reads ``batch_size * accumulate * P`` cells. The learning rate rises to ``lr`` during the first
    ``warmup`` of the steps and falls along a cosine to ``final_lr * lr``.
    """

    verb: ClassVar[str] = "training"

    batch_size: int = option(16, "Cells a process reads at once.", minimum=1, unit="cells")
    accumulate: int = option(1, "Batches that make one optimizer step.", minimum=1)
    lr: float = option(1e-3, "Peak learning rate.", minimum=0)
    final_lr: float = option(
        0.1, "Learning rate at the end, as a fraction of the peak.", minimum=0, maximum=1
    )
    warmup: float = option(
        0.01, "Fraction of the steps with a rising learning rate.", minimum=0, maximum=1
    )
    weight_decay: float = option(0.1, "Weight decay of AdamW.", minimum=0)
    clip: float = option(1.0, "Gradients are scaled down to this norm.", minimum=0)
    ema: float = option(
        0.0,
        "Decay of a running mean of the weights, which is kept in place of the last weights; 0 for none.",
        minimum=0,
        maximum=1,
    )
    seed: int = option(0, "Seed; the same seed gives the same weights (on a CPU, bit for bit).")
    save_every: int = option(200, "Steps between saved states and validations.", minimum=1)
    keep: int = option(3, "Number of saved states that are kept.", minimum=1)


@dataclass(frozen=True)
class MaskingOptions(Options):
    """Which values of a cell are masked, and how many genes of it are read."""

    verb: ClassVar[str] = "training"

    mask_nonzero: float = option(
        0.15, "Probability that a non-zero value is masked.", minimum=0, maximum=1
    )
    mask_zero: float = option(0.0, "Probability that a zero is masked.", minimum=0, maximum=1)
    genes_per_step: int = option(
        0,
        "Maximum number of expressed genes of a cell, a random subset if it has more; 0 for all. "
        "Only for models that read expressed genes.",
        minimum=0,
        unit="genes",
    )


@dataclass(frozen=True)
class TrainingOptions(OptimizerOptions, MaskingOptions):
    """Every hyperparameter of ``scmamba pretrain`` and ``scmamba finetune``; defaults are those of the paper's pre-training.

    See :data:`scmamba.training.config.RECIPES` for the values of each recipe.
    """

    epochs: float = option(2.0, "Passes over the data.", minimum=0)
    steps: int = option(0, "Optimizer steps, in place of epochs; 0 to use epochs.", minimum=0)
    precision: str = option(
        "auto",
        "Number format: auto is 16 on a GPU and 32 elsewhere.",
        choices=("auto", "32", "bf16", "16"),
    )
    d_model: int = option(256, "Width of the network (pre-training).", minimum=1)
    layers: int = option(6, "Layers of the network (pre-training).", minimum=1)
    reads: str = option(
        "all",
        "Genes the network reads: all, as published, or the expressed ones, a tenth of the length (pre-training).",
        choices=("all", "expressed"),
    )
    rates: bool = option(
        False,
        "Give the network a rate head, which imputation by rates and nearest neighbors needs and fine-tuning for imputation trains "
        "(pre-training).",
    )
    balance: float = option(
        0.0,
        "Weights of classes: 0 gives every cell the same weight, 1 every class.",
        minimum=0,
        maximum=1,
    )
    freeze: bool = option(False, "Train only the classification head and the [CLS] token.")
    probe: bool = option(
        False, "Initialize the classification head by a linear probe of the cell embeddings."
    )
    doublet_recipe: str = option(
        "mean",
        "How the counts of two cells become those of a simulated doublet.",
        choices=("mixed", "sum", "mean"),
    )
    doublet_fraction: float = option(
        0.1, "Simulated doublets per single cell.", minimum=0, exclusive=True
    )
    min_total: float = option(200, "Minimum total counts of a cell.", minimum=0, unit="counts")
    above: float = option(
        0, "Train on cells with more total counts than this; 0 for no limit.", minimum=0
    )
    min_donor_cells: int = option(
        200, "Minimum number of cells of a donor.", minimum=0, unit="cells"
    )


@dataclass(frozen=True)
class FinetuneOnOptions(Options):
    """Options of :func:`scmamba.training.finetune_on`, the fine-tuning that R and the server offer."""

    verb: ClassVar[str] = "finetune_on"

    steps: int = option(1000, "Optimizer steps of 16 cells.", minimum=1)
    name: str | None = option(None, "Name of the new model. Default: that of the first model.")
    label_key: str | None = option(
        None, "Column with cell types: train a classifier of these types instead of imputation."
    )
    donor_key: str | None = option(
        None, "Column with donors: the classifier is calibrated on held-out donors."
    )
    seed: int = option(0, "Seed of weights, batches and masks.", minimum=0)
    force: bool = option(False, "Continue although few genes are shared with the vocabulary.")
