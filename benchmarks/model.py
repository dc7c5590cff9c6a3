"""The whole model next to its bare matrix products: inference, a training step, peak memory, cost against length.

    python -m benchmarks.model            # a few minutes on two cores; writes results/model.json, model.png, docs table
    python -m benchmarks.model --table    # only the table and the picture, from the committed JSON
    python -m benchmarks.model --lookup   # inference with the first layer's table next to inference without (SCMAMBA_LINEAR=torch, amx)

The bare products are those of the layers (in_proj, x_proj, dt_proj, out_proj), of the shapes the model gives them, as
plain torch does them, in the same process and alternating with the model; for training also their two gradients each.
Ratios are of processor seconds (user and system, all threads), because other work on the machine does not change those.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # a waiting thread must not count as work; read when torch is imported

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
from scmamba.nn.bimamba import use_checkpointing
from scmamba.nn.config import ModelConfig
from scmamba.nn.scmamba import ScMamba

GENES = 19_306
SIZES = {"D 64 x 2": (64, 2), "D 128 x 4": (128, 4), "D 256 x 6 (published)": (256, 6)}
LENGTHS = (2_000, 5_000, 10_000, 20_000, 40_000)


def network(width: int, layers: int, genes: int = GENES) -> ScMamba:
    torch.manual_seed(0)
    return ScMamba(ModelConfig(n_genes=genes, d_model=width, n_layer=layers))


def cell(genes: int = GENES) -> torch.Tensor:
    """A tenth of the genes expressed, as in a nucleus."""
    g = torch.Generator().manual_seed(1)
    return torch.rand(1, genes, generator=g) * 4 * (torch.rand(1, genes, generator=g) < 0.1)


def inference(model: ScMamba, x: torch.Tensor) -> None:
    with torch.no_grad():
        model.reconstruct(x)


def step(model: ScMamba, x: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Masked expression modeling of one cell: forward, backward, AdamW."""
    mask = x > 2
    optimiser.zero_grad(set_to_none=True)
    (model.reconstruct(x, mask) - x)[mask].square().mean().backward()
    optimiser.step()


def products(model: ScMamba, genes: int, train: bool) -> None:
    """Every layer's matrix products and nothing else; in training the gradients of input and weight too."""
    config = model.config
    inner = config.d_inner
    with torch.no_grad():
        for layer in model.backbone.layers:
            mixer = layer.mixer
            for linear in (
                mixer.in_proj,
                mixer.out_proj,
                mixer.x_proj,
                mixer.x_proj_b,
                mixer.dt_proj,
                mixer.dt_proj_b,
            ):
                weight = linear.weight
                x = _inputs(genes, weight.shape[1], inner)
                y = F.linear(x, weight)
                if train:
                    y @ weight  # gradient of the input
                    y.transpose(0, 1) @ x  # gradient of the weight


_buffers: dict[int, torch.Tensor] = {}


def _inputs(genes: int, width: int, inner: int) -> torch.Tensor:
    """Made once: the timing excludes the making of their inputs."""
    key = genes * 100_000 + width
    if key not in _buffers:
        _buffers[key] = torch.randn(genes, width)
    return _buffers[key]


def timed(width: int, layers: int, rounds: int) -> dict[str, float]:
    model, x = network(width, layers), cell()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    functions = {
        "inference_s": lambda: inference(model, x),
        "inference_products_s": lambda: products(model, GENES, False),
        "training_s": lambda: step(model, x, optimiser),
        "training_products_s": lambda: products(model, GENES, True),
    }
    step(model, x, optimiser)  # a step reaches its full memory only from the second one on
    processor: dict[str, float] = {}
    result = interleaved(functions, dict.fromkeys(functions, rounds), processor)
    for part in ("inference", "training"):
        result[f"{part}_wall_ratio"] = result[f"{part}_s"] / result[f"{part}_products_s"]
        result[f"{part}_ratio"] = processor[f"{part}_s"] / processor[f"{part}_products_s"]
    result |= {name.replace("_s", "_processor_s"): seconds for name, seconds in processor.items()}
    return result


def by_length(rounds: int) -> dict[int, float]:
    width, layers = SIZES["D 256 x 6 (published)"]
    models = {length: (network(width, layers, length), cell(length)) for length in LENGTHS}
    functions = {str(n): (lambda m=m, x=x: inference(m, x)) for n, (m, x) in models.items()}
    processor: dict[str, float] = {}
    interleaved(functions, dict.fromkeys(functions, rounds), processor)
    return {int(n): s for n, s in processor.items()}


def memory(mode: str) -> None:
    """Peak memory of training on one cell at the published size, above that of the weights."""
    model, x = network(*SIZES["D 256 x 6 (published)"]), cell()
    use_checkpointing(model, mode == "checkpointing")
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    step(
        ScMamba(ModelConfig(n_genes=100, d_model=16, n_layer=1)),
        cell(100),
        torch.optim.SGD([torch.zeros(1)]),
    )
    print(grown(lambda: step(model, x, optimiser)))


def measure(rounds: int) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": machine(), "genes": GENES}
    result["sizes"] = {name: timed(*size, rounds) for name, size in SIZES.items()}
    result["training_mb"] = {
        mode: peak_memory("benchmarks.model", "--memory", mode)
        for mode in ("everything kept", "checkpointing")
    }
    result["length_s"] = by_length(rounds)
    result["machine"]["load_average_after"] = machine()["load_average_1_min"]
    return result


def table(r: dict[str, Any]) -> str:
    rows = [
        "| model | inference, processor s/cell | its products | ratio | training step, processor s/cell | its products | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, t in r["sizes"].items():
        ends = ("_processor_s", "_products_processor_s", "_ratio")
        cells = [f"{t[part + end]:.2f}" for part in ("inference", "training") for end in ends]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    m, mb = r["machine"], r["training_mb"]
    seconds = {int(n): s for n, s in r["length_s"].items()}
    per_gene = {n: 1e6 * s / n for n, s in seconds.items()}
    return (
        "\n".join(rows)
        + f"\n\n{m['processor']}, {m['threads']} threads, torch {m['torch']}, float32, one cell of {r['genes']:,} genes; load "
        f"average {m['load_average_1_min']:.1f} before and {m['load_average_after']:.1f} after the run: processor "
        "seconds, all threads together, not seconds on a clock. Peak memory of a "
        f"training step at the published size: {mb['everything kept']:,.0f} MB, with checkpointing "
        f"{mb['checkpointing']:,.0f} MB. Cost per gene: "
        + ", ".join(f"{per_gene[n]:.0f} us at L {n:,}" for n in sorted(per_gene))
        + "."
        + "".join(" " + note for note in r.get("notes", []))
    )


def picture(r: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), constrained_layout=True)
    names = list(r["sizes"])
    for offset, part, colour in ((-0.2, "inference", "#2a6f97"), (0.2, "training", "#bc6c25")):
        at = [i + offset for i in range(len(names))]
        left.bar(
            at,
            [r["sizes"][n][f"{part}_processor_s"] for n in names],
            0.36,
            color=colour,
            alpha=0.45,
            label=part,
        )
        bare = [r["sizes"][n][f"{part}_products_processor_s"] for n in names]
        left.bar(at, bare, 0.36, color=colour, label=f"its matrix products ({part})")
    left.set_xticks(range(len(names)), names, fontsize=8)
    left.set(ylabel="processor seconds per cell", title="model and bare products")
    left.legend(fontsize=7, frameon=False)
    lengths = sorted(int(n) for n in r["length_s"])
    seconds = [r["length_s"][str(n)] for n in lengths]
    right.plot(lengths, seconds, "o-", color="#2a6f97")
    right.plot(
        lengths,
        [seconds[-1] * n / lengths[-1] for n in lengths],
        ":",
        color="grey",
        label="proportional to L",
    )
    right.set(
        xlabel="L (genes)",
        ylabel="processor seconds per cell",
        title="inference, D 256 x 6",
        xlim=0,
        ylim=0,
    )
    right.legend(fontsize=7, frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "model.png", dpi=130)


def lookup(rounds: int) -> str:
    """Processor seconds of a whole cell with the first projection looked up, relative to without."""
    lines = []
    for name, size in SIZES.items():
        model, x = network(*size).eval(), cell()

        def answer(on: bool, model: ScMamba = model, x: torch.Tensor = x) -> None:
            model.lookup = on
            inference(model, x)

        processor: dict[str, float] = {}
        ways = {"with": lambda f=answer: f(True), "without": lambda f=answer: f(False)}
        interleaved(ways, dict.fromkeys(ways, rounds), processor)
        lines.append(f"{name}: {processor['with'] / processor['without']:.2f}")
    return (
        f"with the table / without, SCMAMBA_LINEAR={os.environ.get('SCMAMBA_LINEAR', 'unset')}: "
        + "; ".join(lines)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--lookup", action="store_true")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--memory", choices=("everything kept", "checkpointing"))
    options = parser.parse_args()
    if options.memory:
        memory(options.memory)
        return
    if options.lookup:
        print(lookup(3 * options.rounds))
        return
    if not options.table:
        save("model", measure(options.rounds))
    result = json.loads((RESULTS / "model.json").read_text())
    picture(result)
    write_table("model", table(result))
    print(table(result))


if __name__ == "__main__":
    main()
