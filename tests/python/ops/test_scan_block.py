"""The fast block returns the numbers of the plain one; it is trained through checkpoints and under autocast."""

from __future__ import annotations

import pytest
import torch

from scmamba.nn import bimamba as block_module
from scmamba.nn.config import ModelConfig
from scmamba.nn.scmamba import ScMamba
from scmamba.ops.cpu import matmul as products


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ScMamba(ModelConfig(n_genes=150, d_model=32, n_layer=3))


@pytest.fixture
def values():
    return torch.rand(2, 150, generator=torch.Generator().manual_seed(1)) * 3


def outcome(network, values):
    out = network.reconstruct(values)
    names = [n for n, p in network.named_parameters() if "mixer" in n or "norm" in n]
    params = dict(network.named_parameters())
    grads = torch.autograd.grad(out.square().mean(), [params[n] for n in names])
    return out.detach().double(), {n: g.double() for n, g in zip(names, grads)}


def truth(network, values):
    """The plain recurrence and torch's own norm, in float64."""
    network.double().backend = "reference"
    result = outcome(network, values.double())
    network.float().backend = None
    return result


def far(a, b):
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_training_like_the_plain_block(network, values, checkpoint):
    expected, gradients = truth(network, values)
    block_module.use_checkpointing(network, checkpoint)
    out, found = outcome(network, values)
    assert far(out, expected) <= 1e-5
    assert all(far(found[name], g) <= 1e-5 for name, g in gradients.items())


def test_inference_like_the_plain_block(network, values):
    expected, _ = truth(network, values)
    with torch.no_grad():
        assert far(network.reconstruct(values).double(), expected) <= 1e-5


def test_onednn_changes_nothing(network, values, monkeypatch):
    with torch.no_grad():
        plain = network.reconstruct(values)
        monkeypatch.setattr(products, "_onednn_is_faster", lambda: True)
        monkeypatch.setattr(products, "matrix_unit", lambda: False)
        torch.testing.assert_close(network.reconstruct(values), plain, rtol=1e-5, atol=1e-6)


def test_autocast_keeps_the_residual_and_the_state_in_float32(network, values):
    expected, _ = truth(network, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, residual = network.backbone.embed(values), None
        for layer in network.backbone.layers:
            hidden, residual = layer(hidden, residual)
            assert residual.dtype == torch.float32
        out = network.reconstruct(values)
    assert torch.isfinite(out).all() and far(out.double(), expected) <= 0.05
    out.float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_checkpointing_keeps_less(network, values):
    """The memory that the graph keeps, counted by autograd itself."""

    def kept() -> int:
        seen: dict[int, int] = {}

        def pack(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            network.reconstruct(values)
        return sum(seen.values())

    block_module.use_checkpointing(network, False)
    everything = kept()
    block_module.use_checkpointing(network, True)
    assert kept() < everything / 2
