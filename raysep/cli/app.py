"""The application that every command belongs to, and the options that several of them have."""

from enum import StrEnum
from typing import Annotated

import typer

app = typer.Typer(
    help="Which layer of a vision model generalizes best to classes it was never trained on?",
    no_args_is_help=True,
    add_completion=False,
    # Plain lines: panels break sentences, and a script can't read them.
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
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the lines of Ray, Tune and torch as well.")]


class LogFormat(StrEnum):
    """How progress is said on stderr."""

    text = "text"
    json = "json"
