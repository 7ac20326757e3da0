"""What may pass is tried again, a few times and ever later; what can't pass is not. All of it is counted."""

import errno
import re
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Literal, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

T = TypeVar("T")
# Why something is begun again: its process is lost, storage did not answer, a GPU's memory ran out.
Why = Literal["process", "storage", "memory"]
# How often one piece of work is begun again when its process is lost.
PIECE_RETRIES = 3

ATTEMPTS, FIRST_WAIT_S, LONGEST_WAIT_S = 5, 0.5, 8.0
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "EINTR", "ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EPIPE"),
    )
)
# As Arrow words what the clients of object stores report; they have tried three times by then.
PASSING_WORDS = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING"
    r"|timed? ?out|connection (?:reset|refused|closed|aborted)|couldn'?t (?:resolve|connect)|HTTP status (?:429|5\d\d)",
    re.IGNORECASE,
)
_begun_again: list[str] = []


def may_pass(error: BaseException) -> bool:
    """Whether what a file system raised may be gone in a few seconds.

    >>> may_pass(ConnectionResetError(104, "reset")), may_pass(FileNotFoundError(2, "no"))
    (True, False)
    """
    if not isinstance(error, OSError):
        return False
    if error.errno is not None and error.errno != errno.EIO:
        return error.errno in PASSING
    return isinstance(error, TimeoutError | ConnectionError) or bool(PASSING_WORDS.search(str(error)))


def persistently(work: Callable[[], T]) -> T:
    """The result of some work on storage, begun again up to four times where it may help."""
    retrying = Retrying(
        retry=retry_if_exception(may_pass),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        before_sleep=_note,
        reraise=True,
    )
    return retrying(work)


def count() -> int:
    """How often this process has begun work on storage again."""
    return len(_begun_again)


class Attempts:
    """How often each piece of work was begun.

    >>> attempts = Attempts()
    >>> [attempts.begin("a") for _ in range(2)], attempts.begin("b")
    ([1, 2], 1)
    """

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()

    def begin(self, piece: Hashable) -> int:
        """Count it; how often this piece was begun by now."""
        self._begun[piece] += 1
        return self._begun[piece]


def _note(state: RetryCallState) -> None:
    _begun_again.append(str(state.outcome))
