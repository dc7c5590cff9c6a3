"""Which implementations of the scan exist here, and which one a call gets."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import BackendError

ENVIRONMENT = "SCMAMBA_SCAN"
log = logging.getLogger("scmamba.ops")


class Direction(NamedTuple):
    """One direction's inputs of the selective scan, channel-last.

    Attributes
    ----------
    u
        (B, L, E), after convolution and SiLU.
    delta
        (B, L, E), before bias and softplus; with ``delta_weight`` (B, L, R).
    A
        (E, N), negative, float32.
    B, C
        (B, L, N).
    D
        (E,).
    delta_bias
        (E,).
    reverse
        Scan from the last position to the first; nothing is flipped.
    delta_weight
        (E, R); ``delta`` then means ``delta @ delta_weight.T``. A backend that projects while it scans never writes the
        (B, L, E) product.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor
    reverse: bool = False
    delta_weight: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The seven tensors of the recurrence."""
        return self[:7]

    def projected(self) -> Direction:
        """The same direction with ``delta`` of all channels."""
        if self.delta_weight is None:
            return self
        return self._replace(delta=F.linear(self.delta, self.delta_weight), delta_weight=None)


ScanFunction = Callable[[Sequence[Direction], "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Backend:
    """One implementation.

    ``missing()`` is "" when it can run on this machine, else why not; ``refuses(tensor)`` is "" when it takes
    the tensor's device and type, else why not; ``load()`` imports it and returns its scan function.
    """

    name: str
    missing: Callable[[], str]
    refuses: Callable[[Tensor], str]
    load: Callable[[], ScanFunction]
    projects: bool = False  # takes ``delta_weight``


_backends: dict[str, Backend] = {}
_logged: set[tuple[str, str]] = set()


def register(backend: Backend) -> None:
    """Add a backend; the order of registration is the order of preference."""
    _backends[backend.name] = backend


def available_backends() -> dict[str, str]:
    """Backends of the selective scan, in order of preference.

    Returns
    -------
    ``"available"``, or the reason why the backend cannot be used here, by name.

    Examples
    --------
    >>> from scmamba.ops import available_backends
    >>> available_backends()["reference"]
    'available'
    """
    return {name: backend.missing() or "available" for name, backend in _backends.items()}


def _get(name: str) -> Backend:
    if name not in _backends:
        raise BackendError(
            f"There is no scan backend {name!r}. Choose one of: {', '.join(_backends)}."
        )
    return _backends[name]


def choose_backend(tensor: Tensor, requested: str | None = None) -> str:
    """Choose the backend for a tensor: the requested one, else ``SCMAMBA_SCAN``, else the first that takes it.

    Parameters
    ----------
    tensor
        Input of the scan; its device and type decide.
    requested
        Name of a backend.

    Returns
    -------
    Name of the backend.

    Raises
    ------
    BackendError
        The backend that was requested by name does not exist, cannot run here, or does not take this tensor.

    Examples
    --------
    >>> import torch
    >>> from scmamba.ops import choose_backend
    >>> choose_backend(torch.zeros(1, dtype=torch.float64))
    'chunked'
    """
    name = requested or os.environ.get(ENVIRONMENT) or None
    if name is not None:
        backend = _get(name)
        why = backend.missing() or backend.refuses(tensor)
        if why:
            where = "requested" if requested else f"set by {ENVIRONMENT}"
            usable = [b.name for b in _backends.values() if not (b.missing() or b.refuses(tensor))]
            raise BackendError(
                f"The scan backend {name!r} ({where}) cannot be used: {why}. Usable here: {', '.join(usable)}."
            )
        return _log(name, tensor)
    for backend in _backends.values():
        if not (backend.missing() or backend.refuses(tensor)):
            return _log(backend.name, tensor)
    raise BackendError(f"No scan backend takes a {tensor.dtype} tensor on {tensor.device}.")


def _log(name: str, tensor: Tensor) -> str:
    """Log once per device and type which backend is used."""
    key = (name, f"{tensor.device.type} {tensor.dtype}")
    if key not in _logged:
        _logged.add(key)
        log.info("scan backend %s for %s", *key)
    return name


def scan_with(name: str, directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """Scan with the backend called ``name``."""
    backend = _get(name)
    if not backend.projects:
        directions = [d.projected() for d in directions]
    return backend.load()(directions, z)


def lazy(module: str, attribute: str = "scan") -> Callable[[], ScanFunction]:
    """A loader that imports ``module`` of this package on first use: numba and triton are slow to import."""

    def load() -> ScanFunction:
        function: ScanFunction = getattr(
            importlib.import_module(f".{module}", __package__), attribute
        )
        return function

    return load


def floating(*types: torch.dtype, device: str | None = None) -> Callable[[Tensor], str]:
    """A ``refuses`` function: the tensor must have one of ``types`` and sit on ``device``."""

    def refuses(tensor: Tensor) -> str:
        if device is not None and tensor.device.type != device:
            return f"it runs on {device}, the tensor is on {tensor.device}"
        if tensor.dtype not in types:
            return f"it takes {', '.join(str(t) for t in types)}, not {tensor.dtype}"
        return ""

    return refuses
