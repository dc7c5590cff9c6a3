"""Fine-tuning classifiers from cells on disk or in memory: cell types, and doublets against single cells (paper, Methods).

The whole network trains; classification head and [CLS] token are new. Cross-entropy, optionally weighted so that rare classes count more.
A randomly initialized head damages much of the pre-trained weights during its first steps. Unless the published head is chosen, it starts as
what logistic regression makes of the cell embeddings (a linear probe, then fine-tuning: Kumar et al. 2022, arXiv:2202.10054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from ..data.collection import Collection
from ..data.doublet_simulation import Recipe, doublet_codes, simulate_doublets
from ..data.values import SCALE, log1p_cp10k
from ..model import Model, load_model
from ..nn import ScMamba
from ..utils.errors import DataError
from ..utils.progress import progress, say
from .batches import CellSource, SequenceConfig
from .dataloaders import (
    BatchSource,
    CollectionSource,
    InMemorySource,
    SourceSlice,
    make_slices_batch,
    sum_losses,
)
from .distributed import BatchShard, Loss, ShardedStep, is_distributed, training_device
from .trainer import TrainerConfig, Validate, fit

#: A classifier reads all a cell shows.
NO_MASKING = SequenceConfig(mask_nonzero=0.0, mask_zero=0.0)
#: Doublets are simulated in memory, from at most so many cells.
MAX_SINGLETS = 50_000
#: Number of cells of the linear probe that initializes a head.
PROBE_CELLS = 4096


@dataclass
class LabelledCells:
    """Cells with classes.

    Attributes
    ----------
    feed
        Where they come from.
    codes
        Classes of the cells of a part, as positions in ``names``.
    counts
        (classes,) cells of each class.
    sample
        Some cells as parts, for validation.
    """

    feed: BatchSource
    codes: Callable[[SourceSlice], np.ndarray]
    names: list[str]
    counts: np.ndarray
    sample: Callable[[int], list[SourceSlice]]


def labels_from_obs(
    cells: Collection, *, seed: int, similar: bool, names: Sequence[str] | None = None
) -> LabelledCells:
    """Classes from the label column of a collection; cells without a label, or with one that is not in ``names``, are omitted.

    Raises
    ------
    DataError
        No labels, or fewer than two classes.
    """
    column = cells.column("label")
    present = [
        str(n)
        for n, number in zip(
            column.categories, np.bincount(column.codes, minlength=len(column.categories))
        )
        if n and number
    ]
    known = sorted(present) if names is None else list(names)
    if names is None and len(known) < 2:
        raise DataError(
            f"The cells have {len(known)} different labels; at least two classes are needed. Name the column of obs that holds them "
            "(label=...)."
        )
    place = {name: i for i, name in enumerate(known)}
    codes = np.array([place.get(str(name), -1) for name in column.categories])[column.codes]
    if not (codes >= 0).any():
        raise DataError(
            f"None of the cells has one of the labels {', '.join(known[:5])}{', ...' if len(known) > 5 else ''}."
        )
    return _with_codes(cells, codes, known, seed=seed, similar=similar)


def labels_from_doublet_calls(cells: Collection, *, seed: int, similar: bool) -> LabelledCells:
    """In-vivo doublets (hashing, genotypes): singlets and doublets of the label column; droplets without a call are omitted.

    Raises
    ------
    DataError
        The column does not tell singlets from doublets.
    """
    codes = doublet_codes(cells.column("label"))
    if codes is None:
        words = ", ".join(f"'{word}'" for word in cells.column("label").categories[:5])
        raise DataError(
            f"The label column holds {words or 'nothing'}; 'singlet' and 'doublet', or true and false, are expected. "
            "Name another one (label_key=..., --label)."
        )
    return _with_codes(cells, codes, ["singlet", "doublet"], seed=seed, similar=similar)


def _with_codes(
    cells: Collection, codes: np.ndarray, known: list[str], *, seed: int, similar: bool
) -> LabelledCells:
    """The cells of a collection whose code is not -1."""
    kept = cells.take(codes >= 0)
    code_of = np.full(int(cells.offsets[-1]), -1)
    code_of[cells.cells] = codes
    feed = CollectionSource(kept, seed=seed, similar=similar)

    def sample(number: int) -> list[SourceSlice]:
        chosen = np.sort(
            np.random.default_rng(12345).choice(kept.cells, min(number, len(kept)), replace=False)
        )
        return list(feed.parts(kept.read(chosen)))

    return LabelledCells(
        feed,
        lambda part: code_of[[key[0] for key in part.keys]],
        known,
        np.bincount(codes[codes >= 0], minlength=len(known)),
        sample,
    )


def labels_from_simulated_doublets(
    cells: Collection,
    *,
    seed: int,
    fraction: float = 0.1,
    recipe: Recipe = "mean",
    max_cells: int = MAX_SINGLETS,
    verbose: bool = True,
) -> LabelledCells:
    """Single cells and doublets simulated from them, within donors: ``fraction`` of the single cells, by the ``recipe``.

    The paper's are a tenth of the cells and the mean of two cells' counts (see :func:`scmamba.data.doublet_simulation.simulate_doublets`).
    """
    rng = np.random.default_rng([seed, 11])
    chosen = (
        cells
        if len(cells) <= max_cells
        else cells.take(rng.choice(len(cells), max_cells, replace=False))
    )
    if len(chosen) < len(cells):
        say(f"doublets are simulated from {max_cells:,} of {len(cells):,} cells", verbose)
    donors = chosen.donor_keys().codes
    feed, sources, codes = CollectionSource(chosen, seed=seed, similar=False), [], []
    block, files = chosen.read_sorted(chosen.cells), chosen.file_of(chosen.cells)
    for f in np.unique(files):
        own = np.flatnonzero(files == f)
        single = next(iter(feed.parts(block.take(own)))).source
        made = simulate_doublets(
            _counts(single), donors[own], round(fraction * len(own)), recipe=recipe, seed=rng
        )
        totals = np.asarray(made.counts.sum(axis=1)).ravel()
        values = sparse.csr_matrix(
            sparse.vstack([single.values, log1p_cp10k(made.counts, totals)], format="csr")
        )
        both = np.concatenate([single.totals, totals])
        sources.append(CellSource(single.name, values, single.genes, np.full(len(both), ""), both))
        codes.append((np.arange(len(both)) >= len(single)).astype(np.int64))
    memory = InMemorySource(sources)
    counts = np.bincount(np.concatenate(codes), minlength=2)
    return LabelledCells(
        memory,
        lambda part: codes[part.number][part.rows],
        ["singlet", "doublet"],
        counts,
        memory.sample,
    )


def _counts(source: CellSource) -> sparse.csr_matrix:
    counts = source.values.astype(np.float64)
    counts.data = np.rint(
        np.expm1(counts.data) * np.repeat(source.totals / SCALE, np.diff(counts.indptr))
    )
    return counts


def init_classifier(
    model: Model,
    names: Sequence[str],
    *,
    name: str | None = None,
    seed: int = 0,
    pools: bool = False,
) -> Model:
    """The model's network with a new head for these classes and a new [CLS] token; its other heads are left behind."""
    torch.manual_seed(seed)
    config = replace(
        model.config,
        n_classes=len(names),
        pools=pools,
        reconstructs=False,
        rates=False,
        name=name or model.config.name,
    )
    network = ScMamba(config).to(model.device)
    old, own = model.network.state_dict(), network.state_dict()
    kept = {
        k: v
        for k, v in old.items()
        if k in own and k not in ("cls_head.weight", "backbone.cls_token")
    }
    network.load_state_dict({**own, **kept})
    network.backend = model.network.backend
    return Model(network, model.genes, list(names))


def linear_probe_init(
    model: Model,
    labelled: LabelledCells,
    *,
    name: str | None = None,
    seed: int = 0,
    balance: float = 0.0,
    verbose: bool = True,
) -> Model:
    """A classifier whose head starts as logistic regression on the cell embeddings of some of the cells; [CLS] starts at nothing."""
    tuned = init_classifier(model, labelled.names, name=name, seed=seed, pools=True)
    parts = [_by_length(part) for part in labelled.sample(PROBE_CELLS)]
    codes = np.concatenate([labelled.codes(part) for part in parts])
    embedded = _embeddings(tuned.network, parts, verbose)
    weight, bias = _probe(embedded, codes, len(labelled.names), balance)
    with torch.no_grad():
        tuned.network.cls_head.weight.zero_()
        tuned.network.mean_head.weight.copy_(torch.from_numpy(weight))
        tuned.network.mean_head.bias.copy_(torch.from_numpy(bias))
    return tuned


def _embeddings(network: ScMamba, parts: Sequence[SourceSlice], verbose: bool) -> np.ndarray:
    """(n, D) float64 mean outputs of the network for all cells of some parts."""
    was_training, answers = network.training, []
    network.eval()
    with (
        torch.no_grad(),
        progress(
            "Reading the labeled cells", sum(len(part.rows) for part in parts), verbose
        ) as advance,
    ):
        for part in _pieces(parts):
            answers.append(
                _read(network, [part], NO_MASKING, [0], "classified")[1].double().cpu().numpy()
            )
            advance(len(part.rows))
    network.train(was_training)
    return np.concatenate(answers)


def _probe(
    embedded: np.ndarray, codes: np.ndarray, classes: int, balance: float
) -> tuple[np.ndarray, np.ndarray]:
    """(classes, D) weights and (classes,) biases of logistic regression; a class with no cell here is as unlikely as the rarest."""
    from sklearn.linear_model import LogisticRegression

    centre, spread = embedded.mean(axis=0), embedded.std(axis=0) + 1e-8
    present, own = np.unique(codes, return_inverse=True)
    weight, bias = np.zeros((classes, embedded.shape[1])), np.zeros(classes)
    if len(present) > 1:
        each = np.bincount(own)[own] ** -float(balance)
        fitted = LogisticRegression(C=0.1, max_iter=500).fit(
            (embedded - centre) / spread, own, sample_weight=each / each.mean()
        )
        slopes, offsets = fitted.coef_, fitted.intercept_
        if len(present) == 2:  # scikit-learn keeps the difference only
            slopes, offsets = np.r_[-slopes, slopes] / 2, np.r_[-offsets, offsets] / 2
        weight[present] = slopes / spread
        bias[:] = offsets.min()
        bias[present] = offsets - weight[present] @ centre
    return weight, bias


def _by_length(part: SourceSlice) -> SourceSlice:
    """The same cells in order of their expressed genes: little padding."""
    order = np.argsort(np.diff(part.source.values.indptr)[part.rows], kind="stable")
    return SourceSlice(part.source, part.number, part.rows[order], [part.keys[i] for i in order])


def _pieces(parts: Sequence[SourceSlice]) -> Iterator[SourceSlice]:
    """The cells of some parts, sixteen at a time."""
    for p in parts:
        yield from (
            SourceSlice(p.source, p.number, p.rows[i : i + 16], p.keys[i : i + 16])
            for i in range(0, len(p.rows), 16)
        )


def classify_parts(
    network: nn.Module, parts: Sequence[SourceSlice], sequence: SequenceConfig, seed: Sequence[int]
) -> Tensor:
    """(B, classes) logits of the cells of some parts, in their order."""
    return _read(network, parts, sequence, seed, "classify")


def _read(
    network: nn.Module,
    parts: Sequence[SourceSlice],
    sequence: SequenceConfig,
    seed: Sequence[int],
    verb: str,
) -> Any:
    """What ``verb`` of the network answers for the cells of some parts."""
    settings: ScMamba = network  # type: ignore[assignment]
    batch = make_slices_batch(parts, sequence, settings.config.reads, settings.config.n_genes, seed)
    device = next(network.parameters()).device
    if batch.keep is None:
        return getattr(settings, verb)(batch.x.to(device))
    return getattr(settings, verb)(
        batch.x.to(device), batch.genes.to(device), batch.keep.to(device)
    )


def classification(
    labelled: LabelledCells,
    sequence: SequenceConfig,
    config: TrainerConfig,
    *,
    balance: float = 0.0,
) -> ShardedStep:
    """Cross-entropy; a class of n cells weighs n to the power of ``-balance``, the mean cell one."""
    share_of = labelled.counts / labelled.counts.sum()
    raw = np.where(labelled.counts > 0, np.maximum(labelled.counts, 1.0) ** -balance, 0.0)
    weights = torch.from_numpy(raw / (raw * share_of).sum()).float()

    def draw(network: nn.Module, k: int, rng: np.random.Generator, share: BatchShard) -> Loss:
        parts = labelled.feed.draw(k, config.batch_size * share.whole, rng, share)
        if not parts:
            return sum_losses([], network)
        logits = classify_parts(network, parts, sequence, [config.seed, k]).float()
        codes = torch.from_numpy(np.concatenate([labelled.codes(part) for part in parts])).to(
            logits.device
        )
        weight = weights.to(logits.device)[codes]
        errors = nn.functional.cross_entropy(logits, codes, reduction="none")
        return Loss((errors * weight).sum(), weight.sum())

    return ShardedStep(draw)


def class_validation(labelled: LabelledCells, cells: int = 512) -> Validate:
    """A function of the network: cross-entropy, accuracy and macro F1 (over the classes present) on the same held-out cells every time."""
    parts = labelled.sample(cells)
    truth = np.concatenate([labelled.codes(part) for part in parts])

    def validate(network: nn.Module) -> dict[str, float]:
        logits = sample_logits(network, parts)
        found = logits.argmax(dim=1).numpy()
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(truth))
        accuracy = float(np.mean(found == truth))
        return {
            "validation_loss": float(loss),
            "validation_accuracy": accuracy,
            "validation_f1": macro_f1(truth, found),
        }

    return validate


def sample_logits(network: nn.Module, parts: Sequence[SourceSlice]) -> Tensor:
    """(n, classes) logits of all cells of some parts, sixteen at a time."""
    with torch.no_grad():
        answers = [classify_parts(network, [part], NO_MASKING, [0]) for part in _pieces(parts)]
    return torch.cat(answers).float().cpu()


def calibrate(tuned: Model, others: LabelledCells, cells: int = 2048) -> None:
    """Keep temperature and coverage curve with a classifier, from cells of donors it was not trained on."""
    from .calibration import fit_calibration

    parts = others.sample(cells)
    truth = np.concatenate([others.codes(part) for part in parts])
    was_training = tuned.network.training
    tuned.network.eval()
    logits = sample_logits(tuned.network, parts).double().numpy()
    tuned.network.train(was_training)
    tuned.calibration = fit_calibration(logits, truth)


def macro_f1(truth: np.ndarray, found: np.ndarray) -> float:
    """Mean F1 over the classes that occur in ``truth`` (paper: the classes present in the test set)."""
    scores = []
    for c in np.unique(truth):
        hit = np.sum((truth == c) & (found == c))
        scores.append(2 * hit / (np.sum(truth == c) + np.sum(found == c)))
    return float(np.mean(scores))


def _labelled(
    task: str,
    cells: Collection,
    held_out: Collection | None,
    *,
    seed: int,
    similar: bool,
    simulation: dict[str, Any],
    verbose: bool,
) -> tuple[LabelledCells, LabelledCells | None]:
    """Cells with their classes for training and, from ``held_out``, for validation; ``task`` ``"calls"``: doublets of the label column."""
    if task == "calls":
        labelled = labels_from_doublet_calls(cells, seed=seed, similar=similar)
        return labelled, (
            None if held_out is None else labels_from_doublet_calls(held_out, seed=0, similar=False)
        )
    if task == "annotate":
        labelled = labels_from_obs(cells, seed=seed, similar=similar)
        return labelled, (
            None
            if held_out is None
            else labels_from_obs(held_out, seed=0, similar=False, names=labelled.names)
        )
    labelled = labels_from_simulated_doublets(cells, seed=seed, verbose=verbose, **simulation)
    if held_out is None:
        return labelled, None
    others = labels_from_simulated_doublets(
        held_out, seed=0, max_cells=5000, verbose=False, **simulation
    )
    return labelled, others


def finetune_classes(
    task: str,
    cells: Collection,
    *,
    model: str | PathLike[str] | Model | None = None,
    loop: TrainerConfig | None = None,
    sequence: SequenceConfig = NO_MASKING,
    held_out: Collection | None = None,
    balance: float = 0.0,
    freeze: bool = False,
    probe: bool = True,
    recipe: Recipe = "mean",
    fraction: float = 0.1,
    from_labels: bool = False,
    folder: str | PathLike[str] | None = None,
    name: str | None = None,
    verbose: bool = True,
) -> Model:
    """Fine-tune a model to classify cell types (``annotate``: the collection's labels) or doublets (``doublets``: simulated, or in-vivo ones).

    Parameters
    ----------
    held_out
        Cells of other donors, for the validation numbers.
    balance
        0: every cell has the same weight; 1: every class has.
    freeze
        Train head and [CLS] token only.
    probe
        Start the head as logistic regression on the embeddings of some thousand cells, and let it read them beside [CLS]. False: the
        published head, from random numbers.
    recipe, fraction
        How doublets are made, and how many per single cell.
    from_labels
        Doublets are those of the collection's label column (``singlet`` or ``doublet``, of hashing or genotypes); none are simulated. Do
        not let :meth:`Collection.filter` remove them (``exclude=()``).

    Raises
    ------
    ScMambaError
        Fewer than two classes; data or model that do not fit.
    """
    loop = loop or TrainerConfig(lr=1e-4)
    opened = load_model(model, device=training_device() if is_distributed() else None)
    similar = opened.config.reads == "expressed"
    labelled, others = _labelled(
        task if task == "annotate" or not from_labels else "calls",
        cells,
        held_out,
        seed=loop.seed,
        similar=similar,
        simulation={"fraction": fraction, "recipe": recipe},
        verbose=verbose,
    )
    say(
        ", ".join(f"{number:,} {label}" for label, number in zip(labelled.names, labelled.counts)),
        verbose,
    )
    if probe:
        tuned = linear_probe_init(
            opened, labelled, name=name, seed=loop.seed, balance=balance, verbose=verbose
        )
    else:
        tuned = init_classifier(opened, labelled.names, name=name, seed=loop.seed)
    if freeze:
        for parameter_name, parameter in tuned.network.named_parameters():
            parameter.requires_grad_(
                parameter_name.startswith(("cls_head.", "mean_head.", "backbone.cls_token"))
            )
    sequence = replace(sequence, mask_nonzero=0.0, mask_zero=0.0)
    fit(
        tuned.network,
        classification(labelled, sequence, loop, balance=balance),
        loop,
        folder=folder,
        description="Fine-tuning",
        verbose=verbose,
        validate=class_validation(others) if others is not None else None,
    )
    tuned.network.requires_grad_(True)
    if others is not None:
        calibrate(tuned, others)
    return tuned


__all__ = [
    "LabelledCells",
    "classification",
    "class_validation",
    "finetune_classes",
    "init_classifier",
    "labels_from_doublet_calls",
    "labels_from_obs",
    "labels_from_simulated_doublets",
    "linear_probe_init",
]
