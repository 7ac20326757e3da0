"""The output of `raysep validate`, in one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from raysep.cli import app
from tests.conftest import TINY_VIT, write_images


@pytest.fixture
def validate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)

    def run(data: dict[str, Any], *overrides: str) -> Result:
        Path("run.yaml").write_text(yaml.safe_dump({"data": data, "models": [TINY_VIT], "finetune": None}))
        return CliRunner().invoke(app, ["validate", "run.yaml", *overrides])

    return run


def folder(path: Path, unseen: Any = "all") -> dict[str, Any]:
    return {"source": {"kind": "image_folder", "path": str(path)}, "split": {"unseen": unseen}}


def test_the_images_in_use_are_printed_as_plain_text(validate: Callable[..., Result], tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 4, "b\x1b[31m": 4})
    (tmp_path / "images" / "a" / "x.heic").write_bytes(b"x")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "images" / "a" / "two\nlines.png")
    done = validate(folder(tmp_path / "images"))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "run.yaml: valid; 9 images, 1 model(s)"
    assert lines[1:4] == [
        "unseen: 9 images of 2 classes",
        "  classes: a (5), b\\x1b[31m (4)",
        "  ids: a/000.png, a/two\\nlines.png, b\\x1b[31m/003.png",
    ]
    assert lines[4] == "  9 images sampled: 16 x 16 (8), 4 x 4 (1); PNG RGB (8), PNG L (1)"
    assert "1 .heic" in lines[5]
    assert lines[6] == "note: 1 of 9 sampled images of unseen: a single colour: a/two\\nlines.png"
    assert len(lines) == 7
    assert list((tmp_path).glob("runs")) == []


def test_rotations_are_printed(validate: Callable[..., Result]) -> None:
    done = validate({"source": {"kind": "digits"}, "split": {"unseen_fraction": 0.3, "rotations": 2}})
    assert done.exit_code == 0
    assert done.stdout.splitlines()[1] == "first of 2 rotations:"


@pytest.mark.parametrize("depth", [0, 17, "two"])
def test_depths_and_bits_out_of_range_are_refused(depth: Any, validate: Callable[..., Result], tmp_path: Path) -> None:
    for key in ("data.source.depth", "data.bit_depth"):
        value = 33 if depth == 17 and "bit" in key else depth
        done = validate(folder(tmp_path), f"{key}={value}")
        assert key in str(done.exception)
