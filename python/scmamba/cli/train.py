"""Commands that train models: ``scmamba pretrain``, ``scmamba finetune`` and ``scmamba vocab build``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..training.options import TrainingOptions
from ..utils.errors import DataError, OptionError
from ..utils.progress import say
from .errors import refuse_existing_outputs
from .options import Force, Overwrite, Quiet, options_of

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
    typer.Option(
        help="YAML of settings; options given here take precedence over it, and it over the recipe."
    ),
]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(help="File of other donors, for the validation loss; may be repeated."),
]
Splits = Annotated[
    Path | None,
    typer.Option(
        help="Table of donors (study, donor, split): written if it does not exist, read if it does."
    ),
]
Work = Annotated[
    Path | None,
    typer.Option(help="Folder for states, log and curve; a stopped run continues from there."),
]
Donor = Annotated[str | None, typer.Option(help="Column of obs with the donor.")]
Study = Annotated[
    str | None, typer.Option(help="Column of obs with the study; the file if not given.")
]
Disease = Annotated[str | None, typer.Option(help="Column of obs with the diagnosis.")]
Label = Annotated[str | None, typer.Option(help="Column of obs with the cell type.")]
Layer = Annotated[str | None, typer.Option(help="Layer that holds the counts; X if not given.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder for converted files; $SCMAMBA_CACHE or the user's cache if not given."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Name or checkpoint folder to start from; default brain-mini."
    ),
]


@dataclass(frozen=True)
class _Data:
    """Where the cells of a run are, and which columns of obs describe them."""

    files: list[Path]
    held_out: list[Path] | None
    splits: Path | None
    cache: Path | None
    force: bool
    columns: dict[str, str | None]


#: Settings of the command line that both commands have.
_COMMON = (
    *("epochs", "steps", "batch_size", "accumulate", "lr", "ema", "precision"),
    *("genes_per_step", "min_total", "min_donor_cells", "save_every", "seed"),
)


@options_of(TrainingOptions, only=(*_COMMON, "d_model", "layers", "reads", "rates"), unset=True)
def pretrain(
    data: Data,
    output: Output,
    recipe: Recipe = "paper",
    config: Config = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="genes.tsv of scmamba vocab build; the published genes if not given."),
    ] = None,
    held_out: HeldOut = None,
    splits: Splits = None,
    work: Work = None,
    donor: Donor = None,
    study: Study = None,
    disease: Disease = None,
    label: Label = None,
    layer: Layer = None,
    cache: Cache = None,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Pre-train a new model by masked-expression modeling (15% of the non-zero values are masked)."""
    from ..genes import Vocabulary
    from ..nn import ModelConfig
    from ..training import pretrain as run

    columns = {
        "donor_key": donor,
        "study_key": study,
        "condition_key": disease,
        "label_key": label,
        "layer": layer,
    }
    genes = Vocabulary.read(vocabulary) if vocabulary else Vocabulary.published()
    plan = _Plan("pretrain", recipe, config, given, output, overwrite, quiet)
    cells, others = plan.open(_Data(data, held_out, splits, cache, force, columns), genes)
    settings = plan.settings
    model = run(
        cells,
        config=ModelConfig(
            n_genes=len(genes),
            d_model=settings.d_model,
            n_layer=settings.layers,
            reads=settings.reads,
            rates=settings.rates,
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
    if plan.first:
        typer.echo(_after_pretraining(settings.rates, output))


def _after_pretraining(rates: bool, output: Path) -> str:
    """What a pre-trained model still needs for imputation by the recommended method."""
    if rates:
        return f"Its rate head is trained by: scmamba finetune ... --task impute --model {output}"
    return (
        "It has no rate head, so scmamba impute uses its masked predictions (the published rule); "
        "--rates or --recipe small makes a model with one."
    )


@options_of(TrainingOptions, only=(*_COMMON, "above", "balance", "freeze", "probe"), unset=True)
def finetune(
    data: Data,
    output: Output,
    model: ModelOption = None,
    task: Annotated[
        Literal["impute", "annotate", "doublets"], typer.Option(help="Task of the model.")
    ] = "impute",
    recipe: Recipe = "paper",
    config: Config = None,
    held_out: HeldOut = None,
    splits: Splits = None,
    work: Work = None,
    donor: Donor = None,
    study: Study = None,
    disease: Disease = None,
    label: Label = None,
    layer: Layer = None,
    cache: Cache = None,
    force: Force = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Fine-tune a model: impute (masked values), annotate (the cells' labels) or doublets (simulated within donors, or the label column)."""
    from ..model import load_model
    from ..training.distributed import is_distributed, training_device

    columns = {
        "donor_key": donor,
        "study_key": study,
        "condition_key": disease,
        "label_key": label,
        "layer": layer,
    }
    plan = _Plan(task, recipe, config, given, output, overwrite, quiet)
    plan.calls_doublets = task == "doublets" and label is not None
    start = load_model(model, device=training_device() if is_distributed() else None)
    cells, others = plan.open(_Data(data, held_out, splits, cache, force, columns), start.genes)
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
        from_labels=task == "doublets" and plan.holds_calls(cells),
        folder=work,
        name=name,
        verbose=plan.verbose,
    )


class _Plan:
    """What both commands share: settings, data, and the checkpoint at the end."""

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
        from ..model.checkpoint import refuse_foreign_files
        from ..training.config import read_settings
        from ..training.distributed import is_first_process

        self.settings: Settings
        self.settings, self.chosen = read_settings(verb, recipe, file, given)
        self.first = is_first_process()
        self.verbose = not quiet and self.first
        self.output, self.recipe = output, recipe
        self.calls_doublets = False  # the label column was named, and may hold calls of doublets
        refuse_existing_outputs(folders=[output], overwrite=overwrite)
        refuse_foreign_files(output)

    def open(self, data: _Data, genes: Vocabulary) -> tuple[Collection, Collection | list[Any]]:
        """Training cells and cells for the validation loss."""
        if data.splits is not None and data.held_out:
            raise OptionError("Give either --held-out files or a table of --splits, not both.")
        cells = self._filter(self._collection(data.files, data, genes))
        if data.splits is not None:
            return self._split(cells, data.splits)
        if data.held_out:
            from ..data.collection import NOT_CELLS

            others = self._collection(data.held_out, data, genes)
            return cells, others.filter(
                min_total=self.settings.min_total,
                min_donor_cells=0,
                exclude=() if self.holds_calls(others) else NOT_CELLS,
            )
        return cells, []

    def _collection(self, files: list[Path], data: _Data, genes: Vocabulary) -> Collection:
        from ..data.collection import Collection

        columns: dict[str, Any] = data.columns
        return Collection(
            files,
            vocabulary=genes,
            cache=data.cache,
            force=data.force,
            verbose=self.verbose,
            **columns,
        )

    def _split(self, cells: Collection, path: Path) -> tuple[Collection, Collection | list[Any]]:
        """Cells of the training and the validation donors of a table, which is made if it does not exist."""
        from ..data.collection import read_splits, write_splits

        table = read_splits(path) if path.is_file() else cells.split(seed=self.settings.seed)
        if self.first and not path.is_file():
            write_splits(table, path)
            counts = table["split"].value_counts().items()
            parts = ", ".join(f"{number} {part}" for part, number in counts)
            say(f"donors divided into {parts}: {path}", self.verbose)
        train = cells.select(table, "train")
        try:
            return train, cells.select(table, "validation")
        except DataError as error:
            say(f"{error} There will be no validation loss.", self.verbose)
            return train, []

    def _filter(self, cells: Collection) -> Collection:
        """Apply the filters; those of the recipe are dropped where they would remove every cell."""
        wanted: dict[str, Any] = {
            "min_donor_cells": self.settings.min_donor_cells,
            "above": self.settings.above or None,
        }
        if self.holds_calls(cells):
            wanted["exclude"] = ()
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
                    f"{error} The recipe's {name} of {wanted[name]:,.0f} is not applied; pass it explicitly to keep it.",
                    self.verbose,
                )
                wanted[name] = gone[name]

    def holds_calls(self, cells: Collection) -> bool:
        """Whether the label column that was named holds calls of doublets."""
        from ..data.doublet_simulation import doublet_codes

        return self.calls_doublets and doublet_codes(cells.column("label")) is not None

    def loop(self, cells: Collection) -> TrainerConfig:
        """Options of the optimizer for these cells."""
        from ..training.distributed import number_of_processes, training_device

        return self.settings.loop(
            len(cells), number_of_processes(), training_device().type == "cuda"
        )

    def finish(self, model: Model, how: str, cells: Collection, ready: str) -> None:
        """Write the checkpoint and print where it is, in the first process."""
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
        "Its accuracy has not been measured. Add licence, held-out results and limits before you share it.\n\n"
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
        float,
        typer.Option(
            min=0, max=1, help="Minimum fraction of all cells in which a gene is counted."
        ),
    ] = 0.005,
    table: Annotated[
        Path | None,
        typer.Option(
            help="Also write the number of cells of every gene, and whether it was kept, to this .tsv."
        ),
    ] = None,
    not_counted: Annotated[
        list[Path] | None,
        typer.Option(
            help="File of a study whose cells are excluded from the minimum fraction; may be repeated."
        ),
    ] = None,
    cache: Cache = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Build a gene vocabulary as in the paper: annotated genes of the files, without chromosome Y, counted in 0.5% of the cells."""
    from ..data.vocabulary_builder import build_vocabulary
    from ..utils.atomic import atomic_path

    refuse_existing_outputs(output, table, overwrite=overwrite)
    genes, found = build_vocabulary(
        data,
        gtf=gtf,
        min_fraction=min_fraction,
        not_counted=not_counted or (),
        cache=cache,
        verbose=not quiet,
    )
    with atomic_path(output) as temporary:
        genes.write(temporary)
    if table is not None:
        with atomic_path(table) as temporary:
            found.to_csv(temporary, sep="\t", index=False, lineterminator="\n")
    typer.echo(f"{output}: {len(genes):,} of {len(found):,} genes counted")


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    app.command()(pretrain)
    app.command()(finetune)
    app.add_typer(vocab, name="vocab")
