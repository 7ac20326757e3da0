"""Command line. Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 3 results not comparable, 130 stopped."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from raysep import __version__
from raysep.cli import evaluate, jobs, sweeps
from raysep.cli.app import app
from raysep.errors import RaysepError, StoppedError, UsageError, printable
from raysep.process import environment
from raysep.process.signals import EXIT_CODE, Interrupted
from raysep.storage.retries import is_transient

__all__ = ["app", "evaluate", "jobs", "main", "sweeps"]


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a command; print expected errors as one line, and exit with their code."""
    try:
        environment.prepare()
        app(args=arguments, standalone_mode=True)
    except RaysepError as error:
        kind = "stopped" if isinstance(error, StoppedError) else "error"
        _print_error(f"{kind}: {error}")
        sys.exit(error.exit_code)
    except Interrupted:
        sys.exit(EXIT_CODE)
    except RuntimeError as error:
        # Path.expanduser raises it for ~name/images.
        if "home directory" not in str(error):
            raise
        _print_error("error: a path begins with ~ and a user name that is unknown on this machine")
        sys.exit(UsageError.exit_code)
    except (OSError, MemoryError) as error:
        # Unexpected failures of a disk, a network or a service, named in the error.
        message = str(error) or "out of memory"
        if is_transient(error):
            todo = "Finished work stays valid: when the service answers again, run the same command"
            message = f"{message.rstrip('.')}. {todo}"
        _print_error(f"error: {message}")
        sys.exit(1)


def _print_error(text: str) -> None:
    Console(file=environment.lenient(sys.stderr)).print(
        printable(text), style="red", markup=False, highlight=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()
