"""One file imputed by several processes, of one machine or many: ``torchrun --nproc-per-node 4 -m scmamba impute in.h5ad -o out.h5ad``.

The first process fits (adaptation, weights of the base predictors) and sends the result to the others. The cells are divided
by blocks of rows, each process imputes its share into a file beside the target, and the first one joins them. The values of
a cell do not depend on the process that computes them, so the file is the same as one process would write.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch
import torch.distributed as dist
from scipy import sparse

from ..data.h5ad_stream import append_layers, write_with_layers
from ..utils.atomic import temporary_folder
from ..utils.errors import ScMambaError
from ..utils.h5_output import OutputFile
from ._impute import impute_file, open_file
from .base import Imputer, joined_added
from .imputer import open_imputer, stale_layers

if TYPE_CHECKING:
    from anndata import AnnData

#: The first process may fit, and others wait, for hours.
_TIMEOUT = timedelta(days=2)


def is_rank0() -> bool:
    """Whether this is the first process, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def impute_file_shared(
    source: str | PathLike[str],
    target: str | PathLike[str],
    *,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """As :func:`scmamba.impute_file`; under torchrun the processes share the work.

    Each process uses the GPU of its local rank, if there are any. ``source`` and the folder of ``target`` must be visible
    to all of them.

    Parameters
    ----------
    source, target
        Paths of the input and of the file to write.
    overwrite
        Replace ``target`` if it exists.
    **options
        Options of :func:`scmamba.impute_file`.

    Raises
    ------
    ScMambaError
        As :func:`scmamba.impute_file`, in every process; or another process ended before its share was done.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        impute_file(source, target, overwrite=overwrite, **options)
        return
    device = _device(options.get("device"))
    options = {
        **options,
        "device": device,
        "verbose": bool(options.get("verbose", True)) and is_rank0(),
    }
    with _processes():
        _impute(Path(source), Path(target), overwrite, options, device)


def _device(asked: str | None) -> str | None:
    if asked in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return asked


@contextmanager
def _processes() -> Iterator[None]:
    """The group of processes torchrun started; gloo, because only what was fitted and a few words are sent."""
    dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error).lower():
            raise
        raise ScMambaError(
            "Another of the processes has ended before its share was done; see its own message."
        ) from error
    finally:
        dist.destroy_process_group()


def _impute(
    source: Path, target: Path, overwrite: bool, options: dict[str, Any], device: str | None
) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    given = dict(options)
    model = given.pop("model", None)
    adata, checked = open_file(source, target, overwrite, given)
    imputer, cells = open_imputer(adata, model, checked)
    imputer.restore(cells, broadcast_from_rank0(lambda: imputer.learn(cells), device))
    with ExitStack() as stack:  # the first process makes the folder and removes it
        folder = Path(
            broadcast_from_rank0(lambda: str(stack.enter_context(temporary_folder(target))), None)
        )
        blocks = list(cells.blocks(imputer.block))
        bounds = [len(blocks) * r // world for r in range(world + 1)]
        write_share(imputer, blocks[bounds[rank] : bounds[rank + 1]], folder / f"{rank}.h5")
        dist.barrier()
        if rank == 0:
            shares = [(folder / f"{r}.h5", blocks[bounds[r] : bounds[r + 1]]) for r in range(world)]
            _join(source, target, imputer, shares)


def _join(
    source: Path, target: Path, imputer: Imputer, shares: list[tuple[Path, list[slice]]]
) -> None:
    """Write the file from the shares of all processes."""
    adata = imputer.cells.adata
    totals: list[np.ndarray] = []
    added: list[np.ndarray | None] = []

    def annotate(result: AnnData, stored: int) -> None:
        imputer.write_annotations(result, np.concatenate(totals), stored, joined_added(added))

    names, options = imputer.layer_names, imputer.options
    rows = read_shares(shares, names, adata.n_vars, totals, added)
    drop = stale_layers(adata, options)
    write_with_layers(
        source, target, adata, names, rows, annotate, drop=drop, verbose=options.verbose
    )


def broadcast_from_rank0(work: Callable[[], Any], device: str | None) -> Any:
    """The result of ``work``, done by the first process and sent to the others; an error is raised in every process.

    Models arrive on ``device``.
    """
    result: Any = None
    message = torch.zeros(0, dtype=torch.uint8)
    problem: ScMambaError | None = None
    if dist.get_rank() == 0:
        try:
            result = work()
        except ScMambaError as error:
            problem = error
        buffer = io.BytesIO()
        torch.save((str(problem) if problem else None, result), buffer)
        message = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    size = torch.tensor([len(message)])
    dist.broadcast(size, 0)
    if dist.get_rank() != 0:
        message = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(message, 0)
    if dist.get_rank() == 0:
        if problem:
            raise problem
        return result
    # Written by our own first process a moment ago: not a file of unknown origin.
    refusal, result = torch.load(  # nosec B614
        io.BytesIO(message.numpy().tobytes()), map_location=device or "cpu", weights_only=False
    )
    if refusal:
        raise ScMambaError(refusal)
    return result


def write_share(imputer: Imputer, blocks: list[slice], path: Path) -> None:
    """The imputed rows of some blocks, and their totals, as HDF5."""
    totals: list[np.ndarray] = [np.zeros(0)]
    added: list[np.ndarray | None] = []

    def rows() -> Iterator[list[sparse.csr_matrix]]:
        for block in imputer.predict_blocks(blocks):
            totals.append(block.totals)
            added.append(block.added)
            yield block.layers

    with OutputFile(path) as file:
        shape = (sum(b.stop - b.start for b in blocks), imputer.cells.adata.n_vars)
        append_layers(file, imputer.layer_names, rows(), shape)
        file["totals"] = np.concatenate(totals)
        together = joined_added(added)
        if together is not None:
            file["added"] = together


def read_shares(
    shares: list[tuple[Path, list[slice]]],
    names: Sequence[str],
    n_vars: int,
    totals: list[np.ndarray],
    added: list[np.ndarray | None],
) -> Iterator[list[sparse.csr_matrix]]:
    """The blocks of all shares in the order of the rows, one matrix per layer; what else they hold is appended."""
    for path, blocks in shares:
        with h5py.File(path, "r") as file:
            layers, done = [file[f"layers/{name}"] for name in names], 0
            totals.append(file["totals"][:])
            added.append(file["added"][:] if "added" in file else None)
            indptrs = [layer["indptr"][:] for layer in layers]
            for block in blocks:
                rows = slice(done, done + block.stop - block.start + 1)
                yield [
                    _part(layer, indptr[rows], n_vars)
                    for layer, indptr in zip(layers, indptrs, strict=True)
                ]
                done = rows.stop - 1


def _part(layer: h5py.Group, indptr: np.ndarray, n_vars: int) -> sparse.csr_matrix:
    """Some rows of a stored matrix."""
    values = slice(indptr[0], indptr[-1])
    return sparse.csr_matrix(
        (layer["data"][values], layer["indices"][values], indptr - indptr[0]),
        shape=(len(indptr) - 1, n_vars),
    )
