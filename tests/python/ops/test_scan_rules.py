"""The scan's plain parts against loops in numpy, refused input, and the distribution of work."""

from __future__ import annotations

import os
import threading

import numpy as np
import plain_network as plain
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from scmamba.ops.backends import Direction, available_backends, choose_backend
from scmamba.ops.convolution import causal_conv1d
from scmamba.ops.cpu import matmul as products
from scmamba.ops.cpu import memory as _memory
from scmamba.ops.cpu import pool as _pool
from scmamba.ops.cpu.matmul import linear
from scmamba.ops.embedding_lookup import lookup
from scmamba.ops.normalization import add_rms_norm
from scmamba.ops.operator import selective_scan
from scmamba.utils.errors import BackendError


def direction(batch=2, length=13, channels=6, states=3, reverse=False, seed=0) -> Direction:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    rows, states_ = normal(batch, length, channels), (batch, length, states)
    return Direction(
        rows,
        normal(batch, length, channels) - 1,
        -normal(channels, states).exp(),
        normal(*states_),
        normal(*states_),
        normal(channels),
        normal(channels),
        reverse,
    )


def looped(d: Direction) -> np.ndarray:
    u, delta, a, b, c, skip, bias = (t.numpy() for t in d.tensors)
    turn = slice(None, None, -1) if d.reverse else slice(None)
    out = [
        plain.selective_scan(
            u[i][turn], plain.softplus(delta[i] + bias)[turn], a, b[i][turn], c[i][turn], skip
        )[turn]
        for i in range(len(u))
    ]
    return np.stack(out)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_the_recurrence_is_the_loop_in_numpy(backend):
    forward, backward = direction(), direction(reverse=True, seed=1)
    z = torch.randn(2, 13, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for chosen, gate in (
        ([forward], None),
        ([backward], None),
        ([forward, backward], z),
        ([tuple(forward)], z),
    ):
        expected = sum(looped(Direction(*d)) for d in chosen)
        if gate is not None:
            expected = expected * plain.silu(gate.numpy())
        found = selective_scan(chosen, gate, backend=backend)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 50])
def test_chunks_of_every_length_are_joined(length):
    d = direction(1, length, 2, 2, reverse=length % 2 == 0)
    np.testing.assert_allclose(
        selective_scan([d], backend="chunked").numpy(), looped(d), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("width", [1, 3, 4])
def test_the_convolution_is_the_loop_in_numpy(width):
    g = torch.Generator().manual_seed(2)
    x, weight, bias = (
        torch.randn(*s, generator=g, dtype=torch.float64) for s in ((2, 7, 5), (5, width), (5,))
    )
    for reverse in (False, True):
        turn = slice(None, None, -1) if reverse else slice(None)
        expected = np.stack(
            [
                plain.causal_convolution(row[turn], weight.numpy(), bias.numpy())[turn]
                for row in x.numpy()
            ]
        )
        found = causal_conv1d(x, weight, bias, reverse=reverse, silu=False)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(
            causal_conv1d(x, weight, bias, reverse=reverse).numpy(),
            plain.silu(expected),
            rtol=1e-12,
            atol=1e-13,
        )


@pytest.mark.parametrize("width", [16, 12])
def test_the_norm_is_the_formula(width):
    g = torch.Generator().manual_seed(3)
    hidden, residual, weight = (
        0.1 * torch.randn(*s, generator=g) for s in ((2, 3, width), (2, 3, width), (width,))
    )
    for backend in ("cpu", "chunked"):
        out, total = add_rms_norm(hidden, residual, weight, 0.02, backend=backend)
        expected = (hidden.double() + residual.double()).numpy()
        np.testing.assert_allclose(total.numpy(), expected, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(
            out.numpy(),
            plain.rms_norm(expected, weight.double().numpy(), 0.02),
            rtol=1e-5,
            atol=1e-7,
        )
    half = add_rms_norm(hidden.bfloat16(), residual, weight, 0.02)
    assert half[0].dtype == half[1].dtype == torch.float32
    torch.testing.assert_close(half[1], residual + hidden.bfloat16().float(), rtol=0, atol=0)


@pytest.mark.parametrize("width", [(16, 32), (12, 10)], ids=["whole vectors", "others"])
def test_a_projection_from_the_table_is_the_formula(width):
    inside, outside = width
    g = torch.Generator().manual_seed(4)
    hidden, table = torch.randn(2, 5, inside, generator=g), torch.randn(9, outside, generator=g)
    slope, shift, values = (torch.randn(*s, generator=g) for s in ((outside,), (outside,), (2, 5)))
    rows, masked = torch.randint(0, 9, (2, 5), generator=g), torch.rand(2, 5, generator=g) < 0.4
    scale = 1 / np.sqrt((hidden.double().numpy() ** 2).mean(-1, keepdims=True) + 0.3)
    for which in (rows, None):
        source = (
            (table[:5].expand(2, 5, outside) if which is None else table[which]).double().numpy()
        )
        shown = source + values.double().numpy()[..., None] * slope.double().numpy()
        hides = np.where(masked.numpy()[..., None], source + shift.double().numpy(), shown)
        for mask, expected in ((None, shown), (masked, hides)):
            found = lookup(hidden, table, which, values, slope, mask, shift, 0.3)
            np.testing.assert_allclose(found.numpy(), expected * scale, rtol=2e-5, atol=2e-6)


# --- refused input
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("u", (2, 13, 7)),
        ("delta", (2, 12, 6)),
        ("A", (5, 3)),
        ("B", (1, 13, 3)),
        ("C", (2, 13, 4)),
        ("D", (5,)),
        ("delta_bias", (6, 1)),
    ],
)
def test_every_shape_is_checked(name, shape):
    first, second = direction(), direction(seed=1)
    with pytest.raises(BackendError, match=f"{name} must have the shape .*; it has \\({shape[0]},"):
        selective_scan([first, second._replace(**{name: torch.ones(shape, dtype=torch.float64)})])
    with pytest.raises(
        BackendError, match=r"u must be \(batch, length, channels\); it has the shape \(2, 3\)"
    ):
        selective_scan([first._replace(u=torch.ones(2, 3))])
    thin = first._replace(
        delta=first.delta[..., :2], delta_weight=torch.ones(6, 3, dtype=torch.float64)
    )
    with pytest.raises(
        BackendError, match=r"delta must have the shape \(2, 13, 3\); it has \(2, 13, 2\)"
    ):
        selective_scan([thin])
    with pytest.raises(BackendError, match="All tensors must be on one device"):
        selective_scan([first._replace(D=first.D.to("meta"))])


def test_backends_and_their_supported_input(monkeypatch):
    monkeypatch.delenv("SCMAMBA_SCAN", raising=False)
    found = available_backends()
    assert list(found) == ["cpu", "triton", "mamba_ssm", "chunked", "reference"]
    assert {found[name] for name in ("cpu", "chunked", "reference")} == {"available"}
    chosen = {
        torch.float32: "cpu",
        torch.bfloat16: "cpu",
        torch.float16: "cpu",
        torch.float64: "chunked",
    }
    assert {dtype: choose_backend(torch.zeros(1, dtype=dtype)) for dtype in chosen} == chosen
    with pytest.raises(BackendError, match="No scan backend takes a torch.int64 tensor on cpu"):
        choose_backend(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(
        BackendError,
        match=r"'cpu' \(requested\) cannot be used: it runs on cpu, the tensor is on meta.*"
        "Usable here: chunked, reference",
    ):
        choose_backend(torch.zeros(1, device="meta"), "cpu")
    monkeypatch.setenv("SCMAMBA_SCAN", "mamba_ssm")
    if not torch.cuda.is_available():
        with pytest.raises(
            BackendError,
            match=r"'mamba_ssm' \(set by SCMAMBA_SCAN\) cannot be used: there is no NVIDIA GPU",
        ):
            choose_backend(torch.zeros(1))


# --- work and memory
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("team", ["torch's", "python's"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_unit_of_work_is_done_once(monkeypatch, team, threads):
    if team == "python's":
        monkeypatch.setattr(_pool, "_team", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (0, 1, 2, 7, 50):
            assert _pool.workers(count) == max(1, min(count, threads))
            done, busy = [], set()
            lock = threading.Lock()

            def task(unit, worker, done=done, busy=busy, lock=lock):
                with lock:
                    assert worker not in busy, "two threads never share a worker's scratch"
                    busy.add(worker)
                    done.append((unit, worker))
                with lock:
                    busy.discard(worker)

            _pool.run(task, count)
            assert sorted(unit for unit, _ in done) == list(range(count))
            assert all(0 <= worker < _pool.workers(count) for _, worker in done)

            def fails(unit, worker):
                raise ValueError(f"unit {unit}")

            if count:
                with pytest.raises(ValueError, match="unit"):
                    _pool.run(fails, count)
    finally:
        torch.set_num_threads(before)


def test_the_allocator_is_unchanged_on_request(monkeypatch):
    monkeypatch.setenv("SCMAMBA_MALLOC", "0")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert _memory.keep.__wrapped__() is False
    _memory.large_pages()
    assert "THP_MEM_ALLOC_ENABLE" not in os.environ
    monkeypatch.setenv("SCMAMBA_MALLOC", "1")
    _memory.large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    _memory.large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0", "what the user chose stays"


class Allocated(TorchDispatchMode):
    """Shapes of the float32 tensors that are made like another one."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        if operator is torch.ops.aten.new_empty.default:
            self.shapes.append(tuple(made.shape))
        return made


@pytest.mark.parametrize("two", [False, True])
def test_states_are_only_kept_for_a_gradient(two):
    """They take as much memory as many outputs."""
    given = [
        Direction(*(t.float() for t in d[:7]), d.reverse)
        for d in (direction(channels=16), direction(channels=16, reverse=True))
    ][: 1 + two]
    with Allocated() as without:
        out = selective_scan(given, None, backend="cpu")
    assert without.shapes == [tuple(out.shape)]
    given[0].u.requires_grad_()
    with Allocated() as kept:
        selective_scan(given, None, backend="cpu")
    assert len(kept.shapes) == 2 + two
    with Allocated() as without, torch.no_grad():
        selective_scan(given, None, backend="cpu")
    assert without.shapes == [tuple(out.shape)]


def test_products_use_torch_if_the_matrix_unit_does_not_support_them(monkeypatch):
    calls = []
    monkeypatch.setattr(products, "matrix_unit", lambda: True)
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: False)
    monkeypatch.setattr(
        products,
        "product",
        lambda x, w, turned=False: calls.append(tuple(x.shape)) or (x @ (w if turned else w.T)),
    )
    x, weight = torch.randn(2, 512, 64), torch.randn(64, 64)  # exactly 2**22 multiply-adds
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
        torch.testing.assert_close(products.times(x, weight), x @ weight)
        assert calls == [(1024, 64), (1024, 64)]
        for other, w in (
            (x[:, :511], weight),
            (x, torch.randn(63, 64)),
            (torch.randn(2, 512, 63), torch.randn(64, 63)),
        ):
            torch.testing.assert_close(linear(other, w), F.linear(other, w))
        torch.testing.assert_close(
            linear(x.double(), weight.double()), F.linear(x.double(), weight.double())
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
    assert len(calls) == 2 and products.LEAST == 2**22
