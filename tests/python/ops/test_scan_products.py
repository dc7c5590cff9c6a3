"""Products against float64: the matrix unit's if there is one, else torch's with the same error bounds."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from scmamba.ops.cpu import matmul as products
from scmamba.ops.cpu.matmul import linear

needs_unit = pytest.mark.skipif(not products.matrix_unit(), reason="no AMX unit for bfloat16 here")
# (rows, terms, columns): partial row tiles, remainders of sixteen terms or columns, more rows than one share
SHAPES = [(1, 16, 16), (77, 48, 48), (600, 64, 96), (999, 512, 48), (130, 16, 512), (8300, 32, 544)]


@pytest.fixture
def always(monkeypatch):
    """Also for small products."""
    monkeypatch.setattr(products, "LEAST", 0)


def far(found, truth):
    return ((found.double() - truth).abs().max() / truth.abs().max()).item()


def problem(rows, terms, columns):
    g = torch.Generator().manual_seed(rows)
    return [
        torch.randn(*s, generator=g) for s in ((rows, terms), (columns, terms), (rows, columns))
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_gradients(always, shape):
    x, weight, dy = problem(*shape)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    out = linear(x, weight)
    if products.matrix_unit():
        assert (
            "Product" in type(out.grad_fn.next_functions[0][0]).__name__
            or "Product" in type(out.grad_fn).__name__
        )
    out.backward(dy)
    wide = [t.detach().double() for t in (x, weight, dy)]
    assert far(out.detach(), wide[0] @ wide[1].T) <= 1e-5
    assert far(x.grad, wide[2] @ wide[1]) <= 1e-5
    assert far(weight.grad, wide[2].T @ wide[0]) <= 1e-5


def test_sixteen_bits_are_exact(always):
    """Integers of up to eight bits, hi alone, and of sixteen, hi and lo: nothing is rounded."""
    g = torch.Generator().manual_seed(0)
    small = torch.randint(-200, 200, (64, 64), generator=g).float()
    large = torch.randint(-60_000, 60_000, (64, 64), generator=g).float()
    eye = torch.eye(64)
    assert torch.equal(linear(small, small), small @ small.T)
    assert torch.equal(linear(large, eye), large) and torch.equal(linear(eye, large), large.T)


def test_very_small_and_very_large_values(always):
    for scale in (1e-30, 1e30):
        x, weight, _ = problem(64, 64, 64)
        assert far(linear(x * scale, weight), (x * scale).double() @ weight.double().T) <= 1e-5


def test_nan_stays_in_its_row_or_column(always):
    x, weight, dy = problem(70, 48, 64)
    x[3, 7] = torch.nan
    x.view(torch.int32)[5, 9] = (
        0x7FFFFFFF  # a NaN of all ones: rounding its bits would make it zero
    )
    found = linear(x, weight).isnan()
    assert found[3].all() and found[5].all() and found.sum() == 2 * 64
    weight[10, 4] = torch.nan
    x = torch.nan_to_num(x)
    assert torch.equal(linear(x, weight).isnan().any(0).nonzero(), torch.tensor([[10]]))
    dy[2, 6] = torch.nan
    assert torch.equal(
        products.weight_gradient(dy, x).isnan().any(1).nonzero(), torch.tensor([[6]])
    )


def test_awkward_memory(always):
    both = torch.randn(2, 50, 96)
    weight = torch.randn(32, 64).t()
    x = both[..., 48:80]
    assert far(linear(x, weight), x.double() @ weight.double().T) <= 1e-5
    columns = torch.randn(32, 100).t()
    assert far(linear(columns, weight), columns.double() @ weight.double().T) <= 1e-5
    # The same row forty times: all errors have one sign, so the bound is that of a single product of two parts each.
    one = torch.randn(1, 32).expand(40, 32)
    assert (
        far(products.weight_gradient(one, one.contiguous()), one.double().T @ one.double())
        <= 2**-15
    )


@needs_unit
def test_threads_do_not_change_the_numbers(always):
    x, weight, dy = problem(5000, 64, 96)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                (
                    products.product(x, weight),
                    products.times(dy, weight),
                    products.weight_gradient(dy, x),
                )
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("shape", [(40, 24, 32), (40, 32, 20), (8, 16, 16)])
def test_unsupported_shapes_use_torch(shape):
    x, weight, dy = problem(*shape)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert torch.equal(products.times(dy, weight), dy @ weight)
    assert torch.equal(products.weight_gradient(dy, x), dy.T @ x)


def test_other_types_and_empty_input(always):
    x, weight, _ = problem(40, 32, 32)
    assert torch.equal(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
    assert linear(x[:0], weight).shape == (0, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16


def test_other_devices_and_types_are_left_to_torch(always, monkeypatch):
    """Whatever product is fastest for float32 on this processor; "meta" is a device without values."""

    def wrong(*arguments):
        pytest.fail("not by torch")

    x, weight, _ = problem(40, 32, 32)
    others = [(x.to("meta"), weight.to("meta")), (x.double(), weight.double())]
    others += [(x.bfloat16(), weight.bfloat16()), (x.half(), weight.half())]
    monkeypatch.setattr(products, "matrix_unit", lambda: True)
    monkeypatch.setattr(products, "product", wrong)
    for values, other in others:
        found = linear(values, other)
        assert (found.device, found.dtype) == (values.device, values.dtype)
    for values, other in ((x.double(), weight), (x, weight.double())):
        with pytest.raises(RuntimeError, match="dtype"):
            linear(values, other)


def test_the_choice_by_hand(monkeypatch):
    monkeypatch.setenv("SCMAMBA_LINEAR", "torch")
    for name in ("matrix_unit", "_onednn_is_faster"):
        monkeypatch.setattr(products, name, getattr(products, name).__wrapped__)
    assert not products.matrix_unit() and not products._onednn_is_faster()
    monkeypatch.setenv("SCMAMBA_LINEAR", "onednn")
    assert not products.matrix_unit()


ONEDNN = (
    sys.platform.startswith("linux")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


@pytest.mark.parametrize("vendor", ["AuthenticAMD", "GenuineIntel", None])
@pytest.mark.parametrize("asked", ["torch", "amx", "onednn", "auto", "other", None])
def test_onednn_is_used_on_request_and_on_amd(asked, vendor, monkeypatch):
    """Of another processor the description is replaced; ``None``: there is none."""

    def cpuinfo(self):
        if vendor is None:
            raise FileNotFoundError(self)
        return f"processor : 0\nvendor_id : {vendor}\n"

    if asked is None:
        monkeypatch.delenv("SCMAMBA_LINEAR", raising=False)
    else:
        monkeypatch.setenv("SCMAMBA_LINEAR", asked)
    monkeypatch.setattr(products.Path, "read_text", cpuinfo)
    faster = asked == "onednn" or (asked not in ("torch", "amx") and vendor == "AuthenticAMD")
    assert products._onednn_is_faster.__wrapped__() is (ONEDNN and faster)


class Called(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.skipif(not ONEDNN, reason="this torch has no oneDNN")
@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_onednn_computes_where_it_is_faster_and_no_gradient_is_wanted(
    training, faster, monkeypatch
):
    monkeypatch.setattr(products, "matrix_unit", lambda: False)
    monkeypatch.setattr(products, "_onednn_is_faster", lambda: faster)
    x, weight, _ = problem(77, 48, 48)
    with Called() as called, torch.set_grad_enabled(training):
        found = linear(x, weight.requires_grad_())
    assert any("mkldnn" in name for name in called.names) is (faster and not training)
    assert found.requires_grad is training
    assert far(found.detach(), x.double() @ weight.detach().double().T) <= 1e-5
