"""Runs and sweeps as jobs of a Ray cluster: submit one, follow it, list them, stop one.

What is uploaded is the resolved configuration and, if asked for, the code of a checkout; everything else is
reached from the cluster's nodes.
"""

import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from raysep import __version__
from raysep.errors import RaysepError, UsageError
from raysep.joining import TOKEN_HELP
from raysep.storage import is_uri

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

POLL_S = 1.0
# What a head says that was just started, and how long it may say so. Nobody at all at an address is more often a typo.
NOT_READY_S = {"No available agent": 60.0, "Failed to connect": 10.0}
# So long a followed job may be out of reach.
SILENCE_S = 300.0
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What is submitted.

    Attributes:
        command: of raysep: `run` or `sweep`.
        config: the resolved configuration as YAML.
        arguments: further arguments of the command.
        source: the file that the configuration came from.
        target: the directory or URI that is written to.
        directory: what relative paths of the configuration mean.
    """

    command: str
    config: str
    source: str
    target: str
    directory: str


def submit(job: Job, address: str, code: str | None, python: str) -> str:
    """Submit a job.

    Args:
        address: of the cluster's job server: http://HOST:8265.
        code: a checkout whose package is uploaded, and runs instead of what the nodes have installed.
        python: the command that runs Python on the head.

    Returns:
        The submission id.

    Raises:
        UsageError: no checkout.
        RaysepError: no cluster, or it doesn't let us in.
    """
    with tempfile.TemporaryDirectory(prefix="raysep-job-") as scratch:
        name = f"{job.command}.yaml"
        (Path(scratch) / name).write_text(job.config, encoding="utf-8")
        runtime_env: dict[str, Any] = {"working_dir": scratch}
        if code is not None:
            runtime_env |= {"py_modules": [_package(code)], "excludes": ["__pycache__/"]}
        with client_of(address) as client:
            return _when_ready(
                lambda: str(
                    client.submit_job(
                        entrypoint=_entrypoint(python, job, name, address),
                        runtime_env=runtime_env,
                        metadata={"raysep": __version__, "config": job.source, "target": job.target},
                    )
                )
            )


def follow(job_id: str, address: str, write: Callable[[str], object] = sys.stdout.write) -> int:
    """Copy a job's log until it ends. Returns its exit code; 1 where it has none, since it was stopped or lost."""
    import requests

    shown, silent_since = 0, time.monotonic()
    with client_of(address) as client:
        while True:
            try:
                info = client.get_job_info(job_id)
                log = client.get_job_logs(job_id)
            except (RuntimeError, requests.exceptions.RequestException):
                # The job goes on without us: a head that is busy, or a network that is away for a while, ends nothing.
                if time.monotonic() - silent_since > SILENCE_S:
                    raise
                time.sleep(POLL_S)
                continue
            silent_since = time.monotonic()
            write(log[shown:])
            shown = len(log)
            if info.status.is_terminal():
                return _exit_code(info)
            time.sleep(POLL_S)


def jobs(address: str) -> list["JobDetails"]:
    """Jobs that were submitted, the newest first."""
    with client_of(address) as client:
        found = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: -(job.start_time or 0))


def stop(job_id: str, address: str, timeout_s: float = 60.0) -> str:
    """Stop a job, and wait until it is. Returns its status.

    Raises:
        UsageError: there is no such job.
        RaysepError: it did not stop in time.
    """
    with client_of(address) as client:
        known = [job.submission_id for job in client.list_jobs() if job.submission_id]
        if job_id not in known:
            raise UsageError(f"no job {job_id} at {address}; there are {', '.join(known) or 'none'}")
        client.stop_job(job_id)
        for _ in range(int(timeout_s / POLL_S)):
            status = client.get_job_status(job_id)
            if status.is_terminal():
                return str(status.value)
            time.sleep(POLL_S)
    raise RaysepError(f"{job_id} was asked to stop and is still running after {timeout_s:g} s")


@contextmanager
def client_of(address: str) -> Iterator["JobSubmissionClient"]:
    """A client of a cluster's job server, whose errors are meant for people.

    A token that lies where Ray looks for it is sent; Ray itself sends it only if RAY_AUTH_MODE says so.
    """
    _check_address(address)
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or token.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray  # noqa: F401  (its import sets its loggers up)
    import requests

    # What is uploaded is said by us.
    logging.getLogger("ray").setLevel(logging.WARNING)
    # Where it is set, Ray takes it instead of what it is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        yield _when_ready(lambda: JobSubmissionClient(address))
    except AuthenticationError as error:
        raise RaysepError(f"{address}: {str(error).splitlines()[0]}. {TOKEN_HELP}") from None
    except (RuntimeError, ConnectionError, requests.exceptions.RequestException) as error:
        text = " ".join(str(error).split())
        hint = TOKEN_HELP if "nauthorized" in text else "Is a cluster running there, with its dashboard?"
        raise RaysepError(f"{address}: {text} {hint}") from None


def _when_ready(call: Callable[[], T]) -> T:
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


def _exit_code(info: "JobDetails") -> int:
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    return 0 if info.status.value == "SUCCEEDED" else 1


def _entrypoint(python: str, job: Job, name: str, address: str) -> str:
    """The job's command. Where the head is this machine it runs where it was submitted, so that relative paths hold."""
    if not _is_loopback(address):
        return f"{python} -m raysep {job.command} {name}"
    # A loopback address may be forwarded to another machine, which has no such directory.
    where = shlex.quote(job.directory)
    return f'CONFIG="$PWD/{name}"; cd {where} 2>/dev/null; {python} -m raysep {job.command} "$CONFIG"'


def target_at(target: str, address: str) -> str:
    """Where results go, as the cluster knows it.

    Raises:
        UsageError: a relative path, which means this machine, where the cluster is another.
    """
    _check_address(address)
    if is_uri(target) or Path(target).is_absolute():
        return target
    if not _is_loopback(address):
        raise UsageError(
            f"results would go to {target}, a directory of this machine, and {address} is another: give a URI that all "
            "nodes reach (s3://..., gs://...), or an absolute path that they all mount"
        )
    return str(Path(target).absolute())


def _check_address(address: str) -> None:
    if urlsplit(address).scheme not in {"http", "https"}:
        raise UsageError(f"--address: expected http://HOST:8265, the address of the dashboard, got {address!r}")


def _is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in {"127.0.0.1", "localhost", "::1"}


def _package(code: str) -> str:
    package = Path(code).expanduser().resolve() / "raysep"
    if not (package / "__init__.py").is_file():
        raise UsageError(f"--code {code}: expected a checkout of raysep, found no package at {package}")
    return str(package)
