"""Runs from Python: equal to those of the command line, and readable afterwards."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import raysep
from raysep.api.results import Results
from raysep.config.load import load_config
from raysep.errors import ConfigError, InputError, RunDirError
from raysep.storage.store import Storage
from tests.conftest import REPOSITORY

CHANGES = [
    "models=[{name: test_vit, pretrained: false, image_size: 32, pooling: [cls, mean]}]",
    "finetune=null",
    "data.max_per_class={unseen: 20, seen_test: 5}",
    "data.domains=[{name: blurred, corruption: blur, severity: 3}]",
    "baselines={untrained: false, pixels: null}",
    "score.metrics=[nmi]",
    "score.max_classes=null",
    "embed.dtype=float32",
]
QUICKSTART = REPOSITORY / "jobs" / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return raysep.run(QUICKSTART, CHANGES, run_dir=str(tmp_path_factory.mktemp("results") / "run"), local=True)


def test_a_finished_run_is_opened_with_the_same_results(results: Results) -> None:
    opened = raysep.open(results.run_dir)
    assert opened.summary == results.summary
    scores = opened.scores()
    table = pq.read_table(Path(results.run_dir) / "scores.parquet")
    np.testing.assert_array_equal(scores["value"], table["value"].to_pandas())
    assert "halves" not in scores
    assert results.summary.models[0].headline in opened._repr_html_()


def test_a_run_is_resumed_from_values_and_from_its_configuration(results: Results) -> None:
    values = yaml.safe_load(QUICKSTART.read_text())
    before = (Path(results.run_dir) / "scores.parquet").stat().st_mtime_ns
    for config, changes in ((values, CHANGES), (load_config(str(QUICKSTART), CHANGES), ())):
        again = raysep.run(config, changes, run_dir=results.run_dir, local=True)
        assert again.summary.models == results.summary.models
    assert (Path(results.run_dir) / "scores.parquet").stat().st_mtime_ns == before
    # The values of the caller are not touched.
    assert values == yaml.safe_load(QUICKSTART.read_text())


def test_embeddings_of_a_layer_have_class_names(results: Results) -> None:
    # The class token of the stem is the same for all images.
    X, y, ids = results.embeddings("test_vit", 4)
    assert X.shape == (len(ids), results.summary.models[0].curves[0].layers[4].dim)
    assert sorted(set(y)) == ["7", "8", "9"]
    assert ids == sorted(ids)
    blurred = results.embeddings("test_vit", 4, split="blurred")
    assert blurred.ids == ids
    assert not np.array_equal(blurred.X, X)
    assert set(results.embeddings("test_vit", 4, split="seen").y) == set("0123456")
    # `raysep.compare` takes them as they are.
    layers = [layer.layer for layer in results.summary.models[0].curves[0].layers]
    compared = raysep.compare({str(n): results.embeddings("test_vit", n).X for n in layers}, y)
    best = results.summary.models[0].best
    assert (compared.best, compared.g) == (str(best.layer), best.g)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "vit"}, "no embeddings of model 'vit': expected one of test_vit"),
        ({"split": "sketches"}, "no embeddings of split 'sketches': expected one of blurred, seen, unseen"),
        ({"step": 5}, "no embeddings of step 5: expected one of 0"),
        ({"trial": 3}, "no embeddings of trial 3: expected one of 0"),
        ({"layer": "blocks.99"}, r"no layers 'blocks.99': expected the number or name of one of 0 \(stem"),
        ({"layer": "blocks.0"}, "several layers 'blocks.0': expected the number or name of one of 0"),
    ],
)
def test_a_wrong_name_lists_those_that_there_are(results: Results, arguments: dict[str, Any], words: str) -> None:
    wanted: dict[str, Any] = {"model": "test_vit", "layer": 0} | arguments
    with pytest.raises(InputError, match=words):
        results.embeddings(**wanted)


def test_results_stay_readable_in_another_directory(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(results.run_dir, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    opened = raysep.open("run")
    monkeypatch.chdir("/")
    assert len(opened.scores()) == len(results.scores())
    shutil.rmtree(tmp_path / "run" / "embeddings")
    (tmp_path / "run" / "scores.parquet").unlink()
    with pytest.raises(RunDirError, match="has no embeddings"):
        opened.embeddings("test_vit", 0)
    with pytest.raises(RunDirError, match=r"has no scores.parquet"):
        opened.scores()


def test_damaged_embeddings_are_refused(results: Results, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(results.run_dir, copy)
    for path in copy.glob("embeddings/**/split=unseen/*.parquet"):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="is damaged: `raysep verify"):
        raysep.open(copy).embeddings("test_vit", 0)


def test_other_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"has no summary.json: expected the directory of a finished `raysep run`"):
        raysep.open(tmp_path)
    Storage(str(tmp_path)).write_json("manifest.json", {"format": 2, "raysep": "0.0.1"})
    with pytest.raises(RunDirError, match="is a run of format 2"):
        raysep.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirError, match="expected the directory of a finished"):
        raysep.open(tmp_path / "file")
    with pytest.raises(ConfigError, match="overrides: expected none of a RunConfig"):
        raysep.run(load_config(str(QUICKSTART)), ["name=b"])
    with pytest.raises(ConfigError, match="PosixPath"):
        raysep.run({"name": tmp_path})
    with pytest.raises(ConfigError, match="unknown"):
        raysep.run({"name": "x", "modles": []})


@pytest.mark.slow
def test_the_example_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "jobs" / "README.md").read_text()
    code = text.partition("## From Python")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = {}
    exec(code.replace("jobs/configs", str(QUICKSTART.parent)), values)
    assert values["best"] == "layer3"
    assert values["comparison"].best == "layer3"
    loss = values["results"].summary.models[0].best
    assert values["comparison"].g == loss.g
    assert (tmp_path / "runs" / "quickstart" / "summary.json").is_file()
