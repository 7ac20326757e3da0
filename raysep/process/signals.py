"""Handlers of SIGINT, SIGTERM and SIGHUP: the first signal stops the work in an orderly way, a second one at once.

Neither loses committed results, since files are written atomically.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from raysep.errors import StoppedError
from raysep.process import watcher

EXIT_CODE = 130
# Time for an orderly stop; then the process exits, since a library may hang.
GRACE_S = 9.0
# SIGHUP: the terminal is closed or its connection is lost.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by the first signal.

    A subclass of KeyboardInterrupt: Ray's blocking calls swallow any other exception that a handler raises, and turn
    this one into a plain KeyboardInterrupt, which `caught` turns back into `Interrupted`.
    """

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        super().__init__(self.name)


_before: dict[signal.Signals, Any] = {}
_number = signal.SIGINT


@contextmanager
def caught() -> Iterator[None]:
    """Raise `Interrupted` at the first signal within a block; exit at a second signal or after `GRACE_S`.

    Signals that are ignored on entry stay ignored: shells make background jobs ignore Ctrl-C.
    """
    _before.update({number: signal.getsignal(number) for number in SIGNALS})
    rearm()
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        # The process is about to end: keep the handlers of a second signal and the timer.
        interrupted = True
        raise Interrupted(_number) from None
    finally:
        if not interrupted:
            for number, handler in _before.items():
                signal.signal(number, handler)
        _before.clear()


@contextmanager
def stopping(kept: str) -> Iterator[None]:
    """Like `caught`, but raises an error for users.

    Args:
        kept: sentence that says which results are kept and how to resume.

    Raises:
        StoppedError: a signal stopped the block.
    """
    try:
        with caught():
            yield
    except Interrupted as interrupted:
        raise StoppedError(f"by {interrupted}: {kept}") from None


def rearm() -> None:
    """Reinstall the handlers of `caught` after a library has replaced them; no-op outside of `caught`."""
    for number, handler in _before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _first)


def interrupt() -> None:
    """Stop the work as a signal would, from any thread; no-op outside of `caught`."""
    if _before:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _first(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (the signature of a handler)
    global _number
    _number = signal.Signals(number)
    for each, handler in _before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, _second)
    watcher.expect(f"was stopped by {_number.name}, but did not end in time")
    watchdog = threading.Timer(GRACE_S, os._exit, (EXIT_CODE,))
    watchdog.daemon = True
    watchdog.start()
    raise Interrupted(number)


def _second(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    os._exit(EXIT_CODE)
