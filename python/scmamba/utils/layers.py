"""Names of the layers of an AnnData object, whatever the version of anndata."""

from __future__ import annotations

from collections.abc import Iterable


def layer_names(layers: Iterable[str | None]) -> list[str]:
    """Names of the layers without ``X``, which anndata 0.13 and newer list as the layer ``None``.

    Parameters
    ----------
    layers
        ``adata.layers``, or the group of layers of a file.

    Returns
    -------
    list of str
        The names, in order.

    Examples
    --------
    >>> layer_names({None: 0, "counts": 1})
    ['counts']
    """
    return [name for name in layers if name is not None]
