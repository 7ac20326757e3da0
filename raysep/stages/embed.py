"""The embed stage: embed missing shard sets, and commit each set once all of its files are written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raysep.data import splits
from raysep.data.images import check_share
from raysep.distributed import placement
from raysep.distributed.cluster_shape import Resources
from raysep.embedding.ledger import forget
from raysep.embedding.shards import Manifest, commit
from raysep.errors import StageError
from raysep.models.meta import CheckpointMeta, directory
from raysep.stages import run_directory, worklist
from raysep.stages.context import RunContext

if TYPE_CHECKING:
    from raysep.embedding.work import BlockResult, WorkGroup

# Checkpoints of one model that an actor loads together, so that each image is decoded once for all of them.
CHECKPOINTS_AT_ONCE = 8


def pending(run: RunContext) -> bool:
    """Whether a shard set is missing, or no checkpoint exists yet."""
    metas = worklist.checkpoints_of(run)
    return not metas or bool(worklist.pending_shard_sets(run.store, run.config, metas, run.split)[0])


def perform(run: RunContext, cluster: Resources) -> None:
    """Embed all missing shard sets in one stream."""
    from raysep.embedding.work import WorkGroup, finished_blocks

    config, telemetry = run.config, run.telemetry
    metas = worklist.checkpoints_of(run)
    if not metas:
        raise StageError("embed: there are no finished trials: run `raysep finetune` first")
    missing, _ = worklist.pending_shard_sets(run.store, config, metas, run.split)
    data = splits.fingerprint(run.split)
    groups = [
        WorkGroup(
            tuple(chunk),
            tuple(worklist.shard_set_of(meta, name) for meta in chunk),
            tuple(worklist.embedding_key(config, meta, name, data) for meta in chunk),
            splits.select(run.split, worklist.role_of(name), chunk[0].rotation),
            run.readers[worklist.role_of(name)],
        )
        for name, chunk in _grouped(missing)
    ]
    done = [finished_blocks(run.store, index, group, config.embed.shard_rows) for index, group in enumerate(groups)]
    embedded = [{block.first for block in blocks} for blocks in done]
    total = sum(
        (group.rows.num_rows - sum(block.images for block in blocks)) * len(group.metas)
        for group, blocks in zip(groups, done, strict=True)
    )
    blocks_of = [-(-group.rows.num_rows // config.embed.shard_rows) for group in groups]
    if resumed := sum(map(len, embedded)):
        telemetry.line("embed", f"resuming: {resumed} of {sum(blocks_of)} blocks already embedded")
    for group, blocks, count in zip(groups, done, blocks_of, strict=True):
        if len(blocks) == count:
            _commit_group(run, group, blocks)
    # Memory of the checkpoints that an actor loads; the size of a block's embeddings is not known yet.
    weights = max((_checkpoint_bytes(run, group.metas) for group in groups), default=0)
    process_bytes = placement.IMPORTED_BYTES + weights
    plan = placement.embed_plan(config.compute, cluster, sum(blocks_of) - resumed, process_bytes)
    if total and (short := placement.shortage("embed", plan.embed, cluster, process_bytes)):
        telemetry.line("embed", short)
    reported: set[str] = set()
    if total:
        with telemetry.stage("embed", total, "embeddings") as bar:
            for block in run.executor.embed_all(groups, run.store, config.embed, plan, run.verbose, embedded):
                group = groups[block.group]
                done[block.group].append(block)
                if block.uncompiled and group.metas[0].model.id not in reported:
                    reported.add(group.metas[0].model.id)
                    names = ", ".join(block.uncompiled)
                    telemetry.line(
                        "embed", f"{group.metas[0].model.id}: not compiled, as layers inside are read by hooks: {names}"
                    )
                _count_block(run, group, block)
                bar.advance(block.images * len(group.metas), f"{group.metas[0].model.id} {group.shard_sets[0].split}")
                if len(done[block.group]) == blocks_of[block.group]:
                    _commit_group(run, group, done[block.group])
    sets = len(metas) * len(worklist.splits_of(config, run.split))
    telemetry.line("embed", f"computed {total} embeddings for {len(missing)} of {sets} shard sets")
    run_directory.record(run.store, "embed", telemetry.node_work.get("embed"), shard_sets=sets)
    if "decode" in telemetry.node_work:
        run_directory.record(run.store, "decode", telemetry.node_work["decode"])


def _checkpoint_bytes(run: RunContext, metas: Sequence[CheckpointMeta]) -> int:
    """Stored bytes of some checkpoints."""
    paths = [directory(meta.model.id, meta.trial, meta.step) for meta in metas]
    return sum(sum(run.store.sizes(path).values()) for path in paths)


def _count_block(run: RunContext, group: "WorkGroup", block: "BlockResult") -> None:
    """Add a block's images and worker reports to the metrics."""
    metrics, model, split = run.telemetry.metrics, group.metas[0].model.id, group.shard_sets[0].split
    metrics.images.labels(model, split).inc((block.images - len(block.failed)) * len(group.metas))
    metrics.images_failed.labels(model, split).inc(len(block.failed) * len(group.metas))
    for report, step in zip(reversed(block.reports), ("embed", "decode"), strict=False):
        run.telemetry.worked(step, report, model)


def _commit_group(run: RunContext, group: "WorkGroup", blocks: Sequence["BlockResult"]) -> None:
    """Commit the shard sets of a group whose blocks are all written: write their manifests."""
    failed: dict[str, str] = {}
    for block in blocks:
        failed |= block.failed
    try:
        check_share(failed, group.rows.num_rows, run.config.data.max_failed_share)
    except StageError:
        # The user may repair the images: the next call reads them again.
        for shard_set in group.shard_sets:
            forget(run.store, shard_set)
        raise
    for position, (meta, shard_set) in enumerate(zip(group.metas, group.shard_sets, strict=True)):
        files = [block.files[position] for block in sorted(blocks, key=lambda block: block.first) if block.files]
        manifest = Manifest(
            key=group.keys[position],
            rows=sum(file.rows for file in files),
            files=files,
            layers=blocks[0].layers,
            failed=failed,
            dtype=run.config.embed.dtype,
            checkpoint_sha256=meta.sha256,
            versions=run_directory.versions(),
        )
        if manifest.rows + len(failed) != group.rows.num_rows:
            raise StageError(
                f"{shard_set.directory} is not committed: expected {group.rows.num_rows} images, got {manifest.rows} "
                f"rows and {len(failed)} unreadable images"
            )
        commit(run.store, shard_set, manifest)
        forget(run.store, shard_set)
        run.telemetry.event(
            "embed",
            f"{manifest.rows} images embedded",
            model=shard_set.model_id,
            trial=shard_set.trial,
            step=shard_set.step,
            split=shard_set.split,
            unreadable=len(failed),
        )


def _grouped(missing: Sequence[tuple[CheckpointMeta, str]]) -> list[tuple[str, list[CheckpointMeta]]]:
    """Group missing shard sets that share images and a model; groups of one model are adjacent."""
    by_model: dict[str, dict[tuple[str, int], list[CheckpointMeta]]] = {}
    for meta, name in missing:
        by_model.setdefault(meta.model.id, {}).setdefault((name, meta.rotation), []).append(meta)
    groups = [
        (name, metas[first : first + CHECKPOINTS_AT_ONCE], first)
        for by_split in by_model.values()
        for (name, _), metas in by_split.items()
        for first in range(0, len(metas), CHECKPOINTS_AT_ONCE)
    ]
    # Groups with the same checkpoints are adjacent, so that an actor doesn't reload them.
    order = {model: position for position, model in enumerate(by_model)}
    groups.sort(key=lambda group: (order[group[1][0].model.id], group[2]))
    return [(name, metas) for name, metas, _ in groups]
