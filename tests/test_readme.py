"""The READMEs against the code: generated tables, links, paths, and the code blocks in them."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import typer
import yaml
from PIL import Image
from safetensors.torch import save_file

from raysep import cli
from raysep.config import reference
from raysep.config.load import build_config, load_config
from raysep.report.tables import columns
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
BLOCK = re.compile(r"^(?P<before>[^\n]*)\n```(?P<language>\w*)\n(?P<code>.*?)\n```$", re.DOTALL | re.MULTILINE)
NEEDS = re.compile(r"<!-- needs: .+ -->")
# `.ci/run` runs the block below it, in a fresh environment.
TESTS = "<!-- tests -->"
LONGEST_LINE = 120
# The first part of a path in the text that is one of the repository, or of the package.
ROOTS = {path.name for folder in (REPOSITORY, REPOSITORY / "raysep") for path in folder.iterdir() if path.is_dir()}

every_readme = pytest.mark.parametrize("readme", READMES, ids=NAMES)


@dataclass
class Block:
    """A code block, with the line before it."""

    before: str
    language: str
    code: str

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each command, continued lines joined."""
        for line in self.code.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks(readme: Path) -> list[Block]:
    return [Block(**match.groupdict()) for match in BLOCK.finditer(readme.read_text())]


def prose(readme: Path) -> str:
    """The text without code blocks and tables."""
    text = re.sub(r"^```.*?^```$", "", readme.read_text(), flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 150


@every_readme
def test_generated_tables_are_those_of_the_code(readme: Path) -> None:
    text = readme.read_text()
    for name in re.findall(r"<!-- generated: (\w+) -->", text):
        marked = re.compile(rf"(<!-- generated: {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
        content = GENERATED[name]()
        text = marked.sub(lambda match, content=content: match[1] + content, text)  # type: ignore[misc]
    if os.environ.get("UPDATE_REFERENCE"):
        readme.write_text(text)
    assert readme.read_text() == text, "UPDATE_REFERENCE=1 pytest -n 0 tests/test_readme.py writes it anew"


def test_every_generated_table_is_somewhere() -> None:
    everything = "".join(readme.read_text() for readme in READMES)
    assert {name for name in GENERATED if f"<!-- generated: {name} -->" not in everything} == set()


@every_readme
def test_links_lead_to_files_and_headings(readme: Path) -> None:
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", readme.read_text()):
        path, _, anchor = link.partition("#")
        target = readme.parent / path if path else readme
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


@every_readme
def test_paths_in_the_text_exist(readme: Path) -> None:
    for path in re.findall(r"`([\w.-]+/[\w./-]*)`", prose(readme)):
        if path.split("/")[0] in ROOTS - {"runs"}:
            places = (readme.parent, REPOSITORY, REPOSITORY / "raysep")
            assert any((place / path).exists() for place in places), path


def test_functions_on_the_way_to_g_are_in_their_files() -> None:
    text = (REPOSITORY / "raysep" / "README.md").read_text()
    steps = re.findall(r"`([\w/]+\.py)`[^`;]*\(`([\w.]+)`\)", text)
    assert len(steps) >= 10
    for file, name in steps:
        code = (REPOSITORY / "raysep" / file).read_text()
        assert re.search(rf"(def|class) {name.rpartition('.')[2]}\b", code), f"{file}: {name}"


def test_the_table_of_the_quickstart_has_the_columns_of_the_command() -> None:
    explained = re.findall(r"^\| ([^|]+) \|", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    headings = columns(SimpleNamespace(headline_metric="nmi"))  # type: ignore[arg-type]
    assert explained[1 : 1 + len(headings)] == headings


@every_readme
def test_lines_are_not_too_long(readme: Path) -> None:
    assert [line for line in prose(readme).splitlines() if len(line) > LONGEST_LINE] == []


@every_readme
def test_every_block_is_tested_or_says_what_it_needs(readme: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands say what they need, and parse; YAML is a valid configuration, TOML and Python are well-formed.

    Blocks of `text` are output.
    """
    monkeypatch.chdir(REPOSITORY)
    found = blocks(readme)
    assert len(found) * 2 == len(re.findall(r"^```", readme.read_text(), re.MULTILINE)), "a block without a line before"
    for block in found:
        if block.language in {"", "sh"}:
            assert block.before == TESTS or NEEDS.fullmatch(block.before), f"no test runs this block:\n{block.code}"
            for words in block.commands:
                check(words)
        elif block.language == "yaml":
            build_config(yaml.safe_load(block.code))
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "python":
            ast.parse(block.code)
        else:
            assert block.language == "text", block.language


def check(words: list[str]) -> None:
    """A command of raysep parses, with its configuration and overrides; a program of the repository exists."""
    files = [word for word in words if re.match(r"(jobs|tests)/", word)]
    assert [file for file in files if not Path(file).exists()] == []
    program = next((word for word in files if word.startswith("jobs/benchmarks/")), None)
    if program is not None:
        code = Path(program).read_text()
        parts = [part for option, part in pairwise(words) if option == "--part"]
        assert [part for part in parts if f'"{part}"' not in code] == []
    if words[0] == "raysep":
        application = typer.main.get_command(cli.app)
        assert isinstance(application, typer.core.TyperGroup)
        context = application.commands[words[1]].make_context(words[1], words[2:])
        path = context.params.get("config") or context.params.get("path")
        if isinstance(path, str) and path.startswith("jobs/"):
            load = load_sweep if "sweeps" in path else load_config
            load(path, context.params.get("overrides") or [])


@pytest.mark.parametrize(
    "words",
    [
        ["raysep", "run", "jobs/configs/none.yaml"],
        ["raysep", "run", "jobs/configs/quickstart.yaml", "nam=x"],
        ["raysep", "sweep", "jobs/sweeps/nightly.yaml", "--no-such-option"],
        ["python", "jobs/benchmarks/scoring.py", "--part", "none"],
    ],
)
def test_a_command_that_is_wrong_is_found(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(Exception, match=r".+"):
        check(words)


def test_every_command_is_documented() -> None:
    everything = "".join(readme.read_text() for readme in READMES)
    names = {command.name or getattr(command.callback, "__name__", "") for command in cli.app.registered_commands}
    assert {name for name in names if not re.search(rf"raysep [a-z|]*\b{name}\b", everything)} <= {
        "embed",
        "score",
        "report",
    }


def test_ci_runs_the_command_for_the_tests() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    command = lines[lines.index(TESTS) + 2]
    assert command.startswith("python3 -m venv")
    assert "lint-imports" in command
    assert command.endswith("pytest")
    ci = (REPOSITORY / ".ci" / "run").read_text()
    assert TESTS in ci
    assert "pytest -m slow" in ci


@pytest.mark.slow
def test_the_commands_for_own_images_and_checkpoint_run(tmp_path: Path) -> None:
    """Each command of the section, as it stands there; only the model is a smaller one."""
    rng = np.random.default_rng(0)
    for shade, name in enumerate(("heron", "egret", "stork", "duck")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            pixels = (60 * shade + rng.integers(0, 60, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    save_file(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "my_checkpoint.safetensors")
    found = [
        block for block in blocks(REPOSITORY / "README.md") if "my_checkpoint" in block.code or "mine" in block.code
    ]
    assert [block.language for block in found] == ["", "yaml", ""]
    commands = []
    for block in found:
        block.code = block.code.replace("vit_base_patch16_224", "test_vit")
        if block.language == "yaml":
            (tmp_path / "mine.yaml").write_text(block.code)
        else:
            commands += list(block.commands)
    assert len(commands) == 7
    for words in commands:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
    assert (tmp_path / "runs" / "test_vit" / "report" / "index.html").exists()
    assert (tmp_path / "runs" / "mine" / "summary.json").exists()
