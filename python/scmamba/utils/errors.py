"""The errors users see: what was found, what was expected, what to do."""

from __future__ import annotations


class ScMambaError(ValueError):
    """Base of every error that scMamba raises on purpose; its text is written for users."""


class GeneError(ScMambaError):
    """The genes of the data do not fit the vocabulary of the model."""


class DataError(ScMambaError):
    """The values or the shape of the data are not what the method needs."""


class CheckpointError(ScMambaError):
    """A checkpoint is missing, truncated or of an unknown layout."""


class BackendError(ScMambaError):
    """The chosen scan backend is not available or does not support the tensors."""


class OptionError(ScMambaError):
    """An option has a value outside of its range, or options contradict each other."""
