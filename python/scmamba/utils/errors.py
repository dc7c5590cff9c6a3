"""The errors people see: a sentence that says what was found, what was expected and what to do."""

from __future__ import annotations


class ScMambaError(ValueError):
    """Base of every error scMamba raises on purpose; its text is meant for a biologist."""


class GeneError(ScMambaError):
    """The genes of the data do not fit the vocabulary of the model."""


class DataError(ScMambaError):
    """The values or the shape of the data are not what the method can take."""


class CheckpointError(ScMambaError):
    """A checkpoint is missing, truncated or of a layout we do not know."""


class BackendError(ScMambaError):
    """The chosen scan backend is not available or does not support the tensors."""


class OptionError(ScMambaError):
    """An option has a value outside of its range, or options contradict each other."""
