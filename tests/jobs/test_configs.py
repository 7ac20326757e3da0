"""The configurations that are shipped: each is valid, and names what timm has."""

from pathlib import Path

import pytest
import timm

from raysep.config.load import load_config
from tests.conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "jobs" / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_valid_and_say_how_to_run_them(path: Path) -> None:
    config = load_config(str(path))
    assert config.name == path.stem
    assert path.read_text().startswith(f"# raysep run jobs/configs/{path.name}")
    for model in config.models:
        assert timm.is_model(model.name.partition(".")[0]), model.name
        if model.pretrained is True:
            assert timm.is_model_pretrained(model.name), model.name


@pytest.mark.parametrize("name", ["calligraphy", "cifar100"])
def test_the_papers_configs_follow_the_paper(name: str) -> None:
    config = load_config(str(REPOSITORY / "jobs" / "configs" / f"{name}.yaml"))
    assert config.finetune is not None
    assert (config.finetune.steps, config.finetune.batch_size, config.finetune.learning_rate) == (500, 72, 2e-4)
    assert config.finetune.evaluate_at == [0, 100, 200, 300, 400, 500]
    assert len(config.finetune.seeds) == 3
    assert config.score.protocols[0] == "paper"
    if config.data.split is not None:
        assert config.data.split.seen is not None
        assert len(config.data.split.seen) == 20
