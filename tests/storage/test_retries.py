import errno

import pytest

from raysep.storage import retries
from raysep.storage.retries import is_transient, with_retries


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retries, "LONGEST_WAIT_S", 0.002)


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_transient_errors_are_retried_and_counted() -> None:
    before, work = retries.count(), Flaky(TimeoutError("slow"), ConnectionResetError(errno.ECONNRESET, "reset"))
    assert with_retries(work) == "done"
    assert (work.calls, retries.count() - before) == (3, 2)


def test_retries_are_limited() -> None:
    work = Flaky(*[TimeoutError("slow")] * 9)
    with pytest.raises(TimeoutError):
        with_retries(work)
    assert work.calls == retries.ATTEMPTS


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "no"),
        PermissionError(errno.EACCES, "no"),
        OSError(errno.ENOSPC, "full"),
        OSError("When reading key: AWS Error ACCESS_DENIED during GetObject operation"),
        ValueError("timed out"),
    ],
)
def test_permanent_errors_are_not_retried(error: Exception) -> None:
    work = Flaky(error)
    with pytest.raises(type(error)):
        with_retries(work)
    assert work.calls == 1


@pytest.mark.parametrize(
    "text",
    [
        "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Could not resolve hostname",
        "AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate.",
        "AWS Error UNKNOWN (HTTP status 503) during GetObject operation",
    ],
)
def test_messages_of_object_stores_are_transient(text: str) -> None:
    assert is_transient(OSError(text))
