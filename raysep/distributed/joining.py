"""Which Ray a run joins, and whether it can. `ray.init` would wait a minute for an answer, and say less of it.

Ray's own functions are asked where it looks for a cluster, a token and a version, so that both always agree. Some of
them are private: `tests/test_joining.py` and `tests/cluster/test_joining.py` hold them to what is used here.
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
    "Set RAY_AUTH_MODE=token, and put the cluster's token (`ray get-auth-token` on the head prints it) into "
    "~/.ray/auth_token, RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names."
)
# How long a cluster may take to answer. A socket that accepts, and is no Ray's, says nothing at all.
CONNECT_S, ANSWER_S = 3.0, 4.0
UNSET = "unset RAY_ADDRESS, and raysep starts Ray on this machine"
# A value of RAY_ADDRESS that starts a new Ray, whatever runs.
LOCAL = "local"


def cluster_to_join() -> str | None:
    """The cluster of RAY_ADDRESS, else the one that `ray start` has left running on this machine.

    Its way to authenticate is this process's from then on.

    Returns:
        HOST:PORT; None where Ray is to be started here.

    Raises:
        UsageError: RAY_ADDRESS is no address that a run can join.
        RaysepError: no cluster answers there, or it wants a token or versions that this process doesn't have.
    """
    named = check_named()
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
    where = f"RAY_ADDRESS is {named}" if named else f"`ray start` has noted a cluster at {address}"
    instead = UNSET if named else f"RAY_ADDRESS={LOCAL} starts another Ray; `ray stop` ends that one"
    try:
        metadata = _authenticated(address, where)
    except OSError as error:
        if not named:
            # Its head is gone, and has left its note.
            return None
        raise RaysepError(
            f"{where}, and no Ray cluster answers there ({error.strerror or error}): start it, give the address that "
            f"`ray start` prints on its head, or {UNSET}"
        ) from None
    except NoAnswerError as error:
        raise RaysepError(
            f"{where}, and what listens there does not answer as a Ray cluster does ({error}): give the address that "
            f"`ray start` prints on the head, HOST:6379 as a rule; {instead}"
        ) from None
    _check_versions(metadata, where, instead)
    return str(address)


def authenticate_own() -> None:
    """Give a Ray that is about to be started a random token: its servers listen on every network of this machine."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        _set_mode("token")


class NoAnswerError(Exception):
    """Something listens, and doesn't answer as a cluster does."""


def check_named() -> str:
    """RAY_ADDRESS, which nobody has been asked for yet; empty if it is unset. Raises UsageError."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if named in {"", "auto", LOCAL}:
        return named
    scheme, found, _ = named.partition("://")
    host = urlsplit(named if found else f"//{named}").hostname or "HOST"
    if found and scheme in {"http", "https"}:
        raise UsageError(
            f"RAY_ADDRESS is {named}: that is a dashboard, which takes jobs: `raysep submit CONFIG --address {named}`. "
            f"To join the cluster itself set RAY_ADDRESS={host}:6379 (the port that `ray start` prints), or {UNSET}"
        )
    if found and scheme == "ray":
        raise UsageError(
            f"RAY_ADDRESS is {named}: Ray Tune can't work through Ray Client. Submit the run as a job: `raysep submit "
            f"CONFIG --address http://{host}:8265`; on a node of the cluster set RAY_ADDRESS={host}:6379 (the port "
            f"that `ray start` prints); or {UNSET}"
        )
    try:
        port = None if found else urlsplit(f"//{named}").port
    except ValueError:
        port = None
    if not port:
        raise UsageError(
            f"RAY_ADDRESS: expected HOST:PORT, as in {host}:6379 (`ray start` prints it on the head), `auto` for the "
            f"Ray that runs on this machine, or `{LOCAL}` for a new one, got {named!r}; or {UNSET}"
        )
    return named


def _authenticated(address: str, where: str) -> dict[str, str]:
    """A cluster's versions, asked with a token only if it wants one.

    A driver with a token and a cluster without don't fit together: the workers could not call back.

    Raises:
        OSError: nobody listens there.
        NoAnswerError: somebody does, and doesn't answer.
        RaysepError: the token is missing or wrong.
    """
    from ray.exceptions import AuthenticationError

    # Before the mode is changed: a Ray that this process is connected to would lose its token with it.
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode not in {None, "token", "disabled"}:
        # Another way than a token, which is not for us to change.
        return _metadata(address)
    _set_mode("disabled")
    try:
        return _metadata(address)
    except AuthenticationError:
        pass
    if not _core().AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        raise RaysepError(f"{where}, which asks for a token, and there is none here. {TOKEN_HELP}")
    _set_mode("token")
    try:
        return _metadata(address)
    except AuthenticationError:
        raise RaysepError(f"{where}, which refuses the token of {_token_source()}. {TOKEN_HELP}") from None


def _set_mode(mode: str) -> None:
    """Authenticate so from now on. Ray reads the environment once, unless it is told to do it again."""
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
    """Versions of a cluster, asked by a thread that may be left behind: Ray's client waits 40 s for an answer."""
    from ray._common.usage.usage_lib import get_cluster_metadata

    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(get_cluster_metadata(_core().GcsClient(address=address)))
        except Exception as error:  # noqa: BLE001  (raised again below)
            answer.append(error)

    thread = threading.Thread(target=ask, name="ask the cluster", daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if not answer:
        raise NoAnswerError(f"no answer in {ANSWER_S:g} s")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0] or {}


def _check_versions(metadata: dict[str, str], where: str, instead: str) -> None:
    """Raise RaysepError where Ray would refuse this process for its versions, by Ray's own rule."""
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
            f"{where}, which is {theirs}, and this is {ours}: both have to be the same. Use an environment with the "
            "cluster's versions, or submit the run as a job, which runs in the cluster's own: `raysep submit CONFIG "
            f"--address http://HOST:8265`; {instead}"
        ) from None
