"""The READMEs against the code: generated tables, links, and the commands in them."""

import os
import re
import shlex
from pathlib import Path

import pytest
import typer

from raysep import cli
from raysep.config import reference
from raysep.config.load import load_config
from raysep.sweeps.config import SweepConfig, load_sweep
from tests.conftest import REPOSITORY

READMES = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / ".github").glob("*.md"), *REPOSITORY.glob("*/**/README.md")]
    if not {part for part in path.relative_to(REPOSITORY).parts if part in {".venv", "runs", "node_modules"}}
)
NAMES = [str(path.relative_to(REPOSITORY)) for path in READMES]
GENERATED = {
    "run": reference.reference,
    "sweep": lambda: reference.table(SweepConfig) + "\n",
    "metrics": reference.metrics,
}
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<code>.*?)\n```", re.DOTALL)
# Commands of a block that other tests run: the README's two, in a fresh clone (`.ci/run`).
SET_UP = "python3 -m venv"


def commands(readme: Path) -> list[tuple[str, str]]:
    """The line before each block of commands, and its commands, continued lines joined."""
    found = []
    for block in BLOCK.finditer(readme.read_text()):
        if block["language"] in {"", "sh"}:
            lines = block["code"].replace("\\\n", " ").splitlines()
            found += [(block["before"], line.split("  #")[0].strip()) for line in lines if line.strip()]
    return found


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("readme", READMES, ids=NAMES)
def test_generated_tables_are_those_of_the_code(readme: Path):
    text = readme.read_text()
    for name in re.findall(r"<!-- generated: (\w+) -->", text):
        marked = re.compile(rf"(<!-- generated: {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        text = marked.sub(lambda match, name=name: match[1] + GENERATED[name](), text)
    if os.environ.get("UPDATE_REFERENCE"):
        readme.write_text(text)
    assert readme.read_text() == text, "UPDATE_REFERENCE=1 pytest -n 0 tests/test_readme.py writes it anew"


def test_every_generated_table_is_somewhere():
    everything = "".join(readme.read_text() for readme in READMES)
    assert {name for name in GENERATED if f"<!-- generated: {name} -->" not in everything} == set()


@pytest.mark.parametrize("readme", READMES, ids=NAMES)
def test_links_lead_somewhere(readme: Path):
    links = re.findall(r"\]\((?!http)([^)#\s]+)\)", readme.read_text())
    assert [link for link in links if not (readme.parent / link).exists()] == []


@pytest.mark.parametrize("readme", READMES, ids=NAMES)
def test_every_command_is_run_or_says_what_it_needs(readme: Path, monkeypatch: pytest.MonkeyPatch):
    """A command of raysep parses, with its configuration and overrides; what it needs to be run stands above it."""
    monkeypatch.chdir(REPOSITORY)
    application = typer.main.get_command(cli.app)
    assert isinstance(application, typer.core.TyperGroup)
    for before, line in commands(readme):
        if line.startswith(SET_UP) or not re.match(r"[\w.$]+( |$)", line) or before.startswith("The quickstart took"):
            continue
        assert before.startswith("<!-- needs: "), (
            f"{readme}: {line}: a test has to run it, or a comment say what it needs"
        )
        words = shlex.split(line, comments=True)
        if words[0] == "raysep":
            command = application.commands[words[1]]
            context = command.make_context(words[1], words[2:])
            path = context.params.get("config") or context.params.get("path")
            if isinstance(path, str) and path.startswith("jobs/"):
                load = load_sweep if "sweeps" in path else load_config
                load(path, context.params.get("overrides") or [])


def test_every_command_is_documented():
    everything = "".join(readme.read_text() for readme in READMES)
    names = {command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands}
    assert {name for name in names if not re.search(rf"raysep [a-z|]*\b{name}\b", everything)} <= {
        "embed",
        "score",
        "report",
    }


def test_ci_runs_the_command_for_the_tests():
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    command = lines[lines.index("<!-- tests -->") + 2]
    assert command.startswith(SET_UP)
    assert "lint-imports" in command
    assert command.endswith("pytest")
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert "<!-- tests -->" in ci
    assert "pytest -m slow" in ci
