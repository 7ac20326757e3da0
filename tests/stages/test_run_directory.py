from pathlib import Path
from typing import Any

import pytest
import yaml

from raysep.config import ModelConfig, RunConfig, SplitConfig
from raysep.config.load import build_config
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split
from raysep.errors import RunDirError
from raysep.stages import run_directory
from raysep.storage.store import Storage
from tests.conftest import TINY_CNN


@pytest.fixture
def config(tree: Path) -> RunConfig:
    source = {"kind": "image_folder", "path": str(tree)}
    return build_config({"data": {"source": source, "split": {"unseen": ["a", "b"]}}, "models": [TINY_CNN]})


@pytest.fixture
def split(tree: Path) -> Any:
    return draw_split(ImageFolder(ImageFolder.Config(path=str(tree))).records(), SplitConfig(unseen=["a", "b"]))


def test_check_belongs_accepts_the_configuration_that_the_run_was_begun_with(
    tmp_path: Path, config: RunConfig, split: Any
) -> None:
    run = Storage(str(tmp_path / "run"))
    assert run_directory.check_belongs(run, config, split) is False
    run_directory.begin(run, config, split)
    assert run_directory.check_belongs(run, config, split) is True
    manifest = run.read_json(run_directory.MANIFEST)
    assert manifest["versions"]["timm"]
    assert manifest["seeds"]["split"] == 42
    run_directory.record(run, "embed", shard_sets=3)
    assert run.read_json(run_directory.MANIFEST)["stages"]["embed"]["shard_sets"] == 3
    assert RunConfig.model_validate(yaml.safe_load(run.read_bytes(run_directory.CONFIG))) == config


def test_another_configuration_is_refused_with_its_differences(tmp_path: Path, config: RunConfig, split: Any) -> None:
    run = Storage(str(tmp_path / "run"))
    run_directory.begin(run, config, split)
    other = config.model_copy(update={"name": "x", "embed": config.embed.model_copy(update={"batch_size": 3})})
    with pytest.raises(RunDirError) as caught:
        run_directory.check_belongs(run, other, split)
    assert "name: run -> x" in str(caught.value)
    assert "embed.batch_size: 64 -> 3" in str(caught.value)


def test_the_compute_section_may_change(tmp_path: Path, config: RunConfig, split: Any) -> None:
    run = Storage(str(tmp_path / "run"))
    run_directory.begin(run, config, split)
    faster = config.model_copy(update={"compute": config.compute.model_copy(update={"embed_actors": 7})})
    assert run_directory.check_belongs(run, faster, split)


def test_other_images_are_refused(tmp_path: Path, config: RunConfig, split: Any, tree: Path) -> None:
    run = Storage(str(tmp_path / "run"))
    run_directory.begin(run, config, split)
    (tree / "a" / "000.png").rename(tree / "a" / "new.png")
    changed = draw_split(ImageFolder(ImageFolder.Config(path=str(tree))).records(), SplitConfig(unseen=["a", "b"]))
    with pytest.raises(RunDirError, match=r"1 of its 60 are gone and 1 are new"):
        run_directory.check_belongs(run, config, changed)


def test_a_directory_with_other_files_is_refused(tmp_path: Path, config: RunConfig, split: Any) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.tex").write_text("x")
    with pytest.raises(RunDirError, match=r"thesis\.tex"):
        run_directory.check_belongs(Storage(str(tmp_path / "work")), config, split)


def test_paths_of_weights_may_be_relative(
    tmp_path: Path, config: RunConfig, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = config.models[0].model_copy(update={"pretrained": "weights.safetensors"})
    relative = config.model_copy(update={"models": [model]})
    run = Storage(str(tmp_path / "run"))
    run_directory.begin(run, run_directory.with_absolute_paths(relative), split)
    assert str(tmp_path) in run.read_bytes(run_directory.CONFIG).decode()
    assert run_directory.check_belongs(run, relative, split)


def test_paths_of_weights_and_models_are_absolute_for_workers(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = [
        ModelConfig(name="a", pretrained="w.pth"),
        ModelConfig(name="b", pretrained="s3://bucket/w.pth"),
        ModelConfig(name="local-dir:net", id="c"),
        ModelConfig(name="hf-hub:owner/net", id="d"),
    ]
    found = run_directory.with_absolute_paths(config.model_copy(update={"models": models})).models
    assert [model.pretrained for model in found] == [str(tmp_path / "w.pth"), "s3://bucket/w.pth", True, True]
    assert [model.name for model in found] == ["a", "b", f"local-dir:{tmp_path / 'net'}", "hf-hub:owner/net"]
