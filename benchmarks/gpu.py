"""The scan and the model on an NVIDIA GPU, next to the limits of the chip. Called by gpu.sh.

Writes results/gpu.json and gpu.md: the scan of both directions (batch 16, published size) by every backend, correctness
against plain torch in float64 on real shapes, cells per second of inference and training, and 200 training steps in
float32 and bfloat16 from the same start.

With SCMAMBA_DRY_RUN=1 (gpu.sh --dry-run) everything runs once on the processor, tiny, Triton in its interpreter; the figures mean
nothing and are printed, not written.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.scan_timing import RESULTS, save
from scmamba.nn.config import ModelConfig
from scmamba.nn.scmamba import ScMamba
from scmamba.ops.backends import Direction, available_backends
from scmamba.ops.operator import selective_scan

DRY = os.environ.get("SCMAMBA_DRY_RUN") == "1"
DEVICE = "cpu" if DRY else "cuda"
GENES, CHANNELS, STATES = (24, 16, 2) if DRY else (19_306, 512, 16)
LENGTH, CHECKED = (8, 6) if DRY else (GENES, 2_000)  # of the scans timed, and compared
SIDE, COPIED = (
    (64, 2**10) if DRY else (8192, 2**28)
)  # of the matrices multiplied, of the vector copied
NOT_FOR_GPUS = ("cpu", "chunked", "reference")


def seconds(function: Callable[[], object], rounds: int = 5) -> float:
    """Best of some rounds, by the GPU's own clock."""
    function()
    best = math.inf
    for _ in range(rounds):
        if DRY:
            start = time.perf_counter()
            function()
            return time.perf_counter() - start
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3)
    return best


def peaks() -> dict[str, float]:
    """Bytes copied and bfloat16 multiply-adds per second: the two ceilings."""
    a = torch.randn(SIDE, SIDE, device=DEVICE, dtype=torch.bfloat16)
    x, y = (torch.empty(COPIED, device=DEVICE) for _ in range(2))
    return {
        "copied_bytes_per_s": 2 * x.nbytes / seconds(lambda: y.copy_(x)),
        "multiply_adds_per_s": SIDE**3 / seconds(lambda: a @ a),
    }


def problem(batch: int, length: int, dtype: torch.dtype) -> tuple[list[Direction], torch.Tensor]:
    g = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, device=DEVICE)

    directions = []
    for reverse in (False, True):
        rows = normal(batch, length, 2 * STATES).to(dtype)
        dt = torch.exp(
            torch.rand(CHANNELS, generator=g, device=DEVICE) * math.log(100) + math.log(1e-3)
        )
        directions.append(
            Direction(
                normal(batch, length, CHANNELS).to(dtype),
                (0.1 * normal(batch, length, CHANNELS)).to(dtype),
                -torch.arange(1.0, STATES + 1, device=DEVICE).repeat(CHANNELS, 1),
                rows[..., :STATES],
                rows[..., STATES:],
                torch.ones(CHANNELS, device=DEVICE),
                torch.log(torch.expm1(dt)),
                reverse,
            )
        )
    return directions, normal(batch, length, CHANNELS).to(dtype)


def trained(directions: list[Direction], z: torch.Tensor, backend: str) -> list[torch.Tensor]:
    leaves = [[t.detach().requires_grad_() for t in d.tensors] for d in directions]
    gate = z.detach().requires_grad_()
    out = selective_scan(
        [Direction(*x, d.reverse) for x, d in zip(leaves, directions)], gate, backend=backend
    )
    out.backward(z)
    return [out.detach(), gate.grad, *(t.grad for x in leaves for t in x)]


def scans(batch: int, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    directions, z = problem(batch, LENGTH, dtype)
    found = {}
    for name, state in available_backends().items():
        if state != "available" or name in NOT_FOR_GPUS:
            continue
        with torch.no_grad():
            forward = seconds(lambda name=name: selective_scan(directions, z, backend=name))
        both = seconds(lambda name=name: trained(directions, z, name))
        found[name] = {"forward_ms": 1e3 * forward, "training_ms": 1e3 * both}
    return found


def errors() -> dict[str, float]:
    """Worst of output and gradients against chunked torch in float64, ``CHECKED`` positions."""
    directions, z = problem(1, CHECKED, torch.float32)
    wide = [Direction(*(t.double() for t in d.tensors), d.reverse) for d in directions]
    truth = trained(wide, z.double(), "chunked")
    found = {}
    for name, state in available_backends().items():
        if state == "available" and name not in NOT_FOR_GPUS:
            pairs = zip(trained(directions, z, name), truth)
            found[name] = max(
                ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs
            )
    return found


def cells(batch: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return (
        torch.rand(batch, GENES, generator=g) * 4 * (torch.rand(batch, GENES, generator=g) < 0.1)
    ).to(DEVICE)


def step(
    model: ScMamba, x: torch.Tensor, optimiser: torch.optim.Optimizer, half: bool
) -> torch.Tensor:
    mask = (x > 0) & (torch.rand_like(x) < (0.5 if DRY else 0.15))
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=half):
        loss = (model.reconstruct(x, mask).float() - x)[mask].square().mean()
    loss.backward()
    optimiser.step()
    return loss.detach()


def fresh() -> tuple[ScMamba, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = ScMamba(
        ModelConfig(n_genes=GENES, **({"d_model": 16, "n_layer": 1} if DRY else {}))
    ).to(DEVICE)
    return model, torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1
    )


def throughput(batch: int, half: bool) -> dict[str, float]:
    model, optimiser = fresh()
    x = cells(batch)

    def infer() -> None:
        with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=half):
            model.reconstruct(x)

    if not DRY:
        torch.cuda.reset_peak_memory_stats()
    training = batch / seconds(lambda: step(model, x, optimiser, half), 3)
    return {
        "inference_cells_per_s": batch / seconds(infer, 3),
        "training_cells_per_s": training,
        "training_gb_per_cell": 0.0 if DRY else torch.cuda.max_memory_allocated() / batch / 1e9,
    }


def curves(steps: int) -> dict[str, list[float]]:
    """Losses in float32 and bfloat16, the same start, cells and masks."""
    found = {}
    for name, half in (("float32", False), ("bfloat16", True)):
        model, optimiser = fresh()
        x = cells(64)
        losses = []
        for i in range(steps):
            torch.manual_seed(i)  # of the GPU's generator too
            losses.append(step(model, x[(4 * i) % 64 :][:4], optimiser, half))
        found[name] = torch.stack(losses).tolist()
    return found


def table(r: dict[str, Any]) -> str:
    p = r["peaks"]
    lines = [
        f"{r['gpu']}, torch {r['torch']}: {p['copied_bytes_per_s'] / 1e12:.2f} TB/s copied, "
        f"{p['multiply_adds_per_s'] / 1e12:.0f} T multiply-adds/s in bfloat16.",
        "",
        "| both directions, batch 16, published size | forward ms | forward + backward ms | worst error |",
        "|---|---|---|---|",
    ]
    for dtype, rows in r["scans"].items():
        for name, t in rows.items():
            far = f"{r['errors'][name]:.0e}" if dtype == "float32" and name in r["errors"] else "-"
            lines.append(
                f"| {name}, {dtype} | {t['forward_ms']:.1f} | {t['training_ms']:.1f} | {far} |"
            )
    lines += [
        "",
        "| model | inference cells/s | training cells/s | GB per cell |",
        "|---|---|---|---|",
    ]
    for name, t in r["model"].items():
        figures = [t["inference_cells_per_s"], t["training_cells_per_s"], t["training_gb_per_cell"]]
        lines.append(f"| {name} | {figures[0]:.0f} | {figures[1]:.0f} | {figures[2]:.2f} |")
    last = {name: sum(losses[-20:]) / len(losses[-20:]) for name, losses in r["losses"].items()}
    lines += [
        "",
        "Mean loss of the last 20 steps: "
        + ", ".join(f"{n} {x:.4f}" for n, x in last.items())
        + ".",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "gpu": "dry run" if DRY else torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }
    result["backends"], result["peaks"], result["errors"] = available_backends(), peaks(), errors()
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    result["scans"] = {name: scans(options.batch, dtype) for name, dtype in kinds.items()}
    result["model"] = {name: throughput(options.batch, name == "bfloat16") for name in kinds}
    result["losses"] = curves(options.steps)
    if not DRY:
        save("gpu", result)
        (RESULTS / "gpu.md").write_text(table(result) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
