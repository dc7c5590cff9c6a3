"""Commands that make models: ``scmamba pretrain``, ``scmamba finetune`` and ``scmamba vocab build``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..utils.errors import DataError, ScMambaError
from ..utils.progress import say

if TYPE_CHECKING:
    from ..data.collection import Collection
    from ..genes import Vocabulary
    from ..model import Model
    from ..training.config import Settings
    from ..training.trainer import TrainerConfig

Data = Annotated[
    list[Path],
    typer.Argument(help="Files of raw counts: .h5ad, 10x .h5, .zarr, .mtx or its folder, .rds."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The checkpoint folder to write.")]
Recipe = Annotated[str, typer.Option(help="paper: as published; small: what a laptop can train.")]
Config = Annotated[
    Path | None,
    typer.Option(help="YAML of settings; what is given here wins over it, and it over the recipe."),
]
Epochs = Annotated[float | None, typer.Option(min=0, help="Times through the data.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps, in place of epochs.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Cells a process reads at once.")]
Accumulate = Annotated[int | None, typer.Option(min=1, help="Batches that make a step.")]
Lr = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Ema = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Keep a running mean of the weights with this decay; 0: none."),
]
Precision = Annotated[
    Literal["auto", "32", "bf16", "16"] | None, typer.Option(help="auto: 16 on a GPU, else 32.")
]
GenesPerStep = Annotated[
    int | None, typer.Option(min=0, help="At most this many expressed genes of a cell; 0: all.")
]
MinTotal = Annotated[float | None, typer.Option(help="Least counts of a training cell.")]
MinDonorCells = Annotated[int | None, typer.Option(min=0, help="Least cells of a donor.")]
SaveEvery = Annotated[
    int | None, typer.Option(min=1, help="Steps between saved states (and validations).")
]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(help="File of other donors, for the validation loss; may be repeated."),
]
Splits = Annotated[
    Path | None,
    typer.Option(help="Table of donors (study, donor, split): made if absent, used if there."),
]
Work = Annotated[
    Path | None,
    typer.Option(help="Folder for states, log and curve; a stopped run goes on from there."),
]
Donor = Annotated[str | None, typer.Option(help="Column of obs that names the donor.")]
Study = Annotated[
    str | None, typer.Option(help="Column of obs that names the study; the file if not given.")
]
Disease = Annotated[str | None, typer.Option(help="Column of obs that names the diagnosis.")]
Label = Annotated[str | None, typer.Option(help="Column of obs that names the cell type.")]
Layer = Annotated[str | None, typer.Option(help="Layer that holds the counts; X if not given.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder for converted files; $SCMAMBA_CACHE or the user's cache if not given."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same weights (on a CPU, bit for bit).")]
Force = Annotated[
    bool, typer.Option("--force", help="Go on although few of the model's genes were measured.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, no progress.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Name or checkpoint folder to start from; default brain-mini."
    ),
]


def pretrain(
    data: Data,
    output: Output,
    recipe: Recipe = "paper",
    config: Config = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="genes.tsv of scmamba vocab build; the published genes if not given."),
    ] = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    lr: Lr = None,
    ema: Ema = None,
    precision: Precision = None,
    d_model: Annotated[int | None, typer.Option(min=1, help="Width of the network.")] = None,
    layers: Annotated[int | None, typer.Option(min=1, help="Layers of the network.")] = None,
    reads: Annotated[
        Literal["all", "expressed"] | None,
        typer.Option(help="all: whole cells, as published; expressed: a tenth."),
    ] = None,
    genes_per_step: GenesPerStep = None,
    min_total: MinTotal = None,
    min_donor_cells: MinDonorCells = None,
    save_every: SaveEvery = None,
    held_out: HeldOut = None,
    splits: Splits = None,
    work: Work = None,
    donor: Donor = None,
    study: Study = None,
    disease: Disease = None,
    label: Label = None,
    layer: Layer = None,
    cache: Cache = None,
    seed: Seed = None,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Pre-train a model from nothing by masked-expression modelling (15% of the non-zero values hidden)."""
    from ..genes import Vocabulary
    from ..nn import ModelConfig
    from ..training import pretrain as run

    given = dict(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        ema=ema,
        precision=precision,
        d_model=d_model,
        layers=layers,
        reads=reads,
        genes_per_step=genes_per_step,
        min_total=min_total,
        min_donor_cells=min_donor_cells,
        save_every=save_every,
        seed=seed,
    )
    columns = dict(donor=donor, study=study, disease=disease, label=label, layer=layer)
    genes = Vocabulary.read(vocabulary) if vocabulary else Vocabulary.published()
    plan = _Plan("pretrain", recipe, config, given, output, overwrite, quiet)
    cells, others = plan.open(data, held_out, splits, genes, columns, cache, force)
    settings = plan.settings
    model = run(
        cells,
        config=ModelConfig(
            n_genes=len(genes),
            d_model=settings.d_model,
            n_layer=settings.layers,
            reads=settings.reads,
        ),
        vocabulary=genes,
        loop=plan.loop(cells),
        sequence=settings.sequence(),
        held_out=others,
        folder=work,
        name=output.name,
        seed=settings.seed,
        force=force,
        verbose=plan.verbose,
    )
    plan.finish(model, "Pre-trained (masked-expression modelling)", cells, "")


def finetune(
    data: Data,
    output: Output,
    model: ModelOption = None,
    task: Annotated[
        Literal["impute", "annotate", "doublets"], typer.Option(help="What the model is to do.")
    ] = "impute",
    recipe: Recipe = "paper",
    config: Config = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    lr: Lr = None,
    ema: Ema = None,
    precision: Precision = None,
    genes_per_step: GenesPerStep = None,
    min_total: MinTotal = None,
    above: Annotated[
        float | None,
        typer.Option(min=0, help="Train on cells with more counts than this; 0: no such limit."),
    ] = None,
    min_donor_cells: MinDonorCells = None,
    balance: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Classes: 0 every cell counts alike, 1 every class."),
    ] = None,
    freeze: Annotated[
        bool | None, typer.Option("--freeze", help="Classes: train the head only.")
    ] = None,
    probe: Annotated[
        bool | None,
        typer.Option(
            "--probe/--no-probe",
            help="Classes: start the head from the cell embeddings; not: as published.",
        ),
    ] = None,
    save_every: SaveEvery = None,
    held_out: HeldOut = None,
    splits: Splits = None,
    work: Work = None,
    donor: Donor = None,
    study: Study = None,
    disease: Disease = None,
    label: Label = None,
    layer: Layer = None,
    cache: Cache = None,
    seed: Seed = None,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model: impute (hidden values), annotate (the cells' labels) or doublets (simulated within donors)."""
    from ..model import load_model
    from ..training.distributed import is_distributed, training_device

    given = dict(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        ema=ema,
        precision=precision,
        genes_per_step=genes_per_step,
        min_total=min_total,
        above=above,
        min_donor_cells=min_donor_cells,
        balance=balance,
        freeze=freeze or None,
        probe=probe,
        save_every=save_every,
        seed=seed,
    )
    columns = dict(donor=donor, study=study, disease=disease, label=label, layer=layer)
    plan = _Plan(task, recipe, config, given, output, overwrite, quiet)
    start = load_model(model, device=training_device() if is_distributed() else None)
    cells, others = plan.open(data, held_out, splits, start.genes, columns, cache, force)
    tuned = _tune(task, start, plan, cells, others, work, force)
    use = (
        f"scmamba impute --model {output}"
        if task == "impute"
        else f"scmamba.load_model('{output}').classify"
    )
    plan.finish(tuned, f"Fine-tuned from {model or 'brain-mini'} for {task}", cells, use)


def _tune(
    task: str,
    start: Model,
    plan: _Plan,
    cells: Collection,
    others: Any,
    work: Path | None,
    force: bool,
) -> Model:
    from ..training import finetune as run
    from ..training.finetune_classifier import finetune_classes

    settings, loop, name = plan.settings, plan.loop(cells), plan.output.name
    if task == "impute":
        return run(
            cells,
            model=start,
            task=task,
            loop=loop,
            sequence=settings.sequence(),
            held_out=others,
            folder=work,
            name=name,
            seed=settings.seed,
            force=force,
            verbose=plan.verbose,
        )
    recipe: Any = settings.doublet_recipe
    return finetune_classes(
        task,
        cells,
        model=start,
        loop=loop,
        sequence=settings.sequence(),
        held_out=others or None,
        balance=settings.balance,
        freeze=settings.freeze,
        probe=settings.probe,
        recipe=recipe,
        fraction=settings.doublet_fraction,
        folder=work,
        name=name,
        verbose=plan.verbose,
    )


class _Plan:
    """What both verbs share: settings, data, and the checkpoint at the end."""

    def __init__(
        self,
        verb: str,
        recipe: str,
        file: Path | None,
        given: dict[str, Any],
        output: Path,
        overwrite: bool,
        quiet: bool,
    ) -> None:
        from ..training.config import read_settings
        from ..training.distributed import is_first_process

        self.settings: Settings
        self.settings, self.chosen = read_settings(verb, recipe, file, given)
        self.first = is_first_process()
        self.verbose = not quiet and self.first
        self.output, self.recipe = output, recipe
        if output.exists() and not overwrite:
            raise ScMambaError(
                f"{output} exists already. Choose another name, or pass --overwrite."
            )

    def open(
        self,
        data: list[Path],
        held_out: list[Path] | None,
        splits: Path | None,
        genes: Vocabulary,
        columns: dict[str, Any],
        cache: Path | None,
        force: bool,
    ) -> tuple[Collection, Collection | list[Any]]:
        """Training cells and cells for the validation loss."""
        from ..data.collection import Collection, read_splits, write_splits

        if splits is not None and held_out:
            raise ScMambaError("Give either --held-out files or a table of --splits, not both.")
        cells = self._filter(
            Collection(
                data, vocabulary=genes, cache=cache, force=force, verbose=self.verbose, **columns
            )
        )
        if splits is not None:
            table = (
                read_splits(splits) if splits.is_file() else cells.split(seed=self.settings.seed)
            )
            if self.first and not splits.is_file():
                write_splits(table, splits)
                parts = ", ".join(
                    f"{number} {part}" for part, number in table["split"].value_counts().items()
                )
                say(f"donors divided into {parts}: {splits}", self.verbose)
            train = cells.select(table, "train")
            try:
                return train, cells.select(table, "validation")
            except DataError as error:
                say(f"{error} There will be no validation loss.", self.verbose)
                return train, []
        if held_out:
            others = Collection(
                held_out,
                vocabulary=genes,
                cache=cache,
                force=force,
                verbose=self.verbose,
                **columns,
            )
            return cells, others.filter(min_total=self.settings.min_total, min_donor_cells=0)
        return cells, []

    def _filter(self, cells: Collection) -> Collection:
        """The paper's filters. Limits nobody asked for give way where they would leave nothing."""
        wanted: dict[str, Any] = {
            "min_donor_cells": self.settings.min_donor_cells,
            "above": self.settings.above or None,
        }
        gone = {"min_donor_cells": 0, "above": None}
        while True:
            try:
                return cells.filter(min_total=self.settings.min_total, **wanted)
            except DataError as error:
                weak = [
                    name for name in gone if wanted[name] != gone[name] and name not in self.chosen
                ]
                if not weak:
                    raise
                name = weak[-1]
                say(
                    f"{error} The recipe's {name} of {wanted[name]:,.0f} is left out, as nobody asked for it.",
                    self.verbose,
                )
                wanted[name] = gone[name]

    def loop(self, cells: Collection) -> TrainerConfig:
        """Optimiser settings for so many cells."""
        from ..training.distributed import number_of_processes, training_device

        return self.settings.loop(
            len(cells), number_of_processes(), training_device().type == "cuda"
        )

    def finish(self, model: Model, how: str, cells: Collection, ready: str) -> None:
        """Write the checkpoint and say so; one process does."""
        if not self.first:
            return
        from ..model import save_checkpoint

        save_checkpoint(
            model, self.output, card=_card(self.output.name, how, self.recipe, self.settings, cells)
        )
        size = sum(p.numel() for p in model.network.parameters())
        typer.echo(f"{self.output}: " + (f"ready for {ready}" if ready else f"{size:,} parameters"))


def _card(name: str, how: str, recipe: str, settings: Settings, cells: Collection) -> str:
    import numpy as np

    files, donors = cells.file_of(cells.cells), np.asarray(cells.donor_keys().codes)
    lines = [
        f"- {member.store.source}: {(files == f).sum():,} cells, {len(np.unique(donors[files == f]))} donors"
        for f, member in enumerate(cells.members)
        if (files == f).any()
    ]
    return (
        f"# {name}\n\n{how}, recipe {recipe}. Cells it was trained on:\n"
        + "\n".join(lines)
        + "\n\n"
        "Nobody has measured its accuracy yet; it knows only these cells. Add licence, held-out results and limits before you share it.\n\n"
        f"Settings:\n\n```yaml\n{settings.text()}```\n"
    )


vocab = typer.Typer(no_args_is_help=True, help="Gene vocabularies of new models.")


@vocab.callback()
def _vocab() -> None:
    """Gene vocabularies of new models."""


@vocab.command("build")
def build(
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="The genes.tsv to write.")],
    gtf: Annotated[
        Path | None,
        typer.Option(help="Annotation (.gtf or .gtf.gz); the packaged GRCh38 table if not given."),
    ] = None,
    min_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of all cells a gene is seen in.")
    ] = 0.005,
    table: Annotated[
        Path | None, typer.Option(help="Write every gene's cells and fate to this .tsv, too.")
    ] = None,
    cache: Cache = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """The paper's rule: union of the files' annotated genes, none of chromosome Y, seen in 0.5% of the cells."""
    from ..data.vocabulary_builder import build_vocabulary
    from ..utils.atomic import atomic_path

    if output.exists() and not overwrite:
        raise ScMambaError(f"{output} exists already. Choose another name, or pass --overwrite.")
    genes, found = build_vocabulary(
        data, gtf=gtf, min_fraction=min_fraction, cache=cache, verbose=not quiet
    )
    with atomic_path(output) as temporary:
        genes.write(temporary)
    if table is not None:
        with atomic_path(table) as temporary:
            found.to_csv(temporary, sep="\t", index=False, lineterminator="\n")
    typer.echo(f"{output}: {len(genes):,} of {len(found):,} genes seen")


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(pretrain)
    app.command()(finetune)
    app.add_typer(vocab, name="vocab")
