"""The command line: ``scmamba <verb>``. A command parses its options, calls the Python verb of the same name and reports."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .._version import __version__
from ..embedding.options import EmbedOptions
from ..imputation.options import ImputeOptions
from .errors import CommandGroup
from .options import Former, Input, ModelOption, Output, Quiet, options_of

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="scMamba: a pre-trained bidirectional Mamba for single-nucleus RNA-seq of the brain.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scmamba {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Set options of all commands."""


@app.command()
@options_of(
    ImputeOptions,
    flags={"batch_key": ("--batch-key", "--batch")},
    former={
        "adapt": Former("adapt_steps", bool, lambda on: ImputeOptions.adapt_steps if on else 0)
    },
    former_values={"method": {"rates": "ensemble", "published": "masked"}},
)
def impute(
    data: Input, output: Output, model: ModelOption = None, quiet: Quiet = False, **options: Any
) -> None:
    """Impute the zeros of an .h5ad file (layers/scmamba of a copy); under torchrun by several processes."""
    from ..imputation.distributed import impute_file_shared, is_rank0

    impute_file_shared(data, output, model=model, verbose=not quiet, **options)
    if is_rank0():
        typer.echo(f"{output}: layers['scmamba']")


@app.command()
@options_of(EmbedOptions)
def embed(
    data: Input, output: Output, model: ModelOption = None, quiet: Quiet = False, **options: Any
) -> None:
    """Embed the cells of an .h5ad file (obsm/X_scmamba of a copy)."""
    from ..embedding import embed_file

    embed_file(data, output, model=model, verbose=not quiet, **options)
    typer.echo(f"{output}: obsm['X_scmamba']")


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def serve(context: typer.Context) -> None:
    """Start the server: python -m scmamba.serve with the same options (scmamba serve --help)."""
    import runpy
    import sys

    sys.argv[1:] = context.args
    runpy.run_module("scmamba.serve", run_name="__main__", alter_sys=False)


def _register() -> None:
    from . import annotation, checkpoints, data, deg, doublets, evaluate, report, train

    for module in (train, checkpoints, data, deg, doublets, annotation, evaluate, report):
        module.register(app)


_register()
