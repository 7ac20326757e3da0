"""The stage: embed the shard sets that are missing, and commit each when all of its files are written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raysep import planning, runs, work
from raysep.context import Run
from raysep.data import splits
from raysep.data.images import check_share
from raysep.embed.shards import Manifest, ShardSet, commit
from raysep.errors import StageError
from raysep.models.meta import CheckpointMeta
from raysep.resources import Resources

if TYPE_CHECKING:
    from raysep.embed.blocks import Block, Unit

# Checkpoints of a model that one actor holds at once, so that they share each decoded image.
CHECKPOINTS_AT_ONCE = 8


def pending(run: Run) -> bool:
    """Whether a shard set is missing, or there is nothing yet to embed with."""
    metas = work.checkpoints_of(run)
    return not metas or bool(work.pending_shard_sets(run.storage, run.config, metas, run.split)[0])


def perform(run: Run, cluster: Resources) -> None:
    """Embed the shard sets that are missing, all of them in one stream."""
    from raysep.embed.blocks import Block, Unit
    from raysep.embed.stream import embed_all

    config, telemetry = run.config, run.telemetry
    metas = work.checkpoints_of(run)
    if not metas:
        raise StageError("embed: there are no finished trials: run `raysep finetune` first")
    missing, _ = work.pending_shard_sets(run.storage, config, metas, run.split)
    units = [
        Unit(
            tuple(chunk),
            tuple(work.shard_set_of(meta, name) for meta in chunk),
            splits.select(run.split, work.role_of(name), chunk[0].rotation),
            run.readers[work.role_of(name)],
        )
        for name, chunk in _sharing(missing)
    ]
    total = sum(unit.rows.num_rows * len(unit.metas) for unit in units)
    blocks_of = [-(-unit.rows.num_rows // config.embed.shard_rows) for unit in units]
    plan = planning.embed_plan(config.compute, cluster, sum(blocks_of))
    data = splits.fingerprint(run.split)
    done: list[list[Block]] = [[] for _ in units]
    told: set[str] = set()
    if units:
        with telemetry.stage("embed", total, "embeddings") as bar:
            for block in embed_all(units, run.storage, config.embed, plan, run.verbose):
                unit = units[block.unit]
                done[block.unit].append(block)
                if block.uncompiled and unit.metas[0].model.id not in told:
                    told.add(unit.metas[0].model.id)
                    which = ", ".join(block.uncompiled)
                    telemetry.line("embed", f"{unit.metas[0].model.id}: not compiled, since hooks read it: {which}")
                _count(run, unit, block, plan)
                bar.advance(block.images * len(unit.metas), f"{unit.metas[0].model.id} {unit.shard_sets[0].split}")
                if len(done[block.unit]) == blocks_of[block.unit]:
                    _commit_unit(run, unit.metas, unit.shard_sets, done[block.unit], data)
    sets = len(metas) * len(work.splits_of(config, run.split))
    telemetry.line("embed", f"{total} embeddings, {len(missing)} of {sets} shard sets new")
    runs.record(run.storage, "embed", telemetry.bill.get("embed"), shard_sets=sets)
    if "decode" in telemetry.bill:
        runs.record(run.storage, "decode", telemetry.bill["decode"])


def _count(run: Run, unit: "Unit", block: "Block", plan: planning.EmbedPlan) -> None:
    """A block's images and its workers' figures."""
    metrics, model, split = run.telemetry.metrics, unit.metas[0].model.id, unit.shard_sets[0].split
    metrics.images.labels(model, split).inc((block.images - len(block.failed)) * len(unit.metas))
    metrics.images_failed.labels(model, split).inc(len(block.failed) * len(unit.metas))
    for report, step in zip(reversed(block.reports), ("embed", "decode"), strict=False):
        pool = plan.embed if step == "embed" else plan.decode
        run.telemetry.worked(step, report, model, pool.processes if pool else 0)


def _commit_unit(
    run: Run,
    metas: Sequence[CheckpointMeta],
    shard_sets: Sequence[ShardSet],
    blocks: Sequence[Any],
    data: str,
) -> None:
    """All blocks of a unit are written: say which files make up each of its shard sets."""
    failed: dict[str, str] = {}
    for block in blocks:
        failed |= block.failed
    check_share(failed, sum(block.images for block in blocks), run.config.data.max_failed_share)
    for position, (meta, shard_set) in enumerate(zip(metas, shard_sets, strict=True)):
        files = [block.files[position] for block in blocks if block.files]
        manifest = Manifest(
            key=work.embedding_key(run.config, meta, shard_set.split, data),
            rows=sum(file["rows"] for file in files),
            files=files,
            layers=blocks[0].layers,
            failed=failed,
            dtype=run.config.embed.dtype,
            checkpoint_sha256=meta.sha256,
            versions=runs.versions(),
        )
        commit(run.storage, shard_set, manifest)
        run.telemetry.event(
            "embed",
            f"{manifest.rows} images embedded",
            model=shard_set.model_id,
            trial=shard_set.trial,
            step=shard_set.step,
            split=shard_set.split,
            unreadable=len(failed),
        )


def _sharing(missing: Sequence[tuple[CheckpointMeta, str]]) -> list[tuple[str, list[CheckpointMeta]]]:
    """Missing shard sets in groups that share images and a model, with groups of a model side by side."""
    by_model: dict[str, dict[tuple[str, int], list[CheckpointMeta]]] = {}
    for meta, name in missing:
        by_model.setdefault(meta.model.id, {}).setdefault((name, meta.rotation), []).append(meta)
    groups = [
        (name, metas[first : first + CHECKPOINTS_AT_ONCE], first)
        for by_split in by_model.values()
        for (name, _), metas in by_split.items()
        for first in range(0, len(metas), CHECKPOINTS_AT_ONCE)
    ]
    # The same checkpoints follow each other, so that an actor that holds them needs no others in between.
    order = {model: position for position, model in enumerate(by_model)}
    groups.sort(key=lambda group: (order[group[1][0].model.id], group[2]))
    return [(name, metas) for name, metas, _ in groups]
