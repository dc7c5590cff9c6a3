"""The command line: ``scmamba <verb>``. It parses, calls the Python verb of the same name and reports; no science here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from ..imputation.options import ImputeOptions
from ..utils.deprecation import warn_renamed
from ..utils.errors import ScMambaError


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

#: Values of --method before 0.2.0.
_OLD_METHODS = {"rates": "ensemble", "published": "masked"}

Input = Annotated[Path, typer.Argument(help="An .h5ad file of counts, cells x genes.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The .h5ad file to write.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Name, checkpoint folder or published .ckpt; default brain-mini."
    ),
]
Layer = Annotated[str | None, typer.Option(help="Layer to read; X if not given.")]
GeneColumn = Annotated[
    str | None,
    typer.Option(help="Column of var with gene names; the best one is found if not given."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on although few of the model's genes were measured.")
]
Backend = Annotated[str | None, typer.Option(help="Selective scan to use (see scmamba info).")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the GPU if there is one.")
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Cells at once; chosen by memory if not given.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.")]


@app.command()
def impute(
    data: Input,
    output: Output,
    model: ModelOption = None,
    layer: Layer = None,
    gene_column: GeneColumn = None,
    method: Annotated[
        Literal["ensemble", "masked", "rates", "published"] | None,
        typer.Option(metavar="[ensemble|masked]", help=ImputeOptions.help("method")),
    ] = None,
    batch_key: Annotated[
        str | None,
        typer.Option("--batch-key", "--batch", help=ImputeOptions.help("batch_key")),
    ] = None,
    adapt_steps: Annotated[int, typer.Option(min=0, help=ImputeOptions.help("adapt_steps"))] = (
        ImputeOptions.adapt_steps
    ),
    adapt: Annotated[
        bool | None, typer.Option("--adapt/--no-adapt", hidden=True, help="Use --adapt-steps.")
    ] = None,
    passes: Annotated[
        int, typer.Option(min=1, help=ImputeOptions.help("passes"))
    ] = ImputeOptions.passes,
    min_value: Annotated[
        float | None, typer.Option(min=0, help=ImputeOptions.help("min_value"))
    ] = None,
    to_counts: Annotated[
        bool, typer.Option("--to-counts", help=ImputeOptions.help("to_counts"))
    ] = False,
    batch_size: BatchSize = None,
    device: Device = None,
    backend: Backend = None,
    seed: Seed = 0,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Impute the zeros of an .h5ad file (layers/scmamba of a copy); under torchrun by several processes."""
    from ..imputation.distributed import impute_file_shared, is_rank0

    if adapt is not None:
        warn_renamed("--adapt/--no-adapt", "--adapt-steps N (0 = off)")
        adapt_steps = adapt_steps if adapt else 0
    if method in _OLD_METHODS:
        warn_renamed(f"--method {method}", f"--method {_OLD_METHODS[method]}")
    impute_file_shared(
        data,
        output,
        overwrite=overwrite,
        model=model,
        layer=layer,
        gene_column=gene_column,
        method=_OLD_METHODS.get(method or "", method),
        batch_key=batch_key,
        adapt_steps=adapt_steps,
        passes=passes,
        min_value=min_value,
        to_counts=to_counts,
        batch_size=batch_size,
        device=device,
        backend=backend,
        seed=seed,
        force=force,
        verbose=not quiet,
    )
    if is_rank0():
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
    from ..embedding import embed_file

    embed_file(
        data,
        output,
        overwrite=overwrite,
        model=model,
        layer=layer,
        gene_column=gene_column,
        batch_size=batch_size,
        device=device,
        backend=backend,
        force=force,
        verbose=not quiet,
    )
    typer.echo(f"{output}: obsm['X_scmamba']")


@app.command("convert-checkpoint")
def convert_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt file in the published layout.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The checkpoint folder to write.")],
    vocabulary: Annotated[
        Path | None, typer.Option(help="Its vocab.txt; the published gene list if not given.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="JSON of class name to index, for classifiers.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn a published .ckpt into a checkpoint folder (safetensors, config, genes, labels, card)."""
    from ..model import load_model, save_checkpoint

    _check_new(output, overwrite)
    model = load_model(checkpoint, vocabulary, labels=labels, device="cpu")
    save_checkpoint(model, output)
    config = model.config
    typer.echo(
        f"{output}: D {config.d_model} x {config.n_layer} layers, {config.n_genes:,} genes, {config.n_classes} classes"
    )


@app.command()
def models() -> None:
    """List the models at hand, and those that can be fetched."""
    from ..model import list_models, load_model, registry

    for name in list_models():
        model = load_model(name, device="cpu")
        size = sum(p.numel() for p in model.network.parameters())
        typer.echo(
            f"{name}: D {model.config.d_model} x {model.config.n_layer} layers, {len(model.genes):,} genes, {size:,} parameters"
        )
        typer.echo("\n".join("    " + line for line in model.card.splitlines()))
    for name, entry in registry().items():
        if name not in list_models():
            typer.echo(f"{name}: not fetched yet (scmamba fetch-model {name}); {entry['about']}")


@app.command()
def fetch_model(
    name: Annotated[str, typer.Argument(help="A model of the registry.")], quiet: Quiet = False
) -> None:
    """Fetch a model, check it and keep it; load_model does the same when it is first asked for."""
    from ..model import fetch_model as fetch

    typer.echo(str(fetch(name, verbose=not quiet)))


@app.command()
def pack_model(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .zip to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint as one file to be put on the web, and print its entry for a registry."""
    import json

    from ..model import pack_model as pack

    _check_new(output, overwrite)
    entry = {"url": f"https://.../{output.name}", **pack(folder, output), "about": ""}
    typer.echo(json.dumps({output.stem: entry}, indent=1))


@app.command()
def info() -> None:
    """Versions, device, scan backends and models of this installation."""
    from ..diagnostics import info as gather

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


def _register() -> None:
    from . import annotation, data, deg, doublets, evaluate, train

    for module in (train, data, deg, doublets, annotation, evaluate):
        module.register(app)


_register()
