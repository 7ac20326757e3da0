"""Mismatched keys of timm's weights, which timm only logs, are reported or refused."""

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from raysep.config import ModelConfig
from raysep.errors import ConfigError
from raysep.stages.validation import check_models


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's weights of test_vit, without a hub."""
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    source = ("file", str(tmp_path / "w.safetensors"))
    monkeypatch.setattr("timm.models._builder._resolve_pretrained_source", lambda _: source)


def check(**kwargs: Any) -> list[str]:
    return check_models([ModelConfig(name="test_vit", kwargs=kwargs)], trained=True)


@pytest.mark.usefixtures("fetched")
@pytest.mark.parametrize("kwargs", [{}, {"in_chans": 1}, {"drop_path_rate": 0.1}, {"img_size": 64}])
def test_matching_weights_cause_no_remark(kwargs: dict[str, Any]) -> None:
    assert check(**kwargs) == []


@pytest.mark.usefixtures("fetched")
def test_blocks_without_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"test_vit: timm's weights lack blocks.6 to blocks.7: .*\(depth\)"):
        check(depth=8)


@pytest.mark.usefixtures("fetched")
def test_unused_blocks_are_reported() -> None:
    (line,) = check(depth=4)
    assert line.startswith("test_vit: weights of timm that this network does not use: blocks.4 to blocks.5: ")
    assert line.endswith("(24 keys)")


@pytest.mark.usefixtures("fetched")
def test_a_norm_without_weights_after_the_blocks_is_reported() -> None:
    lines = check(global_pool="avg")
    assert any("timm's weights lack fc_norm: weight, bias (2 keys), which start from random values" in x for x in lines)


@pytest.mark.usefixtures("fetched")
def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"timm's weights don't fit the network \(kwargs: embed_dim\): .*size mismatch"
    ):
        check(embed_dim=32)


@pytest.mark.usefixtures("fetched")
def test_the_logger_is_restored() -> None:
    logger = logging.getLogger("timm.models._builder")
    before = (logger.level, logger.propagate, list(logger.handlers))
    check(depth=4)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_model_without_weights() -> None:
    name = next(name for name in timm.list_models() if not timm.is_model_pretrained(name) and name.startswith("resnet"))
    with pytest.raises(ConfigError, match=f"timm has no weights for {name}: set `pretrained: false`, or a path"):
        check_models([ModelConfig(name=name)])
