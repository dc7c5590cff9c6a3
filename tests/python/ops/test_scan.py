"""Every backend of the scan against the plain recurrence in float64: outputs and gradients."""

from __future__ import annotations

import logging
import multiprocessing
import os

import numpy as np
import pytest
import torch
from scan_cases import compare, make, run
from scipy.signal import lfilter

from scmamba.ops import backends as scan_registry
from scmamba.ops.backends import Direction, available_backends, choose_backend
from scmamba.ops.operator import selective_scan
from scmamba.utils.errors import BackendError

FUSED = [
    name
    for name, state in available_backends().items()
    if state == "available" and name != "reference"
]
CPU_BACKENDS = [name for name in FUSED if name in ("cpu", "chunked")]


SHAPES = [
    pytest.param(2, 1, 16, 1, id="one step, one state"),
    pytest.param(2, 67, 37, 8, id="odd width"),
    pytest.param(1, 130, 200, 16, id="width 200, several tiles"),
    pytest.param(1, 33, 20, 64, id="64 states"),
    pytest.param(3, 31, 48, 5, id="odd number of states"),
    pytest.param(1, 97, 200, 1, id="width 200, one state"),
    pytest.param(1, 1, 37, 64, id="one step, 64 states"),
]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("shape", [p.values for p in SHAPES], ids=[p.id for p in SHAPES])
def test_both_directions_and_gate(backend, shape):
    directions, z = make(*shape)
    compare(run(directions, z, backend), run(directions, z, "reference", torch.float64))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("reverse", [(False,), (True,)], ids=["forward", "reverse"])
@pytest.mark.parametrize("shift", [-8.0, 8.0, 60.0], ids=["small dt", "large dt", "very large dt"])
def test_one_direction_without_gate(backend, reverse, shift):
    directions, _ = make(2, 45, 24, 8, reverse=reverse, shift=shift)
    compare(run(directions, None, backend), run(directions, None, "reference", torch.float64))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_long_memory_is_accurate(backend):
    """Decays close to 1 over thousands of steps reveal an exponential that is not exact at 0."""
    (direction,), _ = make(1, 4000, 16, 4, reverse=(False,), shift=0.0)
    slow = direction._replace(A=direction.A * 1e-3)
    double = Direction(*(t.double() for t in slow.tensors), False)
    with torch.no_grad():
        truth = selective_scan([double], backend="reference")
        errors = [
            (
                (selective_scan([slow], backend=name).double() - truth).abs().max()
                / truth.abs().max()
            ).item()
            for name in (backend, "reference")
        ]
    assert errors[0] <= max(
        1e-6, 1.5 * errors[1]
    )  # adding 4000 numbers in float32 loses digits by itself


def test_reference_is_a_linear_filter_with_constant_parameters():
    """With dt, B and C constant in time every state is a first-order filter, computed by scipy."""
    (d,), _ = make(1, 200, 3, 2, reverse=(False,), shift=0.0)
    d = Direction(*(t.double() for t in d.tensors), False)
    constant = d._replace(
        **{n: getattr(d, n)[:, :1].expand_as(getattr(d, n)) for n in ("delta", "B", "C")}
    )
    found = selective_scan([constant], backend="reference")[0].numpy()
    dt = np.log1p(np.exp((d.delta[0, 0] + d.delta_bias).numpy()))
    for e in range(3):
        u = d.u[0, :, e].numpy()
        expected = d.D[e].item() * u
        for n in range(2):
            pole = np.exp(dt[e] * d.A[e, n].item())
            gain = dt[e] * d.B[0, 0, n].item()
            expected = expected + d.C[0, 0, n].item() * lfilter([gain], [1, -pole], u)
        np.testing.assert_allclose(found[:, e], expected, rtol=1e-10, atol=1e-12)


def test_reference_gradients_are_those_of_torch():
    directions, z = make(1, 5, 2, 2)
    leaves = [t.double().requires_grad_() for d in directions for t in d.tensors]

    def scan(gate, *tensors):
        return selective_scan(
            [Direction(*tensors[7 * i : 7 * i + 7], d.reverse) for i, d in enumerate(directions)],
            gate,
            backend="reference",
        )

    assert torch.autograd.gradcheck(scan, (z.double().requires_grad_(), *leaves))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_reverse_is_flip_scan_flip(backend):
    (d,), z = make(2, 41, 32, 16, reverse=(True,))
    flipped = d._replace(
        **{n: getattr(d, n).flip(1) for n in ("u", "delta", "B", "C")}, reverse=False
    )
    with torch.no_grad():
        a = selective_scan([d], z, backend=backend)
        b = selective_scan([flipped], z.flip(1), backend=backend).flip(1)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "z", "A", "D"])
def test_nan_affects_only_what_depends_on_it(backend, name):
    directions, z = make(2, 40, 37, 4)
    if name == "z":
        z[1, 20, 5] = torch.nan
    else:
        poisoned = getattr(directions[0], name).clone()
        poisoned[(1, 20, 2) if poisoned.dim() == 3 else (5,)] = torch.nan
        directions[0] = directions[0]._replace(**{name: poisoned})
    with torch.no_grad():
        found = selective_scan(directions, z, backend=backend)
        truth = selective_scan(directions, z, backend="reference")
    assert truth.isnan().any() and not truth.isnan().all()
    assert torch.equal(found.isnan(), truth.isnan())


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_awkward_memory(backend):
    """Transposed, sliced and expanded inputs, and the expanded gradient of a sum."""
    directions, z = make(2, 50, 32, 8)
    channel_first = directions[0].u.transpose(1, 2).contiguous().transpose(1, 2)
    halves = torch.cat([directions[0].delta, z], -1)
    one_row = directions[1].B[:, :1].expand_as(directions[1].B)
    awkward = [
        directions[0]._replace(u=channel_first, delta=halves[..., :32]),
        directions[1]._replace(B=one_row, u=directions[1].u[:1].expand(2, -1, -1)),
    ]
    plain = [Direction(*(t.contiguous() for t in d.tensors), d.reverse) for d in awkward]

    def gradients(ds, gate, name, dtype):
        ds = [
            Direction(*(t.to(dtype).detach().requires_grad_() for t in d.tensors), d.reverse)
            for d in ds
        ]
        out = selective_scan(ds, gate.to(dtype), backend=name)
        out.sum().backward()
        return [out.detach().double()] + [t.grad.double() for d in ds for t in d.tensors]

    found = gradients(awkward, halves[..., 32:], backend, torch.float32)
    truth = gradients(plain, z, "reference", torch.float64)
    for a, b in zip(found, truth):
        assert ((a - b).abs().max() / b.abs().max()).item() <= 1e-5


@pytest.mark.parametrize("backend", [*CPU_BACKENDS, "reference"])
@pytest.mark.parametrize("channels", [37, 160])
def test_thin_delta_is_projected(backend, channels):
    """With ``delta_weight`` the scan is the scan of the product, in inference and in training."""
    directions, z = make(2, 75, channels, 8)
    thin = [
        d._replace(
            delta=d.delta[..., :6], delta_weight=torch.randn(channels, 6, requires_grad=True)
        )
        for d in directions
    ]
    full = [Direction(*(t.double() for t in d.projected().tensors), d.reverse) for d in thin]
    truth = selective_scan(full, z.double(), backend="reference")
    with torch.no_grad():
        found = selective_scan(thin, z, backend=backend)
    assert ((found - truth).abs().max() / truth.abs().max()).item() <= 2e-6
    weights = [d.delta_weight for d in thin]
    expected = torch.autograd.grad(truth.sum(), weights)
    for a, b in zip(
        torch.autograd.grad(selective_scan(thin, z, backend=backend).sum(), weights), expected
    ):
        assert ((a - b).abs().max() / b.abs().max()).item() <= 1e-5


@pytest.mark.parametrize("backend", [*CPU_BACKENDS, "reference"])
@pytest.mark.parametrize("shape", [(0, 7, 16, 4), (2, 0, 16, 4)], ids=["no cell", "no position"])
def test_empty(backend, shape):
    directions, z = make(*shape)
    found = run(directions, z, backend)
    assert found["out"].shape == shape[:3]
    assert all(
        torch.equal(found[n], torch.zeros_like(found[n])) for n in ("dz", "du[0]", "ddelta[1]")
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_half_precision_keeps_a_float32_state(backend, dtype):
    directions, z = make(1, 300, 32, 16)
    half = [
        Direction(*(t.to(dtype) if t.dim() == 3 else t for t in d.tensors), d.reverse)
        for d in directions
    ]
    with torch.no_grad():
        found = selective_scan(half, z.to(dtype), backend=backend)
        wide = [Direction(*(t.double() for t in d.tensors), d.reverse) for d in half]
        truth = selective_scan(wide, z.to(dtype).double(), backend="reference")
    assert found.dtype == dtype
    # only the last rounding is in half precision: half a unit in the last place
    assert ((found.double() - truth).abs() <= truth.abs() * torch.finfo(dtype).eps + 1e-5).all()


@pytest.mark.parametrize("shape", [(1, 200, 160, 16), (3, 70, 37, 8)])
def test_threads_do_not_change_the_numbers(shape):
    directions, z = make(*shape)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(directions, z, "cpu"))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[1][name], x) for name, x in results[0].items())
    compare(
        results[2], results[0]
    )  # more threads use narrower blocks: the order of summation differs


def _in_child(connection):
    connection.send({name: x.numpy() for name, x in run(*make(2, 80, 64, 8), "cpu").items()})
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_before_and_after_fork():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        here = run(*make(2, 80, 64, 8), "cpu")
        context = multiprocessing.get_context("fork")
        for _ in range(2):
            mine, its = context.Pipe()
            child = context.Process(target=_in_child, args=(its,), daemon=True)
            child.start()
            assert mine.poll(60), "the forked child did not answer"
            there = mine.recv()
            child.join(10)
            assert all(np.array_equal(there[name], x.numpy()) for name, x in here.items())
        again = run(*make(2, 80, 64, 8), "cpu")
        assert all(torch.equal(again[name], x) for name, x in here.items())
    finally:
        torch.set_num_threads(before)


def test_inference_stores_nothing_for_gradients():
    directions, z = make(1, 64, 32, 4)
    with torch.no_grad():
        assert selective_scan(directions, z, backend="cpu").grad_fn is None
    assert selective_scan(directions, z, backend="cpu").grad_fn is None
    leaf = directions[0].u.clone().requires_grad_()
    assert selective_scan([directions[0]._replace(u=leaf)], backend="cpu").requires_grad


# --- the registry ---------------------------------------------------------------------------------


def test_choice(monkeypatch, caplog):
    monkeypatch.delenv("SCMAMBA_SCAN", raising=False)
    x = torch.zeros(1, 2, 3)
    assert choose_backend(x) == "cpu"
    assert choose_backend(x.double()) == "chunked"
    monkeypatch.setenv("SCMAMBA_SCAN", "chunked")
    assert choose_backend(x) == "chunked"
    assert choose_backend(x, "reference") == "reference"
    monkeypatch.setattr(scan_registry, "_logged", set())
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="scmamba.ops"):
        choose_backend(x)
        choose_backend(x)
    assert [r.getMessage() for r in caplog.records] == [
        "scan backend chunked for cpu torch.float32"
    ]


def test_refusals_name_the_alternatives(monkeypatch):
    monkeypatch.delenv("SCMAMBA_SCAN", raising=False)
    with pytest.raises(BackendError, match="no scan backend 'fastest'.*cpu.*reference"):
        choose_backend(torch.zeros(1), "fastest")
    with pytest.raises(BackendError, match="'cpu'.*not torch.float64.*Usable here: chunked"):
        choose_backend(torch.zeros(1, dtype=torch.float64), "cpu")


def test_wrong_shapes_are_named():
    directions, z = make(1, 5, 16, 4)
    with pytest.raises(
        BackendError, match=r"B must have the shape \(1, 5, 4\); it has \(1, 5, 3\)"
    ):
        selective_scan([directions[0]._replace(B=directions[0].B[..., :3])])
    with pytest.raises(BackendError, match="z must have the shape"):
        selective_scan(directions, z[:, :4])
    with pytest.raises(BackendError, match="at least one direction"):
        selective_scan([])


def test_kernels_are_cached_in_a_writable_folder(monkeypatch, tmp_path):
    from scmamba.ops.cpu.jit import cache_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder().parent == tmp_path / "scmamba"
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert os.access(cache_folder(), os.W_OK) and blocked not in cache_folder().parents


@pytest.mark.parametrize("shift", [-7.0, -4.5, -3.5, -2.5, -1.5, 0.0, 3.0])
@pytest.mark.parametrize("states", [7, 16])
def test_decays_of_every_range(shift, states):
    """From exponents close to 0 to those beyond the normal range: each has its own code path, and tiles mix them."""
    (d,), _ = make(2, 75, 64, states, (False,), shift)
    rates = -torch.arange(1.0, states + 1).repeat(64, 1)
    rates[3, 2] = 0.25  # growing: a state that does not decay has no fast path
    rates[5] = 0.0
    step = torch.linspace(-1, 1, 75)[:, None].expand(75, 64)  # the range differs between tiles
    d = Direction(d.u, d.delta * 0.1 + shift + step, rates, *d.tensors[3:])
    exact, found = (
        run([d], None, name, dtype)
        for name, dtype in (("reference", torch.float64), ("cpu", torch.float32))
    )
    # The growing channel must not set the scale of the others; dB and dC are sums over all of them.
    others = [c for c in range(64) if c not in (3, 5)]
    for name, x in exact.items():
        assert torch.isfinite(found[name]).all()
        if name in ("dB[0]", "dC[0]"):
            continue
        axis = 0 if name in ("dA[0]", "dD[0]", "ddelta_bias[0]") else -1
        index = torch.tensor(others)
        expected = x.index_select(axis, index)
        assert (
            found[name].index_select(axis, index) - expected
        ).abs().max() <= 3e-6 * expected.abs().max(), name
