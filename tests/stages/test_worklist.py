"""Cache keys of shard sets and scores."""

from pathlib import Path

import pytest

from raysep.config import EmbedConfig, ModelConfig, RunConfig, ScoreConfig
from raysep.embedding.shards import Manifest, ShardSet
from raysep.models.layers import Layer
from raysep.models.meta import CheckpointMeta, read_meta
from raysep.stages import worklist
from raysep.storage.store import Storage
from tests.conftest import TINY_CNN


class WiderEmbed(EmbedConfig):
    new: int = 1


class WiderScore(ScoreConfig):
    new: int = 1


@pytest.fixture
def config() -> RunConfig:
    data = {"source": {"kind": "digits"}, "split": {"unseen": "all"}}
    return RunConfig.model_validate({"data": data, "models": [TINY_CNN], "finetune": None})


@pytest.fixture
def meta(tmp_path: Path, config: RunConfig) -> CheckpointMeta:
    from raysep.data.sources import open_source
    from raysep.data.splits import draw_split
    from raysep.finetune.training import prepare
    from raysep.finetune.trials import Trial

    store = Storage(str(tmp_path))
    prepare(
        Trial(ModelConfig.model_validate(TINY_CNN), 0, 0),
        store,
        draw_split(open_source(config.data.source).records(), config.data.split),
    )
    return read_meta(store, "checkpoints/test_resnet/trial=0/step=0")


def test_a_new_field_of_embed_changes_the_key_of_shard_sets(config: RunConfig, meta: CheckpointMeta) -> None:
    keys = {
        worklist.embedding_key(config.model_copy(update={"embed": embed}), meta, "unseen", "data")
        for embed in (EmbedConfig(), WiderEmbed(new=1), WiderEmbed(new=2))
    }
    assert len(keys) == 3
    same = config.model_copy(update={"embed": EmbedConfig(batch_size=7, shard_rows=9)})
    assert worklist.embedding_key(same, meta, "unseen", "data") in keys


def test_a_new_field_of_score_changes_the_key_of_scores(config: RunConfig, meta: CheckpointMeta) -> None:
    manifest = Manifest("k", 0, [], [Layer(0, "a", 0.0, 1, "mean")], {}, "float32", "s", {})
    shard_set = ShardSet(meta.model.id, meta.trial, meta.step, "unseen")

    def key(score: ScoreConfig) -> str:
        (task,) = worklist.score_tasks(config.model_copy(update={"score": score}), [meta], {shard_set: manifest})
        return task.key

    keys = {key(score) for score in (ScoreConfig(), ScoreConfig(seed=1), WiderScore(new=1), WiderScore(new=2))}
    assert len(keys) == 4
    assert key(ScoreConfig(metrics=["nmi"], protocols=["paper"])) in keys
