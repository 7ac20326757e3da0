"""The Typer application, options shared by several commands, and printing to stdout."""

import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from raysep.errors import printable

app = typer.Typer(
    help="Which layer of a vision model generalizes best to classes it was never trained on?",
    no_args_is_help=True,
    add_completion=False,
    # Plain lines: panels break sentences, and scripts cannot parse them.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as in models.0.name=resnet18 finetune.steps=50."),
]
RunDir = Annotated[str | None, typer.Option("--run-dir", help="Directory or URI of the run.")]
Local = Annotated[bool, typer.Option("--local", help="Run in this process, without Ray: for a laptop and small data.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the output of Ray, Tune and torch as well.")]


# Width of tables in a file or pipe, and minimum width on a terminal.
PLAIN_WIDTH, LEAST_WIDTH = 160, 40


def print_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str | None = None,
    right: Sequence[str] = (),
    caption: str | None = None,
) -> None:
    """Print a table to stdout, with a title above and a caption below it.

    Args:
        right: headings of right-aligned columns.
    """
    table = Table(title=title, caption=caption)
    for heading in headings:
        table.add_column(heading, overflow="fold", justify="right" if heading in right else "left")
    for row in rows:
        table.add_row(*row)
    output().print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Print lines to stdout, with control characters escaped."""
    for line in lines:
        output().print(printable(line), markup=False, soft_wrap=True)


def output() -> Console:
    """The console for the results of a command, on stdout."""
    if not sys.stdout.isatty():
        return Console(highlight=False, width=PLAIN_WIDTH)
    console = Console(highlight=False)
    # Some terminals report a width of 0.
    return console if console.width >= LEAST_WIDTH else Console(highlight=False, width=LEAST_WIDTH)


class LogFormat(StrEnum):
    """Format of the progress lines on stderr."""

    text = "text"
    json = "json"
