"""Checkpoints: a directory with weights, config, genes, labels and a card. Nothing in it can run code.

``model.safetensors``, ``config.json``, ``genes.tsv`` (Ensembl ID, symbol), ``labels.json`` (if it classifies) and
``model_card.md``. Names of shipped models and paths are both accepted wherever a model is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..genes import Vocabulary
from ..nn.config import ModelConfig
from ..nn.scmamba import ScMamba, pack
from ..utils.atomic import atomic_path
from ..utils.errors import CheckpointError, DataError, OptionError
from .checkpoint_checks import check_header, check_weights, read_config, read_genes, read_labels
from .convert import read_published
from .hub import CARD, FILES, fetch_model, list_models, registry
from .huggingface import SCHEME, fetch_from_hub

#: The model every verb uses when none is named.
DEFAULT_MODEL = "brain-mini"
#: Activations of one batch should stay below this many bytes on a CPU.
_CPU_BUDGET = 1.5e9


class Model:
    """A network with its vocabulary of genes and its class names.

    :meth:`reconstruct`, :meth:`cell_embedding` and :meth:`classify` take log1p(CP10k) values in the order of ``genes``, a
    (B, L) array or tensor, run without gradients in batches that fit in memory, and return a float tensor on the CPU.

    Parameters
    ----------
    network
        The torch module; also an attribute, for training.
    genes
        The vocabulary: gene of each position of the network.
    labels
        Class names in the order of the logits; ``None`` for a model without a classification head.
    card
        Text of the model card: data, licence, measured accuracy, limits.

    Attributes
    ----------
    calibration
        Of a classifier that was evaluated on held-out cells: ``temperature``, by which its logits are divided; ``curve`` of
        (threshold, coverage, accuracy); and ``cells``, how many there were. ``None`` otherwise. Kept in ``labels.json``.

    Raises
    ------
    CheckpointError
        The network and the vocabulary have different numbers of genes.

    See Also
    --------
    scmamba.load_model : Open a model by its name.

    Examples
    --------
    >>> import numpy as np
    >>> import scmamba
    >>> model = scmamba.load_model("brain-mini", device="cpu")
    >>> model.config.d_model, len(model.genes)
    (64, 19306)
    >>> values = np.zeros((2, len(model.genes)), dtype=np.float32)
    >>> values[:, [10, 500, 9000]] = 1.5  # log1p(CP10k)
    >>> tuple(model.cell_embedding(values).shape)
    (2, 64)
    """

    calibration: dict[str, Any] | None = None

    def __init__(
        self, network: ScMamba, genes: Vocabulary, labels: list[str] | None = None, card: str = ""
    ) -> None:
        if len(genes) != network.config.n_genes:
            raise CheckpointError(
                f"The network has {network.config.n_genes} genes and the vocabulary {len(genes)}."
            )
        self.network, self.genes, self.labels, self.card = network, genes, labels, card

    def _facts(self) -> dict[str, str]:
        """Summary of the model for notebooks."""
        size = sum(p.numel() for p in self.network.parameters())
        return {
            "network": f"D {self.config.d_model} x {self.config.n_layer} layers, {size:,} parameters",
            "genes": f"{len(self.genes):,}, reads {self.config.reads}",
            "classes": ", ".join(self.labels) if self.labels else "none",
            "device": str(self.device),
        }

    def __repr__(self) -> str:
        facts = "; ".join(f"{name}: {text}" for name, text in self._facts().items())
        return f"<scmamba.Model '{self.config.name}': {facts}>"

    def _repr_html_(self) -> str:
        """Notebooks show a table, and the model card below it."""
        from html import escape

        rows = "".join(
            f"<tr><th>{name}</th><td>{escape(text)}</td></tr>"
            for name, text in self._facts().items()
        )
        card = f"<details><summary>model card</summary><pre>{escape(self.card)}</pre></details>"
        return f"<b>scmamba.Model {escape(self.config.name)}</b><table>{rows}</table>{card}"

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def batch_size(self, length: int | None = None) -> int:
        """Number of cells that fit the memory budget together.

        Parameters
        ----------
        length
            Positions of each cell; all genes of the vocabulary if not given.

        Returns
        -------
        From 1 to 256 cells. The budget is 1.5 GB on a CPU and 60% of the free memory on a GPU.
        """
        length = length or self.config.n_genes
        per_cell = 12 * 4 * length * self.config.d_inner
        budget = _CPU_BUDGET
        if self.device.type == "cuda":
            budget = 0.6 * torch.cuda.mem_get_info(self.device)[0]
        return int(max(1, min(256, budget // per_cell)))

    def reconstruct(
        self,
        x: Tensor | np.ndarray,
        mask: Tensor | np.ndarray | None = None,
        *,
        genes: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Predict the values at every position.

        Parameters
        ----------
        x
            (B, L) log1p(CP10k).
        mask
            (B, L) bool, positions whose value is masked.
        genes
            (L,) positions in the vocabulary, if ``x`` holds only some genes.
        batch_size
            Maximum number of cells at once; chosen by memory if not given.

        Returns
        -------
        (B, L) predicted log1p(CP10k).

        Raises
        ------
        CheckpointError
            The model has no reconstruction head.
        DataError
            The shapes of ``x`` or ``mask`` do not fit.
        """
        if not self.config.reconstructs:
            raise CheckpointError(
                f"The model '{self.config.name}' classifies; it has no reconstruction head."
            )
        return self._run("reconstruct", x, mask, genes, batch_size)

    def cell_embedding(
        self, x: Tensor | np.ndarray, *, genes: Tensor | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Embed cells: the mean over genes of the network's output (paper, Methods).

        Parameters
        ----------
        x
            (B, L) log1p(CP10k).
        genes
            (L,) positions in the vocabulary, if ``x`` holds only some genes.
        batch_size
            Maximum number of cells at once; chosen by memory if not given.

        Returns
        -------
        (B, D) embeddings.

        Raises
        ------
        DataError
            The shape of ``x`` does not fit.
        """
        return self._run("cell_embedding", x, None, genes, batch_size)

    def classify(
        self, x: Tensor | np.ndarray, *, genes: Tensor | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Classify cells.

        Parameters
        ----------
        x
            (B, L) log1p(CP10k).
        genes
            (L,) positions in the vocabulary, if ``x`` holds only some genes.
        batch_size
            Maximum number of cells at once; chosen by memory if not given.

        Returns
        -------
        (B, C) logits, classes in the order of ``labels``.

        Raises
        ------
        CheckpointError
            The model has no classification head.
        DataError
            The shape of ``x`` does not fit.
        """
        if not self.config.n_classes:
            raise CheckpointError(
                f"The model '{self.config.name}' has no classification head; fine-tune one on labeled cells first."
            )
        return self._run("classify", x, None, genes, batch_size)

    def log_ratio(self, values: sparse.csr_matrix, genes: np.ndarray) -> np.ndarray:
        """Predict how much more, or less, frequent each gene is in a cell than on average, up to a constant per cell.

        Parameters
        ----------
        values
            (B, m) log1p(CP10k) of the measured genes.
        genes
            (m,) their positions in the vocabulary.

        Returns
        -------
        (B, m) float32, natural logarithms.

        Raises
        ------
        CheckpointError
            The model has no rate head.
        """
        if not self.config.rates:
            raise CheckpointError(
                f"The model '{self.config.name}' has no rate head; use its masked predictions (method='masked')."
            )
        decoded = torch.as_tensor(genes, device=self.device)
        dtype = self.network.backbone.norm_f.weight.dtype
        answer = np.empty(values.shape, dtype=np.float32)
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.inference_mode():
                lengths = np.diff(values.indptr)
                for rows in by_length(lengths, lambda longest: 32):
                    x = torch.from_numpy(values[rows].toarray()).to(self.device, dtype)
                    shown, _, which, keep, _ = pack(x, None, decoded)
                    answer[rows] = (
                        self.network.log_ratio(shown, which, keep, decoded).float().cpu().numpy()
                    )
        finally:
            self.network.train(was_training)
        return answer

    @property
    def has_trained_rates(self) -> bool:
        """Whether there is a rate head that was trained; pre-training alone leaves it at its initial values."""
        if not self.config.rates:
            return False
        rates = self.network.gene_log_rate
        return bool((rates != rates[0]).any())

    def gene_log_rate(self, genes: np.ndarray) -> np.ndarray:
        """Average frequency of genes in the training data.

        Parameters
        ----------
        genes
            (m,) positions in the vocabulary.

        Returns
        -------
        (m,) float64, natural logarithms of each gene's share of all counts.
        """
        rates: np.ndarray = self.network.gene_log_rate.detach().cpu().double().numpy()[genes]
        return rates

    def gene_embedding(self) -> Tensor:
        """Gene embeddings: (L, D), rows in the order of ``genes``."""
        return self.network.backbone.gene_id_embedding.weight.detach().cpu()

    def _run(
        self,
        verb: str,
        x: Tensor | np.ndarray,
        mask: Tensor | np.ndarray | None,
        genes: Tensor | None,
        batch_size: int | None,
    ) -> Tensor:
        dtype = self.network.backbone.norm_f.weight.dtype
        x = torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x)
        expected = self.config.n_genes if genes is None else len(genes)
        if x.ndim != 2 or x.shape[1] != expected:
            raise DataError(
                f"The input has shape {tuple(x.shape)}; (cells, {expected} genes) is expected, genes in the model's order."
            )
        if mask is not None:
            mask = torch.as_tensor(mask).bool()
            if mask.shape != x.shape:
                raise DataError(
                    f"The mask has shape {tuple(mask.shape)}, the input {tuple(x.shape)}; they must be equal."
                )
        was_training = self.network.training
        self.network.eval()
        answers, order = [], []
        try:
            with torch.inference_mode():
                for rows in self._batches(x, mask, batch_size):
                    part = None if mask is None else mask[rows].to(self.device)
                    answers.append(
                        self._answer(verb, x[rows].to(self.device, dtype), part, genes).cpu()
                    )
                    order.append(rows)
        finally:
            self.network.train(was_training)
        if not answers:  # no cells: the right number of columns all the same
            width = {
                "reconstruct": x.shape[1],
                "cell_embedding": self.config.d_model,
                "classify": self.config.n_classes,
            }[verb]
            return torch.empty(0, width, dtype=dtype)
        result = torch.cat(answers)
        return result[torch.from_numpy(np.argsort(np.concatenate(order)))]

    def _batches(
        self, x: Tensor, mask: Tensor | None, batch_size: int | None
    ) -> Iterator[np.ndarray]:
        """Rows of cells of similar length whose sequences fit the memory budget together."""
        lengths = np.full(len(x), x.shape[1])
        if self.config.reads == "expressed":
            lengths = (x != 0 if mask is None else (x != 0) | mask).sum(dim=1).cpu().numpy()
        return by_length(
            lengths,
            lambda longest: min(
                batch_size or self._cells_at_once, self.batch_size(max(1, longest))
            ),
        )

    @property
    def _cells_at_once(self) -> int:
        # Small batches hold cells of nearly one length; a GPU needs more work at a time.
        return 256 if self.device.type == "cuda" else 32

    def _answer(self, verb: str, x: Tensor, mask: Tensor | None, genes: Tensor | None) -> Tensor:
        """One batch through the network, on its device."""
        run = getattr(self.network, verb)
        hidden = {"mask": mask} if verb == "reconstruct" else {}
        genes = None if genes is None else genes.to(self.device)
        if self.config.reads == "all":
            read: Tensor = run(x, genes=genes, **hidden)
            return read
        values, packed_mask, packed_genes, keep, columns = pack(x, mask, genes)
        if verb != "reconstruct":
            pooled: Tensor = run(values, genes=packed_genes, keep=keep)
            return pooled
        answer = run(values, packed_mask, packed_genes, keep)
        # Visible zeros were not read: they stay what they are.
        row = torch.arange(len(x), device=x.device)[:, None].expand_as(columns)
        result = torch.zeros_like(x)
        result[row[keep], columns[keep]] = answer[keep]
        return result


def by_length(lengths: np.ndarray, batch_size: Callable[[int], int]) -> Iterator[np.ndarray]:
    """Divide cells into batches of similar length, the longest first.

    A batch is padded to its longest cell; in the order of the data that is twice the work.

    Parameters
    ----------
    lengths
        (n,) positions that the network reads of each cell.
    batch_size
        Number of cells in a batch whose longest cell has the given number of positions.

    Yields
    ------
    (b,) row indices; every row occurs once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = batch_size(int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def refuse_foreign_files(path: Path) -> None:
    """Refuse a folder for a checkpoint that holds anything else, which replacing it would delete.

    Parameters
    ----------
    path
        The folder to be written.

    Raises
    ------
    CheckpointError
        It is a file, or holds something that is no part of a checkpoint.
    """
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file. Choose the name of a folder for the checkpoint.")
    others = sorted(p.name for p in path.iterdir() if p.name not in FILES) if path.exists() else []
    if others:
        raise CheckpointError(
            f"{path} holds {others[0]!r}, which is no part of a checkpoint and would be deleted with the folder. "
            "Choose another folder; nothing was replaced."
        )


def save_checkpoint(model: Model, path: str | PathLike[str], *, card: str | None = None) -> Path:
    """Write a checkpoint folder, whole or not at all; an existing checkpoint is replaced, other files are not.

    Parameters
    ----------
    model
        The model.
    path
        The folder to write: ``model.safetensors``, ``config.json``, ``genes.tsv``, ``labels.json`` (of a classifier) and
        ``model_card.md``.
    card
        Text of the model card: data, donors, licence, measured accuracy, limits. That of ``model`` if not given.

    Returns
    -------
    The path.

    Raises
    ------
    ScMambaError
        The disk is full, or the folder cannot be written or holds files that are no part of a checkpoint.

    Examples
    --------
    >>> import tempfile
    >>> import scmamba
    >>> model = scmamba.load_model("brain-mini", device="cpu")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = scmamba.save_checkpoint(model, f"{folder}/mine", card="A copy of brain-mini.")
    ...     scmamba.load_model(path, device="cpu").card
    'A copy of brain-mini.'
    """
    from safetensors.torch import save_file

    path = Path(path)
    refuse_foreign_files(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as folder:
        folder.mkdir()
        weights = {
            name: value.detach().cpu().contiguous()
            for name, value in model.network.state_dict().items()
        }
        save_file(weights, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(
            0o644
        )  # its writer makes it private; a lab shares its models
        model.config.write(folder / "config.json")
        model.genes.write(folder / "genes.tsv")
        if model.labels is not None:
            (folder / "labels.json").write_text(
                json.dumps({"labels": model.labels, "calibration": model.calibration}, indent=1)
                + "\n"
            )
        text = card if card is not None else model.card
        (folder / CARD).write_text(text, encoding="utf-8")
    return path


def load_model(
    name_or_path: str | PathLike[str] | Model | None = None,
    vocabulary: str | PathLike[str] | Vocabulary | None = None,
    *,
    labels: str | PathLike[str] | None = None,
    device: str | torch.device | None = None,
    backend: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Model:
    """Open a model by name, checkpoint folder or published ``.ckpt`` file.

    Parameters
    ----------
    name_or_path
        A name listed by :func:`list_models` (default ``brain-mini``) or in the registry (fetched once), a repository of the
        Hugging Face hub (``hf://organization/name``, with ``@revision`` if not the newest is wanted), a checkpoint
        folder, a published ``.ckpt``, or a model that is already open (returned as it is).
    vocabulary
        ``vocab.txt`` of a published ``.ckpt``, or a vocabulary; the published genes if not given.
    labels
        JSON of class name to index, of a published ``.ckpt`` that classifies.
    device
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...; the GPU if there is one.
    backend
        Backend of the selective scan (see :func:`scmamba.ops.available_backends`); the fastest if not given.
    dtype
        Type of the weights, ``torch.float32`` or ``torch.float64``. For half precision run the model under
        ``torch.autocast``, which keeps the sums of the scan in float32.

    Returns
    -------
    The model, in evaluation mode.

    Raises
    ------
    CheckpointError
        Unknown name, incomplete or damaged files, or weights that do not fit the config.
    OptionError
        ``dtype`` is neither float32 nor float64.

    Examples
    --------
    >>> import scmamba
    >>> model = scmamba.load_model("brain-mini", device="cpu")
    >>> model.config.n_layer
    2
    """
    if dtype not in (torch.float32, torch.float64):
        raise OptionError(
            f"dtype is {dtype}; expected torch.float32 or torch.float64. For half precision load the model in float32 and "
            "run it under torch.autocast(device, dtype=torch.bfloat16)."
        )
    if isinstance(name_or_path, Model):
        return name_or_path
    name_or_path = DEFAULT_MODEL if name_or_path is None else name_or_path
    path = _find(name_or_path)
    if path.is_dir():
        model = _read_directory(path, dtype)
    elif path.is_file():
        config, weights, genes, names = read_published(path, vocabulary, labels)
        model = Model(
            _fill(config, weights, dtype, path.name),
            genes,
            names,
            card=f"Converted from {path.name}; its data and accuracy are not documented.\n",
        )
    else:
        raise CheckpointError(
            f"There is no model '{name_or_path}': it is neither a path nor one of the available models ({', '.join(list_models()) or 'none'}) "
            f"or to be fetched ({', '.join(registry()) or 'none'})."
        )
    model.network.backend = backend
    model.network.to(
        torch.device(device)
        if device is not None
        else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    model.network.eval()
    return model


def _find(name_or_path: str | PathLike[str]) -> Path:
    """The folder of a model by name, fetched if need be; anything else is a path."""
    if isinstance(name_or_path, str):
        if name_or_path.startswith(SCHEME):
            return fetch_from_hub(name_or_path)
        if name_or_path in (here := list_models()):
            return here[name_or_path]
        if not Path(name_or_path).exists() and name_or_path in registry():
            return fetch_model(name_or_path)
    return Path(name_or_path)


def _read_directory(path: Path, dtype: torch.dtype) -> Model:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(path / "config.json")
    for needed in ("model.safetensors", "genes.tsv"):
        if not (path / needed).is_file():
            raise CheckpointError(
                f"{path} has no {needed}; the checkpoint is incomplete. Fetch or convert it again."
            )
    genes = read_genes(path / "genes.tsv", config)
    labels, calibration = read_labels(path / "labels.json", config)
    check_header(config, path / "model.safetensors")
    try:
        weights = load_file(path / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path / 'model.safetensors'} is damaged or truncated ({error}). Fetch it again."
        ) from error
    check_weights(weights, path / "model.safetensors")
    card = _read_card(path)
    model = Model(_fill(config, weights, dtype, path.name), genes, labels, card)
    model.calibration = calibration
    return model


def _read_card(path: Path) -> str:
    """The model card; in a repository of the Hugging Face hub its page, without the metadata at its top."""
    for name in (CARD, "README.md"):
        if (path / name).is_file():
            text = (path / name).read_text(encoding="utf-8")
            return re.sub(r"\A---\n.*?\n---\n+", "", text, flags=re.S) if name != CARD else text
    return ""


def _fill(
    config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype, name: str
) -> ScMamba:
    """Build the network and load the weights; tokens a checkpoint does not carry stay zero."""
    with torch.random.fork_rng():
        network = ScMamba(config)
    missing, unexpected = [], []
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"The weights of {name} do not fit its sizes: {str(error).splitlines()[-1].strip()}"
        ) from error
    missing = [key for key in missing if not key.endswith(("mask_token", "cls_token"))]
    if missing or unexpected:
        raise CheckpointError(
            f"{name} is incomplete: missing {missing[:4]}, not expected {list(unexpected)[:4]}."
        )
    return network.to(dtype)
