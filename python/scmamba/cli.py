"""The command line: ``scmamba <verb>``. It parses, calls the Python verb of the same name and reports; no science here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ._errors import ScMambaError


class _Verbs(TyperGroup):
    """Turns the errors meant for people into one sentence and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ScMambaError as error:
            typer.secho(f"Error: {error}", fg="red", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="scMamba: a pre-trained bidirectional Mamba for single-nucleus RNA-seq of the brain.",
)

Input = Annotated[Path, typer.Argument(help="An .h5ad file of counts, cells x genes.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The .h5ad file to write.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Name, checkpoint folder or published .ckpt; default brain-mini.")]
Layer = Annotated[str | None, typer.Option(help="Layer to read; X if not given.")]
GeneColumn = Annotated[str | None, typer.Option(help="Column of var with gene names; the best one is found if not given.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Force = Annotated[bool, typer.Option("--force", help="Go on although few of the model's genes were measured.")]
Backend = Annotated[str | None, typer.Option(help="Selective scan to use (see scmamba info).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the GPU if there is one.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Cells at once; chosen by memory if not given.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.")]


@app.command()
def impute(
    data: Input,
    output: Output,
    model: ModelOption = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    method: Annotated[Literal["rates", "published"] | None, typer.Option(help="Frequencies with neighbours, or the paper's masks.")] = None,
    adapt: Annotated[bool, typer.Option(help="Adapt a copy of the model to these cells first, if that helps.")] = True,
    passes: Annotated[int, typer.Option(min=1, help="Groups the zeros are divided into (published method).")] = 10,
    min_value: Annotated[float | None, typer.Option(min=0, help="Smaller predictions (log1p CP10k) stay zero; 0.2 if not given.")] = None,
    to_counts: Annotated[bool, typer.Option("--to-counts", help="Write expected counts instead of log1p CP10k.")] = False,
    batch_size: BatchSize = None,
    device: Device = None,
    backend: Backend = None,
    seed: Seed = 0,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fill the zeros of an .h5ad file with what the model expects (layers/scmamba of a copy)."""
    from .tasks import impute_file

    impute_file(data, output, overwrite=overwrite, model=model, layer=layer, gene_column=gene_column, method=method, adapt=adapt,
                passes=passes, min_value=min_value, to_counts=to_counts, batch_size=batch_size, device=device, backend=backend, seed=seed,
                force=force, verbose=not quiet)  # fmt: skip
    typer.echo(f"{output}: layers['scmamba']")


@app.command()
def embed(
    data: Input,
    output: Output,
    model: ModelOption = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    batch_size: BatchSize = None,
    device: Device = None,
    backend: Backend = None,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Embed the cells of an .h5ad file (obsm/X_scmamba of a copy)."""
    from .tasks import embed_file

    embed_file(data, output, overwrite=overwrite, model=model, layer=layer, gene_column=gene_column, batch_size=batch_size,
               device=device, backend=backend, force=force, verbose=not quiet)  # fmt: skip
    typer.echo(f"{output}: obsm['X_scmamba']")


@app.command()
def pretrain(
    data: Annotated[list[Path], typer.Argument(help=".h5ad files of raw counts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint folder to write.")],
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    d_model: Annotated[int, typer.Option(min=1)] = 256,
    layers: Annotated[int, typer.Option(min=1)] = 6,
    reads: Annotated[str, typer.Option(help="all: whole cells, as published; expressed: a tenth of the cost.")] = "all",
    held_out: Annotated[list[Path] | None, typer.Option(help=".h5ad file of other donors, for the validation loss.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the state; a stopped run goes on from there.")] = None,
    seed: Seed = 0,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train a model from nothing by masked-expression modelling (15% of the non-zero values)."""
    from .genes import Vocabulary
    from .model import ModelConfig, save_checkpoint
    from .training import LoopConfig
    from .training import pretrain as run

    _check_new(output, overwrite)
    vocabulary = Vocabulary.published()
    config = ModelConfig(n_genes=len(vocabulary), d_model=d_model, n_layer=layers, reads=reads)
    loop = LoopConfig(steps=steps, batch_size=batch_size, lr=lr)
    model = run(data, config=config, vocabulary=vocabulary, loop=loop, held_out=held_out or (), folder=work, name=output.name,
                seed=seed, force=force, verbose=not quiet)  # fmt: skip
    save_checkpoint(model, output, card=_card(output.name, "Pre-trained (masked-expression modelling)", data, steps, seed))
    typer.echo(f"{output}: {sum(p.numel() for p in model.network.parameters()):,} parameters")


@app.command()
def finetune(
    data: Annotated[list[Path], typer.Argument(help=".h5ad files of raw counts.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint folder to write.")],
    model: ModelOption = None,
    task: Annotated[str, typer.Option(help="impute")] = "impute",
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    min_total: Annotated[float, typer.Option(help="Least counts of a training cell (paper: 4000).")] = 200,
    held_out: Annotated[list[Path] | None, typer.Option(help=".h5ad file of other donors, for the validation loss.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for the state; a stopped run goes on from there.")] = None,
    seed: Seed = 0,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a pre-trained model for imputation (40% of the non-zeros, 4% of the zeros hidden)."""
    from .model import save_checkpoint
    from .training import LoopConfig
    from .training import finetune as run

    _check_new(output, overwrite)
    loop = LoopConfig(steps=steps, batch_size=batch_size, lr=lr)
    tuned = run(data, model=model, task=task, loop=loop, held_out=held_out or (), min_total=min_total, folder=work, name=output.name,
                seed=seed, force=force, verbose=not quiet)  # fmt: skip
    save_checkpoint(tuned, output, card=_card(output.name, f"Fine-tuned from {model or 'brain-mini'} for {task}", data, steps, seed))
    typer.echo(f"{output}: ready for scmamba impute --model {output}")


@app.command("convert-checkpoint")
def convert_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt file in the published layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint folder to write.")],
    vocabulary: Annotated[Path | None, typer.Option(help="Its vocab.txt; the published gene list if not given.")] = None,
    labels: Annotated[Path | None, typer.Option(help="JSON of class name to index, for classifiers.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a published .ckpt into a checkpoint folder (safetensors, config, genes, labels, card)."""
    from .model import load_model, save_checkpoint

    _check_new(output, overwrite)
    model = load_model(checkpoint, vocabulary, labels=labels, device="cpu")
    save_checkpoint(model, output)
    config = model.config
    typer.echo(f"{output}: D {config.d_model} x {config.n_layer} layers, {config.n_genes:,} genes, {config.n_classes} classes")


@app.command()
def models() -> None:
    """List the models that ship with the package."""
    from .model import load_model
    from .model import models as shipped

    for name in shipped():
        model = load_model(name, device="cpu")
        size = sum(p.numel() for p in model.network.parameters())
        typer.echo(f"{name}: D {model.config.d_model} x {model.config.n_layer} layers, {len(model.genes):,} genes, {size:,} parameters")
        typer.echo("\n".join("    " + line for line in model.card.splitlines()))


@app.command()
def info() -> None:
    """Versions, device, scan backends and models of this installation."""
    from ._info import info as gather

    for key, value in gather().items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for name, text in value.items():
                typer.echo(f"    {name}: {text}")
        else:
            typer.echo(f"{key}: {value}")


def _check_new(output: Path, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise ScMambaError(f"{output} exists already. Choose another name, or pass --overwrite.")


def _card(name: str, how: str, data: list[Path], steps: int, seed: int) -> str:
    files = "\n".join(f"- {path.name}" for path in data)
    return (
        f"# {name}\n\n{how}, {steps} steps, seed {seed}. Files it was trained on:\n{files}\n\n"
        "Nobody has measured its accuracy yet; it knows only "
        "the cells in these files. Add donors, licence, held-out results and limits before you share it.\n"
    )


def _register() -> None:
    from . import _cli_data, _cli_deg

    for module in (_cli_data, _cli_deg):
        module.register(app)


_register()
