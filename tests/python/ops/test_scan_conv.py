"""The short convolution against torch's own conv1d and SiLU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from scmamba.ops import mamba_ssm_backend
from scmamba.ops.convolution import causal_conv1d
from scmamba.ops.normalization import add_rms_norm
from scmamba.utils.errors import BackendError


def expected(x, weight, bias, reverse, silu):
    """Channel-first conv1d of torch on the flipped sequence, in float64."""
    x = (x.flip(1) if reverse else x).transpose(1, 2)
    width = weight.shape[1]
    y = F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=weight.shape[0]).transpose(
        1, 2
    )
    y = y.flip(1) if reverse else y
    return F.silu(y) if silu else y


def leaves(batch, length, channels, width, dtype):
    g = torch.Generator().manual_seed(1)
    shapes = ((batch, length, channels), (channels, width), (channels,))
    return [torch.randn(*s, generator=g).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 1, 16, 4), (1, 1100, 37, 4), (2, 70, 200, 3), (1, 3, 16, 5), (1, 130, 16, 1)]
)
def test_like_torch(backend, reverse, silu, shape):
    results = []
    for function, dtype in ((causal_conv1d, torch.float32), (expected, torch.float64)):
        inputs = leaves(*shape, dtype)
        if function is causal_conv1d:
            out = causal_conv1d(*inputs, reverse=reverse, silu=silu, backend=backend)
        else:
            out = expected(*inputs, reverse, silu)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        out.backward(weights.to(dtype))
        results.append([out.detach().double(), *(t.grad.double() for t in inputs)])
    for found, truth in zip(*results):
        assert ((found - truth).abs().max() / truth.abs().max()).item() <= 5e-6


def test_half_of_a_wider_tensor():
    """The model convolves one half of the input projection: rows are not contiguous."""
    both = torch.randn(2, 80, 64, requires_grad=True)
    _, weight, bias = leaves(1, 1, 32, 4, torch.float32)
    out = causal_conv1d(both[..., :32], weight, bias)
    torch.testing.assert_close(
        out, expected(both[..., :32], weight, bias, False, True), rtol=1e-5, atol=1e-6
    )
    out.sum().backward()
    assert both.grad[..., 32:].abs().max() == 0 and both.grad[..., :32].abs().min() > 0


def test_other_types_and_empty_input():
    x, weight, bias = leaves(1, 9, 16, 4, torch.float64)
    torch.testing.assert_close(
        causal_conv1d(x, weight, bias), expected(x, weight, bias, False, True)
    )
    half = causal_conv1d(x.bfloat16(), weight.float(), bias.float())
    assert half.dtype == torch.bfloat16
    assert causal_conv1d(x[:0].float(), weight.float(), bias.float()).shape == (0, 9, 16)


@pytest.mark.parametrize("backend", [None, "cpu", "chunked", "reference"])
@pytest.mark.parametrize("cells", [0, 2])
def test_the_kernel_of_mamba_ssm_is_never_used_on_the_processor(backend, cells, monkeypatch):
    """It would fail there, or read the memory of another device; also without a cell."""
    monkeypatch.setattr(mamba_ssm_backend, "convolve", lambda *a: pytest.fail("on the processor"))
    x, weight, bias = leaves(cells, 5, 16, 4, torch.float32)
    options = {} if backend is None else {"backend": backend}
    out = causal_conv1d(x, weight, bias, **options)
    torch.testing.assert_close(
        out, expected(x, weight, bias, False, True) if cells else x, rtol=1e-5, atol=1e-6
    )


def test_wrong_shapes():
    x, weight, bias = leaves(1, 9, 16, 4, torch.float32)
    with pytest.raises(BackendError, match=r"weight \(E, W\)"):
        causal_conv1d(x, weight[:8], bias)


@pytest.mark.parametrize("width", [16, 256, 20])
@pytest.mark.parametrize("used", ["both", "normalised", "total"])
def test_add_rms_norm_like_torch(width, used):
    g = torch.Generator().manual_seed(3)
    shapes = ((2, 300, width), (2, 300, width), (width,))
    values = [torch.randn(*s, generator=g) for s in shapes]
    results = []
    for dtype in (torch.float32, torch.float64):
        hidden, residual, weight = (v.to(dtype).requires_grad_() for v in values)
        if dtype == torch.float32:
            out, total = add_rms_norm(hidden, residual, weight, 1e-5, backend="cpu")
        else:
            total = hidden + residual
            out = F.rms_norm(total, (width,), weight, 1e-5)
        loss = out.square().sum() * (used != "total") + (total**3).sum() * (used != "normalised")
        grads = torch.autograd.grad(loss, (hidden, residual, weight))
        results.append([t.detach().double() for t in (out, total, *grads)])
    for found, truth in zip(*results):
        assert ((found - truth).abs().max() / truth.abs().max().clamp_min(1e-30)).item() <= 5e-6
