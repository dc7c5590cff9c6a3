"""One layer: residual, RMSNorm and the bidirectional Mamba-1 mixer "v2" (paper, Methods; spec "Model")."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..ops.backends import Direction
from ..ops.convolution import causal_conv1d
from ..ops.cpu.matmul import linear
from ..ops.normalization import add_rms_norm
from ..ops.operator import selective_scan
from .config import ModelConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean taken in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Mixer(nn.Module):
    """Mamba-1 run over the genes in both directions, each with its own weights; the two outputs are added.

    Parameter names are those of the published code, so its checkpoints load as they are.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = config.d_inner, config.d_state, config.dt_rank
        self.bidirectional = config.bidirectional
        self.in_proj = nn.Linear(config.d_model, 2 * self.d_inner, bias=False)
        for suffix in self.suffixes:
            self._add_direction(suffix, config)
        self.out_proj = nn.Linear(self.d_inner, config.d_model, bias=False)
        # Kaiming-uniform over sqrt(layers): the residual stream keeps its variance however deep the model.
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(config.n_layer)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Name endings of the forward and the backward direction's weights."""
        return ("", "_b") if self.bidirectional else ("",)

    def _add_direction(self, suffix: str, config: ModelConfig) -> None:
        inner, state, rank = self.d_inner, self.d_state, self.dt_rank
        setattr(
            self,
            "conv1d" + suffix,
            nn.Conv1d(inner, inner, config.d_conv, groups=inner, padding=config.d_conv - 1),
        )
        setattr(self, "x_proj" + suffix, nn.Linear(inner, rank + 2 * state, bias=False))
        dt_proj = nn.Linear(rank, inner)
        nn.init.uniform_(dt_proj.weight, -(rank**-0.5), rank**-0.5)
        step = torch.exp(
            torch.rand(inner) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)
        ).clamp(min=1e-4)
        with torch.no_grad():
            dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step
        setattr(self, "dt_proj" + suffix, dt_proj)
        a_log = torch.log(torch.arange(1, state + 1, dtype=torch.float32)).repeat(inner, 1)
        setattr(self, "A_b_log" if suffix else "A_log", nn.Parameter(a_log))
        setattr(self, "D" + suffix, nn.Parameter(torch.ones(inner)))

    def forward(self, x: Tensor, backend: str | None = None, keep: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); where ``keep`` (B, L, 1) is 0 there is padding, which has no effect on other positions."""
        return self.mix(linear(x, self.in_proj.weight), backend, keep)

    def mix(
        self, projected: Tensor, backend: str | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """All that comes after ``in_proj``: (B, L, 2 E) -> (B, L, D)."""
        u, z = projected.chunk(2, dim=-1)
        directions = [self._direction(u, suffix, backend, keep) for suffix in self.suffixes]
        return linear(selective_scan(directions, z, backend=backend), self.out_proj.weight)

    def _direction(
        self, u: Tensor, suffix: str, backend: str | None, keep: Tensor | None
    ) -> Direction:
        conv, x_proj, dt_proj = (getattr(self, n + suffix) for n in ("conv1d", "x_proj", "dt_proj"))
        a_log = getattr(self, "A_b_log" if suffix else "A_log")
        # Padding must look like the end of the sequence: zeros into the convolution, and zeros into the state.
        u = causal_conv1d(
            u if keep is None else u * keep,
            conv.weight.squeeze(1),
            conv.bias,
            reverse=bool(suffix),
            backend=backend,
        )
        u = u if keep is None else u * keep
        dt, b, c = linear(u, x_proj.weight).split(
            [self.dt_rank, self.d_state, self.d_state], dim=-1
        )
        a = -torch.exp(a_log.double() if a_log.dtype == torch.float64 else a_log.float())
        skip = getattr(self, "D" + suffix)
        return Direction(
            u, dt, a, b, c, skip, dt_proj.bias, bool(suffix), delta_weight=dt_proj.weight
        )


class BiMambaBlock(nn.Module):
    """residual += previous output; normalize; mix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer = Mixer(config)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.checkpoint = False

    def forward(
        self,
        hidden: Tensor,
        residual: Tensor | None,
        backend: str | None = None,
        keep: Tensor | None = None,
        projected: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both (B, L, D); the residual stays in float32 (or float64) whatever precision the mixer runs in.

        With ``checkpoint`` the backward pass computes the layer again instead of keeping what is inside it. ``projected``: what the
        mixer's ``in_proj`` would give, where it was computed before.
        """
        if projected is not None:
            return self.mixer.mix(projected, backend, keep), hidden
        if self.checkpoint and torch.is_grad_enabled():
            result: tuple[Tensor, Tensor] = checkpoint(
                self._forward, hidden, residual, backend, keep, use_reentrant=False
            )
            return result
        return self._forward(hidden, residual, backend, keep)

    def _forward(
        self, hidden: Tensor, residual: Tensor | None, backend: str | None, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if residual is None:
            residual = hidden if hidden.dtype == torch.float64 else hidden.float()
            normed = self.norm(residual)
        else:
            normed, residual = add_rms_norm(
                hidden, residual, self.norm.weight, self.norm.eps, backend=backend
            )
        return self.mixer(normed, backend, keep), residual


def use_checkpointing(model: nn.Module, on: bool = True) -> None:
    """Keep only the layers' inputs during training: about half the memory for a third more time."""
    for module in model.modules():
        if isinstance(module, BiMambaBlock):
            module.checkpoint = on
