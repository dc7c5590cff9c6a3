"""Triton without a GPU: numbers from the interpreter, machine code for three GPU generations."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scan_cases import compare, make, run

from scmamba.ops import mamba_ssm_backend as _mamba_ssm
from scmamba.ops.backends import Direction, available_backends
from scmamba.ops.operator import selective_scan

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
def test_numbers_of_the_interpreter():
    """A separate process, because Triton reads at import whether to interpret."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--noconftest",  # none of its fixtures is used, and it imports all of the package
        str(HERE / "scan_triton_cases.py"),
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "passed" in done.stdout or "100%" in done.stdout


KERNELS = (
    "end_states",
    "carry",
    "outputs",
    "end_gradients",
    "row_gradients of B",
    "row_gradients of C",
    "gradients",
)

REGISTERS = {
    "end_states": 72,
    "outputs": 80,
    "end_gradients": 64,
    "carry": 104,
    "gradients": 255,
}  # per thread, at most


def compiled(name: str, capability: int):
    """The PTX and machine code of one kernel, for both directions, a gate and 16 states."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from scmamba.ops import triton_backend as kernels

    name, _, of = name.partition(" of ")
    kernel = getattr(kernels, name)
    sizes = kernels._Sizes(torch.empty(1, 1000, 512), torch.empty(512, 16), 2)
    constants = {
        "BOTH": True,
        "REVERSE": True,
        "REVERSE0": False,
        "REVERSE1": True,
        "GATE": True,
        "KEEP": True,
        "OF_B": of == "B",
    }
    constants |= sizes.tile | (sizes.turned_tile if of else {})
    constants |= {"N": sizes.states, "CHUNK": kernels.CHUNK, "STEPS": sizes.steps}
    integers = {"one", "L", "E", "chunks", "slot_cell", "slot_first"}
    signature, fixed = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument], fixed[(i,)] = "constexpr", constants[argument]
        elif argument in integers or "_cell" in argument or "_row" in argument:
            signature[argument] = "i32"
        else:
            signature[argument] = "*fp32"
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, a in enumerate(kernel.arg_names)
        if signature[a] == "*fp32"
    }
    return triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": constants["num_warps"]},
    ).asm


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers per thread, bytes of stack (spilled registers) and of shared memory."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        pytest.skip("this Triton comes without cuobjdump")
    (folder / "kernel.cubin").write_bytes(cubin)
    done = subprocess.run(
        [tool, "--dump-resource-usage", folder / "kernel.cubin"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", done.stdout)
    }


@needs_triton
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"
)
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_machine_code(name, capability, tmp_path):
    code = compiled(name, capability)
    assert len(code["cubin"]) > 1000
    # Sums over the states, and over the channels, must stay inside a thread: no shuffle between lanes, no shared memory.
    assert "shfl" not in code["ptx"]
    assert "ld.shared" not in code["ptx"] and "atom" not in code["ptx"]
    # One barrier between the two directions or passes, none inside the loops.
    assert code["ptx"].count("bar.sync") == (name in ("outputs", "gradients"))
    # With Triton 3.7.1 and 16 states 56-66 registers per thread (outputs up to 80 with 3.8.0), 94 carry, 140 row_gradients,
    # 255 gradients, nothing spilled; another assembler may spill a word or two.
    used = resources(code["cubin"], tmp_path)
    assert used["STACK"] + used["LOCAL"] <= 32 and used["REG"] <= REGISTERS.get(name, 168), used


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_runs():
    """Every line of it, once, with tiny input: a misspelled name must not appear on a GPU after hours."""
    repository = HERE.parents[2]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    results = repository / "benchmarks" / "results"
    before = {p.name: p.stat().st_mtime_ns for p in results.glob("gpu*")}
    command = ["bash", str(repository / "benchmarks" / "gpu.sh"), "--dry-run"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "| float32 |" in done.stdout and "Mean loss of the last 20 steps" in done.stdout
    if importlib.util.find_spec("triton"):
        assert "| triton, bfloat16 |" in done.stdout
    assert before == {p.name: p.stat().st_mtime_ns for p in results.glob("gpu*")}


@needs_triton
def test_only_values_that_are_apart_are_copied():
    """The kernels read neighboring channels; rows may lie anywhere, as in a part of a wider tensor."""
    from scmamba.ops.triton_backend import _unit

    wide = torch.randn(2, 5, 12)
    part, turned = wide[..., 4:8], wide.transpose(1, 2)
    assert _unit(part).data_ptr() == part.data_ptr() and _unit(part).stride() == part.stride()
    assert _unit(turned).is_contiguous() and torch.equal(_unit(turned), turned)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_self_check_reports_a_failure_instead_of_raising():
    from scmamba.ops.triton_backend import self_check

    assert "self-check failed" in self_check()


def test_without_a_gpu_the_reasons_are_listed():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    states = available_backends()
    assert "GPU" in states["mamba_ssm"]
    assert "GPU" in states["triton"] or "not installed" in states["triton"]


def test_mamba_ssm_receives_the_layout_of_its_kernel(monkeypatch):
    """A replacement with the kernel's documented interface and its requirements for strides and types."""

    def kernel(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        assert delta_softplus and z is None
        for t in (u, delta, B, C):
            assert t.stride(-1) == 1 and t.dtype == u.dtype
        assert A.dtype == D.dtype == delta_bias.dtype == torch.float32
        dt = F.softplus(delta.float() + delta_bias[:, None])
        h, out = torch.zeros(*u.shape[:2], A.shape[1]), []
        for t in range(u.shape[2]):
            h = torch.exp(dt[:, :, t, None] * A) * h + (dt * u)[:, :, t, None] * B[:, None, :, t]
            out.append((h * C[:, None, :, t]).sum(-1))
        return (torch.stack(out, -1) + D[:, None] * u).to(u.dtype)

    monkeypatch.setattr(_mamba_ssm, "_kernel", lambda: kernel)
    directions, z = make(2, 23, 20, 4)
    truth = run(directions, z, "reference", torch.float64)
    leaves = [[t.clone().requires_grad_() for t in d.tensors] for d in directions]
    gate = z.clone().requires_grad_()
    out = _mamba_ssm.scan([Direction(*x, d.reverse) for x, d in zip(leaves, directions)], gate)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9)))
    found = {"out": out.detach(), "dz": gate.grad}
    for i, x in enumerate(leaves):
        found |= {f"d{n}[{i}]": t.grad for n, t in zip(Direction._fields, x)}
    compare({name: x.double() for name, x in found.items()}, truth)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("backend", ["triton", "mamba_ssm"])
def test_on_the_gpu(backend):
    state = available_backends()[backend]
    if state != "available":
        pytest.skip(state)
    directions, z = make(2, 1000, 200, 16)
    there = [Direction(*(t.cuda() for t in d.tensors), d.reverse) for d in directions]
    found = {name: x.cpu() for name, x in run(there, z.cuda(), backend).items()}
    tight = backend == "triton"
    compare(
        found,
        run(directions, z, "chunked", torch.float64),
        *((2e-6, 2e-5) if tight else (1e-3, 2e-3)),
    )
    with torch.no_grad():
        assert selective_scan(there, backend=backend).shape == z.shape
