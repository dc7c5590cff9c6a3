"""Messages go through one logger, and ``scmamba.settings.verbosity`` decides what is shown."""

from __future__ import annotations

import logging

import pytest

import scmamba
from scmamba.utils.errors import OptionError
from scmamba.utils.progress import progress, say


@pytest.fixture(autouse=True)
def restored():
    yield
    scmamba.settings.verbosity = 2


def shown(capsys) -> str:
    """The output of a message, a progress bar and a detail for operators."""
    say("a message", True)
    say("a silenced message", False)
    with progress("Working", 2, True) as advance:
        advance(2)
    logging.getLogger("scmamba.ops").info("a detail")
    logging.getLogger("scmamba").warning("a warning")
    return capsys.readouterr().err


def test_verbosity(capsys):
    default = shown(capsys)
    assert "scMamba: a message\n" in default and "Working: 2/2" in default
    assert "a detail" not in default and "silenced" not in default
    scmamba.settings.verbosity = 3
    assert "scMamba: a detail" in shown(capsys)
    scmamba.settings.verbosity = 1
    assert shown(capsys) == "scMamba: a warning\n"
    scmamba.settings.verbosity = 0
    assert shown(capsys) == ""


def test_messages_are_records_of_the_logger(caplog):
    with caplog.at_level(logging.INFO, logger="scmamba.messages"):
        say("12 cells", True)
    assert ("scmamba.messages", logging.INFO, "12 cells") in caplog.record_tuples


def test_other_values_are_refused():
    with pytest.raises(OptionError, match="expected 0, 1, 2 or 3"):
        scmamba.settings.verbosity = 4
