"""Client of a cluster's job server, with timeouts, authentication and errors for users."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from raysep.distributed.joining import TOKEN_HELP
from raysep.errors import RaysepError, UsageError
from raysep.process import proxies

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

T = TypeVar("T")
POLL_S = 1.0
# Errors of a head that is still starting, and how long to retry each. A refused connection is more often a typo.
NOT_READY_S = {"No available agent": 60.0, "Failed to connect": 5.0}
# Timeouts of a connection, of a response, and of the transfer of a whole log or an upload.
CONNECT_S, ANSWER_S, UPLOAD_S = 3.0, 5.0, 300.0
LOGGERS = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")


@contextmanager
def client_of(address: str) -> Iterator["JobSubmissionClient"]:
    """Connect to a cluster's job server, and turn its errors within the block into errors for users.

    Sends the token, if Ray's usual sources have one; Ray itself does so only if RAY_AUTH_MODE is `token`.

    Raises:
        UsageError: not an address of a job server, or a proxy would see the token.
        RaysepError: no cluster answers, or it refuses the token.
    """
    check_address(address)
    proxies.bypass_loopback()
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or token.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    proxy = proxies.proxy_of(address)
    if proxy and urlsplit(address).scheme == "http" and os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        raise UsageError(
            f"{address} would be reached through the proxy {proxy}, which would see the cluster's token: add "
            f"{urlsplit(address).hostname} to NO_PROXY, or give an https:// address"
        )
    where = f"{address}, through the proxy {proxy} (NO_PROXY bypasses it)" if proxy else address
    import requests
    from ray.exceptions import AuthenticationError

    # Ray prefers this variable to the address that it is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    # raysep reports uploads itself. Two of these loggers set their own levels at import.
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield when_ready(lambda: _client(address))
    except AuthenticationError as error:
        raise RaysepError(f"{where}: {str(error).splitlines()[0]}. {TOKEN_HELP}") from None
    except (RuntimeError, ConnectionError, requests.exceptions.RequestException) as error:
        text = " ".join(str(error).split())
        refused = re.search(r"\b401\b|Unauthorized: Missing", text)
        hint = TOKEN_HELP if refused else "Is a cluster running there, with its dashboard?"
        raise RaysepError(f"{where}: {text} {hint}") from None


def _client(address: str) -> "JobSubmissionClient":
    """Ray's client with added timeouts; it has none itself. Raises RaysepError if the server is not Ray's dashboard."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc,unused-ignore]
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            large = method in {"PUT", "POST"} or endpoint.endswith("/logs")
            answer_s = UPLOAD_S if large and not endpoint.endswith("/stop") else ANSWER_S
            return super()._do_request(method, endpoint, **{"timeout": (CONNECT_S, answer_s), **options})

    try:
        client = Client(address)
        # aiohttp deprecates Ray's `None` in favour of True.
        if vars(client).get("_ssl_context") is None:
            vars(client)["_ssl_context"] = True
        return client
    except (KeyError, TypeError, ValueError):
        # The constructor queries the server's version, and fails to parse another server's response.
        raise RaysepError(
            f"{address}: the server there is not a Ray dashboard: give the address that `ray start` prints, "
            "usually http://HOST:8265"
        ) from None


def when_ready(call: Callable[[], T]) -> T:
    """The result of a call, with retries while the head is still starting."""
    began = time.monotonic()
    while True:
        try:
            return call()
        except (RuntimeError, ConnectionError) as error:
            timeout = next((seconds for text, seconds in NOT_READY_S.items() if text in str(error)), 0.0)
            if time.monotonic() - began > timeout:
                raise
        time.sleep(POLL_S)


def check_address(address: str) -> None:
    """Raise UsageError if an address is not an HTTP URL."""
    if urlsplit(address).scheme not in {"http", "https"}:
        raise UsageError(f"--address: expected http://HOST:8265, the address of the dashboard, got {address!r}")
