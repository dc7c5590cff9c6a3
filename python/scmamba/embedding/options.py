"""Options of :func:`scmamba.embed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..utils.options import Options, option


@dataclass(frozen=True)
class EmbedOptions(Options):
    """Every scalar option of :func:`scmamba.embed`, with its default, help and range."""

    verb: ClassVar[str] = "embed"

    layer: str | None = option(None, "Layer to read; X if not given.")
    gene_column: str | None = option(
        None, "Column of var with gene names; the best matching one is used if not given."
    )
    batch_size: int | None = option(
        None,
        "Cells computed at once; chosen by memory if not given.",
        minimum=1,
        maximum=65_536,
        unit="cells",
    )
    device: str | None = option(None, "cpu, cuda, cuda:1, ...; the GPU if there is one.")
    backend: str | None = option(None, "Backend of the selective scan (see scmamba info).")
    force: bool = option(False, "Continue although few of the model's genes were measured.")
    overwrite: bool = option(False, "Replace an existing embedding or file of the same name.")
    verbose: bool = option(True, "Print messages and progress.")
