"""Every field of the configuration is part of a cache key, unless it is annotated with `NOT_IN_KEY`."""

import pytest

from raysep.config import DataConfig, EmbedConfig, ModelConfig, RunConfig, ScoreConfig
from raysep.config.base import NOT_IN_KEY, key_fields, not_in_key


class WiderScore(ScoreConfig):
    new: int = 1


class WiderEmbed(EmbedConfig):
    new: int = 1


class WiderData(DataConfig):
    new: int = 1


class WiderModel(ModelConfig):
    new: int = 1


@pytest.mark.parametrize("section", [WiderScore, WiderEmbed])
def test_new_fields_are_part_of_the_key_by_default(section: type[WiderScore | WiderEmbed]) -> None:
    assert key_fields(section(new=1)) != key_fields(section(new=2))
    marked = not_in_key(section)
    assert marked
    assert set(key_fields(section())) == set(section.model_fields) - marked


def test_fields_outside_of_keys_are_annotated() -> None:
    assert not_in_key(RunConfig) == {"run_dir", "compute", "monitoring"}
    assert not_in_key(ScoreConfig) == {"protocols", "metrics"}
    assert not_in_key(EmbedConfig) == {"splits", "batch_size", "shard_rows"}
    assert not_in_key(ModelConfig) == {"id", "pretrained"}
    assert set(key_fields(DataConfig.model_validate({"source": {"kind": "digits"}}))) == {"bit_depth"}
    assert NOT_IN_KEY in RunConfig.model_fields["compute"].metadata
