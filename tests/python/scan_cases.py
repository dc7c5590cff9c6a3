"""Shared by the tests of the scan: random inputs, outputs with all gradients, and tolerances."""

from __future__ import annotations

import torch

from scmamba.ops.backends import Direction
from scmamba.ops.operator import selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def make(batch, length, channels, states, reverse=(False, True), shift=-3.0, seed=0):
    """Random inputs in float32 (float64 then sees the same numbers); B and C are slices."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    directions = []
    for back in reverse:
        rows = normal(batch, length, 2 * states + 3)
        rates = -0.1 - 4 * torch.rand(channels, states, generator=g)
        directions.append(
            Direction(
                normal(batch, length, channels),
                normal(batch, length, channels) + shift,
                rates,
                rows[..., 3 : 3 + states],
                rows[..., 3 + states :],
                normal(channels),
                0.1 * normal(channels),
                back,
            )
        )
    return directions, normal(batch, length, channels)


def run(directions, z, backend, dtype=torch.float32):
    """Output and all gradients of a weighted sum of it, as float64."""
    leaves = [
        [t.to(dtype).detach().clone().requires_grad_() for t in d.tensors] for d in directions
    ]
    gate = None if z is None else z.to(dtype).detach().clone().requires_grad_()
    out = selective_scan(
        [Direction(*x, d.reverse) for x, d in zip(leaves, directions)], gate, backend=backend
    )
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.device)
    out.backward(weights.to(out.dtype))
    found = {"out": out.detach()} if gate is None else {"out": out.detach(), "dz": gate.grad}
    for i, x in enumerate(leaves):
        found.update({f"d{name}[{i}]": t.grad for name, t in zip(NAMES, x)})
    return {name: x.double() for name, x in found.items()}


def compare(found, truth, output=1e-6, gradient=1e-5):
    for name, x in truth.items():
        scale = x.abs().max().clamp_min(1e-30)
        error = ((found[name] - x).abs().max() / scale).item()
        assert error <= (output if name == "out" else gradient), f"{name}: {error:.1e}"
