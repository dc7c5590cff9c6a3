"""Every backend of the selective scan compared: time, memory, error, and the peak rates of the machine.

    python -m benchmarks.scan            # a few minutes on two cores; writes results/scan.json, scan.png, docs table
    python -m benchmarks.scan --table    # only the table and the picture, from the committed JSON

One cell, one direction, no gate, L 19,306, d_inner 512, d_state 16, float32. dt is log-uniform in [0.001, 0.1] and
A = -1 .. -16, as at initialization. Two methods that are not ours: the loop of the published reference (decays of the
whole sequence, one index per step), and pscan of mambapy.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.scan_timing import (
    RESULTS,
    grown,
    interleaved,
    machine,
    peak_memory,
    save,
    write_table,
)
from scmamba.ops.backends import Direction, available_backends
from scmamba.ops.operator import selective_scan

LENGTH, CHANNELS, STATES = 19_306, 512, 16
SHORT = 800  # the published loop's backward pass is quadratic in the length: compared at this one
OPERATIONS = 10  # vector operations per state and step of the fused kernel: 6 to 8 for 2**x this close to 0 (else 10), 3 for the recurrence


def problem(length: int, channels: int = CHANNELS, device: str = "cpu") -> Direction:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    dt = torch.exp(torch.rand(channels, generator=g) * math.log(100) + math.log(1e-3))
    rates = -torch.arange(1.0, STATES + 1).repeat(channels, 1)
    rows = normal(1, length, 2 * STATES)
    d = Direction(
        normal(1, length, channels),
        0.1 * normal(1, length, channels),
        rates,
        rows[..., :STATES],
        rows[..., STATES:],
        torch.ones(channels),
        torch.log(torch.expm1(dt)),
    )
    return Direction(*(t.to(device) for t in d.tensors))


def published_loop(d: Direction) -> torch.Tensor:
    """The recurrence as the published reference code writes it, channel-first, with full L x E x N tensors."""
    dt = F.softplus(d.delta + d.delta_bias).transpose(1, 2)
    u, b, c = d.u.transpose(1, 2), d.B.transpose(1, 2), d.C.transpose(1, 2)
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, d.A))
    fed = torch.einsum("bdl,bnl,bdl->bdln", dt, b, u)
    state, outputs = u.new_zeros(u.shape[0], u.shape[1], d.A.shape[1]), []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + fed[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, c[:, :, t]))
    return (torch.stack(outputs, 2) + u * d.D[:, None]).transpose(1, 2)


def mambapy_pscan(d: Direction) -> torch.Tensor:
    from mambapy.pscan import pscan

    dt = F.softplus(d.delta + d.delta_bias)
    decay = torch.exp(dt[..., None] * d.A)
    states = pscan(decay, (dt * d.u)[..., None] * d.B[:, :, None])
    return (states @ d.C[..., None])[..., 0] + d.D * d.u


def methods() -> dict[str, Any]:
    found: dict[str, Any] = {
        name: lambda d, name=name: selective_scan([d], backend=name)
        for name, state in available_backends().items()
        if state == "available"
    }
    found["published loop"] = published_loop
    try:
        import mambapy.pscan  # noqa: F401

        found["mambapy pscan"] = mambapy_pscan
    except ImportError:
        print("mambapy is not installed (pip install --no-deps mambapy): skipped", file=sys.stderr)
    return found


def trained(function: Any, d: Direction) -> None:
    leaves = [t.detach().requires_grad_() for t in d.tensors]
    function(Direction(*leaves)).backward(d.u)


def times(length: int, names: list[str], train: bool, rounds: int) -> dict[str, float]:
    d, known = problem(length), methods()

    def call(name: str) -> Any:
        def once() -> None:
            if train:
                trained(known[name], d)
            else:
                with torch.no_grad():
                    known[name](d)

        return once

    fast = {"cpu": 4 * rounds}
    return interleaved({n: call(n) for n in names}, {n: fast.get(n, rounds) for n in names})


def peaks() -> dict[str, float]:
    """Multiply-adds per second of a matrix product, torch.exp and copying: the upper limits of the machine."""
    a, x = torch.randn(2048, 2048), torch.randn(LENGTH, CHANNELS)
    y = torch.empty_like(x)
    best = interleaved(
        {"product": lambda: a @ a, "exp": lambda: torch.exp(x, out=y), "copy": lambda: y.copy_(x)},
        {"product": 8, "exp": 8, "copy": 8},
    )
    return {
        "multiply_adds_per_s": 2048**3 / best["product"],
        "torch_exp_per_s": x.numel() / best["exp"],
        "copied_bytes_per_s": 8 * x.numel() / best["copy"],
    }


def errors(names: list[str]) -> dict[str, dict[str, float]]:
    """Largest error over the largest value, against chunked in float64; 64 channels, whole length."""
    d = problem(LENGTH, 64)

    def gradients(function: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [t.to(dtype).detach().requires_grad_() for t in d.tensors]
        out = function(Direction(*leaves))
        out.backward(d.u.to(dtype))
        return [out.detach().double(), *(t.grad.double() for t in leaves)]

    truth, known = gradients(methods()["chunked"], torch.float64), methods()
    found = {}
    for name in names:
        pairs = zip(gradients(known[name], torch.float32), truth)
        far = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
        found[name] = {"output": far[0], "gradients": max(far[1:])}
    return found


def measure(rounds: int) -> dict[str, Any]:
    known = methods()
    slow = {"published loop", "reference"}  # minutes in training at the whole length
    everything = list(known)
    trainable = [n for n in everything if n not in slow and n != "mambapy pscan"]
    result: dict[str, Any] = {
        "machine": machine(),
        "length": LENGTH,
        "channels": CHANNELS,
        "states": STATES,
    }
    result["peaks"] = peaks()
    result["forward_s"] = times(LENGTH, everything, False, rounds)
    result["training_s"] = times(LENGTH, trainable, True, rounds)
    result["short_length"] = SHORT
    result["short_training_s"] = times(SHORT, everything, True, rounds)
    result["forward_mb"] = {
        n: peak_memory("benchmarks.scan", "--memory", n, "forward") for n in everything
    }
    result["training_mb"] = {
        n: peak_memory("benchmarks.scan", "--memory", n, "training") for n in trainable
    }
    result["errors"] = errors(trainable)
    work = LENGTH * CHANNELS * STATES * OPERATIONS
    result["roofline_fraction"] = (
        work / result["peaks"]["multiply_adds_per_s"] / result["forward_s"]["cpu"]
    )
    result["machine"]["load_average_after"] = machine()["load_average_1_min"]
    return result


def memory(name: str, mode: str) -> None:
    """In a separate process: by how much one call raises the peak, after the kernels are compiled."""
    function = methods()[name]
    small, d = problem(64), problem(LENGTH)
    trained(function, small)
    with torch.no_grad():
        function(small)

    def once() -> None:
        if mode == "training":
            trained(function, d)
        else:
            with torch.no_grad():
                function(d)

    print(grown(once))


def table(r: dict[str, Any]) -> str:
    ours = r["forward_s"]["cpu"]
    rows = [
        "| method | forward ms | forward + backward ms | the same at L 800, ms | extra MB, forward / training "
        "| error, output / gradients |",
        "|---|---|---|---|---|---|",
    ]
    for name, seconds in sorted(r["forward_s"].items(), key=lambda x: x[1]):
        cells = [f"{1e3 * seconds:,.1f} ({seconds / ours:.1f}x)"]
        for part in ("training_s", "short_training_s"):
            value = r[part].get(name)
            cells.append(
                "-" if value is None else f"{1e3 * value:,.1f} ({value / r[part]['cpu']:.1f}x)"
            )
        training = r["training_mb"].get(name)
        cells.append(
            f"{r['forward_mb'][name]:,.0f} / " + ("-" if training is None else f"{training:,.0f}")
        )
        far = r["errors"].get(name)
        cells.append("-" if far is None else f"{far['output']:.0e} / {far['gradients']:.0e}")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    m, p = r["machine"], r["peaks"]
    return (
        "\n".join(rows)
        + f"\n\n{m['processor']}, {m['threads']} threads, torch {m['torch']}; L {r['length']:,}, d_inner {r['channels']}, "
        f"d_state {r['states']}, one cell, one direction. In brackets: times as long as `cpu`. The machine's own peaks in "
        f"the same run: {p['multiply_adds_per_s'] / 1e9:.0f} G multiply-adds/s in a matrix product, "
        f"{p['torch_exp_per_s'] / 1e9:.2f} G torch.exp/s, {p['copied_bytes_per_s'] / 1e9:.0f} GB/s copied; the fused forward "
        f"pass runs at {100 * r['roofline_fraction']:.0f}% of the multiply-add peak ({OPERATIONS} operations per state and "
        f"step). Load average {m['load_average_1_min']:.1f} before and {m['load_average_after']:.1f} after the run: "
        "other work shared the two cores, ratios hold better than milliseconds."
    )


def picture(r: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), constrained_layout=True)
    parts = {
        "forward_s": f"forward, L {r['length']:,}",
        "training_s": f"forward + backward, L {r['length']:,}",
        "short_training_s": f"forward + backward, L {r['short_length']:,}",
    }
    for axis, (part, title) in zip(axes, parts.items()):
        ordered = sorted(r[part].items(), key=lambda x: -x[1])
        colours = ["#2a6f97" if n == "cpu" else "#b8c4cc" for n, _ in ordered]
        bars = axis.barh([n for n, _ in ordered], [1e3 * s for _, s in ordered], color=colours)
        axis.bar_label(bars, [f"{1e3 * s:,.0f}" for _, s in ordered], padding=2, fontsize=8)
        axis.set(xscale="log", xlabel="milliseconds", title=title)
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "scan.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", nargs=2, metavar=("METHOD", "MODE"))
    options = parser.parse_args()
    if options.memory:
        memory(*options.memory)
        return
    if not options.table:
        save("scan", measure(options.rounds))
    result = json.loads((RESULTS / "scan.json").read_text())
    picture(result)
    write_table("scan", table(result))
    print(table(result))


if __name__ == "__main__":
    main()
