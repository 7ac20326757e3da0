"""Ctrl-C, SIGTERM and SIGHUP: the first one ends what goes on in order, a second one at once.

Nothing that is committed can be lost either way: every file is written whole or not at all.
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
# What has not ended by then, because a library hangs, is ended.
GRACE_S = 9.0
# The last one when a terminal is closed, or its connection is lost.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Somebody wants this process to end. Raised in the main thread, wherever it is.

    A KeyboardInterrupt, since Ray's own waiting swallows everything else that a handler raises, and raises one of its
    own for that: within `caught` every KeyboardInterrupt is one of these.
    """

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        super().__init__(self.name)


_before: dict[signal.Signals, Any] = {}
_number = signal.SIGINT


@contextmanager
def caught() -> Iterator[None]:
    """Raise `Interrupted` at the first signal within a block; a second signal, or `GRACE_S`, ends the process.

    A signal that was ignored when the block was entered, as shells have background jobs ignore Ctrl-C, stays ignored.
    """
    _before.update({number: signal.getsignal(number) for number in SIGNALS})
    rearm()
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        # This process is about to end: a second signal stays what it is, and so does the time that is left.
        interrupted = True
        raise Interrupted(_number) from None
    finally:
        if not interrupted:
            for number, handler in _before.items():
                signal.signal(number, handler)
        _before.clear()


@contextmanager
def stopping(kept: str) -> Iterator[None]:
    """`caught`, and its end in words.

    Args:
        kept: what is there afterwards, and how to go on.

    Raises:
        StoppedError: somebody wanted it to end.
    """
    try:
        with caught():
            yield
    except Interrupted as interrupted:
        raise StoppedError(f"by {interrupted}: {kept}") from None


def rearm() -> None:
    """Take the signals back from a library that has taken them, within `caught`; elsewhere nothing happens."""
    for number, handler in _before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _first)


def interrupt() -> None:
    """From any thread, within `caught`: end what goes on as a signal would."""
    if _before:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _first(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  (the signature of a handler)
    global _number
    _number = signal.Signals(number)
    for each, handler in _before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, _second)
    watcher.expect(f"was stopped by {_number.name}, and something in it did not end")
    watchdog = threading.Timer(GRACE_S, os._exit, (EXIT_CODE,))
    watchdog.daemon = True
    watchdog.start()
    raise Interrupted(number)


def _second(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    os._exit(EXIT_CODE)
