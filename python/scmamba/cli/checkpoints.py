"""Commands about models: ``models``, ``fetch-model``, ``upload-model``, ``pack-model``, ``convert-checkpoint``, and ``info``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import refuse_existing_outputs
from .options import Overwrite, Quiet


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
    from ..model.checkpoint import refuse_foreign_files

    refuse_existing_outputs(folders=[output], overwrite=overwrite)
    refuse_foreign_files(output)
    model = load_model(checkpoint, vocabulary, labels=labels, device="cpu")
    save_checkpoint(model, output)
    config = model.config
    typer.echo(
        f"{output}: D {config.d_model} x {config.n_layer} layers, {config.n_genes:,} genes, {config.n_classes} classes"
    )


def models() -> None:
    """List the available models, and those that can be fetched."""
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


def fetch_model(
    name: Annotated[
        str,
        typer.Argument(help="A model of the registry, or hf://organization/name[@revision]."),
    ],
    quiet: Quiet = False,
) -> None:
    """Fetch a model and verify it; load_model does the same when the model is first used."""
    from ..model import fetch_from_hub
    from ..model import fetch_model as fetch

    from_hub = name.startswith("hf://")
    typer.echo(str((fetch_from_hub if from_hub else fetch)(name, verbose=not quiet)))


def upload_model(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder with a model card.")],
    address: Annotated[str, typer.Argument(help="hf://organization/name[@branch].")],
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, as the hub spells it: apache-2.0.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A new repository can be read by everyone.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Upload a checkpoint to the Hugging Face hub; its model card becomes the page of the repository."""
    from ..model import upload_model as upload

    typer.echo(upload(folder, address, licence=licence, private=not public, verbose=not quiet))


def pack_model(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .zip to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint as one file for the web, and print its entry for a registry."""
    import json

    from ..model import pack_model as pack

    refuse_existing_outputs(output, overwrite=overwrite)
    entry = {"url": f"https://.../{output.name}", **pack(folder, output), "about": ""}
    typer.echo(json.dumps({output.stem: entry}, indent=1))


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


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    for command in (convert_checkpoint, models, fetch_model, upload_model, pack_model, info):
        app.command()(command)
