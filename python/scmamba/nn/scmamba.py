"""scMamba: a cell is a sequence of genes; embeddings, bidirectional Mamba layers, heads (paper, Methods)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .config import ModelConfig
from .projection_cache import InputProjectionCache, is_worthwhile


class ScMamba(nn.Module):
    """The network: embeddings of genes and values, bidirectional Mamba layers, and heads (paper, Methods).

    Parameters
    ----------
    config
        Its sizes.

    Examples
    --------
    >>> import torch
    >>> from scmamba.nn import ModelConfig, ScMamba
    >>> network = ScMamba(ModelConfig(n_genes=50, d_model=16, n_layer=1)).eval()
    >>> with torch.no_grad():
    ...     out = network.reconstruct(torch.rand(2, 50))
    >>> tuple(out.shape)
    (2, 50)
    """

    gene_log_rate: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backend: str | None = None
        self.lookup: bool | None = (
            None  # the first layer's projection from a table; None: where ``is_worthwhile``
        )
        self.first = InputProjectionCache()
        self.backbone = Backbone(config)
        if config.reconstructs:
            self.regressor = nn.Linear(config.d_model, 1)
        if config.rates:
            # Tied to the gene embedding: one vector per gene for its effect on others and for its own frequency.
            self.rate_head = nn.Linear(config.d_model, config.d_model, bias=False)
            nn.init.normal_(self.rate_head.weight, std=config.d_model**-0.5)
            self.register_buffer(
                "gene_log_rate", torch.full((config.n_genes,), -math.log(config.n_genes))
            )
        if config.n_classes:
            # The published head: three [CLS] vectors side by side, one linear map, no bias.
            self.cls_head = nn.Linear(3 * config.d_model, config.n_classes, bias=False)
            if config.pools:
                self.mean_head = nn.Linear(config.d_model, config.n_classes)

    def hidden(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        genes: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Run all layers.

        Parameters
        ----------
        x
            (B, l) log1p(CP10k) of genes in the model's order.
        mask
            (B, l) bool, ``True`` where the value is masked.
        genes
            (l,) or (B, l) positions of these genes in the vocabulary; ``None`` for all genes.
        keep
            (B, l) bool, ``False`` at padded positions; ``None`` if nothing is padded.

        Returns
        -------
        (B, l, D), the normalized output at every gene.
        """
        return self._run(self.backbone.embed(x, mask, genes), x, mask, genes, keep)

    def _run(
        self,
        embedded: Tensor,
        values: Tensor,
        mask: Tensor | None,
        rows: Tensor | None,
        keep: Tensor | None,
    ) -> Tensor:
        """The layers; the first one's projection from a table (see :class:`InputProjectionCache`) where that is faster."""
        use = not self.training and (
            is_worthwhile(values.device, self.config.reads) if self.lookup is None else self.lookup
        )
        projected = (
            self.first(self.backbone, embedded, values, mask, rows, self.backend) if use else None
        )
        return self.backbone.run(embedded, self.backend, keep, projected)

    def train(self, mode: bool = True) -> ScMamba:
        """Switch between training and evaluation.

        Parameters
        ----------
        mode
            Whether to train. Training discards the table of the first layer (see :class:`InputProjectionCache`).

        Returns
        -------
        The network.
        """
        if mode:
            self.first.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScMamba:
        self.first.forget()  # what moves or converts the weights
        result: ScMamba = super()._apply(fn, recurse)
        return result

    def reconstruct(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        genes: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Predict the values at every position; meant for masked ones.

        Parameters
        ----------
        x
            (B, l) log1p(CP10k) of genes in the model's order.
        mask
            (B, l) bool, ``True`` where the value is masked.
        genes
            (l,) or (B, l) positions of these genes in the vocabulary; ``None`` for all genes.
        keep
            (B, l) bool, ``False`` at padded positions; ``None`` if nothing is padded.

        Returns
        -------
        (B, l) predicted log1p(CP10k).
        """
        result: Tensor = self.regressor(self.hidden(x, mask, genes, keep)).squeeze(-1)
        return result

    def cell_embedding(
        self, x: Tensor, genes: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Embed cells: mean over genes of the normalized output.

        Parameters
        ----------
        x
            (B, l) log1p(CP10k) of genes in the model's order.
        genes
            (l,) or (B, l) positions of these genes in the vocabulary; ``None`` for all genes.
        keep
            (B, l) bool, ``False`` at padded positions; ``None`` if nothing is padded.

        Returns
        -------
        (B, D) embeddings.
        """
        out = self.hidden(x, None, genes, keep)
        if keep is None:
            return out.mean(dim=1)
        there = keep.unsqueeze(-1).to(out.dtype)
        return (out * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)

    def log_ratio(
        self, x: Tensor, genes: Tensor | None, keep: Tensor | None, decoded: Tensor
    ) -> Tensor:
        """Predict by which factor genes are more, or less, frequent in a cell than on average.

        Parameters
        ----------
        x
            (B, l) log1p(CP10k) of genes in the model's order.
        genes
            (l,) or (B, l) positions of these genes in the vocabulary; ``None`` for all genes.
        keep
            (B, l) bool, ``False`` at padded positions; ``None`` if nothing is padded.
        decoded
            (m,) positions in the vocabulary of the genes to predict.

        Returns
        -------
        (B, m) natural logarithms of the factors, up to a constant per cell.
        """
        cell = self.rate_head(self.cell_embedding(x, genes, keep))
        result: Tensor = (
            cell @ nn.functional.embedding(decoded, self.backbone.gene_id_embedding.weight).T
        )
        return result

    def classify(
        self, x: Tensor, genes: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Classify cells by [CLS] at the beginning, after half of the cell's genes and at its end (and by the genes' mean).

        Parameters
        ----------
        x
            (B, l) log1p(CP10k) of genes in the model's order.
        genes
            (l,) or (B, l) positions of these genes in the vocabulary; ``None`` for all genes.
        keep
            (B, l) bool, ``False`` at padded positions; ``None`` if nothing is padded.

        Returns
        -------
        (B, C) logits.
        """
        tokens, mean = self.classified(x, genes, keep)
        result: Tensor = (
            self.cls_head(tokens) if mean is None else self.cls_head(tokens) + self.mean_head(mean)
        )
        return result

    def classified(
        self, x: Tensor, genes: Tensor | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the input of the classification head.

        Parameters
        ----------
        x
            (B, l) log1p(CP10k) of genes in the model's order.
        genes
            (l,) or (B, l) positions of these genes in the vocabulary; ``None`` for all genes.
        keep
            (B, l) bool, ``False`` at padded positions; ``None`` if nothing is padded.

        Returns
        -------
        (B, 3 D), the outputs at the three [CLS] side by side; and, if the head ``pools``, (B, D), the mean over the genes, else ``None``.
        """
        embedded = self.backbone.embed(x, None, genes)
        batch, length, width = embedded.shape
        count = (
            torch.full((batch, 1), length, device=x.device)
            if keep is None
            else keep.sum(dim=1, keepdim=True)
        )
        token = self.backbone.cls_token.to(embedded.dtype).expand(batch, 1, -1)
        # Position t of the new sequence comes from gene t-1, t-2 or the token, which stands behind the last gene.
        t, middle = torch.arange(length + 3, device=x.device), count // 2
        source = torch.where(t <= middle, t - 1, t - 2)
        is_token = (t == 0) | (t == middle + 1) | (t >= count + 2)
        source = torch.where(is_token, length, source)
        sequence = torch.cat([embedded, token], dim=1).gather(
            1, source.unsqueeze(-1).expand(-1, -1, width)
        )
        if genes is None:
            genes = torch.arange(length, device=x.device)
        rows = torch.cat(
            [genes.expand(batch, -1), genes.new_full((batch, 1), self.config.n_genes)], dim=1
        ).gather(1, source)
        values = torch.cat([x, x.new_zeros(batch, 1)], dim=1).gather(1, source)
        out = self._run(sequence, values, None, rows, None if keep is None else t <= count + 2)
        tokens = torch.cat([torch.zeros_like(count), middle + 1, count + 2], dim=1)
        # (B, 1, L) by (B, L, D), so that no second (B, L, D) is made.
        mean = (
            ((~is_token).to(out.dtype).unsqueeze(1) @ out).squeeze(1) / count.clamp(min=1)
            if self.config.pools
            else None
        )
        return out.gather(1, tokens.unsqueeze(-1).expand(-1, -1, width)).flatten(1), mean

    def without_decay(self) -> set[str]:
        """Names of parameters without weight decay: A_log, D, norms, biases, tokens."""
        free = ("A_log", "A_b_log", ".D", ".D_b", "norm.weight", "norm_f.weight", ".bias", "_token")
        return {name for name, _ in self.named_parameters() if name.endswith(free)}


def pack(
    x: Tensor, mask: Tensor | None, genes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cut cells down to what a model of ``reads="expressed"`` reads: non-zero values and masked positions.

    Parameters
    ----------
    x
        (B, L) log1p(CP10k).
    mask
        (B, L) bool, masked positions; ``None`` for none.
    genes
        (L,) positions in the vocabulary; ``None`` for all genes.

    Returns
    -------
    (B, l) values, mask, genes, keep (``False`` at padded positions) and the column of ``x`` each position came from; l is the
    longest row.
    """
    read = x != 0 if mask is None else (x != 0) | mask
    length = max(1, int(read.sum(dim=1).max())) if len(x) else 1
    row, column = read.nonzero(as_tuple=True)
    place = (read.cumsum(dim=1) - 1)[row, column]
    columns = torch.zeros(len(x), length, dtype=torch.long, device=x.device)
    keep = torch.zeros(len(x), length, dtype=torch.bool, device=x.device)
    columns[row, place], keep[row, place] = column, True
    hidden = torch.zeros_like(keep) if mask is None else mask.gather(1, columns) & keep
    values = x.gather(1, columns) * keep
    return values, hidden, columns if genes is None else genes[columns], keep, columns
