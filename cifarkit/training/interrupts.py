"""Leave cleanly when asked: SIGTERM and Ctrl-C are noted, and acted on between two optimizer updates."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from itertools import count
from types import FrameType
from typing import Any

from cifarkit.training.task import Batch

_ONE_REQUEST_SECONDS = 1.0


class Interrupted(Exception):  # noqa: N818  (no error: the user asked for it)
    """The run was asked to end."""


class InterruptGuard:
    """While it is open, the first SIGTERM or Ctrl-C only sets ``signal_number``; a second one acts at once.

    A SIGTERM within a second of the first signal is that request once more: systemd sends it to all processes of a
    service, and torchrun hands its own on to those it has started.

    What signals a whole group of processes ends the workers of a DataLoader, too. PyTorch would raise an error for that
    in the middle of the update, which has its images already; once a signal has come it is not told of their end.

    A signal that nobody has checked for when the guard closes is raised again, so that none is lost.

    Outside the main thread Python cannot catch signals, and the guard does nothing.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._heeded = False
        self._noted_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()
        if self.signal_number is not None and not self._heeded:
            if isinstance(exception[1], Exception) and signal.getsignal(self.signal_number) is signal.SIG_DFL:
                traceback.print_exception(exception[1])  # which the signal would take with it
            signal.raise_signal(self.signal_number)

    def check(self) -> None:
        """Raise if a signal has come."""
        if self.signal_number is not None:
            self._heeded = True
            raise Interrupted

    def excusing(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on; the error that none comes is the request to leave if a signal may have ended the workers."""
        for number in count():
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception:
                if number:  # before the first, the order of an epoch is drawn that a resume would draw once more
                    self.check()
                raise
            yield batch

    @property
    def exit_code(self) -> int:
        """The code a shell expects of a process that a signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + (self.signal_number or 0)

    @property
    def leaving(self) -> BaseException:
        """What to raise to leave: SystemExit, which would end an interpreter in which somebody has pressed Ctrl-C."""
        interactive = hasattr(sys, "ps1")  # a Python prompt, IPython or a notebook
        return KeyboardInterrupt() if interactive and self.name == "SIGINT" else SystemExit(self.exit_code)

    @property
    def name(self) -> str:
        return signal.Signals(self.signal_number).name if self.signal_number is not None else "no signal"

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._noted_at is None:
            self._noted_at = now
            self.signal_number = self.signal_number or number  # that of another rank came first
            if hasattr(signal, "SIGCHLD"):  # not on Windows
                self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _ignore)
        elif number != signal.SIGTERM or now - self._noted_at > _ONE_REQUEST_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) is _ignore:  # not PyTorch's
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: a function, as Python complains if a signal that has come finds no handler any more."""
