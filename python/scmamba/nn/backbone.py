"""The stack of bidirectional Mamba blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .bimamba import BiMambaBlock, RMSNorm
from .config import ModelConfig


class Backbone(nn.Module):
    """Embeddings and layers; parameter names are those of the published code."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.expression_embedding = nn.Linear(1, config.d_model)
        self.gene_id_embedding = nn.Embedding(config.n_genes, config.d_model)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.d_model))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.d_model))
        self.layers = nn.ModuleList(BiMambaBlock(config) for _ in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.norm_eps)
        nn.init.normal_(self.gene_id_embedding.weight, std=0.02)
        nn.init.normal_(self.expression_embedding.weight, std=0.02)
        nn.init.zeros_(self.expression_embedding.bias)

    def embed(self, x: Tensor, mask: Tensor | None = None, genes: Tensor | None = None) -> Tensor:
        """(B, L) values -> (B, L, D): expression (or the mask token where ``mask``) plus gene embedding.

        ``genes`` names the positions present, (L,) for all cells or (B, L) per cell; ``None`` = every gene in order.
        """
        expression = self.expression_embedding(x.unsqueeze(-1))
        if mask is not None:
            expression = torch.where(
                mask.unsqueeze(-1), self.mask_token.to(expression.dtype), expression
            )
        weight = self.gene_id_embedding.weight
        result: Tensor = expression + (
            weight if genes is None else nn.functional.embedding(genes, weight)
        )
        return result

    def run(
        self,
        hidden: Tensor,
        backend: str | None = None,
        keep: Tensor | None = None,
        projected: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D) embeddings -> (B, L, D) normalized output of the last layer; ``keep`` (B, L) False = padding.

        ``projected`` is what the first layer's ``in_proj`` gives, where it is already known.
        """
        residual = None
        there = None if keep is None else keep.unsqueeze(-1).to(hidden.dtype)
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, backend, there, projected)
            projected = None
        residual = hidden if residual is None else residual + hidden
        result: Tensor = self.norm_f(residual)
        return result
