"""scMamba: a cell is a sequence of genes; embeddings, bidirectional Mamba layers, two heads (paper, Methods; spec "Model")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .block import Block, RMSNorm
from .config import ModelConfig


class Backbone(nn.Module):
    """Embeddings and layers; parameter names are those of the published code."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.expression_embedding = nn.Linear(1, config.d_model)
        self.gene_id_embedding = nn.Embedding(config.n_genes, config.d_model)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.d_model))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.d_model))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
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
            expression = torch.where(mask.unsqueeze(-1), self.mask_token.to(expression.dtype), expression)
        weight = self.gene_id_embedding.weight
        return expression + (weight if genes is None else nn.functional.embedding(genes, weight))

    def run(self, hidden: Tensor, backend: str | None = None) -> Tensor:
        """(B, L, D) embeddings -> (B, L, D) normalised output of the last layer."""
        residual = None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, backend)
        residual = hidden if residual is None else residual + hidden
        return self.norm_f(residual)


class ScMamba(nn.Module):
    """The network. Inputs are log1p(CP10k) of the genes in the model's order, (B, L) or a subset of them with ``genes``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backend: str | None = None
        self.backbone = Backbone(config)
        if config.reconstructs:
            self.regressor = nn.Linear(config.d_model, 1)
        if config.n_classes:
            # The published head: three [CLS] vectors side by side, one linear map, no bias.
            self.cls_head = nn.Linear(3 * config.d_model, config.n_classes, bias=False)

    def hidden(self, x: Tensor, mask: Tensor | None = None, genes: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, L, D), the normalised output at every gene."""
        return self.backbone.run(self.backbone.embed(x, mask, genes), self.backend)

    def reconstruct(self, x: Tensor, mask: Tensor | None = None, genes: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, L): predicted log1p(CP10k) at every position; meant for positions hidden by ``mask``."""
        return self.regressor(self.hidden(x, mask, genes)).squeeze(-1)

    def cell_embedding(self, x: Tensor, genes: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, D): mean over genes of the normalised output."""
        return self.hidden(x, None, genes).mean(dim=1)

    def classify(self, x: Tensor, genes: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, C) logits from [CLS] at the beginning, after L // 2 genes and at the end."""
        embedded = self.backbone.embed(x, None, genes)
        batch, length, _ = embedded.shape
        token = self.backbone.cls_token.to(embedded.dtype).expand(batch, 1, -1)
        middle = length // 2
        sequence = torch.cat([token, embedded[:, :middle], token, embedded[:, middle:], token], dim=1)
        out = self.backbone.run(sequence, self.backend)
        return self.cls_head(out[:, [0, middle + 1, length + 2]].flatten(1))

    def without_decay(self) -> set[str]:
        """Names of parameters no weight decay acts on: A_log, D, norms, biases, tokens (code; spec "Initialisation")."""
        free = ("A_log", "A_b_log", ".D", ".D_b", "norm.weight", "norm_f.weight", ".bias", "_token")
        return {name for name, _ in self.named_parameters() if name.endswith(free)}
