"""Commands for the job server of a Ray cluster."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from raysep.cli.app import Overrides, RunDir, app, print_table
from raysep.errors import RaysepError, UsageError

Address = Annotated[
    str,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Address of the cluster's dashboard.", show_default=True),
]
# Timeout of --stop-on-exit, below `signals.GRACE_S` and the grace period of container runtimes.
STOP_S = 6.0
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


@app.command()
def submit(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of a run or a sweep.")],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    address: Address = DEFAULT_ADDRESS,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the log, and exit with the job's exit code.")] = False,
    code: Annotated[
        str | None, typer.Option(help="raysep checkout to upload and run, instead of the nodes' version.")
    ] = None,
    python: Annotated[str, typer.Option(help="Python command on the head node.")] = "python",
    stop_on_exit: Annotated[
        bool, typer.Option("--stop-on-exit", help="With --wait: stop the job if this command is stopped.")
    ] = False,
) -> None:
    """Submit a run or a sweep as a job. The job keeps running if this command is stopped."""
    if stop_on_exit and not wait:
        raise UsageError("--stop-on-exit requires --wait: without --wait this command ends when the job is submitted")
    from raysep.config.load import load_config, to_yaml
    from raysep.distributed import job_log, jobs
    from raysep.process import signals
    from raysep.sweeps.config import is_sweep, load_sweep

    if is_sweep(config):
        sweep = load_sweep(config, overrides or [], run_dir)
        target = jobs.target_at(sweep.root, address)
        uris = {"root": target, "results": jobs.target_at(sweep.results, address)}
        command, text = "sweep", to_yaml(sweep.model_copy(update=uris))
    else:
        loaded = load_config(config, overrides or [], run_dir)
        target = jobs.target_at(loaded.run_dir, address)
        command, text = "run", to_yaml(loaded.model_copy(update={"run_dir": target}))
    job = jobs.Job(command, text, config, target, str(Path.cwd()))
    job_id = jobs.new_id()
    err = Console(stderr=True, highlight=False)
    submitted = False
    try:
        with signals.caught():
            jobs.submit(job, job_id, address, code, python)
            submitted = True
            err.print(f"submitted {job_id}: {config}, to {target}", soft_wrap=True, markup=False)
            if not wait:
                typer.echo(job_id)
                return
            exit_code = job_log.follow(job_id, address, _write, _write_stderr)
    except RaysepError as error:
        # A request that timed out may have submitted the job.
        if isinstance(error, UsageError) or not (submitted or "timed out" in str(error)):
            raise
        condition = "" if submitted else "If it was submitted: "
        raise RaysepError(f"{error}\n{condition}{_leave(job_id, address, stop_on_exit)}") from None
    except signals.Interrupted as interrupted:
        err.print(f"by {interrupted}: {_leave(job_id, address, stop_on_exit)}", soft_wrap=True, markup=False)
        raise typer.Exit(signals.EXIT_CODE) from None
    err.print(f"{job_id} ended with exit code {exit_code}", soft_wrap=True)
    raise typer.Exit(exit_code)


@app.command()
def jobs(address: Address = DEFAULT_ADDRESS) -> None:
    """List the jobs of a cluster, the newest first."""
    from raysep.distributed import jobs

    rows = []
    for job in jobs.jobs(address):
        metadata = job.metadata or {}
        started, seconds = "-", "-"
        if job.start_time:
            began = datetime.fromtimestamp(job.start_time / 1000, UTC)
            ended = datetime.fromtimestamp(job.end_time / 1000, UTC) if job.end_time else datetime.now(UTC)
            started, seconds = f"{began:%Y-%m-%d %H:%M:%S}", f"{(ended - began).total_seconds():.0f}"
        config = metadata.get("config") or job.entrypoint
        rows.append([str(job.submission_id), job.status.value, config, metadata.get("target", "-"), started, seconds])
    print_table(["job", "status", "configuration", "results", "started (UTC)", "seconds"], rows)


@app.command()
def stop(
    job: Annotated[str, typer.Argument(metavar="ID", help="As `raysep jobs` lists it.")],
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Stop a job. Its finished work stays, and submitting the configuration again resumes it."""
    from raysep.distributed.jobs import stop as stop_job

    typer.echo(f"{job}: {stop_job(job, address)}")


def _leave(job_id: str, address: str, stop_on_exit: bool) -> str:
    """Stop the job if `stop_on_exit`; returns a message: its state and, if it goes on, how to stop it."""
    from raysep.distributed.jobs import stop as stop_job

    command = f"`raysep stop {job_id} --address {address}` stops it"
    if not stop_on_exit:
        return f"{job_id} goes on; {command}"
    try:
        return f"{job_id}: {stop_job(job_id, address, STOP_S)}"
    except RaysepError as error:
        return f"{job_id} could not be stopped, and goes on ({error}); {command}"


def _write_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # The reader of stdout is gone: as an OSError it would be taken for a network error.
        raise RaysepError(f"the log can't be written to stdout: {error.strerror}") from None
