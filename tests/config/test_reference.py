"""The configuration reference: complete, and equal to what the READMEs hold."""

import re
import subprocess
import sys

import pytest
from pydantic import BaseModel

from raysep.config import RunConfig, reference
from raysep.config.data import source_sections
from raysep.sweeps.config import SweepConfig
from tests.conftest import REPOSITORY

SECTIONS = [RunConfig, SweepConfig, *source_sections()]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__qualname__)
def test_every_key_has_a_type_a_default_and_a_meaning(section: type[BaseModel]) -> None:
    prefix = "" if section in (RunConfig, SweepConfig) else "data.source."
    assert [row for row in reference.rows(section, prefix) if not all(row)] == []


def test_rows_say_what_the_schema_says() -> None:
    rows = {key.strip("`"): (kind, default) for key, kind, default, _ in reference.rows(RunConfig)}
    assert rows["data"] == ("mapping", "required")
    assert rows["finetune.seeds"] == ("list of whole numbers", "`[0]`")
    assert rows["score.protocols"] == ("list of `default`, `paper`", "`[default]`")
    assert rows["embed.batch_size"] == ("whole number ≥ 1", "`64`")
    assert rows["data.split.test_fraction"] == ("number > 0, < 1", "`0.2`")
    assert rows["data.domains[].severity"] == ("whole number from 1 to 5", "`3`")
    assert rows["models[].pretrained"] == ("true, false or text", "`true`")


def test_the_command_prints_what_the_readmes_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raysep.config.reference"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    for readme, name in (("jobs/configs/README.md", "run"), ("raysep/scoring/README.md", "metrics")):
        text = (REPOSITORY / readme).read_text()
        block = re.search(rf"<!-- generated: {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
        assert block is not None
        assert block[1] in done.stdout
