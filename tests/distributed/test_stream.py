"""Embedding with Ray Data gives the same as a plain loop over the same images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config  # type: ignore[attr-defined]

from raysep.config import EmbedConfig, ModelConfig, SplitConfig
from raysep.data.corruptions import Corrupted
from raysep.data.sources.image_folder import ImageFolder
from raysep.data.splits import draw_split, select
from raysep.distributed.placement import EmbedPlan, Pool
from raysep.distributed.stream import embed_all
from raysep.embedding.blocks import Embedding
from raysep.embedding.embedder import Embedded, Embedder, load_all
from raysep.embedding.shards import Manifest, ShardSet, read_layer
from raysep.embedding.work import BlockResult, WorkGroup, finished_blocks, references
from raysep.errors import StageError
from raysep.finetune.training import prepare
from raysep.finetune.trials import Trial
from raysep.models.checkpoints import load_checkpoint
from raysep.models.meta import CheckpointMeta, read_meta
from raysep.storage.retries import Attempts
from raysep.storage.store import Storage
from raysep.telemetry.worker_stats import Meter
from tests.conftest import TINY_CNN, TINY_VIT, Deadly


@pytest.fixture
def world(tree: Path, tmp_path: Path) -> Any:
    """Two models with two checkpoints each, and a tree with one broken image among the unseen."""
    (tree / "d" / "005.png").write_bytes(b"broken")
    source = ImageFolder(ImageFolder.Config(path=str(tree)))
    split = draw_split(source.records(), SplitConfig(unseen=["d", "e"]))
    run = Storage(str(tmp_path / "run"))
    metas = []
    for config in (ModelConfig(**TINY_CNN), ModelConfig(**TINY_VIT)):
        for number in (0, 1):
            prepare(Trial(config, number, seed=number), run, split)
            metas.append(read_meta(run, f"checkpoints/{config.id}/trial={number}/step=0"))
    return run, source, split, metas


def plain_loop(run: Storage, meta: CheckpointMeta, tree: Path, ids: list[str]) -> dict[str, np.ndarray]:
    """The model's own embeddings by a plain loop with timm's own transform."""
    model: Any = load_checkpoint(run, meta)
    transform = create_transform(**resolve_data_config({"img_size": 32}, model=model), is_training=False)
    found = {}
    for image_id in ids:
        x = transform(Image.open(tree / image_id).convert("RGB"))[None]
        with torch.inference_mode():
            found[image_id] = model.forward_head(model.forward_features(x), pre_logits=True)[0].numpy()
    return found


def embedded(embedder: Embedder, source: Any, places: Any, batch_size: int, meter: Meter | None = None) -> Embedded:
    meter = meter or Meter("here")
    return embedder.embed(load_all(source, places, embedder.preprocessing, batch_size), meter)


def groups_of(split: Any, metas: Any, reader: Any) -> list[WorkGroup]:
    return [
        WorkGroup(
            tuple(own),
            tuple(ShardSet(m.model.id, m.trial, m.step, name) for m in own),
            tuple(f"key of {m.trial} {name}" for m in own),
            select(split, role),
            reader,
        )
        for own in (metas[:2], metas[2:])
        for name, role in (("unseen", "unseen"), ("seen", "seen_test"))
    ]


def manifests(groups: list[WorkGroup], blocks: list[BlockResult]) -> dict[ShardSet, Manifest]:
    return {
        shard_set: Manifest(
            "k",
            0,
            [b.files[i] for b in blocks if b.group == number and b.files],
            next(b.layers for b in blocks if b.group == number),
            {},
            "float32",
            "s",
            {},
        )
        for number, group in enumerate(groups)
        for i, shard_set in enumerate(group.shard_sets)
    }


PLANS = {
    "actors on every CPU": EmbedPlan(Pool(2, 1, 0)),
    "one decodes for the other": EmbedPlan(Pool(1, 1, 0), Pool(1, 1, 0)),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_ray_data_equals_a_plain_loop(ray_session: None, world: Any, tree: Path, plan: EmbedPlan) -> None:
    run, source, split, metas = world
    groups = groups_of(split, metas, source)
    blocks = list(embed_all(groups, run, EmbedConfig(batch_size=4, shard_rows=7), plan))
    assert sum(block.images for block in blocks) == sum(group.rows.num_rows for group in groups)
    assert {image for block in blocks for image in block.failed} == {"d/005.png"}
    encoded = sum(len(source.read(path, None)) for group in groups for path in group.rows["path"].to_pylist())
    assert sum(r.counts.get("bytes_read", 0) for block in blocks for r in block.reports) == encoded
    found = manifests(groups, blocks)
    for group in groups:
        expected_ids = [i for i in group.rows["image_id"].to_pylist() if i != "d/005.png"]
        for meta, shard_set in zip(group.metas, group.shard_sets, strict=True):
            last = found[shard_set].layers[-1]
            ids, y, X = read_layer(run, shard_set, found[shard_set], last.index)
            assert ids == expected_ids
            label = dict(zip(group.rows["image_id"].to_pylist(), group.rows["label"].to_pylist(), strict=True))
            assert y.tolist() == [label[i] for i in ids]
            loop = plain_loop(run, meta, tree, ids)
            np.testing.assert_allclose(X, np.stack([loop[i] for i in ids]), atol=1e-5)


def test_the_batch_size_does_not_matter_beyond_rounding(world: Any) -> None:
    run, source, split, metas = world
    rows = select(split, "unseen")
    places = list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True))
    embedder = Embedder.of_checkpoints(run, metas[2:], "cpu", "float32")
    one, many = (embedded(embedder, source, places, size) for size in (1, 24))
    assert one.good == many.good
    assert list(one.failed) == list(many.failed) == [5]
    for a, b in zip(one.vectors[1], many.vectors[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_unreadable_images_give_no_vectors(world: Any) -> None:
    run, source, _, metas = world
    found = embedded(Embedder.of_checkpoints(run, metas[:1], "cpu", "float32"), source, [("d/005.png", None)], 4)
    assert found.good == []
    assert [v.shape for v in found.vectors[0]] == [
        (0, layer.dim) for layer in Embedder.of_checkpoints(run, metas[:1], "cpu", "float32").layers
    ]


def test_lower_precision_stays_close(world: Any) -> None:
    run, source, split, metas = world
    rows = select(split, "seen_test")
    places = list(zip(rows["path"].to_pylist(), rows["row"].to_pylist(), strict=True))
    full, half = (
        embedded(Embedder.of_checkpoints(run, metas[2:3], "cpu", p), source, places, 8).vectors[0]
        for p in ("float32", "bfloat16")
    )
    for a, b in zip(full, half, strict=True):
        assert b.dtype == np.float32
        assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


def test_out_of_memory_halves_the_batch_and_counts_a_retry(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run, source, split, metas = world
    places = [(path, None) for path in select(split, "seen_test")["path"].to_pylist()]
    embedder = Embedder.of_checkpoints(run, metas[:1], "cpu", "float32")
    roomy = embedded(embedder, source, places, 6)
    whole, sizes = embedder._pass, []

    def tight(pixels: torch.Tensor) -> list[torch.Tensor]:
        sizes.append(len(pixels))
        if len(pixels) > limit:
            raise torch.OutOfMemoryError("no")
        return whole(pixels)

    monkeypatch.setattr(embedder, "_pass", tight)
    limit, meter = 2, Meter("here")
    with meter.piece():
        cramped = embedded(embedder, source, places, 6, meter)
    assert meter.report.again == {"memory": 2}
    assert sizes[:3] == [6, 3, 1]
    for a, b in zip(roomy.vectors[0], cramped.vectors[0], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        embedded(embedder, source, places, 6)


@pytest.mark.slow
def test_finished_blocks_are_not_embedded_again(ray_session: None, world: Any) -> None:
    run, source, split, metas = world
    config, plan = EmbedConfig(batch_size=4, shard_rows=7), EmbedPlan(Pool(1, 1, 0))
    (group, *_) = groups_of(split, metas, source)
    stream = embed_all([group], run, config, plan)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    # How far a run gets depends on time: here, to the third block of one of two checkpoints.
    for record in run.files(group.shard_sets[0].directory):
        if record.endswith(("_block-000000014.json", "_block-000000021.json")):
            run.delete(record)
    before = finished_blocks(run, 0, group, 7)
    assert {block.first for block in before} <= {0, 7}
    assert before
    rest = list(embed_all([group], run, config, plan, done=[{block.first for block in before}]))
    assert sorted(block.first for block in [*before, *rest]) == [0, 7, 14, 21]
    whole = finished_blocks(run, 0, group, 7)
    assert [block.first for block in whole] == [0, 7, 14, 21]
    ids, _, _ = read_layer(run, group.shard_sets[0], manifests([group], whole)[group.shard_sets[0]], 0)
    assert ids == [i for i in group.rows["image_id"].to_pylist() if i != "d/005.png"]
    # Blocks of another size, with another key, or with missing or truncated files don't count as finished.
    assert finished_blocks(run, 0, group, 8) == []
    assert finished_blocks(run, 0, replace(group, keys=("other", *group.keys[1:])), 7) == []
    part = Path(run.root, group.shard_sets[1].directory, whole[0].files[1].name)
    part.write_bytes(part.read_bytes()[:-1])
    assert [block.first for block in finished_blocks(run, 0, group, 7)] == [7, 14, 21]


class Faulty(ImageFolder):
    def read(self, path: Any, row: Any) -> None:
        raise RuntimeError("the disk is on fire")


@pytest.mark.slow
def test_a_workers_error_becomes_a_stage_error(ray_session: None, world: Any, tree: Path) -> None:
    run, _, split, metas = world
    with pytest.raises(StageError, match=r"^embed: "):
        list(
            embed_all(
                groups_of(split, metas, Faulty(Faulty.Config(path=str(tree))))[:1],
                run,
                EmbedConfig(),
                EmbedPlan(Pool(1, 1, 0)),
            )
        )


@pytest.mark.slow
def test_each_group_uses_its_own_reader(ray_session: None, world: Any, tree: Path) -> None:
    run, source, split, metas = world
    corrupted = Corrupted(source, "noise", 5)
    plain, noisy = (
        WorkGroup(metas[:1], (ShardSet("m", 0, 0, name),), ("key",), select(split, "unseen"), reader)
        for name, reader in (("unseen", source), ("noisy", corrupted))
    )
    blocks = list(embed_all([plain, noisy], run, EmbedConfig(), EmbedPlan(Pool(1, 2, 0))))
    found = manifests([plain, noisy], blocks)
    X, Z = (read_layer(run, s, found[s], 0)[2] for s in (plain.shard_sets[0], noisy.shard_sets[0]))
    assert X.shape == Z.shape
    assert np.abs(X - Z).max() > 0.01
    places = [(path, None) for path in select(split, "unseen")["path"].to_pylist()]
    serial = embedded(Embedder.of_checkpoints(run, metas[:1], "cpu", "float32"), corrupted, places, 64).vectors[0][0]
    np.testing.assert_allclose(Z, serial, atol=1e-5)


def test_a_block_that_kills_every_worker_fails(world: Any) -> None:
    run, source, split, metas = world
    (group, *_) = groups_of(split, metas, source)
    (block,) = references(0, group, 0, 100)
    attempts, meter = Attempts(), Meter("here")
    embedding = Embedding([source], run, EmbedConfig(), "cpu", meter, attempts.count)
    for before in range(4):
        assert embedding.embed(block).reports[0].again.get("process", 0) == before
    with pytest.raises(StageError, match=r"4 workers were lost on the block of .* starting at image 0 \(d/000.png\)"):
        embedding(block)


@pytest.mark.slow
def test_a_block_whose_worker_is_lost_is_retried(ray_session: None, world: Any, tree: Path, tmp_path: Path) -> None:
    run, _, split, metas = world
    (group, *_) = groups_of(split, metas, Deadly(str(tree), str(tmp_path / "marker")))
    blocks = list(embed_all([group], run, EmbedConfig(batch_size=4, shard_rows=14), EmbedPlan(Pool(1, 1, 0))))
    assert sorted(block.first for block in blocks) == [0, 14]
    assert sum(report.again.get("process", 0) for block in blocks for report in block.reports) == 1
    ids, _, _ = read_layer(run, group.shard_sets[0], manifests([group], blocks)[group.shard_sets[0]], 0)
    assert ids == [i for i in group.rows["image_id"].to_pylist() if i != "d/005.png"]
