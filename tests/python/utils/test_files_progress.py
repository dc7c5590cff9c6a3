"""Files are written completely or not at all, and progress messages."""

from __future__ import annotations

import errno

import pytest

from scmamba.utils import progress as _progress
from scmamba.utils.atomic import atomic_path
from scmamba.utils.errors import ScMambaError
from scmamba.utils.progress import progress, say, track


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with atomic_path(str(target)) as temporary:
        assert (
            temporary != target
            and temporary.name == "out.txt"
            and temporary.parent.parent == tmp_path
        )
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_unfinished_file_does_not_replace_the_old_one(tmp_path, error):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_a_non_empty_one(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("x")
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("y")
    assert [f.name for f in target.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [target]


def test_errors_of_writing_a_file(tmp_path):
    with (
        pytest.raises(ScMambaError, match="does not exist"),
        atomic_path(tmp_path / "none" / "out"),
    ):
        pass
    for error in (OSError(errno.ENOSPC, "x"), OSError("No space left on device")):
        with (
            pytest.raises(ScMambaError, match="is full; out was not written"),
            atomic_path(tmp_path / "out"),
        ):
            raise error
    with pytest.raises(PermissionError), atomic_path(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clock(monkeypatch):
    """A simulated clock, in seconds, without a terminal."""
    now = [1000.0]
    monkeypatch.setattr(_progress, "listener", None)
    monkeypatch.setattr(_progress, "speaker", None)
    monkeypatch.setattr(
        _progress, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])})
    )
    return now


def test_log_files_get_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with progress("Imputing", 8, unit="cells", each=100) as advance:
        for _ in range(8):
            clock[0] += 6
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "Imputing: 2/8, about 36 s left, 17 cells/s",
        "Imputing: 4/8, about 24 s left, 17 cells/s",
        "Imputing: 6/8, about 12 s left, 17 cells/s",
        "Imputing: 8/8 in 48 s, 17 cells/s",
    ]
    with progress("Reading", 3) as advance:
        clock[0] += 5
        advance(2)
    assert capsys.readouterr().err == "Reading: 2/3 in 5 s\n"


def test_a_line_is_due_after_ten_seconds_and_not_before(clock, capsys):
    with progress("Reading", 3) as advance:
        clock[0] += 10
        advance(1)
        assert capsys.readouterr().err == ""
        clock[0] += 1
        advance(1)
        assert capsys.readouterr().err == "Reading: 2/3, about 6 s left\n"


def test_silent_mode(clock, capsys):
    for total, verbose in ((5, False), (0, True)):
        with progress("Reading", total, verbose) as advance:
            advance(3)
    say("hidden", False)
    assert capsys.readouterr() == ("", "")


def test_a_host_receives_the_progress(monkeypatch, capsys):
    heard, messages = [], []
    monkeypatch.setattr(_progress, "listener", lambda *step: heard.append(step))
    monkeypatch.setattr(_progress, "speaker", messages.append)
    assert list(track(iter("abc"), "Reading", 3, verbose=False)) == ["a", "b", "c"]
    assert heard == [("Reading", k, 3) for k in (1, 2, 3)]
    say("a sentence", True)
    say("hidden", False)
    assert messages == ["a sentence"] and capsys.readouterr() == ("", "")
    monkeypatch.setattr(_progress, "speaker", None)
    say("a sentence", True)
    assert capsys.readouterr() == ("", "scMamba: a sentence\n")
