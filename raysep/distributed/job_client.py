"""A client of a cluster's job server whose errors are meant for people."""

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
# What a head says that was just started, and how long it may say so. Nobody at all at an address is more often a typo.
NOT_READY_S = {"No available agent": 60.0, "Failed to connect": 5.0}
# A server that takes a connection, and longer than `ANSWER_S` for an answer, is out of reach. Whole logs and uploads
# are larger than other answers.
CONNECT_S, ANSWER_S, UPLOAD_S = 3.0, 5.0, 300.0
LOGGERS = ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")


@contextmanager
def client_of(address: str) -> Iterator["JobSubmissionClient"]:
    """A client of a cluster's job server, whose errors are meant for people.

    A token that lies where Ray looks for it is sent; Ray itself sends it only if RAY_AUTH_MODE says so.

    Raises:
        UsageError: no address of a job server, or a proxy would see the token.
        RaysepError: no cluster, or it doesn't let us in.
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
    where = f"{address}, through the proxy {proxy} (NO_PROXY goes around it)" if proxy else address
    import requests
    from ray.exceptions import AuthenticationError

    # Where it is set, Ray takes it instead of what it is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    # What is uploaded is said by us. Two of them set their levels when they are imported.
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        yield when_ready(lambda: _client(address))
    except AuthenticationError as error:
        raise RaysepError(f"{where}: {str(error).splitlines()[0]}. {TOKEN_HELP}") from None
    except (RuntimeError, ConnectionError, requests.exceptions.RequestException) as error:
        text = " ".join(str(error).split())
        asks = re.search(r"\b401\b|Unauthorized: Missing", text)
        hint = TOKEN_HELP if asks else "Is a cluster running there, with its dashboard?"
        raise RaysepError(f"{where}: {text} {hint}") from None


def _client(address: str) -> "JobSubmissionClient":
    """Ray's client, which would wait for an answer without end.

    Raises:
        RaysepError: what answers there is no Ray.
    """
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc,unused-ignore]
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            large = method in {"PUT", "POST"} or endpoint.endswith("/logs")
            answer_s = UPLOAD_S if large and not endpoint.endswith("/stop") else ANSWER_S
            return super()._do_request(method, endpoint, **{"timeout": (CONNECT_S, answer_s), **options})

    try:
        client = Client(address)
        # Ray's `None` is deprecated in aiohttp: the same is called True.
        if vars(client).get("_ssl_context") is None:
            vars(client)["_ssl_context"] = True
        return client
    except (KeyError, TypeError, ValueError):
        # Its version is the first that is asked for.
        raise RaysepError(
            f"{address}: what answers there is no dashboard of Ray: give the address that `ray start` prints, "
            "http://HOST:8265 as a rule"
        ) from None


def when_ready(call: Callable[[], T]) -> T:
    """A call's result, tried again while the head is still starting."""
    began = time.monotonic()
    while True:
        try:
            return call()
        except (RuntimeError, ConnectionError) as error:
            patience = next((seconds for text, seconds in NOT_READY_S.items() if text in str(error)), 0.0)
            if time.monotonic() - began > patience:
                raise
        time.sleep(POLL_S)


def check_address(address: str) -> None:
    """Raise UsageError where an address is no dashboard's."""
    if urlsplit(address).scheme not in {"http", "https"}:
        raise UsageError(f"--address: expected http://HOST:8265, the address of the dashboard, got {address!r}")
