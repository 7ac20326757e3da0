"""Runs and sweeps as jobs of a Ray cluster: submit one, list them, stop one.

A submission uploads the resolved configuration and, on request, the code of a checkout. The cluster's nodes read
everything else themselves.
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
    """A run or sweep to submit.

    Attributes:
        command: command of raysep, `run` or `sweep`.
        config: the resolved configuration as YAML.
        source: path of the configuration file.
        target: directory or URI of the results.
        directory: base of relative paths in the configuration.
    """

    command: str
    config: str
    source: str
    target: str
    directory: str


def new_id() -> str:
    """A submission id, chosen by the client so that an interrupted submission has a known id."""
    return f"raysep_{secrets.token_hex(8)}"


def submit(job: Job, job_id: str, address: str, code: str | None, python: str) -> None:
    """Submit a job.

    Args:
        address: address of the cluster's job server, http://HOST:8265.
        code: a checkout whose package is uploaded and used instead of the installed one.
        python: command of the Python interpreter on the head.

    Raises:
        UsageError: `code` is not a checkout.
        RaysepError: no cluster answers, or it refuses the token.
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
    """Submitted jobs, newest first."""
    with client_of(address) as client:
        submitted = [job for job in client.list_jobs() if job.submission_id]
    return sorted(submitted, key=lambda job: -(job.start_time or 0))


def stop(job_id: str, address: str, timeout_s: float = 60.0) -> str:
    """Stop a job and wait for its end. Returns its status.

    Sends the stop request before any other request: if the calling command is being stopped too, it has little time.

    Raises:
        UsageError: the job does not exist.
        RaysepError: it did not stop within `timeout_s`.
    """
    with client_of(address) as client:
        try:
            client.stop_job(job_id)
        except RuntimeError as error:
            if "does not exist" not in str(error):
                raise
            known = [job.submission_id for job in client.list_jobs() if job.submission_id]
            raise UsageError(f"no job {job_id} at {address}; its jobs are {', '.join(known) or 'none'}") from None
        for _ in range(max(1, int(timeout_s / POLL_S))):
            status = client.get_job_status(job_id)
            if status.is_terminal():
                return str(status.value)
            time.sleep(POLL_S)
    raise RaysepError(f"{job_id} is still running {timeout_s:g} s after the stop request")


def _entrypoint(python: str, job: Job, name: str, address: str) -> str:
    """The job's shell command. On this machine it runs in the submitter's directory, for relative paths."""
    if not _is_loopback(address):
        return f"{python} -m raysep {job.command} {name}"
    # A loopback address may be a tunnel to another machine without this directory: ignore errors of cd.
    where = shlex.quote(job.directory)
    return f'CONFIG="$PWD/{name}"; cd {where} 2>/dev/null; {python} -m raysep {job.command} "$CONFIG"'


def target_at(target: str, address: str) -> str:
    """The directory or URI of the results, absolute for use on the cluster.

    Raises:
        UsageError: a relative path, but the cluster is not on this machine.
    """
    check_address(address)
    if is_uri(target) or Path(target).is_absolute():
        return target
    if not _is_loopback(address):
        raise UsageError(
            f"results would go to {target}, a directory of this machine, but {address} is another machine: give a URI "
            "that all nodes reach (s3://..., gs://...), or an absolute path that they all mount"
        )
    return str(Path(target).absolute())


def _is_loopback(address: str) -> bool:
    return urlsplit(address).hostname in {"127.0.0.1", "localhost", "::1"}


def _package(code: str) -> str:
    package = Path(code).expanduser().resolve() / "raysep"
    if not (package / "__init__.py").is_file():
        raise UsageError(f"--code {code}: expected a checkout of raysep, but there is no package at {package}")
    return str(package)
