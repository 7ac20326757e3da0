"""Runs and sweeps as jobs of a Ray cluster: submit one, list them, stop one.

What is uploaded is the resolved configuration and, if asked for, the code of a checkout; everything else is
reached from the cluster's nodes.
"""

import secrets
import shlex
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from raysep import __version__
from raysep.distributed.job_client import POLL_S, check_address, client_of, when_ready
from raysep.errors import RaysepError, UsageError
from raysep.storage.store import is_uri

if TYPE_CHECKING:
    from ray.job_submission import JobDetails


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


def new_id() -> str:
    """A submission id, chosen here: a job whose submission is cut off can be named, too."""
    return f"raysep_{secrets.token_hex(8)}"


def submit(job: Job, job_id: str, address: str, code: str | None, python: str) -> None:
    """Submit a job.

    Args:
        address: of the cluster's job server: http://HOST:8265.
        code: a checkout whose package is uploaded, and runs instead of what the nodes have installed.
        python: the command that runs Python on the head.

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
            when_ready(
                lambda: client.submit_job(
                    entrypoint=_entrypoint(python, job, name, address),
                    submission_id=job_id,
                    runtime_env=runtime_env,
                    metadata={"raysep": __version__, "config": job.source, "target": job.target},
                )
            )


def jobs(address: str) -> list["JobDetails"]:
    """Jobs that were submitted, the newest first."""
    with client_of(address) as client:
        found = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: -(job.start_time or 0))


def stop(job_id: str, address: str, timeout_s: float = 60.0) -> str:
    """Stop a job, and wait until it is. Returns its status.

    The request is the first that is sent: a command that is being ended has little time.

    Raises:
        UsageError: there is no such job.
        RaysepError: it did not stop in time.
    """
    with client_of(address) as client:
        try:
            client.stop_job(job_id)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            known = [job.submission_id for job in client.list_jobs() if job.submission_id]
            raise UsageError(f"no job {job_id} at {address}; there are {', '.join(known) or 'none'}") from None
        for _ in range(max(1, int(timeout_s / POLL_S))):
            status = client.get_job_status(job_id)
            if status.is_terminal():
                return str(status.value)
            time.sleep(POLL_S)
    raise RaysepError(f"{job_id} was asked to stop and is still running after {timeout_s:g} s")


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
    check_address(address)
    if is_uri(target) or Path(target).is_absolute():
        return target
    if not _is_loopback(address):
        raise UsageError(
            f"results would go to {target}, a directory of this machine, and {address} is another: give a URI that all "
            "nodes reach (s3://..., gs://...), or an absolute path that they all mount"
        )
    return str(Path(target).absolute())


def _is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in {"127.0.0.1", "localhost", "::1"}


def _package(code: str) -> str:
    package = Path(code).expanduser().resolve() / "raysep"
    if not (package / "__init__.py").is_file():
        raise UsageError(f"--code {code}: expected a checkout of raysep, found no package at {package}")
    return str(package)
