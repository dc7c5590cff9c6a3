"""Settings of the session, and the loggers: ``scmamba`` with one below it for messages to users and one for each part."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from .errors import OptionError

root = logging.getLogger("scmamba")
#: Messages to users; what parts of the package log (``scmamba.ops``) is shown for debugging only.
logger = logging.getLogger("scmamba.messages")


class MessageHandler(logging.StreamHandler):  # Python 3.10 cannot subscript it
    """Writes messages to what ``sys.stderr`` is at that moment (notebooks and tests replace it)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("scMamba: %(message)s"))

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep messages for users; those of parts of the package only if debugging.

        Parameters
        ----------
        record
            A record of this logger or one below it.

        Returns
        -------
        Whether it is written.
        """
        shown = record.name == logger.name or record.levelno >= logging.WARNING
        return shown or logger.level <= logging.DEBUG


class Settings:
    """Settings of the session, as ``scmamba.settings``.

    Attributes
    ----------
    verbosity
        0: errors only; 1: warnings; 2: messages and progress bars (default); 3: also details, such as the backend of the
        scan. ``verbose=False`` silences a single call.

    Examples
    --------
    >>> import scmamba
    >>> scmamba.settings.verbosity = 1
    >>> scmamba.settings
    Settings(verbosity=1)
    >>> scmamba.settings.verbosity = 2
    """

    _LEVELS = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)

    def __init__(self) -> None:
        self._verbosity = 2
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, MessageHandler) for handler in root.handlers):
            root.addHandler(MessageHandler())

    @property
    def verbosity(self) -> int:
        """How much is printed, from 0 to 3."""
        return self._verbosity

    @verbosity.setter
    def verbosity(self, value: int) -> None:
        if value not in range(len(self._LEVELS)):
            raise OptionError(f"verbosity is {value!r}; expected 0, 1, 2 or 3.")
        self._verbosity = int(value)
        logger.setLevel(self._LEVELS[self._verbosity])
        # Loggers follow the application's configuration, except at verbosity 0 and 3.
        root.setLevel({0: logging.ERROR, 3: logging.DEBUG}.get(self._verbosity, logging.NOTSET))

    @property
    def shows_progress(self) -> bool:
        """Whether messages and progress bars are shown."""
        return self._verbosity >= 2

    def __repr__(self) -> str:
        return f"Settings(verbosity={self._verbosity})"


settings = Settings()
