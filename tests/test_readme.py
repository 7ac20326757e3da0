"""The README's tables against the code."""

import re
from collections.abc import Iterator

from pydantic import BaseModel

from raysep import cli, config
from raysep.config.registry import METRICS
from raysep.sweeps.config import GateConfig, MatrixConfig, Pattern, SweepConfig
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def sections() -> Iterator[type[BaseModel]]:
    for value in vars(config).values():
        if isinstance(value, type) and issubclass(value, config.Section):
            yield value


def test_every_key_and_metric_is_documented():
    keys = {name for section in sections() for name in section.model_fields} - {"kind", "path"}
    assert {key for key in keys if key not in README} == set()
    assert {metric for metric in METRICS if f"`{metric}`" not in README} == set()


def test_every_command_and_key_of_a_sweep_is_documented():
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert {name for name in commands if not re.search(rf"raysep [a-z|]*\b{name}\b", README)} == set()
    kinds = (SweepConfig, MatrixConfig, Pattern, GateConfig)
    assert {name for kind in kinds for name in kind.model_fields if f"{name}" not in README} == set()


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 10
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_ci_runs_the_command_for_the_tests():
    lines = README.splitlines()
    command = lines[lines.index("<!-- tests -->") + 2]
    assert command.startswith("python3 -m venv")
    assert "pytest" in command
    assert "<!-- tests -->" in (REPOSITORY / ".ci" / "run").read_text()
