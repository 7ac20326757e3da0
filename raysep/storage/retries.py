"""Retry transient storage errors with exponential backoff and count the retries; raise permanent errors at once."""

import errno
import re
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Literal, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

T = TypeVar("T")
# Causes of retries: a lost worker, a transient storage error, a GPU that ran out of memory.
Why = Literal["process", "storage", "memory"]
# Maximum number of retries of one piece of work whose worker is lost.
WORKER_RETRIES = 3

ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 0.5, 8.0
TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EPIPE"),
    )
)
# Arrow's messages of transient errors of object stores, after three attempts of the client itself.
TRANSIENT_WORDS = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING"
    r"|timed? ?out|connection (?:reset|refused|closed|aborted)|couldn'?t (?:resolve|connect)|HTTP status (?:429|5\d\d)",
    re.IGNORECASE,
)
_retried: list[str] = []


def is_transient(error: BaseException) -> bool:
    """Whether a file system error is transient: a retry in a few seconds may succeed.

    >>> is_transient(ConnectionResetError(104, "reset")), is_transient(FileNotFoundError(2, "no"))
    (True, False)
    """
    if not isinstance(error, OSError):
        return False
    if error.errno is not None and error.errno != errno.EIO:
        return error.errno in TRANSIENT
    return isinstance(error, TimeoutError | ConnectionError) or bool(TRANSIENT_WORDS.search(str(error)))


def with_retries(work: Callable[[], T]) -> T:
    """Run a storage operation, with up to four retries of transient errors."""
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        before_sleep=_note,
        reraise=True,
    )
    return retrying(work)


def count() -> int:
    """Number of storage retries of this process so far."""
    return len(_retried)


class Attempts:
    """Counts the attempts at each piece of work.

    >>> attempts = Attempts()
    >>> [attempts.count("a") for _ in range(2)], attempts.count("b")
    ([1, 2], 1)
    """

    def __init__(self) -> None:
        self._attempts: Counter[Hashable] = Counter()

    def count(self, piece: Hashable) -> int:
        """Count an attempt; returns its number, from 1 on."""
        self._attempts[piece] += 1
        return self._attempts[piece]


def _note(state: RetryCallState) -> None:
    _retried.append(str(state.outcome))
