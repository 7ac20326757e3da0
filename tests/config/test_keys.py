"""Every field of the configuration is part of a cache key, unless it is annotated with `NOT_IN_KEY`."""

from typing import Any

import pytest

from raysep.config import DataConfig, EmbedConfig, ModelConfig, RunConfig, ScoreConfig, Section
from raysep.config.base import NOT_IN_KEY, key_fields, not_in_key


class WiderScore(ScoreConfig):
    new: int = 1


class WiderEmbed(EmbedConfig):
    new: int = 1


class WiderData(DataConfig):
    new: int = 1


class WiderModel(ModelConfig):
    new: int = 1


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (WiderScore, {}),
        (WiderEmbed, {}),
        (WiderData, {"source": {"kind": "digits"}}),
        (WiderModel, {"name": "resnet18"}),
    ],
)
def test_a_new_field_is_part_of_the_key(section: type[Section], values: dict[str, Any]) -> None:
    keys = [key_fields(section.model_validate({**values, "new": new})) for new in (1, 2)]
    assert keys[0] != keys[1]
    assert set(keys[0]) == set(section.model_fields) - not_in_key(section)


def test_fields_outside_of_keys_are_annotated() -> None:
    assert not_in_key(RunConfig) == {"run_dir", "compute", "monitoring"}
    assert not_in_key(ScoreConfig) == {"protocols", "metrics"}
    assert not_in_key(EmbedConfig) == {"splits", "batch_size", "shard_rows"}
    assert not_in_key(ModelConfig) == {"id", "pretrained"}
    assert set(key_fields(DataConfig.model_validate({"source": {"kind": "digits"}}))) == {"bit_depth"}
    assert NOT_IN_KEY in RunConfig.model_fields["compute"].metadata
