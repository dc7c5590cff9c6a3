"""The first layer's projection of a cell, looked up instead of multiplied: exact, for answers without gradients."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.cpu.matmul import matrix_unit
from ..ops.embedding_lookup import lookup
from .bimamba import BiMambaBlock

if TYPE_CHECKING:
    from .backbone import Backbone

#: No table is kept that would be larger.
LARGEST = 400_000_000  # bytes


class InputProjectionCache:
    """``in_proj(norm(embedding))`` of the first layer from a table with a row per gene.

    An embedded position is E_g + b + x w (a gene and its value), E_g + m (a hidden value) or the [CLS] token. RMSNorm divides it by one
    number, its r, and multiplies it by fixed weights, and ``in_proj`` is linear: the projection is (P_g + x q) / r or (P_g + p) / r. P, q
    and p depend on the weights alone; r is taken from the embedded position itself, which the residual stream needs anyway.

    P has ``n_genes + 1`` rows ([CLS] is the last) of ``2 d_inner`` float32: 79 MB for the published network, 20 MB for ``brain-mini``; none
    larger than ``LARGEST`` is made. It is made at the first answer, kept, and made again when a weight it came from has changed:
    another tensor, or the same one written to. Torch counts what is written to a parameter, but not what is written through ``.data`` or
    an array that shares its memory: who does that calls :meth:`forget`. ``ScMamba.train()`` does too, so a training loop need not.

    It pays where the product it replaces is slow (``benchmarks/model.py --lookup``, ``benchmarks/results/lookup.txt``): it is the default
    on processors without a matrix unit only; ``ScMamba.lookup`` decides by hand. The GPU has not been measured.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[tuple[Any, ...], list[Tensor], tuple[Tensor, Tensor, Tensor]] | None = (
            None
        )

    def __reduce__(self) -> tuple[type[InputProjectionCache], tuple[()]]:
        """A copy, or what is read back from a file, starts without a table."""
        return InputProjectionCache, ()

    def forget(self) -> None:
        """Give the table's memory back; the next answer makes it again."""
        with self._lock:
            self._made = None

    def __call__(
        self,
        backbone: Backbone,
        embedded: Tensor,
        values: Tensor,
        masked: Tensor | None,
        rows: Tensor | None,
        backend: str | None,
    ) -> Tensor | None:
        """What the first layer's ``in_proj`` gives for ``embedded`` (B, l, D), or ``None`` where it must be multiplied.

        ``values`` and ``masked`` (B, l); ``rows`` (B, l), (l,) or ``None`` the genes, ``n_genes`` for [CLS].
        """
        layer = cast(BiMambaBlock, backbone.layers[0])
        sources = [
            backbone.gene_id_embedding.weight,
            backbone.expression_embedding.weight,
            backbone.expression_embedding.bias,
            backbone.mask_token,
            backbone.cls_token,
            layer.norm.weight,
            layer.mixer.in_proj.weight,
        ]
        size = 4 * (len(sources[0]) + 1) * len(sources[-1])
        if (
            size > LARGEST
            or embedded.shape[:2] != values.shape
            or any(t.dtype != torch.float32 for t in (embedded, *sources))
        ):
            return None
        if any(type(t) is not torch.nn.Parameter or t.is_inference() for t in sources):
            return None  # changes of these tensors are not counted
        if (
            torch.is_grad_enabled()
            or torch.is_autocast_enabled(embedded.device.type)
            or torch.compiler.is_compiling()
        ):
            return None
        table, slope, hiding = self._table(sources)
        rows = rows if rows is None else rows.expand(values.shape).long()
        masked = masked if masked is None else masked.expand(values.shape)
        return lookup(
            embedded, table, rows, values, slope, masked, hiding, layer.norm.eps, backend=backend
        )

    def _table(self, sources: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """P, q and p for the weights as they are now; threads wait for the one that makes them."""
        state = tuple((t.data_ptr(), t._version, t.device) for t in sources)
        with self._lock:
            if self._made is None or self._made[0] != state:
                self._made = None  # its memory first
                # With the table go its sources, so that no other tensor can get their addresses.
                self._made = state, [t.detach() for t in sources], _products(*sources)
            return self._made[2]


def is_worthwhile(device: torch.device, reads: str) -> bool:
    """Whether the table is used if ``lookup`` is not set; a rule and not a measurement, for the same digits every time.

    A cell of its expressed genes is a tenth of the table: one or two such cells would not pay for it.
    """
    return device.type == "cpu" and reads == "all" and not matrix_unit()


@torch.no_grad()
def _products(
    genes: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor,
    token: Tensor,
    norm: Tensor,
    into: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """P, q and p; by torch's own product, ten times closer than the matrix unit's."""
    rows = torch.cat([genes + bias, token[0]])
    return (
        F.linear(rows * norm, into),
        into @ (weight[:, 0] * norm),
        into @ ((mask.flatten() - bias) * norm),
    )
