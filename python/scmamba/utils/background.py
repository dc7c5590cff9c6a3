"""A call in a thread of its own, for a host that embeds Python (R through reticulate).

The host's thread is never inside of the call: it asks for messages and progress, shows them by its
own means, and may leave at any of them. (R code that Python calls and that jumps out, as
``tryCatch(message = )`` does, would skip Python's frames and leave the interpreter broken.)
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from . import progress as _progress

# One at a time: the libraries below are not made for two computations, and a stopped one may need
# a moment to end.
_latest: Job | None = None


class Job:
    """A call in a thread of its own.

    The host calls ``begin``, then ``wait`` until it is ``finished``, then ``result``, and in any
    case ``stop`` and ``join``.

    Parameters
    ----------
    function
        What to call.
    report
        Collect messages and progress.
    *args
        Arguments of the function.
    **kwargs
        Named arguments of the function.

    Examples
    --------
    >>> from scmamba.utils.background import Job
    >>> job = Job(sum, False, [1, 2])
    >>> job.begin()
    >>> while not job.finished:
    ...     _ = job.wait(1)
    >>> job.result()
    3
    """

    def __init__(
        self, function: Callable[..., Any], report: bool, /, *args: Any, **kwargs: Any
    ) -> None:
        self._report = report
        self._events: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()
        self._result: Any = None
        self._error: BaseException | None = None
        self._done = False
        self._stopped = False
        self._before: tuple[Any, ...] | None = None
        self._showed: Callable[..., None] = warnings.showwarning
        self._caught = warnings.catch_warnings()
        # The thread forgets its arguments at its end, and with them the data.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._run, function, args, kwargs),
            name="scmamba-call",
            daemon=True,
        )

    def begin(self) -> None:
        """Start the call, after the end of an earlier one."""
        global _latest
        if _latest is not None:
            _latest.join()
        _latest = self
        self._before = (_progress.listener, _progress.speaker, sys.stdout, sys.stderr)
        self._showed = warnings.showwarning
        self._caught.__enter__()
        warnings.simplefilter("always", UserWarning)  # a second call with the same fault, too
        warnings.showwarning = self._warn
        if self._report:
            _progress.listener = self._listen
            _progress.speaker = self._speak
        # A host may have put in functions of its own, which only its own thread may call.
        sys.stdout = _Relay(sys.stdout, self)  # type: ignore[assignment]
        sys.stderr = _Relay(sys.stderr, self)  # type: ignore[assignment]
        self._thread.start()

    def _run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        # It is stopped by KeyboardInterrupt, which may arrive after the last line of the call.
        with contextlib.suppress(KeyboardInterrupt):
            try:
                self._result = function(*args, **kwargs)
            except BaseException as error:
                self._error = error
            finally:
                with self._changed:
                    self._done = True
                    self._changed.notify_all()

    def _add(self, *event: Any) -> None:
        with self._changed:
            # Of a bar only the newest state is of interest.
            last = self._events[-1][:2] if self._events else None
            if event[0] == "progress" and last == event[:2]:
                del self._events[-1]
            self._events.append(event)
            self._changed.notify_all()

    def _listen(self, description: str, done: int, total: int) -> None:
        self._add("progress", description, done, total)

    def _speak(self, text: str) -> None:
        self._add("message", text)

    def _warn(
        self, message: Any, category: Any, filename: str, lineno: int, *more: Any, **named: Any
    ) -> None:
        # Without the file and the line of Python, which say nothing to the host's users.
        if category is UserWarning:
            self._add("message" if self._report else "warning", str(message))
        else:
            self._showed(message, category, filename, lineno, *more, **named)

    @property
    def finished(self) -> bool:
        """Whether the call has ended and all that it reported was asked for."""
        with self._changed:
            return not self._events and (self._done or not self._thread.is_alive())

    def wait(self, seconds: float) -> list[tuple[Any, ...]]:
        """Wait until something is reported or the call ends.

        Parameters
        ----------
        seconds
            Wait no longer than this.

        Returns
        -------
        What was reported since the last time: ``("message", text)``, ``("progress", description, done, total)``
        and, of a call without messages, ``("warning", text)``.
        """
        with self._changed:
            if not self._events and not self._done:
                self._changed.wait(seconds)
            events, self._events = self._events, []
        for event in events:
            if event[0] == "output":
                event[1].write(event[2])
                event[1].flush()
        return [event for event in events if event[0] != "output"]

    def result(self) -> Any:
        """Return what the call returned, or raise what it raised."""
        self.join()
        result, error = self._result, self._error
        self._result = self._error = None
        if error is not None:
            raise error
        return result

    def stop(self) -> None:
        """End the call if it has not ended, as Ctrl-C does: at its next line of Python."""
        if self._before is not None:
            _progress.listener, _progress.speaker, sys.stdout, sys.stderr = self._before
            self._caught.__exit__(None, None, None)
            self._before = None
        if self._thread.ident is None or self._done or self._stopped:
            return
        self._stopped = True
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread.ident), ctypes.py_object(KeyboardInterrupt)
        )

    def join(self) -> None:
        """Wait for the end of the thread, in short pieces, so that Ctrl-C is heard."""
        while self._thread.is_alive():
            self._thread.join(0.25)


class _Relay:
    """A stream: what other threads write is written by the thread that waits for the call."""

    def __init__(self, stream: TextIO, job: Job) -> None:
        self._stream = stream
        self._job = job

    def write(self, text: str) -> int:
        if threading.current_thread() is threading.main_thread():
            return self._stream.write(text)
        self._job._add("output", self._stream, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
