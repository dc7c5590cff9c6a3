"""The Triton backend in Triton's interpreter; run by test_scan_triton.py in a separate process."""

from __future__ import annotations

import pytest
import torch
from scan_cases import compare, make, run

from scmamba.ops.backends import available_backends, choose_backend
from scmamba.ops.operator import selective_scan

CASES = [
    pytest.param((2, 1, 16, 1), (False, True), True, -3.0, id="one step, one state"),
    pytest.param((2, 18, 19, 8), (False, True), True, -3.0, id="odd width, two chunks"),
    pytest.param((1, 33, 24, 16), (True,), False, -3.0, id="reversed, no gate, three chunks"),
    pytest.param((1, 19, 16, 5), (False,), True, 8.0, id="odd number of states, large dt"),
    pytest.param((1, 9, 20, 64), (False, True), True, -3.0, id="64 states"),
    pytest.param((1, 18, 64, 16), (False, True), True, -3.0, id="whole blocks of channels"),
    pytest.param((1, 5, 40, 100), (False, True), False, -3.0, id="100 states, more than lanes"),
    pytest.param((1, 3, 200, 2), (True, False), True, 60.0, id="width 200, very large dt"),
    pytest.param((1, 16, 16, 1), (True,), True, -3.0, id="exactly one chunk, one state"),
]


@pytest.mark.parametrize(
    "shape, reverse, gated, shift", [c.values for c in CASES], ids=[c.id for c in CASES]
)
def test_like_the_reference(shape, reverse, gated, shift):
    directions, z = make(*shape, reverse=reverse, shift=shift)
    z = z if gated else None
    compare(run(directions, z, "triton"), run(directions, z, "reference", torch.float64))


def test_available_in_the_interpreter():
    assert available_backends()["triton"] == "available"
    assert choose_backend(torch.zeros(1)) == "cpu"


@pytest.mark.parametrize("shape", [(0, 7, 16, 4), (2, 0, 16, 4)], ids=["no cell", "no position"])
def test_empty(shape):
    found = run(*make(*shape), "triton")
    assert found["out"].shape == shape[:3]
    assert all(
        torch.equal(found[n], torch.zeros_like(found[n])) for n in ("dz", "du[0]", "ddelta[1]")
    )


def channel_first(x: torch.Tensor) -> torch.Tensor:
    """The same values, those of one channel beside one another."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def test_awkward_memory():
    """Channel-first, sliced and expanded inputs; half of a wider gate."""
    directions, z = make(2, 18, 20, 4)
    first, second = directions
    halves = torch.cat([first.delta, z], -1)
    awkward = [
        first._replace(u=channel_first(first.u), delta=halves[..., :20]),
        second._replace(B=second.B[:, :1].expand_as(second.B), u=second.u[:1].expand(2, -1, -1)),
    ]
    turned = [d._replace(**{n: channel_first(getattr(d, n)) for n in "BC"}) for d in directions]
    with torch.no_grad():
        for given, gate in ((awkward, halves[..., 20:]), (turned, channel_first(z))):
            found = selective_scan(given, gate, backend="triton")
            truth = selective_scan(given, z, backend="reference")
            torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["u", "delta", "B", "z"])
def test_nan(name):
    directions, z = make(2, 20, 37, 4)
    if name == "z":
        z[1, 9, 5] = torch.nan
    else:
        poisoned = getattr(directions[0], name).clone()
        poisoned[1, 9, 2] = torch.nan
        directions[0] = directions[0]._replace(**{name: poisoned})
    with torch.no_grad():
        found = selective_scan(directions, z, backend="triton")
        truth = selective_scan(directions, z, backend="reference")
    assert torch.equal(found.isnan(), truth.isnan())


def test_half_precision_gradients():
    """Every gradient has the type of its tensor, and is as close to the reference as that type allows."""
    directions, z = make(1, 18, 20, 8)
    found = []
    for backend in ("triton", "reference"):
        gate = z.bfloat16().requires_grad_()
        leaves = []
        for d in directions:
            half = d._replace(**{n: getattr(d, n).bfloat16() for n in ("u", "delta", "B", "C")})
            leaves.append([t.detach().clone().requires_grad_() for t in half.tensors])
        out = selective_scan(
            [d._replace(**dict(zip(d._fields, x))) for d, x in zip(directions, leaves)],
            gate,
            backend=backend,
        )
        out.float().square().sum().backward()
        found.append([gate.grad, *(t.grad for x in leaves for t in x)])
    for a, b in zip(*found):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=3e-2 * b.abs().max().item())


def test_half_precision():
    directions, z = make(1, 18, 32, 16)
    half = [
        d._replace(**{n: getattr(d, n).bfloat16() for n in ("u", "delta", "B", "C")})
        for d in directions
    ]
    with torch.no_grad():
        found = selective_scan(half, z.bfloat16(), backend="triton")
        truth = selective_scan(half, z.bfloat16(), backend="reference")
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), truth.float(), rtol=2e-2, atol=2e-2)
