"""The shape of a network: everything needed to build it before its weights are read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..utils.errors import CheckpointError


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a network, and the description of its checkpoint.

    Sizes default to those of the published model (paper, Methods).

    Attributes
    ----------
    n_genes
        Genes of the vocabulary, the length L of a whole cell.
    d_model
        Width D of the network.
    n_layer
        Number of bidirectional Mamba layers.
    d_state
        States per channel of the selective scan.
    d_conv
        Width of the causal convolution, in genes.
    expand
        Channels of the scan per ``d_model``.
    dt_rank
        Rank of the projection of the step size; 0 means ``ceil(d_model / 16)``.
    bidirectional
        Whether there is a second set of scan weights for the reversed sequence (the "v2" mixer).
    n_classes
        Outputs of the classification head; 0 for none.
    pools
        Whether that head also reads the cell's embedding, the mean over its genes, beside the three [CLS] (as published).
    reconstructs
        Whether there is a reconstruction head.
    rates
        Whether there is a rate head, which predicts the frequency of every gene from the cell's embedding.
    norm_eps
        Added to the mean square in RMSNorm.
    reads
        ``"all"``: a cell is every gene of the vocabulary, undetected and unmeasured ones as zeros, as in the published code.
        ``"expressed"``: a cell is the genes it expresses and those that are masked, in the same order; a tenth of the length,
        hence of the cost, and genes that were not measured have no position.
    name
        Name of the model.
    about
        Further facts about the model, kept in ``config.json``.

    Raises
    ------
    CheckpointError
        A size is below 1, or ``reads`` is unknown.

    Examples
    --------
    >>> from scmamba import ModelConfig
    >>> config = ModelConfig(n_genes=19306)
    >>> config.d_inner, config.dt_rank
    (512, 16)
    """

    n_genes: int
    d_model: int = 256
    n_layer: int = 6
    d_state: int = 16
    d_conv: int = 4
    expand: float = 2
    dt_rank: int = 0
    bidirectional: bool = True
    n_classes: int = 0
    pools: bool = False
    reconstructs: bool = True
    rates: bool = False
    norm_eps: float = 1e-5
    reads: str = "all"
    name: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dt_rank == 0:
            object.__setattr__(self, "dt_rank", math.ceil(self.d_model / 16))
        if self.reads not in ("all", "expressed"):
            raise CheckpointError(f"reads is '{self.reads}'; it must be 'all' or 'expressed'.")
        for name in ("n_genes", "d_model", "n_layer", "d_state", "d_conv", "d_inner", "dt_rank"):
            if int(getattr(self, name)) < 1:
                raise CheckpointError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def d_inner(self) -> int:
        """Channels of the scan, E."""
        return int(self.expand * self.d_model)

    def write(self, path: Path) -> None:
        """Write ``config.json``.

        Parameters
        ----------
        path
            The file to write.
        """
        path.write_text(json.dumps({"format": 1, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """Read ``config.json``.

        Parameters
        ----------
        path
            The file.

        Returns
        -------
        The configuration.

        Raises
        ------
        CheckpointError
            The file is missing or not JSON, has another format, or has settings that this version does not have.
        """
        try:
            stored = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} is missing or not JSON; the checkpoint is incomplete. Fetch or convert it again."
            ) from error
        if stored.pop("format", None) != 1:
            raise CheckpointError(
                f"{path} is of a format this version does not read; update scmamba."
            )
        known = {f.name for f in fields(cls)}
        if unknown := set(stored) - known:
            raise CheckpointError(
                f"{path} has settings that this version does not have ({', '.join(sorted(unknown))}); update scmamba."
            )
        return cls(**stored)
