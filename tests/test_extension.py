"""A metric, a source, a backend and a corruption of another package, through its entry points."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

PACKAGE = '''
import numpy as np
from typing import Literal
from raysep.data.corruptions import corruption
from raysep.data.source import Record, Source, SourceConfig, encode, source
from raysep.scoring.backends import backend
from raysep.scoring.backends.sklearn import SklearnBackend
from raysep.scoring.registry import from_embeddings, metric


def same_side(X, y):
    """Share of images on the side of the first principal axis that most of their class is on."""
    side = X @ np.linalg.svd(X, full_matrices=False)[2][0] > 0
    return sum(max(side[y == label].sum(), (~side[y == label]).sum()) for label in np.unique(y)) / len(y)


@metric("same_side", "Share of images on the side of their class.")
def _(layer):
    return from_embeddings(layer, "same_side", same_side)


@source
class Stripes(Source):
    class Config(SourceConfig):
        """Striped images."""

        kind: Literal["stripes"] = "stripes"
        classes: int = 4

    def __init__(self, config):
        self._classes = config.classes

    def records(self):
        return [Record(f"{row:04d}", "abcdefgh"[row % self._classes], row=row) for row in range(24 * self._classes)]

    def read(self, path, row):
        from PIL import Image

        rng, width = np.random.default_rng(row), 1 + row % self._classes
        stripes = (np.arange(16) // width % 2 * 160)[None, :, None] + rng.integers(0, 90, (16, 16, 3))
        return encode(Image.fromarray(stripes.astype(np.uint8)))


@backend("plain")
class Plain(SklearnBackend):
    def __init__(self):
        super().__init__()
        self.name = "plain"


@corruption
def upside_down(image, severity, rng):
    return image.rotate(180)
'''
ENTRY_POINTS = """
[raysep.metrics]
same_side = stripes_package

[raysep.sources]
stripes = stripes_package

[raysep.backends]
plain = stripes_package

[raysep.corruptions]
upside_down = stripes_package
"""
CONFIG = """
data:
  source: {kind: stripes}
  split: {unseen: all}
  domains: [{name: turned, corruption: upside_down}]
models: [{name: test_resnet, pretrained: false, image_size: 32, layers: [act1, layer4]}]
finetune: null
embed: {splits: [unseen]}
score: {metrics: [nn1, same_side], backend: plain, resamples: 20, max_classes: null}
report: {metric: same_side}
baselines: {untrained: false, pixels: null}
monitoring: {port: null}
"""


def installed(directory: Path, entry_points: str = ENTRY_POINTS) -> dict[str, str]:
    """The environment of a process that has the package."""
    (directory / "stripes_package.py").write_text(PACKAGE)
    info = directory / "stripes_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    (directory / "config.yaml").write_text(CONFIG)
    return {**os.environ, "PYTHONPATH": f"{directory}:{os.environ.get('PYTHONPATH', '')}"}


def raysep(directory: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raysep", *arguments]
    return subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True, check=False)


def test_a_run_with_the_metric_source_backend_and_corruption_of_another_package(tmp_path: Path) -> None:
    done = raysep(tmp_path, installed(tmp_path), "run", "config.yaml", "--local", "--run-dir", "run")
    assert done.returncode == 0, done.stderr
    assert "with same_side " in done.stdout
    rows = [
        row for row in pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist() if row["protocol"] == "default"
    ]
    assert {row["metric"] for row in rows} == {"nn1", "same_side"}
    assert {row["split"] for row in rows} == {"unseen", "turned"}
    assert {row["backend"] for row in rows} == {"plain"}
    for row in rows:
        if row["metric"] == "same_side":
            assert row["ci_low"] <= row["value"] <= row["ci_high"]
            assert 0.5 <= row["shuffled"] < 1
            assert len(row["halves"]) == 20


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (ENTRY_POINTS.replace("stripes = stripes_package", "stripes = no_such_module"), "can't be imported"),
        (ENTRY_POINTS.replace("plain =", "other ="), "'auto', 'cuml', 'sklearn', 'torch' or 'other', got 'plain'"),
        (ENTRY_POINTS.replace("stripes =", "striped ="), "entry point and name must agree"),
    ],
)
def test_an_entry_point_that_is_wrong_is_named(tmp_path: Path, points: str, message: str) -> None:
    done = raysep(tmp_path, installed(tmp_path, points), "run", "config.yaml", "--local", "--run-dir", "run")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in done.stderr
    assert not (tmp_path / "run").exists()
