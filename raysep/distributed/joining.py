"""Find the cluster to join, and check that this process can join it.

`ray.init` would wait a minute, and then raise a vaguer error.

Addresses, tokens and versions are queried with Ray's own functions, so that raysep and Ray always agree. Some are
private: `tests/distributed/test_joining.py` and `tests/cluster/test_joining.py` pin the behaviour that is used here.
"""

import importlib
import os
import platform
import secrets
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

from raysep.errors import RaysepError, UsageError

TOKEN_HELP = (
    "Set RAY_AUTH_MODE=token, and put the cluster's token (printed by `ray get-auth-token` on the head) into "
    "~/.ray/auth_token, RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH."
)
# Timeouts of a cluster's connection and answer. Another server may accept a connection and never answer.
CONNECT_S, ANSWER_S = 3.0, 4.0
UNSET = "unset RAY_ADDRESS to start Ray on this machine"
# Value of RAY_ADDRESS that always starts a new Ray.
LOCAL = "local"


def cluster_to_join() -> str | None:
    """The cluster of RAY_ADDRESS, else the one that `ray start` left running on this machine.

    Sets this process's authentication mode to that of the cluster.

    Returns:
        HOST:PORT; None if Ray is to be started on this machine.

    Raises:
        UsageError: a run can't join the address in RAY_ADDRESS.
        RaysepError: no cluster answers there, it refuses this process's token, or its versions differ.
    """
    named = check_ray_address()
    services: Any = importlib.import_module("ray._private.services")
    try:
        address = services.canonicalize_bootstrap_address(named or None)
    except ConnectionError:
        raise RaysepError(
            f"RAY_ADDRESS is {named}, and no Ray runs on this machine: start one (`ray start --head`), set "
            f"RAY_ADDRESS=HOST:PORT of another, or {UNSET}"
        ) from None
    if address is None:
        return None
    where = f"RAY_ADDRESS is {named}" if named else f"`ray start` has recorded a cluster at {address}"
    instead = UNSET if named else f"RAY_ADDRESS={LOCAL} starts another Ray; `ray stop` stops the recorded one"
    try:
        metadata = _authenticated(address, where)
    except OSError as error:
        if not named:
            # The recorded cluster's head is gone.
            return None
        raise RaysepError(
            f"{where}, and no Ray cluster answers there ({error.strerror or error}): start it, give the address that "
            f"`ray start` prints on its head, or {UNSET}"
        ) from None
    except NoAnswerError as error:
        raise RaysepError(
            f"{where}, but the server there does not answer like a Ray cluster ({error}): give the address that "
            f"`ray start` prints on the head, usually HOST:6379; {instead}"
        ) from None
    _check_versions(metadata, where, instead)
    return str(address)


def authenticate_new_ray() -> None:
    """Set a random token for a new Ray, whose servers listen on all networks of this machine."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        _set_mode("token")


class NoAnswerError(Exception):
    """A server accepts connections but doesn't answer like a cluster."""


def check_ray_address() -> str:
    """RAY_ADDRESS, checked without a connection; empty if unset. Raises UsageError."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if named in {"", "auto", LOCAL}:
        return named
    scheme, separator, _ = named.partition("://")
    host = urlsplit(named if separator else f"//{named}").hostname or "HOST"
    if separator and scheme in {"http", "https"}:
        raise UsageError(
            f"RAY_ADDRESS is {named}, a dashboard, which takes jobs: run `raysep submit CONFIG --address {named}`. "
            f"To join the cluster itself, set RAY_ADDRESS={host}:6379 (the port that `ray start` prints), or {UNSET}"
        )
    if separator and scheme == "ray":
        raise UsageError(
            f"RAY_ADDRESS is {named}: Ray Tune doesn't work through Ray Client. Submit the run as a job: `raysep "
            f"submit CONFIG --address http://{host}:8265`; on a node of the cluster set RAY_ADDRESS={host}:6379 (the "
            f"port that `ray start` prints); or {UNSET}"
        )
    try:
        port = None if separator else urlsplit(f"//{named}").port
    except ValueError:
        port = None
    if not port:
        raise UsageError(
            f"RAY_ADDRESS: expected HOST:PORT, as in {host}:6379 (`ray start` prints it on the head), `auto` for the "
            f"Ray that runs on this machine, or `{LOCAL}` for a new one, got {named!r}; or {UNSET}"
        )
    return named


def _authenticated(address: str, where: str) -> dict[str, str]:
    """Metadata of a cluster, queried with a token only if it requires one.

    If the driver uses a token and the cluster doesn't, workers can't connect to the driver.

    Raises:
        OSError: the connection is refused or times out.
        NoAnswerError: the server accepts the connection but doesn't answer.
        RaysepError: the token is missing or wrong.
    """
    from ray.exceptions import AuthenticationError

    # Connect before changing the mode, since that discards the token of a Ray that this process is connected to.
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode not in {None, "token", "disabled"}:
        # Keep another authentication mode of the user's.
        return _metadata(address)
    _set_mode("disabled")
    try:
        return _metadata(address)
    except AuthenticationError:
        pass
    if not _core().AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        raise RaysepError(f"{where}, which requires a token, but none is set here. {TOKEN_HELP}")
    _set_mode("token")
    try:
        return _metadata(address)
    except AuthenticationError:
        raise RaysepError(f"{where}, which refuses the token of {_token_source()}. {TOKEN_HELP}") from None


def _set_mode(mode: str) -> None:
    """Set the authentication mode, and make Ray read it again: it caches the environment."""
    os.environ["RAY_AUTH_MODE"] = mode
    _core().Config.initialize("")
    _core().AuthenticationTokenLoader.instance().reset_cache()


def _core() -> Any:
    """Ray's compiled module, which has no types."""
    return importlib.import_module("ray._raylet")


def _token_source() -> str:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return name
    return "~/.ray/auth_token"


def _metadata(address: str) -> dict[str, str]:
    """Metadata of a cluster: its versions. Queried in a daemon thread, since Ray's client waits 40 s for an answer."""
    from ray._common.usage.usage_lib import get_cluster_metadata

    answer: list[Any] = []

    def query() -> None:
        try:
            answer.append(get_cluster_metadata(_core().GcsClient(address=address)))
        except Exception as error:  # noqa: BLE001  (raised again below)
            answer.append(error)

    thread = threading.Thread(target=query, name="query the cluster", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if not answer:
        raise NoAnswerError(f"no answer in {ANSWER_S:g} s")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0] or {}


def _check_versions(metadata: dict[str, str], where: str, instead: str) -> None:
    """Raise RaysepError if the versions of Ray or Python differ from the cluster's, by Ray's own rule."""
    import ray
    from ray._private.utils import check_version_info

    if not metadata:
        return
    try:
        check_version_info(metadata, "this process")
    except RuntimeError:
        theirs = f"Ray {metadata['ray_version']} on Python {metadata['python_version']}"
        ours = f"Ray {ray.__version__} on Python {platform.python_version()}"
        raise RaysepError(
            f"{where}, which runs {theirs}, but this process runs {ours}: both must be the same. Use an environment "
            "with the cluster's versions, or submit the run as a job, which runs in the cluster's own: `raysep submit "
            f"CONFIG --address http://HOST:8265`; {instead}"
        ) from None
