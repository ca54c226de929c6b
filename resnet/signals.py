"""SIGINT and SIGTERM that let the step under way be finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):  # noqa: N818  nothing went wrong
    """A signal asked the training to stop, and it did, after a whole step.

    Attributes:
        number: the signal's. A program that it ends exits with 128 + number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class StopRequest:
    """Whether a signal has come: ``number``, None as long as there was none."""

    def __init__(self) -> None:
        self.number: int | None = None

    def check(self) -> None:
        """Raise :class:`Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM is only noted; a second one does what it does elsewhere.

    Python lets only the main thread handle signals; in another thread nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        for number in before:
            if before[number] is not signal.SIG_IGN:  # as for a job that a shell started in the background
                signal.signal(number, note)
        yield request
    finally:
        restore()
